"""What every objective has in common."""

import inspect
import re
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from sb3_refine.errors import RefineError
from sb3_refine.rollouts.episode import Episode, Trajectory

MEASURE = "objective"
"""Name under which an episode's ``measures`` hold what :meth:`Objective.measure` gave."""


class Objective(ABC):
    """
    What is maximised: maps an episode to a fitness. Its mean over seeds is what the verdict goes by.

    Workers compute :meth:`measure`, where an objective needs the trajectory; the rest is arithmetic on figures of the
    episode. The raw return is always kept beside the fitness.
    """

    needs_trajectory: ClassVar[bool] = False
    """Whether :meth:`measure` is wanted. Where not, no trajectory is ever kept."""

    needs_baseline: ClassVar[bool] = False
    """Whether :meth:`calibrate` is wanted also where nothing is judged on held-out seeds."""

    verdict_note: ClassVar[str] = ""
    """What a reader of the verdict has to know of the mean fitness, put behind the name."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that episodes must have."""
        return (MEASURE,) if self.needs_trajectory else ()

    @property
    def name(self) -> str:
        """What to call it: also that by which an interrupted search knows its objective again."""
        options = {} if type(self).__init__ is object.__init__ else inspect.signature(type(self)).parameters
        values = {option: getattr(self, option) for option in options if hasattr(self, option)}
        given = ",".join(f"{option}={value}" for option, value in values.items() if not inspect.ismethod(value))
        given = re.sub(" at 0x[0-9a-fA-F]+", "", given)  # of functions and objects, different in every process
        return f"{type(self).__name__}:{given}" if given else type(self).__name__

    def measure(self, trajectory: Trajectory) -> float:
        """
        What workers compute; they do not know what :meth:`calibrate` settles.

        :param trajectory: of one episode
        :return: one number, which :meth:`fitness` finds in the episode's ``measures``
        """
        raise NotImplementedError

    def checked_measure(self, trajectory: Trajectory) -> float:
        """
        :param trajectory: of one episode
        :return: what :meth:`measure` gives; NaN for infinity
        :raises RefineError: when that is no number
        """
        found = self.measure(trajectory)
        try:
            if isinstance(found, (str, bytes)):
                raise TypeError  # also where it reads as a number
            value = float(found)
        except (TypeError, ValueError, OverflowError):
            what = reprlib.repr(found)
            raise RefineError(f"objective: {self.name} returned {what}; it must return a number") from None
        return value if np.isfinite(value) else np.nan

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

    def of_population(self, episodes: Sequence[Sequence[Episode]]) -> np.ndarray:
        """
        :param episodes: of each candidate of one update
        :return: what the search maximises: the mean fitness of each candidate, NaN where it has an invalid episode
        """
        return np.array([np.mean([self.fitness(episode) for episode in own]) for own in episodes])

    def of_episodes(self, episodes: Sequence[Episode]) -> float:
        """
        :param episodes: of one policy
        :return: what the choice among policies goes by; the mean fitness, unless an objective is one of several
            episodes
        """
        return float(np.mean([self.fitness(episode) for episode in episodes]))

    def figures(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """
        What a reader wants to know beside the mean fitness, before and after.

        :param episodes: of one policy
        :return: figures by what to call them
        """
        return {}


def returns_of(episodes: Sequence[Episode]) -> np.ndarray:
    """:return: the raw returns of episodes"""
    return np.array([episode.episode_return for episode in episodes])


def scale_of(baseline: Sequence[Episode]) -> float:
    """
    What a whole return is worth, so that one weight serves every environment.

    :param baseline: episodes of the original
    :return: its mean return without sign, or the standard deviation where that is larger
    :raises RefineError: where both are 0
    """
    returns = returns_of(baseline)
    scale = float(max(abs(returns.mean()), returns.std()))
    if scale == 0:
        raise RefineError(
            "objective: the original's return is 0 in every validation episode, which gives a weight no unit; "
            "use --objective return or success"
        )
    return scale


_LARGEST = 1e300


def check_number(name: str, value: object, low: float, high: float = np.inf) -> float:
    """
    :param name: of an option
    :param value: what came
    :param low: least that it may be
    :param high: most that it may be
    :return: the number
    :raises RefineError: when it is none, or out of range
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= min(high, _LARGEST):
        expected = f"of at least {low:g}" if high == np.inf else f"from {low:g} to {high:g}"
        raise RefineError(f"objective: {name}: expected a number {expected}, got {value!r}")
    return float(value)
