"""Rounded weights: what the formats can hold, and refinement under rounding."""

import json

import numpy as np
import pytest
from conftest import ENV_ID, run_policy, target_of

from sb3_refine import RefineError, Refiner, load_agent
from sb3_refine.agents.copies import with_rounding
from sb3_refine.evaluation.target import rollout_task
from sb3_refine.evaluators import SerialEvaluator
from sb3_refine.policies.parameters import PolicyParameters
from sb3_refine.policies.rounding import ROUNDINGS, Rounding, as_integers, rounded


def weights(seed=0, shape=(30, 50)):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32) * np.geomspace(1e-3, 1e3, shape[0])[
        :, None
    ].astype(np.float32)


@pytest.mark.parametrize(("name", "largest"), [("int8", 127), ("int4", 7)])
def test_each_row_uses_all_integers_and_is_off_by_half_a_step_at_most(name, largest):
    tensor = weights()
    values, scale = as_integers(tensor, name)
    assert (np.abs(values).max(axis=1) == largest).all()
    assert (np.abs(values * scale - tensor) <= 0.5001 * scale).all()
    assert (scale[:, 0] <= np.abs(tensor).max(axis=1) / largest * 1.001).all()


@pytest.mark.parametrize("name", ROUNDINGS)
def test_to_round_again_changes_nothing(name):
    for seed in range(20):
        once = rounded(weights(seed), name)
        np.testing.assert_array_equal(rounded(once, name), once)
        assert not np.array_equal(once, weights(seed))


def test_products_of_scale_and_integers_are_exact():
    """So that a device that multiplies in float32 has the numbers that were tested."""
    values, scale = as_integers(weights(), "int8")
    np.testing.assert_array_equal(
        (values * scale).astype(np.float64), values.astype(np.float64) * scale.astype(np.float64)
    )


def test_float16_is_that_of_numpy_and_integers_leave_biases_alone():
    bias = np.array([0.1, 1e-3, 3.0], np.float32)
    np.testing.assert_array_equal(rounded(bias, "float16"), bias.astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(rounded(bias, "int8"), bias)


def test_a_row_of_zeros_stays_zero():
    np.testing.assert_array_equal(rounded(np.zeros((2, 3), np.float32), "int8"), np.zeros((2, 3)))


@pytest.mark.parametrize("algo", ["ppo", "sac"])
@pytest.mark.parametrize("parameters", ["actor", "head"])
def test_every_candidate_is_rounded_before_its_rollout(made_agents, algo, parameters):
    agent = load_agent(algo, ENV_ID, made_agents)
    searched = PolicyParameters(agent.model.policy, parameters)
    theta = searched.get_theta() + np.float32(0.01)
    with SerialEvaluator(rollout_task(agent, searched, quantize="int4")) as evaluator:
        (ours,) = run_policy(evaluator, theta, [5])
    searched.set_theta(theta)
    whole = with_rounding(agent, "int4")  # the layers that are not searched are rounded, too
    assert ours.episode_return == target_of(whole).run([5]).returns[0] != target_of(agent).run([5]).returns[0]


@pytest.mark.parametrize("parameters", ["actor", "head"])
def test_the_verdict_is_about_rounded_weights(made_agents, tmp_path, parameters):
    agent = load_agent("sac", ENV_ID, made_agents)
    rounded_original = with_rounding(agent, "int4")
    before = PolicyParameters(agent.model.policy).get_theta()
    refiner = Refiner(agent, quantize="int4", parameters=parameters, n_delta=4, n_eval_episodes=10, backend="serial")
    refiner.learn(4)
    result = refiner.result
    assert result.baseline.returns.tolist() == target_of(rounded_original).run(result.baseline.seeds).returns.tolist()
    now = PolicyParameters(agent.model.policy)
    if result.decision == "original":
        np.testing.assert_array_equal(now.get_theta(), before)
        refiner._take_over(refiner.tested[1])
    np.testing.assert_array_equal(Rounding("int4", agent.model.policy, now)(now.get_theta()), now.get_theta())
    assert result.candidate.returns.tolist() == target_of(agent).run(result.candidate.seeds).returns.tolist()
    record = json.loads((refiner.save(tmp_path) / "refinement.json").read_text())
    assert record["settings"]["quantize"] == "int4"


def test_workers_in_other_processes_round_too(made_agents):
    agent = load_agent("ppo", ENV_ID, made_agents)
    results = [
        Refiner(agent, quantize="int8", n_delta=2, n_eval_episodes=4, backend=backend, n_workers=n).learn(1).result
        for backend, n in (("serial", 1), ("process", 2))
    ]
    assert results[0].candidate == results[1].candidate


def test_the_command_line_refines_resumes_and_evaluates_under_rounding(run, made_agents, tmp_path):
    chosen = ["--algo", "sac", "--env", ENV_ID, "-f", made_agents, "--backend", "serial", "--quantize", "int8"]
    fast = ["--n-delta", 2, "--n-updates", 2, "--n-eval-episodes", 4, "--no-report", "-o", tmp_path]
    done = run(*chosen, *fast)
    assert done.returncode == 0, done.stderr
    assert "weights: rounded to int8 in all episodes, those of the original too" in done.stdout
    folder = tmp_path / "sac" / f"{ENV_ID}_1"
    assert "--quantize int8" in done.stdout.partition("next:")[2]
    resumed = run("--resume", folder, "--backend", "serial", "--no-report")
    assert resumed.returncode == 0, resumed.stderr
    assert "weights: rounded to int8" in resumed.stdout
    found = run("evaluate", *chosen, "--no-noise", "--n-eval-episodes", 3, "--json", tmp_path / "found.json")
    assert found.returncode == 0, found.stderr
    assert "weights rounded to int8" in found.stdout
    content = json.loads((tmp_path / "found.json").read_text())
    assert content["quantize"] == "int8"
    assert content["agents"]["agent"]["conditions"] != content["agents"]["other"]["conditions"]


def test_an_unknown_format_is_refused(made_agents, run):
    with pytest.raises(
        RefineError, match=r"quantize: unknown 'int16' \(did you mean int8 or int4\?\); choose from float16"
    ):
        Refiner(load_agent("sac", ENV_ID, made_agents), quantize="int16")
    done = run("evaluate", "--demo", "--quantize", "int16")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "--quantize: unknown 'int16'" in done.stderr
