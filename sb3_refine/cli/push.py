"""``sb3-refine push``: the folder of a run to the Hub."""

import argparse

from sb3_refine.cli.options import Parser, say


def make_push_parser() -> Parser:
    """:return: the parser of ``sb3-refine push``"""
    parser = Parser(
        prog="sb3-refine push", description="Push the folder of a run to the Hugging Face Hub.", allow_abbrev=False
    )
    parser.add_argument("run_folder", metavar="DIR", help="folder of a finished run, OUTPUT/ALGO/ENV_K")
    parser.add_argument("--organization", required=True, metavar="ORG", help="organization or user to push to")
    parser.add_argument("--repo-name", metavar="NAME", help="name of the repo (default: ALGO-ENV)")
    return parser


def destination_of(push_to_hub: str | None) -> dict[str, str | None] | None:
    """Where ``--push-to-hub`` says, after a look at what would stop it: not only when the search is over."""
    if push_to_hub is None:
        return None
    from sb3_refine.reporting.publish import check_push

    organization, _, repo_name = push_to_hub.partition("/")
    check_push(organization, repo_name or None)
    return {"organization": organization, "repo_name": repo_name or None}


def push_run(options: argparse.Namespace) -> int:
    from sb3_refine.reporting.publish import push

    say(f"pushed to {push(options.run_folder, options.organization, options.repo_name)}")
    return 0
