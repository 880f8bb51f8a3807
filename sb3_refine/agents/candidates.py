"""Agents to judge against an original: single zips, and the checkpoints of training runs."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sb3_refine.agents.agent import Agent
from sb3_refine.agents.load import load_agent
from sb3_refine.agents.zoo import find_beside, is_checkpoint, n_steps, run_folders
from sb3_refine.envs.observations import normalisation_of
from sb3_refine.errors import RefineError
from sb3_refine.policies.parameters import PolicyParameters

logger = logging.getLogger(__name__)

_NO_AGENTS = ("train_eval_metrics.zip",)  # what the Zoo puts beside agents


@dataclass(frozen=True)
class NamedAgent:
    """
    An agent that may be better than the original.

    :param name: what tables call the agent
    :param agent: the agent
    """

    name: str
    agent: Agent


def load_candidates(paths: Sequence[str | Path], original: Agent, **kwargs: Any) -> list[NamedAgent]:
    """
    Load the agents that paths name, for the environment of the original.

    :param paths: zips; folders of runs, of which all zips are taken; log folders with ``ALGO/ENV_K`` in them, of which
        all runs of the original's algorithm and environment are taken
    :param original: the agent to compare with
    :param kwargs: of :func:`~sb3_refine.agents.load.load_agent`: ``env_kwargs``, ``gym_packages`` and the like
    :return: the agents, checkpoints in the order of their steps
    :raises RefineError: when there is nothing at a path, an agent cannot be loaded, or is of another environment
    """
    zips = [(Path(path), zip_path) for path in paths for zip_path in find_zips(Path(path), original)]
    _warn_of_shared_statistics([zip_path for _, zip_path in zips], original)
    found = {}
    for path, zip_path in zips:
        if zip_path.resolve() not in found:
            agent = load_agent(model=zip_path, env=env_beside(zip_path, original.env_id), **kwargs)
            check_same_environment(original, agent, f"candidates: {zip_path}")
            found[zip_path.resolve()] = NamedAgent(_name_of(path, zip_path), agent)
    return list(found.values())


def find_zips(path: Path, original: Agent) -> list[Path]:
    """
    :param path: see :func:`load_candidates`
    :param original: says which runs of a log folder are meant
    :return: zips of agents, those of a run in the order of their steps
    :raises RefineError: when there is none
    """
    if not path.is_dir() and (path.is_file() or path.with_name(f"{path.name}.zip").is_file()):
        return [path if path.is_file() else path.with_name(f"{path.name}.zip")]
    if not path.is_dir():
        raise RefineError(f"candidates: there is nothing at {path}; name a zip, the folder of a run or a log folder")
    zips = _zips_in(path)
    if not zips:
        runs = run_folders(path, original.algo, original.env_name)
        zips = [zip_path for run in runs for zip_path in _zips_in(run)]
    if not zips:
        wanted = f"no zips, and no {original.algo}/{original.env_name}_K with zips"
        raise RefineError(f"candidates: {path} has {wanted}; name the folder of a run or a log folder")
    return zips


def check_same_environment(original: Agent, other: Agent, whose: str) -> None:
    """
    Wrappers are the agents' own; the environment is not.

    :param original: the agent to compare with
    :param other: the agent that is compared
    :param whose: what messages call that agent, after the option that names the agent
    :raises RefineError: when the environments differ
    """
    ours, theirs = original.recipe, other.recipe
    if ours.env_id != theirs.env_id:
        raise RefineError(
            f"{whose} is for {theirs.env_id}, the agent itself for {ours.env_id}; name agents of one environment"
        )
    if ours.env_kwargs != theirs.env_kwargs:
        raise RefineError(
            f"{whose} has an environment with the arguments {theirs.env_kwargs}, the agent itself one with "
            f"{ours.env_kwargs}; give both the same in `env_kwargs`"
        )
    if ours.tasks != theirs.tasks:
        raise RefineError(
            f"{whose} and the agent itself are not in the same tasks; load both with the same `tasks`, or put them "
            "there with `with_tasks`"
        )


def without_copies(agents: Sequence[NamedAgent], original: Agent) -> list[NamedAgent]:
    """
    :param agents: any
    :param original: the agent to compare with
    :return: those that act differently: ``best_model.zip``, for example, is often the last agent. All if none does
    """
    kept = {_fingerprint(original): NamedAgent("the original", original)}
    for each in agents:
        same = kept.setdefault(_fingerprint(each.agent), each)
        if same is not each:
            logger.info("%s is the same policy as %s: judged once", each.name, same.name)
    return list(kept.values())[1:] or list(agents[:1])


def _fingerprint(agent: Agent) -> bytes:
    """Of everything that decides an agent's episodes."""
    digest = hashlib.sha256(PolicyParameters(agent.model.policy, "actor").get_theta().tobytes())
    normalisation = normalisation_of(agent.vec_normalize, agent.observation_space)
    for part in normalisation or ():
        digest.update(part.tobytes())
    digest.update(repr((type(agent.model.policy), replace(agent.recipe, vec_wrappers=(), make=None))).encode())
    return digest.digest()


def env_beside(zip_path: Path, env: str) -> str | None:
    """
    :param zip_path: of an agent
    :param env: id of the environment of the agent to compare with
    :return: None where the files beside a zip tell its environment; else ``env``
    """
    is_filed_under_it = (zip_path.parent / env.replace("/", "-")).is_dir()
    return env if is_filed_under_it or len(list(zip_path.parent.glob("*/config.yml"))) != 1 else None


def _zips_in(folder: Path) -> list[Path]:
    zips = [path for path in folder.glob("*.zip") if path.name not in _NO_AGENTS and path.is_file()]
    return sorted(zips, key=lambda path: (not is_checkpoint(path), n_steps(path), path.name))


def _name_of(path: Path, zip_path: Path) -> str:
    """Short, and different for all zips of a path."""
    if path.is_dir():
        return str(zip_path.relative_to(path).with_suffix(""))
    return zip_path.stem


def _warn_of_shared_statistics(zips: Sequence[Path], original: Agent) -> None:
    """Statistics go on changing during training: those of the end do not belong to an earlier checkpoint."""
    by_statistics: dict[Path, list[Path]] = {}
    for zip_path in filter(is_checkpoint, zips):
        statistics = find_beside(zip_path, env_beside(zip_path, original.env_id)).vec_normalize
        if statistics is not None:
            by_statistics.setdefault(statistics, []).append(zip_path)
    for statistics, sharing in by_statistics.items():
        if len(sharing) > 1 or n_steps(sharing[0]) != n_steps(statistics):
            logger.warning(
                "%d checkpoints share the statistics in %s, which are of the end of the training: their observations "
                "may be normalised in another way than in training. Save the statistics of each with "
                "CheckpointCallback(save_vecnormalize=True)",
                *(len(sharing), statistics),
            )
