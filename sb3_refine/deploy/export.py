"""Export an agent, and check each file against ``predict``."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from sb3_refine.agents.agent import Agent
from sb3_refine.agents.from_model import agent_from_model
from sb3_refine.deploy.formats import FORMATS, INPUT, OUTPUT, Function
from sb3_refine.deploy.network import DeployedPolicy, deployed_policy
from sb3_refine.errors import RefineError, check_count, did_you_mean
from sb3_refine.evaluation.target import rollout_task
from sb3_refine.evaluators import SerialEvaluator
from sb3_refine.files import atomic_path, sha256
from sb3_refine.optimizers import ExplicitPopulation
from sb3_refine.policies.base import DeterministicPolicy
from sb3_refine.policies.parameters import PolicyParameters
from sb3_refine.reporting.record import versions
from sb3_refine.seeding import EpisodeSeeds

FILE_NAME = "export.json"


class _Watched(DeterministicPolicy):
    """Another policy, and what it got and gave."""

    def __init__(self, policy: DeterministicPolicy, as_input: Any):
        self._policy, self._as_input = policy, as_input
        self._targets, self.normalisation = policy._targets, policy.normalisation
        self.observations: list[np.ndarray] = []
        self.actions: list[np.ndarray] = []

    def begin_episode(self, env: gym.Env) -> None:
        self._policy.begin_episode(env)

    def __call__(self, observation: Any) -> Any:
        action = self._policy(observation)
        self.observations.append(self._as_input(observation))
        self.actions.append(np.array(action))
        return action


def export(
    model: Any, output: str | Path, formats: Sequence[str] = ("onnx",), n_episodes: int = 10, seed: int = 0
) -> dict[str, Any]:
    """
    Write an agent's deterministic policy for where there is no Stable-Baselines3. The input is a batch of raw
    observations in float32, the output the actions for the environment: normalisation of the observations, squashing,
    scaling and clipping of the actions are inside. The entries of a ``Dict`` observation are one after the other, in
    the order that ``export.json`` names.

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
    :param n_episodes: for the check
    :param seed: of these episodes
    :return: the content of ``export.json``
    :raises RefineError: when the policy cannot be exported, with the reason
    """
    check_count("n_episodes", n_episodes, 1)
    for name in formats:
        if name not in FORMATS:
            raise RefineError(
                f"format: unknown {name!r}{did_you_mean(name, FORMATS)}; choose some of {', '.join(FORMATS)}"
            )
    agent = model if isinstance(model, Agent) else agent_from_model(model)
    policy, folder = deployed_policy(agent), Path(output)
    observations, actions = _steps(agent, policy, EpisodeSeeds(seed).take("test", n_episodes))
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for name in dict.fromkeys(formats):
        suffix, write, read = FORMATS[name]
        path = folder / f"{agent.env_name.replace('/', '-')}{suffix}"
        with atomic_path(path) as temporary:
            write(policy, temporary, path.stem)
        files[name] = {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)}
        files[name] |= _check(read(path, policy), policy, observations, actions)
    content = {
        "algo": agent.algo,
        "env": agent.env_id,
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
        "n_parameters": sum(values.numel() for values in policy.parameters()),
        "checked_on": {"n_episodes": n_episodes, "n_steps": len(observations), "seed": seed},
        "files": files,
        "source": agent.source,
        "versions": versions(),
    }
    with atomic_path(folder / FILE_NAME) as temporary:
        temporary.write_text(json.dumps(content, indent=2, default=str) + "\n")
    return content


def _steps(agent: Agent, policy: DeployedPolicy, seeds: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Observations and the actions of ``predict`` in some episodes of the agent."""
    task = rollout_task(agent, None, accelerator=True)
    watched = _Watched(task.policy, policy.as_input)
    theta = PolicyParameters(agent.model.policy, "actor").get_theta()
    with SerialEvaluator(replace(task, policy=watched)) as evaluator:
        evaluator.evaluate(ExplicitPopulation([theta]), [seeds])
    return np.array(watched.observations), np.array(watched.actions)


def _check(
    run: Function | None, policy: DeployedPolicy, observations: np.ndarray, actions: np.ndarray
) -> dict[str, Any]:
    """How far the actions of a file are from those of ``predict``."""
    if run is None:
        return {"largest_difference": None}
    found = run(observations)
    checked: dict[str, Any] = {"largest_difference": float(np.abs(found.astype(np.float64) - actions).max())}
    return checked if policy.is_continuous else {**checked, "n_different": int((found != actions).sum())}
