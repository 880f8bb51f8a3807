"""How to build an agent's environment in any process."""

import ctypes
import importlib
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym

from sb3_refine.accelerators import accelerate
from sb3_refine.errors import RefineError, did_you_mean, one_line
from sb3_refine.wrappers import GoesOnAtSuccess, Noise, Noisy, TrueReturn, Vectorised

RENAMED = {
    r"LunarLander(Continuous)?-v2": "-v3",
    r"(Ant|HalfCheetah|Hopper|Humanoid|HumanoidStandup|InvertedDoublePendulum|InvertedPendulum|Pusher|Reacher|Swimmer|Walker2d)-v[23]": "-v4",  # noqa: E501
    r"Panda(Reach|Push|Slide|PickAndPlace|Stack|Flip)(Dense|Joints|JointsDense)?-v[12]": "-v3",
    r"Fetch(Reach|Push|Slide|PickAndPlace)(Dense)?-v[123]": "-v4",
}
"""Environments that today's packages call otherwise: pattern of the old id, the version that replaces it."""

CHANGED: dict[str, tuple[dict[str, Any], str]] = {
    r"Ant-v[23]": ({"use_contact_forces": True}, "sb3_refine.wrappers.ZeroContactForces"),
}
"""Renamed environments that differ from what they were: the keyword arguments and the wrapper that bring that back."""

_FAMILIES = (
    # pattern of the id, modules that it needs and that register it, extra that installs them
    (r".*BulletEnv-v\d+", ("pybullet", "pybullet_envs_gymnasium"), "bullet"),
    (r"Panda.*-v\d+", ("pybullet", "panda_gym"), "panda"),
    (r"(Fetch|HandReach|HandManipulate).*-v\d+", ("mujoco", "gymnasium_robotics"), "robotics"),
    (r"(ALE/.*|.*NoFrameskip)-v\d+", ("ale_py",), "atari"),
)

_GOAL = r"(MountainCar(Continuous)?|Acrobot|Taxi|CliffWalking(Slippery)?)-v\d+"
_REWARDED_GOAL = r"(FrozenLake(8x8)?|(MiniGrid|BabyAI)-.*)-v\d+"
_CRASH = r"(LunarLander(Continuous)?|BipedalWalker(Hardcore)?|CarRacing)-v\d+"
_CRASH_REWARD = -100


_ENTRY_POINTS = (
    # modules that gymnasium registers without installing what they need
    ("gymnasium.envs.box2d", "box2d"),
    ("gymnasium.envs.mujoco", "mujoco"),
)

_MOVED_WRAPPERS = {
    "utils.wrappers.TimeFeatureWrapper": "sb3_contrib.common.wrappers.TimeFeatureWrapper",
    "rl_zoo3.wrappers.TimeFeatureWrapper": "sb3_contrib.common.wrappers.TimeFeatureWrapper",
    "sb3_contrib.common.wrappers.time_feature.TimeFeatureWrapper": "sb3_contrib.common.wrappers.TimeFeatureWrapper",
}

_NOT_FOR_ROLLOUTS = {"Monitor", "VecMonitor", "RecordVideo", "VecVideoRecorder", "HumanRendering"}

GOAL_IN_OBSERVATION = "sb3_refine.wrappers.GoalInObservation"

_OBSERVES_ONLY = {
    "sb3_contrib.common.wrappers.TimeFeatureWrapper",
    "sb3_refine.wrappers.ZeroContactForces",
    GOAL_IN_OBSERVATION,
}
"""Wrappers that leave rewards and ends as they are."""


@dataclass(frozen=True)
class EnvRecipe:
    """
    Everything needed to build the raw environment again: small, picklable, free of state.

    :param env_id: gymnasium id, or None where ``make`` is given
    :param env_kwargs: keyword arguments of the environment
    :param wrappers: the Zoo's ``env_wrapper``: dotted names and keyword arguments, innermost first
    :param vec_wrappers: from one ``VecEnv`` to the next, around all others, innermost first
    :param gym_packages: modules to import first, to register environments
    :param make: a callable that makes the raw environment, instead of an id
    :param remedy: what makes its episodes reproducible, see :mod:`sb3_refine.reproducibility`
    :param accelerated: whether to speed up its ``step``, see :mod:`sb3_refine.accelerators`
    :param end_at_success: whether an episode ends when the environment says so on success; if not, it goes on until its
        time is up
    :param noise: disturbs actions and observations, to see how robust a policy is; or None
    """

    env_id: str | None
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    wrappers: tuple[tuple[str, dict[str, Any]], ...] = ()
    vec_wrappers: tuple[Callable[[Any], Any], ...] = ()
    gym_packages: tuple[str, ...] = ()
    make: Callable[[], gym.Env] | None = None
    remedy: str | None = None
    accelerated: bool = False
    end_at_success: bool = True
    noise: Noise | None = None

    def build(self) -> gym.Env:
        """
        :return: the environment with the Zoo's wrappers, without ``Monitor`` or ``VecEnv``, reset once: some
            environments (Bullet's walkers) differ in the first episode after they are made
        :raises RefineError: for unknown ids, missing packages and wrong keyword arguments
        """
        with _quiet_native_output(1) if self._is_of_bullet() else nullcontext():
            if self._is_of_bullet():
                import_env_package(self.env_id or "")  # quietly, before gymnasium does
            for package in self.gym_packages:
                _import_package(package, f"gym_packages: {package}")
            env = _call(self.make) if self.make is not None else _make(self.env_id or "", self.env_kwargs)
            if not self.end_at_success:
                env = GoesOnAtSuccess(env)
            env.reset(seed=0)  # before the wrappers: those that end episodes early may swallow the reset after it
            if not _OBSERVES_ONLY.issuperset(name for name, _ in self.wrappers):
                env = TrueReturn(env)
            for name, kwargs in self.wrappers:
                env = _wrap(env, name, kwargs)
            if self.vec_wrappers:
                env = Vectorised(env, self.vec_wrappers)
            if self.accelerated:
                accelerate(env)
            if self.noise is not None:
                env = Noisy(env, self.noise)
        return env

    def _is_of_bullet(self) -> bool:
        return any("pybullet" in packages for p, packages, _ in _FAMILIES if re.fullmatch(p, self.env_id or ""))


def current_env_id(env_id: str) -> str:
    """
    :param env_id: id that an agent was trained on
    :return: the id under which today's packages register that environment
    """
    for pattern, version in RENAMED.items():
        if re.fullmatch(pattern, env_id):
            return re.sub(r"-v\d+$", version, env_id)
    return env_id


def is_failure(env_id: str | None, reward: float, info: dict[str, Any]) -> bool:
    """
    Whether an episode that ended by termination has failed. Most environments terminate on failure; some on success.

    :param env_id: gymnasium id
    :param reward: of the last step
    :param info: of the last step; ``is_success`` in it decides
    :return: False where the goal was reached: by ``is_success``, in environments that end nowhere else or with a
        reward nowhere else, or without the reward of -100 that Box2D's environments give for a crash
    """
    if "is_success" in info:
        return not info["is_success"]
    if re.fullmatch(_GOAL, env_id or ""):
        return False
    if re.fullmatch(_REWARDED_GOAL, env_id or ""):
        return reward <= 0
    return reward == _CRASH_REWARD if re.fullmatch(_CRASH, env_id or "") else True


def import_env_package(env_id: str) -> None:
    """
    Import the package that registers an environment, where we know it.

    :param env_id: gymnasium id
    :raises RefineError: when the package is not installed, naming the extra; when nothing registers the id, with
        the nearest known ids
    """
    for pattern, packages, extra in _FAMILIES:
        if re.fullmatch(pattern, env_id):
            for package in packages:
                _import_package(package, env_id, extra)
    if ":" in env_id:  # gymnasium's own way to name the module to import
        return
    if env_id not in gym.registry:
        raise RefineError(
            f"env: unknown environment {env_id!r}{did_you_mean(env_id, gym.registry)}; "
            "where another package registers it, name that package with gym_packages (--gym-packages)"
        )


def changes_since(env_id: str) -> tuple[dict[str, Any], tuple[tuple[str, dict[str, Any]], ...]]:
    """
    :param env_id: id that an agent was trained on
    :return: what makes today's environment the one it was: keyword arguments, and wrappers as :class:`EnvRecipe` has
        them
    """
    for pattern, (kwargs, wrapper) in CHANGED.items():
        if re.fullmatch(pattern, env_id):
            return kwargs, ((wrapper, {}),)
    return {}, ()


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
_MAX_OBSERVATION = 10**6  # numbers: wrappers can stack observations


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


def _make(env_id: str, env_kwargs: dict[str, Any]) -> gym.Env:
    import_env_package(env_id)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # old versions are what old agents need
            return gym.make(env_id, disable_env_checker=True, **env_kwargs)
    except (ImportError, gym.error.DependencyNotInstalled) as error:
        extra = _extra_of(env_id)
        remedy = f"pip install 'sb3-refine[{extra}]'" if extra else "install the package it names"
        raise RefineError(f"env: {env_id} needs a package that is missing ({one_line(error)}); {remedy}") from error
    except gym.error.Error as error:
        raise RefineError(f"env: gymnasium cannot make {env_id}: {one_line(error)}") from error
    except Exception as error:
        reason = one_line(error, 500).partition(" was raised from the environment creator")[0]
        if isinstance(error, TypeError) and "unexpected keyword argument" in reason:
            raise RefineError(f"env_kwargs: {env_id}: {reason}") from error
        versions = next((f"; pip install 'sb3-refine[{x}]'" for p, _, x in _FAMILIES if re.fullmatch(p, env_id)), "")
        hint = versions and f"{versions} has the versions that are known to work"
        raise RefineError(f"env: {env_id} cannot be made: {type(error).__name__}: {reason}{hint}") from error


def _call(make: Callable[[], gym.Env]) -> gym.Env:
    try:
        return make()
    except Exception as error:
        raise RefineError(f"env: the callable raised {type(error).__name__}: {one_line(error)}") from error


def _extra_of(env_id: str) -> str | None:
    entry_point = str(gym.registry[env_id].entry_point) if env_id in gym.registry else ""
    return next((extra for module, extra in _ENTRY_POINTS if entry_point.startswith(module)), None)


def _import_package(package: str, wanted_by: str, extra: str | None = None) -> None:
    try:
        with _quiet_native_output(2):
            importlib.import_module(package)
    except ModuleNotFoundError as error:
        remedy = f"pip install 'sb3-refine[{extra}]'" if extra else f"install {error.name}"
        raise RefineError(f"{wanted_by} needs the module {error.name!r}, which is missing; {remedy}") from error
    except (Exception, SystemExit) as error:  # whatever that module raises
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise RefineError(f"{wanted_by}: the module {package!r} cannot be imported ({reason})") from error


def _wrap(env: Any, name: str, kwargs: dict[str, Any], key: str = "env_wrapper", base: type = gym.Wrapper) -> Any:
    wrapper = _wrapper_class(name, key, base)
    try:
        wrapped = wrapper(env, **kwargs)
        n_numbers = math.prod(wrapped.observation_space.shape or ())
    except Exception as error:
        raise RefineError(f"config.yml: {key}: {name}({kwargs}): {one_line(error)}") from error
    if n_numbers > _MAX_OBSERVATION:
        raise RefineError(f"config.yml: {key}: {name}({kwargs}): makes observations of {n_numbers:,} numbers")
    return wrapped


def _wrapper_class(name: str, key: str, base: type) -> Any:
    module, _, attribute = name.rpartition(".")
    try:
        wrapper = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # whatever that module raises
        raise RefineError(
            f"config.yml: {key}: cannot import {name!r} ({one_line(error)}); install the package that has it"
        ) from error
    if not (isinstance(wrapper, type) and issubclass(wrapper, base)):
        raise RefineError(f"config.yml: {key}: {name!r} is not a {base.__module__.split('.')[0]} {base.__name__}")
    if _NOT_FOR_ROLLOUTS & {cls.__name__ for cls in wrapper.__mro__}:
        raise RefineError(f"config.yml: {key}: {name} writes files or opens a window: not for rollouts; take it out")
    return wrapper


@dataclass(frozen=True)
class VecWrapper:
    """
    A ``VecEnvWrapper`` by its name, as ``config.yml`` has it.

    :param name: dotted name
    :param kwargs: keyword arguments
    """

    name: str
    kwargs: dict[str, Any]

    def __call__(self, vec_env: Any) -> Any:
        """
        :param vec_env: what to wrap
        :return: the wrapped one
        """
        from stable_baselines3.common.vec_env import VecEnvWrapper

        return _wrap(vec_env, self.name, self.kwargs, "vec_env_wrapper", VecEnvWrapper)


@contextmanager
def _quiet_native_output(descriptor: int) -> Iterator[None]:
    """Swallow what C libraries print: PyBullet its build date when imported, ``argv[0]=`` when it is started."""
    if os.name != "posix":
        yield
        return
    libc = ctypes.CDLL(None)
    _flush_all(libc)
    kept = os.dup(descriptor)
    try:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), descriptor)
        yield
    finally:
        _flush_all(libc)
        os.dup2(kept, descriptor)
        os.close(kept)


def _flush_all(libc: ctypes.CDLL) -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    libc.fflush(None)
