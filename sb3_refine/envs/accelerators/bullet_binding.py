"""PyBullet's functions bound once to their client, instead of anew in every call."""

import inspect
import sys
from functools import partial
from typing import Any

import gymnasium as gym


def accelerate(env: gym.Env) -> bool:
    """
    Bind the functions of the client of an environment, see :func:`bind`.

    :param env: an environment that has been reset
    :return: whether it has a ``BulletClient``: as pybullet_envs_gymnasium (``_p``) and panda-gym (``sim``) keep it
    """
    raw: Any = env.unwrapped
    return any(bind(client) for client in (getattr(raw, "_p", None), client_of(getattr(raw, "sim", None))))


def client_of(simulation: Any) -> Any:
    """:return: the client of panda-gym's simulation"""
    return getattr(simulation, "physics_client", None)


def bind(client: Any) -> bool:
    """
    ``BulletClient`` looks a function up in PyBullet and binds the client's id whenever it is called: 1 µs each time.

    :param client: a ``BulletClient``; every function becomes its attribute
    :return: whether the client is a ``BulletClient``
    """
    if "pybullet_utils.bullet_client" not in sys.modules:  # not imported, so the client is of another class
        return False
    import pybullet
    from pybullet_utils.bullet_client import BulletClient

    if type(client) is not BulletClient:
        return False
    for name, function in vars(pybullet).items():
        if inspect.isbuiltin(function) and name != "disconnect":  # the client forgets its id with that
            setattr(client, name, partial(function, physicsClientId=client._client))
    return True
