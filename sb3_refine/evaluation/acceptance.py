"""The decision: refined or original."""

from dataclasses import dataclass
from statistics import fmean

from sb3_refine.evaluation.evaluation import (
    Evaluation,
    Fitness,
    PairedDifference,
    episode_return,
    failure_rise,
    paired_difference,
)

REFINED, ORIGINAL, UNCHECKED = "refined", "original", "unchecked"


@dataclass(frozen=True)
class Decision:
    """
    The decision about a candidate.

    :param decision: ``"refined"``, ``"original"`` or ``"unchecked"``
    :param reason: why, in plain words
    :param difference: refined minus original, in what is maximised; None where it was not tested
    """

    decision: str
    reason: str
    difference: PairedDifference | None = None


def decide(
    baseline: Evaluation,
    refined: Evaluation,
    alpha: float = 0.05,
    paired: bool = True,
    fitness: Fitness = episode_return,
    max_return_loss: float | None = None,
    objective: str = "return",
) -> Decision:
    """
    Accept the refined agent only if it is better on held-out seeds.

    If the true mean of what is maximised is not higher than the original's, the original is kept with a probability of
    at least ``1 - alpha`` (about ``1 - alpha / 2``, since the interval is two-sided). This holds if nothing was chosen
    on these seeds, if they are tested once, and if the test has seen how bad episodes of either agent can be. No test
    can ensure the last condition: a catastrophe on fewer than 3 in n seeds may not show in n episodes, and is not
    covered if it is worse than every episode of the test. The bound itself is a conjecture with no known
    counterexample, see :func:`~sb3_refine.evaluation.statistics.mean_interval`; ``benchmarks/acceptance.py`` measures
    it on real returns, and beside other tests where catastrophes are rare.

    An accepted agent need not be better on every seed, nor in another environment, nor fail less often; only, its
    failure rate did not rise significantly at ``alpha``.

    >>> from sb3_refine.rollouts.episode import Episode
    >>> before = Evaluation(range(100), [Episode(100.0 + seed % 10, 50, False) for seed in range(100)])
    >>> after = Evaluation(range(100), [Episode(104.0 + seed % 10, 50, False) for seed in range(100)])
    >>> print(decide(before, after).reason)
    better on held-out seeds: paired difference +4 [3.695, 4.161] at 95%

    :param baseline: episodes of the original on held-out seeds
    :param refined: episodes of the refined agent on the same seeds
    :param alpha: level of significance
    :param paired: whether the same seed means the same episode
    :param fitness: what is maximised
    :param max_return_loss: share of the original's mean return that may be lost where it is not what is maximised
    :param objective: name of what is maximised
    :return: the decision
    """
    difference = paired_difference(baseline, refined, alpha, paired, fitness)
    interval = f"[{difference.ci_low:.4g}, {difference.ci_high:.4g}]"
    figures = f"{difference.mean:+.4g} {interval} at {difference.confidence:.0%}"
    what = "paired difference" if paired else "difference"
    if objective != "return":
        levels = (fmean(map(fitness, which.episodes)) for which in (baseline, refined))
        figures = "{}, from {:.4g} to {:.4g}".format(figures, *levels)
        what = f"{what} in {objective}"
    veto = _veto(baseline, refined, alpha, paired, max_return_loss)
    if difference.ci_low > 0 and veto is None:
        failing = f"; it still fails in {refined.failure_rate:.0%} of the episodes" * (refined.failure_rate >= 0.5)
        return Decision(REFINED, f"better on held-out seeds: {what} {figures}{failing}", difference)
    if difference.ci_low > 0:
        return Decision(ORIGINAL, f"better: {what} {figures}, but {veto}; the original is kept", difference)
    reason = f"{_verdict(difference, len(baseline.seeds))}: {what} {figures}; the original is kept"
    return Decision(ORIGINAL, reason, difference)


def _veto(
    baseline: Evaluation, refined: Evaluation, alpha: float, paired: bool, max_return_loss: float | None
) -> str | None:
    """The reason to refuse an agent although it is better in what is maximised; None where there is none."""
    if failure_rise(baseline, refined, paired) < alpha:
        return (
            f"it fails more often: {baseline.failure_rate:.1%} before, {refined.failure_rate:.1%} after (where "
            "episodes terminate on success, the environment has to say so, by is_success in its info)"
        )
    before, after = baseline.returns.mean(), refined.returns.mean()
    if max_return_loss is not None and loses_too_much(before, after, max_return_loss):
        at_most = f"{100 * max_return_loss:.4g}%"
        return f"its return falls from {before:.4g} to {after:.4g}, more than {at_most} (max_return_loss)"
    return None


def loses_too_much(before: float, after: float, max_return_loss: float | None) -> bool:
    """
    :param before: mean return of the original
    :param after: mean return of the other agent
    :param max_return_loss: share of the original's mean return that may be lost; None for no limit
    :return: whether the other agent loses more
    """
    return max_return_loss is not None and before - after > max_return_loss * abs(before)


def _verdict(difference: PairedDifference, n_seeds: int) -> str:
    if difference.ci_low == difference.ci_high == 0:
        return f"no different on any of the {n_seeds} held-out seeds"
    if difference.ci_high < 0:
        return "worse on held-out seeds"
    if difference.mean > 0 and difference.is_mostly_better:
        return (
            f"better on nearly all of the {n_seeds} held-out seeds, but a few bad episodes can cancel a gain this small"
        )
    return "not significantly better on held-out seeds"


def unchecked(reason: str) -> Decision:
    """
    :param reason: why there was no test
    :return: the decision ``"unchecked"``
    """
    return Decision(UNCHECKED, reason)
