"""Held-out evaluation and paired comparison: the numbers a person trusts."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from sb3_refine.rollout import Episode

N_RESAMPLES = 10_000


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
    def n_invalid(self) -> int:
        """Episodes with a NaN or an infinity among their rewards or observations."""
        return int(np.isnan(self.returns).sum())

    def summary(self) -> dict[str, float]:
        """:return: the figures of ``refinement.json``; CVaR10 is the mean of the worst tenth of the returns"""
        returns = np.sort(self.returns)
        n_worst = max(1, round(len(returns) / 10))
        return {
            "mean_return": float(returns.mean()),
            "std_return": float(returns.std()),
            "min_return": float(returns[0]),
            "cvar10_return": float(returns[:n_worst].mean()),
            "mean_length": float(self.lengths.mean()),
            "failure_rate": self.failure_rate,
            "n_episodes": len(returns),
        }


@dataclass(frozen=True)
class PairedDifference:
    """
    How much better the second of two agents did on the same seeds.

    :param mean: mean difference of the returns
    :param ci_low: lower bound of its bootstrap interval
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
    before: Evaluation, after: Evaluation, alpha: float = 0.05, paired: bool = True
) -> PairedDifference:
    """
    Compare two agents seed by seed.

    :param before: episodes of the one
    :param after: episodes of the other, on the same seeds
    :param alpha: the interval is a percentile bootstrap at confidence ``1 - alpha``, two-sided
    :param paired: whether the same seed means the same episode; if not, the two are compared as independent samples
    :return: after minus before
    """
    if before.seeds != after.seeds:
        raise ValueError("before and after: expected episodes on the same seeds")
    differences = after.returns - before.returns if paired else np.subtract.outer(after.returns, before.returns)
    if paired:
        low, high = bootstrap_interval(_mean, [differences], alpha)
    else:
        low, high = bootstrap_interval(_difference_of_means, [after.returns, before.returns], alpha)
    return PairedDifference(
        mean=float(differences.mean()),
        ci_low=low,
        ci_high=high,
        p_better=float(np.mean(differences > 0) + 0.5 * np.mean(differences == 0)),
        confidence=1 - alpha,
        paired=paired,
    )


def bootstrap_interval(
    statistic: Callable[..., np.ndarray], samples: list[np.ndarray], alpha: float
) -> tuple[float, float]:
    """
    :param statistic: of the samples, along ``axis``
    :param samples: one or more independent samples
    :param alpha: one minus the confidence
    :return: two-sided percentile bootstrap interval of the statistic
    """
    interval = stats.bootstrap(
        samples,
        statistic,
        n_resamples=N_RESAMPLES,
        batch=1000,
        vectorized=True,
        confidence_level=1 - alpha,
        method="percentile",
        random_state=np.random.default_rng(0),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def _mean(sample: np.ndarray, axis: int) -> np.ndarray:
    return sample.mean(axis=axis)


def _difference_of_means(after: np.ndarray, before: np.ndarray, axis: int) -> np.ndarray:
    return after.mean(axis=axis) - before.mean(axis=axis)
