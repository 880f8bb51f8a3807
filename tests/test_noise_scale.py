"""Noise in units of the action: each tensor of parameters changes the actions by the same, known amount."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import MADE
from stable_baselines3 import DQN, PPO

from sb3_refine import Refiner, load_agent
from sb3_refine.evaluation import calibration
from sb3_refine.evaluation.calibration import N_CALIBRATION_EPISODES
from sb3_refine.optimizers import ScaledOptimizer
from sb3_refine.policies.noise_scale import noise_scale
from sb3_refine.policies.parameters import PolicyParameters

CHANGE = 0.1


@pytest.fixture(scope="module", params=[*MADE, "discrete"])
def measured(request, made_agents):
    """A policy, its parameters, observations, and the scale."""
    rng = np.random.default_rng(0)
    if request.param == "discrete":
        policy, observations = DQN("MlpPolicy", "CartPole-v1", seed=0, device="cpu").policy, rng.normal(size=(200, 4))
    else:
        policy = load_agent(request.param, "Pendulum-v1", made_agents).model.policy
        observations = rng.uniform(-1, 1, size=(200, 3))
    observations, parameters = observations.astype(np.float32), PolicyParameters(policy)
    before = parameters.get_theta()
    scale = noise_scale(policy, parameters, observations)
    assert np.array_equal(parameters.get_theta(), before)
    return policy, parameters, observations, scale


def outputs(policy, observations):
    """In units: actions of Pendulum, which are in [-2, 2], or how far each value is from the mean of both."""
    if isinstance(policy.action_space, gym.spaces.Box):
        return policy.predict(observations, deterministic=True)[0] / 2
    with torch.no_grad():
        values = policy.q_net(torch.as_tensor(observations)).numpy()
    return values - values.mean(axis=1, keepdims=True)


def change_of_actions(policy, parameters, observations, std):
    """Root mean square, under other draws of noise."""
    theta, changes, before = parameters.get_theta(), [], outputs(policy, observations)
    unit = 1 if isinstance(policy.action_space, gym.spaces.Box) else np.sqrt(np.square(before).mean())
    for draw in np.random.default_rng(1).normal(size=(30, theta.size)).astype(np.float32):
        parameters.set_theta(theta + std * draw)
        changes.append(np.square((outputs(policy, observations) - before) / unit).mean())
    parameters.set_theta(theta)
    return np.sqrt(np.mean(changes))


def test_noise_of_a_tenth_of_a_unit_changes_the_actions_by_a_tenth(measured):
    policy, parameters, observations, scale = measured
    assert change_of_actions(policy, parameters, observations, CHANGE * scale) == pytest.approx(CHANGE, rel=0.3)


def test_each_tensor_has_one_standard_deviation_and_changes_the_actions_as_much_as_the_others(measured):
    policy, parameters, observations, scale = measured
    changes = []
    for where in parameters.slices().values():
        assert (scale[where] == scale[where][0]).all()
        alone = np.zeros_like(scale)
        alone[where] = 1e-3 * scale[where]  # small enough for changes to be linear
        changes.append(change_of_actions(policy, parameters, observations, alone))
    assert max(changes) < 3 * min(changes)


def test_a_tensor_that_changes_no_action_gets_no_noise():
    policy = PPO("MlpPolicy", "Pendulum-v1", seed=0, device="cpu").policy
    with torch.no_grad():
        policy.action_net.weight.zero_()
    parameters = PolicyParameters(policy)
    scale = noise_scale(policy, parameters, np.ones((10, 3), dtype=np.float32))
    with_noise = {name.split(".")[0] for name, where in parameters.slices().items() if scale[where].any()}
    assert with_noise == {"action_net"}


def test_observations_are_drawn_from_all_of_the_episodes():
    observing = calibration._Observing(lambda observation: observation)
    for number in range(3000):
        assert observing(np.array([number])) == number
    kept = np.concatenate(observing.observations)
    assert len(set(kept)) == len(kept) == 100
    assert np.histogram(kept, bins=3, range=(0, 3000))[0].min() > 15


def test_a_search_measures_its_units_on_episodes_that_count(made_agents):
    agent = load_agent("ppo", "Pendulum-v1", made_agents)
    refiner = Refiner(agent, optimizer="backtracking-ars:n_delta=2,n_center=2", n_workers=1, acceptance=False)
    refiner.learn(1)
    optimizer = refiner.search.optimizer
    assert isinstance(optimizer, ScaledOptimizer)
    assert len(np.unique(optimizer.scale)) == len(refiner.parameters.names)
    assert refiner.result.rollouts == N_CALIBRATION_EPISODES + 6
