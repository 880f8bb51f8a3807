"""A function of the user as objective."""

import importlib
from collections.abc import Callable
from functools import partial

import numpy as np

from sb3_refine.errors import RefineError, did_you_mean
from sb3_refine.objectives.base import OBJECTIVE_METRIC, Objective
from sb3_refine.rollouts.episode import Episode, Trajectory


class Custom(Objective):
    """
    Any function of the trajectory.

    :param function: maps a :class:`~sb3_refine.rollouts.episode.Trajectory` to a fitness; cloudpickle sends it to the
        workers
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
        """:return: the value of the function"""
        return self.function(trajectory)

    def fitness(self, episode: Episode) -> float:
        """:return: the value of the function"""
        return episode.metrics.get(OBJECTIVE_METRIC, np.nan)


def find_function(name: str) -> Callable[[Trajectory], float]:
    """
    :param name: ``module:function``
    :return: the function
    :raises RefineError: when there is no such function
    """
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
        function = getattr(module, function_name, None)
    except (Exception, SystemExit) as error:  # whatever that module raises
        what = f"{type(error).__name__}: {error}"
        raise RefineError(f"objective: {name}: cannot be imported ({what}); name it as module:function") from error
    if function is None:
        where = f"{module_name} ({getattr(module, '__file__', None) or 'no file'})"
        meant = did_you_mean(function_name, dir(module))
        raise RefineError(f"objective: {name}: there is no {function_name!r} in {where}{meant}")
    if not callable(function) or isinstance(function, type):
        raise RefineError(f"objective: {name} is no function")
    return function
