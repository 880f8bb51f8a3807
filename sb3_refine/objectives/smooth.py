"""The return, with jitter paid for."""

from collections.abc import Sequence

import numpy as np

from sb3_refine.errors import RefineError
from sb3_refine.objectives.base import MEASURE, Objective, check_number, scale_of
from sb3_refine.rollouts.episode import Episode, Trajectory
from sb3_refine.rollouts.metrics import action_change


class Smooth(Objective):
    r"""
    Return less a penalty on action differences, as CAPS has it in its loss (Mysore et al., 2021,
    https://arxiv.org/abs/2012.06644, Eq. 1):

    .. math:: R - \lambda \, \bar R_0 \, c / c_0

    with :math:`c` the mean :math:`|a_{t+1} - a_t|` of the episode. It is counted in units of the original's,
    :math:`c_0`, and the return in units of the original's mean, :math:`\bar R_0` (its
    standard deviation where that is larger), so that one :math:`\lambda` serves every environment: at 0.5, to halve the
    action differences is worth a quarter of the return. To fall at once is no way to be smooth: steps that an episode
    lacks to the original's mean length because it fails count with at least :math:`c_0`.

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
        :param baseline: settles the units
        :raises RefineError: where the original's actions never change, or its return is always 0
        """
        self.change = float(np.mean([episode.measures[MEASURE] for episode in baseline]))
        self.length = float(np.mean([episode.length for episode in baseline]))
        if self.change == 0:
            raise RefineError("objective: smooth: the original's actions never change; use --objective return")
        self.price = self.weight * scale_of(baseline) / self.change

    def fitness(self, episode: Episode) -> float:
        """:return: the return, less the price of the action differences"""
        change = episode.measures.get(MEASURE, np.nan)
        if episode.failed:
            lacking = max(0.0, 1 - episode.length / self.length)
            change += lacking * max(0.0, self.change - change)
        return episode.episode_return - self.price * change
