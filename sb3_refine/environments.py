"""How to build an agent's environment in any process."""

import ctypes
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym

from sb3_refine.errors import RefineError, did_you_mean

RENAMED = {
    r"LunarLander(Continuous)?-v2": "-v3",
    r"(Ant|HalfCheetah|Hopper|Humanoid|HumanoidStandup|InvertedDoublePendulum|InvertedPendulum|Pusher|Reacher|Swimmer|Walker2d)-v[23]": "-v4",  # noqa: E501
    r"Panda(Reach|Push|Slide|PickAndPlace|Stack|Flip)(Dense|Joints|JointsDense)?-v[12]": "-v3",
}
"""Environments that today's packages call otherwise: pattern of the old id, the version that replaces it."""

_FAMILIES = (
    # pattern of the id, module that registers it, extra that installs it
    (r".*BulletEnv-v\d+", "pybullet_envs_gymnasium", "bullet"),
    (r"Panda.*-v\d+", "panda_gym", "panda"),
)

_ENTRY_POINTS = (
    # modules that gymnasium registers without installing what they need
    ("gymnasium.envs.box2d", "box2d"),
    ("gymnasium.envs.mujoco", "mujoco"),
)

_MOVED_WRAPPERS = {
    "utils.wrappers.TimeFeatureWrapper": "sb3_contrib.common.wrappers.TimeFeatureWrapper",
    "rl_zoo3.wrappers.TimeFeatureWrapper": "sb3_contrib.common.wrappers.TimeFeatureWrapper",
}


@dataclass(frozen=True)
class EnvRecipe:
    """
    Everything needed to build the raw environment again: small, picklable, free of state.

    :param env_id: gymnasium id, or None where ``make`` is given
    :param env_kwargs: keyword arguments of the environment
    :param wrappers: the Zoo's ``env_wrapper``: dotted names and keyword arguments, innermost first
    :param gym_packages: modules to import first, to register environments
    :param make: a callable that makes the raw environment, instead of an id
    """

    env_id: str | None
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    wrappers: tuple[tuple[str, dict[str, Any]], ...] = ()
    gym_packages: tuple[str, ...] = ()
    make: Callable[[], gym.Env] | None = None

    def build(self) -> gym.Env:
        """
        :return: the environment with the Zoo's wrappers, without ``Monitor`` or ``VecEnv``, reset once: some
            environments (Bullet's walkers) differ in the first episode after they are made
        :raises RefineError: for unknown ids, missing packages and wrong keyword arguments
        """
        with _quiet_native_output(1):
            for package in self.gym_packages:
                _import_package(package, f"--gym-packages {package}")
            env = self.make() if self.make is not None else _make(self.env_id or "", self.env_kwargs)
            for name, kwargs in self.wrappers:
                env = _wrapper_class(name)(env, **kwargs)
            env.reset(seed=0)
        return env


def current_env_id(env_id: str) -> str:
    """
    :param env_id: id that an agent was trained on
    :return: the id under which today's packages register that environment
    """
    for pattern, version in RENAMED.items():
        if re.fullmatch(pattern, env_id):
            return re.sub(r"-v\d+$", version, env_id)
    return env_id


def import_env_package(env_id: str) -> None:
    """
    Import the package that registers an environment, where we know it.

    :param env_id: gymnasium id
    :raises RefineError: when the package is not installed, naming the extra; when nothing registers the id, with
        the nearest known ids
    """
    for pattern, package, extra in _FAMILIES:
        if re.fullmatch(pattern, env_id):
            _import_package(package, env_id, extra)
    if ":" in env_id:  # gymnasium's own way to name the module to import
        return
    if env_id not in gym.registry:
        raise RefineError(
            f"--env: unknown environment {env_id!r}{did_you_mean(env_id, gym.registry)}; "
            "where another package registers it, name that package with --gym-packages"
        )


def parse_wrappers(env_wrapper: Any) -> tuple[tuple[str, dict[str, Any]], ...]:
    """
    Read the Zoo's ``env_wrapper``: a dotted name, a ``{name: kwargs}`` mapping, or a list of these.

    :param env_wrapper: the value in ``config.yml``
    :return: names and keyword arguments, innermost wrapper first
    :raises RefineError: for anything else
    """
    if not env_wrapper:
        return ()
    wrappers: list[tuple[str, dict[str, Any]]] = []
    for item in env_wrapper if isinstance(env_wrapper, list) else [env_wrapper]:
        if isinstance(item, str):
            wrappers.append((item, {}))
        elif isinstance(item, dict) and len(item) == 1:
            name, kwargs = next(iter(item.items()))
            wrappers.append((str(name), dict(kwargs or {})))
        else:
            raise RefineError(f"config.yml: env_wrapper: expected a dotted name or {{name: kwargs}}, got {item!r}")
    return tuple((_MOVED_WRAPPERS.get(name, name), kwargs) for name, kwargs in wrappers)


def _make(env_id: str, env_kwargs: dict[str, Any]) -> gym.Env:
    import_env_package(env_id)
    try:
        return gym.make(env_id, disable_env_checker=True, **env_kwargs)
    except (ImportError, gym.error.DependencyNotInstalled) as error:
        extra = _extra_of(env_id)
        remedy = f"pip install 'sb3-refine[{extra}]'" if extra else "install the package it names"
        raise RefineError(f"--env: {env_id} needs a package that is missing ({_one_line(error)}); {remedy}") from error
    except gym.error.Error as error:
        raise RefineError(f"--env: gymnasium cannot make {env_id}: {_one_line(error)}") from error
    except TypeError as error:
        raise RefineError(f"--env-kwargs: {env_id} does not take {env_kwargs}: {_one_line(error)}") from error


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


def _wrapper_class(name: str) -> type[gym.Wrapper]:
    module, _, attribute = name.rpartition(".")
    try:
        wrapper = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise RefineError(
            f"config.yml: env_wrapper: cannot import {name!r} ({_one_line(error)}); install the package that has it"
        ) from error
    if not (isinstance(wrapper, type) and issubclass(wrapper, gym.Wrapper)):
        raise RefineError(f"config.yml: env_wrapper: {name!r} is not a gymnasium.Wrapper")
    return wrapper


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


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
