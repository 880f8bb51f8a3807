"""Environments for kinds of agents that no public checkpoint covers. Each is deterministic given its seed."""

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnvWrapper


class Toy(gym.Env):
    """Chase a number that walks at random; the observation, the action and the rest differ by subclass."""

    observation_space: spaces.Space
    action_space: spaces.Space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.target = 0, float(self.np_random.normal())
        return self.observe(), {}

    def step(self, action):
        self.t += 1
        self.target += 0.1 * float(self.np_random.normal())
        return self.observe(), -abs(self.target - self.guess(action)), False, False, {}

    def guess(self, action):
        return float(np.sum(action)) / 4


class Vector(Toy):
    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)

    def observe(self):
        return np.array([self.target, np.sin(self.t), np.cos(self.t)], dtype=np.float32)


class MultiDiscreteToy(Vector):
    action_space = spaces.MultiDiscrete([3, 4])


class MultiBinaryToy(Vector):
    action_space = spaces.MultiBinary(3)


class MaskedToy(Vector):
    """Every action but those above the time, modulo 4, is valid."""

    action_space = spaces.Discrete(4)

    def action_masks(self):
        return np.arange(4) <= self.t % 4

    def step(self, action):
        assert self.action_masks()[action], "an invalid action"
        return super().step(action)


class DiscreteToy(Toy):
    """Observes a number of a finite set."""

    observation_space = spaces.Discrete(5)
    action_space = spaces.Discrete(3)

    def observe(self):
        return int(np.clip(round(self.target), -2, 2)) + 2


class ImageToy(Toy):
    """A picture, channels last, with a bar at the target."""

    observation_space = spaces.Box(0, 255, (36, 36, 1), np.uint8)
    action_space = spaces.Discrete(3)

    def observe(self):
        image = np.zeros((36, 36, 1), dtype=np.uint8)
        image[:, int(np.clip(18 + 6 * self.target, 0, 35))] = 255
        return image


class DictToy(ImageToy):
    """A picture and a vector."""

    observation_space = spaces.Dict(
        image=ImageToy.observation_space, vector=spaces.Box(-np.inf, np.inf, (2,), np.float32)
    )
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def observe(self):
        return {"image": super().observe(), "vector": np.array([self.target, self.t], dtype=np.float32)}


class LivesToy(Vector):
    """An episode of 20 steps."""

    action_space = spaces.Discrete(3)

    def step(self, action):
        observation, reward, _, _, info = super().step(action)
        return observation, reward, self.t == 20, False, info


class Lives(gym.Wrapper):
    """
    Ends the episode every 7 steps without ending it, swallows the reset after that, steps when reset, and doubles
    rewards: as Atari's wrappers do.
    """

    at_end = True

    def reset(self, **kwargs):
        if self.at_end:
            self.env.reset(**kwargs)
        self.n = 0
        observation, *_, info = self.step(1)
        return observation, info

    def step(self, action):
        observation, reward, self.at_end, truncated, info = self.env.step(action)
        self.n += 1
        return observation, 2 * reward, self.at_end or self.n == 7, truncated, info


class Untouched(gym.Wrapper):
    """Does nothing, which nobody can know."""


class Halved(VecEnvWrapper):
    """Halves observations."""

    def __init__(self, venv, by=2.0):
        super().__init__(venv)
        self.by = by

    def reset(self):
        return self.venv.reset() / np.float32(self.by)

    def step_wait(self):
        observations, *rest = self.venv.step_wait()
        return observations / np.float32(self.by), *rest


for cls in (MultiDiscreteToy, MultiBinaryToy, MaskedToy, DiscreteToy, ImageToy, DictToy, LivesToy):
    gym.register(f"{cls.__name__}-v0", cls, max_episode_steps=40)
