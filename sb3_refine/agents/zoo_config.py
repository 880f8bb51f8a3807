"""From ``config.yml`` and ``args.yml`` to the environment that an agent was trained on."""

import logging
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize

from sb3_refine.agents.decoding.literals import literal
from sb3_refine.agents.decoding.pickle_tree import DecodingError
from sb3_refine.agents.decoding.zoo_expressions import without_code
from sb3_refine.agents.decoding.zoo_yaml import read_zoo_yaml
from sb3_refine.agents.imports import check_importable
from sb3_refine.envs.families import changes_since, current_env_id
from sb3_refine.envs.normalisation import Normalised
from sb3_refine.envs.spec import EnvRecipe, VecWrapper
from sb3_refine.errors import RefineError, check_count

logger = logging.getLogger(__name__)


def read_config(path: Path) -> dict[str, Any]:
    """The Zoo's ``config.yml``, without code that the Zoo would run when it reads the saved agent."""
    config = read_zoo_yaml(path)
    normalizes_observations(config.get("normalize"))  # checks that a text is a literal, which is then saved as it is
    return without_code(config)


def normalizes_observations(normalize: Any) -> bool:
    """
    The Zoo's ``normalize``: a boolean, or keyword arguments of VecNormalize as a mapping or as text.

    :raises RefineError: when the text is not a literal
    """
    if isinstance(normalize, str):
        try:
            normalize = literal(normalize)
        except DecodingError as error:
            raise RefineError(f"config.yml: normalize: {error}") from None
    if isinstance(normalize, dict):
        return bool(normalize.get("norm_obs", True))
    return bool(normalize)


# ---------------------------------------------------------------- environments


def recipe_of(
    env: str,
    config: dict[str, Any],
    args: dict[str, Any],
    env_kwargs: dict[str, Any] | None,
    gym_packages: tuple[str, ...] | list[str],
) -> EnvRecipe:
    stored: dict[str, Any] = {}
    for name, content in (("config.yml", config), ("args.yml", args)):
        kwargs = content.get("env_kwargs") or {}
        if not isinstance(kwargs, dict) or not all(isinstance(key, str) for key in kwargs):
            raise RefineError(f"{name}: env_kwargs: expected a mapping of names to values, got {kwargs!r}")
        stored.update(kwargs)
    stored.pop("render_mode", None)  # rollouts show nothing
    stored = {name: value for name, value in stored.items() if name not in (env_kwargs or {})}
    for name, value in stored.items():
        remedy = "if you trust it, give it in `env_kwargs`"
        check_stored_arguments(f"env_kwargs: {name}", value, remedy)
    env_id = current_env_id(env)
    if env_id != env:
        logger.info("%s is called %s today, and is saved under that name", env, env_id)
    kwargs_then, wrappers_then = changes_since(env)
    named_by_user = tuple(gym_packages)
    wanted = args.get("gym_packages") or []
    if not isinstance(wanted, list) or not all(isinstance(package, str) for package in wanted):
        raise RefineError(f"args.yml: gym_packages: expected a list of modules, got {wanted!r}")
    wrappers = parse_wrappers(config.get("env_wrapper"))
    for package in wanted:
        check_importable(package, "args.yml: gym_packages", named_by_user)
    for name, wrapper_kwargs in wrappers:
        check_importable(name.rpartition(".")[0], "config.yml: env_wrapper", named_by_user)
        check_stored_arguments(f"config.yml: env_wrapper: {name}", wrapper_kwargs)
    return EnvRecipe(
        env_id=env_id,
        env_kwargs={**kwargs_then, **stored, **(env_kwargs or {})},
        wrappers=wrappers_then + wrappers,
        gym_packages=tuple(dict.fromkeys((*named_by_user, *wanted))),
    )


def vec_wrappers_of(
    config: dict[str, Any], statistics: VecNormalize | None, gym_packages: tuple[str, ...]
) -> tuple[Callable[[Any], Any], ...]:
    """The Zoo's order: the agent's own wrappers, normalisation, frame stacking. Outermost, the policy normalises."""
    named = parse_wrappers(config.get("vec_env_wrapper"), "vec_env_wrapper")
    for name, wrapper_kwargs in named:
        check_importable(name.rpartition(".")[0], "config.yml: vec_env_wrapper", gym_packages)
        check_stored_arguments(f"config.yml: vec_env_wrapper: {name}", wrapper_kwargs)
    wrappers: list[Callable[[Any], Any]] = [VecWrapper(name, kwargs) for name, kwargs in named]
    n_stack = config.get("frame_stack")
    if n_stack:
        check_count("config.yml: frame_stack", n_stack, 1, at_most=1000)
        if statistics is not None and statistics.norm_obs:
            wrappers.append(Normalised(statistics))
        wrappers.append(partial(VecFrameStack, n_stack=n_stack))
    return tuple(wrappers)


_MOVED_WRAPPERS = {
    "utils.wrappers.TimeFeatureWrapper": "sb3_contrib.common.wrappers.TimeFeatureWrapper",
    "rl_zoo3.wrappers.TimeFeatureWrapper": "sb3_contrib.common.wrappers.TimeFeatureWrapper",
    "sb3_contrib.common.wrappers.time_feature.TimeFeatureWrapper": "sb3_contrib.common.wrappers.TimeFeatureWrapper",
    # saved by sb3_refine 0.1
    "sb3_refine.wrappers.GoalInObservation": "sb3_refine.envs.wrappers.GoalInObservation",
    "sb3_refine.wrappers.ZeroContactForces": "sb3_refine.envs.wrappers.ZeroContactForces",
}


def parse_wrappers(env_wrapper: Any, key: str = "env_wrapper") -> tuple[tuple[str, dict[str, Any]], ...]:
    """
    Read the Zoo's ``env_wrapper``: a dotted name, a ``{name: kwargs}`` mapping, or a list of these.

    :param env_wrapper: the value in ``config.yml``
    :param key: its name there
    :return: names and keyword arguments, innermost wrapper first
    :raises RefineError: for anything else
    """
    if not env_wrapper:
        return ()
    wrappers: list[tuple[str, dict[str, Any]]] = []
    for item in env_wrapper if isinstance(env_wrapper, list) else [env_wrapper]:
        if isinstance(item, str) and "." in item:
            wrappers.append((item, {}))
        elif isinstance(item, dict) and len(item) == 1 and "." in str(next(iter(item))):
            name, kwargs = next(iter(item.items()))
            if not isinstance(kwargs or {}, dict):
                raise RefineError(f"config.yml: {key}: {name}: expected a mapping of arguments, got {kwargs!r}")
            wrappers.append((str(name), dict(kwargs or {})))
        else:
            raise RefineError(f"config.yml: {key}: expected a dotted name or {{name: kwargs}}, got {item!r}")
    if len(wrappers) > _MAX_WRAPPERS:
        raise RefineError(f"config.yml: {key}: expected at most {_MAX_WRAPPERS} wrappers, got {len(wrappers)}")
    return tuple((_MOVED_WRAPPERS.get(name, name), kwargs) for name, kwargs in wrappers)


_MAX_ARGUMENT = 10**6
_MAX_TEXT = 1000
_MAX_VALUES = 1000
_MAX_WRAPPERS = 20


def check_stored_arguments(where: str, arguments: Any, remedy: str = "change it in the file if you trust it") -> None:
    """
    Check arguments of an environment or a wrapper that come from an agent's files.

    :param where: the entry, for the message
    :param arguments: plain values
    :param remedy: for the message
    :raises RefineError: for paths, which would be read from this machine, and for very large numbers
    """
    values, n_values = [arguments], 0
    while values:
        value, n_values = values.pop(), n_values + 1
        if isinstance(value, dict):
            values += value.values()
        elif isinstance(value, (list, tuple)):
            values += value
        elif isinstance(value, str) and (set(value) & set("/\\~:")):
            what = f"{value[:80]!r} may be a path or a module"
            raise RefineError(f"{where}: {what}, and these are not taken from files; {remedy}")
        is_number = isinstance(value, (int, float)) and value not in (math.inf, -math.inf)
        if (is_number and abs(value) > _MAX_ARGUMENT) or (isinstance(value, str) and len(value) > _MAX_TEXT):
            raise RefineError(f"{where}: {str(float(value)) if is_number else 'a long text'} is out of range; {remedy}")
        if n_values > _MAX_VALUES:
            raise RefineError(f"{where}: more than {_MAX_VALUES} values; {remedy}")
