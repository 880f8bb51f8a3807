"""Observations: copies, batches, the part that trajectories keep, and its frozen normalisation."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from gymnasium import spaces

if TYPE_CHECKING:  # workers need not import Stable-Baselines3
    from stable_baselines3.common.vec_env import VecNormalize


class Normalisation(NamedTuple):
    """
    Frozen observation statistics of the part of an observation that trajectories keep.

    :param mean: shape ``(n_observed,)``
    :param std: same shape; 1 where nothing is normalised
    :param clip: normalised entries are clipped to plus and minus this, same shape
    """

    mean: np.ndarray
    std: np.ndarray
    clip: np.ndarray

    def __call__(self, observations: np.ndarray) -> np.ndarray:
        """:return: observations as the policy sees them"""
        return np.clip((observations - self.mean) / self.std, -self.clip, self.clip)


def observed_keys(space: Any) -> list[str]:
    """
    :param space: a ``Dict`` space
    :return: the entries that trajectories keep: the ``observation`` entry where there are goals, else all
    """
    return ["observation"] if "observation" in space.spaces else list(space.spaces)


def flattened(observation: Any, keys: list[str] | None = None) -> np.ndarray:
    """
    :param observation: one observation
    :param keys: of a ``Dict`` observation, those to keep, in order
    :return: a copy of what trajectories keep of it, shape ``(n_observed,)``
    """
    if keys is not None:
        return np.concatenate([flattened(observation[key]) for key in keys])
    values = np.array(observation)
    return np.empty(0, dtype=values.dtype) if values.ndim >= 3 else values.ravel()


def n_observed(space: spaces.Space) -> int:
    """
    :param space: of observations
    :return: how many numbers trajectories keep of each
    """
    if isinstance(space, spaces.Dict):
        return sum(n_observed(space[key]) for key in observed_keys(space))
    return flattened(space.sample()).size


def normalisation_of(vec_normalize: "VecNormalize | None", space: spaces.Space) -> Normalisation | None:
    """
    :param vec_normalize: statistics of an agent, or None
    :param space: observation space of its raw environment
    :return: those of what trajectories keep
    """
    if vec_normalize is None or not vec_normalize.norm_obs:
        return None
    keys = observed_keys(space) if isinstance(space, spaces.Dict) else [None]
    parts = [normalisation_of_entry(vec_normalize, space, key) for key in keys]
    return Normalisation(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def normalisation_of_entry(vec_normalize: "VecNormalize", space: Any, key: str | None) -> Normalisation:
    """
    :param vec_normalize: statistics of an agent
    :param space: observation space of its raw environment
    :param key: of a ``Dict`` observation; None for a plain one
    :return: of that entry
    """
    rms: Any = vec_normalize.obs_rms
    if key is not None:
        space, rms = space[key], rms.get(key)
    size = n_observed(space)
    if rms is None or size == 0:
        return Normalisation(np.zeros(size), np.ones(size), np.full(size, np.inf))
    std = np.sqrt(rms.var + vec_normalize.epsilon).ravel()
    return Normalisation(rms.mean.ravel().copy(), std, np.full(size, vec_normalize.clip_obs))


def copied(observation: Any) -> Any:
    """
    :param observation: of an environment, which may change it later
    :return: a copy
    """
    if isinstance(observation, dict):
        return {key: copied(value) for key, value in observation.items()}
    return np.array(observation)


def stacked(observations: Sequence[Any]) -> Any:
    """
    :param observations: of single steps
    :return: the same as a batch
    """
    if isinstance(observations[0], dict):
        return {key: np.array([each[key] for each in observations]) for key in observations[0]}
    return np.array(observations)
