"""``JudgeCallback`` in ``learn()`` of Stable-Baselines3 and in the Zoo's training script."""

import json
import subprocess
import sys

import pytest
import stable_baselines3
import yaml
from conftest import ENV_ID, NORMALIZED, train
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_refine import JudgeCallback, RefineError, load_agent
from sb3_refine.cli.options import DEMO
from sb3_refine.policies.parameters import PolicyParameters
from sb3_refine.reporting.run_folder import read_run_folder

SHORT = {"n_steps": 16, "batch_size": 64, "n_epochs": 1, "device": "cpu"}
FAST = {"n_eval_episodes": 6, "backend": "serial", "verbose": 0}


@pytest.mark.parametrize("algo", [NORMALIZED, "sac"])
def test_the_best_checkpoint_or_the_model_of_the_start_is_saved(algo, tmp_path):
    model = train(algo)
    start = model.num_timesteps
    callback = JudgeCallback(tmp_path / "run", save_freq=16, n_checkpoints=4, report=False, **FAST)
    model.learn(96, callback, reset_num_timesteps=False)
    assert len(list((tmp_path / "run" / "checkpoints").glob("*.zip"))) <= 5
    judgement = callback.judgement
    names = [one["name"] for one in judgement.result.candidates]
    assert names[0] == "original"
    assert names[-1] == f"{model.num_timesteps} steps"
    saved = load_agent(model=tmp_path / "run" / f"{ENV_ID}.zip")
    assert saved.model.num_timesteps == judgement.agent.model.num_timesteps >= start
    record = json.loads((tmp_path / "run" / "refinement.json").read_text())
    assert (record["method"], record["decision"]) == ("judge", judgement.result.decision)
    assert (saved.vec_normalize is not None) == (algo == NORMALIZED)


class Jump(BaseCallback):
    """Training that comes to given parameters."""

    def __init__(self, theta):
        super().__init__()
        self._theta = theta

    def _on_step(self):
        PolicyParameters(self.model.policy).set_theta(self._theta)
        return True


def test_a_training_that_makes_an_agent_better_is_accepted_and_a_worse_one_is_not(tmp_path):
    """The demo agent, once from zeros to itself, and once away from it."""
    zip_path = next(DEMO["folder"].glob(f"ppo/{ENV_ID}_1/{ENV_ID}.zip"))
    good = PolicyParameters(stable_baselines3.PPO.load(zip_path).policy).get_theta()
    decisions = []
    for before, after in ((0 * good, good), (good, 0 * good)):
        model = stable_baselines3.PPO.load(zip_path, env=make_vec_env(ENV_ID, n_envs=4), learning_rate=0.0, **SHORT)
        PolicyParameters(model.policy).set_theta(before)
        callback = JudgeCallback(tmp_path / str(len(decisions)), n_checkpoints=2, report=False, **FAST)
        model.learn(64, [Jump(after), callback])
        decisions.append(callback.judgement.result.decision)
        saved = load_agent(model=callback.save_path / f"{ENV_ID}.zip")
        assert (PolicyParameters(saved.model.policy).get_theta() == good).all()
    assert decisions == ["refined", "original"]


def test_an_environment_that_cannot_be_built_again_is_known_at_the_start(tmp_path):
    model = stable_baselines3.PPO("MlpPolicy", type(make_vec_env(ENV_ID).envs[0].unwrapped)(g=5.0), device="cpu")
    with pytest.raises(RefineError, match=r"PendulumEnv was not made by gymnasium.make"):
        model.learn(32, JudgeCallback(tmp_path / "run", **FAST))


@pytest.mark.slow
def test_the_report_and_its_record_are_written(tmp_path, capsys):
    model = train("ppo")
    model.learn(64, JudgeCallback(tmp_path / "run", **{**FAST, "verbose": 1}))
    assert "JudgeCallback: " in capsys.readouterr().out
    assert (tmp_path / "run" / "report.md").exists()
    assert read_run_folder(tmp_path / "run").record.robustness is not None


@pytest.mark.slow
def test_the_zoos_training_script_takes_the_callback_by_name(tmp_path):
    arguments = {"save_path": str(tmp_path / "judged"), "n_eval_episodes": 4, "save_freq": 64}
    config = {
        "normalize": True,
        "n_envs": 2,
        "n_timesteps": 512,
        "policy": "MlpPolicy",
        "n_steps": 64,
        "batch_size": 64,
        "callback": [{"sb3_refine.JudgeCallback": arguments}],
    }
    (tmp_path / "config.yml").write_text(yaml.safe_dump({ENV_ID: config}))
    command = [sys.executable, "-m", "rl_zoo3.train", "--algo", "ppo", "--env", ENV_ID, "--conf-file", "config.yml"]
    command += ["-f", "logs", "--eval-freq", "-1", "--device", "cpu"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "JudgeCallback: " in done.stdout
    assert load_agent(model=tmp_path / "judged" / f"{ENV_ID}.zip").vec_normalize is not None


@pytest.mark.parametrize("n_checkpoints", [1, 2, 3])
def test_the_last_checkpoint_is_kept_where_the_last_step_has_one_already(tmp_path, n_checkpoints):
    callback = JudgeCallback(tmp_path / "run", save_freq=16, n_checkpoints=n_checkpoints, report=False, **FAST)
    train("sac").learn(48, callback)
    assert callback.judgement.result.candidates[-1]["name"] == "48 steps"
