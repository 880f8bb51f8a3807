"""Gravity, masses, friction and damping of MuJoCo's and PyBullet's environments, changed from episode to episode."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from sb3_refine.envs.accelerators.bullet_binding import client_of
from sb3_refine.errors import RefineError, did_you_mean

GRAVITY = "gravity"
"""The vertical component in m/s², such as -9.81. All other parameters are factors: 1 leaves things as they are."""


class Physics(gym.Wrapper):
    """
    The physics of one simulator.

    :param env: an environment of the simulator that has been reset
    """

    parameters: tuple[str, ...] = ()
    """What can be changed."""

    values: Mapping[str, Any] = {}
    """Of the next episode, by parameter."""


class MujocoPhysics(Physics):
    """
    ``mass`` of all bodies with their inertia, ``friction`` of all surfaces, ``damping`` of all joints, ``gravity``.

    :param env: an environment with a MuJoCo model
    """

    parameters = ("mass", "friction", "damping", GRAVITY)

    def __init__(self, env: gym.Env):
        super().__init__(env)
        raw: Any = env.unwrapped
        self._model, self._data = raw.model, raw.data
        model = self._model
        self._stock = {
            name: np.array(getattr(model, name))
            for name in ("body_mass", "body_inertia", "geom_friction", "dof_damping")
        }
        self._stock_gravity = np.array(model.opt.gravity)
        self._mass = 1.0

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """:return: the observation and info"""
        values, model, stock = self.values, self._model, self._stock
        model.geom_friction[:] = values.get("friction", 1.0) * stock["geom_friction"]
        model.dof_damping[:] = values.get("damping", 1.0) * stock["dof_damping"]
        model.opt.gravity[:] = self._stock_gravity
        if GRAVITY in values:
            model.opt.gravity[2] = values[GRAVITY]
        mass = values.get("mass", 1.0)
        if mass != self._mass:
            self._set_mass(mass)
        return self.env.reset(**kwargs)

    def _set_mass(self, mass: float) -> None:
        """What MuJoCo derives from masses is computed anew; the reset that follows starts from the initial state."""
        import mujoco  # type: ignore[import-untyped]

        self._model.body_mass[:] = mass * self._stock["body_mass"]
        self._model.body_inertia[:] = mass * self._stock["body_inertia"]
        mujoco.mj_setConst(self._model, self._data)
        self._mass = mass


class BulletPhysics(Physics):
    """
    ``mass`` of all links with their inertia, ``friction`` of all surfaces, ``gravity``.

    :param env: an environment with a PyBullet client, whose bodies stay the same from episode to episode
    """

    parameters = ("mass", "friction", GRAVITY)

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self._client = _bullet_client(env)
        self._stock = {
            (body, link): self._client.getDynamicsInfo(body, link)
            for body in map(self._client.getBodyUniqueId, range(self._client.getNumBodies()))
            for link in range(-1, self._client.getNumJoints(body))
        }
        self._factors = (1.0, 1.0)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """:return: the observation and info; what is changed holds from the first step on"""
        result = self.env.reset(**kwargs)  # sets its own gravity
        factors = (float(self.values.get("mass", 1.0)), float(self.values.get("friction", 1.0)))
        if factors != self._factors:
            self._set_factors(*factors)
            self._factors = factors
        if GRAVITY in self.values:
            self._client.setGravity(0, 0, self.values[GRAVITY])
        return result

    def _set_factors(self, mass: float, friction: float) -> None:
        for (body, link), info in self._stock.items():
            changed = {"lateralFriction": friction * info[1]}
            if info[0] > 0:  # what has no mass does not move
                inertia = [mass * each for each in info[2]]
                changed |= {"mass": mass * info[0], "localInertiaDiagonal": inertia}
            self._client.changeDynamics(body, link, **changed)


def check_physics(values: Mapping[str, Any]) -> None:
    """
    :param values: of a task, by parameter
    :raises RefineError: when one is no number, or out of range
    """
    for name, value in values.items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number:
            raise RefineError(f"tasks: physics: {name}: expected a number, got {value!r}")
        if name == "mass" and not value > 0:
            raise RefineError(f"tasks: physics: mass: expected a factor above 0, got {value}")
        if name in ("friction", "damping") and not value >= 0:
            raise RefineError(f"tasks: physics: {name}: expected a factor of at least 0, got {value}")


def _bullet_client(env: gym.Env) -> Any:
    raw: Any = env.unwrapped
    return getattr(raw, "_p", None) or client_of(getattr(raw, "sim", None))


def _has_mujoco(env: gym.Env) -> bool:
    return type(getattr(env.unwrapped, "model", None)).__name__ == "MjModel"


SIMULATORS: list[tuple[Callable[[gym.Env], Any], type[Physics]]] = [
    (_has_mujoco, MujocoPhysics),
    (_bullet_client, BulletPhysics),
]
"""What recognises an environment of a simulator, and the wrapper for that simulator."""


def with_physics(env: gym.Env, names: Mapping[str, Any]) -> Physics:
    """
    :param env: an environment that has been reset
    :param names: of the parameters that tasks change
    :return: the environment with a physics that can be changed
    :raises RefineError: where the simulator is not known, or has no such parameter
    """
    wrapper = next((wrapper for is_one, wrapper in SIMULATORS if is_one(env)), None)
    if wrapper is None:
        raise RefineError(
            f"tasks: physics: {_name(env)} is an environment of neither MuJoCo nor PyBullet; use its own arguments, "
            "in `env_kwargs`, or a wrapper of your own, in `env_wrapper`"
        )
    for name in names:
        if name not in wrapper.parameters:
            known = ", ".join(wrapper.parameters)
            meant = did_you_mean(name, wrapper.parameters)
            raise RefineError(f"tasks: physics: {_name(env)} has no {name!r}{meant}; choose from {known}")
    return wrapper(env)


def _name(env: gym.Env) -> str:
    return env.spec.id if env.spec else type(env.unwrapped).__name__
