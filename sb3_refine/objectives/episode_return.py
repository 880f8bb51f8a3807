"""The return itself."""

from sb3_refine.objectives.base import Objective
from sb3_refine.rollouts.episode import Episode


class Return(Objective):
    """The undiscounted sum of the true rewards."""

    @property
    def name(self) -> str:
        """As on the command line: what is said of the return is not said of it as an objective again."""
        return "return"

    def fitness(self, episode: Episode) -> float:
        """:return: the episode's return"""
        return episode.episode_return
