"""Which candidate is tested: sequential halving on validation seeds."""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import stats

from sb3_refine.evaluation.statistics import least_difference
from sb3_refine.evaluation.target import Target
from sb3_refine.rollouts.episode import Episode


@dataclass(eq=False)
class Candidate:
    """
    A policy that is judged.

    :param name: what tables call the policy
    :param target: the policy, fit to be evaluated
    :param update: number of updates that led to the policy, where it comes from a search
    :param episodes: on the first of the validation seeds
    """

    name: str
    target: Target
    update: int | None = None
    episodes: list[Episode] = field(default_factory=list)

    def run_on(self, seeds: Sequence[int], metrics: Sequence[str] = ()) -> None:
        """
        Run the episodes that are still missing.

        :param seeds: validation seeds, those of :attr:`episodes` first
        :param metrics: of each episode
        """
        missing = seeds[len(self.episodes) :]
        if missing:
            self.episodes += self.target.run(missing, metrics).episodes


def sequential_halving(
    candidates: Sequence[Candidate],
    seeds: Sequence[int],
    metrics: Sequence[str],
    score: Callable[[Sequence[Episode]], float],
    is_eligible: Callable[[Sequence[Episode]], bool] = lambda episodes: True,
) -> Candidate:
    """
    Find the best of some candidates: run all on a few seeds, the better half of them on as many more, and so on, so
    that the last two have been run on all (Karnin, Koren and Somekh, 2013, "Almost optimal exploration in multi-armed
    bandits", http://proceedings.mlr.press/v28/karnin13.html; here all rounds of a candidate count, on common seeds).

    :param candidates: at least one; their episodes are noted in them
    :param seeds: validation seeds
    :param metrics: of each episode
    :param score: of the episodes of a candidate; NaN where one is invalid
    :param is_eligible: whether, by its episodes, a candidate may be chosen; those that may not come after all others
    :return: the one with the highest score
    """

    def rank(candidate: Candidate) -> tuple[bool, float]:
        value = score(candidate.episodes)
        return (False, -math.inf) if math.isnan(value) else (is_eligible(candidate.episodes), value)

    remaining = list(candidates)
    for n_remaining, n_seeds in _rounds(len(candidates), len(seeds)):
        del remaining[n_remaining:]
        for candidate in remaining:
            candidate.run_on(seeds[:n_seeds], metrics)
        remaining.sort(key=rank, reverse=True)
    return remaining[0]


def _rounds(n_candidates: int, n_seeds: int) -> Iterator[tuple[int, int]]:
    """Of each round of :func:`sequential_halving`, the candidates that are left, and the seeds they are run on."""
    for n_left in reversed(range(math.ceil(math.log2(n_candidates)))):
        yield n_candidates, max(1, n_seeds >> n_left)
        n_candidates = math.ceil(n_candidates / 2)


def n_selection_episodes(n_candidates: int, n_seeds: int) -> int:
    """
    :param n_candidates: at least one
    :param n_seeds: validation seeds
    :return: episodes that :func:`sequential_halving` runs
    """
    n_episodes = n_done = 0
    for n_remaining, n in _rounds(n_candidates, n_seeds):
        n_episodes += n_remaining * (n - n_done)
        n_done = n
    return n_episodes


def episodes_to_resolve(before: np.ndarray, after: np.ndarray, effect: float, alpha: float) -> int:
    r"""
    Estimate from some pairs of episodes how many pairs it takes to resolve a difference: the smallest n with

    .. math:: (z_{1 - \alpha / 2} + z_{0.8}) \frac{s_d}{\sqrt{n}} + \ln \frac{2}{\alpha} \frac{w}{n} \le \Delta

    where the second term is what the additional pair of :func:`~sb3_refine.evaluation.statistics.mean_interval`, which
    is :math:`w` below the mean, adds to the half-width of the interval.

    >>> before = np.array([10.0, 12.0, 9.0, 11.0] * 25)
    >>> episodes_to_resolve(before, before + np.array([1.0, 2.0, 0.0, 1.0] * 25), effect=0.2, alpha=0.05)
    209

    :param before: one value for each episode of the first agent; pairs with NaN are left out
    :param after: the same for the second agent
    :param effect: the difference :math:`\Delta` to resolve
    :param alpha: level of the test
    :return: number of pairs, at least 2; ``sys.maxsize`` where there are not two finite pairs
    """
    valid = np.isfinite(after - before)
    before, after = before[valid], after[valid]
    if before.size < 2:
        return sys.maxsize
    differences = after - before
    z = stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(0.8)
    spread = z * differences.std(ddof=1)
    tail = math.log(2 / alpha) * (differences.mean() - least_difference(before, after)) if differences.any() else 0.0
    root = (spread + math.sqrt(spread**2 + 4 * effect * tail)) / (2 * effect)
    return max(2, math.ceil(root**2))
