"""One deterministic episode."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np

from sb3_refine.environments import is_failure
from sb3_refine.episode import Episode, Normalisation, Recording
from sb3_refine.measures import Measure
from sb3_refine.policies import DeterministicPolicy
from sb3_refine.wrappers import RETURN_KEY, counts_true_return


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
    success = bool(info["is_success"]) if "is_success" in info else None
    return Episode(episode_return, length, failed, success)


def measured_rollout(
    policy: DeterministicPolicy,
    env: gym.Env,
    seed: int,
    measures: Mapping[str, Measure],
    normalisation: Normalisation | None,
) -> Episode:
    """
    Run one episode as :func:`rollout` does, and keep its trajectory for as long as it takes to measure it.

    :param policy: see :func:`rollout`
    :param env: see :func:`rollout`
    :param seed: see :func:`rollout`
    :param measures: what to compute from the trajectory, by name
    :param normalisation: of the observations, or None
    :return: the episode, with ``measures`` unless it is invalid
    """
    recording = Recording(env)
    episode = rollout(policy, recording, seed)
    if math.isnan(episode.episode_return):
        return episode
    trajectory = recording.trajectory(episode.failed, normalisation)
    return episode._replace(measures={name: _plain(measure(trajectory)) for name, measure in measures.items()})


def _plain(value: Any) -> Any:
    """numpy's single numbers as Python's, which checkpoints can hold."""
    return value.item() if isinstance(value, np.generic) else value


def _zero(observation: Any) -> Callable[[Any], Any]:
    """A function that is 0 for finite observations and NaN for all others: 0 times NaN or infinity is NaN."""
    if isinstance(observation, dict):
        parts = {key: _zero(part) for key, part in observation.items()}
        return lambda observation: sum(part(observation[key]) for key, part in parts.items())
    values = np.asarray(observation)
    if values.dtype.kind != "f":  # integers hold neither
        return lambda observation: 0.0
    return np.zeros_like(values).dot if values.ndim == 1 else partial(np.vdot, np.zeros_like(values))
