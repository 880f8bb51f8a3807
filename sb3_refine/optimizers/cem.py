"""The cross-entropy method: a normal distribution that is fitted to the best of its own draws."""

import math
from typing import Any, ClassVar

import numpy as np

from sb3_refine.errors import RefineError, check_count
from sb3_refine.optimizers.base import Optimizer, check_schedule, linear_schedule
from sb3_refine.optimizers.noise_table import noise_keys
from sb3_refine.optimizers.population import NoisePopulation, Population


class CEM(Optimizer):
    r"""
    Cross-entropy method with a standard deviation for each parameter, and noise that is added to it (Szita and Lorincz,
    2006, "Learning Tetris using the noisy cross-entropy method"):

    .. math::
        \theta \leftarrow \theta + \frac{\alpha}{k} \sum_{i \in \mathrm{best}} (x_i - \theta), \qquad
        \sigma^2 \leftarrow (1 - \alpha) \sigma^2 + \alpha \left(
            \frac{1}{k} \sum_{i \in \mathrm{best}} (x_i - \theta)^2 + \epsilon^2 \right)

    with the k best of the candidates :math:`x_i \sim N(\theta, \sigma^2)`. The variance is taken around the mean that
    the candidates were drawn from, so that few of them do not shrink it by chance.

    :param theta: start point, shape ``(n_parameters,)``
    :param seed: seed of every candidate drawn
    :param n_updates: length of the search, for the schedule
    :param popsize: candidates of an update, at least 2
    :param elite_share: share of the candidates that are the best, from above 0 to 1
    :param learning_rate: :math:`\alpha`, from above 0 to 1
    :param delta_std: standard deviation at the start, by how much it changes the actions, see
        :func:`~sb3_refine.policies.noise_scale.noise_scale`
    :param extra_std: :math:`\epsilon`, in the same unit, or its start and end over the search
    :raises RefineError: when an argument is out of range
    """

    in_action_units: ClassVar = True
    presets: ClassVar = {"default": {"n_updates": 64}}

    def __init__(
        self,
        theta: np.ndarray,
        seed: int,
        n_updates: int,
        popsize: int = 40,
        elite_share: float = 0.25,
        learning_rate: float = 0.5,
        delta_std: float = 0.2,
        extra_std: float | tuple[float, float] = (0.05, 0.0),
    ):
        super().__init__(theta, seed, n_updates)
        check_count("popsize", popsize, 2, at_most=10**6)
        check_schedule("extra_std", extra_std, allow_zero=True)
        if not 0 < delta_std < np.inf:
            raise RefineError(f"delta_std: expected a positive number, got {delta_std}")
        for name, value in (("elite_share", elite_share), ("learning_rate", learning_rate)):
            if not 0 < value <= 1:
                raise RefineError(f"{name}: expected a number above 0, at most 1, got {value}")
        self.popsize, self.elite_share, self.learning_rate = popsize, elite_share, learning_rate
        self.delta_std, self.extra_std = delta_std, extra_std
        self._variance: np.ndarray = np.full_like(self.theta, delta_std**2)

    @property
    def population_size(self) -> int:
        return self.popsize

    def _ask(self) -> Population:
        keys = noise_keys(self.seed, self.n_updates_done, self.popsize)
        population = NoisePopulation(self.theta, np.sqrt(self._variance), keys, [1.0] * self.popsize, self.seed)
        population.groups = [0] * self.popsize  # the best are found on common seeds
        return population

    def _tell(self, population: Population, fitness: np.ndarray) -> None:
        n_best = min(math.ceil(self.elite_share * self.popsize), int(np.isfinite(fitness).sum()))
        if n_best == 0:
            return
        best = np.argsort(-fitness, kind="stable")[:n_best]  # NaN comes last
        changes = [population.theta(index) - self.theta for index in best]
        share, extra = self.learning_rate, linear_schedule(self.extra_std, self.n_updates_done / self.n_updates)
        found = np.mean(np.square(changes), axis=0) + np.float32(extra**2)
        self.theta = self.theta + np.float32(share) * np.mean(changes, axis=0)
        self._variance = np.float32(1 - share) * self._variance + np.float32(share) * found

    def state_dict(self) -> dict[str, Any]:
        """:return: see :meth:`Optimizer.state_dict`"""
        return {**super().state_dict(), "variance": self._variance.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """:param state: see :meth:`Optimizer.load_state_dict`"""
        super().load_state_dict(state)
        self._variance = state["variance"].copy()
