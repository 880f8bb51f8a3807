"""
Goals that the agent cannot see: a velocity or a direction to run in, as Finn et al. (2017, "Model-agnostic
meta-learning for fast adaptation of deep networks", https://arxiv.org/abs/1703.03400, section 5.3) have them.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym

from sb3_refine.errors import RefineError, did_you_mean


def _velocity(goal: float, x_velocity: float) -> float:
    return -abs(x_velocity - goal)


def _direction(goal: float, x_velocity: float) -> float:
    return goal * x_velocity


GOALS: dict[str, Callable[[float, float], float]] = {"velocity": _velocity, "direction": _direction}
"""
By name, the reward for a goal and a forward velocity in m/s. ``velocity``: the negative distance of the velocity from
the goal. ``direction``: the velocity times the goal, 1 for forward and -1 for backward.
"""

_FORWARD_REWARDS = ("reward_run", "reward_forward")  # names in the infos of HalfCheetah and of Ant, by version
_CHECKED = "x_velocity"


class Goal(gym.Wrapper):
    """
    The reward for running forward becomes the reward for the goal; costs and the reward for being healthy stay.

    :param env: a walker of MuJoCo whose ``info`` has ``x_velocity`` and the reward for running forward
    :param name: one of :data:`GOALS`
    """

    def __init__(self, env: gym.Env, name: str):
        super().__init__(env)
        self._reward = GOALS[name]
        self._name = name
        self.goal = 0.0
        """Of the next steps."""

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """:return: the result of the step, with the reward for the goal"""
        observation, reward, terminated, truncated, info = self.env.step(action)
        forward = next((info[name] for name in _FORWARD_REWARDS if name in info), None)
        if forward is None or _CHECKED not in info:
            raise RefineError(
                f"tasks: goal: {self._name}: the environment does not say how fast it runs (no {_CHECKED} and no "
                f"{' or '.join(_FORWARD_REWARDS)} in its info); choose HalfCheetah or Ant of MuJoCo"
            )
        reward = float(reward) - forward + self._reward(self.goal, info[_CHECKED])
        return observation, reward, terminated, truncated, info


def check_goal(goal: Mapping[str, Any]) -> None:
    """
    :param goal: of a task, by name
    :raises RefineError: when there are several, or the name or the value is unknown
    """
    if len(goal) > 1:
        raise RefineError(f"tasks: goal: expected one of {', '.join(GOALS)}, got {', '.join(goal)}")
    for name, value in goal.items():
        if name not in GOALS:
            raise RefineError(
                f"tasks: goal: unknown {name!r}{did_you_mean(name, GOALS)}; choose from {', '.join(GOALS)}"
            )
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
            raise RefineError(f"tasks: goal: {name}: expected a number, got {value!r}")
