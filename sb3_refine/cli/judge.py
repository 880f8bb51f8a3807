"""``sb3-refine judge``: the best of some agents, tested against an original."""

import argparse
import logging
import signal

from sb3_refine.cli.options import Parser, add_agent_options, load_chosen_agent, set_up_logging
from sb3_refine.cli.push import destination_of, push_run
from sb3_refine.cli.refine import (
    check_entries_of,
    check_report_options,
    note_command,
    print_next_steps,
    print_result,
    write_report,
)
from sb3_refine.cli.refine_options import (
    add_average_option,
    add_objective_option,
    add_output_options,
    add_rollout_options,
    add_verdict_options,
)


def make_judge_parser() -> Parser:
    """:return: the parser of ``sb3-refine judge``"""
    parser = Parser(
        prog="sb3-refine judge",
        description="Choose the best of some agents on validation seeds, and test it once against the original on "
        "held-out seeds. Checkpoints of a training run, another experiment, an agent that was trained on.",
        epilog="example: sb3-refine judge --algo ppo --env Walker2DBulletEnv-v0 -f rl-trained-agents "
        "--candidates logs/ppo/Walker2DBulletEnv-v0_1 -o refined-agents",
        allow_abbrev=False,
    )
    add_agent_options(parser)
    candidates = parser.add_argument_group("the candidates")
    candidates.add_argument(
        "--candidates",
        nargs="+",
        required=True,
        metavar="PATH",
        help="zips, folders of runs with checkpoints, or log folders with ALGO/ENV_K in them",
    )
    candidates.add_argument(
        "--trust-candidates",
        action="store_true",
        help="what --trust-remote-code is for the original: runs any code that the candidates' authors put there",
    )
    add_average_option(candidates, "candidates")
    add_objective_option(candidates)
    add_rollout_options(parser.add_argument_group("the run"))
    add_verdict_options(parser.add_argument_group("the verdict"))
    add_output_options(parser.add_argument_group("the output"))
    return parser


def judge_agents(options: argparse.Namespace) -> int:
    """
    Run ``sb3-refine judge``.

    :param options: of :func:`make_judge_parser`
    :return: exit status: 0 for a verdict, whatever it is
    :raises RefineError: when an option is wrong
    :raises EpisodeError: when an episode fails
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leave no workers
    set_up_logging(logging.WARNING)
    from sb3_refine.agents.candidates import load_candidates
    from sb3_refine.agents.zoo import new_run_folder, remove_if_unused
    from sb3_refine.judging import judge

    destination = destination_of(options.push_to_hub)
    check_report_options(options)
    original = load_chosen_agent(options)
    check_entries_of(original, options)
    candidates = load_candidates(
        options.candidates,
        original,
        env_kwargs=options.env_kwargs,
        gym_packages=options.gym_packages,
        trust_remote_code=options.trust_candidates,
        end_at_success=not options.no_end_at_success,
        tasks=options.tasks,
    )
    remove_if_unused(new_run_folder(options.output, original.algo, original.env_name))  # fails before the episodes
    judgement = judge(
        original,
        candidates,
        objective=options.objective,
        seed=options.seed,
        n_eval_episodes=options.n_eval_episodes,
        alpha=options.alpha,
        min_effect=options.min_effect,
        max_return_loss=options.max_return_loss,
        n_workers=options.n_workers,
        backend=options.backend,
        accelerator=not options.no_accelerator,
        episode_timeout=options.episode_timeout,
        progress_bar=options.progress,
        n_average=options.n_average,
    )
    run_folder = judgement.save(options.output)
    note_command(run_folder, options)
    saved = f"saved to {run_folder / f'{original.env_name}.zip'}"
    print_result(judgement.result, judgement.objective, saved)
    reported = options.no_report or write_report(judgement, run_folder, options)
    print_next_steps(run_folder)
    if destination is not None:
        push_run(argparse.Namespace(run_folder=run_folder, **destination))
    return 0 if reported else 1
