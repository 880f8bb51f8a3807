"""Commands for a saved agent, ready to be copied."""

import re
from collections.abc import Mapping
from pathlib import Path

import gymnasium as gym

from sb3_refine.agents.decoding.zoo_yaml import read_zoo_yaml
from sb3_refine.agents.sb3_models import ALGOS
from sb3_refine.agents.tasks import FILE_NAME as TASKS
from sb3_refine.formatting import command_text
from sb3_refine.policies.rounding import ROUNDINGS
from sb3_refine.reporting.record import RunRecord

_OF_STATISTICS = re.compile(r"env = VecNormalize|env\.training")


def needs_python(record: RunRecord) -> bool:
    """
    :param record: of a run
    :return: whether no command can name the environment, with its wrappers
    """
    settings = record.settings
    is_unknown = bool(settings.get("env_from_callable")) and record.env_id not in gym.registry
    return is_unknown or bool(settings.get("wrappers_left_out"))


def evaluate_command(run_folder: Path, record: RunRecord, *options: str) -> str:
    """
    :param run_folder: where the agent was saved
    :param record: of the run
    :param options: further options
    :return: what evaluates the agent, against the original where its files exist; in Python where the environment has
        no id
    """
    if needs_python(record):
        return _snippet(run_folder, record)
    where = _in_layout(run_folder, record)
    if not where:
        where = ["--model", str(run_folder / f"{record.env_id.replace('/', '-')}.zip")]
    if not record.settings.get("end_at_success", True):
        where.append("--no-end-at-success")
    if record.decision != "original" and any((run_folder / "state").glob("*.zip")):
        options = ("--compare-to", str(run_folder / "state"), *options)
    if record.settings.get("quantize") in ROUNDINGS:
        options = ("--quantize", record.settings["quantize"], *options)
    if isinstance(record.settings.get("tasks"), Mapping):
        options = ("--tasks", str(run_folder / TASKS), *options)
    command = command_text(["sb3-refine", "evaluate", *_agent(record), *where, *_packages(record)], options)
    if isinstance(record.settings.get("tasks"), str):
        return f"# the tasks came from a function in Python; this runs the environment without them\n{command}"
    if record.settings.get("env_from_callable"):
        env = record.env_id
        return f"# {env} as it is registered, if it is: the environment of this run came from a callable\n{command}"
    return command


def _snippet(run_folder: Path, record: RunRecord) -> str:
    module, _, algo = ALGOS[record.algo].rpartition(".")
    statistics = run_folder / record.env_id / "vecnormalize.pkl"
    n_stack = _n_stack(run_folder / record.env_id / "config.yml")
    lines = [
        f"from {module} import {algo}",
        "from stable_baselines3.common.env_util import make_vec_env",
        "from stable_baselines3.common.evaluation import evaluate_policy",
        "from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize",
        "",
        "env = make_vec_env(make_env)  # make_env: what makes your environment, with its wrappers",
        f"env = VecFrameStack(env, {n_stack})",
        f"env = VecNormalize.load({str(statistics)!r}, env)",
        "env.training = env.norm_reward = False",
        f"model = {algo}.load({str(run_folder / f'{record.env_id}.zip')!r})",
        "print(evaluate_policy(model, env, n_eval_episodes=100))",
    ]
    lines = [line for line in lines if n_stack or not line.startswith("env = VecFrameStack")]
    return "\n".join(line for line in lines if statistics.exists() or not _OF_STATISTICS.match(line))


def _n_stack(config: Path) -> int:
    """Frames that are stacked; 0 for none."""
    return int(read_zoo_yaml(config).get("frame_stack") or 0) if config.exists() else 0


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
