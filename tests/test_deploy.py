"""Exported policies give the actions of predict."""

import json

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3
import torch
import toy_envs  # noqa: F401 - registers its environments
from conftest import MADE, ZOO_AGENTS, train
from sb3_contrib import QRDQN
from sb3_contrib.common.wrappers import TimeFeatureWrapper
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from test_distill import Short
from test_kinds import load, make
from torch import nn

from sb3_refine import RefineError, export, load_agent
from sb3_refine.agents.from_model import agent_from_model
from sb3_refine.cli.export import _FORMATS
from sb3_refine.deploy import formats
from sb3_refine.deploy.export import FILE_NAME
from sb3_refine.deploy.formats import FORMATS
from sb3_refine.deploy.network import deployed_policy
from sb3_refine.policies.transformer import TransformerPolicy

TOLERANCE = 1e-5  # of actions between -2 and 2: other orders of summation in float32


class DictPendulum(gym.Env):
    """Pendulum with its observation in two parts."""

    def __init__(self):
        self.env = gym.make("Pendulum-v1")
        self.action_space = self.env.action_space
        low, high = self.env.observation_space.low, self.env.observation_space.high
        self.observation_space = gym.spaces.Dict(
            {"speed": gym.spaces.Box(low[2:], high[2:]), "angle": gym.spaces.Box(low[:2], high[:2])}
        )

    def _parts(self, observation):
        return {"speed": observation[2:], "angle": observation[:2]}

    def reset(self, *, seed=None, options=None):
        observation, info = self.env.reset(seed=seed)
        return self._parts(observation), info

    def step(self, action):
        observation, *rest = self.env.step(action)
        return self._parts(observation), *rest


def dict_model():
    env = VecNormalize(DummyVecEnv([DictPendulum]), norm_obs_keys=["speed"])
    return stable_baselines3.SAC("MultiInputPolicy", env, policy_kwargs={"net_arch": [16]}, seed=0, device="cpu")


def discrete_model(cls):
    return cls("MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": [16]}, seed=0, device="cpu")


SLOW = pytest.mark.slow


@pytest.mark.parametrize("algo", [pytest.param(x, marks=() if x in ("a2c", "sac", "tqc") else SLOW) for x in MADE])
def test_continuous_actions_are_those_of_predict(algo, tmp_path):
    """Of every algorithm: clipped or squashed and scaled, a2c with normalised observations."""
    record = export(train(algo), tmp_path, list(FORMATS), n_episodes=2)
    assert record["checked_on"]["n_steps"] == 400
    for file in record["files"].values():
        assert file["largest_difference"] < TOLERANCE
        assert (tmp_path / file["file"]).stat().st_size == file["bytes"]
    assert json.loads((tmp_path / FILE_NAME).read_text())["files"] == record["files"]
    assert record["output"] == {"name": "action", "shape": ["batch", 1], "dtype": "float32"}


@pytest.mark.parametrize("cls", [stable_baselines3.PPO, stable_baselines3.DQN, QRDQN])
def test_discrete_actions_are_those_of_predict(cls, tmp_path):
    record = export(discrete_model(cls), tmp_path, list(FORMATS), n_episodes=5)
    assert record["checked_on"]["n_steps"] > 40
    for file in record["files"].values():
        assert file["n_different"] == 0
    assert record["output"] == {"name": "action", "shape": ["batch"], "dtype": "int64"}


def test_the_entries_of_a_dict_are_one_after_the_other(tmp_path):
    record = export(dict_model(), tmp_path, list(FORMATS), n_episodes=2)
    assert record["input"]["entries"] == [{"key": "angle", "size": 2}, {"key": "speed", "size": 1}]
    for file in record["files"].values():
        assert file["largest_difference"] < TOLERANCE


@pytest.mark.parametrize("name", FORMATS)
def test_observations_far_outside_give_actions_within_the_bounds(name, tmp_path):
    """Normalised observations are clipped, and so are actions; a batch of any size."""
    model = train("a2c")
    path, policy = tmp_path / f"policy{FORMATS[name].suffix}", deployed_policy(agent_from_model(model))
    FORMATS[name].write(policy, path, path.stem)
    run = FORMATS[name].read(path, policy, path.stem)
    observations = (np.geomspace(1e-3, 1e6, 50)[:, None] * np.random.default_rng(0).normal(size=(50, 3))).astype("f4")
    expected = model.predict(model.get_vec_normalize_env().normalize_obs(observations), deterministic=True)[0]
    assert np.abs(run(observations)[0] - expected).max() < TOLERANCE
    assert run(observations[:1])[0].shape == (1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("activation_fn", [nn.ELU, nn.LeakyReLU, nn.SiLU, nn.Sigmoid])
def test_activations_in_c(activation_fn, tmp_path):
    kwargs = {"net_arch": [16, 16], "activation_fn": activation_fn}
    model = stable_baselines3.PPO("MlpPolicy", "Pendulum-v1", policy_kwargs=kwargs, seed=0, device="cpu")
    assert export(model, tmp_path, ["c"], n_episodes=1)["files"]["c"]["largest_difference"] < TOLERANCE


def test_an_activation_without_c_is_refused(tmp_path):
    kwargs = {"net_arch": [16], "activation_fn": nn.Mish}
    model = stable_baselines3.PPO("MlpPolicy", "Pendulum-v1", policy_kwargs=kwargs, seed=0, device="cpu")
    with pytest.raises(RefineError, match="no C for the activation Mish; choose another format"):
        export(model, tmp_path, ["c"], n_episodes=1)
    assert not list(tmp_path.glob("*.h"))


def test_without_a_compiler_the_header_is_not_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(formats.shutil, "which", lambda name: None)
    file = export(train("ppo"), tmp_path, ["c"], n_episodes=1)["files"]["c"]
    assert file["unchecked"] == "there is no C compiler (cc)"
    assert (tmp_path / file["file"]).exists()


class Halved(ActorCriticPolicy):
    """A user's class, whose actions are not those of its network."""

    def _predict(self, observation, deterministic=False):
        return 0.5 * super()._predict(observation, deterministic)


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_that_gives_other_actions_is_not_kept(name, tmp_path):
    kwargs = {"log_std_init": -3.0, "ortho_init": False}
    model = stable_baselines3.PPO(Halved, "Pendulum-v1", policy_kwargs=kwargs, seed=0, device="cpu")
    with torch.no_grad():
        model.policy.action_net.bias += 1.0
    with pytest.raises(RefineError, match="does not give the actions of predict .*largest_difference"):
        export(model, tmp_path, [name], n_episodes=1)
    assert not any(path.is_file() for path in tmp_path.iterdir())


def test_wrappers_are_named(tmp_path, caplog):
    folder = tmp_path / "in" / "ppo" / "Pendulum-v1_1"
    (folder / "Pendulum-v1").mkdir(parents=True)
    env = TimeFeatureWrapper(gym.make("Pendulum-v1"))
    stable_baselines3.PPO("MlpPolicy", env, seed=0, device="cpu").save(folder / "Pendulum-v1.zip")
    config = "env_wrapper: sb3_contrib.common.wrappers.TimeFeatureWrapper\n"
    (folder / "Pendulum-v1" / "config.yml").write_text(config)
    record = export(load_agent("ppo", "Pendulum-v1", tmp_path / "in"), tmp_path / "out", ["torch"], n_episodes=1)
    assert record["wrappers"] == ["sb3_contrib.common.wrappers.TimeFeatureWrapper"]
    assert record["input"]["shape"] == ["batch", 4]
    assert "they are not in the file: sb3_contrib.common.wrappers.TimeFeatureWrapper" in caplog.text


def test_a_model_without_an_environment_takes_env(tmp_path):
    train("ppo").save(tmp_path / "model.zip")
    model = stable_baselines3.PPO.load(tmp_path / "model.zip", device="cpu")
    record = export(model, tmp_path / "out", ["torch"], env="Pendulum-v1", n_episodes=1)
    assert record["env"] == "Pendulum-v1"


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RefineError, match="the exported policy cannot be written to .*choose another folder"):
        export(train("ppo"), tmp_path / "file" / "out", ["torch"], n_episodes=1)


@pytest.mark.parametrize(
    "kind",
    [
        "lstm",
        "frame stack, normalised",
        *(pytest.param(x, marks=SLOW) for x in ("masked", "image", "multi-binary", "crossq")),
    ],
)
def test_what_cannot_be_exported_is_refused(kind, tmp_path):
    algo, env_id, _ = make(kind, tmp_path)
    with pytest.raises(RefineError, match="export: (the policy of this .* is no plain MLP|a frame stack)"):
        export(load(tmp_path, algo, env_id), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_line_offers_all_formats():
    assert set(_FORMATS) == set(FORMATS)


def test_unknown_formats_are_one_line(tmp_path):
    with pytest.raises(RefineError, match=r"format: unknown 'onxn' \(did you mean onnx\?\)"):
        export(train("ppo"), tmp_path, ["onxn"])


def test_the_command_line_says_how_far_from_predict(run, tmp_path):
    done = run("export", "--demo", "-o", tmp_path / "out", "--format", "onnx", "c", "--n-eval-episodes", 2)
    assert done.returncode == 0, done.stderr
    assert "Pendulum-v1.onnx" in done.stdout
    assert done.stdout.count("largest difference to predict in 400 steps: ") == 2
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "Pendulum-v1.h",
        "Pendulum-v1.onnx",
        FILE_NAME,
    ]


def test_a_failed_export_leaves_no_folder(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    done = run("export", "--demo")
    assert done.returncode == 1
    assert "onnx needs onnx, onnxscript, onnxruntime" in done.stderr
    assert not list((tmp_path / "exported").rglob("*_1"))


ZOO = sorted(path for path in ZOO_AGENTS.glob("*/*_1/*.zip") if path.stem == path.parent.name.removesuffix("_1"))


@pytest.mark.slow
@pytest.mark.parametrize("path", ZOO, ids=lambda path: f"{path.parent.parent.name} {path.stem}")
def test_every_zoo_agent_is_exported(path, tmp_path):
    agent = load_agent(path.parent.parent.name, path.stem, ZOO_AGENTS)
    record = export(agent, tmp_path, list(FORMATS), n_episodes=3)
    for file in record["files"].values():
        assert file.get("n_different", 0) == 0
        assert file.get("largest_difference", 0.0) < 1e-4


# ---------------------------------------------------------------- rounded weights


_ROUNDED = [("sac", "float16"), ("a2c", "float16"), ("a2c", "int8")]


@pytest.mark.parametrize(
    ("algo", "quantize"),
    [("sac", "int8"), *(pytest.param(*each, marks=pytest.mark.slow) for each in _ROUNDED)],
)
def test_rounded_weights_are_stored_with_fewer_bytes_and_give_the_actions_of_the_rounded_agent(
    made_agents, tmp_path, algo, quantize
):
    agent = load_agent(algo, "Pendulum-v1", made_agents)
    formats = ["onnx", "torch", "c"]
    record = export(agent, tmp_path, formats, n_episodes=1, quantize=quantize)
    assert record["quantize"] == quantize
    for name in formats:
        found = record["files"][name]
        assert found.get("largest_difference", 0) < 1e-5, name
    text = (tmp_path / "Pendulum-v1.h").read_text()
    stored = {"float16": "uint16_t", "int8": "int8_t"}[quantize]
    assert f"static const {stored} " in text
    import onnx

    weights = [each for each in onnx.load(str(tmp_path / "Pendulum-v1.onnx")).graph.initializer if len(each.dims) == 2]
    kinds = {onnx.TensorProto.DataType.Name(each.data_type) for each in weights if 1 not in each.dims}
    assert kinds == {quantize.upper()}


@pytest.mark.parametrize(
    ("action_space", "quantize"),
    [
        (gym.spaces.Discrete(3), None),
        pytest.param(gym.spaces.Box(-2, 1, (2,)), None, marks=pytest.mark.slow),
        pytest.param(gym.spaces.Box(-2, 1, (2,)), "int8", marks=pytest.mark.slow),
        pytest.param(gym.spaces.Discrete(3), "int8", marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_transformer_is_exported_with_its_state(tmp_path, action_space, quantize):
    """Longer than the context, and the bounds are not symmetric."""
    agent = transformer(action_space)
    record = export(agent, tmp_path, ["onnx", "torch"], n_episodes=2, quantize=quantize)
    assert [entry["name"] for entry in record["state"]] == ["memory", "last_action", "n_steps"]
    assert record["checked_on"]["n_steps"] == 20
    for file in record["files"].values():
        assert file.get("n_different", file.get("largest_difference")) < TOLERANCE
    with pytest.raises(RefineError, match="no C for a transformer; choose onnx or torch"):
        export(agent, tmp_path, ["c"], n_episodes=1)


@pytest.mark.slow
def test_episodes_of_a_transformer_may_begin_at_any_time(tmp_path):
    """In a batch, each episode has a state of its own; zeros begin a new one."""
    import onnxruntime

    agent = transformer(gym.spaces.Box(-2, 1, (2,)))
    export(agent, tmp_path, ["onnx"], n_episodes=1)
    (path,) = tmp_path.glob("*.onnx")
    session = onnxruntime.InferenceSession(str(path))
    observations = np.random.default_rng(0).uniform(-1, 1, (12, 2, 3)).astype(np.float32)
    state, expected_state = None, None
    for number, observation in enumerate(observations):
        starts = np.array([number == 0, number in (0, 7)])
        expected, expected_state = agent.model.predict(observation, expected_state, starts, deterministic=True)
        if state is None:
            state = [entry.zeros(2) for entry in deployed_policy(agent).state]
        state[2][starts] = 0
        names = [each.name for each in session.get_inputs()]
        actions, *state = session.run(None, dict(zip(names, [observation, *state], strict=True)))
        np.testing.assert_allclose(actions, expected, atol=TOLERANCE)


def transformer(action_space):
    sizes = {"context": 4, "n_layers": 2, "embed_dim": 16}
    env = Short(action_space=action_space)
    model = stable_baselines3.PPO(TransformerPolicy, env, n_steps=8, batch_size=8, policy_kwargs=sizes, seed=0)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return agent_from_model(model, lambda: Short(action_space=action_space))


def test_four_bits_are_stored_by_no_format(made_agents, tmp_path):
    with pytest.raises(RefineError, match="quantize: no format stores 'int4'; choose from float16, int8"):
        export(load_agent("sac", "Pendulum-v1", made_agents), tmp_path, quantize="int4")
