"""One deterministic episode."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from sb3_refine.environments import is_failure


class Episode(NamedTuple):
    """
    What one episode came to.

    :param episode_return: undiscounted sum of the true (unnormalised) rewards, summed in float64; NaN where a reward or
        an observation was NaN or infinite
    :param length: number of environment steps
    :param failed: whether the episode ended by a termination that is a failure, see
        :func:`~sb3_refine.environments.is_failure`
    """

    episode_return: float
    length: int
    failed: bool


def rollout(policy: Callable[[Any], Any], env: gym.Env, seed: int) -> Episode:
    """
    Run one episode from a seeded reset until it terminates or is truncated.

    :param policy: maps an observation of ``env`` to the deterministic (maximum-likelihood) action
    :param env: the raw environment: no ``VecEnv``, no ``Monitor``
    :param seed: passed to ``env.reset``
    :return: the episode's return, length and end
    """
    observation, _ = env.reset(seed=seed)
    watch = _FiniteWatch(observation)
    add = watch.add
    episode_return, length = 0.0, 0
    while True:
        observation, reward, terminated, truncated, info = env.step(policy(observation))
        episode_return += float(reward)
        length += 1
        add(observation)
        if terminated or truncated:
            if not (watch.all_finite() and math.isfinite(episode_return)):
                episode_return = math.nan
            failed = bool(terminated) and is_failure(env.spec.id if env.spec else None, float(reward), info)
            return Episode(episode_return, length, failed)


class _FiniteWatch:
    """Sums the observations of an episode: a NaN or an infinity stays in a sum. Integers cannot hold either."""

    def __init__(self, observation: Any):
        parts = observation if isinstance(observation, dict) else {None: observation}
        floats = {key: part for key, part in parts.items() if np.asarray(part).dtype.kind == "f"}
        self._sums = {key: np.array(part, dtype=np.float64) for key, part in floats.items()}
        # in the loop, a call that does the least
        self.add = self._add_entries if isinstance(observation, dict) or not floats else self._sums[None].__iadd__

    def _add_entries(self, observation: Any) -> None:
        for key, total in self._sums.items():
            np.add(total, observation[key], out=total)

    def all_finite(self) -> bool:
        return all(np.isfinite(total).all() for total in self._sums.values())
