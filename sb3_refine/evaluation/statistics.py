"""Intervals and tests on returns."""

from functools import lru_cache

import numpy as np
from scipy import stats

N_RESAMPLES = 10_000


def wilson_interval(n_hits: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """
    :param n_hits: how often it happened
    :param n: how often it could have
    :param confidence: of the interval
    :return: Wilson's score interval of the rate
    """
    interval = stats.binomtest(n_hits, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def mean_interval(before: np.ndarray, after: np.ndarray, alpha: float) -> tuple[float, float]:
    r"""
    Two-sided interval of the mean of ``after - before``, at confidence ``1 - alpha``: a bootstrap that adds one more
    pair, with the worst difference that is plausible.

    Each bound is Gaffke's: a quantile of :math:`\sum_{i=0}^{n} W_i d_i` with weights :math:`W` uniform on the simplex,
    where :math:`d_0` is the smallest difference possible. This is Rubin's Bayesian bootstrap, made conservative. No
    distribution is known for which the interval, with the true :math:`d_0`, misses the mean more often than ``alpha``,
    however skewed or small the sample (Gaffke, 2005,
    "Three test statistics for a nonparametric one-sided hypothesis on the mean of a nonnegative variable";
    Learned-Miller and Thomas, 2019, https://arxiv.org/abs/1905.06208). Student's t and the usual bootstraps miss more
    often where a rare catastrophe has not happened yet.

    The smallest difference possible is not known. It is assumed to be the smallest of three: the smallest difference
    seen; the lowest return of either agent minus the mean of ``before``; the mean of ``after`` minus the highest return
    of either agent. The last two assume that the extreme return happened to the other agent. Returns beyond those that
    were seen are not covered.

    >>> before = np.array([10.0, 12.0, 9.0, 11.0] * 25)
    >>> low, high = mean_interval(before, before + np.array([1.0, 2.0, 0.0, 1.0] * 25), alpha=0.05)
    >>> print(f"{low:.2f} to {high:.2f}")
    0.81 to 1.17

    :param before: one value for each episode of the first agent
    :param after: the same for the second agent, in the order of the seeds
    :param alpha: one minus the confidence
    :return: lower and upper bound; infinite for a single pair
    """
    if before.size < 2:
        return -np.inf, np.inf
    if np.array_equal(before, after):
        return 0.0, 0.0
    return _lower_bound(before, after, alpha / 2), -_lower_bound(after, before, alpha / 2)


def _lower_bound(before: np.ndarray, after: np.ndarray, alpha: float) -> float:
    differences = np.append(after - before, least_difference(before, after))
    return float(np.quantile(_weights(differences.size) @ differences, alpha))


def least_difference(before: np.ndarray, after: np.ndarray) -> float:
    """
    :param before: one value for each episode of the first agent
    :param after: the same for the second agent
    :return: the smallest ``after - before`` that is assumed possible, see :func:`mean_interval`
    """
    low, high = min(before.min(), after.min()), max(before.max(), after.max())
    return float(min((after - before).min(), low - before.mean(), after.mean() - high))


@lru_cache(maxsize=1)
def _weights(n: int) -> np.ndarray:
    """Uniform on the simplex of ``n`` weights, shape ``(n_resamples, n)``; fewer resamples for a large ``n``."""
    n_resamples = max(N_RESAMPLES // 5, min(N_RESAMPLES, 1000 * N_RESAMPLES // n))
    return np.random.default_rng(0).dirichlet(np.ones(n), n_resamples)
