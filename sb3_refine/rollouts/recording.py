"""A wrapper that keeps the steps of an episode."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_refine.envs.observations import Normalisation, flattened, observed_keys
from sb3_refine.envs.task_env import task_env_of
from sb3_refine.envs.wrappers import true_return_of
from sb3_refine.rollouts.episode import Trajectory


class Recording(gym.Wrapper):
    """
    Records observations, actions and rewards.

    :param env: the environment as the policy sees it
    """

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self._true_return, self._task_env = true_return_of(env), task_env_of(env)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """:return: the observation and info; a reset without a seed, as after a lost life, continues the recording"""
        observation, info = self.env.reset(**kwargs)
        if kwargs.get("seed") is not None:
            self._keys = observed_keys(self.observation_space) if isinstance(observation, dict) else None
            self.observations: list[np.ndarray] = [flattened(observation, self._keys)]
            self.actions: list[np.ndarray] = []
            self.rewards: list[float] = []
            self.task = {} if self._task_env is None else self._task_env.task.parameters
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """:return: the result of the step"""
        self.actions.append(np.array(action).ravel())  # copied: policies and environments reuse their arrays
        if self._true_return is not None:
            self._true_return.unread = 0.0
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.observations.append(flattened(observation, self._keys))
        self.rewards.append(float(reward) if self._true_return is None else self._true_return.unread)
        return observation, reward, terminated, truncated, info

    def trajectory(self, failed: bool, normalisation: Normalisation | None) -> Trajectory:
        """
        :param failed: whether the episode ended by a failure
        :param normalisation: of the observations, or None
        :return: the episode since the last seeded reset; its arrays are read-only
        """
        space = self.action_space
        observations, actions, rewards = map(np.array, (self.observations, self.actions, self.rewards))
        seen = observations if normalisation is None else normalisation(observations)
        for array in (observations, seen, actions, rewards):
            array.setflags(write=False)  # all metrics of an episode use the same trajectory
        return Trajectory(
            observations=observations,
            seen=seen,
            actions=actions,
            rewards=rewards,
            action_range=(space.high - space.low).ravel() if isinstance(space, spaces.Box) else None,
            failed=failed,
            task=self.task,
        )
