"""The entry point of ``sb3-refine``."""

import argparse
import os
import sys
from collections.abc import Callable

from sb3_refine.cli.evaluate import evaluate_agents, make_evaluate_parser
from sb3_refine.cli.options import Parser, check_demo, given_options, is_code
from sb3_refine.cli.push import make_push_parser, push_run
from sb3_refine.cli.refine import refine_agent
from sb3_refine.cli.refine_options import make_parser
from sb3_refine.errors import EpisodeError, RefineError, printable_lines
from sb3_refine.files import is_disk_full

_SUBCOMMANDS: dict[str, tuple[Callable[[], Parser], Callable[[argparse.Namespace], int]]] = {
    "push": (make_push_parser, push_run),
    "evaluate": (make_evaluate_parser, evaluate_agents),
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
    try:
        options = parser.parse_args(argv)
        options.given = given_options(make(), argv)
        check_demo(parser, options)
        _prepare_imports(options)
        return run(options)
    except (RefineError, EpisodeError) as error:
        print(f"{parser.prog}: error: {printable_lines(_with_flag(str(error), parser))}", file=sys.stderr)
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


def _with_flag(message: str, parser: Parser) -> str:
    """Errors of the library begin with the name of an argument: name the flag instead."""
    argument, colon, rest = message.partition(":")
    flag = f"--{argument.replace('_', '-')}"
    return f"{flag}{colon}{rest}" if flag in parser._option_string_actions else message


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
