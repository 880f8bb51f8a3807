"""What an episode came to, and what happened in it step by step: recorded only where something asks for it."""

from dataclasses import dataclass
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


class Episode(NamedTuple):
    """
    What one episode came to.

    :param episode_return: undiscounted sum of the true (unnormalised) rewards, summed in float64; NaN where a reward or
        an observation was NaN or infinite
    :param length: number of environment steps
    :param failed: whether the episode ended by a termination that is a failure, see
        :func:`~sb3_refine.environments.is_failure`
    :param success: ``is_success`` of the last ``info``, or None where the environment does not report it
    :param measures: what else was asked for, by name, see :mod:`sb3_refine.measures`
    """

    episode_return: float
    length: int
    failed: bool
    success: bool | None = None
    measures: dict[str, Any] = {}  # noqa: RUF012 - never written to


@dataclass(frozen=True)
class Trajectory:
    """
    The steps of one episode.

    :param observations: raw, with that of the reset, shape ``(n_steps + 1, n_observed)``. Of ``Dict`` observations, the
        ``observation`` entry, or all entries one after the other; nothing of images
    :param actions: as the policy gave them, shape ``(n_steps, n_actions)``
    :param rewards: the environment's own, whatever wrappers of the agent make of them, shape ``(n_steps,)``
    :param action_range: ``high - low`` of each action, or None where actions are not continuous
    :param failed: whether the episode ended by a failure
    :param normalisation: of the observations, or None
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    action_range: np.ndarray | None
    failed: bool = False
    normalisation: Normalisation | None = None

    @property
    def seen(self) -> np.ndarray:
        """The observations as the policy sees them: normalised where it normalises."""
        return self.observations if self.normalisation is None else self.normalisation(self.observations)


def observed_keys(space: Any) -> list[str]:
    """
    :param space: a ``Dict`` space
    :return: the entries that trajectories keep: what is sensed, where that is told from goals
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
    parts = [_part(vec_normalize, space, key) for key in keys]
    return Normalisation(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _part(vec_normalize: "VecNormalize", space: Any, key: str | None) -> Normalisation:
    rms: Any = vec_normalize.obs_rms
    if key is not None:
        space, rms = space[key], rms.get(key)
    size = n_observed(space)
    if rms is None or size == 0:
        return Normalisation(np.zeros(size), np.ones(size), np.full(size, np.inf))
    std = np.sqrt(rms.var + vec_normalize.epsilon).ravel()
    return Normalisation(rms.mean.ravel().copy(), std, np.full(size, vec_normalize.clip_obs))
