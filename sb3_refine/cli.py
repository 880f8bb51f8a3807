"""The command line: parsing and printing only."""

import argparse
import ast
import json
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from sb3_refine import __version__
from sb3_refine.errors import EpisodeError, RefineError, did_you_mean, printable, printable_lines
from sb3_refine.files import atomic_path, is_disk_full, refuse_links

if TYPE_CHECKING:
    from sb3_refine.agents import Agent
    from sb3_refine.refiner import Refiner

_SOURCE = "source.json"
DEMO = {"algo": "ppo", "env": "Pendulum-v1", "folder": Path(__file__).parent / "demo"}


_FROM_HUB = ("organization", "repo_name", "revision")


class Parser(argparse.ArgumentParser):
    """One line an error, with the nearest option or subcommand."""

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ").split()[0]
        if unknown != message.split(maxsplit=1)[0]:
            message += did_you_mean(unknown.split("=")[0], [*self._option_string_actions, *_SUBCOMMANDS])
        self.exit(2, f"{self.prog}: error: {message}\n")


class _StoreDict(argparse.Action):
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


count.__name__ = "int"  # argparse names it when the text is no number


def _count_or_auto(text: str) -> int | str:
    return text if text == "auto" else count(text)


_count_or_auto.__name__ = "int or auto"


def _seconds(text: str) -> float:
    if not float(text) > 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
    return float(text)


def _minutes(text: str) -> float:
    if not float(text) >= 0:
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, got {text}")
    return float(text)


_seconds.__name__ = _minutes.__name__ = "number"  # argparse names it when the text is none


def add_agent_options(parser: Parser) -> None:
    """
    Add the options that choose an agent. :func:`load_chosen_agent` heeds them.

    :param parser: of any subcommand
    """
    agent = parser.add_argument_group("the agent")
    agent.add_argument("--algo", help="algorithm, by the Zoo's name")
    agent.add_argument("--env", help="environment id that the agent was trained on")
    agent.add_argument(
        "-f", "--folder", default="rl-trained-agents", help="the Zoo's log folder (default: %(default)s)"
    )
    agent.add_argument("--exp-id", type=int, default=0, help="experiment number; 0: the newest, -1: no such folder")
    agent.add_argument("--load-best", action="store_true", help="load the best model instead of the last")
    agent.add_argument(
        "--load-checkpoint", type=int, metavar="STEPS", help="load this checkpoint instead of the last model"
    )
    agent.add_argument("--load-last-checkpoint", action="store_true", help="load the last checkpoint")
    agent.add_argument("--model", metavar="ZIP", help="a plain zip instead of a Zoo folder")
    agent.add_argument("--vecnormalize", metavar="PKL", help="observation statistics of --model")
    agent.add_argument("--no-vecnormalize", action="store_true", help="go on although the statistics are missing")
    agent.add_argument(
        "--env-kwargs", nargs="+", action=_StoreDict, metavar="KEY:VALUE", help="arguments of the environment"
    )
    agent.add_argument(
        "--no-end-at-success",
        action="store_true",
        help="episodes in which the goal is reached go on until their time is up, as Panda's did in 2021",
    )
    agent.add_argument(
        "--gym-packages", nargs="+", default=[], metavar="MODULE", help="modules that register environments"
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


def make_parser() -> Parser:
    """:return: the parser of ``sb3-refine``"""
    parser = Parser(
        prog="sb3-refine",
        description="Refine a trained Stable-Baselines3 agent by direct random search, and prove it on held-out seeds.",
        epilog="example: sb3-refine --algo ddpg --env HopperBulletEnv-v0 -f rl-trained-agents -P; "
        "`sb3-refine evaluate` runs an agent, or two side by side, `sb3-refine push` pushes the result of a run to the "
        "Hub: see their own --help",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"sb3-refine {__version__}")
    add_agent_options(parser)
    search = parser.add_argument_group("the search")
    search.add_argument(
        "--preset",
        choices=("default", "paper"),
        default="default",
        help="default: 16 directions, 80 updates; paper: 64 directions, 200 updates, its schedules, the last iterate",
    )
    search.add_argument("--optimizer", default="ars", help="search method (default: %(default)s)")
    search.add_argument(
        "--objective",
        default="return",
        metavar="NAME[:OPTION=VALUE,...]",
        help="what is maximised: return, mesh-dimension, cvar, success, survival, smooth, or module:function "
        "(default: %(default)s)",
    )
    length = search.add_mutually_exclusive_group()
    length.add_argument("--n-updates", type=count, help="number of updates")
    length.add_argument(
        "--budget", type=count, metavar="ROLLOUTS", help="episodes of the search, instead of a number of updates"
    )
    search.add_argument("--n-delta", type=count, help="directions an update, two episodes each")
    search.add_argument("--n-top", type=count, help="directions that enter the update (default: all)")
    search.add_argument(
        "--learning-rate", type=float, nargs="+", metavar=("A", "B"), help="step size, or its start and end"
    )
    search.add_argument(
        "--delta-std", type=float, nargs="+", metavar=("A", "B"), help="std of the perturbation, or its start and end"
    )
    search.add_argument(
        "--parameters",
        default="actor",
        metavar="SCOPE",
        help="actor, head, or a regular expression over parameter names (default: %(default)s)",
    )
    search.add_argument("--seed", type=int, default=0, help="seed of everything random (default: %(default)s)")
    search.add_argument("--n-workers", type=count, help="episodes run at a time (default: all processors)")
    search.add_argument("--backend", default="process", help="process or serial (default: %(default)s)")
    search.add_argument(
        "--dry-run", action="store_true", help="load, check, run one pair, say what would run and how long"
    )
    search.add_argument(
        "--episode-timeout",
        type=_seconds,
        default=600.0,
        metavar="S",
        help="give an episode up as hanging (default: %(default)s)",
    )
    search.add_argument("--no-accelerator", action="store_true", help="use the stock step of the environment")
    search.add_argument(
        "--time-limit",
        type=_minutes,
        metavar="MIN",
        help="end the search in time, with --n-eval-episodes held-out ones set aside; the report comes on top",
    )
    search.add_argument(
        "--checkpoint-interval",
        type=count,
        default=5,
        metavar="N",
        help="updates between checkpoints (default: %(default)s)",
    )
    search.add_argument("--resume", metavar="DIR", help="go on with an interrupted run, OUTPUT/ALGO/ENV_K")
    verdict = parser.add_argument_group("the verdict")
    verdict.add_argument(
        "--n-eval-episodes",
        type=_count_or_auto,
        default=100,
        metavar="N",
        help="held-out episodes; auto: 50 to 2000, as many as it takes to resolve --min-effect (default: %(default)s)",
    )
    verdict.add_argument(
        "--min-effect",
        type=float,
        metavar="X",
        help="a difference worth knowing of (default: 1%% of the original's mean)",
    )
    verdict.add_argument("--alpha", type=float, default=0.05, help="level of significance (default: %(default)s)")
    verdict.add_argument(
        "--max-return-loss",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="share of the mean return that another objective may cost (default: %(default)s)",
    )
    verdict.add_argument(
        "--no-selection", action="store_true", help="judge the last iterate instead of choosing on validation seeds"
    )
    verdict.add_argument("--no-acceptance", action="store_true", help="save the last iterate, untested")
    output = parser.add_argument_group("the output")
    output.add_argument("-o", "--output", default="refined-agents", help="output folder (default: %(default)s)")
    output.add_argument(
        "--push-to-hub",
        metavar="ORG",
        help="push the result to the Hub, to ORG/ALGO-ENV, or to the repo ORG/NAME; "
        "`sb3-refine push DIR --organization ORG` does so later",
    )
    output.add_argument("--no-report", action="store_true", help="write no report.md and no plots")
    output.add_argument(
        "--video", action="store_true", help="record an episode of the original and of what was found, side by side"
    )
    output.add_argument(
        "--phase-portrait",
        type=int,
        nargs=2,
        metavar=("I", "J"),
        help="observations, by index, to draw against each other in the report (default: the two that move most)",
    )
    output.add_argument("-P", "--progress", action="store_true", help="show a progress bar")
    output.add_argument("--tensorboard-log", metavar="DIR", help="log for TensorBoard")
    output.add_argument(
        "--log-interval", type=count, default=10, help="updates between two log entries (default: %(default)s)"
    )
    output.add_argument("--verbose", type=int, help="0: the verdict only, 1: tables on the way (default: 1, with -P 0)")
    return parser


def make_push_parser() -> Parser:
    """:return: the parser of ``sb3-refine push``"""
    parser = Parser(
        prog="sb3-refine push", description="Push what a run has left to the Hugging Face Hub.", allow_abbrev=False
    )
    parser.add_argument("run_folder", metavar="DIR", help="folder of a finished run, OUTPUT/ALGO/ENV_K")
    parser.add_argument("--organization", required=True, metavar="ORG", help="organization or user to push to")
    parser.add_argument("--repo-name", metavar="NAME", help="name of the repo (default: ALGO-ENV)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """
    Entry point of ``sb3-refine``.

    :param argv: arguments; those of the process by default
    :return: exit status: 0 for a verdict, whatever it is; 1 for an error; 2 for a wrong option; 130 after Ctrl-C
    """
    argv = sys.argv[1:] if argv is None else argv
    name = next(iter(argv), "")
    make, run = _SUBCOMMANDS.get(name, (make_parser, _refine))
    argv = argv[1:] if name in _SUBCOMMANDS else argv
    parser = make()
    try:
        options = parser.parse_args(argv)
        options.given = _given(make(), argv)
        _check_demo(parser, options)
        _prepare_imports(options)
        return run(options)
    except (RefineError, EpisodeError) as error:
        print(f"{parser.prog}: error: {printable_lines(str(error))}", file=sys.stderr)
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


def _prepare_imports(options: argparse.Namespace) -> None:
    """Modules of the working directory are imported only where the user names a module."""
    named = vars(options)
    has_module = ":" in (named.get("env") or "") or _is_code(named.get("objective") or "return")
    if named.get("gym_packages") or has_module:
        from sb3_refine.imports import add_working_directory

        add_working_directory()


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


def _given(parser: Parser, argv: list[str]) -> set[str]:
    """
    Names of the options that the user has given.

    :param parser: a fresh one, which is of no further use
    :param argv: what the user has typed
    """
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    return set(vars(parser.parse_args(argv)))


def _check_demo(parser: Parser, options: argparse.Namespace) -> None:
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
    from sb3_refine.agents import load_agent

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
        vec_normalize=options.vecnormalize,
        env_kwargs=options.env_kwargs,
        gym_packages=options.gym_packages,
        no_vec_normalize=options.no_vecnormalize,
        trust_remote_code=options.trust_remote_code,
        organization=options.organization,
        repo_name=options.repo_name,
        revision=options.revision,
        end_at_success=not options.no_end_at_success,
    )


def _refine(options: argparse.Namespace) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leave the best so far, as Ctrl-C does
    if options.verbose is None:
        options.verbose = 0 if options.progress else 1
    set_up_logging(logging.INFO if options.verbose >= 1 else logging.WARNING)
    from sb3_refine.zoo import new_run_folder

    destination = _destination(options.push_to_hub)
    _check_report(options)
    refiner, n_updates = _make_refiner(options)
    agent = refiner.agent
    if options.phase_portrait:
        from sb3_refine.episode import n_observed
        from sb3_refine.examination import check_entries

        check_entries(options.phase_portrait, n_observed(agent.model.observation_space))
    if options.dry_run:
        return _dry_run(refiner, n_updates)
    run_folder = Path(options.resume or new_run_folder(options.output, agent.algo, agent.env_name))
    try:
        _search(refiner, n_updates, run_folder, options)
    except (RefineError, EpisodeError, OSError, KeyboardInterrupt) as stop:
        if not (options.resume and isinstance(stop, RefineError)):  # other settings, mostly, and the way is known
            _say_how_to_go_on(run_folder, stop, _resume_command(run_folder, options))
        raise
    reported = options.no_report or _report(refiner, run_folder, options)
    if destination is not None:
        _push(argparse.Namespace(run_folder=run_folder, **destination))
    return 0 if reported else 1


def _search(refiner: "Refiner", n_updates: int, run_folder: Path, options: argparse.Namespace) -> None:
    """Search, judge, and save, also after Ctrl-C."""
    from sb3_refine.agents import save_agent
    from sb3_refine.zoo import remove_if_unused

    state_folder = run_folder / "state"
    try:
        if not options.resume:
            save_agent(refiner.agent, state_folder)  # the original, to resume from
        refiner.agent.source = _original_source(refiner.agent.source, state_folder)
        refiner.set_logger(_make_logger(options, run_folder))
        _announce(refiner, n_updates)
        refiner.learn(
            n_updates,
            log_interval=options.log_interval,
            progress_bar=options.progress,
            time_limit=None if options.time_limit is None else 60 * options.time_limit,
            checkpoint_folder=state_folder,
            checkpoint_interval=options.checkpoint_interval,
            resume=options.resume is not None,
        )
    finally:
        with _signals_held_back():
            try:
                if refiner.result is not None:
                    _save(refiner, run_folder)
            finally:
                remove_if_unused(run_folder)


def _save(refiner: "Refiner", run_folder: Path) -> None:
    """What came of it is told even where it cannot be saved."""
    try:
        refiner.save(run_folder=run_folder)
    except RefineError:
        with suppress(OSError):  # on the same full disk
            _print_result(refiner, "NOT SAVED, or not whole")
        raise
    _print_result(refiner, f"saved to {run_folder / f'{refiner.agent.env_name}.zip'}")


def _resume_command(run_folder: Path, options: argparse.Namespace) -> str:
    """What goes on with the run. Code that the user named is not run again unless it is named again."""
    command = ["sb3-refine", "--resume", str(run_folder)]
    if _is_code(options.objective):
        command += ["--objective", options.objective]
    if not _is_scope(options.parameters):
        command += ["--parameters", options.parameters]
    module = (options.env or "").rpartition(":")[0]
    packages = list(dict.fromkeys(filter(None, [*options.gym_packages, module])))
    if packages:
        command += ["--gym-packages", *packages]
    if options.env_kwargs:
        command += ["--env-kwargs", *(f"{name}:{value}" for name, value in options.env_kwargs.items())]
    if options.trust_remote_code:
        command += ["--trust-remote-code"]
    return shlex.join(command)


def _is_code(objective: str) -> bool:
    """Whether it is ``module:function``."""
    if ":" not in objective:
        return False
    from sb3_refine.objectives import OBJECTIVES

    return objective.partition(":")[0] not in OBJECTIVES


def _is_scope(parameters: str) -> bool:
    from sb3_refine.parameters import SCOPES

    return parameters in SCOPES


def _say_how_to_go_on(run_folder: Path, stop: BaseException, command: str) -> None:
    from sb3_refine.checkpoint import FILE_NAME as CHECKPOINT

    if not (run_folder / "state" / CHECKPOINT).exists():
        return
    once = "" if isinstance(stop, KeyboardInterrupt) else ", once that is fixed"
    line = f"to go on from here{once}: {command}"
    if isinstance(stop, EpisodeError):  # the same episode would fail again
        line += " (with --time-limit 0, to judge what there is)"
    print(printable(line), file=sys.stderr)


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Ctrl-C or SIGTERM must not leave half of the result: each takes effect once the result is saved."""
    received: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: received.append(number))
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        if received:
            raise KeyboardInterrupt


def _check_report(options: argparse.Namespace) -> None:
    """What the report would lack is told before the search."""
    for option, given in (("--video", options.video), ("--phase-portrait", options.phase_portrait)):
        if given and (options.no_report or options.no_acceptance):
            raise RefineError(f"{option}: needs the test and the report: leave --no-acceptance and --no-report out")
    if options.video:
        from sb3_refine.video import encoder

        encoder()


def _report(refiner: "Refiner", run_folder: Path, options: argparse.Namespace) -> bool:
    """The result is saved by now, and not to be lost to an environment that chokes on noise, or cannot be filmed."""
    try:
        say(f"report: {refiner.report(run_folder, options.video, options.phase_portrait)}")
    except (RefineError, EpisodeError, OSError) as error:
        message = printable_lines(f"sb3-refine: error: the agent is saved, but its report is not complete: {error}")
        print(message, file=sys.stderr)
        return False
    return True


def _original_source(source: dict[str, Any], state_folder: Path) -> dict[str, Any]:
    """Where the agent came from in the first place, also when it is loaded from the state of an interrupted run."""
    from sb3_refine.decoding.schema import SchemaError, read_json
    from sb3_refine.run_folder import SOURCE

    path = state_folder / _SOURCE
    if path.exists():
        try:
            stored = read_json(path)
            SOURCE(stored)
        except SchemaError as error:
            raise RefineError(f"--resume: {path} is damaged ({error}); start the run anew") from None
        return stored
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(source))
    return source


def _destination(push_to_hub: str | None) -> dict[str, str | None] | None:
    """Where ``--push-to-hub`` says, after a look at what would stop it: not only when the search is over."""
    if push_to_hub is None:
        return None
    from sb3_refine.hub import check_push

    organization, _, repo_name = push_to_hub.partition("/")
    check_push(organization, repo_name or None)
    return {"organization": organization, "repo_name": repo_name or None}


def _push(options: argparse.Namespace) -> int:
    from sb3_refine.hub import push

    say(f"pushed to {push(options.run_folder, options.organization, options.repo_name)}")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from sb3_refine.cli_evaluate import evaluate_agents

    return evaluate_agents(options)


def _make_evaluate_parser() -> Parser:
    from sb3_refine.cli_evaluate import make_evaluate_parser

    return make_evaluate_parser()


_SUBCOMMANDS: dict[str, tuple[Callable[[], Parser], Callable[[argparse.Namespace], int]]] = {
    "push": (make_push_parser, _push),
    "evaluate": (_make_evaluate_parser, _evaluate),
}


def _make_refiner(options: argparse.Namespace) -> tuple["Refiner", int]:
    from sb3_refine.refiner import PRESETS, Refiner

    settings = dict(PRESETS[options.preset])
    if options.resume:
        if "preset" in options.given:
            raise RefineError("--resume: goes on with the settings of the interrupted run: leave --preset out")
        settings = _resumed_settings(options)
    for name in ("n_updates", "n_delta", "n_top", "learning_rate", "delta_std"):
        value = getattr(options, name)
        if value is not None:
            settings[name] = _start_end(name, value) if isinstance(value, list) else value
    n_updates = settings.pop("n_updates")
    if options.budget is not None:
        n_updates = options.budget // (2 * settings["n_delta"])
        if n_updates == 0:
            raise RefineError(f"--budget: one update takes {2 * settings['n_delta']} rollouts, got {options.budget}")
    refiner = Refiner(
        load_chosen_agent(options),
        optimizer=options.optimizer,
        parameters=options.parameters,
        n_workers=options.n_workers,
        backend=options.backend,
        seed=options.seed,
        objective=options.objective,
        n_eval_episodes=options.n_eval_episodes,
        alpha=options.alpha,
        min_effect=options.min_effect,
        max_return_loss=options.max_return_loss,
        acceptance=not options.no_acceptance,
        selection=settings.pop("selection", True) and not options.no_selection,
        accelerator=not options.no_accelerator,
        episode_timeout=options.episode_timeout,
        **settings,
    )
    return refiner, n_updates


def _resumed_settings(options: argparse.Namespace) -> dict[str, Any]:
    """
    Fill the options not given with those of the interrupted run. Those that are given are held against them later.

    :return: arguments of the optimizer, and ``n_updates``
    """
    from sb3_refine.checkpoint import read_checkpoint

    refuse_links(Path(options.resume))
    state_folder = Path(options.resume) / "state"
    settings, _ = read_checkpoint(state_folder)
    _check_named_again(options, settings)
    for name in (
        "parameters", "seed", "n_eval_episodes", "alpha", "optimizer", "objective", "min_effect", "max_return_loss",
    ):  # fmt: skip
        if name not in options.given:
            setattr(options, name, settings[name])
    options.no_acceptance = options.no_acceptance or not settings["acceptance"]
    options.no_end_at_success = options.no_end_at_success or not settings["end_at_success"]
    if options.model is None and options.algo is None and options.env is None:
        zips = sorted(state_folder.glob("*.zip"))
        if len(zips) != 1:
            raise RefineError(
                f"--resume: expected one zip with the original agent in {state_folder}, found {len(zips)}"
            )
        options.model = zips[0]
    try:
        return {
            name: settings[name]
            for name in ("n_updates", "n_delta", "n_top", "learning_rate", "delta_std", "selection")
        }
    except KeyError as error:
        raise RefineError(f"--resume: the checkpoint in {state_folder} has no {error.args[0]}") from None


def _check_named_again(options: argparse.Namespace, settings: dict[str, Any]) -> None:
    """A checkpoint may be a stranger's: the code and the regular expression that it names are not run unasked."""
    unsafe = {"objective": _is_code(settings["objective"]), "parameters": not _is_scope(settings["parameters"])}
    for name, is_unsafe in unsafe.items():
        if is_unsafe and name not in options.given:
            raise RefineError(
                f"--resume: the interrupted run has --{name} {shlex.quote(settings[name])}, which is not taken from a "
                f"file unasked; pass it again if it is yours"
            )


def _start_end(name: str, values: list[float]) -> float | tuple[float, float]:
    if len(values) > 2:
        raise RefineError(f"--{name.replace('_', '-')}: expected one number or a start and an end, got {len(values)}")
    return values[0] if len(values) == 1 else (values[0], values[1])


def _make_logger(options: argparse.Namespace, run_folder: Path) -> Any:
    from stable_baselines3.common.logger import HumanOutputFormat, Logger, TensorBoardOutputFormat

    formats: list[Any] = [_csv_format(run_folder / "progress.csv")]
    if options.verbose >= 1:
        formats.append(HumanOutputFormat(sys.stdout))
    if options.tensorboard_log is not None:
        try:
            formats.append(TensorBoardOutputFormat(str(Path(options.tensorboard_log) / run_folder.name)))
        except AssertionError as error:
            raise RefineError("--tensorboard-log: needs tensorboard; pip install 'sb3-refine[report]'") from error
        except OSError as error:
            reason = error.strerror or str(error)
            raise RefineError(f"--tensorboard-log: cannot write to {options.tensorboard_log} ({reason})") from error
    return Logger(str(run_folder), formats)


def _csv_format(path: Path) -> Any:
    """SB3's format starts an empty file: a resumed run keeps the rows that it has."""
    from stable_baselines3.common.logger import CSVOutputFormat

    try:
        before = path.read_text() if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise RefineError(f"--resume: {path} cannot be read ({type(error).__name__}); remove it") from None
    csv_format = CSVOutputFormat(str(path))
    if before:
        csv_format.file.write(before)
        csv_format.keys = before.splitlines()[0].split(",")
    return csv_format


def _announce(refiner: "Refiner", n_updates: int) -> None:
    agent = refiner.agent
    normalised = "normalised observations" if agent.vec_normalize is not None else "raw observations"
    scope = refiner.parameters.scope
    say(f"{agent.algo} on {agent.env_name}: {refiner.parameters.size:,} parameters ({scope}), {normalised}")
    print(
        f"{_plural(n_updates, 'update')} of {refiner.population_size} rollouts: "
        f"{_plural(n_updates * refiner.population_size, 'rollout')}, "
        f"up to {_plural(refiner.n_held_out, 'held-out episode')}, {_plural(refiner.n_workers, 'worker')}",
        flush=True,
    )


def _plural(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _dry_run(refiner: "Refiner", n_updates: int) -> int:
    _announce(refiner, n_updates)
    episodes, seconds = refiner.try_pair()
    n_episodes = n_updates * refiner.population_size + refiner.n_held_out
    returns = " and ".join(f"{episode.episode_return:.1f}" for episode in episodes)
    n_steps = sum(episode.length for episode in episodes)
    print(f"one pair of perturbed policies: returns {returns}, {n_steps} steps, {seconds / 2:.2f} s an episode")
    total = n_episodes * seconds / 2 / refiner.n_workers
    duration = f"{total / 60:.0f} minutes" if total > 120 else f"{total:.0f} seconds"
    print(f"the whole run would take about {duration} at this pace; nothing was written")
    return 0


def _print_result(refiner: "Refiner", saved: str) -> None:
    from rich.console import Console

    from sb3_refine.tables import better_text, difference_text, figures_table

    console, result = Console(highlight=False, soft_wrap=True), refiner.result
    assert result is not None
    if result.baseline is not None and result.refined is not None:
        both = {"original": result.baseline, "after the search": result.refined}
        console.print(figures_table(both, refiner.objective.figures))
        console.print()
    if result.paired_difference is not None:
        d = result.paired_difference
        what = "paired difference" if d.paired else "difference"
        console.print(
            f"{what} of the returns {difference_text(d)} at {d.confidence:.0%}; {better_text(d.p_better, d.paired)}"
        )
    console.print(printable(f"decision: {result.decision} ({result.reason})"), markup=False)
    console.print(
        f"{result.rollouts} episodes, {result.env_steps} steps, {result.wall_time_s:.1f} s; {printable(saved)}",
        markup=False,
    )


if __name__ == "__main__":
    sys.exit(main())
