"""
Same policy, same seed, same episode: a probe that checks this for an environment, and remedies where it fails.

Common random numbers, paired tests, replaced workers and resumed runs depend on it.
"""

import hashlib
import logging
import math
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np

from sb3_refine.envs.accelerators import accelerate
from sb3_refine.envs.families import family_of
from sb3_refine.envs.remedies import BEFORE_RESET, FRESH_ENV
from sb3_refine.envs.spec import EnvRecipe
from sb3_refine.envs.wrappers import true_return_of
from sb3_refine.errors import EpisodeError, reraise_as_episode_error
from sb3_refine.policies.base import DeterministicPolicy, one_thread
from sb3_refine.rollouts.rollout import rollout
from sb3_refine.rollouts.task_check import check_tasks
from sb3_refine.seeding import globals_restored, seed_globals

logger = logging.getLogger(__name__)

_MAX_STEPS = 300  # of a probing episode
_LONGEST_ALARM = 1e6  # seconds


@dataclass(frozen=True)
class Reproducibility:
    """
    What the probe found.

    :param recipe: the recipe with the remedy and the accelerator that it needs
    :param seeded: whether the seed decides the episode; if not, seeds cannot be paired
    :param replays: whether every new environment ignores the seed and begins with the same random numbers
    """

    recipe: EnvRecipe
    seeded: bool
    replays: bool = False


class Episodes:
    """
    Prepares an environment for episode after episode, with the recipe's remedy.

    :param recipe: builds the environment
    """

    def __init__(self, recipe: EnvRecipe):
        self._recipe = recipe
        self._env: gym.Env | None = recipe.build()

    def next_env(self, seed: int) -> gym.Env:
        """
        :param seed: of the next episode; for environments that draw from the generators of the process, too
        :return: the environment, fit to be reset for it
        """
        seed_globals(seed)
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


@contextmanager
def _at_most(seconds: float, what: str) -> Iterator[None]:
    """The probe runs in the caller's process: where the platform has alarms, one ends an episode that hangs."""
    has_alarms = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    if not has_alarms or seconds > _LONGEST_ALARM:
        yield
        return

    def give_up(*_: Any) -> None:
        raise EpisodeError(f"{what} hung (longer than episode_timeout, {seconds:g} s)")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def probe(
    recipe: EnvRecipe,
    policy: DeterministicPolicy,
    theta: np.ndarray,
    accelerator: bool = True,
    episode_timeout: float = 600.0,
) -> Reproducibility:
    """
    Find out how to make an environment reproducible, and whether an accelerator may be used on it.

    One policy runs a seed before and after an episode of another policy, and again in a fresh environment. Where the
    three episodes differ, the remedy of the environment's family is tried, then a fresh environment for each episode. A
    fresh environment may also restart a stream of random numbers that ignores the seed. So with this remedy, another
    seed has to give another episode, or a second reset the same episode.

    :param recipe: builds the environment
    :param policy: any policy for it
    :param theta: parameters for the policy
    :param accelerator: whether to look for an accelerator at all
    :param episode_timeout: seconds after which an episode is given up as hanging
    :return: the recipe to use from now on, and whether the environment uses its seed
    :raises EpisodeError: when an episode fails or hangs
    :raises RefineError: when there are tasks, and the environment ignores what they differ in
    """
    run = partial(_fingerprints, policy=policy, theta=theta, episode_timeout=episode_timeout)
    with one_thread(), globals_restored():
        if recipe.tasks is not None:
            check_tasks(recipe, partial(run, max_steps=math.inf))
        for remedy in (family_of(recipe.env_id).remedy, FRESH_ENV):
            candidate = replace(recipe, remedy=remedy)
            if _is_reproducible(candidate, run):
                if remedy is not None:
                    logger.info("episodes are made reproducible by: %s", remedy)
                return Reproducibility(_accelerated(candidate, run) if accelerator else candidate, seeded=True)
        replays = run(candidate, [(0.0, 1)]) == run(candidate, [(0.0, 1)])
    logger.warning(
        "the environment ignores its seed: the same seed gives other episodes, so seeds cannot be paired; "
        "the comparison will be unpaired%s",
        ", and run on one worker, as every new environment begins with the same random numbers" if replays else "",
    )
    return Reproducibility(recipe, seeded=False, replays=replays)


def _accelerated(recipe: EnvRecipe, run: Callable[..., list[str]]) -> EnvRecipe:
    """The recipe with its accelerator, if one fits and gives the bits of the stock step."""
    env = recipe.build()
    name = accelerate(env)
    env.close()
    if name is None:
        return recipe
    fast = replace(recipe, accelerated=True)
    plan = [(scale, seed) for scale in (0.0, 0.02, 0.1) for seed in (1, 2)]
    if run(fast, plan) != run(recipe, plan):
        logger.warning("stock step: the accelerator %r differs from it on this machine", name)
        return recipe
    logger.info("accelerated step (%s): bit-identical to the stock one in %d episodes", name, len(plan))
    return fast


def _is_reproducible(recipe: EnvRecipe, run: Callable[..., list[str]]) -> bool:
    first, _, again = run(recipe, [(0.0, 1), (0.1, 2), (0.0, 1)])
    (fresh,) = run(recipe, [(0.0, 1)])
    if not first == again == fresh:
        return False
    if recipe.remedy != FRESH_ENV or run(recipe, [(0.0, 2)]) != [fresh]:
        return True
    return run(recipe, [(0.0, 1)], n_resets=2) == [fresh]  # nothing is random


def _fingerprints(
    recipe: EnvRecipe,
    plan: Sequence[tuple[float, int]],
    policy: DeterministicPolicy,
    theta: np.ndarray,
    episode_timeout: float,
    n_resets: int = 1,
    max_steps: float = _MAX_STEPS,
) -> list[str]:
    """Run episodes (scale of the perturbation, seed) in one environment; hash the observations and rewards of each."""
    episodes, found = Episodes(recipe), []
    delta = np.random.default_rng(0).standard_normal(theta.size, dtype=np.float32)
    try:
        for scale, seed in plan:
            policy.set_theta(theta + np.float32(scale) * delta)
            what = f"the episode with seed {seed} that probes the environment"
            with reraise_as_episode_error(what), _at_most(episode_timeout, what):
                hashing = _Hashing(episodes.next_env(seed), max_steps)
                for _ in range(n_resets - 1):
                    hashing.env.reset(seed=seed)
                rollout(policy, hashing, seed)
            found.append(hashing.digest.hexdigest())
    finally:
        episodes.close()
    return found


class _Hashing(gym.Wrapper):
    """Hashes the observations and rewards of one episode, or of its first steps."""

    def __init__(self, env: gym.Env, max_steps: float):
        super().__init__(env)
        self.digest = hashlib.sha256()
        self._n_steps = 0
        # a wrapper that ends episodes early may ignore the next reset
        self._max_steps = max_steps if true_return_of(env) is None else math.inf

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        self._add(observation)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.digest.update(np.float64(reward).tobytes())
        self._add(observation)
        self._n_steps += 1
        return observation, reward, terminated, truncated or self._n_steps >= self._max_steps, info

    def _add(self, observation: Any) -> None:
        for part in observation.values() if isinstance(observation, dict) else (observation,):
            self.digest.update(np.ascontiguousarray(part).tobytes())
