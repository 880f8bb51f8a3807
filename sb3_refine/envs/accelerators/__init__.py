"""
Opt-out speed-ups of known environment families, bit-identical to the stock step.

Each is a function that takes an environment and returns whether it now runs faster. Whether it may be used at all is
decided by a self-test against the stock step, see :mod:`sb3_refine.rollouts.reproducibility`.
"""

from collections.abc import Callable

import gymnasium as gym

from sb3_refine.envs.accelerators import box2d, bullet_binding, bullet_walker, panda
from sb3_refine.envs.families import family_of

ACCELERATORS: dict[str, Callable[[gym.Env], bool]] = {
    "bullet walker": bullet_walker.accelerate,
    "panda": panda.accelerate,
    "bullet binding": bullet_binding.accelerate,
    "box2d": box2d.accelerate,
}


def accelerate(env: gym.Env) -> str | None:
    """
    Apply the first accelerator that fits: of those of its family, or of all where the family is not known.

    :param env: an environment that has been reset
    :return: name of the accelerator, or None where none fits
    """
    names = family_of(env.spec.id if env.spec else None).accelerators or ACCELERATORS
    return next((name for name in names if ACCELERATORS[name](env)), None)
