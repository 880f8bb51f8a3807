"""The interface of every objective."""

import inspect
import re
import reprlib
import traceback
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from sb3_refine.errors import EpisodeError, RefineError
from sb3_refine.parts import options_of
from sb3_refine.rollouts.episode import Episode, Trajectory

OBJECTIVE_METRIC = "objective"
"""Name of the metric that :meth:`Objective.measure` computes."""


class Objective(ABC):
    """
    What is maximised: maps an episode to a fitness. The test compares the mean fitness over seeds.

    Where an objective needs the trajectory, workers compute :meth:`measure`; the rest is arithmetic on figures of the
    episode. The raw return is always recorded, too.
    """

    needs_trajectory: ClassVar[bool] = False
    """Whether workers have to compute :meth:`measure`. Otherwise, no trajectory is recorded."""

    needs_baseline: ClassVar[bool] = False
    """Whether :meth:`calibrate` is needed, so that the original is run on validation seeds before the search."""

    verdict_note: ClassVar[str] = ""
    """A remark about the mean fitness that reasons add to the name of the objective."""

    @classmethod
    def options(cls) -> dict[str, tuple[type, ...]]:
        """:return: names and types of the arguments of the constructor"""
        return options_of(cls)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that episodes must have."""
        return (OBJECTIVE_METRIC,) if self.needs_trajectory else ()

    @property
    def name(self) -> str:
        """Class and options. A resumed search compares this name with that of the interrupted search."""
        values = {option: getattr(self, option) for option in self.options() if hasattr(self, option)}
        given = ",".join(f"{option}={value}" for option, value in values.items() if not inspect.ismethod(value))
        given = re.sub(" at 0x[0-9a-fA-F]+", "", given)  # of functions and objects, different in every process
        return f"{type(self).__name__}:{given}" if given else type(self).__name__

    def measure(self, trajectory: Trajectory) -> float:
        """
        Workers compute this, without the results of :meth:`calibrate`.

        :param trajectory: of one episode
        :return: one number, which :meth:`fitness` finds in ``episode.metrics["objective"]``
        """
        raise NotImplementedError

    def checked_measure(self, trajectory: Trajectory) -> float:
        """
        :param trajectory: of one episode
        :return: the result of :meth:`measure`; NaN for infinity
        :raises RefineError: when the result is no number
        :raises EpisodeError: when :meth:`measure` fails
        """
        try:
            found = self.measure(trajectory)
        except RefineError:
            raise
        except Exception as error:
            what = f"objective: {self.name} failed: {type(error).__name__}: {error}"
            raise EpisodeError(f"{what}\n{traceback.format_exc()}") from error
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
        Set, once before the search, what depends on the original agent.

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
        :return: what the search maximises: the mean fitness of each candidate, NaN where it has an invalid episode. The
            value of a candidate must not depend on the other candidates: the search compares updates
        """
        return np.array([np.mean([self.fitness(episode) for episode in own]) for own in episodes])

    def of_episodes(self, episodes: Sequence[Episode]) -> float:
        """
        :param episodes: of one policy
        :return: the score by which candidates are chosen: the mean fitness, unless the objective is a statistic of
            several episodes
        """
        return float(np.mean([self.fitness(episode) for episode in episodes]))

    def figures(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """
        Further figures for tables, beside the mean fitness.

        :param episodes: of one policy
        :return: figures by name
        """
        return {}


def returns_of(episodes: Sequence[Episode]) -> np.ndarray:
    """:return: the raw returns of episodes"""
    return np.array([episode.episode_return for episode in episodes])


def scale_of(baseline: Sequence[Episode]) -> float:
    """
    The unit of returns, so that one weight fits every environment.

    :param baseline: episodes of the original
    :return: the absolute value of its mean return, or the standard deviation if this is larger
    :raises RefineError: when both are 0
    """
    returns = returns_of(baseline)
    scale = float(max(abs(returns.mean()), returns.std()))
    if scale == 0:
        raise RefineError(
            "objective: the original's return is 0 in every validation episode, so there is no unit for the weight; "
            "use `objective='return'` or `objective='success'`"
        )
    return scale


_LARGEST = 1e300


def check_number(name: str, value: object, low: float, high: float = np.inf) -> float:
    """
    :param name: of an option
    :param value: what was given
    :param low: the smallest value allowed
    :param high: the largest value allowed
    :return: the number
    :raises RefineError: when the value is no number, or out of range
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= min(high, _LARGEST):
        expected = f"of at least {low:g}" if high == np.inf else f"from {low:g} to {high:g}"
        raise RefineError(f"objective: {name}: expected a number {expected}, got {value!r}")
    return float(value)
