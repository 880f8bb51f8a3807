"""Augmented Random Search that watches its iterate, and goes back when the iterate gets worse than the start point."""

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
    the pairs. An iterate that is clearly worse than the start point is given up, unless the perturbed policies are
    clearly better than at first: the search goes back to the best iterate so far, and goes on with half of the noise
    and of the step. So agents that need large noise get it, and agents that break under it do not get worse.

    .. math::
        g = \frac{1}{n} \sum_{i=1}^{n} \frac{d_i}{\sigma_d} \, \delta_i, \qquad
        d_i = \mathrm{clip}(R_i^+ - R_i^-, -c \tilde{d}, c \tilde{d}), \qquad
        v \leftarrow m v + (1 - m) g, \qquad
        \theta \leftarrow \theta + \frac{\alpha \sigma}{\sqrt{1 - m}} v

    with the median :math:`\tilde{d}` of the :math:`|R_i^+ - R_i^-|` that are not 0, the root mean square
    :math:`\sigma_d` of the :math:`d_i`, the momentum m and the noise :math:`\sigma`.

    :param theta: start point, shape ``(n_parameters,)``
    :param seed: seed of every direction drawn
    :param n_updates: length of the search, for the schedule
    :param n_delta: number of directions an update; each costs two episodes
    :param n_center: episodes of the iterate itself in each update; None for a quarter of ``n_delta``, but at least 2.
        With less than 2, the search never goes back
    :param learning_rate: step size :math:`\alpha`, in units of the noise, or its start and end over the search
    :param delta_std: change of the actions by the noise, see :func:`~sb3_refine.policies.noise_scale.noise_scale`, or
        its start and end over the search
    :param momentum: m, from 0 to below 1
    :param clip: c, above 0: the largest difference that counts, in units of the median, so that a rare episode that
        fails does not outweigh all other pairs; ``inf`` for differences as they are
    :param tolerance: of two policies, one is clearly better if it is better by more than so many standard errors of the
        difference; by more where these are from few episodes, as in Welch's t-test
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
        learning_rate: float | tuple[float, float] = (1.6, 0.8),
        delta_std: float | tuple[float, float] = (0.2, 0.1),
        momentum: float = 0.8,
        clip: float = 3.0,
        tolerance: float = 2.5,
    ):
        super().__init__(theta, seed, n_updates)
        check_count("n_delta", n_delta, 1, at_most=10**6)
        n_center = min(n_delta, max(2, n_delta // 4)) if n_center is None else n_center
        check_count("n_center", n_center, 0)
        if n_center > n_delta:
            raise RefineError(f"n_center: expected 0 to n_delta={n_delta}, got {n_center}")
        check_schedule("learning_rate", learning_rate)
        check_schedule("delta_std", delta_std)
        if not 0 <= momentum < 1:
            raise RefineError(f"momentum: expected a number from 0 to below 1, got {momentum}")
        if not clip > 0:
            raise RefineError(f"clip: expected a number above 0, got {clip}")
        if not tolerance >= 0:
            raise RefineError(f"tolerance: expected a number of at least 0, got {tolerance}")
        self.n_delta, self.n_center = n_delta, n_center
        self.learning_rate, self.delta_std = learning_rate, delta_std
        self.momentum, self.clip, self.tolerance = momentum, clip, tolerance
        self._velocity: np.ndarray = np.zeros_like(self.theta)
        self._n_halved = 0
        self._best_theta = self.theta.copy()
        self._best_center = self._original_center = np.empty(0)  # episodes of the best iterate and of the start point
        self._has_improved = False  # whether the best iterate is another than the start point
        self._is_at_best = True
        self._first_pairs = np.empty(0)  # episodes of the first pairs since the noise was halved

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
        center, pairs = (part[np.isfinite(part)] for part in np.split(fitness, [self.n_center]))
        if not self._first_pairs.size:
            self._first_pairs = pairs
        if self._is_at_best:
            self._best_center = np.append(self._best_center, center)
            if not self._has_improved:
                self._original_center = self._best_center
        elif self._is_better(center, self._best_center):
            self._best_theta, self._best_center, self._has_improved = self.theta.copy(), center, True
        elif self._is_better(self._original_center, center) and not self._is_better(pairs, self._first_pairs):
            self._go_back()
            return
        self._step(fitness[self.n_center :])

    def _is_better(self, first: np.ndarray, second: np.ndarray) -> bool:
        """Whether the mean of some episodes is clearly above that of others."""
        if min(first.size, second.size) < 2:
            return False
        return bool(first.mean() - second.mean() > clear_difference(first, second, self.tolerance))

    def _go_back(self) -> None:
        self._n_halved += 1
        self._velocity[:] = 0
        self.theta, self._is_at_best = self._best_theta.copy(), True
        self._first_pairs = np.empty(0)

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
        return pair_weights(fitness, self.clip)

    def state_dict(self) -> dict[str, Any]:
        """:return: see :meth:`Optimizer.state_dict`"""
        return {
            **super().state_dict(),
            "velocity": self._velocity.copy(),
            "n_halved": self._n_halved,
            "best_theta": self._best_theta.copy(),
            "best_center": self._best_center.copy(),
            "original_center": self._original_center.copy(),
            "has_improved": self._has_improved,
            "is_at_best": self._is_at_best,
            "first_pairs": self._first_pairs.copy(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """:param state: see :meth:`Optimizer.load_state_dict`"""
        super().load_state_dict(state)
        self._velocity, self._n_halved = state["velocity"].copy(), state["n_halved"]
        self._best_theta = state["best_theta"].copy()
        self._best_center, self._original_center = state["best_center"].copy(), state["original_center"].copy()
        self._has_improved = state["has_improved"]
        self._is_at_best = state["is_at_best"]
        self._first_pairs = state["first_pairs"].copy()


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
