"""``sb3-refine --method train``: train an agent on, and judge the checkpoints."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sb3_refine.cli.options import load_chosen_agent, say
from sb3_refine.cli.push import destination_of, push_run
from sb3_refine.cli.refine import (
    check_entries_of,
    check_report_options,
    make_logger,
    print_result,
    signals_held_back,
    write_report,
)
from sb3_refine.cli.refine_options import OF_TRAINING
from sb3_refine.cli.resume import check_named_again, original_in, original_source, resume_command, say_how_to_go_on
from sb3_refine.errors import EpisodeError, RefineError

if TYPE_CHECKING:
    from sb3_refine.training.trainer import Trainer

_CHECKPOINTS = "checkpoints"
_OF_VERDICT = ("seed", "objective", "n_eval_episodes", "alpha", "min_effect", "max_return_loss")


def train_agent(options: argparse.Namespace) -> int:
    """
    Run ``sb3-refine --method train``.

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
    trainer = _make_trainer(options)
    agent = trainer.agent
    check_entries_of(agent, options)
    if options.n_timesteps is None:
        options.n_timesteps = trainer.default_n_timesteps
    run_folder = Path(options.resume or new_run_folder(options.output, agent.algo, agent.env_name))
    try:
        _train(trainer, run_folder, options)
    except (RefineError, EpisodeError, OSError, KeyboardInterrupt) as stop:
        if not (options.resume and isinstance(stop, RefineError)):
            say_how_to_go_on(run_folder, stop, resume_command(run_folder, options))
        raise
    assert trainer.judgement is not None
    reported = options.no_report or write_report(trainer.judgement, run_folder, options)
    if destination is not None:
        push_run(argparse.Namespace(run_folder=run_folder, **destination))
    return 0 if reported else 1


def _make_trainer(options: argparse.Namespace) -> "Trainer":
    from sb3_refine.training.trainer import Trainer

    return Trainer(
        load_chosen_agent(options),
        seed=options.seed,
        replay_buffer=options.replay_buffer,
        n_checkpoints=options.n_checkpoints,
        n_average=options.n_average,
        trust_remote_code=options.trust_remote_code,
        progress_remaining=options.progress_remaining,
        n_warm_up=options.n_warm_up,
        normalisation=options.normalisation,
        vec_env=options.vec_env,
        objective=options.objective,
        n_eval_episodes=options.n_eval_episodes,
        alpha=options.alpha,
        min_effect=options.min_effect,
        max_return_loss=options.max_return_loss,
        n_workers=options.n_workers,
        backend=options.backend,
        accelerator=not options.no_accelerator,
        episode_timeout=options.episode_timeout,
    )


def _train(trainer: "Trainer", run_folder: Path, options: argparse.Namespace) -> None:
    """Train, judge, and save, also after Ctrl-C."""
    from sb3_refine.agents.agent import save_agent
    from sb3_refine.agents.zoo import remove_if_unused

    agent, state_folder = trainer.agent, run_folder / "state"
    try:
        if not options.resume:
            save_agent(agent, state_folder)  # the original, to resume from
        agent.source = original_source(agent.source, state_folder)
        trainer.set_logger(make_logger(options, run_folder))
        say(f"{agent.algo} on {agent.env_name}: training on for {options.n_timesteps:,} steps")
        trainer.learn(
            options.n_timesteps,
            progress_bar=options.progress,
            time_limit=None if options.time_limit is None else 60 * options.time_limit,
            checkpoint_folder=run_folder / _CHECKPOINTS,
            resume=options.resume is not None,
        )
    finally:
        with signals_held_back():
            try:
                if trainer.judgement is not None:
                    trainer.judgement.save(run_folder=run_folder)
                    result, saved = trainer.judgement.result, run_folder / f"{agent.env_name}.zip"
                    print_result(result, trainer.judge.objective, "trained on", f"saved to {saved}")
            finally:
                remove_if_unused(run_folder)


def _resume(options: argparse.Namespace) -> None:
    """Fill the options not given with those of the interrupted run. Those that are given are compared with it later."""
    from sb3_refine.training.checkpoints import read_settings

    folder = Path(options.resume)
    stored: dict[str, Any] = read_settings(folder / _CHECKPOINTS)
    check_named_again(options, stored)
    options.no_end_at_success = options.no_end_at_success or not stored.get("end_at_success", True)
    for name in (*OF_TRAINING, *_OF_VERDICT):
        if name not in options.given and name in stored:
            setattr(options, name, stored[name])
    if options.model is None and options.algo is None and options.env is None:
        options.model = original_in(folder / "state")
