"""Augmented Random Search that watches its iterate, and goes back when the iterate gets worse."""

import math
from typing import Any, ClassVar

import numpy as np
from scipy import stats

from sb3_refine.errors import RefineError, check_count
from sb3_refine.optimizers.base import Optimizer, check_schedule, linear_schedule
from sb3_refine.optimizers.noise_table import noise_keys, weighted_sum
from sb3_refine.optimizers.population import NoisePopulation, Population, pair_weights


class BacktrackingARS(Optimizer):
    r"""
    Augmented Random Search (https://arxiv.org/abs/1803.07055) with momentum, and with noise that is measured by how
    much it changes the actions and is large at first. In each update, the iterate itself runs on the seeds of some of
    the pairs. An iterate that is clearly worse than the best one is given up: the search goes back to the best one, and
    goes on with half of the noise and of the step. So agents that need large noise get it, and agents that break under
    it do not get worse.

    .. math::
        g = \frac{1}{n} \sum_{i=1}^{n} \frac{d_i}{\sigma_d} \, \delta_i, \qquad
        d_i = \mathrm{sign}(R_i^+ - R_i^-) \, |R_i^+ - R_i^-|^p, \qquad
        v \leftarrow m v + (1 - m) g, \qquad
        \theta \leftarrow \theta + \frac{\alpha \sigma}{\sqrt{1 - m}} v

    with the root mean square :math:`\sigma_d` of the :math:`d_i`, the momentum m and the noise :math:`\sigma`.

    :param theta: start point, shape ``(n_parameters,)``
    :param seed: seed of every direction drawn
    :param n_updates: length of the search, for the schedule
    :param n_delta: number of directions an update; each costs two episodes
    :param n_center: episodes of the iterate itself in each update; None for half of ``n_delta``. With less than 2, the
        search never goes back
    :param learning_rate: step size :math:`\alpha`, in units of the noise, or its start and end over the search
    :param delta_std: change of the actions by the noise, see :func:`~sb3_refine.policies.noise_scale.noise_scale`, or
        its start and end over the search
    :param momentum: m, from 0 to below 1
    :param power: p, above 0; below 1, a rare large difference, as when one episode fails, counts less
    :param tolerance: an iterate is clearly worse, or better, by more than so many standard errors of the difference; by
        more where these are from few episodes, as in Welch's t-test
    :raises RefineError: when an argument is out of range
    """

    in_action_units: ClassVar = True
    presets: ClassVar = {"default": {"n_updates": 64}}

    def __init__(
        self,
        theta: np.ndarray,
        seed: int,
        n_updates: int,
        n_delta: int = 16,
        n_center: int | None = None,
        learning_rate: float | tuple[float, float] = (0.8, 0.4),
        delta_std: float | tuple[float, float] = (0.2, 0.1),
        momentum: float = 0.8,
        power: float = 0.5,
        tolerance: float = 2.5,
    ):
        super().__init__(theta, seed, n_updates)
        check_count("n_delta", n_delta, 1, at_most=10**6)
        n_center = n_delta // 2 if n_center is None else n_center
        check_count("n_center", n_center, 0)
        if n_center > n_delta:
            raise RefineError(f"n_center: expected 0 to n_delta={n_delta}, got {n_center}")
        check_schedule("learning_rate", learning_rate)
        check_schedule("delta_std", delta_std)
        if not 0 <= momentum < 1:
            raise RefineError(f"momentum: expected a number from 0 to below 1, got {momentum}")
        if not 0 < power <= 10:
            raise RefineError(f"power: expected a number above 0, at most 10, got {power}")
        if not tolerance >= 0:
            raise RefineError(f"tolerance: expected a number of at least 0, got {tolerance}")
        self.n_delta, self.n_center = n_delta, n_center
        self.learning_rate, self.delta_std = learning_rate, delta_std
        self.momentum, self.power, self.tolerance = momentum, power, tolerance
        self._velocity: np.ndarray = np.zeros_like(self.theta)
        self._n_halved = 0
        self._best_theta = self.theta.copy()
        self._best_fitness = np.empty(0)  # of the episodes of the best iterate
        self._is_at_best = True

    @property
    def population_size(self) -> int:
        return self.n_center + 2 * self.n_delta

    @property
    def _std(self) -> float:
        return linear_schedule(self.delta_std, self.n_updates_done / self.n_updates) / 2**self._n_halved

    def _ask(self) -> Population:
        keys = noise_keys(self.seed, self.n_updates_done, self.n_delta)
        pairs = np.repeat(keys, 2).tolist()
        signs = [0.0] * self.n_center + [1.0, -1.0] * self.n_delta
        return NoisePopulation(self.theta, self._std, [*keys[: self.n_center], *pairs], signs, self.seed)

    def _tell(self, population: Population, fitness: np.ndarray) -> None:
        if not self._is_clearly_worse(fitness[: self.n_center]):
            self._step(fitness[self.n_center :])
            return
        self._n_halved += 1
        self._velocity[:] = 0
        self.theta, self._is_at_best = self._best_theta.copy(), True

    def _is_clearly_worse(self, fitness: np.ndarray) -> bool:
        """Compare the iterate with the best one, which an iterate that is clearly better replaces."""
        fitness = fitness[np.isfinite(fitness)]
        if self._is_at_best:
            self._best_fitness = np.append(self._best_fitness, fitness)
            return False
        if min(fitness.size, self._best_fitness.size) < 2:
            return False
        difference = fitness.mean() - self._best_fitness.mean()
        clear = clear_difference(fitness, self._best_fitness, self.tolerance)
        if difference > clear:
            self._best_theta, self._best_fitness, self._is_at_best = self.theta.copy(), fitness, True
        return bool(difference < -clear)

    def _step(self, fitness: np.ndarray) -> None:
        keys = noise_keys(self.seed, self.n_updates_done, self.n_delta)
        gradient = weighted_sum(self.seed, keys, self._weights(fitness), self.theta.size)
        self._velocity = np.float32(self.momentum) * self._velocity + np.float32(1 - self.momentum) * gradient
        learning_rate = linear_schedule(self.learning_rate, self.n_updates_done / self.n_updates)
        step = learning_rate * self._std / math.sqrt(1 - self.momentum)
        with np.errstate(over="ignore", invalid="ignore"):  # the search checks its iterates
            self.theta = self.theta + np.float32(step) * self._velocity
        self._is_at_best = False

    def _weights(self, fitness: np.ndarray) -> np.ndarray:
        return pair_weights(fitness, self.power)

    def state_dict(self) -> dict[str, Any]:
        """:return: see :meth:`Optimizer.state_dict`"""
        return {
            **super().state_dict(),
            "velocity": self._velocity.copy(),
            "n_halved": self._n_halved,
            "best_theta": self._best_theta.copy(),
            "best_fitness": self._best_fitness.copy(),
            "is_at_best": self._is_at_best,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """:param state: see :meth:`Optimizer.load_state_dict`"""
        super().load_state_dict(state)
        self._velocity, self._n_halved = state["velocity"].copy(), state["n_halved"]
        self._best_theta, self._best_fitness = state["best_theta"].copy(), state["best_fitness"].copy()
        self._is_at_best = state["is_at_best"]


def clear_difference(first: np.ndarray, second: np.ndarray, tolerance: float) -> float:
    """
    :param first: at least two numbers
    :param second: at least two others
    :param tolerance: in standard errors, for many numbers
    :return: the difference of the means above which Welch's t-test is as sure as a normal distribution is above
        ``tolerance``
    """
    variances = [each.var(ddof=1) / each.size for each in (first, second)]
    if sum(variances) == 0:  # all episodes are alike
        return 0.0
    degrees = sum(variances) ** 2 / sum(
        v**2 / (each.size - 1) for v, each in zip(variances, (first, second), strict=True)
    )
    return float(stats.t.isf(stats.norm.sf(tolerance), degrees) * math.sqrt(sum(variances)))
