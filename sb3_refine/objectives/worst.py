"""The worst of several episodes."""

from collections.abc import Sequence

import numpy as np

from sb3_refine.errors import check_count
from sb3_refine.objectives.base import Objective, returns_of
from sb3_refine.rollouts.episode import Episode

_WEIGHT_OF_MEAN = 0.1  # for the search: returns above all of the original's must count, too


class Worst(Objective):
    r"""
    The expected return of the worst of ``k`` episodes, :math:`E[\min(R_1, \dots, R_k)]`. In a family of tasks, the
    worst of ``k`` tasks.

    This is a mean of the conditional values at risk of all levels, each with a weight: a spectral risk measure
    (Acerbi, 2002, "Spectral measures of risk: a coherent representation of subjective risk aversion") with the
    spectrum :math:`\varphi(p) = k (1 - p)^{k - 1}`. So, as in :class:`~sb3_refine.objectives.cvar.CVaR`, the fitness of
    an episode is :math:`\sum_j m_j (q_j - \max(0, q_j - R) / p_j)`, where :math:`q_j` is the original's quantile at
    :math:`p_j`, and the weights :math:`m_j` follow from the spectrum. Its mean is the expected worst return of the
    original, and at most that of any other agent.

    :param k: episodes of which the worst counts
    """

    needs_baseline = True
    verdict_note = " (a lower bound; the table has the expected worst itself)"

    def __init__(self, k: int = 5):
        check_count("objective: k", k, 2, 1000)
        self.k = int(k)
        self._quantiles = self._weights = self._levels = np.empty(0)

    def calibrate(self, baseline: Sequence[Episode]) -> None:
        """:param baseline: the quantiles are estimated from these episodes"""
        n = len(baseline)
        spectrum = np.append(_weights(n, self.k), 0.0)
        self._quantiles = np.sort(returns_of(baseline))
        self._levels = np.arange(1, n + 1) / n
        self._weights = -np.diff(spectrum) * np.arange(1, n + 1)

    def fitness(self, episode: Episode) -> float:
        """:return: how much the episode adds to the expected worst return"""
        shortfall = np.maximum(0.0, self._quantiles - episode.episode_return) / self._levels
        return float(self._weights @ (self._quantiles - shortfall)) + 0 * episode.episode_return

    def of_population(self, episodes: Sequence[Sequence[Episode]]) -> np.ndarray:
        """:return: the mean fitness of each candidate, and a tenth of its mean return"""
        return super().of_population(episodes) + [_WEIGHT_OF_MEAN * returns_of(own).mean() for own in episodes]

    def of_episodes(self, episodes: Sequence[Episode]) -> float:
        """:return: the expected worst return of ``k`` of these episodes, drawn with replacement"""
        returns = np.sort(returns_of(episodes))
        return float(returns @ _weights(returns.size, self.k))

    def figures(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """:return: the expected worst return"""
        return {f"expected worst of {self.k}": self.of_episodes(episodes)}


def _weights(n: int, k: int) -> np.ndarray:
    """The probability of each of ``n`` sorted values to be the smallest of ``k`` drawn with replacement."""
    above = (np.arange(n, -1, -1) / n) ** k
    return above[:-1] - above[1:]
