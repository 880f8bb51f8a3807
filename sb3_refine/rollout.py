"""One deterministic episode."""

from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym


class Episode(NamedTuple):
    """
    What one episode came to.

    :param episode_return: undiscounted sum of the true (unnormalised) rewards, summed in float64
    :param length: number of environment steps
    :param terminated: whether the episode ended by termination, not by the time limit
    """

    episode_return: float
    length: int
    terminated: bool


def rollout(policy: Callable[[Any], Any], env: gym.Env, seed: int) -> Episode:
    """
    Run one episode from a seeded reset until it terminates or is truncated.

    :param policy: maps an observation of ``env`` to the deterministic (maximum-likelihood) action
    :param env: the raw environment: no ``VecEnv``, no ``Monitor``
    :param seed: passed to ``env.reset``
    :return: the episode's return, length and end
    """
    observation, _ = env.reset(seed=seed)
    episode_return, length = 0.0, 0
    while True:
        observation, reward, terminated, truncated, _ = env.step(policy(observation))
        episode_return += float(reward)
        length += 1
        if terminated or truncated:
            return Episode(episode_return, length, bool(terminated))
