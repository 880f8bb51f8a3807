"""The rollout policies: the bits of ``model.predict``, under parameters written in place."""

import pickle

import numpy as np
import pytest
from conftest import MADE

from sb3_refine import load_agent
from sb3_refine.parameters import PolicyParameters
from sb3_refine.policies import ExactPolicy, GeneralPolicy, rollout_policy

ZOO = [
    ("a2c", "HopperBulletEnv-v0"),
    ("a2c", "BipedalWalker-v3"),
    ("a2c", "MountainCarContinuous-v0"),
    ("ddpg", "HopperBulletEnv-v0"),
    ("ddpg", "Pendulum-v1"),
    ("ppo", "Walker2DBulletEnv-v0"),
    ("ppo", "LunarLanderContinuous-v2"),
    ("sac", "MountainCarContinuous-v0"),
    ("sac", "Pendulum-v1"),
    ("tqc", "Hopper-v3"),
    ("tqc", "Walker2DBulletEnv-v0"),
    ("trpo", "Walker2DBulletEnv-v0"),
]
NEEDS = {"Bullet": "pybullet_envs_gymnasium", "Lander": "Box2D", "Bipedal": "Box2D", "Hopper-v3": "mujoco"}


def load_zoo(folder, algo, env):
    for part, module in NEEDS.items():
        if part in env:
            pytest.importorskip(module, reason=f"{env} needs {module}")
    return load_agent(algo, env, folder)


def policy_of(agent, scope="actor"):
    parameters = PolicyParameters(agent.model.policy, scope)
    return parameters, rollout_policy(agent.model, parameters, agent.vec_normalize, agent.observation_space)


def predict(agent, observation):
    """What a user's own loop would do: normalise with the agent's statistics, then predict."""
    observation = np.asarray(observation, dtype=agent.observation_space.dtype)
    if agent.vec_normalize is not None:
        observation = agent.vec_normalize.normalize_obs(observation)
    return agent.model.predict(observation, deterministic=True)[0]


def assert_bit_equal(agent, policy, n_observations=200):
    rng = np.random.default_rng(1)
    for magnitude in np.geomspace(1e-3, 1e3, n_observations):
        observation = magnitude * rng.standard_normal(agent.observation_space.shape)
        action, expected = policy(observation), predict(agent, observation)
        assert action.dtype == expected.dtype
        assert np.array_equal(action, expected)


@pytest.mark.parametrize("algo", MADE)
def test_exact_policy_has_the_bits_of_predict(made_agents, algo):
    agent = load_agent(algo, "Pendulum-v1", made_agents)
    _, policy = policy_of(agent)
    assert isinstance(policy, ExactPolicy)
    assert_bit_equal(agent, policy)


@pytest.mark.parametrize(("algo", "env"), ZOO)
def test_exact_policy_has_the_bits_of_predict_on_zoo_agents(zoo_agents, algo, env):
    agent = load_zoo(zoo_agents, algo, env)
    _, policy = policy_of(agent)
    assert isinstance(policy, ExactPolicy)
    assert_bit_equal(agent, policy)


@pytest.mark.parametrize("scope", ["actor", "head", "bias"])
@pytest.mark.parametrize("algo", MADE)
def test_parameters_written_in_place_are_those_of_the_model(made_agents, algo, scope):
    """theta + scale * delta in the policy's buffer acts as the same vector set in the model."""
    agent = load_agent(algo, "Pendulum-v1", made_agents)
    parameters, policy = policy_of(agent, scope)
    mean = parameters.get_vector()
    delta = np.random.default_rng(0).standard_normal(parameters.size, dtype=np.float32)
    for scale in (0.3, -0.3):
        policy.set_parameters(mean, delta, scale)
        parameters.set_vector(mean + np.float32(scale) * delta)
        assert_bit_equal(agent, policy, n_observations=20)
    policy.set_parameters(mean)
    parameters.set_vector(mean)
    assert_bit_equal(agent, policy, n_observations=20)


@pytest.mark.parametrize("kind", [ExactPolicy, GeneralPolicy])
@pytest.mark.parametrize("algo", ["a2c", "td3", "tqc"])
def test_a_policy_survives_the_way_to_another_process(made_agents, algo, kind):
    agent = load_agent(algo, "Pendulum-v1", made_agents)
    parameters, policy = policy_of(agent)
    if kind is GeneralPolicy:
        dtype = agent.observation_space.dtype
        policy = GeneralPolicy(agent.model.policy, parameters.slices(), agent.vec_normalize, dtype)
    copy = pickle.loads(pickle.dumps(policy))
    assert copy.n_parameters == parameters.size
    copy.set_parameters(parameters.get_vector() + np.float32(0.1))
    parameters.set_vector(parameters.get_vector() + np.float32(0.1))
    assert_bit_equal(agent, copy, n_observations=20)


def test_an_actor_that_is_no_plain_mlp_goes_through_its_own_predict(made_agents):
    agent = load_agent("ppo", "Pendulum-v1", made_agents)

    class Noisy(type(agent.model.policy.features_extractor)):
        def forward(self, observations):
            return super().forward(observations) * 2

    agent.model.policy.pi_features_extractor.__class__ = Noisy
    _, policy = policy_of(agent)
    assert isinstance(policy, GeneralPolicy)
    assert_bit_equal(agent, policy, n_observations=20)


def test_normalisation_is_frozen(made_agents):
    agent = load_agent("a2c", "Pendulum-v1", made_agents)
    _, policy = policy_of(agent)
    observation = np.ones(3, dtype=np.float32)
    before = policy(observation)
    mean = agent.vec_normalize.obs_rms.mean.copy()
    agent.vec_normalize.obs_rms.mean += 5.0  # as further training would
    assert np.array_equal(policy(observation), before)
    assert not np.array_equal(mean, agent.vec_normalize.obs_rms.mean)


def test_an_action_is_not_overwritten_by_the_next(made_agents):
    for algo in ("ppo", "sac"):
        _, policy = policy_of(load_agent(algo, "Pendulum-v1", made_agents))
        first = policy(np.ones(3))
        kept = first.copy()
        policy(-np.ones(3))
        assert np.array_equal(first, kept)
