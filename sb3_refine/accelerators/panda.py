"""The robot arm of panda-gym, with one call of PyBullet for all substeps of a step."""

import sys
from collections.abc import Callable
from typing import Any

import gymnasium as gym

from sb3_refine.accelerators.bullet_binding import bind, client_of


def accelerate(env: gym.Env) -> bool:
    """
    Give the simulation a ``step`` with the same bits, and bind PyBullet's functions.

    The stock simulation calls PyBullet for each of its 20 substeps. This one lets it divide one long step into them;
    motors are commanded between steps, with the short time step, as before.

    :param env: an environment that has been reset
    :return: whether it has the stock simulation, and is now accelerated
    """
    simulation: Any = getattr(env.unwrapped, "sim", None)
    if "panda_gym.pybullet" not in sys.modules:  # then it is none of theirs
        return False
    from panda_gym.pybullet import PyBullet

    if type(simulation) is not PyBullet or not bind(client_of(simulation)):
        return False
    simulation.step = _one_call(simulation)
    return True


def _one_call(simulation: Any) -> Callable[[], None]:
    client, n, short = simulation.physics_client, simulation.n_substeps, simulation.timestep
    set_engine, step_simulation = client.setPhysicsEngineParameter, client.stepSimulation
    long = short * n

    def step() -> None:
        set_engine(fixedTimeStep=long, numSubSteps=n)
        step_simulation()
        set_engine(fixedTimeStep=short, numSubSteps=0)

    return step
