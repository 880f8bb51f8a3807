"""The decision: refined or original."""

from dataclasses import dataclass

from sb3_refine.evaluation import PairedDifference

REFINED, ORIGINAL, UNCHECKED = "refined", "original", "unchecked"


@dataclass(frozen=True)
class Decision:
    """
    What a run gives back.

    :param decision: ``"refined"``, ``"original"`` or ``"unchecked"``
    :param reason: why, in plain words
    """

    decision: str
    reason: str


def decide(difference: PairedDifference) -> Decision:
    """
    Accept the refined agent only if it is better on held-out seeds.

    :param difference: refined minus original on the same held-out seeds
    :return: ``"refined"`` if the interval's lower bound is above 0, else ``"original"``
    """
    interval = f"[{difference.ci_low:.4g}, {difference.ci_high:.4g}] at {difference.confidence:.0%}"
    if difference.ci_low > 0:
        return Decision(REFINED, f"better on held-out seeds: paired difference {difference.mean:+.4g} {interval}")
    verdict = "worse on held-out seeds" if difference.ci_high < 0 else "not significantly better on held-out seeds"
    return Decision(ORIGINAL, f"{verdict}: paired difference {difference.mean:+.4g} {interval}; the original is kept")


def unchecked(reason: str) -> Decision:
    """
    :param reason: why there was no test
    :return: a decision that claims nothing
    """
    return Decision(UNCHECKED, reason)
