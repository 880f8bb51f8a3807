"""Episodes step by step, with the action of a policy for each observation."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np

from sb3_refine.evaluators import RolloutTask, SerialEvaluator
from sb3_refine.optimizers import ExplicitPopulation
from sb3_refine.policies.base import DeterministicPolicy


@dataclass(frozen=True)
class Demonstration:
    """
    An episode.

    :param observations: raw, one for each step
    :param actions: that the environment got, one for each step
    :param labels: the teacher's actions, one for each step
    :param episode_return: of whoever acted
    """

    observations: list[Any]
    actions: np.ndarray
    labels: np.ndarray
    episode_return: float

    def __len__(self) -> int:
        return len(self.labels)


class _Labelled(DeterministicPolicy):
    """
    A policy whose steps are recorded, with a teacher's action for each.

    :param teacher: gives the labels
    :param acting: whose actions the environment gets; None for the teacher's
    """

    def __init__(self, teacher: DeterministicPolicy, acting: DeterministicPolicy | None):
        self._teacher, self._acting, self._targets = teacher, acting, []
        self.normalisation = teacher.normalisation
        self.steps: list[tuple[Any, Any, Any]] = []

    def begin_episode(self, env: gym.Env) -> None:
        self._teacher.begin_episode(env)
        if self._acting is not None:
            self._acting.begin_episode(env)

    def set_theta(self, theta: np.ndarray) -> None:
        """Both have their parameters."""

    def __call__(self, observation: Any) -> Any:
        label = np.array(self._teacher(observation))
        action = label if self._acting is None else np.array(self._acting(observation))
        self.steps.append((_copied(observation), action, label))
        return action if action.ndim else action[()]


def demonstrate(
    task: RolloutTask, seeds: Sequence[int], acting: DeterministicPolicy | None = None
) -> list[Demonstration]:
    """
    :param task: the environment, and the teacher
    :param seeds: one for each episode
    :param acting: whose actions the environment gets; None for the teacher's
    :return: an episode for each seed
    :raises EpisodeError: when an episode fails
    """
    found = []
    labelled = _Labelled(task.policy, acting)
    nobody = ExplicitPopulation(
        [np.zeros(1, dtype=np.float32)], names=["the teacher" if acting is None else "the student"]
    )
    with SerialEvaluator(replace(task, policy=labelled)) as evaluator:
        for seed in seeds:
            labelled.steps = []
            ((episode,),) = evaluator.evaluate(nobody, [[seed]])
            observations, actions, labels = zip(*labelled.steps, strict=True)
            found.append(Demonstration(list(observations), np.array(actions), np.array(labels), episode.episode_return))
    return found


def _copied(observation: Any) -> Any:
    """Environments reuse their arrays."""
    if isinstance(observation, dict):
        return {key: np.array(value) for key, value in observation.items()}
    return np.array(observation)


def stacked(observations: Sequence[Any]) -> Any:
    """
    :param observations: of single steps
    :return: the same as a batch
    """
    if isinstance(observations[0], dict):
        return {key: np.array([each[key] for each in observations]) for key in observations[0]}
    return np.array(observations)
