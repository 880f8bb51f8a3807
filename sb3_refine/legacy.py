"""
Reading what other versions wrote: allow-listed unpickling, ``gym`` spaces, lambda schedules, the Zoo's YAML.

Nothing here can run code from a file: a pickle may only name what stands in ``_ALLOWED`` or ``_REPLACED``, exactly.
"""

import base64
import io
import json
import pickle
import zipfile
import zlib
from collections import OrderedDict
from enum import EnumMeta
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, cast

import cloudpickle
import numpy as np
import yaml
from gymnasium import spaces
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize

from sb3_refine.errors import RefineError

_ALLOWED = {
    "builtins": {"float", "set", "slice", "frozenset", "complex", "bytearray"},
    "collections": {"OrderedDict", "deque", "defaultdict"},
    "numpy": {"float32", "float64", "int32", "int64", "bool_"},
    "numpy._core.multiarray": {"scalar"},
    "numpy._core.numeric": {"_frombuffer"},
    "sb3_contrib.ars.policies": {"ARSPolicy", "ARSLinearPolicy"},
    "sb3_contrib.common.maskable.buffers": {"MaskableRolloutBuffer", "MaskableDictRolloutBuffer"},
    "sb3_contrib.common.maskable.policies": {
        "MaskableActorCriticPolicy", "MaskableActorCriticCnnPolicy", "MaskableMultiInputActorCriticPolicy",
    },
    "sb3_contrib.common.recurrent.buffers": {"RecurrentRolloutBuffer", "RecurrentDictRolloutBuffer"},
    "sb3_contrib.common.recurrent.type_aliases": {"RNNStates"},
    "sb3_contrib.common.recurrent.policies": {
        "RecurrentActorCriticPolicy", "RecurrentActorCriticCnnPolicy", "RecurrentMultiInputActorCriticPolicy",
    },
    "sb3_contrib.crossq.policies": {"CrossQPolicy", "MultiInputPolicy"},
    "sb3_contrib.qrdqn.policies": {"QRDQNPolicy", "CnnPolicy", "MultiInputPolicy"},
    "sb3_contrib.tqc.policies": {"TQCPolicy", "CnnPolicy", "MultiInputPolicy"},
    "stable_baselines3.common.buffers": {
        "ReplayBuffer", "DictReplayBuffer", "NStepReplayBuffer", "RolloutBuffer", "DictRolloutBuffer",
    },
    "stable_baselines3.common.noise": {
        "NormalActionNoise", "OrnsteinUhlenbeckActionNoise", "VectorizedActionNoise",
    },
    "stable_baselines3.common.policies": {
        "ActorCriticPolicy", "ActorCriticCnnPolicy", "MultiInputActorCriticPolicy",
    },
    "stable_baselines3.common.running_mean_std": {"RunningMeanStd"},
    "stable_baselines3.common.sb2_compat.rmsprop_tf_like": {"RMSpropTFLike"},
    "stable_baselines3.common.torch_layers": {"FlattenExtractor", "NatureCNN", "CombinedExtractor"},
    "stable_baselines3.common.type_aliases": {"TrainFreq", "TrainFrequencyUnit"},
    "stable_baselines3.common.utils": {"FloatSchedule", "LinearSchedule", "ConstantSchedule"},
    "stable_baselines3.common.vec_env.vec_normalize": {"VecNormalize"},
    "stable_baselines3.dqn.policies": {"DQNPolicy", "CnnPolicy", "MultiInputPolicy"},
    "stable_baselines3.her.her_replay_buffer": {"HerReplayBuffer"},
    "stable_baselines3.her.goal_selection_strategy": {"GoalSelectionStrategy"},
    "stable_baselines3.sac.policies": {"SACPolicy", "CnnPolicy", "MultiInputPolicy"},
    "stable_baselines3.td3.policies": {"TD3Policy", "CnnPolicy", "MultiInputPolicy"},
    "torch": {"device"},
    "torch.nn.modules.activation": {
        "CELU", "ELU", "GELU", "Hardshrink", "Hardsigmoid", "Hardswish", "Hardtanh", "LeakyReLU", "LogSigmoid", "Mish",
        "PReLU", "ReLU", "ReLU6", "SELU", "SiLU", "Sigmoid", "Softplus", "Softshrink", "Softsign", "Tanh", "Tanhshrink",
    },
    "torch.nn.modules.linear": {"Identity"},
    "torch.optim.adadelta": {"Adadelta"},
    "torch.optim.adagrad": {"Adagrad"},
    "torch.optim.adamax": {"Adamax"},
    "torch.optim.nadam": {"NAdam"},
    "torch.optim.radam": {"RAdam"},
    "torch.optim.adam": {"Adam"},
    "torch.optim.adamw": {"AdamW"},
    "torch.optim.rmsprop": {"RMSprop"},
    "torch.optim.sgd": {"SGD"},
}  # fmt: skip

_MOVED_MODULES = {
    "numpy.core.multiarray": "numpy._core.multiarray",
    "numpy.core.numeric": "numpy._core.numeric",
}


class _Opaque:
    """Stands in for what is not needed, such as a random generator's state: takes anything, does nothing."""

    def __init__(self, *args: Any, **kwargs: Any):
        self.args = args

    def __setstate__(self, state: Any) -> None:
        pass


class UnreadableSchedule:
    """
    Stands for a schedule whose code is of its author's own, and is not run.

    :param name: the function's qualified name
    """

    def __init__(self, name: str):
        self.name = name


class _StoredFunction:
    """A pickled function, kept as its name and the values it closes over, and never run."""

    def __init__(self, code: Any, closure: Any = None):
        self.code: tuple[Any, ...] = code.args if isinstance(code, _Opaque) else ()
        self.closure: list[Any] = list(closure or ())
        self.qualified_name = ""

    def schedule(self) -> Any:
        """:return: the schedule that this function computed, in Stable-Baselines3's own terms, if it is a known one"""
        values = [cell.value if isinstance(cell, _Cell) else cell for cell in self.closure]
        value = values[0] if len(values) == 1 else None
        match self.qualified_name, value:
            case "linear_schedule.<locals>.func", float() | int() if self._multiplies_only():  # rl_zoo3.utils
                return LinearSchedule(float(value), 0.0, 1.0)
            case "constant_fn.<locals>.func", float() | int():  # stable_baselines3.common.utils
                return float(value)
            case "get_schedule_fn.<locals>.<lambda>", _StoredFunction():  # of the same, around another schedule
                return value.schedule()
            case "get_schedule_fn.<locals>.<lambda>", ConstantSchedule() | LinearSchedule():
                return value
        constant = self._constant()
        return UnreadableSchedule(self.qualified_name or "a function") if constant is None else constant

    def _multiplies_only(self) -> bool:
        """Whether the code has no numbers and no names of its own: others call their schedules the same."""
        constants, names, _ = self._constants_names_arguments()
        return not names and not any(isinstance(constant, (int, float)) for constant in constants)

    def _constants_names_arguments(self) -> tuple[Any, Any, Any]:
        """What follows the byte code among the arguments of a code object, whatever the version of Python."""
        start = next((i for i, part in enumerate(self.code) if isinstance(part, bytes)), None)
        return self.code[start + 1 : start + 4] if start is not None else ((), ("none",), ())

    def _constant(self) -> float | None:
        """The value of ``lambda _: value``, which the Zoo passes to run an agent."""
        if self.closure:
            return None
        constants, names, arguments = self._constants_names_arguments()
        numbers = [constant for constant in constants if isinstance(constant, float)]
        return numbers[0] if len(numbers) == 1 and not names and tuple(arguments) == ("_",) else None


class _Cell:
    def __init__(self, value: Any = None):
        self.value = value


def _make_function(
    code: Any, globals_: Any = None, name: Any = None, argdefs: Any = None, closure: Any = None
) -> _StoredFunction:
    return _StoredFunction(code, closure)


def _builtin_type(name: str) -> Any:
    return _make_function if name in ("FunctionType", "LambdaType") else _Opaque


def _fill_function(function: _StoredFunction, state: Any) -> _StoredFunction:
    """cloudpickle < 2: everything in one dictionary, the closure's values among it."""
    function.closure = list(state.get("closure_values") or ())
    function.qualified_name = str(state.get("qualname", ""))
    return function


def _function_setstate(function: _StoredFunction, state: Any) -> None:
    """cloudpickle >= 1.5: attributes and slots; the cells may be filled only now."""
    slots = state[1]
    function.qualified_name = str(slots.get("__qualname__", ""))
    closure = slots.get("__closure__")
    if closure:
        function.closure = list(closure)


class _ZooLinearSchedule:
    """``rl_zoo3.utils.SimpleLinearSchedule`` as Stable-Baselines3's own class, so that loading needs no rl_zoo3."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__class__ = LinearSchedule  # type: ignore[assignment]
        LinearSchedule.__init__(self, float(state["initial_value"]), 0.0, 1.0)  # type: ignore[arg-type]


class _Box(spaces.Box):
    def __setstate__(self, state: dict[str, Any]) -> None:  # type: ignore[override]
        self.__class__ = spaces.Box  # type: ignore[assignment]
        spaces.Box.__init__(self, low=state["low"], high=state["high"], dtype=state["dtype"])


class _Discrete(spaces.Discrete):
    def __setstate__(self, state: dict[str, Any]) -> None:  # type: ignore[override]
        self.__class__ = spaces.Discrete  # type: ignore[assignment]
        spaces.Discrete.__init__(self, n=int(state["n"]), start=int(state.get("start", 0)))


class _MultiDiscrete(spaces.MultiDiscrete):
    def __setstate__(self, state: dict[str, Any]) -> None:  # type: ignore[override]
        self.__class__ = spaces.MultiDiscrete  # type: ignore[assignment]
        spaces.MultiDiscrete.__init__(self, nvec=state["nvec"])


class _MultiBinary(spaces.MultiBinary):
    def __setstate__(self, state: dict[str, Any]) -> None:  # type: ignore[override]
        self.__class__ = spaces.MultiBinary  # type: ignore[assignment]
        spaces.MultiBinary.__init__(self, n=state["n"])


class _Dict(spaces.Dict):
    def __setstate__(self, state: dict[str, Any]) -> None:  # type: ignore[override]
        self.__class__ = spaces.Dict  # type: ignore[assignment]
        spaces.Dict.__init__(self, OrderedDict(state["spaces"]))


_SPACES = {"box": _Box, "discrete": _Discrete, "multi_discrete": _MultiDiscrete, "multi_binary": _MultiBinary}


def _enum_member(klass: Any, name: Any) -> Any:
    """Stands for ``getattr``, by which early Python 3.11 (3.11.2) pickles enums, such as TrainFreq's unit."""
    if not isinstance(klass, EnumMeta) or name not in klass.__members__:
        raise RefineError("refused to unpickle builtins.getattr of anything but a member of an enum")
    return klass[name]


_REPLACED: dict[tuple[str, str], Any] = {
    ("builtins", "getattr"): _enum_member,
    ("cloudpickle.cloudpickle", "_builtin_type"): _builtin_type,
    ("cloudpickle.cloudpickle", "_fill_function"): _fill_function,
    ("cloudpickle.cloudpickle", "_function_setstate"): _function_setstate,
    ("cloudpickle.cloudpickle_fast", "_function_setstate"): _function_setstate,
    ("cloudpickle.cloudpickle", "_make_cell"): _Cell,
    ("cloudpickle.cloudpickle", "_make_empty_cell"): _Cell,
    ("cloudpickle.cloudpickle", "_make_function"): _make_function,
    ("cloudpickle.cloudpickle", "_make_skel_func"): lambda code, cell_count, base_globals=None: _StoredFunction(code),
    ("numpy.random._mt19937", "MT19937"): _Opaque,
    ("numpy.random._pcg64", "PCG64"): _Opaque,
    ("numpy.random._pickle", "__bit_generator_ctor"): _Opaque,
    ("numpy.random._pickle", "__generator_ctor"): _Opaque,
    ("numpy.random._pickle", "__randomstate_ctor"): _Opaque,
    ("numpy.random.bit_generator", "SeedSequence"): _Opaque,
    ("numpy.random.bit_generator", "__pyx_unpickle_SeedSequence"): _Opaque,
    ("rl_zoo3.utils", "SimpleLinearSchedule"): _ZooLinearSchedule,
    ("torch._utils", "_rebuild_tensor_v2"): _Opaque,  # ARS's copy of its parameters
    ("torch.storage", "_load_from_bytes"): _Opaque,  # which would unpickle more
    **{
        (f"{gym}.spaces.{module}", space.__name__.lstrip("_")): space
        for gym in ("gym", "gymnasium")
        for module, space in {**_SPACES, "dict": _Dict}.items()
    },
}


def _reconstruct_array(subtype: Any, shape: Any, typecode: Any) -> np.ndarray:
    """An empty array, to be filled by its own, checking ``__setstate__``; ``ndarray`` itself is never called."""
    return np.ndarray.__new__(np.ndarray, (0,), np.int8)


def _plain_dtype(name: Any, *_: Any) -> np.dtype:
    """A new dtype of numbers or text: no objects, no structures."""
    dtype = np.dtype(name)
    if dtype.kind not in "biufcSU":
        raise pickle.UnpicklingError(f"dtype {dtype}")
    return np.dtype(dtype, copy=True)


_REPLACED.update({("numpy", "dtype"): _plain_dtype, ("numpy", "ndarray"): _Opaque})
_REPLACED.update({(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct_array for core in ("core", "_core")})

_CALLABLE_CLASSES = {
    "TrainFreq", "TrainFrequencyUnit", "GoalSelectionStrategy", "device", "OrderedDict", "deque", "defaultdict",
}  # fmt: skip

_SCHEDULES = (
    "learning_rate",
    "lr_schedule",
    "clip_range",
    "clip_range_vf",
    "exploration_schedule",
    "delta_std_schedule",
)
"""Attributes whose functions are read by their name and code, and run only where they are trusted and no known ones."""


_PythonUnpickler: Any = pickle._Unpickler  # the C one cannot be taught more than find_class


class _SafeUnpickler(_PythonUnpickler):
    """
    Names only what is listed, calls only what makes plain values, and sets the state of instances only.

    :param file: the pickle
    :param where: what it is part of, for the error message
    :param trusted: resolve other names as Python does
    """

    dispatch: ClassVar[dict[int, Any]] = dict(_PythonUnpickler.dispatch)

    def __init__(self, file: Any, where: str, trusted: bool):
        super().__init__(file)
        self._where, self._trusted = where, trusted

    def find_class(self, module: str, name: str) -> Any:
        module = _MOVED_MODULES.get(module, module)
        if self._trusted and module.split(".")[0] in ("cloudpickle", "torch"):  # classes and functions that come whole
            return super().find_class(module, name)
        if (module, name) in _REPLACED and not (self._trusted and module == "builtins"):
            return _REPLACED[module, name]
        if name in _ALLOWED.get(module, ()):
            return _attribute(module, name)
        if self._trusted:
            return super().find_class(module, name)
        raise self._refusal(f"unpickle {module}.{name}, which is not on the list of safe names")

    def load_reduce(self) -> None:
        function = self.stack[-2]
        home = getattr(function, "__module__", None) or ""
        third_party = home.split(".")[0] in ("stable_baselines3", "sb3_contrib", "torch")
        if third_party and getattr(function, "__name__", "") not in _CALLABLE_CLASSES and not self._trusted:
            raise self._refusal(f"call {home}.{getattr(function, '__name__', function)} while unpickling")
        super().load_reduce()

    def load_build(self) -> None:
        target, state = self.stack[-2:]
        if not self._trusted and not _may_become(target, state):
            raise self._refusal(f"change {target!r} while unpickling")
        super().load_build()

    def _instantiate(self, klass: Any, args: Any) -> None:
        """Of pickles older than any agent: calls classes without a look at them."""
        raise self._refusal(f"call {klass!r} while unpickling")

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.BUILD[0]] = load_build

    def _refusal(self, what: str) -> RefineError:
        return RefineError(
            f"{self._where}: refused to {what}; if you trust the file's author, pass --trust-remote-code "
            "(trust_remote_code=True)"
        )


def _may_become(target: Any, state: Any) -> bool:
    """
    Whether a state may be set: of instances, not of types or functions; no attribute that Python or numpy would take
    for more than a value, such as ``__array_interface__``, which is an address; and no other size for a dtype, which
    arrays that exist already would read beyond their end with.
    """
    if isinstance(target, np.dtype):
        _, _, subdtype, names, fields, size, *_ = state
        return subdtype is None and names is None and fields is None and size in (-1, target.itemsize)
    schedules = (FloatSchedule, LinearSchedule, ConstantSchedule, _ZooLinearSchedule, ActionNoise)
    if isinstance(target, type) or (callable(target) and not isinstance(target, schedules)):
        return False
    if isinstance(target, np.ndarray):
        return True  # its own __setstate__ checks
    parts = state if isinstance(state, tuple) else (state,)
    names = [name for part in parts if isinstance(part, dict) for name in part]
    return not any(str(name).startswith("__") for name in names)


def _attribute(module: str, name: str) -> Any:
    if module.startswith("numpy._core") and int(np.__version__.split(".", maxsplit=1)[0]) < 2:
        module = module.replace("numpy._core", "numpy.core")
    return getattr(import_module(module), name)


def safe_unpickle(data: bytes, where: str, trust_remote_code: bool = False) -> Any:
    """
    Unpickle bytes of unknown origin.

    :param data: the pickle
    :param where: what it is part of, for the error message
    :param trust_remote_code: resolve names that are not on the list too, which can run any code
    :return: the object; random generators are dropped, ``gym`` spaces become gymnasium's
    :raises RefineError: when the pickle names anything that is not allow-listed, or is broken
    """
    try:
        return _SafeUnpickler(io.BytesIO(data), where, trust_remote_code).load()
    except RefineError:
        raise
    except Exception as error:
        raise RefineError(f"{where}: cannot be unpickled ({type(error).__name__}: {error})") from error


def read_model_data(path: Path, trust_remote_code: bool = False) -> dict[str, Any]:
    """
    Read the ``data`` of a Stable-Baselines3 zip: the attributes of the saved model.

    :param path: the zip
    :param trust_remote_code: see :func:`safe_unpickle`
    :return: attributes by name, schedules in Stable-Baselines3's own terms; fit for ``custom_objects``
    :raises RefineError: when the file is no intact zip of a model, or holds what is not allow-listed
    """
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
            if broken is not None:
                raise zipfile.BadZipFile(f"bad CRC of {broken}")
            stored = json.loads(archive.read("data"))
            if not isinstance(stored, dict):
                raise ValueError("its data is no mapping")
    except (RuntimeError, zipfile.BadZipFile, zlib.error, KeyError, EOFError, ValueError, OSError) as error:
        raise RefineError(
            f"{path}: not an intact Stable-Baselines3 zip ({error}); download or save it again"
        ) from error
    data: dict[str, Any] = {}
    for key, value in stored.items():
        if isinstance(value, dict) and ":serialized:" in value:
            pickled = base64.b64decode(str(value[":serialized:"]))
            trusted = trust_remote_code and key not in _SCHEDULES
            data[key] = _plain_schedule(safe_unpickle(pickled, f"{path}: {key}", trusted))
            if isinstance(data[key], UnreadableSchedule) and trust_remote_code:
                data[key] = _load_function(pickled, f"{path}: {key}")
        else:
            data[key] = value
    return {**data, "env": None}  # SB3 would make an environment of any name there, and import what it names


def _load_function(pickled: bytes, where: str) -> Any:
    try:
        return cloudpickle.loads(pickled)
    except Exception as error:
        raise RefineError(f"{where}: cannot be unpickled ({type(error).__name__}: {error})") from error


def _plain_schedule(value: Any) -> Any:
    if isinstance(value, _StoredFunction):
        return value.schedule()
    inner = getattr(value, "value_schedule", value)  # of a FloatSchedule
    return inner.schedule() if isinstance(inner, _StoredFunction) else value


def read_vec_normalize(path: Path, trust_remote_code: bool = False) -> VecNormalize:
    """
    Read a ``vecnormalize.pkl`` without an environment.

    :param path: the file
    :param trust_remote_code: see :func:`safe_unpickle`
    :return: the wrapper with its statistics, its flags as they were saved, and no ``venv``
    :raises RefineError: when it is unreadable, is something else, or holds what is not allow-listed
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RefineError(f"{path}: cannot be read ({error.strerror})") from error
    vec_normalize = safe_unpickle(data, str(path), trust_remote_code)
    if not isinstance(vec_normalize, VecNormalize):
        raise RefineError(f"{path}: expected a pickled VecNormalize, got {type(vec_normalize).__name__}")
    return detached(vec_normalize)


def detached(vec_normalize: VecNormalize) -> VecNormalize:
    """
    :param vec_normalize: a wrapper that has lost its environment
    :return: the same, with the attributes that ``VecNormalize.__getstate__`` expects, so that it can be pickled
    """
    vec_normalize.__dict__.setdefault("class_attributes", {})
    vec_normalize.__dict__.setdefault("returns", np.zeros(1))
    return vec_normalize


class _ZooLoader(yaml.SafeLoader):
    """The Zoo's YAML uses two Python tags."""


_ZooLoader.add_constructor(
    "tag:yaml.org,2002:python/object/apply:collections.OrderedDict",
    lambda loader, node: OrderedDict(loader.construct_sequence(cast(yaml.SequenceNode, node), deep=True)[0]),
)


_ZooLoader.add_constructor(
    "tag:yaml.org,2002:python/tuple",
    lambda loader, node: tuple(loader.construct_sequence(cast(yaml.SequenceNode, node), deep=True)),
)


def read_zoo_yaml(path: Path) -> dict[str, Any]:
    """
    Read a ``config.yml`` or ``args.yml`` of the Zoo without running anything in it.

    :param path: the file
    :return: its mapping
    :raises RefineError: for broken YAML and for any other Python tag
    """
    try:
        content = yaml.load(path.read_text(), Loader=_ZooLoader)
    except (yaml.YAMLError, OSError, UnicodeDecodeError, TypeError, ValueError, IndexError) as error:
        raise RefineError(f"{path}: cannot be read as the Zoo's YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise RefineError(f"{path}: expected a mapping, got {type(content).__name__}")
    return dict(content)
