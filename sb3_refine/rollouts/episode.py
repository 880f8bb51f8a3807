"""The result of an episode, and its steps: recorded only where something asks for them."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


class Episode(NamedTuple):
    """
    What one episode came to.

    :param episode_return: undiscounted sum of the true (unnormalised) rewards, summed in float64; NaN where a reward or
        an observation was NaN or infinite
    :param length: number of environment steps
    :param failed: whether the episode ended by a termination that is a failure, see
        :func:`~sb3_refine.envs.families.is_failure`
    :param success: ``is_success`` of the last ``info``, or None where the environment does not report it
    :param measures: what else was asked for, by name, see :mod:`sb3_refine.rollouts.metrics`
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
    :param seen: the observations as the policy sees them: normalised where it normalises
    :param actions: as the policy gave them, shape ``(n_steps, n_actions)``
    :param rewards: the environment's own, whatever wrappers of the agent make of them, shape ``(n_steps,)``
    :param action_range: ``high - low`` of each action, or None where actions are not continuous
    :param failed: whether the episode ended by a failure
    """

    observations: np.ndarray
    seen: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    action_range: np.ndarray | None
    failed: bool = False
