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
    Two-sided interval of the mean of ``after - before``, at confidence ``1 - alpha``: a bootstrap that reckons with one
    more, worst pair.

    Each bound is Gaffke's: a quantile of :math:`\sum_{i=0}^{n} W_i d_i` with weights :math:`W` uniform on the simplex,
    where :math:`d_0` is the least difference possible. So it is Rubin's Bayesian bootstrap, on the safe side, and no
    distribution is known for which, with the true :math:`d_0`, it errs more often than it says, however skewed or small
    the sample (Gaffke, 2005,
    "Three test statistics for a nonparametric one-sided hypothesis on the mean of a nonnegative variable";
    Learned-Miller and Thomas, 2020, https://arxiv.org/abs/1905.06208). Student's t and the usual bootstraps do err,
    where a rare catastrophe has not happened yet.

    The least difference is not known. It is taken to be the least one seen, or that of the one's mean to the lowest of
    all these returns, whoever had it, or of the highest to the other's mean: that a catastrophe, or a stroke of luck,
    befell the wrong agent. What neither was seen to do is not reckoned with.

    :param before: one value an episode
    :param after: the same of the other, in the order of the seeds
    :param alpha: one minus the confidence
    :return: lower and upper bound; infinite for a single pair, which says nothing of others
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
    :param before: one value an episode
    :param after: the same of the other
    :return: the least that ``after - before`` is reckoned to be in any pair, see :func:`mean_interval`
    """
    low, high = min(before.min(), after.min()), max(before.max(), after.max())
    return float(min((after - before).min(), low - before.mean(), after.mean() - high))


@lru_cache(maxsize=1)
def _weights(n: int) -> np.ndarray:
    """Uniform on the simplex of ``n`` weights, shape ``(n_resamples, n)``; fewer of them where they are long."""
    n_resamples = max(N_RESAMPLES // 5, min(N_RESAMPLES, 1000 * N_RESAMPLES // n))
    return np.random.default_rng(0).dirichlet(np.ones(n), n_resamples)
