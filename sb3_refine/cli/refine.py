"""``sb3-refine``: refine an agent."""

import argparse
import logging
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Any

from sb3_refine.cli.options import (
    load_chosen_agent,
    say,
    set_up_logging,
)
from sb3_refine.cli.push import destination_of, push_run
from sb3_refine.cli.refine_options import NOT_OF
from sb3_refine.cli.resume import csv_format, original_source, resume_command, resumed_settings, say_how_to_go_on
from sb3_refine.errors import EpisodeError, RefineError, printable_lines

if TYPE_CHECKING:
    from stable_baselines3.common.callbacks import BaseCallback

    from sb3_refine.agents.agent import Agent
    from sb3_refine.judging import Judgement
    from sb3_refine.objectives import Objective
    from sb3_refine.refiner import Refiner
    from sb3_refine.search.result import Result


_LONGEST_COMMAND = 5000  # characters


def refine_agent(options: argparse.Namespace) -> int:
    """
    Run ``sb3-refine``.

    :param options: of :func:`~sb3_refine.cli.refine_options.make_parser`
    :return: exit status: 0 for a verdict, whatever it is
    :raises RefineError: when an option is wrong
    :raises EpisodeError: when an episode fails
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leave the best so far, as Ctrl-C does
    _choose_method(options)
    shows_lines = options.verbose >= 1 and not options.progress
    set_up_logging(logging.INFO if shows_lines else logging.WARNING)
    if options.method != "search":
        from sb3_refine.cli.train import train_agent

        return train_agent(options)
    return search_from_agent(options)


def _choose_method(options: argparse.Namespace) -> None:
    """A resumed run goes on with its own method; options of another method are an error."""
    if options.resume:
        folders = {"train": "checkpoints", "auto": "auto"}
        found = [name for name, folder in folders.items() if (Path(options.resume) / folder).is_dir()]
        method = found[0] if found else "search"
        if not found and _is_of_plan(Path(options.resume)):
            raise RefineError(
                "--resume: a run of --method plan cannot be resumed; start again, with --model to name the saved agent"
            )
        if "method" in options.given and options.method != method:
            raise RefineError(f"--resume: the interrupted run has --method {method}: leave --method out")
        options.method = method
    for name in sorted(options.given.intersection(NOT_OF[options.method])):
        raise RefineError(f"{name}: not an option of --method {options.method}; leave it out")


def _is_of_plan(run_folder: Path) -> bool:
    from sb3_refine.reporting.record import read_record

    with suppress(RefineError):
        return read_record(run_folder).method == "plan"
    return False


def search_from_agent(options: argparse.Namespace) -> int:
    """See :func:`refine_agent`."""
    from sb3_refine.agents.zoo import new_run_folder

    destination = destination_of(options.push_to_hub)
    check_report_options(options)
    refiner, n_updates = _make_refiner(options)
    agent = refiner.agent
    check_entries_of(agent, options)
    if options.dry_run:
        return _dry_run(refiner, n_updates, options.time_limit is not None)
    run_folder = Path(options.resume or new_run_folder(options.output, agent.algo, agent.env_name))
    with refiner:  # one pool of workers for the search, the test and the report
        try:
            _search(refiner, n_updates, run_folder, options)
        except (RefineError, EpisodeError, OSError, KeyboardInterrupt) as stop:
            if not (options.resume and isinstance(stop, RefineError)):  # mostly other settings, which the message names
                say_how_to_go_on(run_folder, stop, resume_command(run_folder, options))
            raise
        reported = options.no_report or write_report(refiner, run_folder, options)
    if options.verbose:
        print_next_steps(run_folder)
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
        refiner.agent.source = original_source(refiner.agent.source, state_folder)
        refiner.set_logger(make_logger(options, run_folder))
        if options.verbose:
            _announce(refiner, n_updates, options.time_limit is not None)
        refiner.learn(
            n_updates,
            callback=duration_callback(refiner) if options.verbose and not options.progress else None,
            log_interval=options.log_interval,
            progress_bar=options.progress,
            time_limit=options.time_limit,
            checkpoint_folder=state_folder,
            checkpoint_interval=options.checkpoint_interval,
            resume=options.resume is not None,
        )
    finally:
        with signals_held_back():
            try:
                if refiner.result is not None:
                    _save(refiner, run_folder, options)
            finally:
                remove_if_unused(run_folder)


def _save(refiner: "Refiner", run_folder: Path, options: argparse.Namespace) -> None:
    """Save the result; print it even where it cannot be saved."""
    from sb3_refine.agents.agent import teacher_of
    from sb3_refine.reporting.wording import notes_of

    assert refiner.result is not None
    shown = (refiner.result, refiner.objective)
    try:
        refiner.save(run_folder=run_folder)
        note_command(run_folder, options)
    except RefineError:
        with suppress(OSError):  # on the same full disk
            print_result(*shown, "not saved, or only in part", not options.verbose)
        raise
    saved = f"saved to {run_folder / f'{refiner.agent.env_name}.zip'}"
    notes = notes_of({**refiner.settings, **teacher_of(refiner.agent)})
    print_result(*shown, "\n".join([*notes, saved]), not options.verbose)


@contextmanager
def signals_held_back() -> Iterator[None]:
    """:return: context in which Ctrl-C and SIGTERM wait, so that neither leaves half of a result"""
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


def check_report_options(options: argparse.Namespace) -> None:
    """
    Find out before the episodes whether the report can be made.

    :param options: of any subcommand that writes a report
    :raises RefineError: when it cannot
    """
    for option, given in (("--video", options.video), ("--phase-portrait", options.phase_portrait)):
        if given and (options.no_report or vars(options).get("no_acceptance")):
            raise RefineError(f"{option}: needs the test and the report: leave --no-acceptance and --no-report out")
    if options.video:
        from sb3_refine.reporting.video import encoder

        encoder()


def check_entries_of(agent: "Agent", options: argparse.Namespace) -> None:
    """
    :param agent: whose observations ``--phase-portrait`` names
    :param options: of any subcommand that writes a report
    :raises RefineError: when there are no such observations
    """
    if options.phase_portrait:
        from sb3_refine.envs.observations import n_observed
        from sb3_refine.evaluation.robustness import check_entries

        check_entries(options.phase_portrait, n_observed(agent.model.observation_space))


def write_report(run: "Refiner | Judgement", run_folder: Path, options: argparse.Namespace) -> bool:
    """
    Write the report. The result is saved: an environment that fails under noise or cannot be filmed is no error.

    :param run: that has ended
    :param run_folder: where the run was saved
    :param options: of any subcommand that writes a report
    :return: whether the report is complete
    """
    try:
        say(f"report: {run.report(run_folder, options.video, options.phase_portrait)}")
    except (RefineError, EpisodeError, OSError) as error:
        message = printable_lines(f"sb3-refine: error: the agent is saved, but its report is not complete: {error}")
        print(message, file=sys.stderr)
        return False
    return True


def _make_refiner(options: argparse.Namespace) -> tuple["Refiner", int]:
    from sb3_refine.optimizers import default_n_updates
    from sb3_refine.refiner import Refiner

    optimizer, settings = optimizer_settings(options)
    n_updates = settings.pop("n_updates", None) or default_n_updates(optimizer)
    refiner = Refiner(
        load_chosen_agent(options),
        optimizer=optimizer,
        parameters=options.parameters,
        n_workers=options.n_workers,
        backend=options.backend,
        seed=options.seed,
        objective=options.objective,
        episodes_per_candidate=options.episodes_per_candidate,
        n_eval_episodes=options.n_eval_episodes,
        alpha=options.alpha,
        min_effect=options.min_effect,
        max_return_loss=options.max_return_loss,
        acceptance=not options.no_acceptance,
        selection=settings.pop("selection", True) and not options.no_selection,
        accelerator=not options.no_accelerator,
        episode_timeout=options.episode_timeout,
        quantize=options.quantize,
        **settings,
    )
    if options.budget is not None:
        n_updates = refiner.n_updates_within(options.budget)
    return refiner, n_updates


def optimizer_settings(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """
    :param options: of :func:`~sb3_refine.cli.refine_options.make_parser`
    :return: the optimizer's name and its options: those given, over those of the preset or of the interrupted run
    """
    from sb3_refine.optimizers import OPTIMIZERS, given_options
    from sb3_refine.parts import check_choice

    stored: Mapping[str, Any] = {}
    if options.resume and options.method == "search":
        stored = resumed_settings(options)
    shorthand = {}
    for option in ("n_delta", "n_top", "learning_rate", "delta_std"):
        value = getattr(options, option)
        if value is not None:
            shorthand[option] = _start_end(option, value) if isinstance(value, list) else value
    if "optimizer" not in options.given and options.preset != "default":  # then the preset says which
        optimizers = {preset: name for name, cls in OPTIMIZERS.items() for preset in cls.presets}
        check_choice("--preset", options.preset, optimizers)
        options.optimizer = optimizers[options.preset]
    name, given = given_options(options.optimizer, shorthand)
    if options.n_updates is not None:
        given["n_updates"] = options.n_updates
    if not stored:
        check_choice(f"--preset: {name}", options.preset, OPTIMIZERS[name].presets)
        stored = OPTIMIZERS[name].presets[options.preset]
    return name, {**stored, **given}


def _start_end(name: str, values: list[float]) -> float | tuple[float, float]:
    if len(values) > 2:
        raise RefineError(f"--{name.replace('_', '-')}: expected one number or a start and an end, got {len(values)}")
    return values[0] if len(values) == 1 else (values[0], values[1])


def make_logger(options: argparse.Namespace, run_folder: Path) -> Any:
    """
    :param options: of :func:`~sb3_refine.cli.refine_options.make_parser`
    :param run_folder: gets ``progress.csv``
    :return: a logger of Stable-Baselines3
    :raises RefineError: when there is no TensorBoard, or its folder cannot be written
    """
    from stable_baselines3.common.logger import HumanOutputFormat, Logger, TensorBoardOutputFormat

    from sb3_refine.search.line_format import LineFormat

    formats: list[Any] = [csv_format(run_folder / "progress.csv")]
    if options.verbose >= 2:
        formats.append(HumanOutputFormat(sys.stdout))
    elif options.verbose and not options.progress:
        formats.append(LineFormat(sys.stdout))
    if options.tensorboard_log is not None:
        try:
            formats.append(TensorBoardOutputFormat(str(Path(options.tensorboard_log) / run_folder.name)))
        except AssertionError as error:
            raise RefineError("--tensorboard-log: needs tensorboard; pip install 'sb3-refine[report]'") from error
        except OSError as error:
            reason = error.strerror or str(error)
            raise RefineError(f"--tensorboard-log: cannot write to {options.tensorboard_log} ({reason})") from error
    return Logger(str(run_folder), formats)


def _announce(refiner: "Refiner", n_updates: int, is_time_limited: bool) -> None:
    from sb3_refine.formatting import plural
    from sb3_refine.search.result import FEW_EPISODES

    agent = refiner.agent
    normalised = "normalised observations" if agent.vec_normalize is not None else "raw observations"
    scope = refiner.parameters.scope
    workers = "all processors of the cluster" if refiner.n_workers is None else plural(refiner.n_workers, "worker")
    say(f"{agent.algo} on {agent.env_name}: {refiner.parameters.size:,} parameters ({scope}), {normalised}")
    n_rollouts = plural(n_updates * refiner.episodes_per_update, "rollout")
    print(
        f"{plural(n_updates, 'update')} of {refiner.episodes_per_update} rollouts: {n_rollouts}, "
        f"{_held_out(refiner, is_time_limited)}, {workers}",
        flush=True,
    )
    n_test = refiner.judging.n_eval_episodes
    if refiner.acceptance and isinstance(n_test, int) and n_test < FEW_EPISODES:
        print(f"{n_test} test episodes show large differences only: see --n-eval-episodes", flush=True)


def _held_out(refiner: "Refiner", is_time_limited: bool) -> str:
    from sb3_refine.formatting import plural

    least, most = refiner.judging.test_range
    n_more = 2 * (most - least) if refiner.acceptance and not is_time_limited else 0
    more = f", and up to {n_more} more where the gain is small" if n_more else ""
    return f"up to {plural(refiner.n_held_out, 'held-out episode')}{more}"


def duration_callback(refiner: "Refiner") -> "BaseCallback":
    """
    :param refiner: before its search
    :return: callback that says how long the search and its test will take, from the pace of the original's episodes
    """
    from stable_baselines3.common.callbacks import BaseCallback

    from sb3_refine.formatting import duration

    class Announces(BaseCallback):
        def _on_training_start(self) -> None:
            search, clock = self.locals["search"], self.locals["clock"]
            n_search = (search.optimizer.n_updates - search.n_updates_done) * refiner.episodes_per_update
            seconds = clock.time_for(n_search + refiner.n_held_out, search.n_episodes)
            print(f"this will take about {duration(seconds)}, at the pace of the first episodes", flush=True)

        def _on_step(self) -> bool:
            return True

    return Announces()


def _dry_run(refiner: "Refiner", n_updates: int, is_time_limited: bool) -> int:
    from sb3_refine.formatting import duration

    _announce(refiner, n_updates, is_time_limited)
    episodes, seconds = refiner.try_episodes()
    n_episodes = n_updates * refiner.episodes_per_update + refiner.n_held_out
    returns = " and ".join(f"{episode.episode_return:.1f}" for episode in episodes)
    n_steps = sum(episode.length for episode in episodes)
    seconds /= len(episodes)
    print(f"two episodes of the agent: returns {returns}, {n_steps} steps, {seconds:.2g} s an episode")
    total = duration(n_episodes * seconds / (refiner.n_workers or 1))
    alone = " with one worker" if refiner.n_workers is None else ""
    print(f"the whole run would take about {total} at this pace{alone}; nothing was written")
    return 0


def print_result(
    result: "Result", objective: "Objective", saved: str, brief: bool = False, candidate: str | None = None
) -> None:
    """
    :param result: of a run
    :param objective: what was maximised
    :param saved: where the agent was saved
    :param brief: whether to leave the figures out
    :param candidate: what the table calls the candidate; None for its name in the result
    """
    from rich.console import Console

    from sb3_refine.search.summary import summary, verdict

    console = Console(highlight=False, markup=False, soft_wrap=not sys.stdout.isatty())  # a file's lines are not cut
    if not brief:
        console.print()
    console.print(verdict(result) if brief else summary(result, candidate, objective.figures))
    say(saved)


def note_command(run_folder: Path, options: argparse.Namespace) -> None:
    """
    Add what the user typed to ``refinement.json``.

    :param run_folder: where the run was saved
    :param options: of any subcommand
    """
    from sb3_refine.reporting.record import read_record, write_record

    write_record(run_folder, replace(read_record(run_folder), command=_shortened(options.command)))


def _shortened(command: str) -> str:
    """A record with longer texts cannot be read."""
    return command if len(command) <= _LONGEST_COMMAND else f"{command[:_LONGEST_COMMAND]} ..."


def print_next_steps(run_folder: Path) -> None:
    """
    Print what one may want to do with the saved agent.

    :param run_folder: where it was saved
    """
    from importlib.util import find_spec

    from sb3_refine.reporting.commands import evaluate_command, watch_command
    from sb3_refine.reporting.record import read_record

    record = read_record(run_folder)
    watch = watch_command(run_folder, record) if find_spec("rl_zoo3") else ""
    commands = "\n\n".join(filter(None, [watch, evaluate_command(run_folder, record)]))
    say(f"\nnext:\n\n{indent(commands, '  ')}")
