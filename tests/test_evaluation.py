"""The numbers a person trusts, and the decision on them."""

import numpy as np
import pytest
from scipy import stats

from sb3_refine.evaluation.acceptance import decide
from sb3_refine.evaluation.evaluation import Evaluation, failure_rise, paired_difference
from sb3_refine.evaluation.statistics import mean_interval, wilson_interval
from sb3_refine.evaluation.tables import figures_table
from sb3_refine.formatting import number_text
from sb3_refine.rollouts.episode import Episode
from sb3_refine.search.result import with_advice


def evaluation(returns, terminated=False, seeds=None):
    seeds = tuple(range(len(returns)) if seeds is None else seeds)
    return Evaluation(seeds, tuple(Episode(float(r), 10, terminated) for r in returns))


def test_a_single_pair_has_no_interval():
    assert mean_interval(np.array([1.0]), np.array([3.0]), 0.05) == (-np.inf, np.inf)


def test_a_rare_success_could_have_happened_to_either_agent():
    """A single success, where there was none before, is no gain; seven are, by McNemar's test, too."""
    none = np.zeros(100)
    for n, is_gain in ((1, False), (3, False), (7, True)):
        some = np.arange(100) < n
        assert (mean_interval(none, some.astype(float), 0.05)[0] > 0) == is_gain
        assert (mean_interval(some.astype(float), none, 0.05)[1] < 0) == is_gain


def test_rare_successes_are_no_proof_of_a_gain():
    """At a rate of 1% for either agent."""
    rng = np.random.default_rng(0)
    trials = [mean_interval(*(rng.random((2, 100)) < 0.01).astype(float), 0.05)[0] > 0 for _ in range(300)]
    assert np.mean(trials) <= 0.025


def test_summary_of_known_returns():
    episodes = tuple(Episode(float(r), 5 * r, r < 4) for r in range(1, 21))
    summary = Evaluation(tuple(range(20)), episodes).summary()
    low, high = summary.pop("failure_rate_ci")
    assert summary == pytest.approx(
        {
            "mean_return": 10.5,
            "std_return": np.std(range(1, 21)),
            "median_return": 10.5,
            "min_return": 1.0,
            "cvar10_return": 1.5,  # the mean of the two worst
            "mean_length": 52.5,
            "failure_rate": 0.15,
            "n_episodes": 20,
        }
    )
    assert (low, high) == pytest.approx((0.0524, 0.3604), abs=1e-4)  # Wilson (1927) for 3 of 20


def test_success_and_metrics_are_in_the_summary_where_known():
    episodes = tuple(Episode(1.0, 5, False, i < 3, {"action_jerk": float(i)}) for i in range(4))
    summary = Evaluation(tuple(range(4)), episodes).summary()
    assert (summary["success_rate"], summary["action_jerk"]) == (0.75, 1.5)
    assert summary["success_rate_ci"] == wilson_interval(3, 4)


def test_episodes_that_do_not_say_whether_they_succeeded_did_not_where_others_do():
    """Some environments set is_success on success only."""
    episodes = tuple(Episode(1.0, 5, False, True if i < 3 else None) for i in range(4))
    assert Evaluation(tuple(range(4)), episodes).success_rate == 0.75


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


def test_the_interval_of_many_normal_data_matches_theory():
    differences = np.random.default_rng(0).normal(10, 3, size=2000)
    before = np.zeros(2000)
    expected = stats.norm.interval(0.95, differences.mean(), differences.std() / np.sqrt(2000))
    assert mean_interval(before, differences, alpha=0.05) == pytest.approx(expected, rel=5e-3)
    assert mean_interval(before, differences, alpha=0.5)[0] > expected[0]


def test_the_interval_changes_sign_when_the_agents_are_swapped():
    rng = np.random.default_rng(0)
    before, after = rng.exponential(1, size=(2, 30))
    low, high = mean_interval(before, after, 0.05)
    assert mean_interval(after, before, 0.05) == pytest.approx((-high, -low))


def test_the_bound_assumes_one_more_worst_pair():
    """With all differences equal it can be computed: the worst pair's weight is beta-distributed."""
    before, after = np.array([0.0, 10.0] * 10), np.array([1.0, 11.0] * 10)
    weight = stats.beta(1, 20).ppf(0.975)
    worst = 0.0 - 5.0  # the lowest return against the mean of the original
    assert mean_interval(before, after, 0.05)[0] == pytest.approx((1 - weight) * 1 + weight * worst, abs=0.02)


def test_the_same_on_every_seed_is_no_difference():
    assert mean_interval(np.arange(10.0), np.arange(10.0), 0.05) == (0.0, 0.0)


@pytest.mark.parametrize("n", [5, 10, 30, 100])
def test_rare_catastrophes_that_did_not_happen_are_no_proof(n):
    """
    Better by 1 on 97 seeds of 100, as bad as anything seen on the others: no better. Where none of the others is among
    the seeds, all differences are 1.
    """
    rng = np.random.default_rng(0)
    n_accepted = 0
    for _ in range(500):
        before = np.where(rng.random(n) < 0.5, 0.0, 64.0)  # the mean is 32
        after = np.where(rng.random(n) < 0.03, before - 97 / 3, before + 1)
        n_accepted += mean_interval(before, after, 0.05)[0] > 0
    assert stats.binomtest(n_accepted, 500, 0.05, alternative="greater").pvalue > 0.01


def test_without_common_seeds_the_episodes_are_independent_samples():
    """The pairing is worth a narrower interval; without it, the interval is that of two means."""
    rng = np.random.default_rng(0)
    luck = rng.normal(0, 10, size=2000)
    before, after = evaluation(luck), evaluation(luck + 1)
    paired, unpaired = paired_difference(before, after), paired_difference(before, after, paired=False)
    assert (paired.ci_low, paired.ci_high) == pytest.approx((1, 1), abs=0.1)
    expected = stats.norm.interval(0.95, 1, np.sqrt(2 * luck.var() / 2000))
    assert (unpaired.ci_low, unpaired.ci_high) == pytest.approx(expected, abs=0.1)
    assert unpaired.p_better == pytest.approx(stats.norm.cdf(1 / np.sqrt(200)), abs=0.01)
    assert not unpaired.paired


def judge(gain, **kwargs):
    """The verdict on an agent whose returns are the original's plus a gain, on 200 seeds."""
    before = np.random.default_rng(0).normal(100, 10, size=200)
    return decide(evaluation(before), evaluation(before + gain), **kwargs)


def test_an_agent_that_is_better_is_accepted():
    verdict = judge(np.random.default_rng(1).normal(3, 5, size=200))
    assert verdict.decision == "refined"
    assert "better on held-out seeds: paired difference +" in verdict.reason
    assert verdict.difference.ci_low > 0


@pytest.mark.parametrize(
    ("gain", "reason", "advice"),
    [
        (np.random.default_rng(1).normal(0.5, 5, size=200), "not significantly better", "more held-out episodes"),
        (np.random.default_rng(1).normal(-3, 5, size=200), "worse on held-out seeds", "smaller steps"),
        (0.0, "no different on any of the 200 held-out seeds", "at its best already"),
    ],
)
def test_otherwise_the_original_is_kept_after_a_search_with_advice(gain, reason, advice):
    verdict = judge(gain)
    assert verdict.decision == "original"
    assert reason in verdict.reason
    assert advice not in verdict.reason
    assert advice in with_advice(verdict, 200).reason


def test_few_episodes_are_named_as_the_reason():
    before = np.arange(10.0)
    verdict = decide(evaluation(before), evaluation(before + 1))  # better on ten of ten seeds
    assert verdict.decision == "original"
    assert with_advice(verdict, 10).reason.endswith(
        "10 held-out episodes are too few for this difference: try n_eval_episodes=100 and another seed"
    )


def test_a_small_gain_on_nearly_all_seeds_is_explained():
    before = np.random.default_rng(0).normal(-160, 110, size=100)
    verdict = decide(evaluation(before), evaluation(before + np.linspace(1, 8, 100)))
    assert verdict.decision == "original"
    assert verdict.reason.startswith(
        "better on nearly all of the 100 held-out seeds, but a few bad episodes can cancel"
    )
    assert with_advice(verdict, 100).reason.endswith("Try n_eval_episodes=300 and another seed, or more updates")


def test_an_accepted_agent_that_still_fails_mostly_is_said_to_fail():
    before = np.random.default_rng(0).normal(100, 10, size=100)
    assert decide(failing(90, before), failing(80, before + 20)).reason.endswith(
        "; it still fails in 80% of the episodes"
    )
    assert "fails" not in decide(failing(90, before), failing(40, before + 20)).reason


def test_the_worst_tenth_of_a_few_episodes_is_not_shown():
    shown = {n: figures_table({"original": evaluation(np.arange(float(n)))}).columns[0] for n in (19, 20)}
    assert ["worst tenth (CVaR10)" in set(column.cells) for column in shown.values()] == [False, True]


def failing(n_failures, returns):
    return Evaluation(tuple(range(100)), tuple(Episode(r, 10, i < n_failures) for i, r in enumerate(returns)))


def test_a_significant_rise_of_the_failure_rate_vetoes_a_better_mean():
    before, after = failing(1, np.zeros(100)), failing(8, np.full(100, 5.0))
    assert failure_rise(before, after) == pytest.approx(0.5**7)  # McNemar: 7 seeds of 7 got worse
    verdict = decide(before, after)
    assert verdict.decision == "original"
    assert "it fails more often: 1.0% before, 8.0% after" in verdict.reason
    assert decide(failing(1, np.zeros(100)), failing(4, np.full(100, 5.0))).decision == "refined"  # p = 0.125


def test_without_common_seeds_failures_are_compared_by_fishers_test():
    before, after = failing(1, np.zeros(100)), failing(8, np.full(100, 5.0))
    expected = stats.fisher_exact([[8, 92], [1, 99]], alternative="greater").pvalue
    assert failure_rise(before, after, paired=False) == expected


def test_a_loss_of_return_vetoes_a_gain_in_another_objective():
    before, after = evaluation(np.full(50, 100.0)), evaluation(np.full(50, 90.0))

    def steadiness(episode):
        return -abs(episode.episode_return - 90)

    assert decide(before, after, fitness=steadiness).decision == "refined"
    verdict = decide(before, after, fitness=steadiness, max_return_loss=0.05)
    assert verdict.decision == "original"
    assert "its return falls from 100 to 90, more than 5% (max_return_loss)" in verdict.reason
    assert verdict.reason.startswith("better: paired difference +")
    assert "more than 2.5% (max" in decide(before, after, fitness=steadiness, max_return_loss=0.025).reason


def test_numbers_are_rounded_to_significant_digits():
    assert [number_text(value) for value in (1234.567, -0.5, 0.0, 3e-14, 0.01234, -1.2e-6)] == [
        "1234.57", "-0.50", "0.00", "0.00", "0.0123", "-1.2e-06",
    ]  # fmt: skip
    assert number_text(2.0, "+") == "+2.00"
