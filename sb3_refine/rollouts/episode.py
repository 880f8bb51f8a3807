"""The result of an episode, and its steps, which are recorded only where a metric needs them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

N_ENV_STEPS = "n_env_steps"
"""Metric of an episode that others had to run for: the environment steps of all of them."""


class Episode(NamedTuple):
    """
    The result of one episode.

    :param episode_return: undiscounted sum of the true (unnormalised) rewards, summed in float64; NaN where a reward or
        an observation was NaN or infinite
    :param length: number of environment steps
    :param failed: whether the episode ended by a termination that is a failure, see
        :func:`~sb3_refine.envs.families.is_failure`
    :param success: ``is_success`` of the last ``info``, or None where the environment does not report it
    :param metrics: further figures by name, see :mod:`sb3_refine.rollouts.metrics`
    """

    episode_return: float
    length: int
    failed: bool
    success: bool | None = None
    metrics: dict[str, Any] = {}  # noqa: RUF012 - never changed

    @property
    def n_env_steps(self) -> int:
        """Environment steps that the episode has cost: its length, unless others had to run for it."""
        return int(self.metrics.get(N_ENV_STEPS, self.length))


@dataclass(frozen=True)
class Trajectory:
    """
    The steps of one episode.

    :param observations: raw, with that of the reset, shape ``(n_steps + 1, n_observed)``. Of ``Dict`` observations, the
        ``observation`` entry, or all entries one after the other; nothing of images
    :param seen: the observations as the policy sees them: normalised where it normalises
    :param actions: as the policy gave them, shape ``(n_steps, n_actions)``
    :param rewards: of the environment itself, without changes by wrappers of the agent, shape ``(n_steps,)``
    :param action_range: ``high - low`` of each action, or None where actions are not continuous
    :param failed: whether the episode ended by a failure
    :param task: the parameters of the episode's task by name, see :mod:`sb3_refine.tasks`; empty without tasks
    """

    observations: np.ndarray
    seen: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    action_range: np.ndarray | None
    failed: bool = False
    task: Mapping[str, Any] = field(default_factory=dict)
