"""An objective of the user's own."""

import importlib
from collections.abc import Callable
from functools import partial

import numpy as np

from sb3_refine.episode import Episode, Trajectory
from sb3_refine.errors import RefineError
from sb3_refine.objectives.base import MEASURE, Objective


class Custom(Objective):
    """
    Any function of the trajectory.

    :param function: maps a :class:`~sb3_refine.episode.Trajectory` to a fitness; it goes to the workers by cloudpickle
    """

    needs_trajectory = True

    def __init__(self, function: Callable[[Trajectory], float]):
        self.function = function

    @property
    def name(self) -> str:
        """Module and name of the function."""
        function = self.function.func if isinstance(self.function, partial) else self.function
        named = function if hasattr(function, "__qualname__") else type(function)
        return f"{named.__module__}:{named.__qualname__}"

    def measure(self, trajectory: Trajectory) -> float:
        """
        :return: what the function gives; NaN for infinity
        :raises RefineError: when that is no number
        """
        found = self.function(trajectory)
        try:
            value = float(found)
        except (TypeError, ValueError, OverflowError):
            raise RefineError(f"objective: {self.name} returned {found!r}; it must return a number") from None
        return value if np.isfinite(value) else np.nan

    def fitness(self, episode: Episode) -> float:
        """:return: what the function gave"""
        return episode.measures.get(MEASURE, np.nan)


def find_function(name: str) -> Callable[[Trajectory], float]:
    """
    :param name: ``module:function``
    :return: the function
    :raises RefineError: when there is no such function
    """
    module_name, _, function_name = name.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except Exception as error:  # whatever that module raises
        raise RefineError(f"objective: {name}: cannot be imported ({error}); name it as module:function") from error
    if not callable(function) or isinstance(function, type):
        raise RefineError(f"objective: {name} is no function")
    return function
