"""Stable-Baselines3's own callbacks and logs on a refiner."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch as th
from conftest import ENV_ID, NORMALIZED
from fresh import run_script
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    ProgressBarCallback,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_refine import RefineError, Refiner, load_agent
from sb3_refine.cli.options import DEMO

FAST = {"backend": "serial", "n_eval_episodes": 5, "optimizer": "ars", "n_delta": 2, "acceptance": False}


@pytest.fixture
def demo():
    """An agent from disk: its model has no environment of its own."""
    return load_agent(DEMO["algo"], DEMO["env"], DEMO["folder"])


def test_eval_callback_evaluates_the_current_iterate_and_saves_the_best(demo, tmp_path):
    callback = EvalCallback(
        make_vec_env(ENV_ID), n_eval_episodes=2, eval_freq=2, best_model_save_path=tmp_path, log_path=tmp_path
    )
    assert demo.model.get_env() is None
    Refiner(demo, **FAST).learn(n_updates=5, callback=callback)
    evaluations = np.load(tmp_path / "evaluations.npz")
    assert evaluations["results"].shape == (2, 2)  # after updates 2 and 4
    assert (evaluations["timesteps"] - demo.model.num_timesteps).tolist() == [4 * 200 * 2, 4 * 200 * 4]
    assert PPO.load(tmp_path / "best_model.zip").observation_space == demo.model.observation_space
    assert demo.model.get_env() is None  # it was lent


def test_eval_callback_uses_the_agents_own_statistics(made_agents):
    agent = load_agent(NORMALIZED, ENV_ID, made_agents)
    eval_env = VecNormalize(make_vec_env(ENV_ID), training=False, norm_reward=False)
    Refiner(agent, **FAST).learn(n_updates=1, callback=EvalCallback(eval_env, n_eval_episodes=1, eval_freq=1))
    assert np.array_equal(eval_env.obs_rms.mean, agent.vec_normalize.obs_rms.mean)
    assert agent.model.get_vec_normalize_env() is None


def test_a_reward_threshold_stops_the_search(demo):
    def evaluating(threshold):
        stop = StopTrainingOnRewardThreshold(reward_threshold=threshold)
        return EvalCallback(make_vec_env(ENV_ID), callback_on_new_best=stop, n_eval_episodes=1, eval_freq=2)

    for threshold, n_updates in ((-1e9, 2), (1e9, 5)):
        refiner = Refiner(demo, **FAST).learn(n_updates=5, callback=evaluating(threshold))
        assert refiner.result.n_updates_done == n_updates


def test_checkpoint_callback_saves_models_that_load(made_agents, tmp_path):
    agent = load_agent(NORMALIZED, ENV_ID, made_agents)
    iterates = []
    refiner = Refiner(agent, **FAST)
    refiner.learn(
        n_updates=3,
        callback=[
            CheckpointCallback(save_freq=2, save_path=str(tmp_path), save_vecnormalize=True),
            ConvertedCopy(iterates),
        ],
    )
    (saved,) = tmp_path.glob("*.zip")
    (statistics,) = tmp_path.glob("*.pkl")
    weight = A2C.load(saved).policy.action_net.weight
    assert th.equal(weight, iterates[1])
    loaded = VecNormalize.load(str(statistics), make_vec_env(ENV_ID))
    assert np.array_equal(loaded.obs_rms.var, agent.vec_normalize.obs_rms.var)


class ConvertedCopy(BaseCallback):
    """Keeps the weights of each iterate."""

    def __init__(self, kept):
        super().__init__()
        self.kept = kept

    def _on_step(self):
        self.kept.append(self.model.policy.action_net.weight.detach().clone())
        return True


class Spy(BaseCallback):
    """Keeps the local variables that it is shown."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def _on_step(self):
        self.seen.append({name: self.locals[name] for name in ("episodes", "fitness", "total_timesteps")})
        return True


def test_callbacks_see_the_episodes_of_each_update(demo):
    spy = Spy()
    refiner = Refiner(demo, **FAST).learn(n_updates=3, callback=spy)
    first, second, _ = spy.seen
    assert first["fitness"].tolist() == [episode.episode_return for (episode,) in first["episodes"]]
    assert first["episodes"] != second["episodes"]
    assert spy.locals["self"] is refiner


def test_time_steps_are_counted(demo):
    calls = []
    count = EveryNTimesteps(n_steps=4 * 200 * 2, callback=ConvertedCopy(calls))
    Refiner(demo, **FAST).learn(n_updates=6, callback=count)
    assert len(calls) == 3


def test_sb3s_progress_bar_runs_to_its_end(demo):
    bar = ProgressBarCallback()
    Refiner(demo, **FAST).learn(n_updates=4, callback=bar)
    assert (bar.pbar.n, bar.pbar.total) == (4, 4)


def test_tensorboard_has_sb3s_keys_and_ours(demo, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    Refiner(demo, **FAST, tensorboard_log=str(tmp_path)).learn(n_updates=3)
    (run,) = tmp_path.iterdir()
    assert run.name == "refine_1"
    events = EventAccumulator(str(run)).Reload()
    keys = set(events.Tags()["scalars"])
    assert {"rollout/ep_rew_mean", "rollout/ep_len_mean", "time/fps"} <= keys
    assert {"refine/ep_rew_std", "refine/ep_rew_max", "refine/failure_rate"} <= keys
    steps = [event.step - demo.model.num_timesteps for event in events.Scalars("rollout/ep_rew_mean")]
    assert steps == [800, 1600, 2400]  # the x-axis of callbacks


def test_tensorboard_has_the_verdict(demo, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    refiner = Refiner(demo, **{**FAST, "acceptance": True}, tensorboard_log=str(tmp_path)).learn(n_updates=2)
    events = EventAccumulator(str(tmp_path / "refine_1")).Reload()
    assert events.Scalars("refine/candidate_return")[0].value == pytest.approx(refiner.result.candidate.returns.mean())
    (low,) = events.Scalars("refine/difference_ci_low")
    assert low.value == pytest.approx(refiner.result.paired_difference.ci_low)
    (verdict,) = events.Tensors("refine/verdict/text_summary")
    assert verdict.tensor_proto.string_val[0].decode().startswith(f"{refiner.result.decision}: ")


def test_a_models_own_tensorboard_folder_is_used(tmp_path):
    pytest.importorskip("tensorboard")
    model = PPO("MlpPolicy", ENV_ID, n_steps=8, batch_size=8, tensorboard_log=str(tmp_path), device="cpu")
    Refiner(model, **FAST).learn(n_updates=1)
    assert [run.name for run in tmp_path.iterdir()] == ["refine_1"]


def test_no_tensorboard_log_or_one_that_cannot_be_written(tmp_path):
    pytest.importorskip("tensorboard")
    (tmp_path / "file").write_text("")
    model = PPO(
        "MlpPolicy", ENV_ID, n_steps=8, batch_size=8, tensorboard_log=str(tmp_path / "file" / "tb"), device="cpu"
    )
    with pytest.raises(RefineError, match=r"tensorboard_log: .*; `tensorboard_log=''` logs nowhere"):
        Refiner(model, **FAST).learn(n_updates=1)
    Refiner(model, **FAST, tensorboard_log="").learn(n_updates=1)


def test_evaluations_are_no_lines_of_the_log(demo, capsys):
    Refiner(demo, **FAST, verbose=1).learn(2, EvalCallback(make_vec_env(ENV_ID), n_eval_episodes=1, eval_freq=1))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("update", "training"))]
    assert [line.split()[1] for line in lines] == ["1", "2"]


class Monitored(BaseCallback):
    """Looks for ended episodes as callbacks in tutorials do."""

    def __init__(self):
        super().__init__()
        self.returns = []

    def _on_step(self):
        self.returns += [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        assert self.locals["dones"].all()
        assert self.locals["rewards"].tolist() == self.returns[-4:]
        return True


def test_callbacks_find_the_entries_of_a_monitor(demo):
    monitored, spy = Monitored(), Spy()
    Refiner(demo, **FAST).learn(n_updates=2, callback=[monitored, spy])
    episodes = [episode for update in spy.seen for (episode,) in update["episodes"]]
    assert monitored.returns == [episode.episode_return for episode in episodes]


@pytest.mark.slow
def test_the_example_for_weights_and_biases_runs_offline(tmp_path):
    pytest.importorskip("wandb")
    text = (Path(__file__).parents[1] / "docs" / "python.md").read_text()
    (example,) = [code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "wandb" in code]
    example = example.replace("learn(n_updates=10)", "learn(n_updates=2)")
    done = run_script(example, cwd=tmp_path, env={**os.environ, "WANDB_MODE": "offline"})
    assert done.returncode == 0, done.stderr
    assert "refine/difference_ci_low" in done.stderr  # its summary of the run
    assert re.search(r"decision (refined|original)", done.stderr)
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
