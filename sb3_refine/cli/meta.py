"""``sb3-refine meta`` and ``sb3-refine adapt``: learn to adapt to the tasks of a family, and adapt to one."""

import argparse
import logging
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sb3_refine.cli.options import (
    Parser,
    StoreDict,
    add_agent_options,
    count,
    load_chosen_agent,
    say,
    seconds_or_zero,
    set_up_logging,
    whole,
)
from sb3_refine.cli.refine import make_logger, note_command, print_result, signals_held_back
from sb3_refine.cli.refine_options import add_rollout_options, count_or_auto
from sb3_refine.cli.resume import original_in, original_source, resume_command, say_how_to_go_on, take_tasks
from sb3_refine.errors import EpisodeError, RefineError
from sb3_refine.files import refuse_links

if TYPE_CHECKING:
    from sb3_refine.meta.meta_refiner import MetaRefiner

_OF_REFINER = (
    "n_draws", "tasks_per_update", "learning_rate", "std_learning_rate", "start_std", "seed", "n_eval_episodes",
    "alpha", "n_workers", "backend", "episode_timeout",
)  # fmt: skip
_OF_ADAPTATION = ("adapt_episodes", "adapt_steps", "batch_size", "adapt_learning_rate")
_NOT_STORED = ("n_workers", "backend", "episode_timeout")


def make_meta_parser() -> Parser:
    """:return: the parser of ``sb3-refine meta``"""
    parser = Parser(
        prog="sb3-refine meta",
        description="Meta-learning by evolution strategies (meta-es): search a distribution of actors and critics from "
        "which a few episodes in a new task suffice to adapt. The agent is of ddpg or td3.",
        epilog="example: sb3-refine meta --algo td3 --env HalfCheetah-v3 --tasks goals.yml; then: sb3-refine adapt "
        "--algo td3 --env HalfCheetah-v4 -f meta-agents --task velocity:1.5",
        allow_abbrev=False,
    )
    add_agent_options(parser)
    search = parser.add_argument_group("the search")
    search.add_argument("--n-updates", type=count, default=100, metavar="N", help="updates (default: %(default)s)")
    search.add_argument("--n-draws", type=count, default=16, metavar="M", help="draws an update (default: %(default)s)")
    search.add_argument(
        "--tasks-per-update",
        type=count,
        default=2,
        metavar="N",
        help="tasks that each draw adapts to (default: %(default)s)",
    )
    search.add_argument("--learning-rate", type=float, default=0.1, metavar="X", help="of means (default: %(default)s)")
    search.add_argument(
        "--std-learning-rate",
        type=float,
        default=0.02,
        metavar="X",
        help="of standard deviations; 0: fixed (default: %(default)s)",
    )
    search.add_argument(
        "--start-std",
        type=float,
        default=0.2,
        metavar="X",
        help="standard deviation of the actors at the start, by its effect on the actions (default: %(default)s)",
    )
    search.add_argument(
        "--from-scratch", action="store_true", help="forget the agent's parameters: start with random ones"
    )
    _add_adaptation_options(parser.add_argument_group("the adaptation"))
    run = parser.add_argument_group("the run")
    add_rollout_options(run)
    run.add_argument("--time-limit", type=seconds_or_zero, metavar="S", help="seconds after which the search ends")
    run.add_argument(
        "--checkpoint-interval",
        type=count,
        default=5,
        metavar="N",
        help="updates between checkpoints (default: %(default)s)",
    )
    run.add_argument("--resume", metavar="DIR", help="go on with an interrupted run, OUTPUT/ALGO/ENV_K")
    verdict = parser.add_argument_group("the verdict")
    verdict.add_argument(
        "--n-eval-episodes", type=count_or_auto, default=100, metavar="N", help="test tasks (default: %(default)s)"
    )
    verdict.add_argument("--alpha", type=float, default=0.05, help="level of significance (default: %(default)s)")
    _add_output_options(parser, "meta-agents")
    _add_log_options(parser)
    return parser


def make_adapt_parser() -> Parser:
    """:return: the parser of ``sb3-refine adapt``"""
    parser = Parser(
        prog="sb3-refine adapt",
        description="Adapt an agent of ddpg or td3 to one task in a few episodes. The result is tested against the "
        "agent as it is; training on with plain Stable-Baselines3 for as many steps is a candidate, too.",
        epilog="example: sb3-refine adapt --algo td3 --env HalfCheetah-v4 -f meta-agents --task velocity:1.5",
        allow_abbrev=False,
    )
    add_agent_options(parser)
    task = parser.add_argument_group("the task")
    task.add_argument(
        "--task",
        nargs="+",
        action=StoreDict,
        metavar="KEY:VALUE",
        help="parameters of the task, of the family in --tasks, or in the tasks.yml beside the agent (default: the "
        "agent's own environment)",
    )
    _add_adaptation_options(parser.add_argument_group("the adaptation (default: as in the meta-learning)"))
    run = parser.add_argument_group("the run")
    add_rollout_options(run)
    verdict = parser.add_argument_group("the verdict")
    verdict.add_argument(
        "--n-eval-episodes", type=count_or_auto, default=100, metavar="N", help="test episodes (default: %(default)s)"
    )
    verdict.add_argument("--alpha", type=float, default=0.05, help="level of significance (default: %(default)s)")
    _add_output_options(parser, "adapted-agents")
    return parser


def _add_adaptation_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--adapt-episodes", type=count, default=20, metavar="K", help="episodes that explore (default: %(default)s)"
    )
    group.add_argument(
        "--adapt-steps", type=whole, default=40, metavar="N", help="gradient steps that follow (default: %(default)s)"
    )
    group.add_argument(
        "--batch-size", type=count, default=100, metavar="N", help="of each gradient step (default: %(default)s)"
    )
    group.add_argument(
        "--adapt-learning-rate", type=float, metavar="X", help="of the gradient steps (default: that of the agent)"
    )


def _add_output_options(parser: Parser, folder: str) -> None:
    output = parser.add_argument_group("the output")
    output.add_argument("-o", "--output", default=folder, help="output folder (default: %(default)s)")
    output.add_argument("--no-report", action="store_true", help="write no report.md and no plots")
    output.add_argument("-P", "--progress", action="store_true", help="show a progress bar")
    output.add_argument(
        "--verbose",
        type=int,
        choices=(0, 1, 2),
        default=1,
        help="0: the verdict only, 1: a line an update, 2: the tables of Stable-Baselines3 (default: %(default)s)",
    )


def _add_log_options(parser: Parser) -> None:
    output = parser.add_argument_group("the log")
    output.add_argument("--tensorboard-log", metavar="DIR", help="log for TensorBoard")
    output.add_argument(
        "--log-interval", type=count, default=1, help="updates between two lines (default: %(default)s)"
    )


def meta_agent(options: argparse.Namespace) -> int:
    """
    Run ``sb3-refine meta``.

    :param options: of :func:`make_meta_parser`
    :return: exit status: 0 for a verdict, whatever it is
    :raises RefineError: when an option is wrong
    :raises EpisodeError: when an episode fails
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    set_up_logging(logging.INFO if options.verbose and not options.progress else logging.WARNING)
    from sb3_refine.agents.zoo import new_run_folder, remove_if_unused

    if options.resume:
        _take_stored(options)
    refiner = _make_refiner(options)
    agent = refiner.agent
    run_folder = Path(options.resume or new_run_folder(options.output, agent.algo, agent.env_name))
    state = run_folder / "state"
    try:
        if not options.resume:
            refiner.save_original(run_folder)
        agent.source = original_source(agent.source, state)
        refiner.set_logger(make_logger(options, run_folder))
        _announce(refiner, options)
        refiner.learn(
            options.n_updates,
            log_interval=options.log_interval,
            progress_bar=options.progress,
            time_limit=options.time_limit,
            checkpoint_folder=state,
            checkpoint_interval=options.checkpoint_interval,
            resume=options.resume is not None,
        )
    except (RefineError, EpisodeError, OSError, KeyboardInterrupt) as stop:
        if not (options.resume and isinstance(stop, RefineError)):
            say_how_to_go_on(run_folder, stop, resume_command(run_folder, options, ["meta"]))
        raise
    finally:
        with signals_held_back():
            if refiner.result is not None:
                _save(refiner, run_folder, options)
            remove_if_unused(run_folder)
    if not options.no_report:
        say(f"report: {refiner.report(run_folder)}")
    return 0


def _make_refiner(options: argparse.Namespace) -> "MetaRefiner":
    from sb3_refine.meta.adaptation import AdaptationSettings
    from sb3_refine.meta.exploration import forget_parameters
    from sb3_refine.meta.meta_refiner import MetaRefiner

    agent = load_chosen_agent(options)
    if options.from_scratch and not options.resume:
        forget_parameters(agent, options.seed)
    return MetaRefiner(
        agent,
        adaptation=AdaptationSettings(**{name: getattr(options, name) for name in _OF_ADAPTATION}),
        accelerator=not options.no_accelerator,
        **{name: getattr(options, name) for name in _OF_REFINER},
    )


def _take_stored(options: argparse.Namespace) -> None:
    """Fill the options not given with those of the interrupted run."""
    from sb3_refine.search.checkpoint import read_checkpoint

    state = Path(options.resume) / "state"
    refuse_links(Path(options.resume))
    settings, _ = read_checkpoint(state)
    options.no_end_at_success = options.no_end_at_success or not settings["end_at_success"]
    names = [name for name in (*_OF_REFINER, *_OF_ADAPTATION, "n_updates") if name not in _NOT_STORED]
    for name in names:
        if name not in options.given:
            if name not in settings:
                raise RefineError(f"--resume: {options.resume} is no interrupted run of sb3-refine meta: no {name}")
            setattr(options, name, settings[name])
    take_tasks(options, settings)
    if options.model is None and options.algo is None and options.env is None:
        options.model = original_in(state)


def _announce(refiner: "MetaRefiner", options: argparse.Namespace) -> None:
    adaptation, agent = refiner.adaptation, refiner.agent
    if options.verbose:
        say(
            f"{agent.algo} on {agent.env_name}: {options.n_updates} updates of {refiner.n_draws} draws on "
            f"{refiner.tasks_per_update} tasks; each adaptation: {adaptation.adapt_episodes} episodes, "
            f"{adaptation.adapt_steps} gradient steps"
        )


def _save(refiner: "MetaRefiner", run_folder: Path, options: argparse.Namespace) -> None:
    from sb3_refine.meta.meta_refiner import METHOD
    from sb3_refine.reporting.wording import WORDING

    assert refiner.result is not None
    refiner.save(run_folder=run_folder)
    note_command(run_folder, options)
    saved = f"saved to {run_folder / f'{refiner.agent.env_name}.zip'}"
    result, objective = refiner.result, refiner.judging.objective
    print_result(
        result, objective, f"returns are those after adaptation\n{saved}", not options.verbose, WORDING[METHOD].column
    )


def adapt_agent(options: argparse.Namespace) -> int:
    """
    Run ``sb3-refine adapt``.

    :param options: of :func:`make_adapt_parser`
    :return: exit status: 0 for a verdict, whatever it is
    :raises RefineError: when an option is wrong
    :raises EpisodeError: when an episode fails
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    set_up_logging(logging.WARNING)
    from sb3_refine.agents.zoo import new_run_folder, remove_if_unused
    from sb3_refine.meta.adapt import adapt, task_with
    from sb3_refine.reporting.wording import WORDING

    agent = load_chosen_agent(options)
    if agent.recipe.tasks is not None and not options.task:
        raise RefineError("--tasks: an agent adapts to one task of the family: name the task with --task")
    task = task_with(_family_of(agent), options.task) if options.task else None
    remove_if_unused(new_run_folder(options.output, agent.algo, agent.env_name))  # fails before the episodes
    judgement = adapt(
        agent,
        task,
        adaptation={name: getattr(options, name) for name in _OF_ADAPTATION if name in options.given},
        progress_bar=options.progress,
        seed=options.seed,
        n_eval_episodes=options.n_eval_episodes,
        alpha=options.alpha,
        n_workers=options.n_workers,
        backend=options.backend,
        accelerator=not options.no_accelerator,
        episode_timeout=options.episode_timeout,
    )
    run_folder = judgement.save(options.output)
    note_command(run_folder, options)
    for figures in judgement.result.candidates:
        name, n_episodes = figures["name"], figures["n_episodes"]
        say(f"{name}: mean return {figures['mean_return']:.5g} in {n_episodes} validation episodes")
    saved = f"saved to {run_folder / f'{agent.env_name}.zip'}"
    print_result(judgement.result, judgement.objective, saved, not options.verbose, WORDING["adapt"].column)
    if not options.no_report:
        say(f"report: {judgement.report(run_folder)}")
    return 0


def _family_of(agent: Any) -> Any:
    """Of ``--tasks``, or of the file beside the agent."""
    from sb3_refine.agents.tasks import FILE_NAME, check_stored_tasks, read_tasks, with_tasks

    if agent.recipe.tasks is None:
        path = Path(str(agent.source.get("path", ""))).parent / FILE_NAME
        if not path.is_file():
            raise RefineError("--task: there is no tasks.yml beside the agent; name its family with --tasks")
        check_stored_tasks(read_tasks(path))
        agent = with_tasks(agent, path)
    return agent.recipe.tasks
