"""How to build an environment again that exists in memory."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec, WrapperSpec, load_env_creator
from gymnasium.utils import RecordConstructorArgs
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)

from sb3_refine.envs.families import current_env_id
from sb3_refine.envs.normalisation import Normalised, without_env
from sb3_refine.envs.spec import EnvRecipe, import_env_package
from sb3_refine.errors import RefineError

_REMEDY = "pass `env=`: a callable that makes the environment with its wrappers"
_TIME_FEATURE = "sb3_contrib.common.wrappers.time_feature:TimeFeatureWrapper"
_MONITOR = f"{Monitor.__module__}:{Monitor.__name__}"
_TRUE_RETURN = "sb3_refine.envs.wrappers:TrueReturn"
_MAIN_MODULE = "__main__:"
_NO_MATTER = (VecNormalize, VecMonitor, VecTransposeImage)  # statistics, and what `predict` does itself


def recipe_of(env: str | Callable[[], gym.Env] | VecEnv | gym.Env) -> EnvRecipe:
    """
    :param env: its id, a callable that makes it (its class, for example), or the environment
    :return: how to build the environment in another process
    :raises RefineError: when it cannot be built again
    """
    if isinstance(env, str):
        env_id = current_env_id(env)
        import_env_package(env_id)
        spec = gym.spec(env_id)  # the caller's script may have registered it
        return EnvRecipe(env_id, make=_maker(spec, spec.additional_wrappers))
    if isinstance(env, (VecEnv, gym.Env)):
        return _recipe_of_instance(env)
    if callable(env):
        return EnvRecipe(None, make=env)
    raise RefineError(f"env: expected an id, a callable, a VecEnv or an environment, got {type(env).__name__}")


def _recipe_of_instance(env: VecEnv | gym.Env) -> EnvRecipe:
    """From the spec and the wrappers that gymnasium recorded, or from the class of the environment."""
    vec_wrappers: list[Callable[[Any], Any]] = []
    while isinstance(env, VecEnvWrapper):
        if isinstance(env, VecNormalize):
            vec_wrappers.insert(0, Normalised(without_env(env)))
        elif isinstance(env, VecFrameStack):
            vec_wrappers.insert(0, _frame_stack(env.stacked_obs))
        elif not isinstance(env, _NO_MATTER):
            raise RefineError(f"env: a {type(env).__name__} cannot be built again in a worker; {_REMEDY}")
        env = env.venv
    if vec_wrappers and isinstance(vec_wrappers[-1], Normalised):  # the policy normalises
        vec_wrappers.pop()
    specs = env.get_attr("spec") if isinstance(env, VecEnv) else [env.spec]
    if any(spec != specs[0] for spec in specs):
        raise RefineError(f"env: its {len(specs)} environments differ; {_REMEDY}")
    spec = specs[0]
    if spec is not None:
        make = _maker(spec, _complete(spec.additional_wrappers, env))
        return EnvRecipe(spec.id, vec_wrappers=tuple(vec_wrappers), make=make)
    first = _first_of(env)
    base = _class_without_arguments(first.unwrapped)
    return EnvRecipe(None, vec_wrappers=tuple(vec_wrappers), make=_maker(base, _complete(_wrappers_of(first), env)))


def _frame_stack(stack: Any) -> Callable[[Any], VecFrameStack]:
    """Make the same frame stack again from Stable-Baselines3's ``StackedObservations``."""
    parts = getattr(stack, "sub_stacked_observations", None)
    if parts is None:
        return partial(VecFrameStack, n_stack=stack.n_stack, channels_order=_order_of(stack))
    order: Any = {key: _order_of(part) for key, part in parts.items()}
    return partial(VecFrameStack, n_stack=next(iter(parts.values())).n_stack, channels_order=order)


def _order_of(stack: Any) -> str:
    return "first" if stack.channels_first else "last"


def _first_of(env: VecEnv | gym.Env) -> gym.Env:
    """The first environment, where it is in this process. To ask another process for its class may end the process."""
    if isinstance(env, DummyVecEnv):
        return env.envs[0]
    if isinstance(env, VecEnv):
        names = env.env_method("__str__", indices=0)[0]
        raise RefineError(f"env: the environments {names} of the {type(env).__name__} have no id; {_REMEDY}")
    return env


def _class_without_arguments(env: gym.Env) -> type[gym.Env]:
    if inspect.signature(type(env)).parameters:
        raise RefineError(
            f"env: {type(env).__name__} was not made by gymnasium.make, and its arguments are not known; {_REMEDY}"
        )
    return type(env)


def _wrappers_of(env: gym.Env) -> list[WrapperSpec]:
    """As gymnasium records them, for an environment that it did not make."""
    wrappers: list[WrapperSpec] = []
    while isinstance(env, gym.Wrapper):
        kwargs = dict(env._saved_kwargs) if isinstance(env, RecordConstructorArgs) else None
        name = type(env).__name__
        wrappers.insert(0, WrapperSpec(name, f"{type(env).__module__}:{name}", kwargs))
        env = env.env
    return wrappers


def _complete(recorded: Any, env: VecEnv | gym.Env) -> list[WrapperSpec]:
    """Wrappers with the arguments that gymnasium did not record."""
    wrappers = []
    for wrapper in recorded:
        if wrapper.entry_point == _MONITOR:  # counts the rewards of the environment that it wraps
            wrappers.append(WrapperSpec("TrueReturn", _TRUE_RETURN, {}))
            continue
        kwargs = known_arguments(wrapper)
        if kwargs is None and wrapper.entry_point == _TIME_FEATURE:
            kwargs = {name: _attribute_of(env, f"_{name}") for name in ("max_steps", "test_mode")}
        if kwargs is None:
            name = wrapper.entry_point.replace(":", ".")
            raise RefineError(f"env: the arguments of the wrapper {name} are not known; {_REMEDY}")
        wrappers.append(replace(wrapper, kwargs=kwargs))
    if all(wrapper.entry_point in (_TRUE_RETURN, _TIME_FEATURE) for wrapper in wrappers):  # no wrapper changes rewards
        wrappers = [wrapper for wrapper in wrappers if wrapper.entry_point != _TRUE_RETURN]
    return wrappers


def known_arguments(wrapper: WrapperSpec) -> dict[str, Any] | None:
    """
    :param wrapper: of an environment
    :return: its arguments: those that gymnasium recorded, or none where there can be none; None where nobody knows
    """
    if wrapper.kwargs is not None:
        return wrapper.kwargs
    try:
        creator = load_env_creator(wrapper.entry_point)
    except AttributeError:  # a class within a function
        return None
    return {} if len(inspect.signature(creator).parameters) == 1 else None


def _creator_of(entry_point: str) -> Any:
    try:
        return load_env_creator(entry_point)
    except AttributeError as error:
        raise RefineError(f"env: it cannot be built again in a worker ({error}); {_REMEDY}") from None


def _attribute_of(env: VecEnv | gym.Env, name: str) -> Any:
    return env.get_attr(name, 0)[0] if isinstance(env, VecEnv) else env.get_wrapper_attr(name)


@dataclass(frozen=True)
class EnvMaker:
    """
    Makes an environment, and wraps it.

    :param base: its spec or its class
    :param wrappers: with their arguments, innermost first
    """

    base: EnvSpec | type[gym.Env]
    wrappers: tuple[tuple[Callable[..., gym.Env], dict[str, Any]], ...]

    def __call__(self) -> gym.Env:
        env = gym.make(self.base) if isinstance(self.base, EnvSpec) else self.base()
        for wrapper, kwargs in self.wrappers:
            env = wrapper(env, **kwargs)
        return env


def _maker(base: EnvSpec | type[gym.Env], wrappers: Any) -> EnvMaker:
    """Classes that the caller's script defines are sent to the workers by value: workers cannot import them by name."""
    if isinstance(base, EnvSpec):
        base = replace(base, additional_wrappers=())
        if str(base.entry_point).startswith(_MAIN_MODULE):
            base = replace(base, entry_point=_creator_of(str(base.entry_point)))
    return EnvMaker(base, tuple((_creator_of(wrapper.entry_point), wrapper.kwargs) for wrapper in wrappers))


def wrappers_missing_in(built: gym.Env, own: VecEnv) -> list[str]:
    """
    :param built: the environment that episodes run in
    :param own: the environment that the model was trained in
    :return: names of wrappers that ``built`` lacks, innermost first
    """
    found = {wrapper.name for wrapper in _wrappers_of(built)}
    missing: list[str] = []
    while isinstance(own, VecEnvWrapper):
        if not isinstance(own, (*_NO_MATTER, VecFrameStack)):
            missing.insert(0, type(own).__name__)
        own = own.venv
    inner = _wrappers_of(own.envs[0]) if isinstance(own, DummyVecEnv) else []
    return [w.name for w in inner if w.name not in found and w.entry_point != _MONITOR] + missing
