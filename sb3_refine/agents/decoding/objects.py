"""The objects of a Stable-Baselines3 file, each rebuilt by a function of its own from checked plain values."""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.noise import (
    ActionNoise,
    NormalActionNoise,
    OrnsteinUhlenbeckActionNoise,
    VectorizedActionNoise,
)
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.vec_env import VecNormalize

from sb3_refine.agents.decoding.arrays import array, dtype, finite, flag, limit, numpy_value, shape, whole
from sb3_refine.agents.decoding.pickle_tree import (
    Call,
    DecodingError,
    Items,
    Name,
    Node,
    call_of,
    mapping,
    plain,
    unknown,
)

_MAX_ENVS = 10_000
_MAX_PARTS = 64  # of a Dict space
_MAX_NUMBERS = 1_000_000  # of a Box: an image, or many
_MAX_CHOICES = 10_000  # of a MultiDiscrete
_MAX_ACTIONS = 1000  # that noise is for

_POLICIES = {
    "sb3_contrib.ars.policies": {"ARSPolicy", "ARSLinearPolicy"},
    "sb3_contrib.common.maskable.policies": {
        "MaskableActorCriticPolicy", "MaskableActorCriticCnnPolicy", "MaskableMultiInputActorCriticPolicy",
    },
    "sb3_contrib.common.recurrent.policies": {
        "RecurrentActorCriticPolicy", "RecurrentActorCriticCnnPolicy", "RecurrentMultiInputActorCriticPolicy",
    },
    "sb3_contrib.crossq.policies": {"CrossQPolicy", "MultiInputPolicy"},
    "sb3_contrib.qrdqn.policies": {"QRDQNPolicy", "CnnPolicy", "MultiInputPolicy"},
    "sb3_contrib.tqc.policies": {"TQCPolicy", "CnnPolicy", "MultiInputPolicy"},
    "sb3_refine.policies.transformer": {"TransformerPolicy"},
    "stable_baselines3.common.policies": {
        "ActorCriticPolicy", "ActorCriticCnnPolicy", "MultiInputActorCriticPolicy",
    },
    "stable_baselines3.dqn.policies": {"DQNPolicy", "CnnPolicy", "MultiInputPolicy"},
    "stable_baselines3.sac.policies": {"SACPolicy", "CnnPolicy", "MultiInputPolicy"},
    "stable_baselines3.td3.policies": {"TD3Policy", "CnnPolicy", "MultiInputPolicy"},
}  # fmt: skip
_BUFFERS = {
    "sb3_contrib.common.maskable.buffers": {"MaskableRolloutBuffer", "MaskableDictRolloutBuffer"},
    "sb3_contrib.common.recurrent.buffers": {"RecurrentRolloutBuffer", "RecurrentDictRolloutBuffer"},
    "stable_baselines3.common.buffers": {
        "ReplayBuffer", "DictReplayBuffer", "NStepReplayBuffer", "RolloutBuffer", "DictRolloutBuffer",
    },
    "stable_baselines3.her.her_replay_buffer": {"HerReplayBuffer"},
}  # fmt: skip
_EXTRACTORS = {"stable_baselines3.common.torch_layers": {"FlattenExtractor", "NatureCNN", "CombinedExtractor"}}
_ACTIVATIONS = {
    "torch.nn.modules.activation": {
        "CELU", "ELU", "GELU", "Hardshrink", "Hardsigmoid", "Hardswish", "Hardtanh", "LeakyReLU", "LogSigmoid", "Mish",
        "PReLU", "RReLU", "ReLU", "ReLU6", "SELU", "SiLU", "Sigmoid", "Softmax", "Softplus", "Softshrink", "Softsign",
        "Tanh", "Tanhshrink",
    },
    "torch.nn.modules.linear": {"Identity"},
}  # fmt: skip
_OPTIMIZERS = {
    "torch.optim": {"Adafactor"},
    "stable_baselines3.common.sb2_compat.rmsprop_tf_like": {"RMSpropTFLike"},
    "torch.optim.adadelta": {"Adadelta"},
    "torch.optim.adagrad": {"Adagrad"},
    "torch.optim.adam": {"Adam"},
    "torch.optim.adamax": {"Adamax"},
    "torch.optim.adamw": {"AdamW"},
    "torch.optim.asgd": {"ASGD"},
    "torch.optim.nadam": {"NAdam"},
    "torch.optim.radam": {"RAdam"},
    "torch.optim.rmsprop": {"RMSprop"},
    "torch.optim.rprop": {"Rprop"},
    "torch.optim.sgd": {"SGD"},
}
CLASSES = {
    "policy_class": _POLICIES,
    "replay_buffer_class": _BUFFERS,
    "rollout_buffer_class": _BUFFERS,
    "features_extractor_class": _EXTRACTORS,
    "activation_fn": _ACTIVATIONS,
    "optimizer_class": _OPTIMIZERS,
}
"""Classes that a zip may name, by what for and by module."""


def known_class(node: Node, use: str) -> type:
    """
    :param node: the name of a class
    :param use: name of the argument that it is for
    :return: the class
    :raises UnknownObjectError: when the class is not in the table
    """
    if not isinstance(node, Name) or node.name not in CLASSES[use].get(node.module, ()):
        raise unknown(node)
    return getattr(import_module(node.module), node.name)


# ---------------------------------------------------------------- spaces


def space(node: Node) -> spaces.Space:
    """
    :param node: a stored space of gymnasium or of the legacy gym
    :return: a new space of gymnasium
    :raises DecodingError: when the space is of another kind, or its figures make no such space
    """
    module, name = call_of(node)
    package, _, home = module.partition(".spaces.")
    if package not in ("gym", "gymnasium") or (home, name) not in _SPACES:
        raise unknown(node)
    try:
        return _SPACES[home, name](state_of(node))
    except DecodingError:
        raise
    except (AssertionError, ArithmeticError, TypeError, ValueError) as error:
        raise DecodingError(f"a {name} space with invalid arguments ({str(error)[:80]})") from None


def _box(state: dict[str, Node]) -> spaces.Box:
    low, high, values = array(state["low"]), array(state["high"]), dtype(state["dtype"])
    if low.size > _MAX_NUMBERS:
        raise DecodingError(f"a Box of {low.size:,} numbers")
    if low.shape != high.shape or values.kind not in "iuf" or np.isnan(low).any() or np.isnan(high).any():
        raise DecodingError("a Box whose bounds do not match")
    return spaces.Box(low=low.astype(values), high=high.astype(values), shape=low.shape, dtype=values.type)


def _discrete(state: dict[str, Node]) -> spaces.Discrete:
    return spaces.Discrete(n=whole(state["n"], 1), start=whole(state.get("start", 0), -(2**31)))


def _multi_discrete(state: dict[str, Node]) -> spaces.MultiDiscrete:
    start = state.get("start")
    nvec = array(state["nvec"])
    if nvec.size > _MAX_CHOICES:
        raise DecodingError(f"a MultiDiscrete of {nvec.size:,} choices")
    return spaces.MultiDiscrete(nvec) if start is None else spaces.MultiDiscrete(nvec, start=array(start))


def _multi_binary(state: dict[str, Node]) -> spaces.MultiBinary:
    n = state["n"]
    if isinstance(n, int):
        return spaces.MultiBinary(whole(n, 1))
    return spaces.MultiBinary(shape(n) if isinstance(n, Items) else shape(Items("list", array(n).tolist())))


def _dict(state: dict[str, Node]) -> spaces.Dict:
    parts = mapping(state["spaces"])
    if len(parts) > _MAX_PARTS:
        raise DecodingError(f"a Dict space of {len(parts)} parts")
    if any(call_of(part)[1] == "Dict" for part in parts.values()):
        raise DecodingError("a Dict space within a Dict space, which Stable-Baselines3 does not support")
    found, n_numbers = OrderedDict(), 0
    for key, part in parts.items():
        found[key] = space(part)
        n_numbers += math.prod(found[key].shape or ())
        if n_numbers > _MAX_NUMBERS:
            raise DecodingError(f"a Dict space of more than {_MAX_NUMBERS:,} numbers")
    return spaces.Dict(found)


_SPACES: dict[tuple[str, str], Any] = {
    ("box", "Box"): _box,
    ("discrete", "Discrete"): _discrete,
    ("multi_discrete", "MultiDiscrete"): _multi_discrete,
    ("multi_binary", "MultiBinary"): _multi_binary,
    ("dict", "Dict"): _dict,
}


class _State(dict[str, Node]):
    """A stored state, in which a missing entry is an error of the file."""

    def __missing__(self, key: str) -> Node:
        raise DecodingError(f"an object without its {key}")


def state_of(node: Node) -> dict[str, Node]:
    """
    :param node: a stored object
    :return: its attributes by name
    :raises DecodingError: when it has none, or they are not named
    """
    if not isinstance(node, Call):
        raise DecodingError("expected an object")
    state = node.state
    if isinstance(state, Items) and state.kind == "tuple" and len(state.items) == 2:  # attributes and slots
        parts = [mapping(part) for part in state.items if part is not None]
        return _State({key: value for part in parts for key, value in part.items()})
    return _State(mapping(state) if state is not None else {})


# ---------------------------------------------------------------- normalisation


def vec_normalize(node: Node) -> VecNormalize:
    """
    :param node: a stored VecNormalize
    :return: a new one with its statistics, flags and spaces, and no environment
    :raises DecodingError: when it is something else, or its figures could not have come from observations
    """
    if call_of(node) != ("stable_baselines3.common.vec_env.vec_normalize", "VecNormalize"):
        raise unknown(node)
    stored = state_of(node)
    found = VecNormalize.__new__(VecNormalize)
    found.venv = None  # type: ignore[assignment]
    found.observation_space, found.action_space = space(stored["observation_space"]), space(stored["action_space"])
    for name in ("training", "norm_obs", "norm_reward"):
        setattr(found, name, _named(name, flag, stored[name]))
    for name in ("clip_obs", "clip_reward"):
        setattr(found, name, _named(name, limit, stored[name]))
    for name in ("gamma", "epsilon"):
        setattr(found, name, _named(name, lambda node: finite(node, 0, 1), stored[name]))
    found.num_envs = whole(stored.get("num_envs", 1), 1)
    is_dict = isinstance(found.observation_space, spaces.Dict)
    found.norm_obs_keys = _keys(stored.get("norm_obs_keys"), found.observation_space) if is_dict else None
    if found.norm_obs:
        found.obs_rms = _statistics(stored["obs_rms"], found.observation_space, found.norm_obs_keys)
    found.ret_rms = running_mean_std(stored["ret_rms"], ())
    if isinstance(found.observation_space, spaces.Dict):
        found.obs_spaces = found.observation_space.spaces
    found.old_reward = np.array([])
    found.render_mode = None
    return found


def running_mean_std(node: Node, shape: tuple[int, ...]) -> RunningMeanStd:
    """
    :param node: stored running statistics
    :param shape: that they must have
    :return: new ones
    :raises DecodingError: when they have another shape, are not finite, or have a negative variance or count
    """
    if call_of(node) != ("stable_baselines3.common.running_mean_std", "RunningMeanStd"):
        raise unknown(node)
    stored = state_of(node)
    mean, var = (numpy_value(stored[name]) for name in ("mean", "var"))
    if (
        np.shape(mean) != shape
        or np.shape(var) != shape
        or {np.asarray(part).dtype.kind for part in (mean, var)} != {"f"}
    ):
        raise DecodingError(f"statistics of shape {np.shape(mean)} and {np.shape(var)}, where {shape} is expected")
    if not (np.isfinite(mean).all() and np.isfinite(var).all()):
        raise DecodingError("statistics with NaN or infinity")
    if np.any(var < 0):
        raise DecodingError("statistics with a negative variance")
    found = RunningMeanStd(shape=shape)
    found.mean, found.var, found.count = mean, var, finite(stored["count"], 0)
    return found


def _statistics(node: Node, observation_space: spaces.Space, keys: Iterable[str] | None) -> Any:
    if keys is None:
        return running_mean_std(node, observation_space.shape or ())
    parts = mapping(node)
    if parts.keys() != set(keys):
        raise DecodingError("statistics of other observations than its space has")
    return {key: running_mean_std(parts[key], _part(observation_space, key).shape or ()) for key in keys}


def _part(observation_space: Any, key: str) -> spaces.Space:
    return observation_space[key]


def _keys(node: Node, observation_space: Any) -> list[str]:
    known = list(observation_space.spaces)
    keys = known if node is None else plain(node)
    if not isinstance(keys, list) or not all(isinstance(key, str) and key in known for key in keys):
        raise DecodingError("norm_obs_keys that its observation space does not have")
    return keys


def _named(name: str, check: Callable[[Node], Any], node: Node) -> Any:
    try:
        return check(node)
    except DecodingError as error:
        raise DecodingError(f"{name}: {error}") from None


# ---------------------------------------------------------------- training


def action_noise(node: Node) -> ActionNoise | None:
    """
    :param node: stored action noise, or None
    :return: new noise of the same figures
    :raises DecodingError: when it is of another kind, or its figures are not finite
    """
    if node is None:
        return None
    module, name = call_of(node)
    if module != "stable_baselines3.common.noise" or name not in _NOISES:
        raise unknown(node)
    return _NOISES[name](state_of(node))


def _normal(state: dict[str, Node]) -> NormalActionNoise:
    return NormalActionNoise(_numbers(state["_mu"]), _numbers(state["_sigma"]), _dtype_of(state))


def _ornstein_uhlenbeck(state: dict[str, Node]) -> OrnsteinUhlenbeckActionNoise:
    initial = state.get("initial_noise")
    noise = OrnsteinUhlenbeckActionNoise(
        _numbers(state["_mu"]),
        _numbers(state["_sigma"]),
        finite(state["_theta"]),
        finite(state["_dt"]),
        None if initial is None else _numbers(initial),
        _dtype_of(state),
    )
    if state.get("noise_prev") is not None:
        noise.noise_prev = _numbers(state["noise_prev"])
    return noise


def _vectorized(state: dict[str, Node]) -> VectorizedActionNoise:
    base = state["_base_noise"]
    if call_of(base)[1] == "VectorizedActionNoise":
        raise DecodingError("vectorized noise within vectorized noise")
    n_envs = whole(state["n_envs"], 1)
    if n_envs > _MAX_ENVS:
        raise DecodingError(f"noise for {n_envs} environments")
    return VectorizedActionNoise(action_noise(base), n_envs)  # type: ignore[arg-type]


_NOISES: dict[str, Any] = {
    "NormalActionNoise": _normal,
    "OrnsteinUhlenbeckActionNoise": _ornstein_uhlenbeck,
    "VectorizedActionNoise": _vectorized,
}


def _dtype_of(state: dict[str, Node]) -> Any:
    """Early versions of Stable-Baselines3 have no dtype there."""
    return dtype(state["_dtype"]).type if "_dtype" in state else np.float32


def _numbers(node: Node) -> np.ndarray:
    values = np.asarray(numpy_value(node), dtype=np.float64)
    if not np.isfinite(values).all() or values.size > _MAX_ACTIONS:
        raise DecodingError("noise with NaN or infinity, or for too many actions")
    return values


def train_freq(node: Node) -> int | TrainFreq:
    """
    :param node: a whole number, or a stored TrainFreq
    :return: the same
    :raises DecodingError: for anything else
    """
    if isinstance(node, int) and not isinstance(node, bool) and -1 <= node < 2**31:
        return node
    module, name = call_of(node)
    if (module, name) == ("stable_baselines3.common.type_aliases", "TrainFreq") and len(node.arguments) == 2:
        frequency, unit = node.arguments
        return TrainFreq(whole(frequency, 1), _unit(unit))
    if isinstance(node, Call):
        raise unknown(node)
    value = plain(node)
    if isinstance(value, (list, tuple)) and len(value) == 2 and value[1] in ("step", "episode"):
        return TrainFreq(whole(value[0], 1), TrainFrequencyUnit(value[1]))
    raise DecodingError("train_freq is neither a whole number nor a number of steps or episodes")


def _unit(node: Node) -> TrainFrequencyUnit:
    """Enums are stored as a call with their value; by early Python 3.11, as ``getattr`` of their name."""
    unit = ("stable_baselines3.common.type_aliases", "TrainFrequencyUnit")
    if call_of(node) == unit and node.arguments in (["step"], ["episode"]):
        return TrainFrequencyUnit(node.arguments[0])
    if call_of(node) == ("builtins", "getattr") and len(node.arguments) == 2:
        owner, name = node.arguments
        if isinstance(owner, Name) and owner.key == unit and name in ("STEP", "EPISODE"):
            return TrainFrequencyUnit[str(name)]
    raise unknown(node)
