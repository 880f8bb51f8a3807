"""``sb3-refine judge`` and ``judge()``: the best of any agents, tested against an original."""

import json
import shutil

import numpy as np
import pytest
from conftest import ENV_ID, NORMALIZED, target_of, train

from sb3_refine import RefineError, judge, load_agent
from sb3_refine.agents.candidates import NamedAgent, find_zips, load_candidates, without_copies
from sb3_refine.cli.main import main
from sb3_refine.cli.options import DEMO
from sb3_refine.evaluation.target import open_targets
from sb3_refine.judging import Judge
from sb3_refine.policies.parameters import PolicyParameters
from sb3_refine.reporting.model_card import model_card
from sb3_refine.reporting.run_folder import read_run_folder
from sb3_refine.rollouts.metrics import SMOOTHNESS

FAST = {"n_eval_episodes": 8, "backend": "serial"}


def demo():
    return load_agent(DEMO["algo"], DEMO["env"], DEMO["folder"])


def theta_of(agent):
    return PolicyParameters(agent.model.policy, "actor").get_theta()


def save_changed(path, factor):
    """The demo agent with parameters that are multiplied; it gets worse."""
    agent = demo()
    parameters = PolicyParameters(agent.model.policy, "actor")
    parameters.set_theta(np.float32(factor) * parameters.get_theta())
    agent.model.save(path)


@pytest.fixture
def logs(tmp_path):
    """A log folder with two checkpoints, of which the demo agent is the later one, and a worse last agent."""
    run_folder = tmp_path / "logs" / DEMO["algo"] / f"{ENV_ID}_1"
    shutil.copytree(DEMO["folder"] / DEMO["algo"] / f"{ENV_ID}_1", run_folder)
    (run_folder / f"{ENV_ID}.zip").rename(run_folder / "rl_model_1000_steps.zip")
    save_changed(run_folder / "rl_model_90_steps.zip", 0.0)
    save_changed(run_folder / f"{ENV_ID}.zip", 0.1)
    (run_folder / "train_eval_metrics.zip").write_bytes(b"what the Zoo puts beside an agent on the Hub")
    return tmp_path / "logs"


@pytest.fixture
def original(tmp_path):
    """A worse agent than the demo."""
    save_changed(tmp_path / "original.zip", 0.0)
    return load_agent("ppo", ENV_ID, model=tmp_path / "original.zip")


def test_zips_of_a_run_come_in_the_order_of_their_steps(logs, original):
    run_folder = logs / "ppo" / f"{ENV_ID}_1"
    names = ["rl_model_90_steps.zip", "rl_model_1000_steps.zip", f"{ENV_ID}.zip"]
    for path in (logs, run_folder):
        assert [zip_path.name for zip_path in find_zips(path, original)] == names
    assert find_zips(run_folder / "rl_model_90_steps", original) == [run_folder / "rl_model_90_steps.zip"]


def test_an_agent_that_is_named_twice_is_one_candidate(logs, original):
    run_folder = logs / "ppo" / f"{ENV_ID}_1"
    found = load_candidates([logs, run_folder / "rl_model_90_steps.zip"], original)
    assert [each.name for each in found] == [
        f"ppo/{ENV_ID}_1/{name}" for name in ("rl_model_90_steps", "rl_model_1000_steps", ENV_ID)
    ]


def test_checkpoints_without_statistics_of_their_own_are_a_warning(made_agents, tmp_path, caplog):
    run_folder = tmp_path / NORMALIZED / f"{ENV_ID}_1"
    shutil.copytree(made_agents / NORMALIZED / f"{ENV_ID}_1", run_folder)
    for steps in (10, 20):
        shutil.copy(run_folder / f"{ENV_ID}.zip", run_folder / f"rl_model_{steps}_steps.zip")
    agent = load_agent(NORMALIZED, ENV_ID, made_agents)
    load_candidates([run_folder], agent)
    assert "2 checkpoints share the statistics in" in caplog.text
    caplog.clear()
    for steps in (10, 20):
        shutil.copy(run_folder / ENV_ID / "vecnormalize.pkl", run_folder / f"rl_model_vecnormalize_{steps}_steps.pkl")
    found = load_candidates([run_folder], agent)
    assert caplog.text == ""
    assert all(each.agent.vec_normalize is not None for each in found)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path / "nothing", "candidates: there is nothing at .*nothing; name a zip, the folder of a run"),
        (lambda path: path, f"candidates: .* has no zips, and no ppo/{ENV_ID}_K with zips"),
    ],
)
def test_a_path_without_agents_is_an_error(original, tmp_path, make, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RefineError, match=message):
        load_candidates([make(tmp_path / "empty")], original)


def test_an_agent_of_another_environment_is_no_candidate(original):
    other = load_agent("ppo", ENV_ID, DEMO["folder"], env_kwargs={"g": 9.0})
    with pytest.raises(RefineError, match="candidates: candidate 1 has an environment with the arguments {'g': 9.0}"):
        judge(original, [other], **FAST)


def test_no_candidates_are_an_error(original):
    with pytest.raises(RefineError, match="candidates: there are none"):
        judge(original, [], **FAST)


def test_the_best_checkpoint_is_saved_with_its_proof(logs, original, tmp_path, capsys):
    arguments = ["judge", "--algo", "ppo", "--env", ENV_ID, "--model", tmp_path / "original.zip", "--candidates", logs]
    arguments += ["-o", tmp_path / "out", "--n-eval-episodes", "8", "--backend", "serial"]
    assert main(list(map(str, arguments))) == 0
    shown = capsys.readouterr().out
    assert "decision: refined (better on held-out seeds" in shown
    run_folder = tmp_path / "out" / "ppo" / f"{ENV_ID}_1"
    saved = load_agent("ppo", ENV_ID, tmp_path / "out")
    assert np.array_equal(theta_of(saved), theta_of(demo()))
    record = json.loads((run_folder / "refinement.json").read_text())
    assert (record["method"], record["decision"]) == ("judge", "refined")
    chosen = [candidate["name"] for candidate in record["candidates"] if candidate["chosen"]]
    assert chosen == [f"ppo/{ENV_ID}_1/rl_model_1000_steps"]
    assert set(record["settings"]["candidates"]) == {one["name"] for one in record["candidates"]} - {"original"}
    n_validation = sum(candidate["n_episodes"] for candidate in record["candidates"])
    assert record["rollouts"] == n_validation + 16
    assert record["env_steps"] == 200 * record["rollouts"]
    report = (run_folder / "report.md").read_text()
    assert "## The candidates" in report
    assert "search" not in report.replace("searched", "")
    assert "the best of several agents" in model_card(read_run_folder(run_folder), "me/repo")


def test_without_a_better_candidate_the_original_is_saved(logs, tmp_path):
    judgement = judge(demo(), [logs / "ppo" / f"{ENV_ID}_1" / "rl_model_90_steps.zip"], **FAST)
    assert judgement.result.decision == "original"
    run_folder = judgement.save(tmp_path / "out")
    assert np.array_equal(theta_of(load_agent("ppo", ENV_ID, tmp_path / "out")), theta_of(demo()))
    assert (run_folder / "state" / f"{ENV_ID}.zip").exists()


def test_models_in_memory_are_candidates_too(original):
    """Also of another algorithm: the environment is what must be the same."""
    judgement = judge(original, [train("a2c"), demo()], **FAST)
    assert judgement.name == "candidate 2"
    assert judgement.agent is not original
    assert [one["name"] for one in judgement.result.candidates] == ["original", "candidate 1", "candidate 2"]


def test_the_verdict_is_that_of_the_same_seeds_for_any_number_of_workers(logs, original):
    one, two = (judge(original, [logs], seed=3, n_eval_episodes=8, n_workers=n).result for n in (1, 2))
    assert one.candidates == two.candidates
    assert one.candidate.returns.tolist() == two.candidate.returns.tolist()


def test_copies_of_one_policy_are_judged_once(logs, original, caplog):
    run_folder = logs / "ppo" / f"{ENV_ID}_1"
    shutil.copy(run_folder / "rl_model_1000_steps.zip", run_folder / "best_model.zip")
    caplog.set_level("INFO", logger="sb3_refine")
    found = load_candidates([run_folder], original)
    assert [each.name for each in without_copies(found, original)] == ["rl_model_1000_steps", ENV_ID]
    assert "rl_model_90_steps is the same policy as the original: judged once" in caplog.text
    assert "best_model is the same policy as rl_model_1000_steps: judged once" in caplog.text


def test_copies_with_other_statistics_are_not_the_same(made_agents):
    one, two = (load_agent(NORMALIZED, ENV_ID, made_agents) for _ in range(2))
    assert len(without_copies([NamedAgent("one", one)], two)) == 1
    two.vec_normalize.obs_rms.mean += 1
    assert len(without_copies([NamedAgent("one", one), NamedAgent("two", two)], demo())) == 2


def test_agents_of_one_environment_share_their_workers(demo_and_others):
    with open_targets(demo_and_others, "serial") as targets:
        assert len({id(target.evaluator) for target in targets}) == 2
        assert targets[0].evaluator is targets[1].evaluator
        found = [target.run([1, 2], SMOOTHNESS) for target in targets]
    assert found == [target_of(agent).run([1, 2], SMOOTHNESS) for agent in demo_and_others]


@pytest.fixture
def demo_and_others(made_agents):
    """The demo agent, one with statistics for the same environment, and one for other arguments of the environment."""
    return [
        demo(),
        load_agent(NORMALIZED, ENV_ID, made_agents),
        load_agent("ppo", ENV_ID, made_agents, env_kwargs={"g": 9.0}),
    ]


def test_the_original_can_be_run_before_there_are_candidates(original):
    judge = Judge(original, seed=3, **FAST)
    baseline = judge.evaluate_original()
    assert len(baseline.episodes) == 4
    at_once = Judge(original, seed=3, **FAST).judge([NamedAgent("demo", demo())])
    after = judge.judge([NamedAgent("demo", demo())])
    assert after.result.candidates == at_once.result.candidates
    assert after.result.rollouts == at_once.result.rollouts
