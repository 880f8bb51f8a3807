"""What goes wrong for users of this field: one line that names the remedy, an exit status, and nothing lost."""

import base64
import json
import os
import pickle
import shutil
import sys
import zipfile
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3
import torch
import toy_envs  # noqa: F401  registers its environments
import yaml
from conftest import ENV_ID
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_refine import Refiner, load_agent
from sb3_refine.agents.zoo import ExpectedReturn
from sb3_refine.cli.main import main
from sb3_refine.evaluation.baseline import warn_if_unexpected
from sb3_refine.evaluation.evaluation import Evaluation
from sb3_refine.rollouts.episode import Episode

QUICK = ["--n-updates", "1", "--n-delta", "1", "--n-eval-episodes", "2", "--backend", "serial", "--verbose", "0"]
QUICK += ["--no-report"]


class Folder:
    """A Zoo folder of one's own, and the command line on it."""

    def __init__(self, path, capsys):
        self.path, self.capsys = path, capsys

    def run_folder(self, algo, env=ENV_ID):
        return self.path / "agents" / algo / f"{env}_1"

    def zip(self, algo, env=ENV_ID):
        return self.run_folder(algo, env) / f"{env}.zip"

    def config(self, algo, content, env=ENV_ID, name="config.yml"):
        (self.run_folder(algo, env) / env / name).write_text(yaml.safe_dump(content))

    def refine(self, algo, env, *more):
        arguments = ["--algo", algo, "--env", env, "-f", self.path / "agents", "-o", self.path / "out", *QUICK, *more]
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as ended:
            status = ended.code
        captured = self.capsys.readouterr()
        return status, captured.out, captured.err

    def refused(self, algo, env, *more, status=1):
        """The one line of an error; nothing may be left of the run."""
        before = {path: path.read_bytes() for path in self.path.glob("agents/**/*.*") if path.is_file()}
        code, _, line = self.refine(algo, env, *more)
        assert code == status
        assert line.startswith("sb3-refine: error: ")
        assert line.count("\n") == 1, line
        assert not (self.path / "out").exists()
        assert all(path.read_bytes() == content for path, content in before.items())
        return line


@pytest.fixture
def folder(made_agents, tmp_path, capsys):
    shutil.copytree(made_agents, tmp_path / "agents")
    return Folder(tmp_path, capsys)


@pytest.mark.parametrize(("algo", "other"), [("ppo", "a2c"), ("a2c", "trpo"), ("sac", "tqc"), ("td3", "ddpg")])
def test_1_the_wrong_algorithm_is_refused_with_the_right_one(folder, algo, other):
    folder.zip(other).write_bytes(folder.zip(algo).read_bytes())
    assert f"holds a {algo} agent, not {other}; pass --algo {algo}" in folder.refused(other, ENV_ID)


def test_2_an_unknown_environment_is_answered_with_the_nearest(folder):
    line = folder.refused("ppo", "Pendulun-v1", "--model", folder.zip("ppo"))
    assert "unknown environment 'Pendulun-v1' (did you mean Pendulum-v1" in line


@pytest.mark.parametrize(
    ("env", "package", "extra"),
    [
        ("HopperBulletEnv-v0", "pybullet_envs_gymnasium", "bullet"),
        ("PandaReach-v3", "panda_gym", "panda"),
        ("FetchReach-v1", "gymnasium_robotics", "robotics"),
        ("BreakoutNoFrameskip-v4", "ale_py", "atari"),
    ],
)
def test_3_a_missing_package_is_answered_with_the_extra(folder, monkeypatch, env, package, extra):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    for module in ("pybullet", "mujoco"):
        if module not in sys.modules:
            monkeypatch.setitem(sys.modules, module, type(sys)(module))
    assert f"pip install 'sb3-refine[{extra}]'" in folder.refused("ppo", env, "--model", folder.zip("ppo"))


@pytest.mark.parametrize("name", ["config.yml", "args.yml"])
def test_4_arguments_of_the_environment_are_read_and_overridden(folder, name):
    folder.config("ppo", {"env_kwargs": {"g": 3.0}}, name=name)
    for more, g in (((), 3.0), (("--env-kwargs", "g:5.0"), 5.0)):
        kwargs = {"env_kwargs": {"g": 5.0}} if more else {}
        env = load_agent("ppo", ENV_ID, folder.path / "agents", **kwargs).recipe.build()
        assert env.unwrapped.g == g
        assert folder.refine("ppo", ENV_ID, *more)[0] == 0
    line = folder.refine("ppo", ENV_ID, "--env-kwargs", "gravity:5.0")[2]
    assert "env-kwargs: Pendulum-v1: " in line
    assert "unexpected keyword argument 'gravity'" in line


def test_5_missing_statistics_stop_the_run_unless_allowed(folder):
    (folder.run_folder("a2c") / ENV_ID / "vecnormalize.pkl").unlink()
    line = folder.refused("a2c", ENV_ID)
    assert "trained on normalised observations, but there is no vecnormalize.pkl; name it with --vecnormalize" in line
    assert folder.refine("a2c", ENV_ID, "--no-vecnormalize")[0] == 0


def test_6_statistics_of_another_shape_show_both(folder):
    statistics = VecNormalize(make_vec_env("MountainCarContinuous-v0"))
    statistics.save(str(folder.run_folder("a2c") / ENV_ID / "vecnormalize.pkl"))
    line = folder.refused("a2c", ENV_ID)
    assert "its statistics have shape (2,), the observations (3,)" in line


@pytest.mark.parametrize(("returns", "warned"), [([-1.0] * 10, True), ([-2000.0, 0.0], False)])
def test_7_a_return_far_from_the_agents_own_evaluations_is_a_warning(folder, caplog, returns, warned):
    results = np.array([returns] * 6)
    np.savez(folder.run_folder("ppo") / "evaluations.npz", timesteps=np.arange(6), results=results)
    agent = load_agent("ppo", ENV_ID, folder.path / "agents")
    Refiner(agent, backend="serial", n_eval_episodes=3, n_delta=1).learn(1)
    assert ("UNEXPECTED RETURN" in caplog.text) is warned
    if warned:
        assert "its own evaluations.npz says -1 " in caplog.text


@pytest.mark.parametrize(
    ("returns", "warned"), [([-96.0, -96.0], False), ([-94.0, -94.0], True), ([-110.0, -50.0], False)]
)
def test_7_a_return_slightly_out_of_range_is_no_warning(returns, warned, caplog):
    agent = SimpleNamespace(expected_return=ExpectedReturn(-200.0, -100.0, -150.0), env_name=ENV_ID)
    warn_if_unexpected(agent, Evaluation((1, 2), tuple(Episode(value, 200, False) for value in returns)))
    assert bool(caplog.text) is warned


def test_8_bounds_of_observations_may_differ_shapes_may_not(folder):
    line = folder.refused("ppo", "MountainCarContinuous-v0", "--model", folder.zip("ppo"))
    assert "the agent's observation space Box(" in line
    assert "does not match that of MountainCarContinuous-v0, Box(" in line
    model = stable_baselines3.PPO("MlpPolicy", gym.make(ENV_ID), n_steps=8, device="cpu")
    model.observation_space.low[:] = -7
    model.save(folder.zip("ppo"))
    assert folder.refine("ppo", ENV_ID)[0] == 0


def test_9_other_actions_are_refused(folder):
    model = stable_baselines3.PPO("MlpPolicy", "MaskedToy-v0", n_steps=8, device="cpu")
    model.save(folder.zip("ppo"))
    assert "the agent's action space Discrete(4) does not match that of Pendulum-v1" in folder.refused("ppo", ENV_ID)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "text"])
def test_10_a_damaged_zip_is_answered_with_download_again(folder, damage):
    path = folder.zip("ppo")
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        with zipfile.ZipFile(path) as archive:
            member = archive.getinfo("policy.pth")
        content[member.header_offset + 2000] ^= 0xFF
    damaged = {"truncated": content[:5000], "flipped": content, "empty": b"", "text": b"404: not found"}[damage]
    path.write_bytes(damaged)
    line = folder.refused("ppo", ENV_ID)
    assert "not a valid Stable-Baselines3 zip" in line
    assert line.endswith("download or save it again\n")


def test_11_nan_weights_are_found_at_load(folder):
    model = stable_baselines3.PPO("MlpPolicy", ENV_ID, n_steps=8, device="cpu")
    with torch.no_grad():
        model.policy.action_net.weight[0, 0] = float("nan")
    model.save(folder.zip("ppo"))
    assert "NaN or inf in action_net.weight; choose another checkpoint" in folder.refused("ppo", ENV_ID)


def test_18_an_output_that_cannot_be_written_to_is_found_before_the_search(folder):
    arguments = ("-o", "/proc/none") if os.geteuid() == 0 else ("-o", "/none")
    assert "--output: cannot write to" in folder.refused("ppo", ENV_ID, *arguments)


def test_19_nothing_is_overwritten_not_even_the_input(folder):
    before = folder.zip("ppo").read_bytes()
    for _ in range(2):
        assert folder.refine("ppo", ENV_ID)[0] == 0
    assert sorted(path.name for path in (folder.path / "out" / "ppo").iterdir()) == [f"{ENV_ID}_1", f"{ENV_ID}_2"]
    assert folder.refine("ppo", ENV_ID, "-o", folder.path / "agents")[0] == 0  # beside the input
    assert folder.zip("ppo").read_bytes() == before
    assert (folder.path / "agents" / "ppo" / f"{ENV_ID}_2" / f"{ENV_ID}.zip").is_file()


def test_20_a_typo_in_an_option_is_answered_with_the_nearest(folder):
    assert "--n-delat 3 (did you mean --n-delta" in folder.refused("ppo", ENV_ID, "--n-delat", "3", status=2)


def test_22_no_gpu_is_no_obstacle(folder, caplog):
    assert folder.refine("ppo", ENV_ID, "--device", "cuda")[0] == 0
    assert "--device cuda: rollouts run on the CPU" in caplog.text


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("where", ["zip", "statistics", "config"])
def test_28_an_untrusted_pickle_is_refused_and_its_function_named(folder, where):
    """Whatever the file, nothing of it runs."""
    proof = folder.path / "it ran"
    pickled = pickle.dumps(Malicious(proof))
    if where == "statistics":
        (folder.run_folder("a2c") / ENV_ID / "vecnormalize.pkl").write_bytes(pickled)
    elif where == "config":
        text = f"!!python/object/apply:os.system ['touch {proof}']\n"
        (folder.run_folder("a2c") / ENV_ID / "config.yml").write_text(text)
    else:
        path = folder.zip("a2c")
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        data = json.loads(members["data"])
        data["policy_class"][":serialized:"] = base64.b64encode(pickled).decode()
        members["data"] = json.dumps(data).encode()
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
    line = folder.refused("a2c", ENV_ID)
    if where == "config":
        assert "cannot be read as YAML" in line
    else:
        assert "refused to load posix.system" in line
        assert "--trust-remote-code" in line
    assert not proof.exists()
