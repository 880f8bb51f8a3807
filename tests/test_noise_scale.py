"""Noise in units of the action: each tensor of parameters changes the actions by the same, known amount."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import MADE
from sb3_contrib import RecurrentPPO
from stable_baselines3 import DQN, PPO, TD3

from sb3_refine import RefineError, Refiner, load_agent
from sb3_refine.evaluation import calibration
from sb3_refine.evaluation.calibration import N_CALIBRATION_EPISODES
from sb3_refine.optimizers import ScaledOptimizer
from sb3_refine.policies.noise_scale import noise_scale
from sb3_refine.policies.parameters import PolicyParameters, action_scores

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


@pytest.fixture(scope="module")
def changes_by_tensor(measured):
    """The standard deviation of each tensor, and the change of the actions by noise of that size on it alone."""
    policy, parameters, observations, scale = measured
    stds, changes = [], []
    for where in parameters.slices().values():
        assert (scale[where] == scale[where][0]).all()
        alone = np.zeros_like(scale)
        alone[where] = 1e-3 * scale[where]  # small enough for changes to be linear
        stds.append(float(scale[where][0]))
        changes.append(change_of_actions(policy, parameters, observations, alone))
    return np.array(stds), np.array(changes)


def test_a_tensor_has_less_noise_the_more_the_actions_depend_on_it(changes_by_tensor):
    """
    By default, the standard deviation is the fourth root of the one for a unit change, which is the standard deviation
    divided by the change: so the change and the third power of the standard deviation have a constant product.
    """
    stds, changes = changes_by_tensor
    product = stds**3 * changes
    assert stds.max() > 1.2 * stds.min()
    assert product.max() < 3 * product.min()


def test_a_balance_of_1_lets_all_tensors_change_the_actions_alike(measured):
    policy, parameters, observations, _ = measured
    scale, changes = noise_scale(policy, parameters, observations, balance=1.0), []
    for where in parameters.slices().values():
        alone = np.zeros_like(scale)
        alone[where] = 1e-3 * scale[where]
        changes.append(change_of_actions(policy, parameters, observations, alone))
    assert max(changes) < 3 * min(changes)
    assert change_of_actions(policy, parameters, observations, CHANGE * scale) == pytest.approx(CHANGE, rel=0.3)


def test_a_balance_of_0_gives_all_tensors_one_standard_deviation(measured):
    policy, parameters, observations, _ = measured
    scale = noise_scale(policy, parameters, observations, balance=0.0)
    assert scale[0] > 0
    assert (scale == scale[0]).all()


def test_a_tensor_that_changes_no_action_gets_no_noise():
    policy = PPO("MlpPolicy", "Pendulum-v1", seed=0, device="cpu").policy
    with torch.no_grad():
        policy.action_net.weight.zero_()
    parameters = PolicyParameters(policy)
    scale = noise_scale(policy, parameters, np.ones((10, 3), dtype=np.float32))
    with_noise = {name.split(".")[0] for name, where in parameters.slices().items() if scale[where].any()}
    assert with_noise == {"action_net"}


def flat_env(action_space):
    class Env(gym.Env):
        observation_space = gym.spaces.Box(-1, 1, (3,))

        def reset(self, *, seed=None, options=None):
            return np.zeros(3, np.float32), {}

        def step(self, action):
            return np.zeros(3, np.float32), 0.0, True, False, {}

    Env.action_space = action_space
    return Env()


def changes_of_scores(policy, scale):
    """Root mean squares of the change of each score by noise of a tenth of a unit, and of the scores themselves."""
    observations = np.random.default_rng(0).uniform(-1, 1, size=(100, 3)).astype(np.float32)
    batch, parameters = policy.obs_to_tensor(observations)[0], PolicyParameters(policy)
    if scale is None:
        scale = noise_scale(policy, parameters, observations)
    theta, rng, changes = parameters.get_theta(), np.random.default_rng(1), []
    with torch.no_grad():
        before = action_scores(policy, batch).numpy()
        for _ in range(30):
            parameters.set_theta(theta + CHANGE * scale * rng.normal(size=theta.size).astype(np.float32))
            changes.append(action_scores(policy, batch).numpy() - before)
        parameters.set_theta(theta)
    return np.array(changes), before


@pytest.mark.parametrize("n", [1, 3])
def test_the_unit_of_binary_actions_is_the_size_of_their_logits(n):
    policy = PPO("MlpPolicy", flat_env(gym.spaces.MultiBinary(n)), seed=0, device="cpu").policy
    with torch.no_grad():
        policy.action_net.bias.fill_(3.0)
    changes, before = changes_of_scores(policy, None)
    assert np.sqrt(np.square(changes).mean()) == pytest.approx(CHANGE * np.sqrt(np.square(before).mean()), rel=0.3)


def test_each_part_of_a_multi_discrete_action_has_its_own_unit():
    policy = PPO("MlpPolicy", flat_env(gym.spaces.MultiDiscrete([2, 50])), seed=0, device="cpu").policy
    with torch.no_grad():
        policy.action_net.weight[2:] *= 20
    changes, before = changes_of_scores(policy, None)
    squares = []
    for part in (slice(2), slice(2, None)):
        centred = [each[..., part] - each[..., part].mean(axis=-1, keepdims=True) for each in (changes, before)]
        squares += [np.square(centred[0]).mean() / np.square(centred[1]).mean()] * before[0, part].size
    assert np.sqrt(np.mean(squares)) == pytest.approx(CHANGE, rel=0.3)


@pytest.mark.parametrize("shape", [(2, 2), (4, 1)])
def test_continuous_actions_may_have_several_axes(shape):
    policy = PPO("MlpPolicy", flat_env(gym.spaces.Box(-2, 2, shape)), seed=0, device="cpu").policy
    changes, _ = changes_of_scores(policy, None)
    assert np.sqrt(np.square(changes / 2).mean()) == pytest.approx(CHANGE, rel=0.3)


@pytest.mark.slow
def test_recurrent_weights_get_noise_too(made_lstm):
    parameters = PolicyParameters(made_lstm)
    scale = noise_scale(made_lstm, parameters, np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32))
    assert all(scale[where].all() for where in parameters.slices().values())


@pytest.fixture
def made_lstm():
    return RecurrentPPO("MlpLstmPolicy", "Pendulum-v1", seed=0, device="cpu").policy


@pytest.mark.parametrize(("bias", "is_saturated"), [(50.0, False), (1e6, True)])
def test_where_actions_are_saturated_noise_is_larger_or_the_search_says_why_not(bias, is_saturated):
    policy = TD3("MlpPolicy", "Pendulum-v1", seed=0, device="cpu", buffer_size=10).policy
    with torch.no_grad():
        policy.actor.mu[-2].weight *= 100
        policy.actor.mu[-2].bias.fill_(bias)
    parameters, observations = PolicyParameters(policy), np.ones((10, 3), dtype=np.float32)
    if is_saturated:
        with pytest.raises(RefineError, match="no noise on the parameters changes the actions .* `optimizer='ars'`"):
            noise_scale(policy, parameters, observations)
    else:
        scale = noise_scale(policy, parameters, observations)
        assert scale.any()
        assert np.isfinite(scale).all()


def test_observations_are_drawn_from_all_of_the_episodes():
    observing = calibration._Observing(lambda observation: observation)
    for number in range(3000):
        assert observing(np.array([number])) == number
    kept = np.concatenate(observing.observations)
    assert len(set(kept)) == len(kept) == 100
    assert np.histogram(kept, bins=3, range=(0, 3000))[0].min() > 15


def test_a_policy_with_a_state_sees_the_first_observations_in_their_order():
    observing = calibration._Observing(lambda observation: observation, in_order=True)
    for number in range(3000):
        observing(np.array([number]))
    assert np.concatenate(observing.observations).tolist() == list(range(100))


@pytest.mark.slow
def test_the_units_of_a_recurrent_agent_are_measured_on_steps_in_their_order(monkeypatch):
    model = RecurrentPPO("MlpLstmPolicy", "Pendulum-v1", seed=0, device="cpu")
    seen = []
    monkeypatch.setattr(calibration, "noise_scale", lambda policy, parameters, batch: seen.append(batch) or 1.0)
    Refiner(model, n_delta=2, n_workers=1, acceptance=False).learn(1)
    angles = np.arctan2(seen[0][:, 1], seen[0][:, 0])
    steps = np.abs((np.diff(angles) + np.pi) % (2 * np.pi) - np.pi)
    assert steps.max() < 0.5, "a pendulum does not jump"


def test_a_search_measures_its_units_on_episodes_that_count(made_agents):
    agent = load_agent("ppo", "Pendulum-v1", made_agents)
    refiner = Refiner(agent, optimizer="backtracking-ars:n_delta=2,n_center=2", n_workers=1, acceptance=False)
    refiner.learn(1)
    optimizer = refiner.search.optimizer
    assert isinstance(optimizer, ScaledOptimizer)
    assert len(np.unique(optimizer.scale)) == len(refiner.parameters.names)
    assert refiner.result.rollouts == N_CALIBRATION_EPISODES + 6
