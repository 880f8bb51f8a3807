"""``TransformerPolicy``: what it sees, and that ``predict`` with its state is the same as whole episodes at once."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import target_of
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_refine import RefineError, Trainer, load_agent
from sb3_refine.agents.from_model import agent_from_model
from sb3_refine.policies.choice import rollout_policy
from sb3_refine.policies.exact_transformer import _N_STEPS, ExactTransformer
from sb3_refine.policies.general import StatefulPolicy
from sb3_refine.policies.parameters import PolicyParameters
from sb3_refine.policies.transformer import TransformerPolicy

SIZES = {"context": 4, "n_layers": 2, "n_heads": 2, "embed_dim": 16}


def policy_of(observation_space, action_space, **kwargs) -> TransformerPolicy:
    """With parameters that are not small, so that all parts have an effect."""
    torch.manual_seed(0)
    policy = TransformerPolicy(observation_space, action_space, lambda _: 1e-3, **{**SIZES, **kwargs})
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    policy.set_training_mode(False)
    return policy


BOX = spaces.Box(-1, 1, (3,))
ACTIONS = [
    spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 1.0], np.float32)),
    spaces.Discrete(3),
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiBinary(2),
]


def run(policy, observations, starts=(0,)):
    """Actions of one environment, step by step."""
    state, actions = None, []
    for number, observation in enumerate(observations):
        action, state = policy.predict(observation, state, np.array([number in starts]), deterministic=True)
        actions.append(action)
    return np.array(actions)


@pytest.mark.parametrize("action_space", ACTIONS, ids=str)
def test_step_by_step_is_the_same_as_the_whole_episode(action_space):
    policy = policy_of(BOX, action_space)
    observations = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    actions = run(policy, observations)
    batch, _ = policy.obs_to_tensor(observations)
    whole = policy.get_distribution(batch).get_actions(deterministic=True).detach().numpy()
    if isinstance(action_space, spaces.Box):
        np.testing.assert_allclose(np.clip(whole, action_space.low, action_space.high), actions, atol=1e-5)
    else:
        np.testing.assert_array_equal(whole, actions)
    assert len(np.unique(actions, axis=0)) > 1, "the actions depend on the observations"


def test_each_environment_has_a_context_of_its_own():
    policy = policy_of(BOX, ACTIONS[0])
    observations = np.random.default_rng(0).normal(size=(12, 2, 3)).astype(np.float32)
    state, actions = None, []
    for number, both in enumerate(observations):
        starts = np.array([number == 0, number in (0, 5)])
        action, state = policy.predict(both, state, starts, deterministic=True)
        actions.append(action)
    actions = np.array(actions)
    np.testing.assert_allclose(actions[:, 0], run(policy, observations[:, 0]), atol=1e-6)
    np.testing.assert_allclose(actions[5:, 1], run(policy, observations[5:, 1]), atol=1e-6)
    np.testing.assert_allclose(actions[:5, 1], run(policy, observations[:5, 1]), atol=1e-6)


def test_a_layer_sees_the_steps_of_its_context_and_no_others():
    policy = policy_of(BOX, ACTIONS[0], n_layers=1)
    observations = torch.randn(1, 10, 3)
    previous = torch.rand(1, 10, 2)

    def latent(observations):
        return policy.distribution_of_sequences(observations[0], previous).mode().detach().numpy()

    changed = observations.clone()
    changed[0, 2] += 1.0
    differs = np.abs(latent(changed) - latent(observations)).max(axis=1) > 1e-6
    assert differs.tolist() == [False, False, True, True, True, True, False, False, False, False]


def test_there_is_no_action_before_the_first_observation():
    """Also where 0 is far outside the range of the actions."""
    far = policy_of(BOX, spaces.Box(1000, 1001, (2,)))
    previous = torch.zeros(2, 1, 2)
    with torch.no_grad():
        one, two = far.distribution_of_sequences(torch.tensor([[1.0] * 3, [-1.0] * 3]), previous).mode()
    assert (one - two).abs().max() > 1e-2
    discrete, previous = policy_of(BOX, ACTIONS[1]), torch.zeros(1, 1, dtype=torch.int64)

    def logits(previous, begins=None):
        with torch.no_grad():
            return discrete.distribution_of_sequences(torch.zeros(1, 3), previous, begins).distribution.logits

    assert torch.equal(logits(previous), logits(previous + 1))
    in_the_middle = torch.tensor([False])
    assert not torch.equal(logits(previous, in_the_middle), logits(previous + 1, in_the_middle))


def test_the_target_return_is_seen_at_every_step():
    observations = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
    one, two = (run(policy_of(BOX, ACTIONS[0], target_return=target), observations) for target in (1.0, 2.0))
    assert (np.abs(one - two).max(axis=1) > 1e-4).mean() > 0.5


@pytest.mark.parametrize("action_space", ACTIONS, ids=str)
def test_the_last_action_is_seen(action_space):
    policy = policy_of(BOX, action_space)
    previous = torch.as_tensor(np.array([[action_space.sample() for _ in range(6)]]))
    other = previous.clone()
    other[0, 3] = (other[0, 3] == 0).to(other.dtype)
    with torch.no_grad():
        one, two = (
            policy.transformer(torch.zeros(1, 6, 3), acted(policy, each), policy._target())
            for each in (previous, other)
        )
    assert ((one - two).abs().amax(dim=2)[0] > 1e-6).tolist() == [False] * 3 + [True] * 3


def acted(policy, actions):
    return policy._as_input(actions.flatten(0, 1)).unflatten(0, actions.shape[:2])


SPACES = {
    "box": (BOX, ACTIONS[0]),
    "float64": (spaces.Box(-1, 1, (3,), np.float64), spaces.Box(-3, 1, (1, 2), np.float64)),
    "discrete": (BOX, ACTIONS[1]),
    "dict": (spaces.Dict({"a": BOX, "b": spaces.Box(-9, 9, (1, 2))}), ACTIONS[0]),
}


@pytest.mark.parametrize("kind", SPACES)
def test_the_exact_policy_has_the_bits_of_predict(kind):
    """Over episodes that are longer than the memory, under the parameters of other candidates too."""
    space, action_space = SPACES[kind]
    policy = policy_of(space, action_space)
    parameters = PolicyParameters(policy)
    exact = rollout_policy(SimpleNamespace(policy=policy), parameters, None, space)
    assert type(exact) is ExactTransformer
    space.seed(0)
    for n_steps in (2 * _N_STEPS + 10, 10):
        theta = parameters.get_theta() * np.float32(1.1)
        parameters.set_theta(theta)
        exact.set_theta(theta)
        exact.begin_episode(None)
        state = None
        for number in range(n_steps):
            observation = space.sample()
            with torch.no_grad():
                before = policy._first_state(1) if state is None else state
            action, state = policy.predict(observation, state, np.array([number == 0]), deterministic=True)
            np.testing.assert_array_equal(exact(observation), action)
            if kind == "discrete":  # of which the best action says little
                batch, _ = policy.obs_to_tensor(observation)
                with torch.no_grad():
                    acted = policy._as_input(torch.from_numpy(before[1])).masked_fill(torch.tensor(number == 0), 0)
                    latent, _ = policy.transformer.step(batch, acted, *map(torch.from_numpy, (before[0], before[2])))
                    assert torch.equal(policy.action_net(latent)[0], exact._output)


@pytest.mark.parametrize(
    ("space", "action_space", "sizes"),
    [(BOX, ACTIONS[2], {}), (spaces.Discrete(3), ACTIONS[0], {}), (BOX, ACTIONS[1], {"n_heads": 1, "embed_dim": 33})],
    ids=["multi-discrete actions", "discrete observations", "rows that are not aligned"],
)
def test_others_are_rolled_out_by_predict_itself(space, action_space, sizes):
    policy = policy_of(space, action_space, **sizes)
    found = rollout_policy(SimpleNamespace(policy=policy), PolicyParameters(policy), None, space)
    assert type(found) is StatefulPolicy


def test_a_state_that_was_passed_is_not_changed():
    """Whoever plans ahead passes the same state twice."""
    policy = policy_of(BOX, ACTIONS[0])
    observation = np.ones(3, np.float32)
    _, state = policy.predict(observation, deterministic=True)
    first, _ = policy.predict(observation, state, deterministic=True)
    second, _ = policy.predict(observation, state, deterministic=True)
    np.testing.assert_array_equal(first, second)


def test_all_but_the_exploration_noise_is_searched():
    policy = policy_of(BOX, ACTIONS[0])
    searched = PolicyParameters(policy).names
    assert set(dict(policy.named_parameters())) - set(searched) == {"log_std"}


@pytest.fixture(scope="module")
def model():
    return PPO(TransformerPolicy, "Pendulum-v1", n_steps=8, batch_size=8, policy_kwargs=SIZES, seed=0, device="cpu")


def test_a_rollout_gives_the_returns_of_evaluate_policy(model):
    agent = agent_from_model(model, "Pendulum-v1")
    ours = target_of(agent).run([7]).returns
    env = make_vec_env("Pendulum-v1", seed=7)
    theirs, _ = evaluate_policy(model, env, n_eval_episodes=1, return_episode_rewards=True)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)  # SB3 sums rewards in float32


def test_plain_ppo_loads_it_and_so_does_load_agent_without_running_code(model, tmp_path):
    model.save(tmp_path / "model.zip")
    observations = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    for loaded in (PPO.load(tmp_path / "model.zip"), load_agent(env="Pendulum-v1", model=tmp_path / "model.zip").model):
        assert isinstance(loaded.policy, TransformerPolicy)
        np.testing.assert_array_equal(run(loaded.policy, observations), run(model.policy, observations))


def test_ppo_does_not_train_it(model):
    with pytest.raises(NotImplementedError, match="PPO cannot train it"):
        model.learn(8)
    with pytest.raises(RefineError, match="method: PPO cannot train a transformer"):
        Trainer(agent_from_model(model, "Pendulum-v1"), n_eval_episodes=2, backend="serial").learn(100)
