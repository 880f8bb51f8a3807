"""Augmented Random Search that watches its iterate, and goes back when the search makes the agent worse."""

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
    the pairs. An iterate is the best one if it, or the policies around it, are clearly better than those of the best
    one before. Otherwise, where the policies around an iterate are clearly worse than those around the best one, or the
    iterate is clearly worse than the start point, the search goes back to the best iterate, and goes on with half of
    the noise and of the step. So agents that need large noise get it, and agents that break under it get less.

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
    :param n_center: episodes of the iterate itself in each update; None for a quarter of ``n_delta``, but at least 2
        (0 where there is one direction). With less than 2, the iterates are not compared, only the policies around
        them; with one direction, nothing is
    :param learning_rate: step size :math:`\alpha`, in units of the noise, or its start and end over the search
    :param delta_std: change of the actions by the noise, see :func:`~sb3_refine.policies.noise_scale.noise_scale`, or
        its start and end over the search
    :param momentum: m, from 0 to below 1
    :param clip: c, above 0: the largest difference that counts, in units of the median, so that a rare episode that
        fails does not outweigh all other pairs; None for differences as they are
    :param tolerance: a difference of two policies is clear if Welch's t-test is as sure of it as of a difference of so
        many standard errors of a normal distribution. (With few episodes of one and many of the other, differences
        seem clear more often)
    :param patience: the search also goes back after so many updates without a new best iterate, if the policies around
        the iterate are clearly worse than the start point, and those of all these updates are on average no better than
        those around the best iterate. This ends where the iterates of so many updates together are clearly better than
        the start point; None for never
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
        clip: float | None = 3.0,
        tolerance: float = 3.0,
        patience: int | None = 5,
    ):
        super().__init__(theta, seed, n_updates)
        check_count("n_delta", n_delta, 1, at_most=10**6)
        if n_center is None:
            n_center = max(2, n_delta // 4) if n_delta > 1 else 0
        check_count("n_center", n_center, 0)
        if n_center > n_delta:
            raise RefineError(f"n_center: expected 0 to n_delta={n_delta}, got {n_center}")
        check_schedule("learning_rate", learning_rate)
        check_schedule("delta_std", delta_std)
        if not 0 <= momentum < 1:
            raise RefineError(f"momentum: expected a number from 0 to below 1, got {momentum}")
        if clip is not None and not clip > 0:
            raise RefineError(f"clip: expected a number above 0, got {clip}")
        if not tolerance >= 0:
            raise RefineError(f"tolerance: expected a number of at least 0, got {tolerance}")
        if patience is not None:
            check_count("patience", patience, 1)
        self.n_delta, self.n_center = n_delta, n_center
        self.learning_rate, self.delta_std = learning_rate, delta_std
        self.momentum, self.clip, self.tolerance, self.patience = momentum, clip, tolerance, patience
        self._velocity: np.ndarray = np.zeros_like(self.theta)
        self._n_halved = 0
        self._best_theta = self.theta.copy()
        self._best_center = self._start_center = np.empty(0)  # fitness of the best iterate and of the start point
        self._best_pairs = np.empty(0)  # means of the pairs around the best iterate, since the noise was halved
        self._has_improved = False  # whether the best iterate is another than the start point
        self._has_gained = False  # whether some iterates together have been clearly better than the start point
        self._recent_centers: list[np.ndarray] = []  # fitness of the last iterates, since the noise was halved
        self._pair_means: list[float] = []  # of the updates since the best iterate or the last halving of the noise

    @property
    def population_size(self) -> int:
        return self.n_center + 2 * self.n_delta

    @property
    def _std(self) -> float:
        return linear_schedule(self.delta_std, self.n_updates_done / self.n_updates) / 2**self._n_halved

    def tell_start(self, fitness: np.ndarray) -> None:
        """:param fitness: see :meth:`Optimizer.tell_start`"""
        self._best_center = self._start_center = _finite(np.asarray(fitness, dtype=np.float64))

    def _ask(self) -> Population:
        keys = noise_keys(self.seed, self.n_updates_done, self.n_delta)
        pairs = np.repeat(keys, 2).tolist()
        signs = [0.0] * self.n_center + [1.0, -1.0] * self.n_delta
        return NoisePopulation(self.theta, self._std, [*keys[: self.n_center], *pairs], signs, self.seed)

    def _tell(self, population: Population, fitness: np.ndarray) -> None:
        center, pairs = np.split(fitness, [self.n_center])
        if self._should_go_back(_finite(center), _finite(pairs.reshape(-1, 2).mean(axis=1))):
            self._go_back()
        else:
            self._step(pairs)

    def _should_go_back(self, center: np.ndarray, pairs: np.ndarray) -> bool:
        """
        Compare the iterate with the best one, whose place it takes if it is better, and with the start point.

        :param center: fitness of the iterate
        :param pairs: means of the pairs around the iterate: the policies of a pair share their seeds
        :return: whether the search should go back
        """
        if np.array_equal(self.theta, self._best_theta):
            has_stayed = self._best_pairs.size > 0  # the last update found no difference
            self._best_center = np.append(self._best_center, center)
            self._best_pairs = np.append(self._best_pairs, pairs)
            if not self._has_improved:
                self._start_center = self._best_center
            return has_stayed and self._has_waited_enough(pairs)
        self._look_for_a_gain(center)
        if self._is_better(pairs, self._best_pairs) or self._is_better(center, self._best_center):
            self._best_theta, self._has_improved = self.theta.copy(), True
            self._best_center, self._best_pairs, self._pair_means = center, pairs, []
            return False
        return (
            self._is_better(self._best_pairs, pairs)
            or self._is_better(self._start_center, center)
            or self._has_waited_enough(pairs)
        )

    def _look_for_a_gain(self, center: np.ndarray) -> None:
        """With the episodes of several iterates: a few lucky ones of a single iterate prove nothing."""
        if self.patience is not None:
            self._recent_centers = [*self._recent_centers, center][-self.patience :]
            if len(self._recent_centers) == self.patience:
                self._has_gained |= self._is_better(np.concatenate(self._recent_centers), self._start_center)

    def _has_waited_enough(self, pairs: np.ndarray) -> bool:
        """After one more update that improved nothing: whether the noise only makes policies worse."""
        if self.patience is None or self._has_gained or min(pairs.size, self._best_pairs.size) == 0:
            return False
        self._pair_means.append(float(pairs.mean()))
        return bool(
            len(self._pair_means) >= self.patience
            and np.mean(self._pair_means) <= self._best_pairs.mean() + _rounding(pairs)
            and self._is_better(self._start_center, pairs)
        )

    def _is_better(self, first: np.ndarray, second: np.ndarray) -> bool:
        """Whether the mean of some episodes is clearly above that of others."""
        if min(first.size, second.size) < 2:
            return False
        clear = max(clear_difference(first, second, self.tolerance), _rounding(first))
        return bool(first.mean() - second.mean() > clear)

    def _go_back(self) -> None:
        self._n_halved += 1
        self._pair_means, self._recent_centers = [], []
        self._velocity[:] = 0
        self.theta = self._best_theta.copy()
        self._best_pairs = np.empty(0)

    def _step(self, fitness: np.ndarray) -> None:
        keys = noise_keys(self.seed, self.n_updates_done, self.n_delta)
        gradient = weighted_sum(self.seed, keys, self._weights(fitness), self.theta.size)
        self._velocity = np.float32(self.momentum) * self._velocity + np.float32(1 - self.momentum) * gradient
        learning_rate = linear_schedule(self.learning_rate, self.n_updates_done / self.n_updates)
        step = learning_rate * self._std / math.sqrt(1 - self.momentum)
        with np.errstate(over="ignore", invalid="ignore"):  # the search checks its iterates
            self.theta = self.theta + np.float32(step) * self._velocity

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
            "best_pairs": self._best_pairs.copy(),
            "start_center": self._start_center.copy(),
            "has_improved": self._has_improved,
            "has_gained": self._has_gained,
            "pair_means": list(self._pair_means),
            "recent_centers": list(self._recent_centers),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """:param state: see :meth:`Optimizer.load_state_dict`"""
        super().load_state_dict(state)
        self._velocity, self._n_halved = state["velocity"].copy(), state["n_halved"]
        self._best_theta = state["best_theta"].copy()
        self._best_center, self._best_pairs = state["best_center"].copy(), state["best_pairs"].copy()
        self._start_center, self._has_improved = state["start_center"].copy(), state["has_improved"]
        self._has_gained, self._pair_means = state["has_gained"], list(state["pair_means"])
        self._recent_centers = list(state["recent_centers"])


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


def _rounding(values: np.ndarray) -> float:
    return 1e-9 * abs(float(values.mean()))


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
