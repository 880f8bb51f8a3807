"""The refiner from Python: search, judge, keep the better, leave everything else alone."""

import csv
import json

import numpy as np
import pytest
import torch as th
from conftest import ENV_ID, run_policy, train
from fresh import run_script
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure

from sb3_refine import RefineError, Refiner, load_agent, refine
from sb3_refine.cli.options import DEMO
from sb3_refine.evaluation.evaluation import paired_difference
from sb3_refine.evaluators import SerialEvaluator
from sb3_refine.optimizers import ARS
from sb3_refine.policies.parameters import PolicyParameters
from sb3_refine.reporting.record import read_record

FAST = {"backend": "serial", "n_eval_episodes": 20, "optimizer": "ars", "n_delta": 8}


@pytest.fixture
def demo():
    """The agent shipped in the package: it has much to gain."""
    return load_agent(DEMO["algo"], DEMO["env"], DEMO["folder"])


@pytest.fixture
def spoilt(demo):
    """An agent that a search with absurd steps can only make worse."""
    return Refiner(demo, **FAST, learning_rate=50.0, delta_std=0.01)


def test_callbacks_are_called_for_every_rollout(demo):
    class Recorder(BaseCallback):
        events = ""

        def _on_rollout_start(self):
            self.events += "("

        def _on_step(self):
            self.events += "."
            return True

        def _on_rollout_end(self):
            self.events += ")"

    recorder = Recorder()
    Refiner(demo, **FAST, acceptance=False).learn(n_updates=2, callback=recorder)
    assert recorder.events == "(.)(.)"


def held_out(result):
    """Episodes on validation and test seeds."""
    return sum(candidate["n_episodes"] for candidate in result.candidates) + 2 * len(result.baseline.seeds)


def test_a_better_agent_is_kept_with_its_proof(demo):
    refiner = Refiner(demo, **FAST)
    before = refiner.parameters.get_theta()
    assert refiner.learn(n_updates=15) is refiner
    result = refiner.result
    assert (result.decision, result.n_updates_done) == ("refined", 15)
    assert result.paired_difference.ci_low > 0
    assert result.candidate.summary()["mean_return"] > result.baseline.summary()["mean_return"]
    assert result.rollouts == 15 * 16 + held_out(result)
    assert result.env_steps == 200 * result.rollouts
    assert not np.array_equal(refiner.parameters.get_theta(), before)


def test_a_worse_agent_is_replaced_by_the_original(spoilt):
    before = {name: tensor.clone() for name, tensor in spoilt.model.policy.state_dict().items()}
    spoilt.learn(n_updates=3)
    assert spoilt.result.decision == "original"
    assert "worse on held-out seeds" in spoilt.result.reason
    assert spoilt.result.paired_difference.ci_high < 0
    assert all(th.equal(before[name], tensor) for name, tensor in spoilt.model.policy.state_dict().items())


def test_without_acceptance_the_last_iterate_is_left_untested(demo):
    refiner = Refiner(demo, **FAST, acceptance=False).learn(n_updates=3)
    assert refiner.result.decision == "unchecked"
    assert refiner.result.rollouts == 3 * 16
    assert refiner.result.baseline is refiner.result.candidate is refiner.result.paired_difference is None


def test_one_seed_decides_everything(demo):
    def vector(seed, **kwargs):
        agent = load_agent(DEMO["algo"], DEMO["env"], DEMO["folder"])
        refiner = Refiner(agent, **{**FAST, "acceptance": False, "seed": seed, **kwargs}).learn(n_updates=3)
        return refiner.parameters.get_theta()

    assert np.array_equal(vector(1), vector(1))
    assert np.array_equal(vector(1), vector(1, backend="process", n_workers=3))
    assert not np.array_equal(vector(1), vector(2))


def test_the_search_never_sees_the_seeds_it_is_judged_on(demo, monkeypatch):
    refiner = Refiner(demo, **FAST)
    seen = evaluated_seeds(monkeypatch)
    refiner.learn(n_updates=4)
    judged_on = set(refiner.result.baseline.seeds)
    assert refiner.result.candidate.seeds == refiner.result.baseline.seeds
    assert len(judged_on) == 20
    assert not judged_on & {seed for seeds in seen for (seed,) in seeds}


def test_the_search_knows_the_validation_episodes_of_the_original(demo):
    refiner = Refiner(demo, n_delta=2, episodes_per_candidate=2, n_eval_episodes=20, backend="serial").learn(
        n_updates=1
    )
    returns = [episode.episode_return for episode in refiner.search.baseline.episodes]
    known = refiner.search.optimizer.optimizer.state_dict()["start_center"]
    assert known[:-2].tolist() == pytest.approx(np.reshape(returns, (-1, 2)).mean(axis=1))


def test_antithetic_pairs_share_their_seed_and_updates_do_not(demo, monkeypatch):
    seen = evaluated_seeds(monkeypatch)
    Refiner(demo, **FAST).learn(n_updates=3)
    for seeds in seen:
        assert seeds[0::2] == seeds[1::2]
    assert len({seed for seeds in seen for (seed,) in seeds}) == 3 * 8


def evaluated_seeds(monkeypatch):
    """Of each population of a search, the seeds of its candidates."""
    seen, evaluate = [], SerialEvaluator.evaluate

    def spy(self, population, seeds, *arguments):
        if len(population) > 1:
            seen.append(seeds)
        return evaluate(self, population, seeds, *arguments)

    monkeypatch.setattr(SerialEvaluator, "evaluate", spy)
    return seen


def test_the_head_alone_can_be_searched(demo):
    before = {name: tensor.clone() for name, tensor in demo.model.policy.state_dict().items()}
    refiner = Refiner(demo, parameters="head", **FAST, acceptance=False).learn(n_updates=2)
    changed = {name for name, tensor in demo.model.policy.state_dict().items() if not th.equal(tensor, before[name])}
    assert changed == set(refiner.parameters.names) == {"action_net.weight", "action_net.bias"}


def test_a_model_in_memory_is_refined_in_place():
    model = train("a2c")
    statistics = model.get_vec_normalize_env().obs_rms
    mean, count = statistics.mean.copy(), statistics.count
    before = model.policy.action_net.weight.detach().clone()
    refiner = refine(model, n_updates=2, n_delta=2, backend="serial", n_eval_episodes=5, acceptance=False)
    assert refiner.model is model
    assert not th.equal(model.policy.action_net.weight, before)
    assert np.array_equal(statistics.mean, mean)  # frozen
    assert statistics.count == count
    model.learn(64)  # and it can be trained on


def test_learn_can_be_called_again(demo):
    """It goes on from where it was, with another search, judged on seeds that did not choose its start."""
    refiner = Refiner(demo, **FAST).learn(n_updates=8)
    first, middle = refiner.result, refiner.parameters.get_theta()
    refiner.learn(n_updates=8)
    assert not set(first.baseline.seeds) & set(refiner.result.baseline.seeds)
    with SerialEvaluator(refiner.make_task()) as evaluator:
        episodes = run_policy(evaluator, middle, refiner.result.baseline.seeds)
    assert [e.episode_return for e in episodes] == refiner.result.baseline.returns.tolist()


class Recorder(BaseCallback):
    def __init__(self, stop_after=None):
        super().__init__()
        self.stop_after = stop_after
        self.vectors = []
        self.events = []

    def _on_training_start(self):
        self.events.append("start")

    def _on_step(self):
        self.vectors.append(self.model.policy.action_net.bias.detach().clone())
        self.logger.record("mine/n_calls", self.n_calls)
        return self.n_calls != self.stop_after

    def _on_training_end(self):
        self.events.append("end")


def test_callbacks_see_every_iterate(demo):
    recorder = Recorder()
    Refiner(demo, **FAST, acceptance=False).learn(n_updates=3, callback=recorder)
    assert recorder.events == ["start", "end"]
    assert len(recorder.vectors) == 3
    assert not th.equal(recorder.vectors[0], recorder.vectors[1])


def test_a_callback_can_stop_the_search(demo):
    refiner = Refiner(demo, **FAST).learn(n_updates=10, callback=[Recorder(stop_after=2)])
    assert refiner.result.n_updates_done == 2
    assert refiner.result.decision in ("refined", "original")


def test_a_function_can_be_a_callback(demo):
    calls = []
    Refiner(demo, **FAST, acceptance=False).learn(n_updates=2, callback=lambda local, globals_: calls.append(1) or True)
    assert len(calls) == 2


def test_the_log_has_sb3s_keys(demo, tmp_path):
    refiner = Refiner(demo, **FAST)
    refiner.set_logger(configure(str(tmp_path), ["csv"]))
    refiner.learn(n_updates=4, log_interval=2)
    header, *rows = (tmp_path / "progress.csv").read_text().splitlines()
    assert len(rows) == 2
    assert {"rollout/ep_rew_mean", "rollout/ep_len_mean", "time/fps", "time/total_timesteps"} <= set(header.split(","))
    assert {"refine/n_updates", "refine/rollouts"} <= set(header.split(","))


def test_the_log_is_of_the_population(demo, tmp_path):
    refiner = Refiner(demo, **FAST, acceptance=False)
    population, seeds = refiner.make_optimizer(1).ask(), refiner.seeds.take("search", 8)
    with SerialEvaluator(refiner.make_task()) as evaluator:
        episodes = evaluator.evaluate(population, [[seeds[group]] for group in population.groups])
    refiner.set_logger(configure(str(tmp_path), ["csv"]))
    refiner.learn(n_updates=1)
    with (tmp_path / "progress.csv").open() as file:
        (row,) = csv.DictReader(file)
    returns = [episode.episode_return for (episode,) in episodes]
    assert float(row["rollout/ep_rew_mean"]) == pytest.approx(np.mean(returns))
    assert float(row["refine/ep_rew_max"]) == max(returns)
    assert int(row["time/total_timesteps"]) - demo.model.num_timesteps == 16 * 200


def test_the_result_prints_what_the_command_line_prints(demo):
    result = Refiner(demo, **FAST).learn(n_updates=2).result
    first, *lines = str(result).splitlines()
    assert first.startswith(f"decision: {result.decision} (")
    (row,) = (line.split() for line in lines if line.startswith("mean return"))
    assert row[2:] == [f"{each.returns.mean():.2f}" for each in (result.baseline, result.candidate)]
    assert "paired difference of the returns" in str(result)
    assert result.saved is (result.candidate if result.decision == "refined" else result.baseline)


@pytest.mark.parametrize(
    ("callback", "time_limit", "reason"),
    [(lambda *_: False, None, "a callback stopped it"), (None, 1e-3, "the time is up")],
)
def test_a_search_that_ends_early_says_why(demo, caplog, callback, time_limit, reason):
    Refiner(demo, **FAST).learn(n_updates=3, callback=callback, time_limit=time_limit)
    assert f"of 3 updates: {reason}" in caplog.text


@pytest.mark.slow
def test_what_is_saved_can_be_compared_with_the_original(demo, tmp_path):
    refiner = Refiner(demo, **FAST)
    original = refiner.parameters.get_theta()
    run_folder = refiner.learn(n_updates=4).save(tmp_path)
    refined = refiner.parameters.get_theta()
    saved = [PolicyParameters(load_agent(model=path).model.policy).get_theta() for path in run_folder.rglob("*.zip")]
    assert {tuple(theta) for theta in saved} == {tuple(original), tuple(refined)}
    assert f"--compare-to {run_folder / 'state'}" in refiner.report(run_folder).read_text()
    with (run_folder / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["rollout/ep_rew_mean"]) for row in rows] == [
        pytest.approx(update.mean_return) for update in refiner.result.learning_curve
    ]


def test_steps_are_counted_by_phase(demo, tmp_path):
    refiner = Refiner(demo, **FAST).learn(n_updates=2)
    steps = read_record(refiner.save(tmp_path)).env_steps_by_phase
    n_validation = sum(candidate["n_episodes"] for candidate in refiner.result.candidates)
    assert steps == {"search": 200 * 2 * 16, "validation": 200 * n_validation, "test": 200 * 2 * 20}
    assert sum(steps.values()) == refiner.result.env_steps


def test_the_test_seeds_are_a_dataframe(demo):
    result = Refiner(demo, **FAST).learn(n_updates=2).result
    table = result.to_dataframe()
    assert table["seed"].tolist() == list(result.baseline.seeds)
    assert (table["candidate_return"] - table["original_return"]).mean() == pytest.approx(result.paired_difference.mean)
    assert list(table["candidate_failed"]) == [episode.failed for episode in result.candidate.episodes]
    assert Refiner(demo, **FAST, acceptance=False).learn(n_updates=1).result.to_dataframe().empty


def test_a_folder_that_is_written_again_holds_the_later_search(demo, tmp_path):
    refiner = Refiner(demo, **FAST, acceptance=False)
    for n_updates in (1, 3):
        start = refiner.parameters.get_theta()
        run_folder = refiner.learn(n_updates).save(run_folder=tmp_path / "run")
    (original,) = (run_folder / "state").glob("*.zip")
    assert np.array_equal(PolicyParameters(load_agent(model=original).model.policy).get_theta(), start)
    assert len((run_folder / "progress.csv").read_text().splitlines()) == 1 + 3


def test_what_callbacks_record_is_logged_with_their_update(demo, tmp_path):
    def record(variables, _):
        variables["self"].model.logger.record("mine/n_updates", variables["search"].n_updates_done)
        return True

    refiner = Refiner(demo, **FAST, acceptance=False)
    refiner.set_logger(configure(str(tmp_path), ["csv"]))
    refiner.learn(n_updates=3, callback=record)
    with (tmp_path / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["mine/n_updates"], row["refine/n_updates"]) for row in rows] == [("1", "1"), ("2", "2"), ("3", "3")]


def test_a_budget_is_in_episodes(demo):
    refiner = Refiner(demo, **FAST, acceptance=False)
    refiner.learn(budget=2 * 16 + 15)
    assert (refiner.result.n_updates_done, refiner.result.rollouts) == (2, 2 * 16)
    with pytest.raises(RefineError, match="budget: the shortest search takes 16 rollouts, got 15"):
        refiner.learn(budget=15)
    with pytest.raises(RefineError, match="budget: there is n_updates, too; leave one of them out"):
        refiner.learn(1, budget=16)


def test_alpha_is_one_minus_the_confidence(demo):
    refiner = Refiner(demo, **FAST, alpha=0.2).learn(n_updates=1)
    assert refiner.result.paired_difference.confidence == 0.8
    narrow = refiner.result.paired_difference
    wide = paired_difference(refiner.result.baseline, refiner.result.candidate, alpha=0.01)
    assert wide.ci_low < narrow.ci_low < narrow.ci_high < wide.ci_high


def test_an_error_leaves_the_original(demo):
    def stumble(local, globals_):
        raise ArithmeticError("in a callback")

    refiner = Refiner(demo, **FAST)
    before = refiner.parameters.get_theta()
    with pytest.raises(ArithmeticError, match="in a callback"):
        refiner.learn(n_updates=3, callback=stumble)
    assert np.array_equal(refiner.parameters.get_theta(), before)
    assert refiner.result is None


def test_an_interrupt_leaves_the_best_so_far(demo, tmp_path):
    vectors = []

    def interrupt(local, globals_):
        vectors.append(refiner.parameters.get_theta())
        if len(vectors) == 7:
            raise KeyboardInterrupt
        return True

    refiner = Refiner(demo, **FAST)
    refiner.set_logger(configure(str(tmp_path), ["csv"]))
    vectors.append(refiner.parameters.get_theta())
    with pytest.raises(KeyboardInterrupt):
        refiner.learn(n_updates=20, callback=interrupt)
    assert refiner.result.decision == "unchecked"
    assert "interrupted after 6 of 20 updates: this is the best iterate so far" in refiner.result.reason
    kept = refiner.parameters.get_theta()
    with (tmp_path / "progress.csv").open() as file:
        population_means = [float(row["rollout/ep_rew_mean"]) for row in csv.DictReader(file)]
    assert np.array_equal(kept, vectors[int(np.argmax(population_means))])


def test_an_interrupt_before_anything_better_leaves_the_original(demo):
    def interrupt(local, globals_):
        raise KeyboardInterrupt

    refiner = Refiner(demo, **FAST)
    before = refiner.parameters.get_theta()
    with pytest.raises(KeyboardInterrupt):
        refiner.learn(n_updates=20, callback=interrupt)
    assert refiner.result.decision == "original"
    assert "nothing better yet, this is the original" in refiner.result.reason
    assert np.array_equal(refiner.parameters.get_theta(), before)


def test_an_interrupt_while_judging_leaves_the_best_iterate(demo, monkeypatch):
    refiner = Refiner(demo, **FAST)
    monkeypatch.setattr(refiner, "_conclude", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    recorder = Recorder()
    with pytest.raises(KeyboardInterrupt):
        refiner.learn(n_updates=3, callback=recorder)
    assert (
        "interrupted after 3 of 3 updates: this is the best iterate so far, that after update 2"
        in refiner.result.reason
    )
    assert th.equal(demo.model.policy.action_net.bias, recorder.vectors[1])


def test_an_interrupt_after_the_verdict_changes_nothing(spoilt, monkeypatch):
    monkeypatch.setattr("sb3_refine.refiner.sync_copies", lambda model: interrupt_once(spoilt))
    before = spoilt.parameters.get_theta()
    with pytest.raises(KeyboardInterrupt):
        spoilt.learn(n_updates=2)
    assert spoilt.result.decision == "original"
    assert np.array_equal(spoilt.parameters.get_theta(), before)


def test_an_error_after_the_search_leaves_the_model_that_the_result_describes(demo, monkeypatch):
    monkeypatch.setattr("sb3_refine.refiner.recheck_reproducibility", lambda *_: 1 / 0)
    refiner, recorder = Refiner(demo, **{**FAST, "acceptance": False}, objective="smooth"), Recorder()
    with pytest.raises(ZeroDivisionError):
        refiner.learn(n_updates=2, callback=recorder)
    assert refiner.result.decision == "unchecked"
    assert th.equal(demo.model.policy.action_net.bias, recorder.vectors[-1])


def interrupt_once(refiner):
    if refiner.result is not None:
        raise KeyboardInterrupt


def test_the_model_gets_its_own_logger_and_count_back(tmp_path):
    """It would log its further training where we logged the search."""
    model = train("ppo")
    n_env_steps = model.num_timesteps
    Refiner(model, **FAST, acceptance=False).learn(2)
    assert (model.num_timesteps, model._custom_logger) == (n_env_steps, False)
    model.tensorboard_log = str(tmp_path)
    model.learn(32)
    assert list(tmp_path.iterdir())


def test_save_writes_the_record_of_the_run(demo, tmp_path):
    refiner = Refiner(demo, **FAST, seed=3).learn(n_updates=10)
    run_folder = refiner.save(tmp_path)
    assert run_folder == tmp_path / "ppo" / f"{ENV_ID}_1"
    written = json.loads((run_folder / "refinement.json").read_text())
    assert written["decision"] == "refined"
    assert written["rollouts"] == 10 * 16 + held_out(refiner.result)
    assert written["seeds"]["seed"] == 3
    assert written["settings"]["n_delta"] == 8
    assert written["settings"]["learning_rate"] == [0.02, 0.002]
    assert written["source"]["sha256"] == demo.source["sha256"]
    for part in ("baseline", "refined"):
        assert written[part]["mean_return"] == pytest.approx(np.mean(written[part]["returns"]))
        assert written[part]["n_episodes"] == len(written["seeds"]["test"]) == 20
    difference = paired_difference(refiner.result.baseline, refiner.result.candidate)
    assert written["paired_difference"]["ci_low"] == difference.ci_low
    assert set(written["versions"]) >= {"python", "sb3-refine", "stable-baselines3", "gymnasium", "numpy", "torch"}


CHECK = """
import json, sys
sys.modules["sb3_refine"] = None
import numpy as np, torch as th, {packages}
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from {module} import {algo}
from {wrapper_module} import {wrapper}
th.set_num_threads(1)
claim = json.load(open({folder!r} + "/refinement.json"))
env = make_vec_env({env!r}, wrapper_class={wrapper})
model = {algo}.load({folder!r} + "/{env}.zip", device="cpu")
env.reset()  # Bullet's walkers differ in their first episode
returns = []
for seed in claim["seeds"]["test"]:
    env.seed(seed)
    returns.append(evaluate_policy(model, env, n_eval_episodes=1, warn=False)[0])
assert claim["decision"] == "refined"
print(np.abs(np.array(returns) - claim["refined"]["returns"]).max())
"""


def check_claim(folder, algo, env, module, packages="gymnasium", wrapper=("builtins", "id")):
    script = CHECK.format(
        folder=str(folder), algo=algo, env=env, module=module, packages=packages,
        wrapper_module=wrapper[0], wrapper=wrapper[1],
    )  # fmt: skip
    done = run_script(script)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.splitlines()[-1]) < 2e-6  # Monitor rounds returns to six decimals


@pytest.mark.slow
def test_evaluate_policy_confirms_the_claim_seed_by_seed(demo, tmp_path):
    """In a fresh process, without this package."""
    run_folder = Refiner(demo, **FAST).learn(n_updates=10).save(tmp_path)
    check_claim(run_folder, "PPO", ENV_ID, "stable_baselines3", wrapper=("gymnasium", "Wrapper"))


@pytest.mark.slow
def test_evaluate_policy_confirms_the_claim_on_a_zoo_agent(zoo_agents, tmp_path):
    pytest.importorskip("pybullet_envs_gymnasium")
    agent = load_agent("ddpg", "HopperBulletEnv-v0", zoo_agents)
    refiner = Refiner(agent, optimizer="ars", n_eval_episodes=30).learn(n_updates=16)
    wrapper = ("sb3_contrib.common.wrappers", "TimeFeatureWrapper")
    run_folder = refiner.save(tmp_path)
    check_claim(run_folder, "DDPG", "HopperBulletEnv-v0", "stable_baselines3", "pybullet_envs_gymnasium", wrapper)


def test_save_before_learn_is_refused(demo, tmp_path):
    with pytest.raises(RefineError, match=r"nothing to save yet; call learn\(\) first"):
        Refiner(demo).save(tmp_path)


def test_a_report_goes_where_something_was_saved(demo, tmp_path):
    with pytest.raises(RefineError, match=r"report: no refinement.json in .*; name the folder that save\(\) returned"):
        Refiner(demo).report(tmp_path / "nothing")
    (tmp_path / "refinement.json").write_text("{}")
    with pytest.raises(RefineError, match="two different ones of the 3 observations, numbered from 0"):
        Refiner(demo).report(tmp_path, phase_portrait=(0, 3))


@pytest.mark.slow
def test_noise_conditions_are_noted_where_the_last_search_was_saved(demo, tmp_path):
    with Refiner(demo, **{**FAST, "n_eval_episodes": 2}) as refiner:
        before = refiner.learn(1).save(tmp_path / "before")
        after = refiner.learn(1).save(tmp_path / "after")
        for run_folder in (before, after):
            refiner.report(run_folder)
    assert read_record(before).robustness is None
    assert read_record(after).robustness is not None


def test_the_papers_preset_is_the_paper():
    paper = dict(ARS.presets["paper"])
    assert (paper.pop("n_updates"), paper.pop("selection")) == (200, False)  # the last iterate
    ars = ARS(np.zeros(3), seed=0, n_updates=200, **paper)
    assert (ars.n_delta, ars.n_top, ars.learning_rate, ars.delta_std) == (64, None, (0.02, 0.002), (0.025, 0.0025))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"optimizer": "arz"}, r"optimizer: unknown 'arz' \(did you mean ars\?\); choose from ars"),
        ({"backend": "proces"}, r"backend: unknown 'proces' \(did you mean process\?\)"),
        ({"n_deltas": 3}, r"optimizer: backtracking-ars has no option 'n_deltas' \(did you mean n_delta"),
        ({"n_delta": 0}, "n_delta: expected a whole number of at least 1, got 0"),
        ({"parameters": "critic"}, "matches none of the parameters behind the action"),
        ({"min_effect": 2.0, "n_eval_episodes": 100}, "min_effect: only used with n_eval_episodes='auto'"),
        ({"alpha": 2}, "alpha: expected a number between 0 and 1, got 2"),
        ({"n_eval_episodes": 1}, "n_eval_episodes: expected a whole number of at least 2, got 1"),
        ({"seed": -1}, "seed: expected a whole number of at least 0, got -1"),
        ({"n_workers": -1}, "n_workers: expected a whole number of at least 1, got -1"),
        ({"env": ENV_ID}, "env: an Agent brings its own environment"),
    ],
)
def test_wrong_arguments_are_an_error_before_any_rollout(demo, arguments, line):
    with pytest.raises(RefineError, match=line):
        Refiner(demo, **arguments)
