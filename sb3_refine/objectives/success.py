"""How often the goal is reached."""

from collections.abc import Sequence

import numpy as np

from sb3_refine.errors import RefineError
from sb3_refine.objectives.base import Objective
from sb3_refine.rollouts.episode import Episode


class Success(Objective):
    """1 for an episode whose last ``info`` says ``is_success``, else 0."""

    needs_baseline = True

    def calibrate(self, baseline: Sequence[Episode]) -> None:
        """
        :param baseline: shows whether the environment reports success
        :raises RefineError: where it does not
        """
        if all(episode.success is None for episode in baseline):
            raise RefineError(
                "objective: success: the environment reports no is_success in its info, in none of "
                f"{len(baseline)} validation episodes of the original; use another objective"
            )

    def fitness(self, episode: Episode) -> float:
        """:return: whether the episode was a success"""
        return float(bool(episode.success)) if np.isfinite(episode.episode_return) else np.nan
