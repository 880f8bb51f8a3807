"""The return, with failures paid for."""

import logging
from collections.abc import Sequence

import numpy as np

from sb3_refine.objectives.base import Objective, check_number, scale_of
from sb3_refine.rollouts.episode import Episode

logger = logging.getLogger(__name__)


class Survival(Objective):
    r"""
    Failure-averse return: :math:`R - \lambda` for an episode that fails, so that the mean is the mean return less
    :math:`\lambda` times the failure rate.

    :param weight: :math:`\lambda` in units of the original's mean return, or of its standard deviation where that is
        larger
    """

    needs_baseline = True

    def __init__(self, weight: float = 1.0):
        self.weight = check_number("weight", weight, 0.0)
        self.penalty = np.nan

    def calibrate(self, baseline: Sequence[Episode]) -> None:
        """
        :param baseline: settles the unit
        :raises RefineError: where the original's return is always 0
        """
        self.penalty = self.weight * scale_of(baseline)
        if not any(episode.failed for episode in baseline):
            logger.warning(
                "objective: survival: the original failed in none of %d validation episodes; where nothing fails, this "
                "is the return",
                len(baseline),
            )

    def fitness(self, episode: Episode) -> float:
        """:return: the return, less the penalty for a failure"""
        return episode.episode_return - self.penalty * episode.failed
