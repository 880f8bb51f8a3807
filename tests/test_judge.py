"""Judging candidates from any source, without a search."""

import numpy as np
import pytest
from conftest import ENV_ID, target_of, train

from sb3_refine import RefineError, load_agent
from sb3_refine.cli.options import DEMO
from sb3_refine.evaluation.judge import JudgeSettings, judge_candidates
from sb3_refine.evaluation.selection import Candidate
from sb3_refine.evaluation.target import EvaluationTarget
from sb3_refine.objectives import make_objective
from sb3_refine.rollouts.metrics import SMOOTHNESS
from sb3_refine.seeding import EpisodeSeeds

SETTINGS = JudgeSettings(n_eval_episodes=12)


@pytest.fixture(scope="module")
def demo():
    return target_of(load_agent(DEMO["algo"], DEMO["env"], DEMO["folder"]))


@pytest.fixture(scope="module")
def untrained(made_agents):
    """Another agent for the same environment, with a network and workers of its own."""
    return target_of(load_agent("a2c", ENV_ID, made_agents))


def test_a_better_agent_from_elsewhere_is_accepted(demo, untrained):
    better, worse = (Candidate(name, target) for name, target in (("demo", demo), ("zeros", zeros(untrained))))
    verdict = judge_candidates(Candidate("untrained", untrained), [worse, better], SETTINGS, EpisodeSeeds(3))
    assert verdict.decision.decision == "refined"
    assert verdict.chosen is better
    seeds = EpisodeSeeds(3).take("test", 12)
    assert verdict.candidate == demo.run(seeds, SMOOTHNESS)
    assert verdict.baseline == untrained.run(seeds, SMOOTHNESS)
    assert [(one["name"], one["n_episodes"], one["chosen"]) for one in verdict.candidates] == [
        ("untrained", 6, False),
        ("zeros", 6, False),
        ("demo", 6, True),
    ]


def test_a_worse_agent_is_refused(demo, untrained):
    verdict = judge_candidates(Candidate("demo", demo), [Candidate("untrained", untrained)], SETTINGS, EpisodeSeeds(0))
    assert verdict.decision.decision == "original"
    assert verdict.decision.reason.startswith("worse on held-out seeds")
    assert verdict.paired_difference.mean < 0


def test_no_candidate_and_the_original_itself_change_nothing(demo):
    nothing = judge_candidates(Candidate("demo", demo), [], SETTINGS, EpisodeSeeds(0))
    assert nothing.decision.reason == "nothing was searched: there is no candidate but the original"
    same = judge_candidates(Candidate("demo", demo), [Candidate("demo too", demo)], SETTINGS, EpisodeSeeds(0))
    assert same.decision.reason.startswith("no different on any of the 12 held-out seeds")


def test_without_selection_the_first_candidate_is_tested(demo, untrained):
    settings = JudgeSettings(n_eval_episodes=12, selection=False)
    candidates = [Candidate("untrained", untrained), Candidate("demo", demo)]
    verdict = judge_candidates(Candidate("zeros", zeros(demo)), candidates, settings, EpisodeSeeds(0))
    assert verdict.chosen.name == "untrained"
    assert [one["name"] for one in verdict.candidates] == ["zeros", "untrained"]


@pytest.fixture
def auto(monkeypatch):
    """The default settings, with fewer episodes."""
    monkeypatch.setattr("sb3_refine.evaluation.judge.AUTO_EPISODES", (40, 60))
    return JudgeSettings()


def n_tested(original, candidates, settings):
    candidates = [Candidate(f"candidate {number}", target) for number, target in enumerate(candidates)]
    verdict = judge_candidates(Candidate("original", original), candidates, settings, EpisodeSeeds(0))
    assert len(verdict.candidate.seeds) == len(verdict.baseline.seeds)
    return len(verdict.baseline.seeds)


@pytest.mark.slow
def test_the_number_of_test_episodes_depends_on_the_gain_on_validation_seeds(demo, untrained, auto):
    up, down = (EvaluationTarget(demo.evaluator, demo.theta * np.float32(factor)) for factor in (1.001, 0.999))
    assert n_tested(untrained, [demo, zeros(untrained)], auto) == 40  # a large gain
    assert n_tested(demo, [up], auto) + n_tested(demo, [down], auto) == 100  # one of them is worse
    assert n_tested(demo, [up, down], auto) == 60  # one of them is a little better
    assert n_tested(demo, [untrained, zeros(untrained)], auto) == 40  # there is nothing to show
    assert n_tested(demo, [demo], auto) == 40
    assert n_tested(demo, [up, down], auto.for_limited_time()) == 40
    assert n_tested(demo, [up, down], JudgeSettings(n_eval_episodes=12).for_limited_time()) == 12


def test_another_objective_is_calibrated_on_the_original():
    objective = make_objective("smooth:weight=0.5")
    demo = target_of(load_agent(DEMO["algo"], DEMO["env"], DEMO["folder"]), objective)
    settings = JudgeSettings(objective, n_eval_episodes=4)
    verdict = judge_candidates(Candidate("demo", demo), [Candidate("zeros", zeros(demo))], settings, EpisodeSeeds(0))
    assert "in Smooth:weight=0.5" in verdict.decision.reason
    assert objective.change > 0


def zeros(target):
    return EvaluationTarget(target.evaluator, np.zeros_like(target.theta))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"n_eval_episodes": "atuo"}, r"n_eval_episodes: unknown 'atuo' \(did you mean auto\?\)"),
        ({"n_eval_episodes": 1}, "n_eval_episodes: expected a whole number of at least 2, got 1"),
        ({"alpha": 1.0}, "alpha: expected a number between 0 and 1, got 1.0"),
        ({"min_effect": -1.0, "n_eval_episodes": "auto"}, "min_effect: expected a positive number, got -1.0"),
        ({"min_effect": 1.0, "n_eval_episodes": 100}, "min_effect: only used with n_eval_episodes='auto'"),
        ({"max_return_loss": 2}, "max_return_loss: expected a share from 0 to 1, or inf for any, got 2"),
    ],
)
def test_settings_out_of_range_are_one_line(arguments, line):
    with pytest.raises(RefineError, match=line):
        JudgeSettings(**arguments)


def test_a_model_in_memory_can_be_judged(demo):
    from sb3_refine.agents.from_model import agent_from_model

    model = train("ppo")
    verdict = judge_candidates(
        Candidate("trained", target_of(agent_from_model(model))), [Candidate("demo", demo)], SETTINGS, EpisodeSeeds(0)
    )
    assert verdict.decision.decision == "refined"
