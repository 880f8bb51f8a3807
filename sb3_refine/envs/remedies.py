"""What makes an episode independent of the episodes before it, for environments that keep state through a reset."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

NEW_BOX2D_WORLD, FORGET_CONTACTS = "new Box2D world", "forget contacts"

FRESH_ENV = "fresh env"
"""The remedy where nothing else helps: a new environment for each episode."""

_FAR_AWAY = (1e3, 1e3, 1e3)


def _new_box2d_world(env: gym.Env) -> None:
    """BipedalWalker keeps its ``b2World``, whose warm-started contacts affect the next episode."""
    import Box2D

    walker: Any = env.unwrapped
    walker._destroy()
    walker.world = Box2D.b2World()
    walker.terrain = []


def _forget_contacts(env: gym.Env) -> None:
    """Bullet keeps cached contact points through a reset: move all bodies apart once, so that none touch."""
    client = env.unwrapped.sim.physics_client  # type: ignore[attr-defined]
    bodies = [client.getBodyUniqueId(i) for i in range(client.getNumBodies())]
    poses = [client.getBasePositionAndOrientation(body) for body in bodies]
    for i, (body, (_, orientation)) in enumerate(zip(bodies, poses, strict=True)):
        client.resetBasePositionAndOrientation(body, np.multiply(_FAR_AWAY, i + 1), orientation)
    client.performCollisionDetection()
    for body, (position, orientation) in zip(bodies, poses, strict=True):
        client.resetBasePositionAndOrientation(body, position, orientation)


BEFORE_RESET: dict[str, Callable[[gym.Env], None]] = {
    NEW_BOX2D_WORLD: _new_box2d_world,
    FORGET_CONTACTS: _forget_contacts,
}
"""What to do before each reset."""
