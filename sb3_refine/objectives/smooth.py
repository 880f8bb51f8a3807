"""The return with a penalty on jitter."""

from collections.abc import Sequence

import numpy as np

from sb3_refine.errors import RefineError
from sb3_refine.objectives.base import OBJECTIVE_METRIC, Objective, check_number, scale_of
from sb3_refine.rollouts.episode import Episode, Trajectory
from sb3_refine.rollouts.metrics import action_change


class Smooth(Objective):
    r"""
    Return minus a penalty on action differences, as in the loss of CAPS (Mysore et al., 2021,
    https://arxiv.org/abs/2012.06644, the term for temporal smoothness):

    .. math:: R - \lambda \, \bar R_0 \, c / c_0

    where :math:`c` is the mean :math:`|a_{t+1} - a_t|` of the episode, and :math:`c_0` that of the original.
    :math:`\bar R_0` is the original's mean return (its standard deviation if this is larger). So one :math:`\lambda`
    fits every environment: at 0.5, halving the action differences is worth a quarter of the return. Failing early must
    not count as smooth: if an episode fails before the original's mean length, its missing steps count with at least
    :math:`c_0`.

    :param weight: :math:`\lambda`
    """

    needs_trajectory = True
    needs_baseline = True

    def __init__(self, weight: float = 0.5):
        self.weight = check_number("weight", weight, 0.0)
        self.price = self.change = self.length = np.nan

    def measure(self, trajectory: Trajectory) -> float:
        """:return: mean action difference"""
        return action_change(trajectory)

    def calibrate(self, baseline: Sequence[Episode]) -> None:
        """
        :param baseline: gives the units
        :raises RefineError: when the original's actions never change, or its return is always 0
        """
        self.change = float(np.mean([episode.metrics[OBJECTIVE_METRIC] for episode in baseline]))
        self.length = float(np.mean([episode.length for episode in baseline]))
        if self.change == 0:
            raise RefineError("objective: smooth: the original's actions never change; use `objective='return'`")
        self.price = self.weight * scale_of(baseline) / self.change

    def fitness(self, episode: Episode) -> float:
        """:return: the return minus the penalty"""
        change = episode.metrics.get(OBJECTIVE_METRIC, np.nan)
        if episode.failed:
            lacking = max(0.0, 1 - episode.length / self.length)
            change += lacking * max(0.0, self.change - change)
        return episode.episode_return - self.price * change
