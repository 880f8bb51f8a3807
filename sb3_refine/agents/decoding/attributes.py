"""Which attributes of a stored model are read, for each algorithm, and what each may be. A file cannot add others."""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from stable_baselines3.her.goal_selection_strategy import GoalSelectionStrategy

from sb3_refine.agents.decoding.arrays import finite, flag, limit, numpy_value, shown, whole
from sb3_refine.agents.decoding.objects import action_noise, known_class, space, train_freq
from sb3_refine.agents.decoding.pickle_tree import Call, DecodingError, Node, call_of, mapping, plain, unknown
from sb3_refine.agents.decoding.schedules import schedule

Check: TypeAlias = Callable[[Node], Any]
"""Gives the value of a node, or raises :class:`~sb3_refine.agents.decoding.pickle_tree.DecodingError`."""

_MAX_STEPS = 2**53
_MAX_TEXT = 100
_MAX_KEYS = 64
_MAX_VALUES = 1000  # of an argument of the policy


def _whole(low: int, high: int = _MAX_STEPS) -> Check:
    return lambda node: whole(node, low, high)


def _number(low: float = -np.inf, high: float = np.inf) -> Check:
    return lambda node: finite(node, low, high)


def _verbosity(node: Node) -> int:
    """A boolean is allowed, too."""
    return int(node) if isinstance(node, bool) else whole(node, 0, 100)


def _optional(check: Check) -> Check:
    return lambda node: None if node is None else check(node)


def _number_or_auto(node: Node) -> Any:
    """``ent_coef`` and ``target_entropy`` of SAC, TQC and CrossQ."""
    if not isinstance(node, str):
        finite(node)
        return numpy_value(node)
    rest = node.removeprefix("auto")
    try:
        if node == "auto" or (rest.startswith("_") and np.isfinite(float(rest[1:]))):
            return node
    except ValueError:
        pass
    raise DecodingError(f"expected a number, auto, or auto_NUMBER, got {shown(node)}")


def _class_for(use: str) -> Check:
    return lambda node: known_class(node, use)


def _policy_kwargs(node: Node) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if node is None:
        return found
    for key, value in _few(mapping(node)).items():
        if key in ("activation_fn", "features_extractor_class", "optimizer_class"):
            found[key] = known_class(value, key)
        elif key != "device":  # Stable-Baselines3 drops the one in the file, too
            found[key] = _small_plain(value)
    return found


def _few(arguments: dict[str, Node]) -> dict[str, Node]:
    if len(arguments) > _MAX_KEYS:
        raise DecodingError(f"{len(arguments)} arguments")
    return arguments


def _buffer_kwargs(node: Node) -> dict[str, Any]:
    return {} if node is None else {key: _buffer_argument(value) for key, value in _few(mapping(node)).items()}


def _buffer_argument(node: Node) -> Any:
    strategy = ("stable_baselines3.her.goal_selection_strategy", "GoalSelectionStrategy")
    if call_of(node) == strategy and len(node.arguments) == 1:
        values = [member.value for member in GoalSelectionStrategy]
        if node.arguments[0] not in values:
            raise DecodingError("an unknown goal selection strategy")
        return GoalSelectionStrategy(node.arguments[0])
    return _small_plain(node)


def _small_plain(node: Node) -> Any:
    value = plain(node, _scalar, max_values=_MAX_VALUES)
    return _with_finite_numbers(value)


def _scalar(call: Call) -> Any:
    if call_of(call)[1] != "scalar":
        raise unknown(call)
    return numpy_value(call).item()


def _with_finite_numbers(value: Any) -> Any:
    """The value, if it is made of numbers and short text only."""
    if isinstance(value, dict):
        return {key: _with_finite_numbers(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_with_finite_numbers(part) for part in value)
    if isinstance(value, float) and not np.isfinite(value):
        raise DecodingError("NaN or infinity among its numbers")
    if isinstance(value, int) and abs(value) > 2**53:
        raise DecodingError("a whole number out of range")
    if isinstance(value, (str, bytes)) and len(value) > _MAX_TEXT:
        raise DecodingError("a text that is too long")
    return value


_COMMON: dict[str, Check] = {
    "policy_class": _class_for("policy_class"),
    "policy_kwargs": _policy_kwargs,
    "observation_space": space,
    "action_space": space,
    "n_envs": _whole(1, 10_000),
    "num_timesteps": _whole(0),
    "_total_timesteps": _whole(0),
    "_num_timesteps_at_start": _whole(0),
    "_n_updates": _whole(0),
    "_episode_num": _whole(0),
    "_current_progress_remaining": _number(-1e9, 1),
    "_stats_window_size": _whole(1, 10**6),
    "start_time": _number(0),
    "seed": _optional(_whole(0, 2**32 - 1)),
    "verbose": _verbosity,
    "learning_rate": schedule,
    "use_sde": flag,
    "sde_sample_freq": _whole(-1),
    "action_noise": action_noise,
}

_ON_POLICY: dict[str, Check] = {
    **_COMMON,
    "n_steps": _whole(1, 10**7),
    "gamma": _number(0, 1),
    "gae_lambda": _number(0, 1),
    "ent_coef": _number(),
    "vf_coef": _number(),
    "max_grad_norm": limit,
    "normalize_advantage": flag,
    "rollout_buffer_class": _optional(_class_for("rollout_buffer_class")),
    "rollout_buffer_kwargs": _buffer_kwargs,
}

_OFF_POLICY: dict[str, Check] = {
    **_COMMON,
    "buffer_size": _whole(1, 10**9),
    "learning_starts": _whole(0),
    "batch_size": _whole(1, 10**7),
    "tau": _number(0, 1),
    "gamma": _number(0, 1),
    "gradient_steps": _whole(-1),
    "n_steps": _whole(1, 10**6),
    "optimize_memory_usage": flag,
    "replay_buffer_class": _optional(_class_for("replay_buffer_class")),
    "replay_buffer_kwargs": _buffer_kwargs,
    "train_freq": train_freq,
    "n_episodes_rollout": _whole(-1),
    "use_sde_at_warmup": flag,
}

_PPO: dict[str, Check] = {
    **_ON_POLICY,
    "batch_size": _whole(1, 10**7),
    "n_epochs": _whole(1, 10**6),
    "clip_range": schedule,
    "clip_range_vf": schedule,
    "target_kl": _optional(limit),
}

_SAC: dict[str, Check] = {
    **_OFF_POLICY,
    "ent_coef": _number_or_auto,
    "target_entropy": _number_or_auto,
    "target_update_interval": _whole(1),
}

_TD3: dict[str, Check] = {
    **_OFF_POLICY,
    "policy_delay": _whole(1),
    "target_noise_clip": limit,
    "target_policy_noise": _number(0),
}

_DQN: dict[str, Check] = {
    **_OFF_POLICY,
    "exploration_initial_eps": _number(0, 1),
    "exploration_final_eps": _number(0, 1),
    "exploration_fraction": _number(0, 1),
    "exploration_rate": _number(0, 1),
    "target_update_interval": _whole(1),
    "max_grad_norm": _optional(limit),
    "_n_calls": _whole(0),
}

ATTRIBUTES: dict[str, dict[str, Check]] = {
    "a2c": _ON_POLICY,
    "ars": {
        **_COMMON,
        "n_delta": _whole(1, 10**6),
        "n_top": _whole(1, 10**6),
        "n_eval_episodes": _whole(1, 10**6),
        "pop_size": _whole(1, 10**7),
        "alive_bonus_offset": _number(),
        "zero_policy": flag,
        "old_count": _number(),
        "delta_std_schedule": schedule,
    },
    "crossq": {**_SAC, "policy_delay": _whole(1)},
    "ddpg": _TD3,
    "dqn": _DQN,
    "ppo": _PPO,
    "ppo_lstm": _PPO,
    "ppo_mask": _PPO,
    "qrdqn": {**_DQN, "n_quantiles": _whole(1, 10**5)},
    "sac": _SAC,
    "td3": _TD3,
    "tqc": {**_SAC, "top_quantiles_to_drop_per_net": _whole(0, 10**5)},
    "trpo": {
        **_ON_POLICY,
        "batch_size": _whole(1, 10**7),
        "target_kl": limit,
        "cg_damping": _number(),
        "cg_max_steps": _whole(1, 10**6),
        "line_search_max_iter": _whole(1, 10**6),
        "line_search_shrinking_factor": _number(),
        "n_critic_updates": _whole(0, 10**6),
        "sub_sampling_factor": _whole(1, 10**6),
    },
}
"""
By the Zoo's name of the algorithm: what is read of a stored model. Everything else in the file is left there: buffers
of episode statistics, the last observations, paths, what Stable-Baselines3 makes anew when it loads.
"""

REQUIRED = ("policy_class", "observation_space", "action_space", "learning_rate")
"""Attributes without which no model can be built."""
