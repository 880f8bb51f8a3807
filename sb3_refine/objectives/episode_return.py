"""The return itself."""

from sb3_refine.episode import Episode
from sb3_refine.objectives.base import Objective


class Return(Objective):
    """The undiscounted sum of the true rewards."""

    def fitness(self, episode: Episode) -> float:
        """:return: the episode's return"""
        return episode.episode_return
