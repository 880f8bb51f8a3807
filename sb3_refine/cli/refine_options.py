"""The options of ``sb3-refine`` itself."""

import argparse

from sb3_refine import __version__
from sb3_refine.cli.options import Parser, add_agent_options, count, count_or_auto, seconds, seconds_or_zero, whole

METHODS = ("search", "train", "auto", "plan")

OF_SEARCH = (
    "preset", "optimizer", "n_updates", "budget", "n_delta", "n_top", "learning_rate", "delta_std",
    "episodes_per_candidate", "parameters", "dry_run", "checkpoint_interval", "no_selection", "no_acceptance",
    "log_interval", "quantize",
)  # fmt: skip
OF_TRAINING = (
    "n_timesteps", "progress_remaining", "n_warm_up", "replay_buffer", "normalisation", "vec_env", "n_checkpoints",
    "n_average",
)  # fmt: skip
OF_PLANNING = ("n_simulations", "n_rounds", "n_episodes", "n_gradient_steps", "temperature")
NOT_OF = {
    "search": OF_TRAINING + OF_PLANNING,
    "train": OF_SEARCH + OF_PLANNING,
    "auto": (
        "preset", "n_updates", "dry_run", "checkpoint_interval", "no_selection", "no_acceptance", "log_interval",
        "quantize", "n_timesteps", "n_checkpoints", "n_average", *OF_PLANNING,
    ),
    "plan": (
        *(name for name in OF_SEARCH if name not in ("learning_rate", "parameters")),
        *(name for name in OF_TRAINING if name != "n_timesteps"),
        "resume",
    ),
}  # fmt: skip
"""Options that a method does not have."""


_EXAMPLES = """\
examples:
  sb3-refine --demo                                      the agent that comes with the package
  sb3-refine --algo ddpg --env HopperBulletEnv-v0 -P     of ./rl-trained-agents, or the Hub
  sb3-refine --model my_agent.zip --env Pendulum-v1      a zip of your own
  sb3-refine --algo ppo --env CartPole-v1 --method auto  train on, then search
  sb3-refine --resume refined-agents/ppo/CartPole-v1_1   go on after Ctrl-C

other commands:
  sb3-refine judge       test other agents, such as checkpoints, against an agent
  sb3-refine evaluate    run an agent, or two on the same seeds
  sb3-refine distill     make a smaller or another policy that acts like an agent
  sb3-refine export      write an agent for where there is no Stable-Baselines3
  sb3-refine meta        learn to adapt to the tasks of a family in a few episodes
  sb3-refine adapt       adapt an agent to one task
  sb3-refine push        push the result of a run to the Hub
"""


def make_parser() -> Parser:
    """:return: the parser of ``sb3-refine``"""
    parser = Parser(
        prog="sb3-refine",
        usage="sb3-refine --algo ALGO --env ENV [options]\n"
        "       sb3-refine --model ZIP --env ENV [options]\n"
        "       sb3-refine {judge,evaluate,distill,export,meta,adapt,push} --help",
        description="Refine a trained Stable-Baselines3 agent by random search, and test the result on held-out seeds.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"sb3-refine {__version__}")
    add_agent_options(parser)
    parser.add_argument_group("the method").add_argument(
        "--method",
        default="search",
        choices=METHODS,
        help="search: direct random search; train: training on with plain Stable-Baselines3 and the agent's own "
        "hyperparameters; auto: training as long as it pays, then a search; plan: tree searches, which the agent "
        "learns from, for discrete actions (default: %(default)s)",
    )
    _add_search_options(parser)
    _add_training_options(parser)
    _add_planning_options(parser)
    _add_run_options(parser)
    _add_search_verdict_options(parser)
    _add_search_output_options(parser)
    return parser


def _add_search_options(parser: Parser) -> None:
    search = parser.add_argument_group("the search")
    search.add_argument(
        "--preset",
        default="default",
        metavar="NAME",
        help="settings of the optimizer: default; paper: ars with 64 directions, 200 updates, the last iterate; "
        "es-transformers: plain-openai-es for transformers",
    )
    search.add_argument(
        "--optimizer",
        default="backtracking-ars",
        metavar="NAME[:OPTION=VALUE,...]",
        help="search method (default: %(default)s)",
    )
    add_objective_option(search)
    length = search.add_mutually_exclusive_group()
    length.add_argument("--n-updates", type=count, help="number of updates")
    length.add_argument(
        "--budget",
        type=count,
        metavar="ROLLOUTS",
        help="episodes of the search, instead of a number of updates; with --method auto, of search and training "
        "together, each as long as the original's mean episode",
    )
    search.add_argument("--n-delta", type=count, help="directions an update, two candidates each")
    search.add_argument("--n-top", type=count, help="of ars: directions that enter the update (default: all)")
    search.add_argument(
        "--learning-rate",
        type=float,
        nargs="+",
        metavar=("A", "B"),
        help="step size, or its start and end; with --method plan, one number: that of Adam (default there: 0.001)",
    )
    search.add_argument(
        "--delta-std",
        type=float,
        nargs="+",
        metavar=("A", "B"),
        help="std of the perturbation, or its start and end",
    )
    search.add_argument(
        "--episodes-per-candidate",
        type=count,
        metavar="N",
        help="episodes of each candidate (default: as the optimizer has it)",
    )
    add_quantize_option(search)
    search.add_argument(
        "--parameters",
        default="actor",
        metavar="SCOPE",
        help="actor, head, or a regular expression over parameter names (default: %(default)s)",
    )


def _add_training_options(parser: Parser) -> None:
    training = parser.add_argument_group("training on (--method train or auto)")
    training.add_argument(
        "-n",
        "--n-timesteps",
        type=count,
        help="environment steps (default: those of the original training); with --method plan, no further round begins "
        "after so many steps (default: no limit)",
    )
    training.add_argument(
        "--progress-remaining",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="hold schedules where they were when this share of the original training was left (default: %(default)s)",
    )
    training.add_argument(
        "--n-warm-up",
        type=whole,
        metavar="N",
        help="off-policy without a replay buffer: steps of the agent's own policy before the first gradient step "
        "(default: its learning_starts, but at least 10000)",
    )
    training.add_argument(
        "--replay-buffer",
        metavar="PKL",
        help="of save_replay_buffer; needs --trust-remote-code, as it can run any code",
    )
    training.add_argument(
        "--normalisation",
        default="live",
        metavar="NAME",
        help="live: statistics go on changing, as in training; or frozen (default: %(default)s)",
    )
    add_average_option(training, "checkpoints")
    training.add_argument("--vec-env", default="dummy", metavar="NAME", help="dummy or subproc (default: %(default)s)")
    training.add_argument(
        "--n-checkpoints",
        type=count,
        default=20,
        metavar="N",
        help="checkpoints kept on disk beside the last, evenly spaced (default: %(default)s)",
    )


def _add_planning_options(parser: Parser) -> None:
    planning = parser.add_argument_group("planning (--method plan)")
    planning.add_argument(
        "--n-simulations", type=count, default=64, metavar="N", help="of each tree search (default: %(default)s)"
    )
    planning.add_argument(
        "--n-rounds", type=count, default=5, metavar="N", help="of planning and learning (default: %(default)s)"
    )
    planning.add_argument(
        "--n-episodes",
        type=count,
        default=8,
        metavar="N",
        help="of each round, with a search in each step (default: %(default)s)",
    )
    planning.add_argument(
        "--n-gradient-steps", type=count, default=500, metavar="N", help="of each round (default: %(default)s)"
    )
    planning.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        metavar="X",
        help="of the softmax of a value-based agent's values, in units of their standard deviation over the actions "
        "(default: %(default)s)",
    )


def _add_run_options(parser: Parser) -> None:
    run = parser.add_argument_group("the run")
    add_rollout_options(run)
    run.add_argument(
        "--dry-run",
        action="store_true",
        help="load, check, run two episodes of the agent, say what would run and how long",
    )
    run.add_argument(
        "--time-limit",
        type=seconds_or_zero,
        metavar="S",
        help="seconds after which the search ends, with time for the test set aside; the report comes on top",
    )
    run.add_argument(
        "--checkpoint-interval",
        type=count,
        default=5,
        metavar="N",
        help="updates between checkpoints (default: %(default)s)",
    )
    run.add_argument("--resume", metavar="DIR", help="go on with an interrupted run, OUTPUT/ALGO/ENV_K")


def add_objective_option(group: argparse._ArgumentGroup) -> None:
    """:param group: of a parser"""
    group.add_argument(
        "--objective",
        default="return",
        metavar="NAME[:OPTION=VALUE,...]",
        help="what is maximised: return, mesh-dimension, cvar, worst, success, survival, smooth, or module:function "
        "(default: %(default)s)",
    )


def add_quantize_option(group: argparse._ArgumentGroup) -> None:
    """:param group: of a parser"""
    group.add_argument(
        "--quantize",
        metavar="FORMAT",
        help="round the weights in all episodes, those of the original too: float16, int8 or int4 (default: not)",
    )


def add_average_option(group: argparse._ArgumentGroup, what: str) -> None:
    """
    :param group: of a parser
    :param what: is averaged
    """
    group.add_argument(
        "--average",
        type=count,
        dest="n_average",
        nargs="?",
        const=5,
        default=0,
        metavar="K",
        help=f"add the average of the last K {what} (5, if not said) and a greedy soup of all to the candidates",
    )


def add_rollout_options(group: argparse._ArgumentGroup) -> None:
    """:param group: of a parser"""
    group.add_argument("--seed", type=int, default=0, help="seed of everything random (default: %(default)s)")
    group.add_argument("--n-workers", type=count, help="episodes run at a time (default: all processors)")
    group.add_argument(
        "--backend",
        default="process",
        metavar="NAME[:OPTION=VALUE,...]",
        help="process, serial, ray or executor (default: %(default)s)",
    )
    group.add_argument(
        "--episode-timeout",
        type=seconds,
        default=600.0,
        metavar="S",
        help="seconds after which an episode counts as hanging (default: %(default)s)",
    )
    group.add_argument("--no-accelerator", action="store_true", help="use the stock step of the environment")


def add_verdict_options(verdict: argparse._ArgumentGroup) -> None:
    """:param verdict: group of a parser"""
    verdict.add_argument(
        "--n-eval-episodes",
        type=count_or_auto,
        default="auto",
        metavar="N",
        help="held-out episodes; auto: 100, or up to 400 where the gain on the validation seeds is too small for 100; "
        "100 with a time limit "
        "(default: %(default)s)",
    )
    verdict.add_argument(
        "--min-effect",
        type=float,
        metavar="X",
        help="with auto, the difference to resolve instead, by 50 to 2000 episodes",
    )
    verdict.add_argument("--alpha", type=float, default=0.05, help="level of significance (default: %(default)s)")
    verdict.add_argument(
        "--max-return-loss",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="share of the mean return that another objective may cost (default: %(default)s)",
    )


def _add_search_verdict_options(parser: Parser) -> None:
    verdict = parser.add_argument_group("the verdict")
    add_verdict_options(verdict)
    verdict.add_argument(
        "--no-selection", action="store_true", help="judge the last iterate instead of choosing on validation seeds"
    )
    verdict.add_argument("--no-acceptance", action="store_true", help="save the last iterate, untested")


def add_output_options(output: argparse._ArgumentGroup) -> None:
    """:param output: group of a parser"""
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


def _add_search_output_options(parser: Parser) -> None:
    output = parser.add_argument_group("the output")
    add_output_options(output)
    output.add_argument("--tensorboard-log", metavar="DIR", help="log for TensorBoard")
    output.add_argument(
        "--log-interval", type=count, default=1, help="updates between two log entries (default: %(default)s)"
    )
    output.add_argument(
        "--verbose",
        type=int,
        choices=(0, 1, 2),
        default=1,
        help="0: the verdict only, 1: a line an update, 2: the tables of Stable-Baselines3 (default: %(default)s)",
    )
