"""``distill``: a student of another architecture learns an agent's actions."""

import json

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import ENV_ID, MADE, NORMALIZED
from gymnasium import spaces
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

from sb3_refine import RefineError, Refiner, export, load_agent
from sb3_refine.agents.from_model import agent_from_model
from sb3_refine.errors import EpisodeError
from sb3_refine.evaluation.demonstrations import Demonstration, demonstrate
from sb3_refine.evaluation.target import open_targets, rollout_task
from sb3_refine.policies.base import DeterministicPolicy
from sb3_refine.policies.parameters import PolicyParameters
from sb3_refine.policies.transformer import TransformerPolicy
from sb3_refine.reporting.wording import notes_of
from sb3_refine.seeding import EpisodeSeeds
from sb3_refine.students.architectures import MLP, STUDENTS, student_options
from sb3_refine.students.cloning import Cloning
from sb3_refine.students.distill import DistillationInterrupted, distill

FAST = {"n_episodes": 2, "n_rounds": 1, "n_gradient_steps": 20, "n_eval_episodes": 2, "backend": "serial"}
SMALL_TRANSFORMER = "transformer:context=4,n_layers=1,embed_dim=16"


class Short(gym.Env):
    """Ten steps, with any spaces, and a reward of 1 for each."""

    def __init__(self, observation_space=None, action_space=None):
        self.observation_space = observation_space or spaces.Box(-1, 1, (3,))
        self.action_space = action_space or spaces.Discrete(3)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self._n_left = 10
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self._n_left -= 1
        return self.observation_space.sample(), 1.0, self._n_left == 0, False, {}


# ---------------------------------------------------------------- what is learned


@pytest.mark.slow
def test_a_small_student_comes_close_to_its_teacher(demo_agent):
    found = distill(demo_agent, "mlp:net_arch=[16,16]", n_rounds=2, n_gradient_steps=3000, n_workers=2)
    teacher, student = found.record["teacher"], found.record["student"]
    assert student["n_parameters"] == 16 * 4 + 16 * 17 + 17 < teacher["n_parameters"] / 10
    assert student["mean_return"] > 1.05 * teacher["mean_return"]  # returns are negative
    untrained = distill(demo_agent, "mlp:net_arch=[16,16]", n_rounds=0, n_gradient_steps=1, n_workers=2)
    assert untrained.record["student"]["mean_return"] < 2 * teacher["mean_return"]


@pytest.mark.slow
def test_a_transformer_comes_close_to_its_teacher(demo_agent):
    found = distill(demo_agent, "transformer:context=5,embed_dim=32,n_layers=2", n_rounds=2, n_workers=2)
    assert isinstance(found.model.policy, TransformerPolicy)
    assert found.record["student"]["mean_return"] > 1.1 * found.record["teacher"]["mean_return"]


@pytest.fixture
def demo_agent():
    from sb3_refine.cli.options import DEMO

    return load_agent(DEMO["algo"], DEMO["env"], DEMO["folder"])


def test_in_later_rounds_the_student_acts_and_the_teacher_labels(made_agents):
    agent = load_agent("sac", ENV_ID, made_agents)
    task = rollout_task(agent)

    class AlwaysOne(type(task.policy)):
        def __init__(self):
            self._targets = []

        def __call__(self, observation):
            return np.ones(1, np.float32)

    (of_student,) = demonstrate(task, agent.observation_space, [5], AlwaysOne())
    np.testing.assert_array_equal(of_student.actions, np.ones((200, 1), np.float32))
    normalised = [agent.model.predict(each, deterministic=True)[0] for each in of_student.observations]
    np.testing.assert_array_equal(of_student.labels, normalised)
    (of_teacher,) = demonstrate(task, agent.observation_space, [5])
    np.testing.assert_array_equal(of_teacher.actions, of_teacher.labels)
    assert of_teacher.episode_return != of_student.episode_return


def test_labels_of_a_recurrent_teacher_follow_its_state():
    teacher = RecurrentPPO("MlpLstmPolicy", "CartPole-v1", n_steps=8, seed=0, device="cpu")
    with th.no_grad():
        for parameter in teacher.policy.parameters():
            parameter.mul_(5)
    agent = agent_from_model(teacher, "CartPole-v1")
    (episode,) = demonstrate(rollout_task(agent), agent.observation_space, [3])
    state, expected = None, []
    for observation in episode.observations:
        action, state = teacher.predict(observation, state, np.array([state is None]), deterministic=True)
        expected.append(action)
    np.testing.assert_array_equal(episode.labels, expected)


def cloned(space, observations, labels, n_steps=300, **kwargs):
    """A policy without hidden units that has learned labels of single observations."""
    student = MLP([])
    env = Short(spaces.Box(-1, 1, observations.shape[1:]), space)
    model = PPO("MlpPolicy", env, n_steps=8, batch_size=8, policy_kwargs=student.policy(env.observation_space)[1])
    cloning = Cloning(model.policy, student, None, seed=0, n_gradient_steps=n_steps, learning_rate=0.05)
    one = Demonstration(list(observations), labels, labels, 0.0)
    examples = cloning.examples([one])
    before = cloning.loss(examples)
    cloning.fit(examples)
    return model, before, cloning.loss(examples)


@pytest.mark.slow
def test_actions_far_from_zero_are_learned(monkeypatch):
    class Far(Short):
        def __init__(self):
            super().__init__(action_space=spaces.Box(1000, 1001, (1,)))

    teacher = PPO("MlpPolicy", Far(), n_steps=8, batch_size=8, seed=0, device="cpu")
    with th.no_grad():
        teacher.policy.action_net.bias.fill_(1000.5)
        teacher.policy.action_net.weight.mul_(10)
    for student in ("linear", SMALL_TRANSFORMER):
        found = distill(teacher, student, env=Far, **{**FAST, "n_gradient_steps": 200})
        assert found.record["rounds"][-1]["loss"] < 0.05, "of half the range, squared"


@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2)], ids=str)
def test_discrete_actions_of_every_kind_are_learned(space):
    observations = np.random.default_rng(0).uniform(-1, 1, (100, 2)).astype(np.float32)
    right = (observations > 0).astype(np.int64)
    labels = right[:, 0] + right[:, 1] * right[:, 0] if isinstance(space, spaces.Discrete) else right
    model, before, after = cloned(space, observations, labels)
    found, _ = model.predict(observations, deterministic=True)
    assert np.mean(found == labels) > 0.9
    assert after < before / 2


@pytest.mark.slow
def test_beyond_a_bound_that_the_label_is_at_there_is_no_loss():
    """The environment clips actions, so a linear policy may be exact where its teacher is at its bounds."""
    observations = np.linspace(-1, 1, 41, dtype=np.float32)[:, None]
    labels = np.clip(5 * observations, -2, 2)
    model, before, after = cloned(spaces.Box(-2, 2, (1,)), observations, labels, n_steps=2000)
    assert after < 1e-6 < before
    found, _ = model.predict(observations, deterministic=True)
    np.testing.assert_allclose(found, labels, atol=1e-3)


@pytest.mark.slow
def test_the_order_of_examples_comes_from_the_seed(made_agents):
    agent = load_agent("sac", ENV_ID, made_agents)
    one, same, other = (distill(agent, "mlp", seed=seed, **FAST) for seed in (0, 0, 1))
    assert one.record["rounds"] == same.record["rounds"]
    assert one.record["student"]["returns"] == same.record["student"]["returns"]
    assert one.record["rounds"] != other.record["rounds"]


# ---------------------------------------------------------------- the student


@pytest.mark.parametrize(
    ("algo", "student"),
    [(algo, "mlp:net_arch=[8]") for algo in MADE]
    + [pytest.param(algo, SMALL_TRANSFORMER, marks=[pytest.mark.slow] * (algo != "sac")) for algo in MADE],
)
def test_a_student_of_every_algorithm_is_a_plain_ppo_agent(made_agents, tmp_path, algo, student):
    agent = load_agent(algo, ENV_ID, made_agents)
    found = distill(agent, student, **FAST)
    run_folder = found.save(tmp_path)
    assert run_folder == tmp_path / "ppo" / f"{ENV_ID}_1"
    assert type(PPO.load(run_folder / f"{ENV_ID}.zip")) is PPO
    loaded = load_agent("ppo", ENV_ID, tmp_path)
    record = json.loads((run_folder / "distillation.json").read_text())
    assert record["teacher"]["algo"] == algo
    with open_targets([loaded], backend="serial") as (target,):
        again = target.run(record["seeds"]["test"])
    assert again.returns.tolist() == record["student"]["returns"]


@pytest.mark.parametrize(
    "observation_space",
    [
        spaces.Discrete(4),
        spaces.MultiBinary(3),
        spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "b": spaces.Discrete(3)}),
        spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "b": spaces.Box(-9, 9, (1, 2))}),
        pytest.param(spaces.Box(0, 255, (36, 36, 3), np.uint8), marks=pytest.mark.slow),
    ],
    ids=["discrete", "binary", "dict with discrete", "dict", "image"],
)
@pytest.mark.parametrize("student", ["mlp:net_arch=[8]", SMALL_TRANSFORMER])
def test_observations_of_every_kind(tmp_path, observation_space, student):
    policy = "MultiInputPolicy" if isinstance(observation_space, spaces.Dict) else "MlpPolicy"
    if len(observation_space.shape or ()) == 3:
        policy = "CnnPolicy"
    teacher = PPO(policy, Short(observation_space), n_steps=8, batch_size=8, seed=0, device="cpu")
    found = distill(teacher, student, env=lambda: Short(observation_space), **FAST)
    assert found.record["student"]["mean_return"] == 10


@pytest.mark.parametrize("action_space", [spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2)], ids=str)
@pytest.mark.parametrize("student", ["mlp:net_arch=[8]", SMALL_TRANSFORMER])
def test_actions_of_every_kind(action_space, student):
    teacher = PPO("MlpPolicy", Short(action_space=action_space), n_steps=8, batch_size=8, seed=0, device="cpu")
    found = distill(teacher, student, env=lambda: Short(action_space=action_space), **FAST)
    assert found.record["student"]["mean_return"] == 10


def test_statistics_of_the_teacher_are_kept(made_agents):
    agent = load_agent(NORMALIZED, ENV_ID, made_agents)
    found = distill(agent, "linear", **FAST)
    np.testing.assert_array_equal(found.agent.vec_normalize.obs_rms.mean, agent.vec_normalize.obs_rms.mean)


def test_a_teacher_without_statistics_gives_its_student_some(made_agents):
    agent = load_agent("sac", ENV_ID, made_agents)
    found = distill(agent, "linear", **FAST)
    assert agent.vec_normalize is None
    assert found.agent.config["normalize"] is True
    seeds = found.record["settings"]["seed"]
    episodes = demonstrate(rollout_task(agent), agent.observation_space, EpisodeSeeds(seeds).take("search", 2)[1:])
    expected = np.mean(episodes[0].observations, axis=0)
    np.testing.assert_allclose(found.agent.vec_normalize.obs_rms.mean, expected, rtol=1e-3)


def test_a_constant_observation_is_not_blown_up():
    class Constant(Short):
        def reset(self, seed=None, options=None):
            observation, info = super().reset(seed=seed)
            return observation * np.array([1, 0, 1], np.float32), info

        def step(self, action):
            observation, *rest = super().step(action)
            return observation * np.array([1, 0, 1], np.float32), *rest

    teacher = PPO("MlpPolicy", Constant(), n_steps=8, batch_size=8, seed=0, device="cpu")
    found = distill(teacher, "linear", env=Constant, **FAST)
    assert found.agent.vec_normalize.obs_rms.var[1] == 1


def test_the_teacher_is_left_as_it_is(made_agents):
    agent = load_agent("td3", ENV_ID, made_agents)
    before = {name: value.clone() for name, value in agent.model.policy.state_dict().items()}
    distill(agent, "mlp", **FAST)
    assert all(th.equal(value, before[name]) for name, value in agent.model.policy.state_dict().items())


def test_the_best_round_is_saved(made_agents, monkeypatch):
    returns, thetas = iter([-5.0, -1.0, -3.0]), []

    def mean_return(course):
        thetas.append(course._parameters.get_theta())
        return next(returns)

    monkeypatch.setattr("sb3_refine.students.distill._Course._mean_return", mean_return)
    found = distill(load_agent("sac", ENV_ID, made_agents), "linear", **{**FAST, "n_rounds": 2})
    assert found.record["chosen_round"] == 1
    np.testing.assert_array_equal(PolicyParameters(found.model.policy).get_theta(), thetas[1])


# ---------------------------------------------------------------- what can be done with it


@pytest.mark.parametrize("student", ["mlp:net_arch=[8]", pytest.param(SMALL_TRANSFORMER, marks=pytest.mark.slow)])
@pytest.mark.parametrize("optimizer", ["backtracking-ars", "openai-es"])
def test_a_student_is_refined(made_agents, student, optimizer):
    agent = distill(load_agent("sac", ENV_ID, made_agents), student, **FAST).agent
    refiner = Refiner(agent, optimizer=optimizer, n_delta=2, n_eval_episodes=4, backend="serial").learn(2)
    assert refiner.result.decision in ("refined", "original")


def test_a_small_student_is_exported(made_agents, tmp_path):
    agent = distill(load_agent("sac", ENV_ID, made_agents), "mlp:net_arch=[8]", **FAST).agent
    assert export(agent, tmp_path, ["c"], n_episodes=1)["n_parameters"] == 41


# ---------------------------------------------------------------- the command line


@pytest.mark.slow
def test_the_command_line(run, tmp_path):
    arguments = ["--demo", "--student", "mlp:net_arch=[8]", "--n-rounds", 1, "--n-episodes", 2, "--n-eval-episodes", 4]
    done = run("distill", *arguments, "--n-gradient-steps", 50, "-o", tmp_path, "--backend", "serial")
    assert done.returncode == 0, done.stderr
    assert "\nteacher: -" in done.stdout and "41 parameters" in done.stdout
    assert f"refine the student: sb3-refine --algo ppo --env {ENV_ID} -f {tmp_path}" in done.stdout
    refined = run("--algo", "ppo", "--env", ENV_ID, "-f", tmp_path, "-o", tmp_path / "refined", "--n-updates", 1,
                  "--n-delta", 2, "--n-eval-episodes", 4, "--backend", "serial", "--no-report")  # fmt: skip
    assert refined.returncode == 0, refined.stderr
    assert "teacher (ppo) of this student: -" in refined.stdout


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ("mpl", r"student: unknown 'mpl' \(did you mean mlp\?\)"),
        ("mlp:net_arch=16", r"student: net_arch: expected a list of whole numbers, such as \[16,16\], got 16"),
        ("mlp:net_arch=[0]", "student: net_arch: expected a list of whole numbers"),
        ("mlp:activation_fn=rleu", "student: activation_fn: unknown 'rleu' .did you mean relu"),
        ("transformer:n_heads=3", r"transformer: embed_dim: expected a multiple of n_heads \(3\), got 128"),
        ("transformer:context=0", "transformer: context: expected a whole number of at least 2"),
        ("transformer:depth=3", "student: transformer has no option 'depth'"),
        ("linear:net_arch=[3]", "student: linear has no option 'net_arch'"),
    ],
)
def test_wrong_students_are_refused(student, message):
    with pytest.raises(RefineError, match=message):
        student_options(student)


def test_a_student_of_the_users_own(made_agents, monkeypatch):
    class Wide(MLP):
        def __init__(self, width: int = 4):
            super().__init__([width])

    monkeypatch.setitem(STUDENTS, "wide", Wide)
    found = distill(load_agent("sac", ENV_ID, made_agents), "wide", width=5, **FAST)
    assert found.record["student"]["n_parameters"] == 5 * 4 + 6


# ---------------------------------------------------------------- teachers and environments of every kind


class ChangesActions(Short):
    """Overwrites the array that it gets."""

    def __init__(self):
        super().__init__(action_space=spaces.Box(-1, 1, (2,)))

    def step(self, action):
        result = super().step(action)
        action *= 100
        return result


def test_an_environment_that_changes_its_action_does_not_change_the_label():
    teacher = PPO("MlpPolicy", ChangesActions(), n_steps=8, batch_size=8, seed=0, device="cpu")
    agent = agent_from_model(teacher, ChangesActions)
    (episode,) = demonstrate(rollout_task(agent), agent.observation_space, [3])
    expected = [teacher.predict(each, deterministic=True)[0] for each in episode.observations]
    np.testing.assert_array_equal(episode.labels, expected)
    np.testing.assert_array_equal(episode.actions, expected)


def test_a_transformer_as_teacher_sees_what_the_student_did():
    env = Short(action_space=spaces.Box(-2, 2, (1,)))
    sizes = {"context": 4, "n_layers": 1, "embed_dim": 16}
    teacher = PPO(TransformerPolicy, env, n_steps=8, batch_size=8, seed=0, device="cpu", policy_kwargs=sizes)
    with th.no_grad():
        for parameter in teacher.policy.parameters():
            parameter.add_(0.3 * th.randn_like(parameter))
    agent = agent_from_model(teacher, lambda: Short(action_space=spaces.Box(-2, 2, (1,))))
    task = rollout_task(agent)

    class AlwaysOne(DeterministicPolicy):
        _targets = ()

        def __call__(self, observation):
            return np.ones(1, np.float32)

    (episode,) = demonstrate(task, agent.observation_space, [3], AlwaysOne())
    state, expected = None, []
    for observation in episode.observations:
        action, state = teacher.predict(observation, state, np.array([state is None]), deterministic=True)
        expected.append(action)
        state = (state[0], np.ones((1, 1), np.float32), state[2])
    np.testing.assert_array_equal(episode.labels, expected)


def test_a_masked_teacher_gives_a_student_that_is_masked():
    teacher = MaskablePPO("MlpPolicy", MaskedShort(), n_steps=8, batch_size=8, seed=0, device="cpu")
    agent = agent_from_model(teacher, MaskedShort)
    found = distill(agent, "mlp:net_arch=[8]", **FAST)
    assert found.agent.algo == "ppo_mask"
    assert isinstance(found.model, MaskablePPO)
    with pytest.raises(RefineError, match="student: a transformer has no action masks, which this agent needs"):
        distill(agent, SMALL_TRANSFORMER, **FAST)


class MaskedShort(Short):
    """Every second step, only action 2 is valid."""

    def action_masks(self):
        return np.array([True] * 3 if self._n_left % 2 else [False, False, True])

    def step(self, action):
        assert self.action_masks()[action], "an invalid action"
        return super().step(action)


def test_the_student_of_a_teacher_with_stacked_frames_is_saved_and_loaded(tmp_path):
    env = VecFrameStack(DummyVecEnv([lambda: gym.make(ENV_ID)]), 2)
    teacher = SAC("MlpPolicy", env, seed=0, device="cpu", buffer_size=100)
    found = distill(teacher, "mlp:net_arch=[8]", **FAST)
    assert found.agent.vec_normalize is None, "the Zoo has no place for statistics of stacked frames"
    found.save(tmp_path)
    loaded = load_agent("ppo", ENV_ID, tmp_path)
    with open_targets([loaded], backend="serial") as (target,):
        assert target.run(found.record["seeds"]["test"]).returns.tolist() == found.record["student"]["returns"]


def test_statistics_of_rewards_alone_are_replaced():
    env = VecNormalize(DummyVecEnv([lambda: gym.make(ENV_ID)]), norm_obs=False)
    teacher = SAC("MlpPolicy", env, seed=0, device="cpu", buffer_size=100)
    found = distill(teacher, "linear", **FAST)
    assert found.agent.vec_normalize.norm_obs


def test_a_teacher_with_nan_is_named(made_agents):
    agent = load_agent("td3", ENV_ID, made_agents)
    with th.no_grad():
        agent.model.policy.actor.mu[0].weight.fill_(np.nan)
    with pytest.raises((RefineError, EpisodeError), match="NaN"):
        distill(agent, "linear", **FAST)


def test_entries_that_are_not_in_the_space_are_left_out():
    class Talkative(Short):
        def __init__(self):
            super().__init__(spaces.Dict({"a": spaces.Box(-1, 1, (2,))}))

        def reset(self, seed=None, options=None):
            observation, info = super().reset(seed=seed)
            return {**observation, "debug": "text"}, info

        def step(self, action):
            observation, *rest = super().step(action)
            return {**observation, "debug": "text"}, *rest

    teacher = PPO("MultiInputPolicy", Talkative(), n_steps=8, batch_size=8, seed=0, device="cpu")
    assert distill(teacher, "mlp", env=Talkative, **FAST).record["student"]["n_episodes"] == 2


def test_float64_bounds_are_bounds_too():
    space = spaces.Box(-0.1, 0.1, (1,), np.float64)
    observations = np.linspace(-1, 1, 41, dtype=np.float32)[:, None]
    labels = np.clip(observations, -0.1, 0.1).astype(np.float64)
    _, before, after = cloned(space, observations, labels, n_steps=1000)
    assert after < 1e-6 < before


def test_ctrl_c_leaves_the_best_student_so_far(made_agents, tmp_path):
    def stop(found):
        if found.number == 1:
            raise KeyboardInterrupt

    with pytest.raises(DistillationInterrupted) as caught:
        distill(load_agent("sac", ENV_ID, made_agents), "linear", on_round=stop, **FAST)
    found = caught.value.found
    assert [each["number"] for each in found.record["rounds"]] == [0, 1]
    assert (found.save(tmp_path) / f"{ENV_ID}.zip").is_file()
    assert "teacher" not in found.agent.args, "the teacher was not tested"


def test_ctrl_c_in_the_test_leaves_the_student(made_agents, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("sb3_refine.students.distill._tested", interrupted)
    with pytest.raises(DistillationInterrupted) as caught:
        distill(load_agent("sac", ENV_ID, made_agents), "linear", **FAST)
    assert len(caught.value.found.record["rounds"]) == 2
    assert "student: not tested" in str(caught.value.found)


def test_of_equal_rounds_the_last_is_saved(made_agents, monkeypatch):
    monkeypatch.setattr("sb3_refine.students.distill._Course._mean_return", lambda course: 500.0)
    found = distill(load_agent("sac", ENV_ID, made_agents), "linear", **FAST)
    assert found.record["chosen_round"] == 1


@pytest.mark.parametrize(
    "teacher",
    [
        {"algo": "tqc", "mean_return": 2**64, "std_return": 1.0, "n_episodes": 100},
        {"algo": "x" * 6000, "mean_return": 1.0, "std_return": 1.0, "n_episodes": 100},
        {"algo": "tqc", "mean_return": float("nan"), "std_return": 1.0, "n_episodes": 100},
        {"algo": "tqc", "mean_return": 1.0, "std_return": 1.0, "n_episodes": True},
        [[[[[]]]]],
    ],
    ids=["large", "long", "nan", "flag", "nested"],
)
def test_figures_of_a_teacher_from_a_file_are_checked(made_agents, tmp_path, teacher):
    agent = load_agent("sac", ENV_ID, made_agents)
    agent.args["teacher"] = teacher
    refiner = Refiner(agent, n_delta=2, n_eval_episodes=4, backend="serial").learn(1)
    record = json.loads((refiner.save(tmp_path) / "refinement.json").read_text())
    assert "teacher" not in record["settings"]
    assert notes_of({"teacher": teacher, "quantize": teacher}) == []


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"context": 500_000_000}, "transformer: context: expected a whole number"),
        ({"context": 1}, "transformer: context: expected a whole number of at least 2"),
        ({"n_heads": 3}, "transformer: embed_dim: expected a multiple of n_heads"),
        ({"target_return": "x"}, "target_return: expected a number"),
        ({"use_sde": True}, "leave use_sde out"),
    ],
    ids=str,
)
def test_sizes_of_a_transformer_that_come_from_a_file_are_checked(kwargs, message):
    with pytest.raises((RefineError, ValueError), match=message):
        TransformerPolicy(spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (1,)), lambda _: 1e-3, **kwargs)
