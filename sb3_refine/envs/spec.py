"""How to build an agent's environment in any process."""

import ctypes
import importlib
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym

from sb3_refine.envs.accelerators import accelerate
from sb3_refine.envs.families import family_of
from sb3_refine.envs.task_env import TaskEnv
from sb3_refine.envs.wrappers import IgnoreSuccessTermination, Noise, Noisy, TrueReturn, Vectorised
from sb3_refine.errors import RefineError, did_you_mean, one_line
from sb3_refine.tasks.family import TaskFamily

_NOT_FOR_ROLLOUTS = {"Monitor", "VecMonitor", "RecordVideo", "VecVideoRecorder", "HumanRendering"}

GOAL_IN_OBSERVATION = "sb3_refine.envs.wrappers.GoalInObservation"

_OBSERVES_ONLY = {
    "sb3_contrib.common.wrappers.TimeFeatureWrapper",
    "sb3_refine.envs.wrappers.ZeroContactForces",
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
    :param remedy: what makes its episodes reproducible, see :mod:`sb3_refine.rollouts.reproducibility`
    :param accelerated: whether to speed up its ``step``, see :mod:`sb3_refine.envs.accelerators`
    :param end_at_success: whether an episode ends when the environment says so on success; if not, it goes on until its
        time is up
    :param noise: on actions and observations, to see how robust a policy is; or None
    :param tasks: what the environment is in each episode; None for always the same
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
    tasks: TaskFamily | None = None

    def build(self) -> gym.Env:
        """
        :return: the environment with the Zoo's wrappers, without ``Monitor`` or ``VecEnv``, reset once: some
            environments (Bullet's walkers) differ in the first episode after they are made
        :raises RefineError: for unknown ids, missing packages and wrong keyword arguments
        """
        with self._quietly():
            if "pybullet" in family_of(self.env_id).modules:
                import_env_package(self.env_id or "")  # quietly, before gymnasium does
            for package in self.gym_packages:
                import_package(package, f"gym_packages: {package}")
            env = self._base({}) if self.tasks is None else TaskEnv(self.tasks, self._base, _wrap_for_task)
            if not _OBSERVES_ONLY.issuperset(name for name, _ in self.wrappers):
                env = TrueReturn(env)
            for name, kwargs in self.wrappers:
                env = _wrap(env, name, kwargs)
            if self.vec_wrappers:
                env = Vectorised(env, self.vec_wrappers)
            if self.noise is not None:
                env = Noisy(env, self.noise)
        return env

    def _base(self, env_kwargs: dict[str, Any]) -> gym.Env:
        """The environment without wrappers, reset once: wrappers that end episodes early may ignore the next reset."""
        with self._quietly():
            if self.make is not None:
                env = _call(self.make, env_kwargs)
            else:
                env = _make(self.env_id or "", {**self.env_kwargs, **env_kwargs})
            if not self.end_at_success:
                env = IgnoreSuccessTermination(env)
            env.reset(seed=0)
            if self.accelerated:
                accelerate(env)
        return env

    def _quietly(self) -> AbstractContextManager[None]:
        """Without what the family's C library prints whenever an environment is made."""
        descriptor = family_of(self.env_id).prints_to
        return nullcontext() if descriptor is None else _quiet_native_output(descriptor)


def import_env_package(env_id: str) -> None:
    """
    Import the package that registers an environment, where we know it.

    :param env_id: gymnasium id
    :raises RefineError: when the package is not installed, naming the extra; when nothing registers the id, with
        the nearest known ids
    """
    family = family_of(env_id)
    for module in family.modules:
        import_package(module, env_id, family.extra)
    if ":" in env_id:  # gymnasium's own way to name the module to import
        return
    if env_id not in gym.registry:
        raise RefineError(
            f"env: unknown environment {env_id!r}{did_you_mean(env_id, gym.registry)}; "
            "where another package registers it, name that package in `gym_packages`"
        )


_MAX_OBSERVATION = 10**6  # numbers: wrappers can stack observations


def _make(env_id: str, env_kwargs: dict[str, Any]) -> gym.Env:
    import_env_package(env_id)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # old versions are what old agents need
            return gym.make(env_id, disable_env_checker=True, **env_kwargs)
    except (ImportError, gym.error.DependencyNotInstalled) as error:
        extra = family_of(env_id).extra
        remedy = f"pip install 'sb3-refine[{extra}]'" if extra else "install the package it names"
        raise RefineError(f"env: {env_id} needs a package that is missing ({one_line(error)}); {remedy}") from error
    except gym.error.Error as error:
        raise RefineError(f"env: gymnasium cannot make {env_id}: {one_line(error)}") from error
    except Exception as error:
        reason = one_line(error, 500).partition(" was raised from the environment creator")[0]
        if isinstance(error, TypeError) and "unexpected keyword argument" in reason:
            raise RefineError(f"env_kwargs: {env_id}: {reason}") from error
        extra = family_of(env_id).extra
        hint = f"; pip install 'sb3-refine[{extra}]' has the versions that are known to work" if extra else ""
        if isinstance(error, (AssertionError, ValueError)) and env_kwargs:  # of its own checks
            hint = f"; check its arguments, {env_kwargs}"
        raise RefineError(f"env: {env_id} cannot be made: {type(error).__name__}: {reason}{hint}") from error


def _call(make: Callable[..., gym.Env], env_kwargs: dict[str, Any]) -> gym.Env:
    try:
        return make(**env_kwargs)
    except Exception as error:
        raise RefineError(f"env: the callable raised {type(error).__name__}: {one_line(error)}") from error


def import_package(package: str, wanted_by: str, extra: str | None = None) -> None:
    try:
        with _quiet_native_output(2):
            importlib.import_module(package)
    except ModuleNotFoundError as error:
        remedy = f"pip install 'sb3-refine[{extra}]'" if extra else "install it, or add its folder to PYTHONPATH"
        raise RefineError(f"{wanted_by} needs the module {error.name!r}, which was not found; {remedy}") from error
    except (Exception, SystemExit) as error:  # whatever that module raises
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise RefineError(f"{wanted_by}: the module {package!r} cannot be imported ({reason})") from error


def _wrap_for_task(env: gym.Env, name: str, kwargs: dict[str, Any]) -> gym.Env:
    return _wrap(env, name, kwargs, "tasks: env_wrapper")


def _wrap(
    env: Any, name: str, kwargs: dict[str, Any], where: str = "config.yml: env_wrapper", base: type = gym.Wrapper
) -> Any:
    wrapper = _wrapper_class(name, where, base)
    try:
        wrapped = wrapper(env, **kwargs)
        n_numbers = math.prod(wrapped.observation_space.shape or ())
    except Exception as error:
        raise RefineError(f"{where}: {name}({kwargs}): {one_line(error)}") from error
    if n_numbers > _MAX_OBSERVATION:
        raise RefineError(f"{where}: {name}({kwargs}): makes observations of {n_numbers:,} numbers")
    return wrapped


def _wrapper_class(name: str, where: str, base: type) -> Any:
    module, _, attribute = name.rpartition(".")
    try:
        wrapper = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # whatever that module raises
        raise RefineError(
            f"{where}: cannot import {name!r} ({one_line(error)}); install the package that has it"
        ) from error
    if not (isinstance(wrapper, type) and issubclass(wrapper, base)):
        raise RefineError(f"{where}: {name!r} is not a {base.__module__.split('.')[0]} {base.__name__}")
    if _NOT_FOR_ROLLOUTS & {cls.__name__ for cls in wrapper.__mro__}:
        raise RefineError(f"{where}: {name} writes files or opens a window: not for rollouts; take it out")
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

        return _wrap(vec_env, self.name, self.kwargs, "config.yml: vec_env_wrapper", VecEnvWrapper)


@contextmanager
def _quiet_native_output(descriptor: int) -> Iterator[None]:
    """
    Hide the output of C libraries: PyBullet prints its build date when imported, ``argv[0]=`` when started; MuJoCo
    prints warnings about the models of gymnasium.
    """
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
