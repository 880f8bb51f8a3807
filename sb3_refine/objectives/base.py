"""What every objective has in common."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from sb3_refine.episode import Episode, Trajectory

MEASURE = "objective"
"""Name under which an episode's ``measures`` hold what :meth:`Objective.measure` gave."""


class Objective(ABC):
    """
    What is maximised: maps an episode to a fitness. Its mean over seeds is what the search and the verdict go by.

    Workers compute :meth:`measure`, where an objective needs the trajectory; the rest is arithmetic on figures of the
    episode. The raw return is always kept beside the fitness.
    """

    needs_trajectory: ClassVar[bool] = False
    """Whether :meth:`measure` is wanted. Where not, no trajectory is ever kept."""

    needs_baseline: ClassVar[bool] = False
    """Whether :meth:`calibrate` is wanted also where nothing is judged on held-out seeds."""

    def measure(self, trajectory: Trajectory) -> float:
        """
        :param trajectory: of one episode
        :return: what :meth:`fitness` finds in the episode's ``measures``
        """
        raise NotImplementedError

    def calibrate(self, baseline: Sequence[Episode]) -> None:  # noqa: B027
        """
        Settle, once and before the search, what depends on the agent.

        :param baseline: episodes of the original on validation seeds
        :raises RefineError: when the objective does not fit the agent
        """

    @abstractmethod
    def fitness(self, episode: Episode) -> float:
        """
        :param episode: one episode
        :return: higher is better; NaN for an invalid episode
        """
