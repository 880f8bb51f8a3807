"""The lower tail of the returns."""

from collections.abc import Sequence

import numpy as np

from sb3_refine.objectives.base import Objective, check_number, returns_of
from sb3_refine.rollouts.episode import Episode
from sb3_refine.rollouts.metrics import tail_mean

_WEIGHT_ABOVE = 0.1  # of returns above the original's median, so that a better agent still has something to improve


class CVaR(Objective):
    r"""
    Mean of the worst episodes: the conditional value at risk.

    The fitness is :math:`q - \max(0, q - R) / \text{share}`, where :math:`q` is the original's quantile, estimated from
    its validation episodes. With the true quantile, the mean fitness is the CVaR of the original, and at most the CVaR
    of any other agent (Rockafellar and Uryasev, 2000, "Optimization of conditional value-at-risk", Eq. 4). So apart
    from the error of the estimate, a gain in fitness is a gain in CVaR that is at least as large.

    The tail itself shows in few episodes, so the search maximises another figure: the mean return, in which what
    exceeds the original's median counts a tenth.

    :param share: of the episodes that count as the worst
    """

    needs_baseline = True
    verdict_note = " (a lower bound; the table has the tail itself)"

    def __init__(self, share: float = 0.1):
        self.share = check_number("share", share, 0.01, 1.0)
        self.quantile = self.median = np.nan

    def calibrate(self, baseline: Sequence[Episode]) -> None:
        """:param baseline: the quantile and the median are estimated from these episodes"""
        returns = returns_of(baseline)
        self.quantile, self.median = float(np.quantile(returns, self.share)), float(np.median(returns))

    def fitness(self, episode: Episode) -> float:
        """:return: the quantile less the shortfall"""
        return (
            self.quantile - max(0.0, self.quantile - episode.episode_return) / self.share + 0 * episode.episode_return
        )

    def of_population(self, episodes: Sequence[Sequence[Episode]]) -> np.ndarray:
        """:return: the mean returns, where what exceeds the original's median counts a tenth"""
        return np.array([self._lower_half(returns_of(own)).mean() for own in episodes])

    def _lower_half(self, returns: np.ndarray) -> np.ndarray:
        return np.minimum(returns, self.median) + _WEIGHT_ABOVE * np.maximum(returns - self.median, 0)

    def of_episodes(self, episodes: Sequence[Episode]) -> float:
        """:return: mean of the worst"""
        return float(tail_mean(returns_of(episodes), self.share))

    def figures(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """:return: mean of the worst episodes; nothing for the worst tenth, which all tables show"""
        return {} if self.share == 0.1 else {f"worst {100 * self.share:.4g}% (CVaR)": self.of_episodes(episodes)}
