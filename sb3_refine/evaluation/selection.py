"""Which of the iterates of a search is put to the test: sequential halving on validation seeds."""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import stats

from sb3_refine.evaluation.statistics import least_difference
from sb3_refine.rollouts.episode import Episode


@dataclass
class Iterate:
    """
    One point that a search has come by.

    :param name: what to call it
    :param update: number of updates that led to it
    :param vector: its parameters
    :param episodes: on the first of the validation seeds
    """

    name: str
    update: int
    vector: np.ndarray
    episodes: list[Episode] = field(default_factory=list)


def distinct(iterates: Sequence[Iterate]) -> list[Iterate]:
    """
    :param iterates: any iterates
    :return: the first of each that have the same parameters
    """
    first: dict[bytes, Iterate] = {}
    for iterate in iterates:
        first.setdefault(iterate.vector.tobytes(), iterate)
    return list(first.values())


def sequential_halving(
    iterates: Sequence[Iterate],
    seeds: Sequence[int],
    evaluate: Callable[[np.ndarray, Sequence[int]], list[Episode]],
    score: Callable[[Sequence[Episode]], float],
    is_eligible: Callable[[Sequence[Episode]], bool] = lambda episodes: True,
) -> Iterate:
    """
    Find the best of some iterates: run all on a few seeds, the better half of them on as many more, and so on, so that
    the last two have been run on all (Karnin, Koren and Somekh, 2013, "Almost optimal exploration in multi-armed
    bandits", http://proceedings.mlr.press/v28/karnin13.html; here all rounds of an iterate count, on common seeds).

    :param iterates: at least one; their episodes are noted in them
    :param seeds: validation seeds
    :param evaluate: runs parameters on seeds
    :param score: of the episodes of an iterate; NaN where one is invalid
    :param is_eligible: whether, by its episodes, an iterate is fit to be chosen; those that are not come after all
        others
    :return: the one with the highest score
    """

    def rank(iterate: Iterate) -> tuple[bool, float]:
        value = score(iterate.episodes)
        return (False, -math.inf) if math.isnan(value) else (is_eligible(iterate.episodes), value)

    remaining = list(iterates)
    n_rounds = math.ceil(math.log2(len(remaining)))
    for n_left in reversed(range(n_rounds)):
        n_seeds = max(1, len(seeds) >> n_left)
        for iterate in remaining:
            iterate.episodes += evaluate(iterate.vector, seeds[len(iterate.episodes) : n_seeds])
        remaining.sort(key=rank, reverse=True)
        del remaining[math.ceil(len(remaining) / 2) :]
    return remaining[0]


def episodes_to_resolve(before: np.ndarray, after: np.ndarray, effect: float, alpha: float) -> int:
    r"""
    How many pairs of episodes it takes to resolve a difference, as far as some pairs can tell: the least n with

    .. math:: (z_{1 - \alpha / 2} + z_{0.8}) \frac{s_d}{\sqrt{n}} + \ln \frac{2}{\alpha} \frac{w}{n} \le \Delta

    where the second term is the weight that :func:`~sb3_refine.evaluation.statistics.mean_interval` gives to one more,
    worst pair, which is :math:`w` below the mean.

    :param before: of some episodes; pairs with NaN are left out
    :param after: the same of the other
    :param effect: the difference :math:`\Delta` to resolve
    :param alpha: level of the test
    :return: number of pairs, at least 2; without two finite pairs, as many as one likes
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
