"""Stable-Baselines3 models from zips of any version; they can be trained further."""

import inspect
import io
import json
import logging
import math
import warnings
import zipfile
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule
from stable_baselines3.common.vec_env import VecTransposeImage
from torch.overrides import TorchFunctionMode

from sb3_refine.agents.decoding.model_zip import StoredModel
from sb3_refine.agents.decoding.schedules import UnreadableSchedule
from sb3_refine.agents.decoding.trusted import TRUST
from sb3_refine.errors import RefineError, did_you_mean, one_line

logger = logging.getLogger(__name__)

ALGOS = {
    "a2c": "stable_baselines3.A2C",
    "ars": "sb3_contrib.ARS",
    "crossq": "sb3_contrib.CrossQ",
    "ddpg": "stable_baselines3.DDPG",
    "dqn": "stable_baselines3.DQN",
    "ppo": "stable_baselines3.PPO",
    "ppo_lstm": "sb3_contrib.RecurrentPPO",
    "ppo_mask": "sb3_contrib.MaskablePPO",
    "qrdqn": "sb3_contrib.QRDQN",
    "sac": "stable_baselines3.SAC",
    "td3": "stable_baselines3.TD3",
    "tqc": "sb3_contrib.TQC",
    "trpo": "sb3_contrib.TRPO",
}
"""Algorithms by the Zoo's names."""

HER = "her"
"""The Zoo once filed all agents with hindsight experience replay under this name, whatever their algorithm."""


_MAX_BUFFER_GB = 1.0
"""A larger replay buffer is not allocated: no search needs one."""

_MAX_EXTRA_NUMBERS = 1_000_000  # beyond those of its file, such as gSDE's exploration matrices
_MAX_EXTRA_TENSORS = 100


def check_algo(algo: str) -> None:
    """
    :param algo: the Zoo's name of an algorithm
    :raises RefineError: when there is none of that name
    """
    if algo not in ALGOS and algo != HER:
        raise RefineError(
            f"algo: unknown algorithm {algo!r}{did_you_mean(algo, ALGOS)}; choose from {', '.join(ALGOS)}"
        )


def check_identity(stored: StoredModel, algo: str | None) -> None:
    """
    :param stored: a model in a zip
    :param algo: the Zoo's name of the algorithm that should have saved it, or None
    :raises RefineError: when another one has
    """
    if algo not in (None, HER, stored.algo):
        raise RefineError(f"algo: {stored.path} holds a {stored.algo} agent, not {algo}; pass `algo='{stored.algo}'`")


def load_model(stored: StoredModel, config: dict[str, Any], observation_space: spaces.Space) -> BaseAlgorithm:
    """
    Build a model from checked values. Stable-Baselines3 loads a new zip made of these values alone, and so adapts what
    early versions saved, without seeing the file itself.

    :param stored: the model in its zip
    :param config: the Zoo's ``config.yml``, for schedules that the zip does not have
    :param observation_space: of the environment as it is today; its bounds may differ from those in the zip
    :return: the model
    :raises RefineError: when it is damaged
    """
    cls = _algo_class(stored.algo)
    data = dict(stored.attributes)
    _restore_schedules(stored.path, data, config, cls)
    _adapt_old_attributes(data)
    if _differ_in_bounds_only(data["observation_space"], observation_space):
        data["observation_space"] = observation_space  # so that SB3 accepts the environment for further training
    instead = _without_buffer(data)
    own = {name: data[name] for name in instead if name in data}
    data.update(instead)
    try:
        with warnings.catch_warnings(), _Building(stored):
            warnings.filterwarnings("ignore", "You are probably loading a", UserWarning)  # and SB3 adapts it
            model = cls.load(_zip_of(stored, data), device="cpu", custom_objects=data)
        _check_optimizers(model)
    except Exception as error:
        raise RefineError(
            f"{stored.path}: Stable-Baselines3 cannot load it ({type(error).__name__}: {one_line(error)}); "
            "download or save it again"
        ) from error
    vars(model).update(own)
    sync_copies(model)
    return model


def _zip_of(stored: StoredModel, data: dict[str, Any]) -> io.BytesIO:
    """A zip that Stable-Baselines3 loads, with the names of the attributes but not their values."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data", json.dumps(dict.fromkeys(data)))
        for name, content in {**stored.parameters, "pytorch_variables": stored.variables}.items():
            with archive.open(f"{name}.pth", "w", force_zip64=True) as member:
                th.save(content, member)
    file.seek(0)
    return file


class _Building(TorchFunctionMode):
    """
    A network is not built larger than its file, whatever the file says of its layers, and not initialised by a
    factorisation that takes long: the file's parameters replace the initial ones.

    :param stored: the model in its zip
    """

    def __init__(self, stored: StoredModel):
        super().__init__()
        self._numbers_left = stored.n_parameters + _MAX_EXTRA_NUMBERS
        self._tensors_left = 2 * len(stored.distinct_parameters) + _MAX_EXTRA_TENSORS

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is th.empty:
            shape = args[0] if args and isinstance(args[0], (tuple, list)) else args
            self._numbers_left -= math.prod(shape)
            self._tensors_left -= math.prod(shape) > 0
            if self._numbers_left < 0 or self._tensors_left < 0:
                raise MemoryError("its networks are larger than its parameters")
        if func is th.linalg.qr:  # of orthogonal initialisation
            n = min(args[0].shape)
            return args[0], args[0].new_ones(1).expand(n, n)
        return func(*args, **(kwargs or {}))


def _check_optimizers(model: BaseAlgorithm) -> None:
    """torch accepts a state of any shape for a parameter, and fails only in training."""
    for name in model._get_torch_save_params()[0]:
        owner: Any = model
        for part in name.split("."):
            owner = getattr(owner, part)
        for parameter, state in getattr(owner, "state", {}).items():
            for value in state.values():
                if isinstance(value, th.Tensor) and value.numel() != 1 and value.shape != parameter.shape:
                    raise ValueError(f"{name} has a state of shape {tuple(value.shape)}, not {tuple(parameter.shape)}")


def algo_of(model: BaseAlgorithm) -> str:
    """
    :param model: a model in memory
    :return: the Zoo's name of its algorithm
    :raises RefineError: when it cannot be refined
    """
    for algo in ALGOS:
        if type(model) is _algo_class(algo):
            return algo
    raise RefineError(
        f"model: {type(model).__name__} is not one of the algorithms {', '.join(ALGOS)}; load it as one of them"
    )


def sync_copies(model: BaseAlgorithm) -> None:
    """
    Update the copy of the parameters that ARS keeps and trains further.

    :param model: a model whose policy has changed
    """
    if type(model).__name__ == "ARS":
        model.weights = th.nn.utils.parameters_to_vector(model.policy.parameters()).detach()  # type: ignore[attr-defined]


def fits(space: spaces.Space, env_space: spaces.Space) -> bool:
    """
    :param space: of a model
    :param env_space: of an environment
    :return: whether they have the same shapes; bounds may differ, and images may have their channels first or last
    """
    if isinstance(space, spaces.Dict) and isinstance(env_space, spaces.Dict):
        same_keys = space.spaces.keys() == env_space.spaces.keys()
        return same_keys and all(fits(part, env_space[key]) for key, part in space.spaces.items())
    if isinstance(space, spaces.Box) != isinstance(env_space, spaces.Box):
        return False
    as_it_is = shape_of(space) == shape_of(env_space)
    return as_it_is or shape_of(_channels_first(space)) == shape_of(_channels_first(env_space))


def _channels_first(space: spaces.Space) -> spaces.Space:
    if isinstance(space, spaces.Box) and is_image_space(space) and not is_image_space_channels_first(space):
        return VecTransposeImage.transpose_space(space)
    return space


def shape_of(space: spaces.Space) -> Any:
    """
    :param space: any space
    :return: what two spaces must have in common to fit; bounds may differ
    """
    if isinstance(space, spaces.Dict):
        return {key: shape_of(part) for key, part in space.spaces.items()}
    if isinstance(space, spaces.MultiDiscrete):
        return tuple(space.nvec.ravel().tolist())
    return int(space.n) if isinstance(space, spaces.Discrete) else space.shape


def trained_under_vec_normalize(stored: StoredModel) -> bool:
    """
    :param stored: a model in a zip
    :return: whether VecNormalize stood between it and its environment, as far as the zip shows: on-policy algorithms
        note the original observation then, and only then; off-policy ones always do, so False for them
    """
    return "gae_lambda" in stored.attributes and stored.had_original_obs


def _without_buffer(data: dict[str, Any]) -> dict[str, Any]:
    """Attributes that replace a model's own if its replay buffer would be too large or needs an environment."""
    if "HerReplayBuffer" in str(data.get("replay_buffer_class")):  # needs an environment
        return {"replay_buffer_class": None, "replay_buffer_kwargs": {}, "optimize_memory_usage": False}
    space = data["observation_space"]
    parts = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
    n_bytes = sum(2 * math.prod(part.shape or ()) * np.dtype(part.dtype).itemsize for part in parts)
    if n_bytes * data.get("buffer_size", 0) <= _MAX_BUFFER_GB * 1e9:
        return {}
    logger.info("its replay buffer is not allocated; to train on, load the saved zip with Stable-Baselines3")
    return {"buffer_size": 1}


def _differ_in_bounds_only(space: spaces.Space, env_space: spaces.Space) -> bool:
    """Whether shapes and types are the same; a normalised image, for example, has another type."""
    if isinstance(space, spaces.Dict) and isinstance(env_space, spaces.Dict):
        same_keys = space.spaces.keys() == env_space.spaces.keys()
        return same_keys and all(_differ_in_bounds_only(part, env_space[key]) for key, part in space.spaces.items())
    return shape_of(space) == shape_of(env_space) and space.dtype == env_space.dtype


def _adapt_old_attributes(data: dict[str, Any]) -> None:
    """Adapt attributes saved by early versions of Stable-Baselines3, so that training can go on."""
    if "buffer_size" in data:
        kwargs = dict(data.get("replay_buffer_kwargs") or {})
        for name in ("online_sampling", "max_episode_length"):
            kwargs.pop(name, None)
        if data.get("optimize_memory_usage"):  # which early versions allowed with the other
            kwargs["handle_timeout_termination"] = False
        data["replay_buffer_kwargs"] = kwargs
    noise = data.get("action_noise")
    if isinstance(noise, ActionNoise) and not hasattr(noise, "_dtype"):
        noise._dtype = np.float32  # type: ignore[attr-defined]
    n_episodes = data.get("n_episodes_rollout", -1)
    if data.get("train_freq") == -1 and n_episodes > 0:
        data["train_freq"] = TrainFreq(n_episodes, TrainFrequencyUnit.EPISODE)


def _algo_class(algo: str) -> type[BaseAlgorithm]:
    module, _, name = ALGOS[algo].rpartition(".")
    return getattr(import_module(module), name)


def _restore_schedules(path: Path, data: dict[str, Any], config: dict[str, Any], cls: type[BaseAlgorithm]) -> None:
    """
    Put back what training used where the zip does not have it, so that training can go on: loading with schedules of
    0, as the Zoo does to run an agent, leaves them in whatever is saved afterwards.
    """
    for name in ("learning_rate", "clip_range", "clip_range_vf"):
        value = data.get(name)
        if value is None:
            continue
        unreadable = isinstance(value, UnreadableSchedule)
        if unreadable and name not in config:
            raise RefineError(
                f"{path}: its {name} is the author's own code, {value.name}, which is not run; name a number in "
                f"config.yml, or {TRUST}"
            )
        if unreadable or (value(1.0) if callable(value) else value) == 0:
            data[name] = _zoo_schedule(name, config.get(name, inspect.signature(cls).parameters[name].default))
    if "delta_std_schedule" in data:  # ARS does not store its arguments
        value = data["delta_std_schedule"]
        if isinstance(value, UnreadableSchedule):
            value = _zoo_schedule("delta_std", config.get("delta_std", 0.05))
        data["delta_std_schedule"] = FloatSchedule(value)


def _zoo_schedule(name: str, value: Any) -> Any:
    """The Zoo's ``lin_0.001`` is linear to 0; numbers are constant."""
    if callable(value):
        return value
    is_linear = isinstance(value, str) and value.startswith("lin_")
    try:
        number = float(value.removeprefix("lin_") if is_linear else value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise RefineError(f"config.yml: {name}: expected a number or lin_NUMBER, got {value!r}")
    return LinearSchedule(number, 0.0, 1.0) if is_linear else number
