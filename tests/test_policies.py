"""The rollout policies: the bits of ``model.predict``, under parameters written in place."""

import pickle
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from conftest import MADE
from gymnasium import spaces
from sb3_contrib import ARS, QRDQN
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.sac.policies import Actor, SACPolicy
from torch import nn

from sb3_refine import Refiner, load_agent
from sb3_refine.policies.choice import rollout_policy
from sb3_refine.policies.exact import ExactPolicy
from sb3_refine.policies.general import GeneralPolicy
from sb3_refine.policies.parameters import PolicyParameters

OFF_POLICY = (DQN, QRDQN, SAC, TD3)
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
    ("a2c", "CartPole-v1"),
    ("dqn", "CartPole-v1"),
    ("dqn", "LunarLander-v2"),
    ("dqn", "MountainCar-v0"),
    ("qrdqn", "CartPole-v1"),
    ("tqc", "PandaReach-v1"),
    ("her", "PandaReach-v1"),
]
NEEDS = {
    "Panda": "panda_gym",
    "Bullet": "pybullet_envs_gymnasium",
    "Lander": "Box2D",
    "Bipedal": "Box2D",
    "Hopper-v3": "mujoco",
}


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
    if not isinstance(observation, dict):
        observation = np.asarray(observation, dtype=agent.observation_space.dtype)
    if agent.vec_normalize is not None:
        observation = agent.vec_normalize.normalize_obs(observation)
    return agent.model.predict(observation, deterministic=True)[0]


def random_observation(space, magnitude, rng):
    if isinstance(space, spaces.Dict):
        return {key: random_observation(part, magnitude, rng).astype(part.dtype) for key, part in space.items()}
    return magnitude * rng.standard_normal(space.shape)


def assert_bit_equal(agent, policy, n_observations=200):
    rng = np.random.default_rng(1)
    for magnitude in np.geomspace(1e-3, 1e3, n_observations):
        observation = random_observation(agent.observation_space, magnitude, rng)
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


SPACE = spaces.Box(-1.0, 1.0, (4,))
DICT = spaces.Dict({"b": spaces.Box(-1.0, 1.0, (2, 2)), "a": spaces.Box(-1.0, 1.0, (3,), dtype=np.float64)})
BOX = spaces.Box(-2.0, 3.0, (2,))
KINDS = {
    "values": (DQN, "MlpPolicy", SPACE, spaces.Discrete(5)),
    "quantiles": (QRDQN, "MlpPolicy", SPACE, spaces.Discrete(5)),
    "logits": (PPO, "MlpPolicy", SPACE, spaces.Discrete(5)),
    "entries of a Dict": (SAC, "MultiInputPolicy", DICT, BOX),
    "entries of a Dict, discrete": (PPO, "MultiInputPolicy", DICT, spaces.Discrete(3)),
    "two-dimensional": (TD3, "MlpPolicy", spaces.Box(-1.0, 1.0, (3, 4)), BOX),
    "linear": (ARS, "LinearPolicy", SPACE, BOX),
    "no hidden layer": (PPO, "MlpPolicy", SPACE, BOX),
    "other activations": (SAC, "MlpPolicy", SPACE, BOX),
}


class Fake(gym.Env):
    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space


@pytest.mark.parametrize("kind", KINDS)
def test_exact_policy_of_every_kind_of_mlp(kind):
    cls, name, observation_space, action_space = KINDS[kind]
    policy_kwargs = {"no hidden layer": {"net_arch": []}, "other activations": {"activation_fn": nn.ELU}}.get(kind, {})
    kwargs = {"policy_kwargs": policy_kwargs, "device": "cpu", "seed": 0}
    model = cls(
        name, Fake(observation_space, action_space), **kwargs, **({"buffer_size": 10} if cls in OFF_POLICY else {})
    )
    parameters = PolicyParameters(model.policy)
    policy = rollout_policy(model, parameters, None, observation_space)
    assert isinstance(policy, ExactPolicy)
    assert policy.n_parameters == parameters.size
    agent = SimpleNamespace(model=model, vec_normalize=None, observation_space=observation_space)
    delta = np.random.default_rng(0).standard_normal(parameters.size, dtype=np.float32)
    theta = parameters.get_theta() + np.float32(0.5) * delta
    policy.set_theta(theta)
    parameters.set_theta(theta)
    assert_bit_equal(agent, policy)


@pytest.mark.parametrize("scope", ["actor", "head", "bias"])
@pytest.mark.parametrize("algo", MADE)
def test_parameters_written_in_place_are_those_of_the_model(made_agents, algo, scope):
    """A vector in the policy's buffer acts as the same vector set in the model."""
    agent = load_agent(algo, "Pendulum-v1", made_agents)
    parameters, policy = policy_of(agent, scope)
    theta = parameters.get_theta()
    delta = np.random.default_rng(0).standard_normal(parameters.size, dtype=np.float32)
    for scale in (0.3, -0.3, 0.0):
        policy.set_theta(theta + np.float32(scale) * delta)
        parameters.set_theta(theta + np.float32(scale) * delta)
        assert_bit_equal(agent, policy, n_observations=20)


@pytest.mark.parametrize("kind", [ExactPolicy, GeneralPolicy])
@pytest.mark.parametrize("algo", ["a2c", "td3", "tqc"])
def test_a_policy_survives_pickling(made_agents, algo, kind):
    agent = load_agent(algo, "Pendulum-v1", made_agents)
    parameters, policy = policy_of(agent)
    if kind is GeneralPolicy:
        slices = parameters.slices()
        policy = GeneralPolicy(agent.model.policy, slices, agent.vec_normalize, agent.observation_space)
    copy = pickle.loads(pickle.dumps(policy))
    assert copy.n_parameters == parameters.size
    copy.set_theta(parameters.get_theta() + np.float32(0.1))
    parameters.set_theta(parameters.get_theta() + np.float32(0.1))
    assert_bit_equal(agent, copy, n_observations=20)


def test_an_actor_other_than_a_plain_mlp_uses_its_own_predict(made_agents):
    agent = load_agent("ppo", "Pendulum-v1", made_agents)

    class Noisy(type(agent.model.policy.features_extractor)):
        def forward(self, observations):
            return super().forward(observations) * 2

    agent.model.policy.pi_features_extractor.__class__ = Noisy
    _, policy = policy_of(agent)
    assert isinstance(policy, GeneralPolicy)
    assert_bit_equal(agent, policy, n_observations=20)


class OwnExtractor(nn.Module):
    """As the documentation of custom policies has it, by other names."""

    latent_dim_pi = latent_dim_vf = 8

    def __init__(self, n_features):
        super().__init__()
        self.actor, self.critic = (nn.Sequential(nn.Linear(n_features, 8), nn.ReLU()) for _ in range(2))

    def forward(self, features):
        return self.forward_actor(features), self.forward_critic(features)

    def forward_actor(self, features):
        return self.actor(features)

    def forward_critic(self, features):
        return self.critic(features)


class OwnPolicy(ActorCriticPolicy):
    def _build_mlp_extractor(self):
        self.mlp_extractor = OwnExtractor(self.features_dim)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 8)

    def forward(self, x):
        return self.layer(x).relu()


class OwnActor(Actor):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.latent_pi = Residual()


class OwnSACPolicy(SACPolicy):
    def make_actor(self, features_extractor=None):
        return OwnActor(**self._update_features_extractor(self.actor_kwargs, features_extractor)).to(self.device)


@pytest.mark.parametrize(
    "make",
    [
        lambda: PPO(OwnPolicy, "Pendulum-v1", n_steps=8, batch_size=8, device="cpu", seed=0),
        lambda: SAC(OwnSACPolicy, "Pendulum-v1", policy_kwargs={"net_arch": [8]}, buffer_size=8, device="cpu", seed=0),
    ],
)
def test_a_users_policy_class_uses_its_own_predict(make):
    model = make()
    refiner = Refiner(model, n_delta=2, n_eval_episodes=2, backend="serial")
    assert isinstance(refiner.make_task().policy, GeneralPolicy)
    refiner.learn(1)


def test_every_tensor_is_aligned(made_agents):
    """MKL's gemv gives other bits for a weight matrix that is not aligned to 16 bytes."""
    _, policy = policy_of(load_agent("ppo", "Pendulum-v1", made_agents))
    assert len(policy._targets) == 6
    assert any(target.size % 4 for target, _ in policy._targets)  # so that padding is needed
    start = policy._buffer.data_ptr()
    assert all((target.ctypes.data - start) % 16 == 0 for target, _ in policy._targets)


@pytest.mark.parametrize("activation_fn", [nn.PReLU, nn.LeakyReLU, nn.SiLU])
def test_activations_with_and_without_parameters(activation_fn):
    kwargs = {"policy_kwargs": {"activation_fn": activation_fn}, "buffer_size": 10, "device": "cpu"}
    model = SAC("MlpPolicy", Fake(SPACE, BOX), **kwargs)
    parameters = PolicyParameters(model.policy)
    policy = rollout_policy(model, parameters, None, SPACE)
    assert isinstance(policy, GeneralPolicy if activation_fn is nn.PReLU else ExactPolicy)
    assert policy.n_parameters == parameters.size
    before = parameters.get_theta()
    policy.set_theta(before + np.float32(1))
    assert np.array_equal(parameters.get_theta(), before)  # candidates are not written into the model


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
