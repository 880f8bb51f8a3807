"""Reading the files of other versions and of strangers: everything needed, nothing run."""

import base64
import json
import os
import pickle
import subprocess
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.type_aliases import TrainFrequencyUnit
from stable_baselines3.common.utils import LinearSchedule, get_schedule_fn

from sb3_refine import RefineError, load_agent, refine
from sb3_refine.legacy import UnreadableSchedule, read_model_data, read_vec_normalize, read_zoo_yaml, safe_unpickle


class Malicious:
    """A pickle that touches a file when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def write_zip(path: Path, data: dict) -> Path:
    stored = {
        key: {":serialized:": base64.b64encode(value).decode()} if isinstance(value, bytes) else value
        for key, value in data.items()
    }
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", json.dumps(stored))
    return path


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
    assert safe_unpickle(legacy_gym("box", "Box", state), "") == spaces.Box(low, high)
    state = {"n": 4, "shape": (), "dtype": np.dtype("int64"), "_np_random": None}
    assert safe_unpickle(legacy_gym("discrete", "Discrete", state), "") == spaces.Discrete(4)
    state = {"nvec": np.array([2, 3]), "dtype": np.dtype("int64")}
    assert safe_unpickle(legacy_gym("multi_discrete", "MultiDiscrete", state), "") == spaces.MultiDiscrete([2, 3])
    state = {"n": 5, "shape": (5,), "dtype": np.dtype("int8")}
    assert safe_unpickle(legacy_gym("multi_binary", "MultiBinary", state), "") == spaces.MultiBinary(5)


def test_spaces_lose_their_random_generator():
    space = spaces.Box(-1.0, 1.0, (3,))
    space.seed(0)
    copy = safe_unpickle(pickle.dumps(space), "")
    assert type(copy) is spaces.Box
    assert copy == space
    assert copy._np_random is None


def test_dict_spaces_keep_their_order():
    space = spaces.Dict(OrderedDict(observation=spaces.Box(0, 1, (2,)), goal=spaces.Discrete(3)))
    assert safe_unpickle(pickle.dumps(space), "") == space


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
def test_schedules_are_read_without_running_their_code(tmp_path, function, values):
    data = read_model_data(write_zip(tmp_path / "a.zip", {"learning_rate": by_value(function)}))
    schedule = data["learning_rate"]
    assert tuple(schedule(x) if callable(schedule) else schedule for x in (1.0, 0.5)) == pytest.approx(values)
    assert getattr(schedule, "__module__", "stable_baselines3").startswith("stable_baselines3")


def by_value(function):
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        return cloudpickle.dumps(function)
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.mark.parametrize("function", [initial_value_squared(0.1), lambda p: 1e-5 * p, lambda _: 0.1 + 0.2 * _])
def test_a_schedule_of_its_authors_is_not_guessed(tmp_path, function):
    data = read_model_data(write_zip(tmp_path / "a.zip", {"learning_rate": by_value(function)}))
    assert isinstance(data["learning_rate"], UnreadableSchedule)


@pytest.mark.parametrize(
    ("pickled", "line"),
    [
        (b"cnumpy\nndarray\n(I1\n\x85S'O'\ntR.", "cannot be unpickled|refused"),
        (b"cnumpy\ndtype\n(S'O'\ntR.", "cannot be unpickled"),
        (
            b"cstable_baselines3.common.utils\nLinearSchedule\n(N}S'__call__'\ncbuiltins\nfloat\nstb.",
            "refused to change <class .*LinearSchedule",
        ),
        (b"cstable_baselines3.common.buffers\nReplayBuffer\n(I9\ntR.", "refused to call .*ReplayBuffer"),
    ],
)
def test_no_memory_is_read_and_no_class_is_changed(pickled, line):
    with pytest.raises(RefineError, match=line):
        result = safe_unpickle(pickled, "")
        if not isinstance(result, np.ndarray):  # an inert stand-in will do as well
            raise RefineError("refused")
    assert LinearSchedule(1.0, 0.0, 1.0)(0.5) == 0.5


def test_an_environment_named_in_a_zip_is_not_made(tmp_path):
    assert read_model_data(write_zip(tmp_path / "a.zip", {"env": "this:Pendulum-v1"}))["env"] is None


def test_a_malicious_zip_runs_nothing_and_names_the_culprit(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"policy_kwargs": pickle.dumps(Malicious(tmp_path / "run"))})
    with pytest.raises(
        RefineError, match=r"policy_kwargs: refused to unpickle (posix|nt)\.system.*--trust-remote-code"
    ):
        read_model_data(path)
    assert not (tmp_path / "run").exists()


def test_a_malicious_vecnormalize_runs_nothing_and_names_the_culprit(tmp_path):
    path = tmp_path / "vecnormalize.pkl"
    path.write_bytes(pickle.dumps(Malicious(tmp_path / "run")))
    with pytest.raises(RefineError, match=r"refused to unpickle (posix|nt)\.system"):
        read_vec_normalize(path)
    assert not (tmp_path / "run").exists()


def test_trust_remote_code_opens_the_gate(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"policy_kwargs": pickle.dumps(Malicious(tmp_path / "run"))})
    read_model_data(path, trust_remote_code=True)
    assert (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["builtins.eval", "builtins.setattr", "numpy.load", "torch.load", "cloudpickle.loads"])
def test_neighbours_of_safe_names_are_refused(name):
    module, _, attribute = name.rpartition(".")
    with pytest.raises(RefineError, match=rf"refused to unpickle {module}\.{attribute}"):
        safe_unpickle(f"c{module}\n{attribute}\n.".encode(), "")


def test_a_malicious_yaml_runs_nothing(tmp_path):
    path = tmp_path / "config.yml"
    path.write_text(f"!!python/object/apply:os.system ['touch {tmp_path / 'run'}']")
    with pytest.raises(RefineError, match="cannot be read as the Zoo's YAML"):
        read_zoo_yaml(path)
    assert not (tmp_path / "run").exists()


UNIT = b"cbuiltins\ngetattr\n(cstable_baselines3.common.type_aliases\nTrainFrequencyUnit\nVSTEP\ntR."


def test_members_of_enums_are_read_as_early_python_311_pickles_them():
    assert safe_unpickle(UNIT, "") is TrainFrequencyUnit.STEP


@pytest.mark.parametrize("change", [(b"VSTEP", b"V__class__"), (b"VSTEP", b"I1"), (b"FrequencyUnit", b"Freq")])
def test_no_other_attribute_is_read(change):
    with pytest.raises(RefineError, match=r"refused to unpickle builtins\.getattr"):
        safe_unpickle(UNIT.replace(*change), "")


def test_the_zoos_yaml_is_read(tmp_path):
    path = tmp_path / "config.yml"
    path.write_text(
        "!!python/object/apply:collections.OrderedDict\n- - - normalize\n    - true\n"
        "  - - env_wrapper\n    - - a.B:\n          n: 1\n"
    )
    assert read_zoo_yaml(path) == {"normalize": True, "env_wrapper": [{"a.B": {"n": 1}}]}


@pytest.mark.parametrize("damage", ["truncated", "flipped", "text", "no data"])
def test_a_broken_zip_is_told(tmp_path, made_agents, damage):
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
    with pytest.raises(RefineError, match="not an intact Stable-Baselines3 zip.*download or save it again"):
        read_model_data(path)


def test_every_zoo_zip_that_can_be_refined_is_read(zoo_agents):
    """Old pickles, without the legacy gym package, and with no code of theirs run."""
    assert "gym" not in sys.modules
    read = 0
    for path in sorted(zoo_agents.glob("*/*/*.zip")):
        if path.parts[-3] != "ars":
            data = read_model_data(path)
            assert type(data["action_space"]).__module__.startswith("gymnasium.spaces")
            rate = data["learning_rate"]
            assert (rate(1.0) if callable(rate) else rate) >= 0
            read += 1
    assert read >= 20
    for path in sorted(zoo_agents.glob("*/*/*/vecnormalize.pkl")):
        vec_normalize = read_vec_normalize(path)
        assert type(vec_normalize.observation_space).__module__.startswith("gymnasium.spaces")
        assert pickle.loads(pickle.dumps(vec_normalize)).clip_obs == vec_normalize.clip_obs


def text(value):
    encoded = value.encode()
    return b"X" + len(encoded).to_bytes(4, "little") + encoded


def name_of(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def body(value):
    return pickle.dumps(value, 3)[2:-1]


ADDRESS = {"data": (4660, False), "shape": (4,), "typestr": "<i8", "version": 3}
CELL = name_of("cloudpickle.cloudpickle", "_make_empty_cell") + b")R"
ARRAY_OF_BYTES = name_of("numpy.core.multiarray", "_reconstruct") + name_of("numpy", "ndarray") + body((0,))


def test_no_address_of_a_file_is_ever_read():
    """numpy takes the attribute ``__array_interface__`` of any object for the place of an array."""
    fake = CELL + b"}" + text("__array_interface__") + body(ADDRESS) + b"sb"
    multi_discrete = (
        name_of("gymnasium.spaces.multi_discrete", "MultiDiscrete") + b")\x81}" + text("nvec") + fake + b"sb"
    )
    for pickled in (multi_discrete, name_of("numpy", "float64") + fake + b"\x85R"):
        with pytest.raises(RefineError, match="refused to change"):
            safe_unpickle(b"\x80\x03" + pickled + b".", "")


def test_no_dtype_grows_under_an_array():
    dtype = name_of("numpy", "dtype") + b"(" + text("S1") + b"tRq\x05"
    array = ARRAY_OF_BYTES + body(b"b") + b"\x87R(K\x01(K\x04t" + dtype + b"\x89"
    array += body(b"abcd") + b"tb"
    grown = b"h\x05" + body((3, "|", None, None, None, 400, 1, 0)) + b"b"
    with pytest.raises(RefineError, match="refused to change dtype"):
        safe_unpickle(b"\x80\x03](" + array + grown + b"e.", "")


@pytest.mark.parametrize(
    "pickled",
    [
        b"(I1\nistable_baselines3.common.utils\nConstantSchedule\n.",
        b"(cstable_baselines3.common.buffers\nReplayBuffer\nI9\ncbuiltins\nfloat\ncbuiltins\nfloat\no.",
    ],
)
def test_opcodes_that_call_classes_are_refused(pickled):
    with pytest.raises(RefineError, match="refused to call"):
        safe_unpickle(pickled, "")


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
    with pytest.raises(RefineError, match="its learning_rate is code of its author's"):
        load_agent(model=tmp_path / "own.zip", env="Pendulum-v1")
    rate = load_agent(model=tmp_path / "own.zip", env="Pendulum-v1", trust_remote_code=True).model.learning_rate
    assert [rate(1.0), rate(0.0)] == [3e-4, 1e-4]


def test_what_is_trusted_may_bring_classes_of_its_own(tmp_path):
    """A features extractor that was defined in a notebook."""
    script = tmp_path / "notebook.py"
    script.write_text(
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
    subprocess.run([sys.executable, script], check=True, timeout=120)
    with pytest.raises(RefineError, match="refused to"):
        load_agent(model=tmp_path / "own.zip", env="Pendulum-v1")
    agent = load_agent(model=tmp_path / "own.zip", env="Pendulum-v1", trust_remote_code=True)
    assert type(agent.model.policy.features_extractor).__name__ == "Own"
    refine(agent, n_updates=1, n_delta=1, n_eval_episodes=2, n_workers=1)
