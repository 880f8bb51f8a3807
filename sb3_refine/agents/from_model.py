"""Agents from models in memory and their environments."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import WrapperSpec, load_env_creator
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
    unwrap_vec_normalize,
)

from sb3_refine.agents.agent import Agent, check_fit, statistics_for_policy
from sb3_refine.agents.sb3_models import algo_of
from sb3_refine.envs.families import current_env_id
from sb3_refine.envs.normalisation import Normalised, without_env
from sb3_refine.envs.spec import EnvRecipe, import_env_package
from sb3_refine.errors import RefineError


def agent_from_model(model: BaseAlgorithm, env: str | Callable[[], gym.Env] | VecEnv | gym.Env | None = None) -> Agent:
    """
    Wrap a model in memory. The model itself is used, not a copy.

    :param model: a Stable-Baselines3 model
    :param env: id of its environment, a callable that makes the raw environment, a ``VecEnv`` (its ``VecNormalize``
        statistics are kept), an environment made by ``gymnasium.make``, or None for the model's own
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
    recipe = _recipe_from_env(source)
    built = recipe.build()
    try:
        check_fit(model, statistics, built.observation_space, built.action_space, recipe)
        spec = built.spec
        return Agent(
            model=model,
            algo=algo,
            env_name=(spec.id if spec is not None else type(built.unwrapped).__name__).replace("/", "-"),
            recipe=recipe,
            observation_space=built.observation_space,
            vec_normalize=statistics,
            config=_minimal_config(model, spec, statistics, recipe),
            args={"env": spec.id if spec is not None else None, "env_kwargs": _env_kwargs(spec)},
            source={"path": None, "sha256": None},
        )
    finally:
        built.close()


def _recipe_from_env(env: str | Callable[[], gym.Env] | VecEnv | gym.Env) -> EnvRecipe:
    if isinstance(env, str):
        env_id = current_env_id(env)
        import_env_package(env_id)
        return EnvRecipe(env_id, make=_maker(gym.spec(env_id)))  # the caller's script may have registered it
    if isinstance(env, (VecEnv, gym.Env)):
        return _recipe_from_instance(env)
    if callable(env):
        return EnvRecipe(None, make=env)
    raise RefineError(f"env: expected an id, a callable, a VecEnv or an environment, got {type(env).__name__}")


_REMEDY = "pass a callable that makes the raw environment, or its id"
_TIME_FEATURE = "sb3_contrib.common.wrappers.time_feature:TimeFeatureWrapper"
_MONITOR = "stable_baselines3.common.monitor:Monitor"
_TRUE_RETURN = "sb3_refine.envs.wrappers:TrueReturn"
_VECTORISED = "sb3_refine.envs.wrappers:Vectorised"


def _recipe_from_instance(env: VecEnv | gym.Env) -> EnvRecipe:
    """A recipe for an existing environment, from the spec and the wrappers that gymnasium recorded."""
    vec_wrappers: list[Callable[[Any], Any]] = []
    while isinstance(env, VecEnvWrapper):
        if isinstance(env, VecNormalize):
            vec_wrappers.insert(0, Normalised(without_env(env)))
        elif isinstance(env, VecFrameStack):
            vec_wrappers.insert(0, _frame_stack(env.stacked_obs))
        elif not isinstance(env, (VecTransposeImage, VecMonitor)):  # predict transposes itself
            raise RefineError(f"env: a {type(env).__name__} cannot be built again in a worker; {_REMEDY}")
        env = env.venv
    if vec_wrappers and isinstance(vec_wrappers[-1], Normalised):  # the policy normalises
        vec_wrappers.pop()
    specs = env.get_attr("spec") if isinstance(env, VecEnv) else [env.spec]
    if any(spec != specs[0] for spec in specs):
        raise RefineError(f"env: its {len(specs)} environments differ; {_REMEDY}")
    spec = specs[0]
    if spec is None:
        inner = env.get_attr("unwrapped", 0)[0] if isinstance(env, DummyVecEnv) else env
        raise RefineError(f"env: {type(inner).__name__} was not made by gymnasium.make; {_REMEDY}")
    return EnvRecipe(spec.id, vec_wrappers=tuple(vec_wrappers), make=_maker(_complete(spec, env)))


def _frame_stack(stack: Any) -> Callable[[Any], VecFrameStack]:
    """Make the same frame stack again from Stable-Baselines3's ``StackedObservations``."""
    parts = getattr(stack, "sub_stacked_observations", None)
    if parts is None:
        return partial(VecFrameStack, n_stack=stack.n_stack, channels_order=_order_of(stack))
    order: Any = {key: _order_of(part) for key, part in parts.items()}
    return partial(VecFrameStack, n_stack=next(iter(parts.values())).n_stack, channels_order=order)


def _order_of(stack: Any) -> str:
    return "first" if stack.channels_first else "last"


def _complete(spec: Any, env: VecEnv | gym.Env) -> Any:
    """The spec, with arguments of known wrappers that gymnasium did not record."""
    wrappers = []
    for wrapper in spec.additional_wrappers:
        if wrapper.entry_point == _MONITOR:  # counts the rewards of the environment that it wraps
            wrappers.append(WrapperSpec("TrueReturn", _TRUE_RETURN, {}))
            continue
        kwargs = wrapper.kwargs
        if kwargs is None and wrapper.entry_point == _TIME_FEATURE:
            kwargs = {name: _attribute_of(env, f"_{name}") for name in ("max_steps", "test_mode")}
        if kwargs is None:
            name = wrapper.entry_point.replace(":", ".")
            raise RefineError(f"env: the wrapper {name} cannot be built again in a worker; {_REMEDY}")
        wrappers.append(replace(wrapper, kwargs=kwargs))
    if all(wrapper.entry_point in (_TRUE_RETURN, _TIME_FEATURE) for wrapper in wrappers):  # no wrapper changes rewards
        wrappers = [wrapper for wrapper in wrappers if wrapper.entry_point != _TRUE_RETURN]
    return replace(spec, additional_wrappers=tuple(wrappers))


def _attribute_of(env: VecEnv | gym.Env, name: str) -> Any:
    return env.get_attr(name, 0)[0] if isinstance(env, VecEnv) else env.get_wrapper_attr(name)


@dataclass(frozen=True)
class _SpecMaker:
    """Makes an environment from its gymnasium spec, and wraps it."""

    spec: Any
    wrappers: tuple[tuple[Callable[..., gym.Env], dict[str, Any]], ...]

    def __call__(self) -> gym.Env:
        env = gym.make(self.spec)
        for wrapper, kwargs in self.wrappers:
            env = wrapper(env, **kwargs)
        return env


_MAIN_MODULE = "__main__:"


def _maker(spec: Any) -> _SpecMaker:
    """Classes that the caller's script defines are sent to the workers by value: workers cannot import them by name."""
    wrappers = spec.additional_wrappers
    is_ours = [wrapper.entry_point.startswith(_MAIN_MODULE) for wrapper in wrappers]
    n_theirs = is_ours.index(True) if any(is_ours) else len(wrappers)
    spec = replace(spec, additional_wrappers=wrappers[:n_theirs])
    try:
        if str(spec.entry_point).startswith(_MAIN_MODULE):
            spec = replace(spec, entry_point=load_env_creator(spec.entry_point))
        ours: Any = [(load_env_creator(wrapper.entry_point), wrapper.kwargs) for wrapper in wrappers[n_theirs:]]
    except AttributeError as error:  # a class within a function
        raise RefineError(f"env: it cannot be built again in a worker ({error}); {_REMEDY}") from None
    return _SpecMaker(spec, tuple(ours))


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
    model: BaseAlgorithm, spec: Any, statistics: VecNormalize | None, recipe: EnvRecipe
) -> dict[str, Any]:
    """The part of the Zoo's ``config.yml`` that its tools need to run an agent."""
    aliases = {cls: name for name, cls in model.policy_aliases.items()}
    config: dict[str, Any] = {
        "policy": aliases.get(type(model.policy), "MlpPolicy"),
        "normalize": statistics is not None,
    }
    recorded = () if spec is None else spec.additional_wrappers
    wrappers = [
        (w.entry_point.replace(":", "."), w.kwargs)
        for w in recorded
        if w.entry_point not in (_TRUE_RETURN, _VECTORISED)  # ours, made again from this config
    ]
    if wrappers and all(kwargs is not None for _, kwargs in wrappers):
        config["env_wrapper"] = [{name: kwargs} for name, kwargs in wrappers]
    stacks = [wrapper for wrapper in recipe.vec_wrappers if isinstance(wrapper, partial)]
    if stacks:
        config["frame_stack"] = stacks[0].keywords["n_stack"]
        if statistics is not None and statistics_for_policy(statistics, recipe) is not None:
            raise RefineError(
                "env: a VecNormalize around a VecFrameStack cannot be written in the Zoo's config.yml; swap the two, "
                "as the Zoo does"
            )
    return config
