"""``sb3-refine``: refine an agent."""

import argparse
import json
import logging
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sb3_refine import __version__
from sb3_refine.cli.options import (
    Parser,
    add_agent_options,
    count,
    count_or_auto,
    is_code,
    is_scope,
    load_chosen_agent,
    minutes,
    plural,
    say,
    seconds,
    set_up_logging,
)
from sb3_refine.cli.push import destination_of, push_run
from sb3_refine.errors import EpisodeError, RefineError, printable, printable_lines
from sb3_refine.files import atomic_path, refuse_links

if TYPE_CHECKING:
    from sb3_refine.refiner import Refiner


_SOURCE = "source.json"


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
        type=seconds,
        default=600.0,
        metavar="S",
        help="give an episode up as hanging (default: %(default)s)",
    )
    search.add_argument("--no-accelerator", action="store_true", help="use the stock step of the environment")
    search.add_argument(
        "--time-limit",
        type=minutes,
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
        type=count_or_auto,
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


def refine_agent(options: argparse.Namespace) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leave the best so far, as Ctrl-C does
    if options.verbose is None:
        options.verbose = 0 if options.progress else 1
    set_up_logging(logging.INFO if options.verbose >= 1 else logging.WARNING)
    from sb3_refine.agents.zoo import new_run_folder

    destination = destination_of(options.push_to_hub)
    _check_report(options)
    refiner, n_updates = _make_refiner(options)
    agent = refiner.agent
    if options.phase_portrait:
        from sb3_refine.envs.observations import n_observed
        from sb3_refine.evaluation.robustness import check_entries

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
        push_run(argparse.Namespace(run_folder=run_folder, **destination))
    return 0 if reported else 1


def _search(refiner: "Refiner", n_updates: int, run_folder: Path, options: argparse.Namespace) -> None:
    """Search, judge, and save, also after Ctrl-C."""
    from sb3_refine.agents.agent import save_agent
    from sb3_refine.agents.zoo import remove_if_unused

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
    if is_code(options.objective):
        command += ["--objective", options.objective]
    if not is_scope(options.parameters):
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


def _say_how_to_go_on(run_folder: Path, stop: BaseException, command: str) -> None:
    from sb3_refine.search.checkpoint import FILE_NAME as CHECKPOINT

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
        from sb3_refine.reporting.video import encoder

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
    from sb3_refine.agents.decoding.schema import SchemaError, read_json
    from sb3_refine.reporting.run_folder import SOURCE

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
    from sb3_refine.search.checkpoint import read_checkpoint

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
    unsafe = {"objective": is_code(settings["objective"]), "parameters": not is_scope(settings["parameters"])}
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
        f"{plural(n_updates, 'update')} of {refiner.population_size} rollouts: "
        f"{plural(n_updates * refiner.population_size, 'rollout')}, "
        f"up to {plural(refiner.n_held_out, 'held-out episode')}, {plural(refiner.n_workers, 'worker')}",
        flush=True,
    )


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

    from sb3_refine.reporting.tables import better_text, difference_text, figures_table

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
