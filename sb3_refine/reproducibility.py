"""
Same policy, same seed, same episode: what breaks it in which environment, and the probe that finds out.

Common random numbers, paired tests, replaced workers and resumed runs all rest on it.
"""

import hashlib
import itertools
import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np

from sb3_refine.accelerators import accelerate
from sb3_refine.candidates import direction
from sb3_refine.environments import EnvRecipe
from sb3_refine.policies import DeterministicPolicy, one_thread
from sb3_refine.wrappers import RETURN_KEY, counts_true_return

logger = logging.getLogger(__name__)

_MAX_STEPS = 300  # of a probing episode
_FAR_AWAY = (1e3, 1e3, 1e3)


def _new_box2d_world(env: gym.Env) -> None:
    """BipedalWalker keeps its ``b2World``, whose warm-started contacts reach into the next episode."""
    import Box2D

    walker: Any = env.unwrapped
    walker._destroy()
    walker.world = Box2D.b2World()
    walker.terrain = []


def _forget_contacts(env: gym.Env) -> None:
    """Bullet keeps cached contact points through a reset: tear all bodies apart once, so that none touch."""
    client = env.unwrapped.sim.physics_client  # type: ignore[attr-defined]
    bodies = [client.getBodyUniqueId(i) for i in range(client.getNumBodies())]
    poses = [client.getBasePositionAndOrientation(body) for body in bodies]
    for i, (body, (_, orientation)) in enumerate(zip(bodies, poses, strict=True)):
        client.resetBasePositionAndOrientation(body, np.multiply(_FAR_AWAY, i + 1), orientation)
    client.performCollisionDetection()
    for body, (position, orientation) in zip(bodies, poses, strict=True):
        client.resetBasePositionAndOrientation(body, position, orientation)


BEFORE_RESET: dict[str, Callable[[gym.Env], None]] = {
    "new Box2D world": _new_box2d_world,
    "forget contacts": _forget_contacts,
}
"""Remedies: what to do before each reset so that the episode does not depend on those before it."""

FRESH_ENV = "fresh env"
"""The remedy of last resort: build the environment anew for each episode."""

_FAMILIES = {
    r"BipedalWalker(Hardcore)?-v\d+": "new Box2D world",
    r"Panda(Push|Slide|PickAndPlace|Flip).*-v\d+": "forget contacts",
    r"PandaStack.*-v\d+": FRESH_ENV,  # its overlapping pairs keep an order of their own, which shows now and then
}


@dataclass(frozen=True)
class Reproducibility:
    """
    What the probe found.

    :param recipe: the recipe with the remedy and the accelerator that it needs
    :param seeded: whether the seed decides the episode; if not, seeds cannot be paired
    """

    recipe: EnvRecipe
    seeded: bool


class Episodes:
    """
    Prepares an environment for episode after episode, with the recipe's remedy.

    :param recipe: builds the environment
    """

    def __init__(self, recipe: EnvRecipe):
        self._recipe = recipe
        self._env: gym.Env | None = recipe.build()

    def next_env(self) -> gym.Env:
        """:return: the environment, fit to be reset for the next episode"""
        if self._recipe.remedy == FRESH_ENV:
            self.close()
        if self._env is None:
            self._env = self._recipe.build()
        hook = BEFORE_RESET.get(self._recipe.remedy or "")
        if hook is not None:
            hook(self._env)
        return self._env

    def close(self) -> None:
        """Close the environment."""
        if self._env is not None:
            self._env.close()
            self._env = None


def probe(
    recipe: EnvRecipe, policy: DeterministicPolicy, mean: np.ndarray, accelerator: bool = True
) -> Reproducibility:
    """
    Find out how to make an environment reproducible, and whether an accelerator may be used on it.

    One seed is run by one policy before and after an episode of another policy, and again in a fresh environment. Where
    the three differ, the family's remedy, or else a fresh environment for each episode, is tried.

    :param recipe: builds the environment
    :param policy: any policy for it
    :param mean: parameters for the policy
    :param accelerator: whether to look for an accelerator at all
    :return: the recipe to use from now on, and whether the environment heeds its seed
    """
    family = next((remedy for pattern, remedy in _FAMILIES.items() if re.fullmatch(pattern, recipe.env_id or "")), None)
    with one_thread():
        for remedy in (family, FRESH_ENV):
            candidate = replace(recipe, remedy=remedy)
            if _is_history_free(candidate, policy, mean):
                if remedy is not None:
                    logger.info("episodes are made reproducible by: %s", remedy)
                return Reproducibility(_accelerated(candidate, policy, mean) if accelerator else candidate, seeded=True)
    logger.warning(
        "the environment ignores its seed: the same seed gives other episodes, so seeds cannot be paired; "
        "the comparison will be unpaired"
    )
    return Reproducibility(recipe, seeded=False)


def _accelerated(recipe: EnvRecipe, policy: DeterministicPolicy, mean: np.ndarray) -> EnvRecipe:
    """The recipe with its accelerator, if one fits and gives the bits of the stock step."""
    env = recipe.build()
    name = accelerate(env)
    env.close()
    if name is None:
        return recipe
    fast = replace(recipe, accelerated=True)
    plan = [(scale, seed) for scale in (0.0, 0.02, 0.1) for seed in (1, 2)]
    if list(_fingerprints(fast, policy, mean, plan)) != list(_fingerprints(recipe, policy, mean, plan)):
        logger.warning("stock step: the accelerator %r differs from it on this machine", name)
        return recipe
    logger.info("accelerated step (%s): bit-identical to the stock one in %d episodes", name, len(plan))
    return fast


def _is_history_free(recipe: EnvRecipe, policy: DeterministicPolicy, mean: np.ndarray) -> bool:
    first, _, again = _fingerprints(recipe, policy, mean, [(0.0, 1), (0.1, 2), (0.0, 1)])
    (fresh,) = _fingerprints(recipe, policy, mean, [(0.0, 1)])
    return first == again == fresh


def _fingerprints(
    recipe: EnvRecipe, policy: DeterministicPolicy, mean: np.ndarray, plan: Iterable[tuple[float, int]]
) -> Iterable[str]:
    """Run episodes (scale of the perturbation, seed) in one environment; hash the observations and rewards of each."""
    episodes = Episodes(recipe)
    delta = direction(0, 0, 0, mean.size)
    try:
        for scale, seed in plan:
            policy.set_parameters(mean, delta, scale)
            yield _fingerprint(policy, episodes.next_env(), seed)
    finally:
        episodes.close()


def _fingerprint(policy: DeterministicPolicy, env: gym.Env, seed: int) -> str:
    digest = hashlib.sha256()
    observation, _ = env.reset(seed=seed)
    policy.begin_episode(env)
    to_the_end = counts_true_return(env)  # a wrapper that ends episodes early may swallow the next reset
    for step in itertools.count(1):
        for part in observation.values() if isinstance(observation, dict) else (observation,):
            digest.update(np.ascontiguousarray(part).tobytes())
        observation, reward, terminated, truncated, info = env.step(policy(observation))
        digest.update(np.float64(reward).tobytes())
        done = terminated or truncated
        if to_the_end and done and RETURN_KEY not in info:
            observation, _ = env.reset()
        elif done or (step >= _MAX_STEPS and not to_the_end):
            break
    return digest.hexdigest()
