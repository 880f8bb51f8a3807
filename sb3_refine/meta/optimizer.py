"""The outer loop: evolution strategies on the means and standard deviations of a distribution."""

from typing import Any

import numpy as np

from sb3_refine.errors import RefineError, check_count
from sb3_refine.meta.distribution import MetaPopulation, Shape, gradients
from sb3_refine.optimizers.base import Optimizer
from sb3_refine.optimizers.population import Population

_RANGE = (0.1, 10.0)  # of standard deviations, as multiples of those at the start


class MetaES(Optimizer):
    """
    Four stochastic gradient descents along Eq. 10 of https://arxiv.org/abs/1812.11314: for the means and the standard
    deviations of actor and critic. Parameters are in units of the standard deviations at the start, so that a learning
    rate means the same in all layers, and fitness is in units of its own spread over the draws.

    :param theta: a distribution: means, then standard deviations, see :class:`~sb3_refine.meta.distribution.Shape`
    :param seed: of the draws
    :param n_updates: length of the search
    :param shape: of a draw
    :param n_draws: draws of each update, the paper's M
    :param learning_rate: of the means, of actor and critic
    :param std_learning_rate: of the standard deviations, which stay between a tenth and ten times of those at the
        start; 0 keeps them as they are
    :param noise_seed: of the noise table, the same in further searches
    :raises RefineError: when a setting is out of range
    """

    def __init__(
        self,
        theta: np.ndarray,
        seed: int,
        n_updates: int,
        shape: Shape,
        n_draws: int = 16,
        learning_rate: float = 0.1,
        std_learning_rate: float = 0.02,
        noise_seed: int = 0,
    ):
        super().__init__(theta, seed, n_updates)
        check_count("n_draws", n_draws, 2)
        for name, value, low in (("learning_rate", learning_rate, 0.0), ("std_learning_rate", std_learning_rate, 0.0)):
            if not isinstance(value, (int, float)) or not low <= value < np.inf:
                raise RefineError(f"{name}: expected a number of at least 0, got {value!r}")
        self.shape, self.n_draws, self.noise_seed = shape, n_draws, noise_seed
        self.learning_rate, self.std_learning_rate = learning_rate, std_learning_rate
        self._first_std = shape.split(self.theta)[1].copy()
        self._critic_fitness = np.zeros(n_draws)

    @property
    def population_size(self) -> int:
        """Draws of an update."""
        return self.n_draws

    def tell_both(self, actor_fitness: np.ndarray, critic_fitness: np.ndarray) -> None:
        """
        Move the distribution.

        :param actor_fitness: of each draw on each task, shape ``(n_draws, n_tasks)``; NaN counts nothing
        :param critic_fitness: of each draw on each task, in the same shape
        """
        self._critic_fitness = _standardised(critic_fitness)
        self.tell(_standardised(actor_fitness))

    def _ask(self) -> Population:
        keys = [
            self.shape.keys(self.seed, self.n_updates_done * self.n_draws + number) for number in range(self.n_draws)
        ]
        return MetaPopulation(self.shape, self.theta, keys, self.noise_seed)

    def _tell(self, population: Population, fitness: np.ndarray) -> None:
        assert isinstance(population, MetaPopulation)
        of_mean, of_std = gradients(self.shape, population, fitness, self._critic_fitness)
        mean, std = self.shape.split(self.theta)  # views
        unit = np.square(self._first_std)
        mean += self.learning_rate * unit * of_mean
        std += self.std_learning_rate * unit * of_std
        np.clip(std, _RANGE[0] * self._first_std, _RANGE[1] * self._first_std, out=std)

    def state_dict(self) -> dict[str, Any]:
        """:return: the distribution, and its standard deviations at the start"""
        return {**super().state_dict(), "first_std": self._first_std.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """:param state: what :meth:`state_dict` gave"""
        super().load_state_dict(state)
        self._first_std = state["first_std"].copy()


def _standardised(fitness: np.ndarray) -> np.ndarray:
    """The mean over the tasks of what is standardised over the draws: tasks are not equally hard."""
    fitness = np.array(fitness, dtype=np.float64)
    fitness[~np.isfinite(fitness)] = np.nan
    scores = np.zeros_like(fitness)
    for task in range(fitness.shape[1]):
        valid = np.isfinite(fitness[:, task])
        spread = fitness[valid, task].std() if valid.any() else 0.0
        if spread > 0:
            scores[valid, task] = (fitness[valid, task] - fitness[valid, task].mean()) / spread
    return scores.mean(axis=1)
