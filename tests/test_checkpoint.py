"""A search that is interrupted goes on to the bits that it would have come to."""

import errno
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from conftest import ENV_ID, train

from sb3_refine import RefineError, Refiner, load_agent
from sb3_refine.errors import EpisodeError
from sb3_refine.evaluation.target import EvaluationTarget
from sb3_refine.evaluators import worker
from sb3_refine.search import checkpoint
from sb3_refine.search.checkpoint import FILE_NAME

FAST = {"backend": "serial", "n_eval_episodes": 5, "n_delta": 4, "seed": 3}


def refiner_of(made_agents, **kwargs):
    return Refiner(load_agent("ppo", ENV_ID, made_agents), **{**FAST, **kwargs})


def stop_after(n_calls):
    calls = []

    def callback(local, globals_):
        calls.append(1)
        if len(calls) == n_calls:
            raise KeyboardInterrupt
        return True

    return callback


@pytest.mark.parametrize("n_calls", [1, 4, 6])
def test_resumes_to_the_same_bits(made_agents, tmp_path, n_calls):
    whole = refiner_of(made_agents, acceptance=True).learn(6)
    with pytest.raises(KeyboardInterrupt):
        refiner_of(made_agents).learn(6, callback=stop_after(n_calls), checkpoint_folder=tmp_path)
    resumed = refiner_of(made_agents, backend="process", n_workers=2).learn(6, checkpoint_folder=tmp_path, resume=True)
    assert np.array_equal(resumed.parameters.get_theta(), whole.parameters.get_theta())
    assert resumed.result.candidate == whole.result.candidate
    assert resumed.result.baseline == whole.result.baseline
    assert (resumed.result.rollouts, resumed.result.env_steps) == (whole.result.rollouts, whole.result.env_steps)


def test_only_settings_that_are_named_may_change(made_agents, tmp_path):
    ars = {"optimizer": "ars", "acceptance": False}
    with pytest.raises(KeyboardInterrupt):
        refiner_of(made_agents, learning_rate=0.01, **ars).learn(4, stop_after(2), checkpoint_folder=tmp_path)
    changed = refiner_of(made_agents, learning_rate=0.02, **ars)
    with pytest.raises(RefineError, match="may_change: unknown 'seed'"):
        changed.learn(4, checkpoint_folder=tmp_path, resume=True, may_change=["seed"])
    with pytest.raises(RefineError, match=r"other settings .*: learning_rate was 0.01, is 0.02"):
        changed.learn(4, checkpoint_folder=tmp_path, resume=True, may_change=("delta_std",))
    changed.learn(4, checkpoint_folder=tmp_path, resume=True, may_change=("learning_rate",))
    whole = refiner_of(made_agents, learning_rate=0.02, **ars).learn(4)
    assert changed.result.n_updates_done == 4
    assert not np.array_equal(changed.parameters.get_theta(), whole.parameters.get_theta())


def test_ctrl_c_during_a_write_takes_effect_afterwards(made_agents, tmp_path, monkeypatch):
    save, calls = checkpoint.th.save, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        save(*arguments)

    monkeypatch.setattr(checkpoint, "th", SimpleNamespace(**{**vars(checkpoint.th), "save": interrupted}))
    with pytest.raises(KeyboardInterrupt):
        refiner_of(made_agents).learn(2, checkpoint_folder=tmp_path, checkpoint_interval=1)
    assert (tmp_path / FILE_NAME).exists()


def test_settings_may_be_numpys_numbers(made_agents, tmp_path):
    settings = {"n_delta": np.int64(2), "learning_rate": np.float32(0.02), "delta_std": (np.float64(0.02), 0.01)}
    settings |= {"alpha": np.float64(0.05), "seed": np.int64(3), "acceptance": False, "backend": "serial"}
    agent = partial(load_agent, "ppo", "Pendulum-v1", made_agents)
    whole = Refiner(agent(), **settings).learn(2, checkpoint_folder=tmp_path, checkpoint_interval=1)
    resumed = Refiner(agent(), **settings).learn(2, checkpoint_folder=tmp_path, resume=True)
    assert np.array_equal(resumed.parameters.get_theta(), whole.parameters.get_theta())


def test_a_complete_search_resumes_to_its_last_iterate(made_agents, tmp_path):
    """As after a crash between the last update and the end."""
    whole = refiner_of(made_agents, acceptance=False).learn(2, checkpoint_folder=tmp_path, checkpoint_interval=1)
    resumed = refiner_of(made_agents, acceptance=False).learn(2, checkpoint_folder=tmp_path, resume=True)
    assert resumed.result.decision == "unchecked"
    assert np.array_equal(resumed.parameters.get_theta(), whole.parameters.get_theta())


def test_a_resume_that_fails_before_it_starts_leaves_the_original(made_agents, tmp_path, monkeypatch):
    refiner_of(made_agents).learn(2, checkpoint_folder=tmp_path, checkpoint_interval=1)
    refiner = refiner_of(made_agents)
    before = refiner.parameters.get_theta()
    monkeypatch.setattr(refiner, "make_task", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        refiner.learn(2, checkpoint_folder=tmp_path, resume=True)
    assert np.array_equal(refiner.parameters.get_theta(), before)


def test_the_same_refiner_continues_its_search(made_agents, tmp_path):
    """As in a notebook, after Ctrl-C; also if it is not its first search."""
    whole, stopped = (refiner_of(made_agents).learn(1) for _ in range(2))
    whole.learn(4)
    with pytest.raises(KeyboardInterrupt):
        stopped.learn(4, callback=stop_after(2), checkpoint_folder=tmp_path, checkpoint_interval=1)
    stopped.parameters.set_theta(whole.tested[0])
    stopped.learn(4, checkpoint_folder=tmp_path, resume=True)
    assert stopped.run_seed == whole.run_seed != whole.seed
    assert np.array_equal(stopped.parameters.get_theta(), whole.parameters.get_theta())
    assert stopped.result.candidates == whole.result.candidates


def test_another_length_is_refused_with_a_way_to_end_earlier(made_agents, tmp_path):
    refiner_of(made_agents).learn(2, checkpoint_folder=tmp_path, checkpoint_interval=1)
    with pytest.raises(RefineError, match="n_updates was 2, is 1; to end the search earlier, use `time_limit` instead"):
        refiner_of(made_agents).learn(1, checkpoint_folder=tmp_path, resume=True)


def test_a_refused_search_uses_no_seeds(made_agents, tmp_path):
    refiner = refiner_of(made_agents)
    with pytest.raises(RefineError):
        refiner.learn(2, checkpoint_folder=tmp_path, resume=True)
    result = refiner.learn(1).result
    assert refiner.run_seed == refiner.seed
    with pytest.raises(RefineError):
        refiner.learn(2, checkpoint_folder=tmp_path, resume=True)
    assert (refiner.result, refiner.run_seed) == (result, refiner.seed)


def test_other_settings_are_refused_with_the_difference(made_agents, tmp_path):
    refiner_of(made_agents).learn(2, checkpoint_folder=tmp_path)
    with pytest.raises(RefineError, match=r"n_delta was 4, is 5; n_updates was 2, is 3"):
        refiner_of(made_agents, n_delta=5).learn(3, checkpoint_folder=tmp_path, resume=True)


def test_a_missing_checkpoint_is_an_error(made_agents, tmp_path):
    with pytest.raises(RefineError, match=rf"no checkpoint at .*{FILE_NAME}"):
        refiner_of(made_agents).learn(2, checkpoint_folder=tmp_path, resume=True)
    (tmp_path / FILE_NAME).write_bytes(b"rubbish")
    with pytest.raises(RefineError, match="is damaged"):
        refiner_of(made_agents).learn(2, checkpoint_folder=tmp_path, resume=True)


@pytest.mark.slow
@pytest.mark.parametrize("moment", [3, 7])
def test_a_killed_run_resumes_to_the_same_agent(made_agents, tmp_path, run, moment):
    """SIGKILL of the whole run, at any moment, loses at most the updates since the last checkpoint."""
    arguments = ["--algo", "a2c", "--env", ENV_ID, "-f", str(made_agents), "--no-report"]
    arguments += ["--n-updates", "12", "--n-delta", "4", "--n-eval-episodes", "5", "--log-interval", "1"]
    whole = run(*arguments, "-o", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    command = [sys.executable, "-m", "sb3_refine.cli", *arguments, "--checkpoint-interval", "2"]
    command += ["-o", str(tmp_path / "killed")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    run_folder = tmp_path / "killed" / "a2c" / f"{ENV_ID}_1"
    progress = run_folder / "progress.csv"
    deadline = time.time() + 300
    while not (progress.exists() and progress.read_text().count("\n") >= moment) and time.time() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (run_folder / f"{ENV_ID}.zip").exists()
    resume = ["--resume", run_folder, "--verbose", "0", "--n-workers", "1", "--no-report"]
    refused = run(*resume, "--n-delta", "8")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "n_delta was 4, is 8" in refused.stderr
    resumed = run(*resume)
    assert resumed.returncode == 0, resumed.stderr
    ours, theirs = (
        json.loads((tmp_path / name / "a2c" / f"{ENV_ID}_1" / "refinement.json").read_text())
        for name in ("killed", "whole")
    )
    for key in ("decision", "baseline", "refined", "rollouts", "env_steps"):
        assert ours[key] == theirs[key]


class Poisoned(gym.Wrapper):
    """Pendulum that returns NaN or infinity in the given share of its episodes."""

    def __init__(self, what, share):
        super().__init__(gym.make(ENV_ID))
        self.what, self.share, self.ill = what, share, False

    def reset(self, seed=None, **kwargs):
        self.ill = seed is not None and 37 * (seed // 3) % 100 < 100 * self.share  # spread over all seeds
        return self.env.reset(seed=seed, **kwargs)

    def step(self, action):
        observation, reward, *rest = self.env.step(action)
        if self.ill and self.what == "observation":
            observation = np.full_like(observation, np.inf)
        return observation, np.nan if self.ill and self.what == "reward" else reward, *rest


@pytest.mark.parametrize("what", ["reward", "observation"])
def test_invalid_pairs_are_dropped_and_counted(what):
    refiner = Refiner(train("ppo"), lambda: Poisoned(what, 0.05), **{**FAST, "n_delta": 20, "acceptance": False})
    refiner.learn(4)
    assert 0 < refiner.result.n_invalid < 0.2 * refiner.result.rollouts
    assert refiner.result.n_invalid % 2 == 0
    assert np.isfinite(refiner.parameters.get_theta()).all()


def test_too_many_invalid_episodes_stop_the_run():
    refiner = Refiner(train("ppo"), lambda: Poisoned("reward", 0.5), **{**FAST, "n_delta": 20, "acceptance": False})
    before = refiner.parameters.get_theta()
    with pytest.raises(
        EpisodeError, match=r"\d+ of 48 episodes are of candidates with NaN or infinite rewards or observations"
    ):
        refiner.learn(4)
    assert np.array_equal(refiner.parameters.get_theta(), before)


def test_too_many_dropped_candidates_stop_the_run_also_with_several_episodes_each():
    refiner = Refiner(
        train("ppo"),
        lambda: Poisoned("reward", 0.1),
        **{**FAST, "n_delta": 8, "acceptance": False, "episodes_per_candidate": 5},
    )
    with pytest.raises(EpisodeError, match="of 93 episodes are of candidates with NaN or infinite rewards"):
        refiner.learn(1)


def test_an_agent_whose_own_episodes_are_invalid_is_an_error():
    refiner = Refiner(train("ppo"), lambda: Poisoned("reward", 1.0), **{**FAST, "n_eval_episodes": 20})
    with pytest.raises(
        EpisodeError,
        match=r"10 of the 10 episodes of the original had NaN .*, those with seed \d+, \d+, \d+ and others",
    ):
        refiner.learn(1)


def test_a_candidate_with_invalid_held_out_episodes_is_not_accepted(made_agents, monkeypatch):
    refiner = refiner_of(made_agents, n_eval_episodes=20)
    before, run = refiner.parameters.get_theta(), EvaluationTarget.run

    def with_nan_on_the_last_test_seed(self, seeds, *arguments):
        found = run(self, seeds, *arguments)
        if len(seeds) != 20 or np.array_equal(self.theta, before):
            return found
        *others, last = found.episodes
        return replace(found, episodes=(*others, last._replace(episode_return=np.nan)))

    monkeypatch.setattr(EvaluationTarget, "run", with_nan_on_the_last_test_seed)
    refiner.learn(2)
    assert refiner.result.decision == "original"
    assert "1 of its 20 held-out episodes had NaN" in refiner.result.reason
    assert np.array_equal(refiner.parameters.get_theta(), before)


def test_a_time_limit_sets_time_aside_for_an_update_and_the_verdict(made_agents, monkeypatch):
    """On a clock on which each episode takes a second, and nothing else takes time."""
    episodes = []
    monkeypatch.setattr("sb3_refine.search.clock.time.perf_counter", lambda: float(len(episodes)))
    run = worker.rollout_with_metrics
    monkeypatch.setattr(worker, "rollout_with_metrics", lambda *args: (episodes.append(1), run(*args))[1])
    refiner = refiner_of(made_agents)
    refiner.learn(100_000, time_limit=60.0)
    assert refiner.result.decision in ("refined", "original")
    assert 60 - 2 * refiner.episodes_per_update < refiner.result.rollouts <= 60


def test_a_full_disk_keeps_the_last_checkpoint(made_agents, tmp_path, monkeypatch):
    refiner_of(made_agents).learn(2, checkpoint_folder=tmp_path, checkpoint_interval=1)
    good = (tmp_path / FILE_NAME).read_bytes()
    shutil.copy(tmp_path / FILE_NAME, tmp_path / "copy.pt")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "th", SimpleNamespace(**{**vars(checkpoint.th), "save": full}))
    with pytest.raises(RefineError, match=r"cannot be written to .*No space left.*is the disk full\?"):
        refiner_of(made_agents).learn(2, checkpoint_folder=tmp_path, checkpoint_interval=1)
    assert (tmp_path / FILE_NAME).read_bytes() == good
