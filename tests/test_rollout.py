"""One episode: what counts as its return, its end, and its trajectory."""

import math
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecFrameStack

from sb3_refine.envs.observations import Normalisation, normalisation_of
from sb3_refine.envs.spec import EnvRecipe
from sb3_refine.envs.wrappers import TrueReturn, Vectorised
from sb3_refine.policies.base import DeterministicPolicy
from sb3_refine.rollouts.recording import Recording
from sb3_refine.rollouts.rollout import rollout


class Idle(DeterministicPolicy):
    """Always the same action."""

    def __init__(self, action):
        self.action = action

    def __call__(self, observation):
        return self.action


class Scripted(gym.Env):
    """Five steps with given observations and rewards."""

    observation_space = spaces.Box(-10, 10, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, observations=None, rewards=(1.0,) * 5):
        self.observations = [np.zeros(2, np.float32)] * 6 if observations is None else observations
        self.rewards = rewards

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.observations[0], {}

    def step(self, action):
        self.t += 1
        return self.observations[self.t], self.rewards[self.t - 1], self.t == 5, False, {}


def test_the_return_is_the_sum_of_the_rewards():
    assert rollout(Idle(0), Scripted(), 1)[:3] == (5.0, 5, True)


def test_an_infinite_reward_inside_a_clipping_wrapper_is_detected():
    env = gym.wrappers.ClipReward(TrueReturn(Scripted(rewards=(1.0, -math.inf, 1.0, 1.0, 1.0))), -1.0, 1.0)
    assert math.isnan(rollout(Idle(0), env, 1).episode_return)


def test_recorded_rewards_are_those_of_the_environment_itself():
    rewards = (1e6, -7.0, -0.1, -0.1, 2.0)
    recording = Recording(gym.wrappers.ClipReward(TrueReturn(Scripted(rewards=rewards)), -1.0, 1.0))
    assert rollout(Idle(0), recording, 1).episode_return == sum(rewards)
    assert recording.trajectory(False, None).rewards.tolist() == list(rewards)  # to the bit


def test_recorded_rewards_outlast_a_reset_within_a_step():
    env = Vectorised(TrueReturn(Scripted(rewards=(3.0, 1.0, 1.0, 1.0, -2.5))), [partial(VecFrameStack, n_stack=2)])
    recording = Recording(env)
    rollout(Idle(0), recording, 1)
    assert recording.trajectory(False, None).rewards.tolist() == [3.0, 1.0, 1.0, 1.0, -2.5]


def test_nan_after_a_reset_of_integers_is_detected():
    observations = [np.zeros(2, np.int64)] + [np.full(2, np.nan, np.float32)] * 5
    assert math.isnan(rollout(Idle(0), Scripted(observations), 1).episode_return)


@pytest.mark.parametrize("wrapper", [{"rl_zoo3.wrappers.FrameSkip": {"skip": 2}}, {"test_rollout.Hundredth": {}}])
def test_a_crash_counts_whatever_a_wrapper_does_to_the_reward(wrapper):
    pytest.importorskip("Box2D")
    pytest.importorskip("rl_zoo3")
    env = EnvRecipe("LunarLander-v3", wrappers=tuple(wrapper.items())).build()
    episodes = [rollout(Idle(2), env, seed) for seed in range(3)]
    assert [episode.failed for episode in episodes] == [True] * 3
    assert max(episode.episode_return for episode in episodes) < -50  # not a hundredth


class Hundredth(gym.RewardWrapper):
    def reward(self, reward):
        return 0.01 * reward


class Swapped(gym.Env):
    """A Dict, whose entries the environment gives in another order than its space."""

    observation_space = spaces.Dict(height=spaces.Box(0, 1000, (1,)), velocity=spaces.Box(-1, 1, (1,)))
    action_space = spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        return {"velocity": np.array([0.5], np.float32), "height": np.array([500], np.float32)}, {}

    def step(self, action):
        return self.reset()[0], 1.0, True, False, {}


def test_trajectories_of_dicts_are_in_the_order_of_the_space():
    recording = Recording(Swapped())
    rollout(Idle(np.zeros(1, np.float32)), recording, 1)
    normalisation = Normalisation(np.array([500.0, 0.5]), np.array([100.0, 0.1]), np.full(2, 10.0))
    steps = recording.trajectory(False, normalisation)
    assert steps.observations.tolist() == [[500.0, 0.5]] * 2
    assert steps.seen.tolist() == [[0.0, 0.0]] * 2


def test_images_do_not_change_the_type_of_other_observations():
    space = spaces.Dict(image=spaces.Box(0, 255, (8, 8, 1), np.uint8), n=spaces.Box(0, 9, (2,), np.int64))
    assert normalisation_of(None, space) is None
    recording = Recording(Scripted())
    recording.observation_space = space
    recording.env.observations = [space.sample()] * 6
    rollout(Idle(0), recording, 1)
    assert recording.trajectory(False, None).observations.dtype == np.int64
