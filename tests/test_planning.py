"""Tree search that is led by an agent, and what the agent learns from it."""

import json

import gymnasium as gym
import numpy as np
import pytest
import sb3_contrib
import stable_baselines3
import torch
from conftest import run_policy
from gymnasium import spaces
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

from sb3_refine import Planner, RefineError, load_agent, plan
from sb3_refine.agents.agent import save_agent
from sb3_refine.agents.from_model import agent_from_model
from sb3_refine.evaluation.target import rollout_task
from sb3_refine.evaluators import SerialEvaluator
from sb3_refine.planning.network import network_of
from sb3_refine.planning.task import Planning
from sb3_refine.planning.tree import SearchSettings, TreeSearch
from sb3_refine.policies.parameters import PolicyParameters

QUICK = {"n_simulations": 8, "n_rounds": 2, "n_episodes": 4, "n_gradient_steps": 20, "n_eval_episodes": 6}


class Line(gym.Env):
    """
    Walk along a line of states; rewards of each step, and of leaving at the ends. Action 0 goes left, 1 goes right.

    :param rewards: of arriving at each place; the first and the last one end the episode
    """

    action_space = spaces.Discrete(2)

    def __init__(self, rewards, start, slip=0.0):
        self._rewards, self._start, self._slip = rewards, start, slip
        self.observation_space = spaces.Box(0, 1, (len(rewards),), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._place = self._start
        return self._observation(), {}

    def step(self, action):
        if self._slip and self.np_random.random() < self._slip:
            action = 1 - action
        self._place += 2 * action - 1
        return self._observation(), self._rewards[self._place], self._place in (0, len(self._rewards) - 1), False, {}

    def _observation(self):
        return np.eye(len(self._rewards), dtype=np.float32)[self._place]


class Knows:
    """A network that knows nothing, or one value."""

    uses_masks = True

    def __init__(self, value=0.0, prior=(0.5, 0.5)):
        self._value, self._prior = value, np.array(prior)

    def evaluate(self, observation, mask):
        prior = self._prior if mask is None else np.where(mask, self._prior, 0.0)
        return prior / prior.sum(), self._value


def searched(env, network=None, is_random=False, seed=0, **kwargs):
    settings = SearchSettings(**{"n_simulations": 200, "discount": 0.9, **kwargs})
    observation, _ = env.reset(seed=0)
    return TreeSearch(env, network or Knows(), settings, is_random).plan(observation, np.random.default_rng(seed))


def test_a_distant_reward_is_found():
    found = searched(Line([0, 0, 0, 0, 0, 1.0], start=2))
    assert found.action == 1
    assert found.visits.argmax() == 1
    assert found.visits.sum() == pytest.approx(1)


def test_the_visits_do_not_depend_on_the_scale_of_the_rewards():
    small, large = (searched(Line([factor * x for x in (1, 0, 0, 0, 2)], start=2)) for factor in (0.001, 1000))
    assert np.array_equal(small.visits, large.visits)
    assert large.value == pytest.approx(1e6 * small.value)


def test_small_differences_of_the_returns_leave_the_choice_to_the_prior():
    env, sure = Line([0.01, 0, 0, 0.0], start=1), Knows(prior=(0.1, 0.9))
    assert searched(env, sure).action == 0
    assert searched(env, sure, least_range=1.0).action == 1


def test_the_value_is_that_of_the_best_way_as_simulations_grow():
    env = Line([0, 0, 0, 0, 1.0], start=2)
    best = 0.9  # two steps to the right, the second one rewarded
    errors = [best - searched(env, n_simulations=n).value for n in (10, 1000)]
    assert 0 < errors[1] < errors[0]
    assert errors[1] < 0.1


def test_after_a_termination_nothing_comes_and_after_a_time_limit_the_value_of_the_network():
    ends = Line([1.0, 0, 1.0], start=1)
    assert searched(ends, Knows(10.0)).value == pytest.approx(1.0)
    cut = gym.wrappers.TimeLimit(Line([1.0, 0, 0, 0, 1.0], start=2), 1)
    assert searched(cut, Knows(10.0)).value == pytest.approx(0.9 * 10)


def test_chance_is_averaged_and_not_foreseen():
    """An action that slips half of the time is worth half; a search that knew the random numbers would find 0 or 1."""
    coin = Line([0.0, 0, 1.0], start=1, slip=0.5)
    values = [searched(coin, is_random=True, seed=seed, n_simulations=400).value for seed in range(3)]
    assert values == pytest.approx([0.5] * 3, abs=0.1)


def test_the_environment_is_left_as_it_was():
    env, plain = (gym.make("FrozenLake-v1", is_slippery=True) for _ in range(2))
    env.reset(seed=5)
    plain.reset(seed=5)
    search = TreeSearch(env, Knows(prior=[0.25] * 4), SearchSettings(20), is_random=True)
    for action in (0, 2, 1, 2, 1, 1):
        search.plan(np.array(0), np.random.default_rng(0))
        ours, theirs = env.step(action), plain.step(action)
        assert ours[:4] == theirs[:4]
        if ours[2]:
            break


def test_what_no_generator_shows_before_is_found_out_on_the_way():
    """The third step to the right is a lottery: not worth it on average, whatever one draw says."""

    class Lottery(Line):
        def step(self, action):
            observation, reward, *others = super().step(action)
            if self._place == 4:
                reward = 1.0 if self.np_random.random() < 0.3 else -1.0
            return observation, reward, *others

    env = Lottery([0.1, 0, 0, 0, 0], start=1)
    assert [searched(env, seed=seed, n_simulations=100).action for seed in range(5)] == [0] * 5


def test_with_noise_on_the_observations_the_search_still_looks_ahead():
    class Blurred(Line):
        def _observation(self):
            return super()._observation() + self.np_random.normal(0, 1e-3, len(self._rewards)).astype(np.float32)

    found = searched(Blurred([0, 0, 0, 0, 1.0], start=2), is_random=True, n_simulations=400)
    assert found.action == 1
    assert found.visits[1] > 0.7


@pytest.mark.parametrize("wrong", [np.nan, -np.inf, np.inf])
def test_what_is_not_finite_is_not_followed(wrong):
    found = searched(Line([wrong, 0, 0, 1.0], start=1))
    assert found.action == 1
    assert found.visits[1] == 1
    assert np.isfinite(found.value)


def test_actions_that_are_not_valid_are_not_tried():
    class Masked(Line):
        def action_masks(self):
            return [True, False]

    assert np.array_equal(searched(Masked([0, 0, 0, 1.0], start=2)).visits, [1, 0])
    ignores = Knows()
    ignores.uses_masks = False  # as the policies of PPO do
    assert searched(Masked([0, 0, 0, 1.0], start=2), ignores).action == 1


def test_a_very_sure_policy_can_be_corrected():
    found = searched(Line([0, 0, 0, 1.0], start=2), Knows(prior=(1.0, 0.0)), root_noise=0.25)
    assert found.action == 1


def test_the_seed_decides_the_search():
    env = Line([0.5, 0, 0, 0, 0, 1.0], start=2, slip=0.2)
    one, again, other = (searched(env, is_random=True, seed=seed, root_noise=0.25).visits for seed in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


# ---------------------------------------------------------------- networks

ACTOR_CRITICS = [
    (stable_baselines3.A2C, {}),
    (PPO, {}),
    (sb3_contrib.TRPO, {}),
    (sb3_contrib.MaskablePPO, {}),
]


@pytest.mark.parametrize(("cls", "kwargs"), ACTOR_CRITICS)
def test_policy_and_value_are_those_of_the_model(cls, kwargs):
    model = cls("MlpPolicy", "CartPole-v1", seed=0, device="cpu", **kwargs)
    network = network_of(agent_from_model(model), [])
    observation = np.array([0.1, -0.2, 0.05, 0.3], dtype=np.float32)
    prior, value = network.evaluate(observation, None)
    batch = torch.as_tensor(observation[np.newaxis])
    with torch.no_grad():
        expected = model.policy.get_distribution(batch).distribution.probs[0].numpy()
        assert value == float(model.policy.predict_values(batch))
    assert prior == pytest.approx(expected)


@pytest.mark.parametrize("cls", [DQN, sb3_contrib.QRDQN])
def test_a_value_based_agent_has_a_softmax_of_its_values(cls):
    model = cls("MlpPolicy", "CartPole-v1", seed=0, device="cpu", buffer_size=1)
    observations = list(np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32))
    network = network_of(agent_from_model(model), observations, temperature=2.0)
    with torch.no_grad():
        batch = torch.as_tensor(np.array(observations))
        values = (model.policy.q_net(batch) if cls is DQN else model.policy.quantile_net(batch).mean(dim=1)).numpy()
    assert network.temperature == pytest.approx(2 * values.std(axis=1).mean())
    prior, value = network.evaluate(observations[0], None)
    powers = np.exp(values[0] / network.temperature)
    assert prior == pytest.approx(powers / powers.sum())
    assert value == pytest.approx(values[0].max())


def test_values_of_normalised_rewards_are_in_units_of_the_rewards():
    env = VecNormalize(DummyVecEnv([lambda: gym.make("CartPole-v1")]))
    model = PPO("MlpPolicy", env, seed=0, device="cpu", n_steps=64).learn(64)
    agent = agent_from_model(model)
    network = network_of(agent, [])
    assert network.value_scale == pytest.approx(np.sqrt(env.ret_rms.var + env.epsilon))
    observation = np.array([0.1, -0.2, 0.05, 0.3], dtype=np.float32)
    with torch.no_grad():
        seen = model.policy.obs_to_tensor(env.normalize_obs(observation[np.newaxis]))[0]
        expected = float(model.policy.predict_values(seen)) * network.value_scale
    assert network.evaluate(observation, None)[1] == pytest.approx(expected)


def test_probabilities_that_are_too_small_for_a_number_do_no_harm():
    model = DQN("MlpPolicy", "CartPole-v1", seed=0, device="cpu", buffer_size=1)
    network = network_of(agent_from_model(model), [np.zeros(4, dtype=np.float32)], temperature=1e-9)
    observation = np.array([0.1, -0.2, 0.05, 0.3], dtype=np.float32)
    best = int(network.evaluate(observation, None)[0].argmax())
    mask = np.arange(2) != best
    assert network.evaluate(observation, mask)[0].tolist() == mask.astype(float).tolist()


# ---------------------------------------------------------------- episodes

WATCHED = ["FrozenLake-v1", "CartPole-v1", "MiniGrid-Dynamic-Obstacles-5x5-v0", "BreakoutNoFrameskip-v4"]


@pytest.mark.parametrize("env_id", WATCHED)
def test_a_search_that_only_watches_leaves_the_episode_as_it_is(env_id):
    if env_id.startswith("MiniGrid"):
        pytest.importorskip("minigrid")
    if env_id.startswith("Breakout"):
        gym.register_envs(pytest.importorskip("ale_py"))

    def make():
        kwargs = {"obs_type": "ram"} if env_id.startswith("Breakout") else {}
        env = gym.make(env_id, max_episode_steps=60, **kwargs)
        if env_id.startswith("MiniGrid"):
            from minigrid.wrappers import FlatObsWrapper

            env = FlatObsWrapper(env)
        return env

    agent = agent_from_model(PPO("MlpPolicy", DummyVecEnv([make]), seed=0, device="cpu"), make)
    planning = Planning(agent, 4)
    with SerialEvaluator(planning.task) as searching, SerialEvaluator(rollout_task(agent)) as plain:
        ours = run_policy(searching, planning.theta(acts_by_search=False), [1, 2, 3])
        theirs = run_policy(plain, PolicyParameters(agent.model.policy).get_theta(), [1, 2, 3])
    assert [each[:4] for each in ours] == [each[:4] for each in theirs]


# ---------------------------------------------------------------- learning


def make_lake():
    return gym.make("FrozenLake-v1", desc=["SFF", "FHF", "FFG"], is_slippery=False, max_episode_steps=20)


@pytest.fixture(scope="module")
def lake():
    """An untrained agent on a small lake, whose goal is four steps away."""
    return PPO("MlpPolicy", DummyVecEnv([make_lake]), seed=0, device="cpu")


@pytest.mark.slow
def test_an_untrained_agent_learns_the_way_from_planning(lake):
    found = plan(lake, n_simulations=64, n_episodes=6, n_eval_episodes=20, backend="serial")
    assert found.result.decision == "refined"
    assert found.result.baseline.returns.mean() == 0
    assert found.result.candidate.returns.mean() == 1
    assert found.method == "plan"
    assert found.result.env_steps > 5_000  # the searches count


@pytest.mark.parametrize("backend", ["process", pytest.param("ray", marks=pytest.mark.slow)])
def test_the_result_does_not_depend_on_the_workers(lake, backend):
    runs = [plan(lake, **QUICK, backend=each).agents[1].model.policy for each in ("serial", backend)]
    for ours, theirs in zip(*(run.parameters() for run in runs), strict=True):
        assert torch.equal(ours, theirs)


def test_what_is_saved_is_a_plain_agent(tmp_path):
    model = DQN("MlpPolicy", "CartPole-v1", seed=0, device="cpu", buffer_size=100, policy_kwargs={"net_arch": [16]})
    planner = Planner(model, **QUICK, backend="serial")
    before = [each.clone() for each in model.policy.parameters()]
    found = planner.learn()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(before, model.policy.parameters(), strict=True))
    run_folder = found.save(tmp_path)
    record = json.loads((run_folder / "refinement.json").read_text())
    assert record["method"] == "plan"
    assert record["settings"]["n_simulations"] == 8
    assert len(record["settings"]["rounds"]) == 2
    found.report(run_folder)
    learned = found.agents[1]
    policy = learned.model.policy
    for ours, theirs in zip(policy.q_net.parameters(), policy.q_net_target.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    save_agent(learned, tmp_path / "learned")
    DQN.load(tmp_path / "learned" / "CartPole-v1.zip", env=gym.make("CartPole-v1")).learn(20)


def test_batch_normalisation_keeps_its_statistics(lake):
    class Normalised(FlattenExtractor):
        def __init__(self, space):
            super().__init__(space)
            self.norm = torch.nn.BatchNorm1d(self.features_dim)

        def forward(self, observations):
            return self.norm(super().forward(observations))

    kwargs = {"features_extractor_class": Normalised}
    model = PPO("MlpPolicy", DummyVecEnv([make_lake]), seed=0, device="cpu", policy_kwargs=kwargs)
    before = {name: each.clone() for name, each in model.policy.named_buffers()}
    planner = Planner(model, **QUICK, backend="serial")
    learned = planner.learn().agents[1].model.policy
    assert before
    for policy in (learned, planner.planning.network.policy):
        assert all(torch.equal(each, before[name]) for name, each in policy.named_buffers())


def test_actions_are_counted_as_the_agent_counts_them():
    """Stable-Baselines3 gives the environment 0, 1, ..., whatever the first action of its space is."""

    class Shifted(Line):
        action_space = spaces.Discrete(2, start=1)

        def step(self, action):
            assert action in (0, 1)
            return super().step(action)

    assert searched(Shifted([0, 0, 0, 1.0], start=2)).action == 1


def test_only_the_last_layers_learn_on_request(lake):
    found = plan(lake, **QUICK, parameters="head", backend="serial")
    ours, theirs = (dict(agent.model.policy.named_parameters()) for agent in found.agents)
    changed = {name.split(".")[0] for name in ours if not torch.equal(ours[name], theirs[name])}
    assert changed == {"action_net", "value_net"}


def test_no_round_begins_when_the_steps_are_used_up(lake):
    planner = Planner(lake, **{**QUICK, "n_rounds": 50}, backend="serial")
    planner.learn(n_timesteps=400)
    steps = [each.n_env_steps for each in planner.rounds]
    assert sum(steps[:-1]) < 400 <= sum(steps)


def test_an_error_leaves_the_last_round_and_a_further_call_begins_again(lake):
    planner = Planner(lake, **QUICK, backend="serial")

    def fail(found):
        if found.number == 2:
            raise RefineError("of the user")

    with pytest.raises(RefineError, match="of the user"):
        planner.learn(on_round=fail)
    assert planner.judgement.result.decision == "unchecked"
    assert "stopped by an error" in planner.judgement.result.reason
    again, fresh = planner.learn(), plan(lake, **QUICK, backend="serial")
    assert again.result.env_steps == fresh.result.env_steps
    for ours, theirs in zip(*(each.agents[1].model.policy.parameters() for each in (again, fresh)), strict=True):
        assert torch.equal(ours, theirs)


def test_after_a_time_limit_stacked_frames_are_those_before_the_reset():
    """``VecFrameStack`` clears its stack when an episode ends."""

    def make():
        return gym.make("CartPole-v1", max_episode_steps=3)

    env = VecFrameStack(DummyVecEnv([make]), 3)
    agent = agent_from_model(PPO("MlpPolicy", env, seed=0, device="cpu"))
    planning = Planning(agent, 2, keeps_plans=True)
    seen, evaluate = [], planning.network.evaluate

    def noted(observation, mask):
        seen.append(np.array(observation))
        return evaluate(observation, mask)

    planning.network.evaluate = noted
    with SerialEvaluator(planning.task) as evaluator:
        run_policy(evaluator, planning.theta(), [0])
    assert all(np.any(each[4:8]) for each in seen[-3:])  # two frames at least


def test_ctrl_c_leaves_the_last_round_untested(lake):
    planner = Planner(lake, **QUICK, backend="serial")

    def interrupt(found):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        planner.learn(on_round=interrupt)
    assert planner.judgement.result.decision == "unchecked"
    assert planner.judgement.name == "round 1"


def lstm():
    return sb3_contrib.RecurrentPPO("MlpLstmPolicy", "CartPole-v1", n_steps=8, device="cpu")


@pytest.mark.parametrize(
    ("make_model", "message"),
    [
        (lambda: PPO("MlpPolicy", "Pendulum-v1", device="cpu"), "env: a tree search needs discrete actions"),
        (
            lambda: sb3_contrib.ARS("LinearPolicy", "CartPole-v1", device="cpu"),
            "algo: a tree search needs an agent of a2c, dqn",
        ),
        (lstm, "model: a tree search needs a policy without a memory"),
    ],
)
def test_agents_that_cannot_lead_a_search_are_refused(make_model, message):
    with pytest.raises(RefineError, match=message) as raised:
        Planner(make_model())
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_simulations": 0}, "n_simulations: expected a whole number of at least 1"),
        ({"n_rounds": 0}, "n_rounds: expected a whole number of at least 1"),
        ({"temperature": 0}, "temperature: expected a number above 0"),
        ({"learning_rate": -1}, "learning_rate: expected a number above 0"),
        ({"root_noise": 2}, "root_noise: expected a share"),
        ({"parameters": "nothing"}, "parameters: 'nothing' matches none"),
    ],
)
def test_wrong_arguments_are_named(lake, wrong, message):
    with pytest.raises(RefineError, match=message):
        Planner(lake, backend="serial", **wrong)


# ---------------------------------------------------------------- the command line


@pytest.fixture
def cartpole(tmp_path):
    """A run folder with an agent."""
    model = PPO("MlpPolicy", "CartPole-v1", seed=0, device="cpu", n_steps=64, policy_kwargs={"net_arch": [16]}).learn(
        64
    )
    save_agent(agent_from_model(model), tmp_path / "ppo" / "CartPole-v1_1")
    return tmp_path


def test_the_command_line_plans_judges_saves_and_reports(cartpole, run):
    options = ("--n-simulations", 4, "--n-rounds", 2, "--n-episodes", 2, "--n-eval-episodes", 5, "--n-workers", 1)
    done = run(
        *("--algo", "ppo", "--env", "CartPole-v1", "-f", cartpole, "-o", cartpole / "out", "--method", "plan"), *options
    )
    assert done.returncode == 0, done.stderr
    assert "2 rounds of 2 episodes, with 4 simulations in each step" in done.stdout
    assert "round 2" in done.stdout
    (report,) = (cartpole / "out").glob("ppo/CartPole-v1_1/report.md")
    assert "## The planning" in report.read_text()
    assert load_agent("ppo", "CartPole-v1", cartpole / "out").algo == "ppo"


def test_a_run_cannot_be_resumed(cartpole, run):
    small = (
        "--n-simulations",
        2,
        "--n-rounds",
        3,
        "--n-episodes",
        1,
        "--n-eval-episodes",
        2,
        "--n-workers",
        1,
        "-n",
        1,
    )
    arguments = ("--algo", "ppo", "--env", "CartPole-v1", "-f", cartpole, "-o", cartpole / "out", "--method", "plan")
    done = run(*arguments, *small)
    assert "planning ended after 1 of 3 rounds: the steps are used up" in done.stderr + done.stdout
    again = run("--resume", cartpole / "out" / "ppo" / "CartPole-v1_1")
    assert (again.returncode, again.stderr.count("\n")) == (1, 1)
    assert "--resume: a run of --method plan cannot be resumed; start again" in again.stderr


def test_evaluate_acts_by_search(cartpole, run):
    options = ("--n-eval-episodes", 3, "--no-noise", "--n-workers", 1, "--search", 4)
    done = run("evaluate", "--algo", "ppo", "--env", "CartPole-v1", "-f", cartpole, *options, "--json", cartpole / "f")
    assert done.returncode == 0, done.stderr
    assert "by tree search with 4 simulations" in done.stdout
    figures = json.loads((cartpole / "f").read_text())
    plain, searching = (figures["agents"][name]["conditions"]["no noise"] for name in ("other", "agent"))
    assert plain["env_steps"] == sum(plain["lengths"])
    assert searching["env_steps"] > 4 * sum(searching["lengths"])


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--method", "plan", "--n-delta", "3"], "--n-delta: not an option of --method plan; leave it out"),
        (["--n-simulations", "3"], "--n-simulations: not an option of --method search; leave it out"),
        (["--method", "plan", "--learning-rate", "1", "2"], "--learning-rate: with --method plan, name one number"),
        (["--method", "plan", "--time-limit", "0"], "--time-limit: 0 s is too short: the test alone takes about"),
    ],
)
def test_options_of_other_methods_are_one_line(cartpole, run, options, line):
    done = run("--algo", "ppo", "--env", "CartPole-v1", "-f", cartpole, "-o", cartpole / "out", *options)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert line in done.stderr
