"""An optimizer whose noise and steps have another size for each parameter."""

from typing import Any

import numpy as np

from sb3_refine.optimizers.base import Optimizer
from sb3_refine.optimizers.population import Population


class ScaledOptimizer(Optimizer):
    """
    Lets an optimizer search the changes of the parameters, each in units of its own:
    ``theta = start + scale * optimizer.theta``.

    :param optimizer: at zero, the start
    :param start: start point, shape ``(n_parameters,)``
    :param scale: unit of each parameter, shape ``(n_parameters,)``
    """

    def __init__(self, optimizer: Optimizer, start: np.ndarray, scale: np.ndarray):
        super().__init__(start, optimizer.seed, optimizer.n_updates)
        self.optimizer, self._start = optimizer, self.theta.copy()
        self.scale = np.array(scale, dtype=np.float32)
        self.episodes_per_candidate = optimizer.episodes_per_candidate

    @property
    def population_size(self) -> int:
        return self.optimizer.population_size

    def tell_start(self, fitness: np.ndarray) -> None:
        """:param fitness: see :meth:`Optimizer.tell_start`"""
        self.optimizer.tell_start(fitness)

    def _ask(self) -> Population:
        return ScaledPopulation(self.optimizer.ask(), self._start, self.scale)

    def _tell(self, population: Population, fitness: np.ndarray) -> None:
        self.optimizer.tell(fitness)
        with np.errstate(over="ignore", invalid="ignore"):  # the search checks its iterates
            self.theta = self._start + self.scale * self.optimizer.theta

    def state_dict(self) -> dict[str, Any]:
        """:return: see :meth:`Optimizer.state_dict`"""
        return {
            **super().state_dict(),
            "start": self._start.copy(),
            "scale": self.scale.copy(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """:param state: see :meth:`Optimizer.load_state_dict`"""
        super().load_state_dict(state)
        self._start, self.scale = state["start"].copy(), state["scale"].copy()
        self.optimizer.load_state_dict(state["optimizer"])


class ScaledPopulation(Population):
    """
    The candidates of another population, each parameter in units of its own.

    :param population: changes of the parameters
    :param start: what they are added to
    :param scale: unit of each parameter
    """

    def __init__(self, population: Population, start: np.ndarray, scale: np.ndarray):
        self.population, self.start, self.scale = population, start, scale
        self.groups = population.groups

    def theta(self, index: int) -> np.ndarray:
        return self.start + self.scale * self.population.theta(index)

    def describe(self, index: int) -> str:
        return self.population.describe(index)
