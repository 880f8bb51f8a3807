"""One deterministic episode."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from sb3_refine.environments import is_failure
from sb3_refine.policies import DeterministicPolicy
from sb3_refine.wrappers import RETURN_KEY, counts_true_return


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


def rollout(policy: DeterministicPolicy, env: gym.Env, seed: int) -> Episode:
    """
    Run one episode from a seeded reset until it terminates or is truncated.

    :param policy: maps an observation of ``env`` to the deterministic (maximum-likelihood) action
    :param env: the raw environment: no ``VecEnv``, no ``Monitor``
    :param seed: passed to ``env.reset``
    :return: the episode's return, length and end
    """
    observation, _ = env.reset(seed=seed)
    policy.begin_episode(env)
    zero, counted = _zero(observation), counts_true_return(env)
    episode_return, length, done = 0.0, 0, False
    with np.errstate(invalid="ignore"):  # 0 times infinity
        episode_return += float(zero(observation))
        try:
            while not done:
                while not done:
                    observation, reward, terminated, truncated, info = env.step(policy(observation))
                    episode_return += float(reward) + float(zero(observation))
                    length += 1
                    done = terminated or truncated
                if counted and RETURN_KEY not in info:  # a wrapper ended it, such as when a life is lost
                    observation, _ = env.reset()
                    done = False
        except Exception:
            if math.isfinite(episode_return):
                raise
            return Episode(math.nan, length, False)  # choked on what came of its own NaN
    if not math.isfinite(episode_return):
        episode_return = math.nan
    elif counted:
        episode_return = info[RETURN_KEY]
    failed = bool(terminated) and is_failure(env.spec.id if env.spec else None, float(reward), info)
    return Episode(episode_return, length, failed)


def _zero(observation: Any) -> Callable[[Any], Any]:
    """A function that is 0 for finite observations and NaN for all others: 0 times NaN or infinity is NaN."""
    if isinstance(observation, dict):
        parts = {key: _zero(part) for key, part in observation.items()}
        return lambda observation: sum(part(observation[key]) for key, part in parts.items())
    values = np.asarray(observation)
    if values.dtype.kind != "f":  # integers hold neither
        return lambda observation: 0.0
    return np.zeros_like(values).dot if values.ndim == 1 else partial(np.vdot, np.zeros_like(values))
