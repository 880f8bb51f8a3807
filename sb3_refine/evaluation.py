"""Held-out evaluation and paired comparison: the numbers a person trusts."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy import stats

from sb3_refine.episode import Episode
from sb3_refine.measures import SMOOTHNESS

N_RESAMPLES = 10_000

Fitness = Callable[[Episode], float]


def episode_return(episode: Episode) -> float:
    """:return: the return of an episode"""
    return episode.episode_return


def tail_mean(returns: np.ndarray, share: float = 0.1, axis: int = -1) -> np.ndarray:
    """
    :param returns: of episodes
    :param share: of them that count as the worst; at least one does
    :param axis: of the episodes
    :return: mean of the worst, the conditional value at risk; NaN where one is NaN
    """
    n_worst = max(1, round(share * returns.shape[axis]))
    worst = np.sort(returns, axis=axis).take(range(n_worst), axis=axis)
    return np.where(np.isnan(returns).any(axis=axis), np.nan, worst.mean(axis=axis))


@dataclass(frozen=True)
class Evaluation:
    """
    Episodes of one agent on given seeds.

    :param seeds: episode seeds
    :param episodes: one for each seed
    """

    seeds: tuple[int, ...]
    episodes: tuple[Episode, ...]

    @property
    def returns(self) -> np.ndarray:
        """Undiscounted returns, float64 of shape ``(n_episodes,)``."""
        return np.array([episode.episode_return for episode in self.episodes])

    @property
    def lengths(self) -> np.ndarray:
        """Steps, of shape ``(n_episodes,)``."""
        return np.array([episode.length for episode in self.episodes])

    @property
    def failure_rate(self) -> float:
        """Share of the episodes that ended by a termination that is a failure."""
        return float(np.mean([episode.failed for episode in self.episodes]))

    @property
    def success_rate(self) -> float | None:
        """Share of the episodes whose last ``info`` says ``is_success``; None where none has it."""
        return float(np.mean(self._successes)) if self._successes else None

    @property
    def _successes(self) -> list[bool]:
        """Of every episode, if any says so: some environments do only on success."""
        if all(episode.success is None for episode in self.episodes):
            return []
        return [bool(episode.success) for episode in self.episodes]

    def measure(self, name: str) -> np.ndarray:
        """
        :param name: see :mod:`sb3_refine.measures`
        :return: the measure of each episode, NaN where it was not taken, shape ``(n_episodes,)``
        """
        return np.array([episode.measures.get(name, np.nan) for episode in self.episodes], dtype=np.float64)

    @property
    def n_invalid(self) -> int:
        """Episodes with a NaN or an infinity among their rewards or observations."""
        return int(np.isnan(self.returns).sum())

    def summary(self) -> dict[str, Any]:
        """
        :return: the figures of ``refinement.json``. CVaR10 is the mean of the worst tenth of the returns; the intervals
            of rates are Wilson's at 95%; measures are there if taken and not NaN, averaged over episodes; of the mesh
            dimension, it is told of how many
        """
        returns, n = self.returns, len(self.episodes)
        figures: dict[str, Any] = {
            "mean_return": float(returns.mean()),
            "std_return": float(returns.std()),
            "median_return": float(np.median(returns)),
            "min_return": float(returns.min()),
            "cvar10_return": float(tail_mean(returns)),
            "mean_length": float(self.lengths.mean()),
            "failure_rate": self.failure_rate,
            "failure_rate_ci": wilson_interval(round(n * self.failure_rate), n),
            "n_episodes": n,
        }
        if self.success_rate is not None:
            figures["success_rate"] = self.success_rate
            figures["success_rate_ci"] = wilson_interval(sum(self._successes), len(self._successes))
        for name in (*SMOOTHNESS, "mesh_dimension"):
            values = self.measure(name)
            if np.isfinite(values).any():
                figures[name] = float(np.nanmean(values))
        if any("mesh_dimension" in episode.measures for episode in self.episodes):
            figures["mesh_dimension_episodes"] = int(np.isfinite(self.measure("mesh_dimension")).sum())
        return figures


def wilson_interval(n_hits: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """
    :param n_hits: how often it happened
    :param n: how often it could have
    :param confidence: of the interval
    :return: Wilson's score interval of the rate
    """
    interval = stats.binomtest(n_hits, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class PairedDifference:
    """
    How much better the second of two agents did on the same seeds.

    :param mean: mean difference of the returns
    :param ci_low: lower bound of its interval, see :func:`mean_interval`
    :param ci_high: upper bound
    :param p_better: probability of being better on a seed; ties count half
    :param confidence: level of the interval
    :param paired: False where the environment ignores its seed, so that the episodes could not be paired
    """

    mean: float
    ci_low: float
    ci_high: float
    p_better: float
    confidence: float
    paired: bool = True


def paired_difference(
    before: Evaluation,
    after: Evaluation,
    alpha: float = 0.05,
    paired: bool = True,
    fitness: Fitness = episode_return,
) -> PairedDifference:
    """
    Compare two agents seed by seed.

    :param before: episodes of the one
    :param after: episodes of the other, on the same seeds
    :param alpha: the interval is at confidence ``1 - alpha``, two-sided
    :param paired: whether the same seed means the same episode; if not, a pair is any two episodes
    :param fitness: what to compare; by default the return
    :return: after minus before
    """
    if before.seeds != after.seeds:
        raise ValueError("before and after: expected episodes on the same seeds")
    old, new = ([fitness(episode) for episode in evaluation.episodes] for evaluation in (before, after))
    matched = np.array(new) if paired else np.random.default_rng(0).permutation(new)  # nothing in common but by chance
    low, high = mean_interval(np.array(old), matched, alpha)
    return PairedDifference(
        mean=float(np.mean(new) - np.mean(old)),
        ci_low=low,
        ci_high=high,
        p_better=_p_better(np.array(old), np.array(new), paired),
        confidence=1 - alpha,
        paired=paired,
    )


def _p_better(old: np.ndarray, new: np.ndarray, paired: bool) -> float:
    if paired:
        return float(np.mean(new > old) + 0.5 * np.mean(new == old))
    return float(stats.mannwhitneyu(new, old).statistic / (new.size * old.size))


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


def failure_rise(before: Evaluation, after: Evaluation, paired: bool = True) -> float:
    """
    Whether the second of two agents fails more often.

    :param before: episodes of the one
    :param after: episodes of the other, on the same seeds
    :param paired: whether the same seed means the same episode
    :return: p-value, one-sided: McNemar's exact test on pairs, else Fisher's exact test
    """
    old, new = (np.array([episode.failed for episode in evaluation.episodes]) for evaluation in (before, after))
    if not paired:
        table = [[new.sum(), (~new).sum()], [old.sum(), (~old).sum()]]
        return float(stats.fisher_exact(table, alternative="greater").pvalue)
    worse, differ = int((new & ~old).sum()), int((new != old).sum())
    return float(stats.binomtest(worse, differ, alternative="greater").pvalue) if differ else 1.0
