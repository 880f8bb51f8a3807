"""How to build an environment again that exists in memory."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.utils import RecordConstructorArgs
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, RecordEpisodeStatistics, TimeLimit
from sb3_contrib.common.wrappers import TimeFeatureWrapper
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecCheckNan,
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
from sb3_refine.envs.wrappers import TrueReturn
from sb3_refine.errors import RefineError

_REMEDY = "pass `env=`: a callable that makes the environment with its wrappers"
_MAIN_MODULE = "__main__:"
_NO_MATTER = (VecNormalize, VecMonitor, VecTransposeImage, VecCheckNan)  # statistics and checks
CHECKS = (PassiveEnvChecker, OrderEnforcing, RecordEpisodeStatistics)
"""Wrappers that change no episode."""


Wrapping: TypeAlias = tuple[Any, dict[str, Any]]
"""The class of a wrapper, and its arguments."""


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
        wrappers = tuple((_creator_of(each.entry_point), each.kwargs or {}) for each in spec.additional_wrappers)
        return EnvRecipe(env_id, make=EnvMaker(_sendable(replace(spec, additional_wrappers=())), wrappers))
    if isinstance(env, (VecEnv, gym.Env)):
        return _recipe_of_instance(env)
    if callable(env):
        return EnvRecipe(None, make=env)
    raise RefineError(f"env: expected an id, a callable, a VecEnv or an environment, got {type(env).__name__}")


def _recipe_of_instance(env: VecEnv | gym.Env) -> EnvRecipe:
    """From the objects where they are in this process, else from the spec that gymnasium recorded."""
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
    is_elsewhere = isinstance(env, VecEnv) and not isinstance(env, DummyVecEnv)
    spec, base, wrappers = _from_spec(env) if is_elsewhere else _from_objects(env)
    return EnvRecipe(spec.id if spec else None, vec_wrappers=tuple(vec_wrappers), make=EnvMaker(base, wrappers))


def _from_objects(env: Any) -> tuple[EnvSpec | None, Any, Any]:
    """
    :param env: an environment, or a ``DummyVecEnv``
    :return: the spec, if there is one; what makes the environment without wrappers; and the wrappers
    """
    first, *others = env.envs if isinstance(env, DummyVecEnv) else [env]
    if any(_described(each) != _described(first) for each in others):
        raise RefineError(f"env: its {len(others) + 1} environments differ; {_REMEDY}")
    wrappers: list[Wrapping] = []
    for wrapper in chain_of(first):
        if isinstance(wrapper, Monitor):  # counts the rewards of the environment that it wraps
            wrappers.append((TrueReturn, {}))
        elif not isinstance(wrapper, CHECKS):
            wrappers.append((type(wrapper), arguments_of(wrapper)))
    own = first.unwrapped
    base = _without_arguments(own) if own.spec is None else _sendable(own.spec)
    return first.spec, base, _without_needless_return(wrappers)


def _described(env: gym.Env) -> list[Any]:
    """Class, spec and wrappers, to compare the environments of a ``VecEnv``."""
    wrappers = [(type(each), str(getattr(each, "_saved_kwargs", None))) for each in chain_of(env)]
    return [type(env.unwrapped), env.unwrapped.spec, *wrappers]


def _from_spec(env: Any) -> tuple[EnvSpec, EnvSpec, Any]:
    try:
        specs = env.get_attr("spec")
    except (EOFError, OSError):  # the processes cannot send what the spec holds, such as a lambda
        name = type(env).__name__
        raise RefineError(f"env: the processes of the {name} cannot tell which wrappers they have; {_REMEDY}") from None
    if any(spec != specs[0] for spec in specs):
        raise RefineError(f"env: its {len(specs)} environments differ; {_REMEDY}")
    if specs[0] is None:  # to ask another process for a class may end the process
        names = env.env_method("__str__", indices=0)[0]
        raise RefineError(f"env: the environments {names} of the {type(env).__name__} have no id; {_REMEDY}")
    wrappers: list[Wrapping] = []
    for recorded in specs[0].additional_wrappers:
        cls = _creator_of(recorded.entry_point)
        if isinstance(cls, type) and issubclass(cls, Monitor):
            wrappers.append((TrueReturn, {}))
            continue
        kwargs = _arguments(cls, recorded.kwargs)
        if kwargs is None and cls is TimeFeatureWrapper:
            kwargs = {name: env.get_attr(f"_{name}", 0)[0] for name in ("max_steps", "test_mode")}
        wrappers.append((cls, _known(kwargs, cls)))
    base = replace(specs[0], additional_wrappers=())
    return specs[0], _sendable(base), _without_needless_return(wrappers)


def _frame_stack(stack: Any) -> Callable[[Any], VecFrameStack]:
    """Make the same frame stack again from Stable-Baselines3's ``StackedObservations``."""
    parts = getattr(stack, "sub_stacked_observations", None)
    if parts is None:
        return partial(VecFrameStack, n_stack=stack.n_stack, channels_order=_order_of(stack))
    order: Any = {key: _order_of(part) for key, part in parts.items()}
    return partial(VecFrameStack, n_stack=next(iter(parts.values())).n_stack, channels_order=order)


def _order_of(stack: Any) -> str:
    return "first" if stack.channels_first else "last"


def chain_of(env: gym.Env) -> list[gym.Wrapper]:
    """
    :param env: with wrappers
    :return: the wrappers, innermost first
    """
    wrappers: list[gym.Wrapper] = []
    while isinstance(env, gym.Wrapper):
        wrappers.insert(0, env)
        env = env.env
    return wrappers


def arguments_of(wrapper: gym.Wrapper) -> dict[str, Any]:
    """
    :param wrapper: of an environment
    :return: the arguments that it was made with, beside the environment
    :raises RefineError: where nobody knows
    """
    kwargs = _arguments(type(wrapper), getattr(wrapper, "_saved_kwargs", None))
    if kwargs is None and type(wrapper) is TimeFeatureWrapper:
        kwargs = {name: getattr(wrapper, f"_{name}") for name in ("max_steps", "test_mode")}
    return _known(kwargs, type(wrapper))


def _arguments(cls: Any, recorded: dict[str, Any] | None) -> dict[str, Any] | None:
    """
    Those that gymnasium recorded, if they are those of this class and not of its base; none where the constructor takes
    the environment only.
    """
    constructor = next((each for each in getattr(cls, "__mro__", ()) if "__init__" in vars(each)), None)
    if recorded is not None and constructor is not None and RecordConstructorArgs in constructor.__bases__:
        return {name: value for name, value in recorded.items() if name != "env"}
    parameters = list(inspect.signature(cls).parameters.values())
    takes_one = len(parameters) == 1 and parameters[0].kind not in (
        parameters[0].VAR_POSITIONAL,
        parameters[0].VAR_KEYWORD,
    )
    return {} if takes_one else None


def _known(kwargs: dict[str, Any] | None, cls: type) -> dict[str, Any]:
    if kwargs is None:
        name = f"{cls.__module__}.{cls.__name__}"
        raise RefineError(f"env: the arguments of the wrapper {name} are not known; {_REMEDY}")
    return kwargs


def _without_arguments(env: gym.Env) -> type[gym.Env]:
    if inspect.signature(type(env)).parameters:
        raise RefineError(
            f"env: {type(env).__name__} was not made by gymnasium.make, and its constructor has arguments; {_REMEDY}"
        )
    return type(env)


def _without_needless_return(wrappers: list[Wrapping]) -> tuple[Wrapping, ...]:
    """Rewards need not be counted inside where no wrapper changes them."""
    if all(cls in (TrueReturn, TimeFeatureWrapper, TimeLimit) for cls, _ in wrappers):
        wrappers = [(cls, kwargs) for cls, kwargs in wrappers if cls is not TrueReturn]
    return tuple(wrappers)


def _creator_of(entry_point: str) -> Any:
    try:
        return load_env_creator(entry_point)
    except AttributeError as error:  # a class within a function
        raise RefineError(f"env: it cannot be built again in a worker ({error}); {_REMEDY}") from None


def _sendable(spec: EnvSpec) -> EnvSpec:
    """Classes of the caller's script are sent to the workers by value: workers cannot import them by name."""
    if str(spec.entry_point).startswith(_MAIN_MODULE):
        return replace(spec, entry_point=_creator_of(str(spec.entry_point)))
    return spec


@dataclass(frozen=True)
class EnvMaker:
    """
    Makes an environment, and wraps it.

    :param base: its spec or its class
    :param wrappers: with their arguments, innermost first
    """

    base: EnvSpec | type[gym.Env]
    wrappers: tuple[Wrapping, ...]

    def __call__(self, **env_kwargs: Any) -> gym.Env:
        """
        :param env_kwargs: over those of the spec
        :return: the environment
        """
        env = gym.make(self.base, **env_kwargs) if isinstance(self.base, EnvSpec) else self.base(**env_kwargs)
        for wrapper, kwargs in self.wrappers:
            env = wrapper(env, **kwargs)
        return env


def time_limit_of(env: gym.Env) -> int | None:
    """
    :param env: with its wrappers
    :return: the steps after which an episode is cut off, as far as a ``TimeLimit`` does so
    """
    limits = [wrapper._max_episode_steps for wrapper in chain_of(env) if isinstance(wrapper, TimeLimit)]
    return min(limits, default=None)


def wrappers_missing_in(built: gym.Env, own: VecEnv) -> list[str]:
    """
    :param built: the environment that episodes run in
    :param own: the environment that the model was trained in
    :return: names of wrappers that ``built`` lacks, innermost first
    """
    found = {type(wrapper) for wrapper in chain_of(built)}
    missing: list[str] = []
    while isinstance(own, VecEnvWrapper):
        if not isinstance(own, (*_NO_MATTER, VecFrameStack)):
            missing.insert(0, type(own).__name__)
        own = own.venv
    inner = chain_of(own.envs[0]) if isinstance(own, DummyVecEnv) else []
    matter = [type(each) for each in inner if not isinstance(each, (Monitor, *CHECKS))]
    return [cls.__name__ for cls in matter if cls not in found] + missing
