"""One deterministic episode."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_refine.envs.families import is_failure
from sb3_refine.envs.wrappers import true_return_of
from sb3_refine.errors import EpisodeError, RefineError
from sb3_refine.policies.base import DeterministicPolicy
from sb3_refine.rollouts.episode import Episode
from sb3_refine.rollouts.metrics import Metric
from sb3_refine.rollouts.recording import Recording

_MAX_CUTS = 1000  # of one episode by wrappers; games have a few lives


def rollout(policy: DeterministicPolicy, env: gym.Env, seed: int) -> Episode:
    """
    Run one episode from a seeded reset until it terminates or is truncated.

    :param policy: maps an observation of ``env`` to the deterministic (maximum-likelihood) action
    :param env: the raw environment: no ``VecEnv``, no ``Monitor``
    :param seed: passed to ``env.reset``
    :return: the episode's return, length and end
    :raises RefineError: when wrappers end the episode many times but the environment never does
    """
    observation, _ = env.reset(seed=seed)
    policy.begin_episode(env)
    zero, true_return = _zero(observation, env.observation_space), true_return_of(env)
    episode_return, length, n_cuts, done = 0.0, 0, 0, False
    with np.errstate(invalid="ignore"):  # 0 times infinity
        episode_return += float(zero(observation))
        try:
            while not done:
                while not done:
                    observation, reward, terminated, truncated, info = env.step(policy(observation))
                    episode_return += float(reward) + float(zero(observation))
                    length += 1
                    done = terminated or truncated
                if (
                    true_return is not None and not true_return.has_ended
                ):  # a wrapper ended the episode, as when a life is lost
                    n_cuts += 1
                    _check_cuts(n_cuts, env)
                    observation, _ = env.reset()
                    policy.begin_episode(env)
                    done = False
        except (RefineError, EpisodeError):
            raise
        except Exception:
            if math.isfinite(episode_return):
                raise
            return Episode(math.nan, length, False)  # the environment raised after a non-finite value
    if true_return is not None and math.isfinite(episode_return):
        episode_return, reward = true_return.episode_return, true_return.last_reward
    if not math.isfinite(episode_return):
        episode_return = math.nan
    failed = bool(terminated) and is_failure(env.spec.id if env.spec else None, float(reward), info)
    success = bool(info["is_success"]) if "is_success" in info else None
    return Episode(episode_return, length, failed, success)


def rollout_with_metrics(
    policy: DeterministicPolicy,
    env: gym.Env,
    seed: int,
    metrics: Mapping[str, Metric],
) -> Episode:
    """
    Run one episode as :func:`rollout` does, and compute metrics from its steps.

    :param policy: see :func:`rollout`
    :param env: see :func:`rollout`
    :param seed: see :func:`rollout`
    :param metrics: functions of the trajectory, by name; without any, no trajectory is kept
    :return: the episode, with ``metrics`` unless it is invalid
    """
    if not metrics:
        return rollout(policy, env, seed)
    recording = Recording(env)
    episode = rollout(policy, recording, seed)
    if math.isnan(episode.episode_return):
        return episode
    trajectory = recording.trajectory(episode.failed, policy.normalisation)
    return episode._replace(metrics={name: _plain(metric(trajectory)) for name, metric in metrics.items()})


def _check_cuts(n_cuts: int, env: gym.Env) -> None:
    if n_cuts > _MAX_CUTS:
        raise RefineError(
            f"env_wrapper: a wrapper has ended an episode {_MAX_CUTS} times, and the environment itself never did: "
            f"set the time limit (max_episode_steps) in `env_kwargs`, not by a wrapper ({env})"
        )


def _plain(value: Any) -> Any:
    """numpy's scalars as Python numbers, which checkpoints can store."""
    return value.item() if isinstance(value, np.generic) else value


def _zero(observation: Any, space: spaces.Space) -> Callable[[Any], Any]:
    """A function that is 0 for finite observations and NaN for others, since 0 times NaN or infinity is NaN."""
    if isinstance(observation, dict):
        assert isinstance(space, spaces.Dict)
        parts = {key: _zero(observation[key], part) for key, part in space.spaces.items()}
        return lambda observation: sum(part(observation[key]) for key, part in parts.items())
    values = np.asarray(observation)
    if values.dtype.kind != "f" and np.dtype(space.dtype).kind != "f":  # integers are finite
        return lambda observation: 0.0
    zeros = np.zeros(values.shape, dtype=values.dtype if values.dtype.kind == "f" else np.float64)
    return zeros.dot if values.ndim == 1 else partial(np.vdot, zeros)
