"""Commands for a saved agent, ready to be copied."""

import re
from pathlib import Path

from sb3_refine.formatting import command_text
from sb3_refine.reporting.record import RunRecord


def evaluate_command(run_folder: Path, record: RunRecord, *options: str) -> str:
    """
    :param run_folder: where the agent was saved
    :param record: of the run
    :param options: further options
    :return: what evaluates the agent, against the original where its files exist
    """
    where = _in_layout(run_folder, record)
    if not where:
        where = ["--model", str(run_folder / f"{record.env_id.replace('/', '-')}.zip")]
    if not record.settings.get("end_at_success", True):
        where.append("--no-end-at-success")
    if record.decision != "original" and any((run_folder / "state").glob("*.zip")):
        options = ("--compare-to", str(run_folder / "state"), *options)
    command = command_text(["sb3-refine", "evaluate", *_agent(record), *where, *_packages(record)], options)
    if record.settings.get("env_from_callable"):
        env = record.env_id
        return f"# {env} as it is registered, if it is: the environment of this run came from a callable\n{command}"
    return command


def watch_command(run_folder: Path, record: RunRecord) -> str:
    """
    :param run_folder: where the agent was saved
    :param record: of the run
    :return: what shows the agent in the Zoo's window; empty where the Zoo cannot find it
    """
    where = _in_layout(run_folder, record)
    if not where or record.settings.get("env_from_callable"):
        return ""
    return command_text(["python", "-m", "rl_zoo3.enjoy", *_agent(record), *where, *_packages(record)])


def _agent(record: RunRecord) -> list[str]:
    return ["--algo", record.algo, "--env", record.env_id]


def _packages(record: RunRecord) -> list[str]:
    packages = record.settings.get("gym_packages")
    return ["--gym-packages", *map(str, packages)] if packages else []


def _in_layout(run_folder: Path, record: RunRecord) -> list[str]:
    """The options that find the agent in the Zoo's layout; none where the folder is not in it."""
    numbered = re.fullmatch(r"(.+)_(\d+)", run_folder.name)
    name = record.env_id.replace("/", "-")
    if numbered and run_folder.parent.name == record.algo and numbered[1] == name:
        return ["-f", str(run_folder.parent.parent), "--exp-id", numbered[2]]
    return []
