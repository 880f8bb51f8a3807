"""Agents from models in memory and their environments."""

import logging
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import yaml
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize, unwrap_vec_normalize

from sb3_refine.agents.agent import Agent, check_fit, statistics_for_policy
from sb3_refine.agents.existing_env import (
    CHECKS,
    EnvMaker,
    Wrapping,
    arguments_of,
    chain_of,
    recipe_of,
    time_limit_of,
    wrappers_missing_in,
)
from sb3_refine.agents.sb3_models import algo_of
from sb3_refine.agents.zoo import zoo_yaml
from sb3_refine.envs.normalisation import without_env
from sb3_refine.envs.spec import EnvRecipe
from sb3_refine.envs.wrappers import TrueReturn, Vectorised
from sb3_refine.errors import RefineError

logger = logging.getLogger(__name__)


def agent_from_model(model: BaseAlgorithm, env: str | Callable[[], gym.Env] | VecEnv | gym.Env | None = None) -> Agent:
    """
    Wrap a model in memory. The model itself is used, not a copy.

    :param model: a Stable-Baselines3 model
    :param env: id of its environment, a callable that makes the environment with its wrappers (such as its class), a
        ``VecEnv`` (its ``VecNormalize`` statistics are kept), an environment, or None for the model's own
    :return: the agent
    :raises RefineError: when the environment cannot be built again in another process
    """
    algo = algo_of(model)
    source = model.get_env() if env is None else env
    statistics = unwrap_vec_normalize(source) if isinstance(source, VecEnv) else None
    if statistics is None:
        statistics = model.get_vec_normalize_env()
    if source is None:
        raise RefineError("env: the model was loaded without an environment; pass its id or a callable that makes it")
    if statistics is not None:
        statistics = without_env(statistics)
    recipe = recipe_of(source)
    built = recipe.build()
    try:
        if env is not None:
            _warn_about_missing_wrappers(built, model.get_env())
        check_fit(model, statistics, built.observation_space, built.action_space, recipe)
        spec = built.spec
        wrappers, left_out = _wrappers_for_the_zoo(recipe, built)
        return Agent(
            model=model,
            algo=algo,
            env_name=(spec.id if spec is not None else type(built.unwrapped).__name__).replace("/", "-"),
            recipe=recipe,
            observation_space=built.observation_space,
            vec_normalize=statistics,
            config=_minimal_config(model, wrappers, statistics, recipe),
            args={"env": spec.id if spec is not None else None, "env_kwargs": _env_kwargs(spec)},
            source={"path": None, "sha256": None},
            left_out=left_out,
        )
    finally:
        built.close()


def _warn_about_missing_wrappers(built: gym.Env, own: VecEnv | None) -> None:
    missing = [] if own is None else wrappers_missing_in(built, own)
    inner = own.unwrapped if own is not None else None
    limits = (time_limit_of(inner.envs[0]), time_limit_of(built)) if isinstance(inner, DummyVecEnv) else (None, None)
    if limits[0] != limits[1]:
        logger.warning(
            "env: episodes of the model's own environment end after %s steps, those of `env` after %s: returns differ",
            *(each or "any number of" for each in limits),
        )
    if missing:
        logger.warning(
            "env: the model's own environment has %s, which `env` has not: episodes and returns may differ. Pass a "
            "callable that makes the environment with its wrappers, or leave `env` out",
            " and ".join(missing),
        )


def _wrappers_for_the_zoo(recipe: EnvRecipe, built: gym.Env) -> tuple[list[Wrapping], tuple[str, ...]]:
    """Those that ``config.yml`` can name: importable, with arguments that are data; and the names of the others."""
    if isinstance(recipe.make, EnvMaker):
        wrappers: list[Any] = list(recipe.make.wrappers)
    else:
        own = [each for each in chain_of(built) if not isinstance(each, (Monitor, *CHECKS))]
        wrappers = [(type(each), partial(arguments_of, each)) for each in own]
    found: list[Wrapping] = []
    left_out: list[str] = []
    for cls, given in wrappers:
        if cls in (TrueReturn, Vectorised, TimeLimit):  # made again from the config and from env_kwargs
            continue
        try:
            kwargs = given() if callable(given) else given
            if not _is_importable(cls):
                raise RefineError(f"{cls} is not importable")
            zoo_yaml({"env_wrapper": [{str(cls): kwargs}]})
        except (RefineError, yaml.YAMLError):
            left_out.append(cls.__name__)
        else:
            found.append((cls, kwargs))
    if left_out:
        logger.warning(
            "config.yml: cannot name the wrapper %s: the Zoo, and `sb3-refine evaluate`, would run the saved agent "
            "without it; load it in Python, with your environment",
            " and ".join(left_out),
        )
        found = []
    return found, tuple(left_out)


def _is_importable(cls: Any) -> bool:
    module = sys.modules.get(cls.__module__)
    return cls.__module__ != "__main__" and getattr(module, cls.__qualname__, None) is cls


def _env_kwargs(spec: Any) -> dict[str, Any] | None:
    """Arguments of ``gymnasium.make`` that an environment was made with."""
    if spec is None:
        return None
    kwargs = dict(spec.kwargs)
    registered = gym.registry.get(spec.id)
    if registered is None or registered.max_episode_steps != spec.max_episode_steps:
        kwargs["max_episode_steps"] = spec.max_episode_steps
    return kwargs or None


def _minimal_config(
    model: BaseAlgorithm, wrappers: Sequence[Wrapping], statistics: VecNormalize | None, recipe: EnvRecipe
) -> dict[str, Any]:
    """The part of the Zoo's ``config.yml`` that its tools need to run an agent."""
    aliases = {cls: name for name, cls in model.policy_aliases.items()}
    config: dict[str, Any] = {
        "policy": aliases.get(type(model.policy), "MlpPolicy"),
        "normalize": statistics is not None,
    }
    named = [{f"{cls.__module__}.{cls.__qualname__}": kwargs} for cls, kwargs in wrappers]
    if named:
        config["env_wrapper"] = named
    stacks = [wrapper for wrapper in recipe.vec_wrappers if isinstance(wrapper, partial)]
    if stacks:
        config["frame_stack"] = stacks[0].keywords["n_stack"]
        if statistics is not None and statistics_for_policy(statistics, recipe) is not None:
            raise RefineError(
                "env: a VecNormalize around a VecFrameStack cannot be written in the Zoo's config.yml; swap the two, "
                "as the Zoo does"
            )
    return config
