"""Export an agent, and check each file against ``predict``."""

import logging
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_refine.agents.agent import Agent
from sb3_refine.agents.copies import with_rounding
from sb3_refine.agents.from_model import agent_from_model
from sb3_refine.deploy.formats import FORMATS, INPUT, OUTPUT, CannotRunError, Function
from sb3_refine.deploy.network import DeployedPolicy, deployed_policy
from sb3_refine.errors import RefineError, check_count, did_you_mean
from sb3_refine.evaluation.demonstrations import Demonstration, demonstrate
from sb3_refine.evaluation.target import rollout_task
from sb3_refine.files import as_json, atomic_path, reraise_write_errors, sha256
from sb3_refine.policies.parameters import PolicyParameters
from sb3_refine.policies.rounding import ROUNDINGS
from sb3_refine.reporting.record import versions
from sb3_refine.seeding import EpisodeSeeds

logger = logging.getLogger(__name__)

FILE_NAME = "export.json"

STORED = ("float16", "int8")
"""How weights can be stored, apart from float32."""

TOLERANCE = 1e-3
"""Largest difference to ``predict``, as a share of the largest action, or share of steps with another discrete action,
with which a file is kept."""


def export(
    model: BaseAlgorithm | Agent,
    output: str | Path,
    formats: Sequence[str] = ("onnx",),
    env: str | Callable[[], gym.Env] | VecEnv | gym.Env | None = None,
    n_episodes: int = 10,
    seed: int = 0,
    quantize: str | None = None,
) -> dict[str, Any]:
    """
    Write an agent's deterministic policy for where there is no Stable-Baselines3. The input is a batch of raw
    observations in float32, the output the actions for the environment: normalisation of the observations, squashing,
    scaling and clipping of the actions are inside; wrappers of the environment are not. The entries of a ``Dict``
    observation are one after the other, in the order that ``export.json`` names.

    Each file is run on the observations of some episodes, and compared with ``model.predict``.

    >>> import tempfile
    >>> from stable_baselines3 import PPO
    >>> model = PPO("MlpPolicy", "Pendulum-v1", seed=0, device="cpu")
    >>> record = export(model, tempfile.mkdtemp(), formats=["torch"], n_episodes=1)
    >>> record["files"]["torch"]["largest_difference"] < 1e-4
    True

    :param model: a Stable-Baselines3 model, or an :class:`~sb3_refine.agents.agent.Agent` from ``load_agent``
    :param output: folder, one for each agent: ``ENV.onnx``, ``ENV.pt2``, ``ENV.h`` and ``export.json``
    :param formats: some of :data:`~sb3_refine.deploy.formats.FORMATS`: ``"onnx"``, ``"torch"`` (``torch.export``),
        ``"c"`` (a header of C99)
    :param env: see :class:`~sb3_refine.refiner.Refiner`
    :param n_episodes: for the check
    :param seed: of these episodes
    :param quantize: ``"float16"`` or ``"int8"``: weights are stored so, see
        :func:`~sb3_refine.policies.rounding.rounded`, and compared with ``predict`` of a model that has these weights
    :return: the content of ``export.json``
    :raises RefineError: when the policy cannot be exported, with the reason, or a file does not give the actions of
        ``predict``
    """
    check_count("n_episodes", n_episodes, 1)
    check_count("seed", seed, 0)
    for name in formats:
        if name not in FORMATS:
            raise RefineError(
                f"format: unknown {name!r}{did_you_mean(name, FORMATS)}; choose some of {', '.join(FORMATS)}"
            )
        FORMATS[name].check_packages()
    if isinstance(model, Agent) and env is not None:
        raise RefineError("env: an Agent brings its own environment; leave env out, or pass agent.model")
    if quantize is not None and quantize not in STORED:
        tried = "; to try it, use it in a refinement or with `evaluate`" if quantize in ROUNDINGS else ""
        raise RefineError(f"quantize: no format stores {quantize!r}; choose from {', '.join(STORED)}{tried}")
    agent = with_rounding(model if isinstance(model, Agent) else agent_from_model(model, env), quantize)
    policy, folder = deployed_policy(agent, quantize), Path(output)
    if policy.state and "c" in formats:
        raise RefineError("format: no C for a transformer; choose onnx or torch")
    with reraise_write_errors("the exported policy", folder):
        folder.mkdir(parents=True, exist_ok=True)
    episodes = demonstrate(rollout_task(agent), agent.observation_space, EpisodeSeeds(seed).take("test", n_episodes))
    with reraise_write_errors("the exported policy", folder):
        names = list(dict.fromkeys(formats))
        packages = ("onnx", "onnxruntime") if "onnx" in names else ()
        files = {name: _write(name, folder, agent.env_name, policy, episodes) for name in names}
        content = {
            "algo": agent.algo,
            "env": agent.env_id,
            "wrappers": [name for name, _ in agent.recipe.wrappers],
            "input": {
                "name": INPUT,
                "shape": ["batch", policy.n_inputs],
                "dtype": "float32",
                "entries": [{"key": entry.key, "size": entry.size} for entry in policy.entries],
            },
            "output": {
                "name": OUTPUT,
                "shape": ["batch", *policy.action_shape],
                "dtype": "float32" if policy.is_continuous else "int64",
            },
            **({"state": [entry._asdict() for entry in policy.state]} if policy.state else {}),
            "n_parameters": PolicyParameters(agent.model.policy).size,
            "quantize": quantize,
            "checked_on": {"n_episodes": n_episodes, "n_steps": sum(map(len, episodes)), "seed": seed},
            "files": files,
            "source": agent.source,
            "versions": versions() | {package: version(package) for package in packages},
        }
        with atomic_path(folder / FILE_NAME) as temporary:
            temporary.write_text(as_json(content), encoding="utf-8")
    if agent.recipe.wrappers:
        logger.warning(
            "export: the policy gets the observations that these wrappers make, and they get its actions; they are not "
            "in the file: %s",
            ", ".join(name for name, _ in agent.recipe.wrappers),
        )
    return content


def _write(
    name: str, folder: Path, env_name: str, policy: DeployedPolicy, episodes: list[Demonstration]
) -> dict[str, Any]:
    """Write a file, and keep it if it gives the actions."""
    kind = FORMATS[name]
    path = folder / f"{env_name}{kind.suffix}"
    actions = np.concatenate([episode.labels for episode in episodes])
    with atomic_path(path) as temporary:
        kind.write(policy, temporary, path.stem)
        try:
            found = _compared(_actions(kind.read(temporary, policy, path.stem), policy, episodes), actions, policy)
        except CannotRunError as error:
            found = {"unchecked": str(error)}
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256(path), **found}


def _actions(function: Function, policy: DeployedPolicy, episodes: list[Demonstration]) -> np.ndarray:
    """What a file does in some episodes."""
    inputs = [np.array([policy.as_input(each) for each in episode.observations]) for episode in episodes]
    if not policy.state:
        return function(np.concatenate(inputs))[0]
    actions = []
    for observations in inputs:
        state: Sequence[np.ndarray] = [entry.zeros(1) for entry in policy.state]
        for observation in observations:
            action, *state = function(observation[np.newaxis], *state)
            actions.append(action[0])
    return np.array(actions)


def _compared(found: np.ndarray, actions: np.ndarray, policy: DeployedPolicy) -> dict[str, Any]:
    """How far actions are from those of ``predict``."""
    result: dict[str, Any]
    if not policy.is_continuous:
        result = {"n_different": int((found != actions).sum())}
        is_same = result["n_different"] <= TOLERANCE * len(actions)
    else:
        result = {"largest_difference": float(np.abs(found.astype(np.float64) - actions).max())}
        is_same = result["largest_difference"] <= TOLERANCE * (float(np.abs(actions).max()) or 1.0)
    if not is_same:
        raise RefineError(
            f"export: the file does not give the actions of predict ({result}): the policy class changes how actions "
            "are made, and cannot be exported"
        )
    return result
