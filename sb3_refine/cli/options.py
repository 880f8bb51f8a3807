"""Options that subcommands share, and what they print."""

import argparse
import ast
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from sb3_refine.errors import did_you_mean, printable_lines

if TYPE_CHECKING:
    from sb3_refine.agents.agent import Agent

DEMO = {"algo": "ppo", "env": "Pendulum-v1", "folder": Path(__file__).parents[1] / "demo"}

SUBCOMMANDS = ("push", "evaluate", "judge", "distill", "export", "meta", "adapt")

_FROM_HUB = ("organization", "repo_name", "revision")


class Parser(argparse.ArgumentParser):
    """One line an error, with the nearest option or subcommand."""

    def error(self, message: str) -> NoReturn:
        if message == "unrecognized arguments: ":
            message += "an empty one"
        unknown, *_ = message.removeprefix("unrecognized arguments: ").split() or [""]
        if unknown != message.split(maxsplit=1)[0]:
            message += did_you_mean(unknown.split("=")[0], [*self._option_string_actions, *SUBCOMMANDS])
        self.exit(2, f"{self.prog}: error: {message}\n")


class StoreDict(argparse.Action):
    """``key:value`` pairs as the Zoo writes them; the values are literals and never run."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        pairs = {}
        for pair in values:
            key, separator, value = pair.partition(":")
            try:
                pairs[key] = ast.literal_eval(value)
            except (SyntaxError, ValueError):
                pairs[key] = value
            if not separator:
                parser.error(f"argument {option_string}: expected key:value, got {pair!r}")
        setattr(namespace, self.dest, pairs)


def count(text: str) -> int:
    """
    :param text: of an option
    :return: the number
    """
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {text}")
    return int(text)


def whole(text: str) -> int:
    if int(text) < 0:
        raise argparse.ArgumentTypeError(f"expected at least 0, got {text}")
    return int(text)


count.__name__ = whole.__name__ = "int"  # argparse names it when the text is no number


def count_or_auto(text: str) -> int | str:
    return text if text == "auto" else count(text)


count_or_auto.__name__ = "int or auto"


def seconds(text: str) -> float:
    if not float(text) > 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
    return float(text)


def seconds_or_zero(text: str) -> float:
    if not float(text) >= 0:
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, got {text}")
    return float(text)


seconds.__name__ = seconds_or_zero.__name__ = "number"  # for the error message of argparse


def add_agent_options(parser: Parser) -> None:
    """
    Add the options that choose an agent, for :func:`load_chosen_agent`.

    :param parser: of any subcommand
    """
    agent = parser.add_argument_group("the agent")
    agent.add_argument("--algo", help="algorithm, by the Zoo's name")
    agent.add_argument("--env", help="environment id that the agent was trained on")
    agent.add_argument(
        "-f", "--folder", default="rl-trained-agents", help="the Zoo's log folder (default: %(default)s)"
    )
    agent.add_argument("--exp-id", type=int, default=0, help="experiment number; 0: the newest, -1: none in the name")
    agent.add_argument("--load-best", action="store_true", help="load the best model instead of the last")
    agent.add_argument(
        "--load-checkpoint", type=int, metavar="STEPS", help="load this checkpoint instead of the last model"
    )
    agent.add_argument("--load-last-checkpoint", action="store_true", help="load the last checkpoint")
    agent.add_argument("--model", metavar="ZIP", help="a plain zip instead of a Zoo folder")
    agent.add_argument("--vecnormalize", dest="vec_normalize", metavar="PKL", help="observation statistics of --model")
    agent.add_argument(
        "--no-vecnormalize",
        dest="no_vec_normalize",
        action="store_true",
        help="go on although the statistics are missing",
    )
    agent.add_argument(
        "--env-kwargs", nargs="+", action=StoreDict, metavar="KEY:VALUE", help="arguments of the environment"
    )
    agent.add_argument(
        "--tasks",
        metavar="FILE",
        help="YAML file with distributions of gravity, masses, goals, arguments: each episode is another task",
    )
    agent.add_argument(
        "--no-end-at-success",
        action="store_true",
        help="episodes in which the goal is reached go on until their time is up, as Panda's did in 2021",
    )
    agent.add_argument(
        "--gym-packages",
        nargs="+",
        default=[],
        metavar="MODULE",
        help="modules to import first: they may register environments, optimizers, objectives and backends",
    )
    agent.add_argument("--device", default="auto", help="as the Zoo has it; rollouts run on the CPU (default: auto)")
    agent.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="unpickle what cannot be read as data: runs any code that the agent's author put there",
    )
    agent.add_argument("--demo", action="store_true", help="take the small agent that comes with the package")
    agent.add_argument(
        "--organization", metavar="ORG", help="pull from ORG on the Hub (default: sb3, if the folder has no such agent)"
    )
    agent.add_argument("--repo-name", metavar="NAME", help="pull from this repo of ORG (default: ALGO-ENV)")
    agent.add_argument("--revision", help="pull this branch, tag or commit (default: the newest)")


def set_up_logging(level: int) -> None:
    """
    Log to the terminal, without the control characters that names from files may have.

    :param level: of the package's messages
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_PrintableFormatter("%(message)s"))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("sb3_refine").setLevel(level)


class _PrintableFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))


def say(text: str) -> None:
    """
    Print a line that may hold names from files.

    :param text: the line
    """
    print(printable_lines(text), flush=True)


def given_options(parser: Parser, argv: list[str]) -> set[str]:
    """
    Names of the options that the user has given.

    :param parser: a fresh one, which is of no further use
    :param argv: what the user has typed
    """
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    return set(vars(parser.parse_args(argv)))


def check_demo(parser: Parser, options: argparse.Namespace) -> None:
    """Fill in the agent that ``--demo`` stands for."""
    if not vars(options).get("demo"):
        return
    clashing = {"algo", "env", "folder", "model", "resume", *_FROM_HUB} & options.given
    if clashing:
        parser.error(
            "--demo brings its own agent: leave --algo, --env, --folder, --model, --resume, --organization, "
            "--repo-name and --revision out"
        )
    options.algo, options.env, options.folder = DEMO["algo"], DEMO["env"], DEMO["folder"]


def load_chosen_agent(options: argparse.Namespace) -> "Agent":
    """
    :param options: those of :func:`add_agent_options`
    :return: the agent that they choose
    :raises RefineError: when there is none
    """
    from sb3_refine.agents.load import load_agent

    if options.device not in ("auto", "cpu"):
        logging.getLogger("sb3_refine").warning(
            "--device %s: rollouts run on the CPU, which is the faster device for one observation at a time",
            options.device,
        )
    return load_agent(
        options.algo,
        options.env,
        options.folder,
        exp_id=options.exp_id,
        load_best=options.load_best,
        load_checkpoint=options.load_checkpoint,
        load_last_checkpoint=options.load_last_checkpoint,
        model=options.model,
        vec_normalize=options.vec_normalize,
        env_kwargs=options.env_kwargs,
        gym_packages=options.gym_packages,
        no_vec_normalize=options.no_vec_normalize,
        trust_remote_code=options.trust_remote_code,
        organization=options.organization,
        repo_name=options.repo_name,
        revision=options.revision,
        end_at_success=not options.no_end_at_success,
        tasks=options.tasks,
    )


def is_code(objective: str) -> bool:
    """Whether it is ``module:function``."""
    if ":" not in objective:
        return False
    from sb3_refine.objectives import OBJECTIVES

    return objective.partition(":")[0] not in OBJECTIVES


def is_scope(parameters: str) -> bool:
    from sb3_refine.policies.parameters import SCOPES

    return parameters in SCOPES
