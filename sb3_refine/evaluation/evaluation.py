"""Episodes of an agent on given seeds, and the paired comparison of two agents."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from sb3_refine.evaluation.statistics import mean_interval, wilson_interval
from sb3_refine.rollouts.episode import Episode
from sb3_refine.rollouts.metrics import SMOOTHNESS, tail_mean

Fitness = Callable[[Episode], float]


def episode_return(episode: Episode) -> float:
    """:return: the return of an episode"""
    return episode.episode_return


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
    def n_env_steps(self) -> int:
        """Environment steps that the episodes have cost."""
        return sum(episode.n_env_steps for episode in self.episodes)

    @property
    def failure_rate(self) -> float:
        """Share of the episodes that ended by a termination that is a failure."""
        return float(np.mean([episode.failed for episode in self.episodes]))

    @property
    def success_rate(self) -> float | None:
        """Share of the episodes whose last ``info`` has a true ``is_success``; None where no episode reports it."""
        return float(np.mean(self._successes)) if self._successes else None

    @property
    def _successes(self) -> list[bool]:
        """One for each episode, if any episode reports success: some environments report nothing else."""
        if all(episode.success is None for episode in self.episodes):
            return []
        return [bool(episode.success) for episode in self.episodes]

    def metric(self, name: str) -> np.ndarray:
        """
        :param name: see :mod:`sb3_refine.rollouts.metrics`
        :return: the measure of each episode, NaN where it was not taken, shape ``(n_episodes,)``
        """
        return np.array([episode.metrics.get(name, np.nan) for episode in self.episodes], dtype=np.float64)

    @property
    def n_invalid(self) -> int:
        """Number of episodes with NaN or infinite rewards or observations."""
        return int(np.isnan(self.returns).sum())

    def summary(self) -> dict[str, Any]:
        """
        :return: the figures of ``refinement.json``. CVaR10 is the mean of the worst tenth of the returns; the intervals
            of rates are Wilson's at 95%. A metric is the mean over the episodes that have it; for the mesh dimension,
            the number of these episodes is given, too
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
            values = self.metric(name)
            if np.isfinite(values).any():
                figures[name] = float(np.nanmean(values))
        if any("mesh_dimension" in episode.metrics for episode in self.episodes):
            figures["mesh_dimension_episodes"] = int(np.isfinite(self.metric("mesh_dimension")).sum())
        return figures


@dataclass(frozen=True)
class PairedDifference:
    """
    How much better the second of two agents is on the same seeds.

    :param mean: mean difference of the returns
    :param ci_low: lower bound of its interval, see :func:`mean_interval`
    :param ci_high: upper bound
    :param p_better: probability that the second is better on a seed; ties count half
    :param confidence: level of the interval
    :param paired: False where the environment ignores its seed, so that the episodes could not be paired
    """

    mean: float
    ci_low: float
    ci_high: float
    p_better: float
    confidence: float
    paired: bool = True

    @property
    def is_mostly_better(self) -> bool:
        """Whether the second is better on nearly all seeds."""
        return self.paired and self.p_better >= 0.9


def paired_difference(
    before: Evaluation,
    after: Evaluation,
    alpha: float = 0.05,
    paired: bool = True,
    fitness: Fitness = episode_return,
) -> PairedDifference:
    """
    Compare two agents seed by seed.

    :param before: episodes of the first agent
    :param after: episodes of the second agent, on the same seeds
    :param alpha: the interval is at confidence ``1 - alpha``, two-sided
    :param paired: whether the same seed means the same episode; if not, a pair is any two episodes
    :param fitness: what to compare; by default the return
    :return: after minus before
    """
    if before.seeds != after.seeds:
        raise ValueError("before and after: expected episodes on the same seeds")
    old, new = ([fitness(episode) for episode in evaluation.episodes] for evaluation in (before, after))
    matched = np.array(new) if paired else np.random.default_rng(0).permutation(new)  # so that pairs are random
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


def failure_rise(before: Evaluation, after: Evaluation, paired: bool = True) -> float:
    """
    Whether the second of two agents fails more often.

    :param before: episodes of the first agent
    :param after: episodes of the second agent, on the same seeds
    :param paired: whether the same seed means the same episode
    :return: p-value, one-sided: McNemar's exact test on pairs, else Fisher's exact test
    """
    old, new = (np.array([episode.failed for episode in evaluation.episodes]) for evaluation in (before, after))
    if not paired:
        table = [[new.sum(), (~new).sum()], [old.sum(), (~old).sum()]]
        return float(stats.fisher_exact(table, alternative="greater").pvalue)
    worse, differ = int((new & ~old).sum()), int((new != old).sum())
    return float(stats.binomtest(worse, differ, alternative="greater").pvalue) if differ else 1.0
