"""The numbers a person trusts, and the decision on them."""

import numpy as np
import pytest
from scipy import stats

from sb3_refine.acceptance import decide
from sb3_refine.evaluation import Evaluation, PairedDifference, bootstrap_interval, paired_difference
from sb3_refine.rollout import Episode


def evaluation(returns, terminated=False, seeds=None):
    seeds = tuple(range(len(returns)) if seeds is None else seeds)
    return Evaluation(seeds, tuple(Episode(float(r), 10, terminated) for r in returns))


def test_summary_of_known_returns():
    episodes = tuple(Episode(float(r), 5 * r, r < 4) for r in range(1, 21))
    assert Evaluation(tuple(range(20)), episodes).summary() == pytest.approx(
        {
            "mean_return": 10.5,
            "std_return": np.std(range(1, 21)),
            "min_return": 1.0,
            "cvar10_return": 1.5,  # the mean of the two worst
            "mean_length": 52.5,
            "failure_rate": 0.15,
            "n_episodes": 20,
        }
    )


def test_paired_difference_pairs_by_seed():
    difference = paired_difference(evaluation([1, 2, 3, 4]), evaluation([2, 3, 4, 3]))
    assert difference.mean == 0.5
    assert difference.p_better == 0.75
    assert difference.ci_low < 0.5 < difference.ci_high


def test_ties_count_half():
    assert paired_difference(evaluation([1, 2]), evaluation([1, 3])).p_better == 0.75


def test_other_seeds_cannot_be_compared():
    with pytest.raises(ValueError, match="same seeds"):
        paired_difference(evaluation([1, 2]), evaluation([1, 2], seeds=(5, 6)))


def test_bootstrap_interval_of_normal_data_is_that_of_theory():
    values = np.random.default_rng(0).normal(10, 3, size=2000)
    low, high = bootstrap_interval(np.mean, [values], alpha=0.05)
    expected = stats.norm.interval(0.95, values.mean(), values.std() / np.sqrt(2000))
    assert (low, high) == pytest.approx(expected, rel=2e-3)
    assert bootstrap_interval(np.mean, [values], alpha=0.5)[0] > low


def test_bootstrap_interval_of_constant_data_is_a_point():
    assert bootstrap_interval(np.mean, [np.full(10, 2.0)], 0.05) == (2.0, 2.0)


def test_without_common_seeds_the_episodes_are_independent_samples():
    """The pairing is worth a narrower interval; without it, the interval is that of two means."""
    rng = np.random.default_rng(0)
    luck = rng.normal(0, 10, size=2000)
    before, after = evaluation(luck), evaluation(luck + 1)
    paired, unpaired = paired_difference(before, after), paired_difference(before, after, paired=False)
    assert (paired.ci_low, paired.ci_high) == pytest.approx((1, 1))
    expected = stats.norm.interval(0.95, 1, np.sqrt(2 * luck.var() / 2000))
    assert (unpaired.ci_low, unpaired.ci_high) == pytest.approx(expected, abs=0.05)
    assert unpaired.p_better == pytest.approx(stats.norm.cdf(1 / np.sqrt(200)), abs=0.01)
    assert not unpaired.paired


@pytest.mark.parametrize(
    ("interval", "decision", "reason"),
    [
        ((0.1, 5.0), "refined", "better on held-out seeds"),
        ((0.0, 5.0), "original", "not significantly better"),
        ((-1.0, 5.0), "original", "not significantly better"),
        ((-5.0, -0.1), "original", "worse on held-out seeds"),
    ],
)
def test_refined_only_if_the_interval_lies_above_zero(interval, decision, reason):
    verdict = decide(PairedDifference(float(np.mean(interval)), *interval, p_better=0.5, confidence=0.95))
    assert verdict.decision == decision
    assert reason in verdict.reason
