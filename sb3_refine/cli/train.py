"""``sb3-refine --method train``, ``auto`` and ``plan``: train an agent on, alone, with a search, or on plans."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sb3_refine.cli.options import load_chosen_agent, say
from sb3_refine.cli.push import destination_of, push_run
from sb3_refine.cli.refine import (
    check_entries_of,
    check_report_options,
    make_logger,
    note_command,
    optimizer_settings,
    print_next_steps,
    print_result,
    signals_held_back,
    write_report,
)
from sb3_refine.cli.resume import (
    check_named_again,
    original_in,
    original_source,
    resume_command,
    say_how_to_go_on,
    take_tasks,
)
from sb3_refine.errors import EpisodeError, RefineError

if TYPE_CHECKING:
    from sb3_refine.auto.auto_refiner import AutoRefiner
    from sb3_refine.planning.planner import Planner
    from sb3_refine.training.trainer import Trainer

FOLDERS = {"train": "checkpoints", "auto": "auto"}
"""Where the state of a run is, in its folder."""

_OF_SEARCH = ("parameters", "episodes_per_candidate")
_RESUMED = (
    "seed", "objective", "n_eval_episodes", "alpha", "min_effect", "max_return_loss", "n_timesteps",
    "progress_remaining", "n_warm_up", "normalisation", "vec_env", "n_checkpoints", "n_average", "optimizer",
    *_OF_SEARCH,
)  # fmt: skip


def train_agent(options: argparse.Namespace) -> int:
    """
    Run ``sb3-refine --method train``, ``--method auto`` or ``--method plan``.

    :param options: of :func:`~sb3_refine.cli.refine_options.make_parser`
    :return: exit status: 0 for a verdict, whatever it is
    :raises RefineError: when an option is wrong
    :raises EpisodeError: when an episode fails
    """
    from sb3_refine.agents.zoo import new_run_folder

    destination = destination_of(options.push_to_hub)
    check_report_options(options)
    if options.resume:
        _resume(options)
    trainer = _MAKERS[options.method](options)
    agent = trainer.agent
    check_entries_of(agent, options)
    length = _length(trainer, options)
    run_folder = Path(options.resume or new_run_folder(options.output, agent.algo, agent.env_name))
    try:
        _train(trainer, length, run_folder, options)
    except (RefineError, EpisodeError, OSError, KeyboardInterrupt) as stop:
        if not (options.resume and isinstance(stop, RefineError)):
            say_how_to_go_on(run_folder, stop, resume_command(run_folder, options))
        raise
    assert trainer.judgement is not None
    reported = options.no_report or write_report(trainer.judgement, run_folder, options)
    if options.verbose:
        print_next_steps(run_folder)
    if destination is not None:
        push_run(argparse.Namespace(run_folder=run_folder, **destination))
    return 0 if reported else 1


def _make_trainer(options: argparse.Namespace) -> "Trainer":
    from sb3_refine.training.trainer import Trainer

    return Trainer(
        load_chosen_agent(options),
        n_checkpoints=options.n_checkpoints,
        n_average=options.n_average,
        **_of_training(options),
        **_of_both(options),
    )


def _make_auto_refiner(options: argparse.Namespace) -> "AutoRefiner":
    from sb3_refine.auto.auto_refiner import AutoRefiner
    from sb3_refine.training.continuation import TrainSettings

    optimizer, settings = optimizer_settings(options)
    for name in ("n_updates", "selection"):
        settings.pop(name, None)
    of_search = {name: getattr(options, name) for name in _OF_SEARCH}
    of_training = _of_training(options)
    return AutoRefiner(
        load_chosen_agent(options),
        replay_buffer=of_training.pop("replay_buffer"),
        trust_remote_code=of_training.pop("trust_remote_code"),
        settings=TrainSettings(**of_training),
        search={"optimizer": optimizer, **settings, **of_search},
        **_of_both(options),
    )


def _make_planner(options: argparse.Namespace) -> "Planner":
    from sb3_refine.planning.planner import Planner

    names = ("n_simulations", "n_rounds", "n_episodes", "n_gradient_steps", "temperature", "parameters")
    settings = {name: getattr(options, name) for name in names}
    if options.learning_rate is not None:
        if len(options.learning_rate) != 1:
            raise RefineError("--learning-rate: with --method plan, name one number: the rate falls to 0 in each round")
        settings["learning_rate"] = options.learning_rate[0]
    return Planner(load_chosen_agent(options), **settings, **_of_both(options))


_MAKERS: dict[str, Callable[[argparse.Namespace], "Trainer | AutoRefiner | Planner"]] = {
    "train": _make_trainer,
    "auto": _make_auto_refiner,
    "plan": _make_planner,
}


def _of_training(options: argparse.Namespace) -> dict[str, Any]:
    names = ("replay_buffer", "trust_remote_code", "progress_remaining", "n_warm_up", "normalisation", "vec_env")
    return {name: getattr(options, name) for name in names}


def _of_both(options: argparse.Namespace) -> dict[str, Any]:
    names = (
        "seed", "objective", "n_eval_episodes", "alpha", "min_effect", "max_return_loss", "n_workers", "backend",
        "episode_timeout",
    )  # fmt: skip
    return {name: getattr(options, name) for name in names} | {"accelerator": not options.no_accelerator}


def _length(trainer: "Trainer | AutoRefiner | Planner", options: argparse.Namespace) -> dict[str, Any]:
    """How long the run is, as an argument of ``learn``; said to the user, too."""
    from sb3_refine.formatting import duration, plural
    from sb3_refine.planning.planner import Planner
    from sb3_refine.training.trainer import Trainer

    what = f"{trainer.agent.algo} on {trainer.agent.env_name}"
    if isinstance(trainer, Trainer):
        n_timesteps = trainer.default_n_timesteps if options.n_timesteps is None else options.n_timesteps
        say(f"{what}: training on for {n_timesteps:,} steps")
        return {"n_timesteps": n_timesteps}
    if isinstance(trainer, Planner):
        rounds = f"{plural(trainer.n_rounds, 'round')} of {plural(trainer.n_episodes, 'episode')}"
        say(f"{what}: {rounds}, with {plural(options.n_simulations, 'simulation')} in each step")
        return {"n_timesteps": options.n_timesteps}
    rollouts = "as long as the default search takes" if options.budget is None else f"{options.budget:,} rollouts"
    limit = rollouts if options.time_limit is None else duration(options.time_limit)
    say(f"{what}: search and training on, {limit} together")
    return {"budget": options.budget}


def _train(
    trainer: "Trainer | AutoRefiner | Planner", length: dict[str, Any], run_folder: Path, options: argparse.Namespace
) -> None:
    """Train, judge, and save, also after Ctrl-C."""
    from sb3_refine.agents.agent import save_agent
    from sb3_refine.agents.zoo import remove_if_unused

    agent, state_folder = trainer.agent, run_folder / "state"
    try:
        if not options.resume:
            save_agent(agent, state_folder)  # the original, to resume from
        agent.source = original_source(agent.source, state_folder)
        trainer.set_logger(make_logger(options, run_folder))
        kept: dict[str, Any] = {}
        if options.method in FOLDERS:
            kept = {"checkpoint_folder": run_folder / FOLDERS[options.method], "resume": options.resume is not None}
        trainer.learn(**length, progress_bar=options.progress, time_limit=options.time_limit, **kept)
    finally:
        with signals_held_back():
            try:
                if trainer.judgement is not None:
                    _save(trainer, run_folder, options)
            finally:
                remove_if_unused(run_folder)


def _save(trainer: "Trainer | AutoRefiner | Planner", run_folder: Path, options: argparse.Namespace) -> None:
    from sb3_refine.reporting.wording import WORDING

    assert trainer.judgement is not None
    trainer.judgement.save(run_folder=run_folder)
    note_command(run_folder, options)
    saved = f"saved to {run_folder / f'{trainer.agent.env_name}.zip'}"
    column = WORDING[options.method].column
    print_result(trainer.judgement.result, trainer.judge.objective, saved, not options.verbose, column)


def _resume(options: argparse.Namespace) -> None:
    """Fill the options not given with those of the interrupted run. Those that are given are compared with it later."""
    from sb3_refine.auto.auto_refiner import read_settings as read_auto
    from sb3_refine.training.checkpoints import read_settings as read_training

    folder = Path(options.resume) / FOLDERS[options.method]
    stored = read_training(folder) if options.method == "train" else read_auto(folder)
    check_named_again(options, stored)
    options.no_end_at_success = options.no_end_at_success or not stored.get("end_at_success", True)
    take_tasks(options, stored)
    for name in _RESUMED:
        if name not in options.given and name in stored:
            setattr(options, name, stored[name])
    for name in ("n_delta", "n_top", "learning_rate", "delta_std"):
        if name not in options.given and name in stored:
            is_schedule = name in ("learning_rate", "delta_std") and not isinstance(stored[name], list)
            setattr(options, name, [stored[name]] if is_schedule else stored[name])
    if "budget" not in options.given:
        options.budget = stored.get("n_rollouts")
    if options.model is None and options.algo is None and options.env is None:
        options.model = original_in(Path(options.resume) / "state")
