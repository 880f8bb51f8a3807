"""An environment that is another one in each episode, as a family of tasks has it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_refine.envs.goals import Goal, check_goal
from sb3_refine.envs.physics import Physics, check_physics, with_physics
from sb3_refine.errors import RefineError
from sb3_refine.tasks.family import Task, TaskFamily

_STREAM = 3  # of the tasks of episodes that begin without a seed, as in training


class TaskEnv(gym.Wrapper):
    """
    The environment before any wrapper of the agent's. Each reset with a seed sets the task of that seed. A reset
    without a seed draws a new one, unless the episode goes on, as after a lost life. ``info["task"]`` has the
    parameters.

    Physics and goals change within an environment; for other arguments, another environment is made.

    :param family: of the tasks
    :param make: makes an environment with keyword arguments over those of the agent, reset once
    :param wrap: puts a wrapper around an environment, by its dotted name, with keyword arguments
    """

    def __init__(
        self,
        family: TaskFamily,
        make: Callable[[dict[str, Any]], gym.Env],
        wrap: Callable[[gym.Env, str, dict[str, Any]], gym.Env],
    ):
        self._family, self._make, self._wrap = family, make, wrap
        self._task = family.task(0)
        check_physics(self._task.physics)
        check_goal(self._task.goal)
        self._rng = np.random.default_rng([0, _STREAM])
        self._has_ended = True
        self._held: Task | None = None
        super().__init__(self._built())
        self._spaces = self.env.observation_space, self.env.action_space

    @property
    def task(self) -> Task:
        """Of the present episode."""
        return self._task

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """:return: the first observation of the task's environment, and info"""
        if seed is not None:
            self._rng = np.random.default_rng([seed, _STREAM])
            self._set_task(self._held or self._family.task(seed))
        elif self._has_ended:
            self._set_task(self._held or self._family.task(int(self._rng.integers(2**31))))
        self._has_ended = False
        observation, info = self.env.reset(seed=seed, options=options)
        return observation, {**info, "task": self._task.parameters}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """:return: the result of the step"""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._has_ended = bool(terminated or truncated)
        info["task"] = self._parameters
        return observation, reward, terminated, truncated, info

    def hold(self, seed: int | None) -> None:
        """:param seed: whose task all episodes from now on have; None for that of their own seeds again"""
        self._held = None if seed is None else self._family.task(seed)

    def _set_task(self, task: Task) -> None:
        check_physics(task.physics)
        check_goal(task.goal)
        before, self._task = self._task, task
        if _construction(task) != _construction(before):
            self.env.close()
            self.env = self._built()
            check_spaces(self.env, self._spaces, task)
        self._set_values()

    def _built(self) -> gym.Env:
        """The environment of the present task."""
        task = self._task
        try:
            env = self._make(task.env_kwargs)
        except RefineError as error:
            raise RefineError(f"tasks: {error}" if task.env_kwargs else str(error)) from error
        self._physics: Physics | None = None
        self._goal: Goal | None = None
        if task.physics:
            env = self._physics = with_physics(env, task.physics)
        for name in task.goal:
            env = self._goal = Goal(env, name)
        for name, kwargs in task.env_wrapper.items():
            env = self._wrap(env, name, kwargs)
        return env

    def _set_values(self) -> None:
        task = self._task
        self._parameters = task.parameters
        if self._physics is not None:
            self._physics.values = task.physics
        if self._goal is not None:
            (self._goal.goal,) = task.goal.values()


def task_env_of(env: gym.Env) -> TaskEnv | None:
    """
    :param env: any environment
    :return: the :class:`TaskEnv` among its wrappers, if there is one
    """
    while isinstance(env, gym.Wrapper):
        if isinstance(env, TaskEnv):
            return env
        env = env.env
    return None


@contextmanager
def same_task(env: gym.Env, seed: int) -> Iterator[None]:
    """
    :param env: with or without tasks
    :param seed: whose task all episodes have
    :return: context in which they do
    """
    held = task_env_of(env)
    if held is None:
        yield
        return
    held.hold(seed)
    try:
        yield
    finally:
        held.hold(None)


def _construction(task: Task) -> tuple[Any, ...]:
    """What decides how an environment is made; other values can be set in it."""
    return task.env_kwargs, task.env_wrapper, set(task.physics), set(task.goal)


def check_spaces(env: gym.Env, expected: tuple[spaces.Space, spaces.Space], task: Task) -> None:
    """
    :param env: of a task
    :param expected: spaces of observations and actions of another task
    :param task: for the message
    :raises RefineError: when the shapes differ
    """
    spaces_of = {"observation": env.observation_space, "action": env.action_space}
    for (name, space), other in zip(spaces_of.items(), expected, strict=True):
        if not have_same_shape(space, other):
            raise RefineError(
                f"tasks: with {task.parameters}, the {name} space is {space}, with another task it is {other}; a "
                "family of tasks must not change it"
            )


def have_same_shape(one: spaces.Space, other: spaces.Space) -> bool:
    """
    :param one: of observations or actions
    :param other: of another environment
    :return: whether both have the same shape and type; bounds may differ
    """
    if isinstance(one, spaces.Box) and isinstance(other, spaces.Box):
        return one.shape == other.shape and one.dtype == other.dtype
    return one == other
