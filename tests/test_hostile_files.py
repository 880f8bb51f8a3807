"""Files of strangers: whatever is in them, nothing of it runs, nothing is read or written elsewhere, nothing hangs."""

import io
import json
import os
import pickle
import shlex
import shutil
import subprocess
import sys
import threading
import time
import tracemalloc
import zipfile
from copy import deepcopy
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
import yaml
from conftest import ENV_ID, OFF_POLICY, run_policy
from gymnasium import spaces
from hostile import HARMFUL_PICKLES, bomb, npz, pickled
from stable_baselines3 import SAC
from stable_baselines3.common.noise import NormalActionNoise, VectorizedActionNoise
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from test_decoding import stored

from sb3_refine import RefineError, Refiner, load_agent
from sb3_refine.agents.agent import save_agent
from sb3_refine.agents.decoding.evaluations import read_evaluations
from sb3_refine.agents.decoding.pickle_tree import DecodingError
from sb3_refine.agents.decoding.statistics import read_vec_normalize
from sb3_refine.agents.decoding.torch_files import read_torch_file
from sb3_refine.agents.decoding.zoo_expressions import is_harmless
from sb3_refine.agents.decoding.zoo_yaml import read_zoo_yaml
from sb3_refine.agents.zoo import new_run_folder
from sb3_refine.cli.main import main
from sb3_refine.envs.wrappers import GoalInObservation
from sb3_refine.evaluators import SerialEvaluator
from sb3_refine.reporting.run_folder import read_run_folder
from sb3_refine.search.checkpoint import FILE_NAME, read_checkpoint

pytestmark = pytest.mark.timeout(60)

QUICK = ["--n-updates", "1", "--n-delta", "1", "--n-eval-episodes", "2", "--backend", "serial", "--verbose", "0"]


def unzipped(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


class Agent:
    """A Zoo folder with one agent, whose files can be changed."""

    def __init__(self, made_agents, path, algo="ppo"):
        self.algo, self.folder = algo, path / "agents"
        self.run_folder = self.folder / algo / f"{ENV_ID}_1"
        shutil.copytree(made_agents / algo / f"{ENV_ID}_1", self.run_folder)
        self.zip, self.inner = self.run_folder / f"{ENV_ID}.zip", self.run_folder / ENV_ID

    def change(self, drop=(), **changes):
        """Change attributes of the model; bytes are pickles."""
        data = json.loads(self.members()["data"])
        data.update({key: stored(value) for key, value in changes.items()})
        self.write({**self.members(), "data": json.dumps({k: v for k, v in data.items() if k not in drop}).encode()})

    def members(self):
        return unzipped(self.zip.read_bytes())

    def write(self, members):
        self.zip.write_bytes(zipped(members))

    def load(self, **kwargs):
        return load_agent(self.algo, ENV_ID, self.folder, **kwargs)

    def refused(self, match, **kwargs):
        """The one line that says why the agent is not loaded."""
        start = time.process_time()
        with pytest.raises(RefineError, match=match) as error:
            self.load(**kwargs)
        assert time.process_time() - start < 10
        line = str(error.value)
        assert line.isprintable()
        assert len(line) < 1000
        return line


@pytest.fixture
def agent(made_agents, tmp_path):
    return Agent(made_agents, tmp_path)


@pytest.fixture
def normalized(made_agents, tmp_path):
    return Agent(made_agents, tmp_path, "a2c")


# ---------------------------------------------------------------- pickles


@pytest.mark.parametrize("attribute", ["observation_space", "policy_kwargs", "policy_class", "learning_rate"])
@pytest.mark.parametrize("harm", HARMFUL_PICKLES)
def test_a_harmful_pickle_in_a_zip_is_one_line(agent, harm, attribute):
    agent.change(**{attribute: HARMFUL_PICKLES[harm]})
    agent.refused(attribute)


@pytest.mark.parametrize("harm", HARMFUL_PICKLES)
def test_a_harmful_vecnormalize_is_one_line(normalized, harm):
    (normalized.inner / "vecnormalize.pkl").write_bytes(HARMFUL_PICKLES[harm])
    normalized.refused("vecnormalize.pkl")


@pytest.mark.parametrize("attribute", ["ep_info_buffer", "_last_obs", "save", "set_logger", "predict", "__class__"])
def test_attributes_that_a_model_does_not_need_stay_in_the_file(agent, attribute):
    agent.change(**{attribute: HARMFUL_PICKLES["eval"]})
    model = agent.load().model
    assert attribute not in vars(model) or vars(model)[attribute] is None
    assert callable(model.save)


def wide_box():
    return spaces.Box(0, 255, (2_000_000,), np.uint8)


def wide_dict():
    """Parts that share one space."""
    return spaces.Dict(dict.fromkeys("abc", spaces.Box(0, 255, (400_000,), np.uint8)))


def many_parts():
    return spaces.Dict(dict.fromkeys(map(str, range(100)), spaces.Box(-1, 1)))


def upside_down():
    """A Box whose bounds are exchanged."""
    box = spaces.Box(-1, 1, (1,))
    box.low, box.high = box.high, box.low
    return pickle.dumps(box)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"observation_space": 3}, "observation_space"),
        ({"action_space": {":serialized:": "not base64!"}}, "action_space: not base64"),
        ({"action_space": {":serialized:": 5}}, "action_space: not base64"),
        ({"gamma": "high"}, "gamma: expected an object of another kind, got str"),
        ({"gamma": float("nan")}, "gamma: expected a finite number"),
        ({"n_steps": -1}, "n_steps: expected a whole number from 1"),
        ({"n_steps": 10**30}, "n_steps: expected a whole number"),
        ({"n_envs": 1e9}, "n_envs: expected a whole number"),
        ({"use_sde": "yes"}, "use_sde: expected true or false"),
        ({"seed": -5}, "seed: expected a whole number"),
        ({"policy_kwargs": {"net_arch": [10**6, 10**6]}}, "larger than its parameters"),
        ({"policy_kwargs": {"net_arch": [[[[1]]]]}}, "cannot load it"),
        ({"policy_kwargs": []}, "policy_kwargs: expected a mapping"),
        ({"policy_kwargs": {"no_such": 1}}, "unexpected keyword argument 'no_such'"),
        ({"clip_range": "eval"}, "its clip_range is the author's own code"),
        ({"learning_rate": float("inf")}, "learning_rate: expected a finite number"),
        ({"learning_rate": 10**400}, "learning_rate: expected a finite number"),
        ({"gamma": 10**400}, "gamma: expected a finite number"),
        ({"n_steps": pickled(b"\x8b" + (3000).to_bytes(4, "little") + b"\x01" * 3000)}, "got a huge number"),
        ({"policy_kwargs": {"net_arch": [1] * 900}}, "larger than its parameters"),
        ({"policy_kwargs": {"net_arch": [1] * 90_000}}, "policy_kwargs: values nested"),
        ({"policy_kwargs": {f"k{i}": 1 for i in range(100)}}, "policy_kwargs: 100 arguments"),
        ({"observation_space": pickle.dumps(spaces.MultiDiscrete([3]))}, "observation space MultiDiscrete"),
        ({"observation_space": pickle.dumps(wide_box())}, "a Box of 2,000,000 numbers"),
        ({"observation_space": pickle.dumps(many_parts())}, "a Dict space of 100 parts"),
        ({"observation_space": pickle.dumps(spaces.MultiDiscrete([2] * 20_000))}, "a MultiDiscrete of 20,000 choices"),
        ({"observation_space": pickle.dumps(wide_dict())}, "a Dict space of more than 1,000,000 numbers"),
        ({"action_space": upside_down()}, "action_space"),
    ],
)
def test_an_invalid_attribute_is_one_line(agent, changes, line):
    agent.change(**changes)
    agent.refused(line)


def test_arguments_that_the_user_gives_replace_those_of_the_file(agent):
    (agent.inner / "args.yml").write_text("env_kwargs: {g: 1.0e+9}\n")
    agent.refused("env_kwargs: g: 1000000000.0 is out of range; .*give it in `env_kwargs`")
    assert agent.load(env_kwargs={"g": 9.0}).recipe.env_kwargs == {"g": 9.0}


def test_no_limit_on_the_gradients_is_read(agent):
    agent.change(max_grad_norm=float("inf"), target_kl=None)
    assert agent.load().model.max_grad_norm == np.inf


def test_numbers_of_numpy_among_the_policys_arguments_are_read(agent):
    kwargs = {"net_arch": [np.int64(16), np.int64(16)], "log_std_init": np.float64(-1)}
    agent.change(policy_kwargs=pickle.dumps(kwargs))
    assert agent.load().model.policy_kwargs == {"net_arch": [16, 16], "log_std_init": -1.0}


def test_a_link_that_the_user_names_is_followed(agent, tmp_path):
    (tmp_path / "mine.zip").symlink_to(agent.zip)
    assert load_agent(model=tmp_path / "mine.zip", env=ENV_ID).algo == "ppo"


def test_other_spellings_of_values_are_read(agent):
    agent.change(
        verbose=True, n_epochs=1.0, use_sde=0, policy_kwargs={"net_arch": [16, 16]}, rollout_buffer_kwargs=None
    )
    model = agent.load().model
    assert (model.verbose, model.n_epochs, model.use_sde) == (1, 1, False)


@pytest.mark.parametrize("attribute", ["observation_space", "action_space", "policy_class", "learning_rate"])
def test_a_missing_attribute_is_one_line(agent, attribute):
    agent.change(drop=(attribute,))
    agent.refused(f"the model has no {attribute}")


# ---------------------------------------------------------------- zips and torch's files


def torch_file(content, **kwargs) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **kwargs)
    return file.getvalue()


def claims_more(data: bytes) -> bytes:
    """A file of torch in which a tensor of one number says that it has 2**24."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(file, "w") as archive:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("data.pkl"):
                content = content.replace(b"cpuq\x06K\x01", b"cpuq\x06J\x00\x00\x00\x01")
                assert content != source.read(name)
            archive.writestr(name, content)
    return file.getvalue()


def test_a_tensor_does_not_reach_beyond_its_file():
    honest = torch_file({"a": torch.ones(1)})
    assert read_torch_file(honest)["a"].tolist() == [1.0]
    with pytest.raises(DecodingError, match="claims more numbers than the file has"):
        read_torch_file(claims_more(honest))


def test_the_format_before_torch_1_6_is_read():
    old = torch_file({"a": torch.arange(3.0)}, _use_new_zipfile_serialization=False)
    assert read_torch_file(old)["a"].tolist() == [0.0, 1.0, 2.0]
    with pytest.raises(DecodingError):
        read_torch_file(old[:-8])


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("policy.pth", b"", "policy.pth"),
        ("policy.pth", b"<html>", "policy.pth"),
        ("policy.pth", HARMFUL_PICKLES["eval"], "policy.pth"),
        ("policy.pth", torch_file([1]), "not the parameters of a module"),
        ("policy.pth", torch_file({"a": 1}), "a is not a tensor"),
        ("policy.pth", torch_file({}), "Missing key"),
        ("policy.pth", torch_file({"a": torch.tensor(float("nan"))}), "NaN or inf in a; choose another checkpoint"),
        ("policy.pth", torch_file({"a": torch.ones(1).expand(10**9)}), "more numbers than the file has"),
        ("policy.pth", torch_file({"a": torch.eye(3).to_sparse()}), "refused to load torch._utils._rebuild_sparse"),
        ("policy.optimizer.pth", torch_file({"state": {}}), "not the state of an optimizer"),
        ("policy.optimizer.pth", torch_file({"state": {}, "param_groups": []}), "cannot load it"),
        ("policy.optimizer.pth", torch_file({"state": {0: [[]]}, "param_groups": []}), "not the state of an optimizer"),
        ("pytorch_variables.pth", torch_file({"policy.forward": torch.ones(1)}), "refused to set policy.forward"),
        ("pytorch_variables.pth", torch_file({"log_ent_coef": torch.ones(9)}), "refused to set log_ent_coef"),
    ],
)
def test_a_wrong_file_in_the_zip_is_one_line(agent, name, content, line):
    agent.write({**agent.members(), name: content})
    agent.refused(line)


def test_a_member_that_understates_its_size_is_one_line(agent):
    data = bytearray(bomb(b" " * 2**26))
    for magic, offset in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        at = data.index(magic) + offset
        data[at : at + 4] = (100).to_bytes(4, "little")
    agent.zip.write_bytes(data)
    tracemalloc.start()
    agent.refused("not a valid")
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_numbers_are_not_read_as_two_types():
    members = unzipped(torch_file({"a": torch.ones(8), "b": torch.arange(8, dtype=torch.int32)}))
    name = next(name for name in members if name.endswith("data.pkl"))
    key = members[name].rindex(b"X\x01\x00\x00\x001")
    members[name] = members[name][:key] + b"X\x01\x00\x00\x000" + members[name][key + 6 :]  # b has the numbers of a
    with pytest.raises(DecodingError, match="the same numbers as different types"):
        read_torch_file(zipped(members))


def test_a_matrix_of_zeros_does_not_take_long_to_initialise(agent):
    """Orthogonal initialisation is cubic in the width, and zeros take little room in a zip."""
    state = torch.load(io.BytesIO(agent.members()["policy.pth"]), weights_only=True)
    wide = {name: torch.zeros([4000 if n == 16 else n for n in value.shape]) for name, value in state.items()}
    agent.write({**agent.members(), "policy.pth": torch_file(wide)})
    agent.change(policy_kwargs={"net_arch": [4000, 4000]})
    agent.refused("policy.optimizer has a state of shape")


def aliases() -> bytes:
    """Three thousand names of one tensor."""
    tensor = torch.zeros(10_000_000 // 4)
    return torch_file({f"t{i}": tensor for i in range(3000)})


def test_a_tensor_with_several_names_is_counted_once(agent):
    agent.write({**agent.members(), "policy.pth": aliases()})
    agent.refused("claim more numbers than the file has")


def without_numbers(data: bytes) -> bytes:
    """The format before torch 1.6, with an empty list of storages."""
    end = data.rindex(b"]q\x00X")
    return data[:end] + b"]q\x00."


def test_no_tensor_is_made_of_uninitialised_memory():
    old = torch_file({"a": torch.zeros(1000)}, _use_new_zipfile_serialization=False)
    with pytest.raises(DecodingError, match="claims more numbers than the file has"):
        read_torch_file(without_numbers(old))


def test_noise_for_more_actions_than_any_agent_has_is_one_line(made_agents, tmp_path):
    ddpg = Agent(made_agents, tmp_path, "ddpg")
    noise = NormalActionNoise(np.zeros(100_000), np.ones(100_000))
    ddpg.change(action_noise=pickle.dumps(VectorizedActionNoise(noise, 2)))
    ddpg.refused("action_noise: noise with NaN or infinity, or for too many actions")


def test_an_optimizer_state_of_another_shape_is_one_line(agent):
    state = torch.load(io.BytesIO(agent.members()["policy.optimizer.pth"]), weights_only=True)
    state["state"][0]["exp_avg"] = torch.ones(7, 7)
    agent.write({**agent.members(), "policy.optimizer.pth": torch_file(state)})
    agent.refused(r"policy.optimizer has a state of shape \(7, 7\)")


def overlapping(path: Path):
    """A zip of 2,000 entries for one member."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", b"{}")
        archive.filelist += archive.filelist * 2000


def with_method(method):
    def write(path: Path):
        path.write_bytes(bomb(b'{"a": 1}' * 10_000, method=method))

    return write


def corrupt_lzma(path: Path):
    data = bytearray(bomb(b"{}" * 1000, method=zipfile.ZIP_LZMA))
    data[60:70] = b"x" * 10
    path.write_bytes(data)


def lying_about_its_size(path: Path):
    data = bytearray(bomb(b" " * 1000))
    at = data.index(b"PK\x01\x02")
    data[at + 20 : at + 24] = (2**30).to_bytes(4, "little")  # the compressed size
    path.write_bytes(data)


@pytest.mark.parametrize(
    "write",
    [
        overlapping,
        lying_about_its_size,
        corrupt_lzma,
        with_method(zipfile.ZIP_BZIP2),
        lambda path: path.write_bytes(bomb(b" " * 2**28)),
        lambda path: path.write_bytes(bomb(b"[" * 20_000)),
        lambda path: path.write_bytes(bomb(b"[[]," * 4_000_000 + b"0]" * 4_000_000)),
        lambda path: path.write_bytes(bomb(b"{" + b'"a":{' * 20_000)),
        lambda path: path.write_bytes(bomb(b"[1]")),
        lambda path: path.write_bytes(bomb(b'{"a": ' + b"1" * 10_000 + b"}")),
        lambda path: path.write_bytes(bomb(b"{}", name="other")),
        lambda path: path.write_bytes(b"PK\x05\x06" + b"\xff" * 18),
    ],
)
def test_a_zip_beyond_the_limits_is_one_line(agent, write):
    write(agent.zip)
    agent.refused("not a valid Stable-Baselines3 zip .*; download or save it again")


def test_a_member_that_unpacks_to_too_much_is_one_line(agent):
    with zipfile.ZipFile(agent.zip, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {"data": b"{}", "policy.pth": b"\0" * 2**27}.items():
            archive.writestr(name, content)
    agent.refused("policy.pth: unpacks to 134,217,728 bytes")


# ---------------------------------------------------------------- YAML, npz, statistics

STACK = {"gymnasium.wrappers.FrameStackObservation": {"stack_size": 1000}}

LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 20))


@pytest.mark.parametrize("file", ["config.yml", "args.yml"])
@pytest.mark.parametrize(
    "content",
    [
        LAUGHS,
        "a: " + "[" * 20_000,
        "a: " + "{b: " * 20_000,
        "- " * 20_000,
        "a: !!bool foo",
        "a: !!timestamp foo",
        "a: !!int ''",
        "a: !!float x",
        "a: !!binary x",
        "a: !!python/object/apply:os.abort []",
        "a: !!python/name:os.abort",
        "!!python/object/apply:collections.OrderedDict\n- 3",
        "a: &a [*a]",
        "a: &a {b: *a}",
        "a: *b",
        "? [1, 2]\n: 3",
        "1: 2",
        "just text",
        "a: \x07",
        "a: 0x" + "f" * 6000,
        "a: " + "9" * 6000,
        "<<: 3",
        "a: b: c",
        "# " + "x" * 300_000,
    ],
)
def test_harmful_or_invalid_yaml_is_one_line(agent, file, content):
    (agent.inner / file).write_text(content)
    agent.refused(f"{file}: (cannot be read as YAML|expected a mapping)")


def test_yaml_that_is_not_text_is_one_line(agent):
    (agent.inner / "config.yml").write_bytes(b"\xff\xfe\x00")
    agent.refused("config.yml: cannot be read")


def test_a_few_aliases_are_allowed(tmp_path):
    (tmp_path / "config.yml").write_text("a: &x [1, 2]\nb: *x\nc: &y 3\nd: [*y, 2021-05-06]\n")
    assert read_zoo_yaml(tmp_path / "config.yml") == {"a": [1, 2], "b": [1, 2], "c": 3, "d": [3, "2021-05-06"]}


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ({"env_kwargs": [1]}, "env_kwargs: expected a mapping"),
        ({"env_kwargs": {1: 2}}, "env_kwargs: expected a mapping of names"),
        ({"env_kwargs": {"id": "planted:Env"}}, "'planted:Env' may be a path or a module"),
        ({"env_kwargs": {"desc": ["F"] * 2000}}, "desc: more than 1000 values"),
        ({"env_wrapper": ["gymnasium.wrappers.ClipAction"] * 30}, "at most 20 wrappers, got 30"),
        (
            {"env_wrapper": [{"gymnasium.wrappers.FrameStackObservation": {"stack_size": 1000}}] * 3},
            "3,000,000 numbers",
        ),
        ({"gym_packages": 3}, "gym_packages: expected a list"),
        ({"gym_packages": [3]}, "gym_packages: expected a list"),
        ({"env_wrapper": 3}, "env_wrapper: expected a dotted name"),
        ({"env_wrapper": {"a.B": 3}}, "expected a mapping of arguments"),
        ({"env_wrapper": "Wrapper"}, "env_wrapper: expected a dotted name"),
        ({"env_wrapper": {"a.B": {}, "c.D": {}}}, "env_wrapper: expected a dotted name"),
        ({"frame_stack": -2}, "frame_stack: expected a whole number"),
        ({"normalize": "__import__('os').abort()"}, "normalize: expected a literal"),
        ({"normalize": "-" * 100_000 + "1"}, "normalize: expected a literal"),
        ({"normalize": "+".join(["1"] * 900)}, "normalize: expected a literal"),
        ({"normalize": "{[1]: 2}"}, "normalize: expected a literal"),
        ({"frame_stack": 10**12}, "frame_stack: expected a whole number of at most 1,000"),
        (
            {"env_kwargs": {"xml_file": "/etc/passwd"}},
            "'/etc/passwd' may be a path or a module, .*give it in `env_kwargs`",
        ),
        ({"env_kwargs": {"max_episode_steps": 10**11}}, "100000000000.0 is out of range"),
        ({"env_wrapper": {"sb3_contrib.common.wrappers.TimeFeatureWrapper": {"max_steps": 1e12}}}, "out of range"),
        ({"env_wrapper": "gymnasium.wrappers.HumanRendering"}, "opens a window"),
        ({"a": "b" * 5000, "env_wrapper": "x" * 50_000}, "env_wrapper: expected a dotted name"),
    ],
)
def test_an_invalid_setting_is_one_line(agent, content, line):
    for file in ("config.yml", "args.yml"):
        (agent.inner / file).write_text(yaml.safe_dump(content))
    agent.refused(line)


GOOD = {"timesteps": np.arange(3), "results": np.ones((3, 5)), "ep_lengths": np.ones((3, 5))}


def header(shape: str) -> bytes:
    """An ``.npy`` file with nothing in it."""
    text = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def with_results(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("timesteps.npy", npz_member(GOOD["timesteps"]))
        archive.writestr("results.npy", content)
    return file.getvalue()


def npz_member(array) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


BROKEN_EVALUATIONS = {
    "nothing": b"",
    "no zip": b"text",
    "no results": npz(timesteps=np.arange(3)),
    "objects": npz(**{**GOOD, "results": np.array([{}, 1], dtype=object)}),
    "text": npz(**{**GOOD, "results": np.array([["a"]])}),
    "scalars": npz(timesteps=np.array(1), results=np.array(2.0)),
    "one dimension": npz(**{**GOOD, "results": np.ones(3)}),
    "empty": npz(timesteps=np.arange(0), results=np.ones((0, 5))),
    "another length": npz(**{**GOOD, "results": np.ones((2, 5))}),
    "NaN": npz(**{**GOOD, "results": np.full((3, 5), np.nan)}),
    "a huge shape": with_results(header("(1000000000000, 5)")),
    "a negative shape": with_results(header("(-1, 5)")),
    "code in the header": with_results(header("__import__('os').abort()")),
    "a header deep in brackets": with_results(header("(" * 900)),
    "a magic number only": with_results(b"\x93NUMPY"),
    "seventy dimensions": with_results(header("(" + "1, " * 70 + ")")),
    "an empty array of a huge shape": with_results(header("(0, 1180591620717411303424)")),
    "truth values as a shape": with_results(header("(True, True)")),
    "complex": npz(**{**GOOD, "results": np.ones((3, 5), dtype=complex)}),
}


@pytest.mark.parametrize("case", BROKEN_EVALUATIONS)
def test_corrupt_evaluations_are_reported_and_not_used(agent, case, caplog):
    path = agent.run_folder / "evaluations.npz"
    path.write_bytes(BROKEN_EVALUATIONS[case])
    with pytest.raises(DecodingError):
        read_evaluations(path)
    assert agent.load().expected_return is None
    assert "evaluations.npz: cannot be read" in caplog.text


def test_valid_evaluations_are_read(agent):
    (agent.run_folder / "evaluations.npz").write_bytes(npz(**GOOD))
    assert agent.load().expected_return == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda v: v.obs_rms.mean.fill(np.nan), "statistics with NaN or infinity"),
        (lambda v: v.obs_rms.var.fill(-1.0), "negative variance"),
        (lambda v: v.obs_rms.var.fill(np.inf), "statistics with NaN or infinity"),
        (lambda v: setattr(v.obs_rms, "count", float("nan")), "expected a finite number"),
        (lambda v: setattr(v, "obs_rms", 3), "statistics"),
        (lambda v: setattr(v, "obs_rms", {"a": RunningMeanStd(shape=(3,))}), "statistics"),
        (lambda v: setattr(v, "obs_rms", RunningMeanStd(shape=(4,))), r"shape \(4,\)"),
        (lambda v: setattr(v, "ret_rms", None), "statistics"),
        (lambda v: setattr(v, "clip_obs", "10"), "clip_obs"),
        (lambda v: setattr(v, "clip_obs", -1.0), "clip_obs: a number out of range"),
        (lambda v: setattr(v, "epsilon", float("nan")), "epsilon"),
        (lambda v: setattr(v, "norm_obs", 2), "norm_obs: expected true or false"),
        (lambda v: setattr(v, "observation_space", None), "expected an object of another kind, got NoneType"),
        (lambda v: delattr(v, "gamma"), "without its gamma"),
    ],
)
def test_impossible_statistics_are_one_line(normalized, change, line):
    path = normalized.inner / "vecnormalize.pkl"
    statistics = pickle.loads(path.read_bytes())
    change(statistics)
    statistics.class_attributes, statistics.returns = {}, 0
    path.write_bytes(pickle.dumps(statistics))
    normalized.refused(line)


def test_statistics_that_clip_nothing_are_read(normalized):
    path = normalized.inner / "vecnormalize.pkl"
    env = VecNormalize(DummyVecEnv([lambda: __import__("gymnasium").make(ENV_ID)]), clip_obs=np.inf)
    env.save(str(path))
    assert read_vec_normalize(path).clip_obs == np.inf


# ---------------------------------------------------------------- code that files name


@pytest.fixture
def planted(agent, monkeypatch):
    """A module beside the zip, and one in the working directory, which note that they were imported."""
    monkeypatch.chdir(agent.folder.parent)
    monkeypatch.setattr(sys, "path", ["", *sys.path])  # as under python -m
    mark = agent.folder.parent / "imported"
    code = f"open({str(mark)!r}, 'w'); import gymnasium; Wrapper = gymnasium.Wrapper\n"
    (agent.run_folder / "extra.py").write_text(code)
    (agent.folder.parent / "planted.py").write_text(code)
    metadata = agent.folder.parent / "planted-1.0.dist-info"  # as if it were installed
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: planted\nVersion: 1.0\n")
    (metadata / "top_level.txt").write_text("planted\n")
    yield agent
    assert not mark.exists()
    sys.modules.pop("planted", None)


@pytest.mark.parametrize("module", ["agents.ppo.Pendulum-v1_1.extra", "planted", "os", "this", "sb3_contrib._private"])
@pytest.mark.parametrize("key", ["env_wrapper", "vec_env_wrapper"])
def test_a_wrapper_that_is_not_installed_is_not_imported(planted, module, key):
    (planted.inner / "config.yml").write_text(yaml.safe_dump({key: f"{module}.Wrapper"}))
    line = planted.refused(rf"config.yml: {key}: the module .* is not imported")
    assert line.endswith("add the module to `gym_packages`")


@pytest.mark.parametrize(
    "module", ["planted", "this", "x; touch P #", "-rf", "a b", "tqdm.__main__", "tqdm", "PIL.__main__", "pip"]
)
def test_a_package_that_is_not_installed_is_not_imported(planted, module):
    (planted.inner / "args.yml").write_text(yaml.safe_dump({"gym_packages": [module]}))
    line = planted.refused("args.yml: gym_packages: the module .* is not imported")
    assert line.endswith("add the module to `gym_packages`")
    assert "this" not in sys.modules


def test_an_environment_that_names_a_module_is_not_imported(planted):
    (planted.inner / "args.yml").write_text(yaml.safe_dump({"env": "planted:Env-v0; touch P"}))
    with pytest.raises(RefineError, match="args.yml: env: .* the module 'planted' is not imported"):
        load_agent(model=planted.zip)


def test_modules_that_are_installed_or_named_by_the_user_are_imported(agent, tmp_path, monkeypatch):
    (agent.inner / "args.yml").write_text("gym_packages: [sb3_contrib]\n")
    wrappers = ["sb3_contrib.common.wrappers.TimeFeatureWrapper", "mine.Wrapper"]
    (agent.inner / "config.yml").write_text(yaml.safe_dump({"env_wrapper": wrappers}))
    (tmp_path / "mine.py").write_text("from gymnasium import Wrapper\n")
    monkeypatch.syspath_prepend(tmp_path)
    agent.refused("the module 'mine' is not imported")
    with pytest.raises(RefineError, match="observation space"):  # imported: it does not fit this agent
        agent.load(gym_packages=["mine"])


def test_a_wrapper_that_writes_files_is_refused_under_any_name(agent, tmp_path, monkeypatch):
    (tmp_path / "renamed.py").write_text("from gymnasium.wrappers import RecordVideo as Rec\n")
    monkeypatch.syspath_prepend(tmp_path)
    (agent.inner / "config.yml").write_text(yaml.safe_dump({"env_wrapper": {"renamed.Rec": {"video_folder": "v"}}}))
    agent.refused("renamed.Rec writes files", gym_packages=["renamed"])


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has no -P")
@pytest.mark.slow
def test_the_working_directory_is_importable_only_where_a_module_is_named(made_agents, tmp_path):
    script = (
        "import sys; from sb3_refine.cli.main import main\n"
        "for more in [], ['--gym-packages', 'sb3_contrib']:\n"
        "    assert main([*sys.argv[1:], *more]) == 0; print('working directory:', '' in sys.path)\n"
    )
    arguments = ["--algo", "ppo", "--env", ENV_ID, "-f", str(made_agents), "--dry-run", "--backend", "serial"]
    command = [sys.executable, "-P", "-c", script, *arguments]
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=True)
    found = [line.split()[-1] for line in done.stdout.splitlines() if line.startswith("working directory:")]
    assert found == ["False", "True"]


# ---------------------------------------------------------------- folders of runs


@pytest.fixture(scope="module")
def finished_run(made_agents, tmp_path_factory):
    """The folder of a run that was searched, judged and saved, with its checkpoint."""
    folder = tmp_path_factory.mktemp("runs")
    arguments = ["--algo", "ppo", "--env", ENV_ID, "-f", str(made_agents), "-o", str(folder), *QUICK, "--no-report"]
    assert main([*arguments, "--checkpoint-interval", "1"]) == 0
    return folder / "ppo" / f"{ENV_ID}_1"


@pytest.fixture
def run_folder(finished_run, tmp_path):
    return shutil.copytree(finished_run, tmp_path / "run")


def command_line(capsys, *arguments):
    """Exit status, and the one line of the error."""
    capsys.readouterr()
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as ended:
        status = ended.code
    line = capsys.readouterr().err
    assert line.count("\n") == 1, line
    assert line[:-1].isprintable()
    return status, line


LINKED = [
    "progress.csv", "state/source.json", f"state/{ENV_ID}", f"state/{FILE_NAME}", f"{ENV_ID}", "refinement.json",
    f"state/.{FILE_NAME.replace('.pt', '.partial.pt')}", "plots", "videos", "plots/x.png",
]  # fmt: skip


@pytest.mark.parametrize("name", LINKED)
@pytest.mark.parametrize("subcommand", ["resume", "push"])
def test_no_link_in_the_folder_of_a_run_is_followed(run_folder, tmp_path, capsys, name, subcommand):
    secret = tmp_path / "secret"
    secret.write_text("mine")
    link = run_folder / name
    link.parent.mkdir(exist_ok=True)
    if link.is_dir():
        shutil.rmtree(link)
    link.unlink(missing_ok=True)
    link.symlink_to(secret)
    arguments = ["--resume", run_folder] if subcommand == "resume" else ["push", run_folder, "--organization", "me"]
    status, line = command_line(capsys, *arguments)
    assert status == 1
    assert f"{link}: a symbolic link" in line
    assert secret.read_text() == "mine"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may list any folder")
def test_a_folder_that_cannot_be_listed_is_refused(run_folder, capsys):
    (run_folder / "state").chmod(0o311)
    assert "cannot be listed" in command_line(capsys, "--resume", run_folder)[1]


def test_folders_within_each_other_are_looked_through(run_folder, capsys):
    deepest = run_folder
    for _ in range(1100):
        deepest = deepest / "d"
        os.mkdir(deepest)
        if len(str(deepest)) > 3000:
            break
    (deepest / "x").symlink_to("/")
    assert "a symbolic link" in command_line(capsys, "--resume", run_folder)[1]
    (deepest / "x").unlink()
    while deepest != run_folder:  # pytest removes folders by recursion
        deepest.rmdir()
        deepest = deepest.parent


def test_a_sparse_file_is_refused_by_its_size(run_folder, capsys):
    with (run_folder / "progress.csv").open("r+b") as file:
        file.truncate(2**32)
    assert "larger than 1 GiB" in command_line(capsys, "--resume", run_folder)[1]


def test_a_table_that_is_not_text_is_one_line(run_folder, capsys):
    (run_folder / "progress.csv").write_bytes(b"\xff\xfe")
    assert "progress.csv cannot be read" in command_line(capsys, "--resume", run_folder)[1]


def test_only_regular_files_are_opened(run_folder, capsys):
    os.mkfifo(run_folder / "report.md")
    assert "neither a file nor a folder" in command_line(capsys, "--resume", run_folder)[1]


def test_a_link_is_replaced_and_not_written_through(agent, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("mine")
    state = tmp_path / "state"
    state.mkdir()
    (state / f".{FILE_NAME.replace('.pt', '.partial.pt')}").symlink_to(secret)
    Refiner(agent.load(), backend="serial", n_delta=1, acceptance=False).learn(1, checkpoint_folder=state)
    assert secret.read_text() == "mine"
    assert (state / FILE_NAME).is_file()


def test_an_agents_files_do_not_lead_out_of_its_folder(agent, tmp_path):
    secret = tmp_path / "secret.yml"
    secret.write_text("token: mine\n")
    (agent.inner / "config.yml").unlink()
    (agent.inner / "config.yml").symlink_to(secret)
    agent.refused("config.yml: a link that leads out of")
    (agent.inner / "args.yml").symlink_to(secret)
    with pytest.raises(RefineError, match="args.yml: a link that leads out of") as error:
        load_agent(model=agent.zip)
    assert "mine" not in str(error.value)
    (agent.inner / "args.yml").unlink()
    (tmp_path / "linked").symlink_to(agent.folder)  # the user's own
    (agent.inner / "config.yml").unlink()
    load_agent("ppo", ENV_ID, tmp_path / "linked")


def changed_checkpoint(run_folder, change):
    path = run_folder / "state" / FILE_NAME
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda c: c["settings"].update(n_updates=-1), "n_updates: expected a whole number from 1"),
        (lambda c: c["settings"].update(seed="x"), "seed: expected a whole number"),
        (lambda c: c["settings"].update(alpha=7.0), "alpha: expected a number from 0 to 1"),
        (lambda c: c["settings"].update(objective=["a"]), "objective: expected text"),
        (lambda c: c["settings"].update(n_eval_episodes="many"), "n_eval_episodes"),
        (lambda c: c["settings"].pop("parameters"), "parameters is missing"),
        (lambda c: c["settings"].pop("n_delta"), "has no n_delta"),
        (lambda c: c["settings"].update(n_delta=10**12), "n-delta: expected"),
        (lambda c: c.pop("state"), "state is missing"),
        (lambda c: c["state"].pop("optimizer"), "optimizer is missing"),
        (lambda c: c["state"]["optimizer"].update(n_updates_done=-1), "n_updates_done: expected a whole number"),
        (lambda c: c["state"]["optimizer"].update(theta=torch.ones(3)), "optimizer.theta: expected"),
        (lambda c: c["state"]["optimizer"].update(other="x" * 10**6), "optimizer.other: expected text"),
        (
            lambda c: c["state"].update(start_theta=c["state"]["start_theta"] * float("nan")),
            "start_theta: NaN or infinity",
        ),
        (lambda c: c["state"].update(history=torch.ones(1, 3)), "history: expected 9 columns of numbers"),
        (lambda c: c["state"].update(baseline=3), "baseline: expected a list of 2"),
        (lambda c: c["state"].update(baseline=[[], []]), "baseline: not an episode for each seed"),
        (lambda c: c["state"].update(milestones={"0": 3}), "milestones.0: not a milestone"),
        (lambda c: c["state"].update(n_episodes=1.5), "n_episodes: expected a whole number"),
        (lambda c: c["state"].update(elapsed=float("nan")), "elapsed: expected a number"),
        (lambda c: c.clear(), "settings is missing"),
        (lambda c: c["settings"].update(learning_rate=[[1], [1, 2]]), "learning-rate: expected"),
        (lambda c: c["settings"].update(objective="mesh-dimension:entries=0-9999999999"), "entries: expected"),
        (lambda c: c["settings"].update(objective="cvar:share=" + "-" * 9000), "share: expected a number"),
        (lambda c: c["settings"].update(objective="smooth:weight=1" + "0" * 400), "weight: expected a number"),
        (lambda c: c["settings"].update(min_effect=float("inf"), n_eval_episodes="auto"), "min_effect"),
        (
            lambda c: c["state"].update(baseline=[[1], [[2**2000, 1, False, None, {}]]]),
            "baseline.1.0.0: expected a number",
        ),
        (lambda c: c["state"].update(start_theta=c["state"]["start_theta"].bfloat16()), "damaged"),
    ],
)
def test_a_checkpoint_with_absurd_values_is_one_line(run_folder, capsys, change, line):
    changed_checkpoint(run_folder, change)
    status, said = command_line(capsys, "--resume", run_folder)
    assert status == 1
    assert line in said


@pytest.mark.parametrize("harm", ["eval", "two million tuples in each other", "a list in itself", "nothing"])
def test_a_harmful_checkpoint_is_one_line(run_folder, capsys, harm):
    (run_folder / "state" / FILE_NAME).write_bytes(HARMFUL_PICKLES[harm])
    assert "checkpoint.pt is damaged" in command_line(capsys, "--resume", run_folder)[1]


@pytest.mark.parametrize(
    ("setting", "value"), [("objective", "planted:f"), ("objective", "os:abort"), ("parameters", "(a*)*(a*)*(a*)*$")]
)
def test_code_and_expressions_of_a_checkpoint_are_not_used_by_default(run_folder, capsys, setting, value):
    changed_checkpoint(run_folder, lambda content: content["settings"].update({setting: value}))
    line = command_line(capsys, "--resume", run_folder)[1]
    assert (
        f"the interrupted run has --{setting} {shlex.quote(value)}, which is not run because only a file names it"
        in line
    )


def test_a_resume_asks_for_packages_as_a_first_run_does(run_folder, capsys):
    (run_folder / "state" / ENV_ID / "args.yml").write_text(f"{{env: {ENV_ID}, gym_packages: [this]}}")
    assert "add the module to --gym-packages" in command_line(capsys, "--resume", run_folder)[1]
    assert "this" not in sys.modules


@pytest.mark.parametrize("content", ["[", "3", '{"sha256": 5}', "[" * 20_000, '{"repo": "a b; rm"}'])
def test_a_damaged_source_is_one_line(run_folder, capsys, content):
    (run_folder / "state" / "source.json").write_text(content)
    assert "source.json is damaged" in command_line(capsys, "--resume", run_folder)[1]


@pytest.mark.parametrize("missing", ["*.zip", FILE_NAME, f"{ENV_ID}/*"])
def test_an_incomplete_state_is_one_line(run_folder, capsys, missing):
    for path in (run_folder / "state").glob(missing):
        path.unlink()
    assert command_line(capsys, "--resume", run_folder)[0] == 1


def change_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "refinement.json").write_text("[" * 20_000),
        lambda folder: (folder / "refinement.json").write_text("3"),
        lambda folder: (folder / "refinement.json").write_text("{}"),
        lambda folder: change_json(folder / "refinement.json", decision="<b>"),
        lambda folder: change_json(folder / "refinement.json", settings={"algo": "ppo"}),
        lambda folder: change_json(folder / "refinement.json", versions={"a": "<script>"}),
        lambda folder: change_json(folder / "refinement.json", baseline=[1]),
        lambda folder: change_json(folder / "refinement.json", source={"repo": "a](b"}),
        lambda folder: (folder / ENV_ID / "args.yml").unlink(),
        lambda folder: (folder / ENV_ID / "config.yml").write_text("a: !!bool foo"),
        lambda folder: (folder / f"{ENV_ID}.zip").write_bytes(b"another"),
        lambda folder: (folder / ENV_ID / "args.yml").write_text("env_kwargs: [1]"),
        lambda folder: (folder / ENV_ID).rename(folder / "`x`"),
    ],
)
def test_a_corrupt_folder_is_not_pushed_and_is_one_line(run_folder, capsys, change):
    change(run_folder)
    status, line = command_line(capsys, "push", run_folder, "--organization", "me")
    assert (status, line.startswith("sb3-refine push: error: ")) == (1, True)


def test_texts_of_a_run_are_escaped_in_its_model_card(run_folder):
    pytest.importorskip("huggingface_hub")
    from sb3_refine.reporting.model_card import model_card

    reason = "<img src=x onerror=alert(1)> [click](http://evil) ![x](y) `code` # title\n# another\x1b[31m"
    change_json(run_folder / "refinement.json", reason=reason)
    card = model_card(read_run_folder(run_folder), "me/repo")
    assert "<img" not in card.replace(r"\<img", "")
    assert r"\[click\](http://evil)" in card
    assert "\x1b" not in card
    assert "\n# another" not in card


def test_figures_that_are_missing_do_not_stop_a_model_card(run_folder):
    pytest.importorskip("huggingface_hub")
    from sb3_refine.reporting.model_card import model_card

    content = json.loads((run_folder / "refinement.json").read_text())
    for name in ("baseline", "refined"):
        content[name].update(mean_length=None, failure_rate=None, std_return=None)
    content["paired_difference"]["p_better"] = None
    (run_folder / "refinement.json").write_text(json.dumps(content))
    assert "How to load it" in model_card(read_run_folder(run_folder), "me/repo")


CODE = "(open('ran', 'w') and 0) or dict(a=1)"


def test_expressions_that_the_zoo_would_run_are_not_saved(agent, run_folder, tmp_path):
    """The Zoo evaluates text in config.yml: what is saved and pushed has none but literals."""
    from sb3_refine.reporting.publish import layout

    config = {"policy_kwargs": CODE, "callback": "os.system", "replay_buffer_class": CODE, "policy": "MlpPolicy"}
    kept = {"rollout_buffer_kwargs": "dict(a=1)", "n_envs": 4}
    (agent.inner / "config.yml").write_text(yaml.safe_dump({**config, **kept}))
    loaded = agent.load()
    assert {**kept, "policy": "MlpPolicy"}.items() <= loaded.config.items()
    save_agent(loaded, tmp_path / "saved")
    assert "open(" not in (tmp_path / "saved" / ENV_ID / "config.yml").read_text()
    pytest.importorskip("huggingface_hub")
    (run_folder / ENV_ID / "config.yml").write_text(yaml.safe_dump(config))
    assert b"open(" not in layout(read_run_folder(run_folder), "me/repo")["config.yml"]


def test_the_zoos_text_of_normalize_is_saved_as_it_is(normalized, tmp_path):
    """The Zoo sets ``norm_reward`` for evaluation in a text only, not in a mapping."""
    text = "dict(norm_obs=True, norm_reward=False)"
    (normalized.inner / "config.yml").write_text(yaml.safe_dump({"policy": "MlpPolicy", "normalize": text}))
    save_agent(normalized.load(), tmp_path / "saved")
    assert read_zoo_yaml(tmp_path / "saved" / ENV_ID / "config.yml")["normalize"] == text


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("dict(net_arch=[64, dict(pi=[1])], activation_fn=nn.ReLU, log_std_init=-2)", True),
        ("HerReplayBuffer", True),
        ("dict(optimizer_class=RMSpropTFLike, activation_fn=torch.nn.ReLU)", True),
        ("9**9**9", False),
        ("dict(features_extractor_class=th.utils.collect_env.subprocess.Popen)", False),
        ("os", False),
        ("dict(**{'a': 1})", True),
        ("{'norm_obs': True, 'norm_reward': False}", True),
        ("print(1)", False),
        ("nn.ReLU.__init__", False),
        ("nn.__loader__", False),
        ("dict.mro()", False),
        ("[x for x in 'a']", False),
        ("f'{1}'", False),
        ("(lambda: 1)()", False),
        ("-" * 5000 + "1", False),
    ],
)
def test_which_expressions_are_saved(text, verdict):
    assert is_harmless(text) is verdict


# ---------------------------------------------------------------- what is printed, options, processes


def test_control_characters_of_names_in_files_do_not_reach_the_terminal(agent, capsys):
    (agent.inner / "config.yml").write_text(yaml.safe_dump({"env_wrapper": "evil\x1b]0;title\x07.Wrapper"}))
    status, line = command_line(capsys, "--algo", "ppo", "--env", ENV_ID, "-f", agent.folder, *QUICK)
    assert status == 1
    assert "\\x1b]0;title\\x07" in line


def test_trust_is_asked_for_each_agent_and_warns(agent, tmp_path, capsys, caplog):
    other = shutil.copytree(agent.run_folder, tmp_path / "other")
    mark = tmp_path / "ran"
    code = f"open({str(mark)!r}, 'w') and {{}}"

    class Marks:
        def __reduce__(self):
            return eval, (code,)

    harmful = Agent.__new__(Agent)
    harmful.zip = other / f"{ENV_ID}.zip"
    harmful.change(policy_kwargs=pickle.dumps(Marks()))
    common = ["evaluate", "--algo", "ppo", "--env", ENV_ID, "-f", agent.folder, "--compare-to", other]
    quick = ["--no-noise", "--n-eval-episodes", "2", "--backend", "serial"]
    assert "refused to load builtins.eval" in command_line(capsys, *common, *quick, "--trust-remote-code")[1]
    assert f"trust_remote_code: {agent.zip} and the files beside it are unpickled" in caplog.text
    assert not mark.exists()
    main([str(argument) for argument in [*common, *quick, "--trust-compare-to"]])
    assert f"trust_remote_code: {other / ENV_ID}.zip and the files beside it are unpickled" in caplog.text
    assert mark.exists()


@pytest.mark.parametrize(
    ("option", "value", "status"),
    [
        ("--episode-timeout", "nan", 2),
        ("--episode-timeout", "-1", 2),
        ("--episode-timeout", "0", 2),
        ("--time-limit", "nan", 2),
        ("--time-limit", "-1", 2),
        ("--parameters", "", 1),
    ],
)
def test_absurd_options_are_refused(agent, capsys, option, value, status):
    arguments = ["--algo", "ppo", "--env", ENV_ID, "-f", agent.folder, *QUICK, f"{option}={value}"]
    found, line = command_line(capsys, *arguments)
    assert found == status
    assert option.strip("-").replace("_", "-") in line


@pytest.mark.parametrize("name", ["episode_timeout", "time_limit"])
@pytest.mark.parametrize("value", [float("nan"), -1.0, "5", True])
def test_absurd_arguments_are_refused(agent, name, value):
    with pytest.raises(RefineError, match=f"{name}: expected a number of seconds"):
        if name == "episode_timeout":
            Refiner(agent.load(), episode_timeout=value)
        else:
            Refiner(agent.load(), backend="serial").learn(1, time_limit=value)


def test_a_search_that_leaves_the_finite_numbers_saves_nothing(agent, tmp_path, capsys):
    arguments = ["--algo", "ppo", "--env", ENV_ID, "-f", agent.folder, "-o", tmp_path / "out", *QUICK]
    status, line = command_line(capsys, *arguments, "--learning-rate", "1e40", "--no-acceptance")
    assert status == 1
    assert "lower the step size" in line
    assert not list((tmp_path / "out").glob("**/Pendulum-v1_1/*.zip"))


def test_runs_that_start_together_get_different_numbers(tmp_path):
    barrier, folders = threading.Barrier(8), []

    def start():
        barrier.wait()
        folders.append(new_run_folder(tmp_path, "ppo", ENV_ID))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(folder.name for folder in folders) == [f"{ENV_ID}_{i}" for i in range(1, 9)]


class GoalToy(gym.Env):
    """A point that has to go to a goal."""

    observation_space = spaces.Dict(
        dict.fromkeys(("observation", "achieved_goal", "desired_goal"), spaces.Box(-2, 2, (2,)))
    )
    action_space = spaces.Box(-1, 1, (2,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.point, self.goal, self.n_steps = np.zeros(2, np.float32), self.np_random.uniform(-1, 1, 2), 0
        return self.observe(), {}

    def observe(self):
        goal = self.goal.astype(np.float32)
        return {"observation": self.point, "achieved_goal": self.point, "desired_goal": goal}

    def step(self, action):
        self.point, self.n_steps = np.clip(self.point + 0.1 * action, -2, 2).astype(np.float32), self.n_steps + 1
        return self.observe(), -float(np.linalg.norm(self.point - self.goal)), False, self.n_steps == 20, {}


gym.register("GoalToy-v0", GoalToy)


def test_hindsight_replay_of_stable_baselines3_1_0_is_read(tmp_path):
    """Its zip names the class of the model, and its observations have the goal at their end."""
    env = GoalInObservation(GoalToy())
    model = SAC("MlpPolicy", env, **deepcopy(OFF_POLICY))  # SB3 writes into policy_kwargs
    model.model_class, model.goal_selection_strategy, model.n_sampled_goal = SAC, "future", 4
    model.save(tmp_path / "her.zip")
    agent = load_agent("her", "GoalToy-v0", model=tmp_path / "her.zip")
    assert (agent.algo, type(agent.model)) == ("sac", SAC)
    refiner = Refiner(agent, backend="serial", n_delta=1, acceptance=False)
    with SerialEvaluator(refiner.make_task()) as evaluator:
        ours = [e.episode_return for e in run_policy(evaluator, refiner.parameters.get_theta(), [5])]
    observation, _ = env.reset(seed=5)
    rewards, done = [], False
    while not done:
        observation, reward, _, done, _ = env.step(model.predict(observation, deterministic=True)[0])
        rewards.append(reward)
    assert ours == pytest.approx([sum(rewards)], abs=1e-6)
    again = load_agent("sac", "GoalToy-v0", refiner.learn(1).save(tmp_path / "out").parents[1])
    assert again.observation_space.shape == (4,)


def test_a_checkpoint_of_our_own_is_read(run_folder):
    settings, state = read_checkpoint(run_folder / "state")
    assert settings["n_updates"] == state["optimizer"]["n_updates_done"] == 1
