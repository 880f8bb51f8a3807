"""``sb3-refine distill``: a student of another architecture."""

import argparse
import logging
import shlex
import signal
from typing import TYPE_CHECKING

from sb3_refine.cli.options import Parser, add_agent_options, count, load_chosen_agent, say, set_up_logging, whole
from sb3_refine.cli.refine_options import add_rollout_options

if TYPE_CHECKING:
    from sb3_refine.students.distill import Round


def make_distill_parser() -> Parser:
    """:return: the parser of ``sb3-refine distill``"""
    parser = Parser(
        prog="sb3-refine distill",
        description="Make a student: a policy of another architecture that learns an agent's deterministic actions, "
        "first from the agent's own episodes (behaviour cloning), then from episodes in which the student acts "
        "(DAgger). The student is saved as a PPO agent.",
        epilog="example: sb3-refine distill --algo tqc --env Walker2DBulletEnv-v0 --student 'mlp:net_arch=[16,16]'",
        allow_abbrev=False,
    )
    add_agent_options(parser)
    student = parser.add_argument_group("the student")
    student.add_argument(
        "--student",
        default="mlp",
        metavar="NAME[:OPTION=VALUE,...]",
        help="linear, mlp:net_arch=[64,64],activation_fn=relu, or "
        "transformer:context=20,n_layers=3,n_heads=1,embed_dim=128 (default: %(default)s)",
    )
    student.add_argument(
        "--n-episodes", type=count, default=20, metavar="N", help="episodes of each round (default: %(default)s)"
    )
    student.add_argument(
        "--n-rounds", type=whole, default=5, metavar="N", help="rounds of DAgger (default: %(default)s)"
    )
    student.add_argument(
        "--n-gradient-steps",
        type=count,
        metavar="N",
        help="of each round (default: 10000, for a transformer 1000)",
    )
    student.add_argument(
        "--learning-rate", type=float, metavar="X", help="of Adam (default: 0.001, for a transformer 0.0005)"
    )
    run = parser.add_argument_group("the run")
    add_rollout_options(run)
    run.add_argument(
        "--n-eval-episodes", type=count, default=100, metavar="N", help="test episodes of both (default: %(default)s)"
    )
    output = parser.add_argument_group("the output")
    output.add_argument("-o", "--output", default="distilled-agents", help="output folder (default: %(default)s)")
    return parser


def distill_agent(options: argparse.Namespace) -> int:
    """
    Run ``sb3-refine distill``.

    :param options: of :func:`make_distill_parser`
    :return: exit status
    :raises RefineError: when an option is wrong
    :raises EpisodeError: when an episode fails
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leave no workers
    set_up_logging(logging.WARNING)
    from sb3_refine.agents.zoo import new_run_folder, remove_if_unused
    from sb3_refine.students.architectures import student_options
    from sb3_refine.students.distill import DistillationInterrupted, distill

    student_options(options.student)  # fails before the agent is loaded
    agent = load_chosen_agent(options)
    remove_if_unused(new_run_folder(options.output, "ppo", agent.env_name))  # fails before the episodes
    say(
        f"teacher: {agent.algo} {agent.env_id}; student: {options.student}; {options.n_episodes} episodes in each round"
    )
    try:
        found = distill(
            agent,
            options.student,
            n_episodes=options.n_episodes,
            n_rounds=options.n_rounds,
            n_gradient_steps=options.n_gradient_steps,
            learning_rate=options.learning_rate,
            n_eval_episodes=options.n_eval_episodes,
            seed=options.seed,
            n_workers=options.n_workers,
            backend=options.backend,
            accelerator=not options.no_accelerator,
            episode_timeout=options.episode_timeout,
            on_round=_print_round,
        )
    except DistillationInterrupted as error:
        run_folder = error.found.save(options.output)
        say(f"interrupted: the best student so far, not tested, is saved to {run_folder}")
        raise
    run_folder = found.save(options.output)
    say(f"\n{found}\nsaved to {run_folder / f'{agent.env_name}.zip'}")
    of_student = ["--algo", found.agent.algo, "--env", agent.env_id, "-f", options.output]
    if options.gym_packages:
        of_student += ["--gym-packages", *options.gym_packages]
    if options.tasks:
        of_student += ["--tasks", options.tasks]
    say(f"refine the student: {shlex.join(['sb3-refine', *of_student])}")
    say(f"export the student: {shlex.join(['sb3-refine', 'export', *of_student])}")
    if agent.source.get("path"):
        compared = ["sb3-refine", "evaluate", *of_student, "--compare-to", str(agent.source["path"])]
        say(f"compare with the teacher: {shlex.join(compared)}")
    return 0


def _print_round(found: "Round") -> None:
    if found.number == 0:
        say(f"{'round':>6}{'episodes':>10}{'steps':>10}{'loss':>11}{'held out':>11}{'mean return':>13}")
    say(
        f"{found.number:>6}{found.n_episodes:>10}{found.n_steps:>10,}{found.loss:>11.3g}{found.held_out_loss:>11.3g}"
        f"{found.mean_return:>13.5g}"
    )
