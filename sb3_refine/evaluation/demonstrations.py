"""Episodes step by step, with the action of a policy for each observation."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_refine.envs.observations import copied
from sb3_refine.errors import RefineError
from sb3_refine.evaluators import RolloutTask, SerialEvaluator
from sb3_refine.optimizers import ExplicitPopulation
from sb3_refine.policies.base import DeterministicPolicy
from sb3_refine.policies.general import as_vec_env_would


@dataclass(frozen=True)
class Demonstration:
    """
    An episode.

    :param observations: raw, in the dtype of their space, one for each step
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
    :param space: of the observations
    """

    def __init__(self, teacher: DeterministicPolicy, acting: DeterministicPolicy | None, space: spaces.Space):
        self._teacher, self._acting, self._space, self._targets = teacher, acting, space, []
        self.steps: list[tuple[Any, Any, Any]] = []

    def begin_episode(self, env: gym.Env) -> None:
        self._teacher.begin_episode(env)
        if self._acting is not None:
            self._acting.begin_episode(env)

    def set_theta(self, theta: np.ndarray) -> None:
        """Both have their parameters."""

    def __call__(self, observation: Any) -> Any:
        """Records copies: environments reuse their arrays, and change those that they get."""
        seen = copied(as_vec_env_would(observation, self._space))
        label = np.array(self._teacher(observation))
        action = label
        if self._acting is not None:
            action = np.array(self._acting(observation))
            self._teacher.note_action(action)
        self.steps.append((seen, action.copy(), label.copy()))
        return action if action.ndim else action[()]


def demonstrate(
    task: RolloutTask, space: spaces.Space, seeds: Sequence[int], acting: DeterministicPolicy | None = None
) -> list[Demonstration]:
    """
    :param task: the environment, and the teacher
    :param space: of the observations
    :param seeds: one for each episode
    :param acting: whose actions the environment gets; None for the teacher's
    :return: an episode for each seed
    :raises EpisodeError: when an episode fails
    :raises RefineError: when the teacher has NaN or infinite actions
    """
    found = []
    labelled = _Labelled(task.policy, acting, space)
    who = "the teacher" if acting is None else "the student"
    nobody = ExplicitPopulation([np.zeros(1, dtype=np.float32)], names=[who])
    with SerialEvaluator(replace(task, policy=labelled)) as evaluator:
        for seed in seeds:
            labelled.steps = []
            ((episode,),) = evaluator.evaluate(nobody, [[seed]])
            observations, actions, labels = zip(*labelled.steps, strict=True)
            if not np.isfinite(labels).all():
                raise RefineError(f"model: the agent has NaN or infinite actions in the episode with seed {seed}")
            found.append(Demonstration(list(observations), np.array(actions), np.array(labels), episode.episode_return))
    return found
