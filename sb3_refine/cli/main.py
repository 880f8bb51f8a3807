"""The entry point of ``sb3-refine``."""

import argparse
import os
import re
import shlex
import sys
from collections.abc import Callable

from sb3_refine.cli.distill import distill_agent, make_distill_parser
from sb3_refine.cli.evaluate import evaluate_agents, make_evaluate_parser
from sb3_refine.cli.export import export_agent, make_export_parser
from sb3_refine.cli.judge import judge_agents, make_judge_parser
from sb3_refine.cli.meta import adapt_agent, make_adapt_parser, make_meta_parser, meta_agent
from sb3_refine.cli.options import Parser, check_demo, given_options, is_code
from sb3_refine.cli.push import make_push_parser, push_run
from sb3_refine.cli.refine import refine_agent
from sb3_refine.cli.refine_options import make_parser
from sb3_refine.errors import EpisodeError, RefineError, did_you_mean, printable, printable_lines
from sb3_refine.files import is_disk_full

_SUBCOMMANDS: dict[str, tuple[Callable[[], Parser], Callable[[argparse.Namespace], int]]] = {
    "push": (make_push_parser, push_run),
    "evaluate": (make_evaluate_parser, evaluate_agents),
    "judge": (make_judge_parser, judge_agents),
    "distill": (make_distill_parser, distill_agent),
    "export": (make_export_parser, export_agent),
    "meta": (make_meta_parser, meta_agent),
    "adapt": (make_adapt_parser, adapt_agent),
}


def main(argv: list[str] | None = None) -> int:
    """
    Entry point of ``sb3-refine``.

    :param argv: arguments; those of the process by default
    :return: exit status: 0 for a verdict, whatever it is; 1 for an error; 2 for a wrong option; 130 after Ctrl-C
    """
    argv = sys.argv[1:] if argv is None else argv
    name = next(iter(argv), "")
    make, run = _SUBCOMMANDS.get(name, (make_parser, refine_agent))
    argv = argv[1:] if name in _SUBCOMMANDS else argv
    parser = make()
    if name and not name.startswith("-") and name not in _SUBCOMMANDS:
        known = [*_SUBCOMMANDS, *parser._option_string_actions]
        parser.error(f"unknown command: {printable(name)}{did_you_mean(name, known)}; see sb3-refine --help")
    try:
        options = parser.parse_args(argv)
        options.given = given_options(make(), argv)
        options.command = shlex.join([*parser.prog.split(), *argv])
        check_demo(parser, options)
        _prepare_imports(options)
        return run(options)
    except (RefineError, EpisodeError) as error:
        print(f"{parser.prog}: error: {printable_lines(_with_flags(str(error), parser))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if not is_disk_full(error):
            raise
        print(f"{parser.prog}: error: {printable_lines(str(error))}", file=sys.stderr)
        return 1


def _with_flags(message: str, parser: Parser) -> str:
    """Errors of the library name its arguments, at the beginning or in backticks: name the flags instead."""
    flags = {action.dest: action.option_strings[-1] for action in parser._actions if action.option_strings}

    def flag(found: re.Match[str]) -> str:
        name, value = found["name"], found["value"]
        if name not in flags:
            return found[0]
        return flags[name] if value in (None, "True", "False") else f"{flags[name]} {value}"

    beginning, colon, rest = message.partition(":")
    beginning = ", ".join(flags.get(name, name) for name in beginning.split(", "))
    return re.sub(r"`(?P<name>\w+)(='?(?P<value>[\w.-]+)'?)?`", flag, beginning + colon + rest)


def _prepare_imports(options: argparse.Namespace) -> None:
    """
    Import the modules that the user names, which may register environments, optimizers, objectives and backends. Only
    where the user names one are modules of the working directory importable.
    """
    named = vars(options)
    packages = named.get("gym_packages") or ()
    if packages or ":" in (named.get("env") or "") or is_code(named.get("objective") or "return"):
        from sb3_refine.agents.imports import add_working_directory

        add_working_directory()
    for package in packages:
        from sb3_refine.envs.spec import import_package

        import_package(package, f"gym_packages: {package}")


if __name__ == "__main__":
    sys.exit(main())
