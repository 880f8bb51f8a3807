"""``sb3-refine export``: a policy for where there is no Stable-Baselines3."""

import argparse
import logging
from contextlib import suppress
from pathlib import Path

from sb3_refine.cli.options import Parser, add_agent_options, count, load_chosen_agent, say, set_up_logging, whole

_FORMATS = ("onnx", "torch", "c")


def make_export_parser() -> Parser:
    """:return: the parser of ``sb3-refine export``"""
    parser = Parser(
        prog="sb3-refine export",
        description="Write an agent's deterministic policy as ONNX, for torch.export, or as a C header. The input is a "
        "batch of raw observations in float32, the output the actions: normalisation, squashing, scaling and clipping "
        "are inside. Each file is compared with predict on the observations of some episodes.",
        epilog="example: sb3-refine export --algo ppo --env LunarLanderContinuous-v2 -f refined-agents -o exported "
        "--format onnx c",
        allow_abbrev=False,
    )
    add_agent_options(parser)
    output = parser.add_argument_group("the output")
    output.add_argument("-o", "--output", help="folder of the files (default: exported/ALGO/ENV_K)")
    output.add_argument(
        "--format",
        dest="formats",
        nargs="+",
        choices=_FORMATS,
        default=["onnx"],
        help="onnx, torch (a .pt2 of torch.export), c (a header of C99) (default: onnx)",
    )
    output.add_argument(
        "--quantize",
        metavar="FORMAT",
        help="store the weights as float16 or int8; the files are compared with predict of an agent with these weights",
    )
    output.add_argument("--n-eval-episodes", type=count, default=10, metavar="N", help="for the check (default: 10)")
    output.add_argument("--seed", type=whole, default=0, help="of these episodes (default: 0)")
    return parser


def export_agent(options: argparse.Namespace) -> int:
    """
    Run ``sb3-refine export``.

    :param options: of :func:`make_export_parser`
    :return: exit status
    :raises RefineError: when the policy cannot be exported
    :raises EpisodeError: when an episode of the check fails
    """
    set_up_logging(logging.WARNING)
    agent = load_chosen_agent(options)
    from sb3_refine.agents.zoo import new_run_folder
    from sb3_refine.deploy.export import FILE_NAME, export

    folder = Path(options.output or new_run_folder("exported", agent.algo, agent.env_name))
    try:
        content = export(
            agent,
            folder,
            options.formats,
            n_episodes=options.n_eval_episodes,
            seed=options.seed,
            quantize=options.quantize,
        )
    except BaseException:
        with suppress(OSError):  # not empty, or not there
            folder.rmdir()
        raise
    checked = f"{content['checked_on']['n_steps']:,} steps"
    for file in content["files"].values():
        say(f"{folder}/{file['file']}: {file['bytes']:,} bytes; {_found(file, checked)}")
    say(f"details: {folder}/{FILE_NAME}")
    return 0


def _found(file: dict[str, object], checked: str) -> str:
    if "unchecked" in file:
        return f"not checked: {file['unchecked']}"
    if "n_different" in file:
        return f"{file['n_different']} other actions than predict in {checked}"
    return f"largest difference to predict in {checked}: {file['largest_difference']:.2g}"
