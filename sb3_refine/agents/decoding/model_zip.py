"""A zip of Stable-Baselines3, read as data: the attributes of its model, its parameters, its optimizers' states."""

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch as th

from sb3_refine.agents.decoding.archives import read_zip
from sb3_refine.agents.decoding.attributes import ATTRIBUTES, REQUIRED
from sb3_refine.agents.decoding.pickle_tree import BROKEN, DecodingError, Name, Node, UnknownObjectError, read_pickle
from sb3_refine.agents.decoding.schedules import UnreadableSchedule
from sb3_refine.agents.decoding.schema import SchemaError, parse_json
from sb3_refine.agents.decoding.torch_files import optimizer_state, read_torch_file, state_dict
from sb3_refine.agents.decoding.trusted import TRUST, unpickle
from sb3_refine.errors import RefineError

_MAX_DATA_BYTES = 32 * 2**20
_STATE_DICTS = {"policy"}
_OPTIMIZERS = {"policy.optimizer", "actor.optimizer", "critic.optimizer", "ent_coef_optimizer"}
_VARIABLES = {"pytorch_variables", "tensors"}  # the second until Stable-Baselines3 0.9
_VARIABLE_NAMES = {"log_ent_coef", "ent_coef_tensor"}


@dataclass(frozen=True)
class StoredModel:
    """
    What a zip holds of a model, in checked values.

    :param path: the zip
    :param algo: the Zoo's name of the algorithm that saved it
    :param attributes: by name, those of :data:`~sb3_refine.agents.decoding.attributes.ATTRIBUTES` that the zip has
    :param parameters: by name, state dictionaries of the policy and of the optimizers
    :param variables: other tensors by name
    :param had_original_obs: whether the zip notes an observation from before normalisation
    :param has_goal_in_observation: whether it was saved by hindsight experience replay of Stable-Baselines3 1.0 or
        earlier, in which the observation and the goal are one vector
    """

    path: Path
    algo: str
    attributes: dict[str, Any]
    parameters: dict[str, dict[str, Any]]
    variables: dict[str, th.Tensor]
    had_original_obs: bool
    has_goal_in_observation: bool

    @property
    def n_parameters(self) -> int:
        """Numbers of the policy, those that several names share counted once."""
        return sum(value.numel() for value in self.distinct_parameters)

    @property
    def distinct_parameters(self) -> list[th.Tensor]:
        """Tensors of floats of the policy, those that several names share once."""
        tensors = [value for value in self.parameters["policy"].values() if value.is_floating_point()]
        return list({value.data_ptr(): value for value in tensors}.values())


def read_model(path: Path, trust_remote_code: bool = False) -> StoredModel:
    """
    Read a zip of Stable-Baselines3 of any version. No code in it is run, unless its author is trusted.

    :param path: the zip
    :param trust_remote_code: unpickle those attributes that cannot be read as data, which can run any code
    :return: what it holds of the model
    :raises RefineError: when the file is corrupt, was saved by another algorithm, or needs code to be run
    """
    members = _members(path)
    stored = _stored(path, members.pop("data"))
    algo = _algo_of(path, stored)
    checks = ATTRIBUTES[algo]
    attributes = {
        name: _attribute(f"{path}: {name}", stored[name], checks[name], trust_remote_code)
        for name in checks
        if name in stored
    }
    for name in REQUIRED:
        if name not in attributes:
            raise RefineError(f"{path}: the model has no {name}; save it again with Stable-Baselines3")
    parameters, variables = {}, {}
    for file_name, content in members.items():
        name = file_name.removesuffix(".pth")
        try:
            found = read_torch_file(content)
            if name in _VARIABLES:
                variables = _variables(found)
            else:
                read = state_dict if name in _STATE_DICTS else optimizer_state
                parameters[name] = read(found)
        except (DecodingError, *BROKEN) as error:
            raise RefineError(
                f"{path}: {file_name}: {error}; choose another checkpoint, or download it again"
            ) from None
    if "policy" not in parameters:
        raise RefineError(f"{path}: there is no policy.pth in it; download or save it again")
    return StoredModel(
        path,
        algo,
        attributes,
        parameters,
        variables,
        had_original_obs=stored.get("_last_original_obs") is not None,
        has_goal_in_observation="model_class" in stored,
    )


def _members(path: Path) -> dict[str, bytes]:
    wanted = {"data", *(f"{name}.pth" for name in _STATE_DICTS | _OPTIMIZERS | _VARIABLES)}
    try:
        members = read_zip(path, wanted.__contains__, {"data": _MAX_DATA_BYTES})
        if "data" not in members:
            raise DecodingError("no data in it")
    except DecodingError as error:
        raise RefineError(f"{path}: not a valid Stable-Baselines3 zip ({error}); download or save it again") from None
    return members


def _stored(path: Path, data: bytes) -> dict[str, Any]:
    """The attributes as JSON has them: plain values, or pickles as text."""
    try:
        stored = parse_json(data)
        if not isinstance(stored, dict):
            raise SchemaError("not a mapping")
    except SchemaError as error:
        raise RefineError(
            f"{path}: not a valid Stable-Baselines3 zip (its data: {error}); download or save it again"
        ) from None
    return stored


def _attribute(where: str, stored: Any, check: Callable[[Node], Any], trusted: bool) -> Any:
    """The value of an attribute, out of JSON or out of its pickle."""
    is_pickled = isinstance(stored, dict) and ":serialized:" in stored
    try:
        pickled = _unpacked(stored[":serialized:"]) if is_pickled else b""
        try:
            value = check(read_pickle(pickled) if is_pickled else stored)
        except UnknownObjectError:
            if not (trusted and is_pickled):
                raise
            return unpickle(where, pickled)
    except UnknownObjectError as error:
        raise RefineError(f"{where}: {error}; {TRUST}") from None
    except (DecodingError, *BROKEN) as error:
        raise RefineError(f"{where}: {error}; change it with Stable-Baselines3 and save the agent again") from None
    if trusted and is_pickled and isinstance(value, UnreadableSchedule):
        return unpickle(where, pickled)
    return value


def _unpacked(text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError, ValueError):
        raise DecodingError("not base64") from None


def _variables(content: Any) -> dict[str, th.Tensor]:
    """The entropy coefficient of SAC, TQC and CrossQ."""
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise DecodingError("not tensors by name")
    found = {name: value for name, value in content.items() if value is not None}
    for name, value in found.items():
        is_number = isinstance(value, th.Tensor) and value.numel() == 1 and bool(value.isfinite().all())
        if name not in _VARIABLE_NAMES or not is_number:
            raise DecodingError(f"refused to set {str(name)[:80]}")
    return found


# ---------------------------------------------------------------- which algorithm


_BY_POLICY = (("recurrent", "ppo_lstm"), ("maskable", "ppo_mask"), ("crossq", "crossq"), ("qrdqn", "qrdqn"))

_BY_KEY = (
    ("top_quantiles_to_drop_per_net", "tqc"),
    ("n_delta", "ars"),
    ("cg_max_steps", "trpo"),
    ("clip_range", "ppo"),
    ("exploration_fraction", "dqn"),
    ("target_entropy", "sac"),
    ("gae_lambda", "a2c"),
)


def _algo_of(path: Path, stored: dict[str, Any]) -> str:
    """Which algorithm saved a zip: its attributes show it, or the module of its policy."""
    policy_module = _module_of(stored.get("policy_class"))
    for part, algo in _BY_POLICY:
        if part in policy_module:
            return algo
    for key, algo in _BY_KEY:
        if key in stored:
            return algo
    if "target_policy_noise" in stored:
        # DDPG is TD3 with one critic, no delay and no smoothing of the target policy
        policy_kwargs = stored.get("policy_kwargs")
        n_critics = policy_kwargs.get("n_critics", 2) if isinstance(policy_kwargs, dict) else 2
        is_plain = stored.get("policy_delay") == 1 and stored.get("target_noise_clip") == 0
        return "ddpg" if is_plain and n_critics == 1 else "td3"
    raise RefineError(
        f"{path}: not saved by one of the algorithms {', '.join(ATTRIBUTES)}; save it again with one of them"
    )


def _module_of(stored: Any) -> str:
    try:
        node = read_pickle(_unpacked(stored[":serialized:"]))
    except (DecodingError, TypeError, KeyError):
        return ""
    return node.module if isinstance(node, Name) else ""
