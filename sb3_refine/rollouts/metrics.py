"""
Figures of one episode beside its return.

A metric is a function of a :class:`~sb3_refine.rollouts.episode.Trajectory`. The worker that runs the episode computes
it, and the value is in ``episode.metrics`` under the name of the metric.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from sb3_refine.errors import RefineError
from sb3_refine.rollouts.episode import Trajectory
from sb3_refine.rollouts.mesh_dimension import mesh_dimension

Metric = Callable[[Trajectory], Any]


def action_change(trajectory: Trajectory) -> float:
    r"""
    Mean :math:`|a_{t+1} - a_t|` over steps and actions, in units of half the range of each action; for actions that are
    not continuous, the share of the steps in which they change.

    :param trajectory: of an episode
    :return: 0 for a constant action, at most 2
    """
    changes = np.diff(_actions(trajectory), axis=0)
    if trajectory.action_range is None:
        changes = np.any(changes != 0, axis=1)
    return float(np.mean(np.abs(changes))) if len(changes) else 0.0


def action_jerk(trajectory: Trajectory) -> float:
    """
    Root mean square of the third differences of the actions, in the units of :func:`action_change` per step cubed.

    :param trajectory: of an episode
    :return: 0 for actions that change evenly; NaN for actions that are not continuous
    """
    if trajectory.action_range is None:
        return np.nan
    jerk = np.diff(_actions(trajectory), n=3, axis=0)
    return float(np.sqrt(np.mean(np.square(jerk)))) if len(jerk) else 0.0


def high_frequency_share(trajectory: Trajectory) -> float:
    """
    Share of the actions' power at frequencies above a quarter of the control rate, without their mean.

    :param trajectory: of an episode
    :return: between 0 and 1; 0 for a constant action, about a half for white noise; NaN for actions that are not
        continuous
    """
    if trajectory.action_range is None:
        return np.nan
    actions = _actions(trajectory)
    if len(actions) < 4:
        return 0.0
    power = np.square(np.abs(np.fft.rfft(actions - actions.mean(axis=0), axis=0)))
    power[1 : (len(actions) + 1) // 2] *= 2  # count the negative frequencies, too
    frequencies = np.fft.rfftfreq(len(actions))  # in units of the control rate
    total = power.sum()
    return float(power[frequencies > 0.25].sum() / total) if total > 0 else 0.0


def mean_mesh_dimension(trajectory: Trajectory) -> float:
    """
    Mean of the bounds of the mesh dimension of the observations as the policy sees them.

    :param trajectory: of an episode
    :return: see :func:`~sb3_refine.rollouts.mesh_dimension.mesh_dimension`; NaN where there is no motion to measure
    :raises RefineError: when the observations are images
    """
    if trajectory.seen.shape[1] == 0:
        raise RefineError("images (observations of three axes) have no mesh dimension")
    found = mesh_dimension(trajectory.seen[1:])
    return found.mean if found.mesh_sizes.size else np.nan


def observation_range(trajectory: Trajectory) -> np.ndarray:
    """
    :param trajectory: of an episode
    :return: lowest and highest value of every raw observation, shape ``(2, n_observed)``
    """
    return np.array([trajectory.observations.min(axis=0), trajectory.observations.max(axis=0)])


def tail_mean(returns: np.ndarray, share: float = 0.1, axis: int = -1) -> np.ndarray:
    """
    :param returns: of episodes
    :param share: of the episodes that count as the worst; at least one episode does
    :param axis: of the episodes
    :return: mean of the worst returns, the conditional value at risk; NaN where a return is NaN
    """
    n_worst = max(1, round(share * returns.shape[axis]))
    worst = np.sort(returns, axis=axis).take(range(n_worst), axis=axis)
    return np.where(np.isnan(returns).any(axis=axis), np.nan, worst.mean(axis=axis))


SMOOTHNESS = ("action_change", "action_jerk", "high_frequency_share")

METRICS: dict[str, Metric] = {
    "action_change": action_change,
    "action_jerk": action_jerk,
    "high_frequency_share": high_frequency_share,
    "mesh_dimension": mean_mesh_dimension,
    "observation_range": observation_range,
    "trajectory": lambda trajectory: trajectory,
}
"""The metrics that every evaluator can compute, by name. ``trajectory`` is the trajectory itself."""


def _actions(trajectory: Trajectory) -> np.ndarray:
    if trajectory.action_range is None:
        return trajectory.actions.astype(np.float64)
    span = trajectory.action_range
    return trajectory.actions / np.where(np.isfinite(span) & (span > 0), span / 2, 1.0)
