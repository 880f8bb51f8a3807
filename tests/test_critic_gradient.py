"""The gradient of an agent's critic, which guided evolution strategies use."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import DQN, PPO

from sb3_refine import Refiner, load_agent
from sb3_refine.cli.options import DEMO
from sb3_refine.policies.critic_gradient import critic_gradient
from sb3_refine.policies.parameters import PolicyParameters


@pytest.mark.parametrize("algo", ["ddpg", "td3", "sac", "tqc"])
@pytest.mark.parametrize("scope", ["actor", "head"])
def test_the_gradient_predicts_how_a_small_step_changes_the_values(algo, scope, made_agents):
    policy = load_agent(algo, "Pendulum-v1", made_agents).model.policy
    observations = np.random.default_rng(0).uniform(-1, 1, size=(50, 3)).astype(np.float32)
    parameters = PolicyParameters(policy, scope)
    theta, gradient = parameters.get_theta(), critic_gradient(policy, parameters, observations)

    def mean_value(theta):
        parameters.set_theta(theta)
        batch = torch.as_tensor(observations)
        with torch.no_grad():
            values = policy.critic(batch, policy._predict(batch, deterministic=True))
        return float(torch.cat([each.double().flatten() for each in values]).mean())

    step = (1e-2 * gradient / np.linalg.norm(gradient)).astype(np.float32)
    change = mean_value(theta + step) - mean_value(theta - step)
    parameters.set_theta(theta)
    assert change == pytest.approx(2 * float(step @ gradient), rel=0.05)


@pytest.mark.parametrize(("cls", "env"), [(PPO, "Pendulum-v1"), (DQN, "CartPole-v1")])
def test_agents_whose_critic_rates_no_continuous_actions_have_no_gradient(cls, env):
    model = cls("MlpPolicy", env, seed=0, device="cpu")
    observations = np.zeros((5, *gym.make(env).observation_space.shape), dtype=np.float32)
    assert critic_gradient(model.policy, PolicyParameters(model.policy), observations) is None


@pytest.mark.slow
def test_a_search_with_guided_es_is_given_the_gradient_in_the_units_of_its_noise(made_agents):
    agent = load_agent("td3", "Pendulum-v1", made_agents)
    refiner = Refiner(agent, optimizer="guided-es", n_delta=2, acceptance=False, seed=0).learn(2)
    scaled = refiner.search.optimizer
    plain = scaled.optimizer.critic_gradient / scaled.scale
    assert plain.shape == scaled.scale.shape
    assert np.isfinite(plain).all()
    assert plain.any()


def test_a_search_with_guided_es_does_without_a_critic():
    refiner = Refiner(
        load_agent(DEMO["algo"], DEMO["env"], DEMO["folder"]),
        optimizer="guided-es",
        n_delta=2,
        acceptance=False,
        seed=0,
    ).learn(2)
    assert refiner.search.optimizer.optimizer.critic_gradient.size == 0
    assert refiner.search.n_updates_done == 2
