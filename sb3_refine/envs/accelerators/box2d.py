"""LunarLander and BipedalWalker of gymnasium, with numpy's functions of single numbers computed by Python."""

import math
import sys
from types import FunctionType, MethodType, SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np


def accelerate(env: gym.Env) -> bool:
    """
    Let an environment run its own ``step`` with cheaper scalar functions; the bits stay the same.

    Each ``np.clip(np.abs(action[0]), 0, 1)`` costs microseconds, as much as a tenth of the physics. The code that runs
    is the stock one, whatever its version: only its name ``np`` stands for something else.

    :param env: an environment that has been reset
    :return: whether the environment is one of the two with the stock step, and is now accelerated
    """
    walker: Any = env.unwrapped
    if type(walker).step not in _stock_steps():
        return False
    stock = type(walker).step
    fast = FunctionType(stock.__code__, {**stock.__globals__, "np": _NUMPY}, stock.__name__, stock.__defaults__)
    walker.step = MethodType(fast, walker)
    return True


def _stock_steps() -> list[Any]:
    steps = []
    for module, name in (("lunar_lander", "LunarLander"), ("bipedal_walker", "BipedalWalker")):
        loaded = sys.modules.get(f"gymnasium.envs.box2d.{module}")  # else the environment is not of it
        if loaded is not None:
            steps.append(getattr(loaded, name).step)
    return steps


def _clip(x: Any, low: float, high: float) -> Any:
    if not isinstance(x, np.floating):
        return np.minimum(np.maximum(x, low), high)
    return type(x)(low) if x < low else type(x)(high) if x > high else x


def _sign(x: Any) -> Any:
    if not isinstance(x, np.floating):
        return np.sign(x)
    return type(x)(1) if x > 0 else type(x)(-1) if x < 0 else x - x


def _sqrt(x: Any) -> Any:
    return math.sqrt(x) if isinstance(x, float) and x >= 0 else np.sqrt(x)


_NUMPY = SimpleNamespace(**{**vars(np), "clip": _clip, "sign": _sign, "sqrt": _sqrt, "abs": abs})
