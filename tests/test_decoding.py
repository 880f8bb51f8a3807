"""Reading the files of other versions and of strangers as data: everything needed, nothing run."""

import base64
import json
import os
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
from fresh import run_script
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.utils import LinearSchedule, get_schedule_fn

from sb3_refine import RefineError, load_agent, refine
from sb3_refine.agents.decoding.model_zip import read_model
from sb3_refine.agents.decoding.objects import known_class, space, train_freq
from sb3_refine.agents.decoding.pickle_tree import UnknownObjectError, read_pickle
from sb3_refine.agents.decoding.schedules import UnreadableSchedule, schedule
from sb3_refine.agents.decoding.statistics import read_vec_normalize
from sb3_refine.agents.decoding.zoo_expressions import without_code
from sb3_refine.agents.decoding.zoo_yaml import read_zoo_yaml


class Malicious:
    """A pickle that touches a file when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.fixture
def zip_with(made_agents, tmp_path):
    """A zip of Stable-Baselines3 in which some attributes are other values, or pickles given as bytes."""

    def write(algo: str = "ppo", drop: tuple[str, ...] = (), **changes) -> Path:
        path = tmp_path / "changed.zip"
        with zipfile.ZipFile(made_agents / algo / "Pendulum-v1_1" / "Pendulum-v1.zip") as source:
            members = {name: source.read(name) for name in source.namelist()}
        data = json.loads(members["data"])
        data.update({key: stored(value) for key, value in changes.items()})
        members["data"] = json.dumps({key: value for key, value in data.items() if key not in drop}).encode()
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return path

    return write


def stored(value):
    return {":type:": "?", ":serialized:": base64.b64encode(value).decode()} if isinstance(value, bytes) else value


def read_space(pickled: bytes) -> spaces.Space:
    return space(read_pickle(pickled))


@pytest.fixture
def legacy_gym(monkeypatch):
    """Stand-ins for the classes of the old ``gym`` package, to write pickles as it did; gone when they are read."""

    def pickled(module: str, name: str, state: dict, protocol: int = 4) -> bytes:
        package, stand_in = types.ModuleType("gym"), types.ModuleType(f"gym.spaces.{module}")
        cls = type(name, (), {"__module__": stand_in.__name__})
        setattr(stand_in, name, cls)
        modules = {"gym": package, "gym.spaces": types.ModuleType("gym.spaces"), stand_in.__name__: stand_in}
        with monkeypatch.context() as context:
            for key, value in modules.items():
                context.setitem(sys.modules, key, value)
            space = cls()
            space.__dict__.update(state)
            return pickle.dumps(space, protocol)

    return pickled


def test_gym_spaces_become_gymnasium_spaces(legacy_gym):
    low, high = np.array([-1, -np.inf], dtype=np.float32), np.array([1, np.inf], dtype=np.float32)
    state = {
        "dtype": np.dtype("float32"),
        "shape": (2,),
        "low": low,
        "high": high,
        "np_random": np.random.RandomState(3),
    }
    assert read_space(legacy_gym("box", "Box", state)) == spaces.Box(low, high)
    state = {"n": 4, "shape": (), "dtype": np.dtype("int64"), "_np_random": None}
    assert read_space(legacy_gym("discrete", "Discrete", state)) == spaces.Discrete(4)
    state = {"nvec": np.array([2, 3]), "dtype": np.dtype("int64")}
    assert read_space(legacy_gym("multi_discrete", "MultiDiscrete", state)) == spaces.MultiDiscrete([2, 3])
    state = {"n": 5, "shape": (5,), "dtype": np.dtype("int8")}
    assert read_space(legacy_gym("multi_binary", "MultiBinary", state)) == spaces.MultiBinary(5)


def test_spaces_lose_their_random_generator():
    box = spaces.Box(-1.0, 1.0, (3,))
    box.seed(0)
    copy = read_space(pickle.dumps(box))
    assert type(copy) is spaces.Box
    assert copy == box
    assert copy._np_random is None


def test_dict_spaces_keep_their_order():
    both = spaces.Dict(OrderedDict(observation=spaces.Box(0, 1, (2,)), goal=spaces.Discrete(3)))
    copy = read_space(pickle.dumps(both))
    assert copy == both
    assert list(copy) == list(both)


def linear_schedule(initial_value):  # as rl_zoo3.utils.linear_schedule was
    def func(progress_remaining):
        return progress_remaining * initial_value

    return func


def constant_fn(val):  # as stable_baselines3.common.utils.constant_fn was
    def func(_):
        return val

    return func


def get_schedule_fn_(value_schedule):  # as stable_baselines3.common.utils.get_schedule_fn was
    function = lambda progress_remaining: float(value_schedule(progress_remaining))  # noqa: E731
    function.__qualname__ = "get_schedule_fn.<locals>.<lambda>"
    return function


def initial_value_squared(initial_value):
    def func(progress_remaining):
        return initial_value**2

    return func


@pytest.mark.parametrize(
    ("function", "values"),
    [
        (linear_schedule(0.01), (0.01, 0.005)),
        (constant_fn(0.2), (0.2, 0.2)),
        (get_schedule_fn_(linear_schedule(0.01)), (0.01, 0.005)),
        (lambda _: 0.5, (0.5, 0.5)),
        (get_schedule_fn(0.3), (0.3, 0.3)),
        (LinearSchedule(0.4, 0.0, 1.0), (0.4, 0.2)),
    ],
)
def test_schedules_are_read_without_running_their_code(function, values):
    found = schedule(read_pickle(by_value(function)))
    assert tuple(found(x) if callable(found) else found for x in (1.0, 0.5)) == pytest.approx(values)
    assert getattr(found, "__module__", "stable_baselines3").startswith("stable_baselines3")


def by_value(function):
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        return cloudpickle.dumps(function)
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.mark.parametrize("function", [initial_value_squared(0.1), lambda p: 1e-5 * p, lambda _: 0.1 + 0.2 * _])
def test_an_authors_own_schedule_is_not_guessed(function):
    assert isinstance(schedule(read_pickle(by_value(function))), UnreadableSchedule)


@pytest.mark.parametrize("name", ["policy_kwargs", "action_noise", "observation_space", "policy_class", "train_freq"])
def test_a_malicious_zip_runs_nothing_and_its_function_is_named(zip_with, tmp_path, name):
    path = zip_with("ddpg", **{name: pickle.dumps(Malicious(tmp_path / "run"))})
    with pytest.raises(RefineError, match=rf"{name}: refused to load (posix|nt)\.system.*`trust_remote_code=True`"):
        read_model(path)
    assert not (tmp_path / "run").exists()


def test_attributes_that_are_not_needed_are_not_read(zip_with, tmp_path):
    pickled = pickle.dumps(Malicious(tmp_path / "run"))
    read_model(zip_with("ddpg", ep_info_buffer=pickled, _last_obs=pickled, save=pickled, logger="x"), True)
    assert not (tmp_path / "run").exists()


def test_a_malicious_vecnormalize_runs_nothing_and_its_function_is_named(tmp_path):
    path = tmp_path / "vecnormalize.pkl"
    path.write_bytes(pickle.dumps(Malicious(tmp_path / "run")))
    with pytest.raises(RefineError, match=r"refused to load (posix|nt)\.system"):
        read_vec_normalize(path)
    assert not (tmp_path / "run").exists()


def test_trust_remote_code_unpickles(zip_with, tmp_path):
    read_model(zip_with(policy_kwargs=pickle.dumps(Malicious(tmp_path / "run"))), trust_remote_code=True)
    assert (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["builtins.eval", "builtins.setattr", "numpy.load", "torch.load", "cloudpickle.loads"])
def test_no_other_class_is_found(name):
    module, _, attribute = name.rpartition(".")
    node = read_pickle(f"c{module}\n{attribute}\n.".encode())
    with pytest.raises(UnknownObjectError, match=rf"refused to load {module}\.{attribute}"):
        known_class(node, "activation_fn")


def test_a_class_is_accepted_only_where_it_belongs():
    node = read_pickle(b"cstable_baselines3.common.buffers\nReplayBuffer\n.")
    assert known_class(node, "replay_buffer_class").__name__ == "ReplayBuffer"
    with pytest.raises(UnknownObjectError, match="refused to load"):
        known_class(node, "features_extractor_class")


def test_a_malicious_yaml_runs_nothing(tmp_path):
    path = tmp_path / "config.yml"
    path.write_text(f"!!python/object/apply:os.system ['touch {tmp_path / 'run'}']")
    with pytest.raises(RefineError, match="cannot be read as YAML"):
        read_zoo_yaml(path)
    assert not (tmp_path / "run").exists()


def test_the_zoos_own_configs_are_kept_whole(zoo_agents):
    configs = [read_zoo_yaml(path) for path in sorted(zoo_agents.glob("*/*/*/config.yml"))]
    assert len(configs) >= 20
    for config in configs:
        assert without_code(config) == {name: value for name, value in config.items() if name != "callback"}


FREQUENCY = (
    b"cstable_baselines3.common.type_aliases\nTrainFreq\n(I1\n"
    b"cbuiltins\ngetattr\n(cstable_baselines3.common.type_aliases\nTrainFrequencyUnit\nVSTEP\ntRtR."
)


def test_members_of_enums_are_read_as_early_python_311_pickles_them():
    assert train_freq(read_pickle(FREQUENCY)) == TrainFreq(1, TrainFrequencyUnit.STEP)


@pytest.mark.parametrize(
    "change", [(b"VSTEP", b"V__class__"), (b"VSTEP", b"I1"), (b"FrequencyUnit", b"FrequencyUnits")]
)
def test_no_other_attribute_is_read(change):
    with pytest.raises(UnknownObjectError, match=r"refused to load builtins\.getattr"):
        train_freq(read_pickle(FREQUENCY.replace(*change)))


def test_the_zoos_yaml_is_read(tmp_path):
    path = tmp_path / "config.yml"
    path.write_text(
        "!!python/object/apply:collections.OrderedDict\n- - - normalize\n    - true\n"
        "  - - env_wrapper\n    - - a.B:\n          n: 1\n"
    )
    assert read_zoo_yaml(path) == {"normalize": True, "env_wrapper": [{"a.B": {"n": 1}}]}


@pytest.mark.parametrize("damage", ["truncated", "flipped", "text", "no data"])
def test_a_corrupt_zip_is_an_error(tmp_path, made_agents, damage):
    whole = (made_agents / "ppo" / "Pendulum-v1_1" / "Pendulum-v1.zip").read_bytes()
    path = tmp_path / "a.zip"
    path.write_bytes(whole)
    if damage == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "flipped":
        path.write_bytes(whole[:2000] + bytes([whole[2000] ^ 255]) + whole[2001:])
    elif damage == "text":
        path.write_text("<html>404</html>")
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme", "no model in here")
    with pytest.raises(RefineError, match="not a valid Stable-Baselines3 zip.*download or save it again"):
        read_model(path)


def test_every_zoo_zip_that_can_be_refined_is_read(zoo_agents):
    """Old pickles, without the legacy gym package, and with no code of theirs run."""
    assert "gym" not in sys.modules
    read = 0
    for path in sorted(zoo_agents.glob("*/*/*.zip")):
        data = read_model(path).attributes
        assert type(data["action_space"]).__module__.startswith("gymnasium.spaces")
        rate = data["learning_rate"]
        assert (rate(1.0) if callable(rate) else rate) >= 0
        read += 1
    assert read >= 20
    for path in sorted(zoo_agents.glob("*/*/*/vecnormalize.pkl")):
        vec_normalize = read_vec_normalize(path)
        assert type(vec_normalize.observation_space).__module__.startswith("gymnasium.spaces")
        assert pickle.loads(pickle.dumps(vec_normalize)).clip_obs == vec_normalize.clip_obs


def linear_schedule(initial_value):
    def func(progress_remaining):
        return max(progress_remaining * initial_value, 1e-4)

    return func


def test_a_schedule_that_only_has_the_name_of_the_zoos_is_not_taken_for_it(tmp_path):
    model = PPO("MlpPolicy", "Pendulum-v1", n_steps=8, device="cpu")
    model.learning_rate = linear_schedule(3e-4)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        model.save(tmp_path / "own.zip")
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    with pytest.raises(RefineError, match="its learning_rate is the author's own code"):
        load_agent(model=tmp_path / "own.zip", env="Pendulum-v1")
    rate = load_agent(model=tmp_path / "own.zip", env="Pendulum-v1", trust_remote_code=True).model.learning_rate
    assert [rate(1.0), rate(0.0)] == [3e-4, 1e-4]


def test_a_trusted_file_may_define_classes(tmp_path):
    """A features extractor that was defined in a notebook."""
    script = (
        "import torch\n"
        "from stable_baselines3 import PPO\n"
        "from stable_baselines3.common.torch_layers import BaseFeaturesExtractor\n"
        "class Own(BaseFeaturesExtractor):\n"
        "    def __init__(self, space):\n"
        "        super().__init__(space, 4)\n"
        "        self.net = torch.nn.Linear(3, 4)\n"
        "    def forward(self, x):\n"
        "        return torch.relu(self.net(x))\n"
        "PPO('MlpPolicy', 'Pendulum-v1', n_steps=8, device='cpu',\n"
        f"    policy_kwargs=dict(features_extractor_class=Own)).save({str(tmp_path / 'own.zip')!r})\n"
    )
    done = run_script(script)
    assert done.returncode == 0, done.stderr
    with pytest.raises(RefineError, match=r"policy_kwargs: refused to load .*`trust_remote_code=True`"):
        load_agent(model=tmp_path / "own.zip", env="Pendulum-v1")
    agent = load_agent(model=tmp_path / "own.zip", env="Pendulum-v1", trust_remote_code=True)
    assert type(agent.model.policy.features_extractor).__name__ == "Own"
    refine(agent, n_updates=1, n_delta=1, n_eval_episodes=2, n_workers=1)
