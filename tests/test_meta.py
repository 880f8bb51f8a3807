"""Meta-learning: a distribution of actors and critics, searched for the returns after adaptation."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch as th
import yaml
from conftest import ENV_ID, target_of
from stable_baselines3 import DDPG, PPO, TD3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_refine import RefineError, load_agent
from sb3_refine.agents.from_model import agent_from_model
from sb3_refine.agents.tasks import with_tasks, without_tasks
from sb3_refine.envs.task_env import same_task
from sb3_refine.evaluators import SerialEvaluator
from sb3_refine.meta.adapt import adapt, adapted_agent, task_with
from sb3_refine.meta.adaptation import (
    BEFORE,
    CRITIC_ERROR,
    AdaptationSettings,
    Transitions,
    Watched,
    critic_error,
    critic_parameters,
    learner_of,
)
from sb3_refine.meta.distribution import MetaPopulation, Shape, gradients
from sb3_refine.meta.exploration import Exploration, find_exploration, read_exploration
from sb3_refine.meta.meta_refiner import MetaRefiner
from sb3_refine.meta.optimizer import MetaES
from sb3_refine.optimizers.population import ExplicitPopulation
from sb3_refine.policies.parameters import PolicyParameters
from sb3_refine.reporting.publish import layout
from sb3_refine.reporting.run_folder import read_run_folder
from sb3_refine.rollouts.episode import N_ENV_STEPS

PUSHED = {"env_kwargs": {"g": {"uniform": [5.0, 15.0]}}}  # of Pendulum
SMALL = AdaptationSettings(adapt_episodes=3, adapt_steps=4, batch_size=16)
SHAPE = Shape(n_actor=5, n_critic=3, n_explorers=4)


@pytest.fixture
def agent(made_agents):
    return with_tasks(load_agent("td3", ENV_ID, made_agents), PUSHED)


def refiner_of(agent, **kwargs):
    options = {"adaptation": SMALL, "n_draws": 3, "tasks_per_update": 1, "n_eval_episodes": 4, "backend": "serial"}
    return MetaRefiner(agent, **{**options, **kwargs})


# ---------------------------------------------------------------- the distribution


def distribution(seed=0):
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(size=SHAPE.size), rng.uniform(0.5, 2, SHAPE.size)]).astype(np.float32)


def test_a_draw_has_the_mean_and_the_standard_deviation_of_the_distribution():
    theta = distribution()
    draws = [SHAPE.draw(theta, SHAPE.keys(1, number), seed=0) for number in range(4000)]
    actors, critics = np.concatenate([actors for actors, _ in draws]), np.array([critic for _, critic in draws])
    mean, std = SHAPE.split(theta)
    np.testing.assert_allclose(np.concatenate([actors.mean(axis=0), critics.mean(axis=0)]), mean, atol=0.1)
    np.testing.assert_allclose(np.concatenate([actors.std(axis=0), critics.std(axis=0)]), std, rtol=0.06)


def test_gradients_are_those_of_equation_10():
    """Compared with torch's gradients of the log-densities."""
    theta = distribution()
    population = MetaPopulation(SHAPE, theta, [SHAPE.keys(0, number) for number in range(6)], seed=0)
    rng = np.random.default_rng(3)
    actor_fitness, critic_fitness = rng.normal(size=6), rng.normal(size=6)
    mean, std = (th.tensor(part.astype(np.float64), requires_grad=True) for part in SHAPE.split(theta))
    total = th.zeros(())
    for number in range(6):
        drawn = population.theta(number).astype(np.float64)
        actors, critic = th.tensor(drawn[:20].reshape(4, 5)), th.tensor(drawn[20:])
        of_actor, of_critic = th.distributions.Normal(mean[:5], std[:5]), th.distributions.Normal(mean[5:], std[5:])
        total = total + actor_fitness[number] * of_actor.log_prob(actors).sum()
        total = total + critic_fitness[number] * of_critic.log_prob(critic).sum()
    (total / 6).backward()
    of_mean, of_std = gradients(SHAPE, population, actor_fitness, critic_fitness)
    np.testing.assert_allclose(of_mean, mean.grad.numpy(), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(of_std, std.grad.numpy(), rtol=1e-3, atol=1e-5)


def test_the_search_finds_where_the_mean_of_the_explorers_is_best():
    """The fitness of a draw is that of the mean of its actors; the critic has a fitness of its own."""
    start = np.concatenate([np.zeros(SHAPE.size), np.ones(SHAPE.size)]).astype(np.float32)
    search = MetaES(start, seed=0, n_updates=400, shape=SHAPE, n_draws=16, learning_rate=0.1)
    for _ in range(400):
        population = search.ask()
        drawn = np.array([population.theta(number) for number in range(16)])
        actors, critics = drawn[:, :20].reshape(16, 4, 5).mean(axis=1), drawn[:, 20:]
        search.tell_both(-np.square(actors - 2).sum(axis=1)[:, None], -np.square(critics + 1).sum(axis=1)[:, None])
    mean, std = SHAPE.split(search.theta)
    np.testing.assert_allclose(mean[:5], 2, atol=0.5)
    np.testing.assert_allclose(mean[5:], -1, atol=0.5)
    assert (std < 1).mean() > 0.9  # where the best mean is found, noise only costs


def test_fixed_standard_deviations_stay_and_a_state_goes_on_to_the_same_bits():
    start = distribution()
    fixed = MetaES(start, 0, 5, SHAPE, n_draws=4, std_learning_rate=0)
    whole, first = MetaES(start, 0, 5, SHAPE, n_draws=4), MetaES(start, 0, 5, SHAPE, n_draws=4)
    rng = np.random.default_rng(0)
    updates = [(rng.normal(size=(4, 2)), rng.normal(size=(4, 2))) for _ in range(4)]
    for number, fitness in enumerate(updates):
        for search in (fixed, whole):
            search.ask()
            search.tell_both(*fitness)
        if number < 2:
            first.ask()
            first.tell_both(*fitness)
    np.testing.assert_array_equal(SHAPE.split(fixed.theta)[1], SHAPE.split(start)[1])
    resumed = MetaES(start, 0, 5, SHAPE, n_draws=4)
    resumed.load_state_dict(first.state_dict())
    for fitness in updates[2:]:
        resumed.ask()
        resumed.tell_both(*fitness)
    np.testing.assert_array_equal(resumed.theta, whole.theta)


# ---------------------------------------------------------------- an adaptation


def test_an_adaptation_depends_on_its_seed_alone(agent):
    refiner = refiner_of(agent)
    theta = refiner.parameters.get_theta()
    population = ExplicitPopulation([theta, theta])
    with SerialEvaluator(refiner.make_task()) as evaluator:
        first, others = evaluator.evaluate(population, [[1, 2], [2, 2]])
        np.random.seed(5)
        th.manual_seed(5)
        (again,) = evaluator.evaluate(ExplicitPopulation([theta]), [[1]])
    assert first[0] == again[0]
    assert first[1] == others[0] == others[1]
    assert first[0] != first[1]
    assert first[0].length == 200
    assert first[0].n_env_steps == 200 * (SMALL.adapt_episodes + 2)
    assert set(first[0].metrics) == {CRITIC_ERROR, BEFORE, N_ENV_STEPS}


def test_all_episodes_of_an_adaptation_have_one_task(agent):
    env = agent.recipe.build()
    with same_task(env, 7):
        gravities = {env.reset(seed=seed)[1]["task"]["g"] for seed in range(5)}
    assert gravities == {agent.recipe.tasks.task(7).parameters["g"]}
    assert env.reset(seed=1)[1]["task"] == agent.recipe.tasks.task(1).parameters


@pytest.mark.parametrize("cls", [DDPG, TD3])
def test_without_noise_the_gradient_steps_are_those_of_stable_baselines3(cls):
    """With standard deviations of 0, an adaptation is plain `train` on the episodes of the actor."""
    model = cls("MlpPolicy", ENV_ID, policy_kwargs={"net_arch": [8, 8]}, seed=0, device="cpu", buffer_size=600)
    agent = with_tasks(agent_from_model(model, ENV_ID), PUSHED)
    n = PolicyParameters(model.policy).size, critic_parameters(model).size
    nothing = Exploration(*(np.zeros(size, np.float32) for size in n))
    start = PolicyParameters(model.policy).get_theta()
    adapted, n_steps, n_episodes = adapted_agent(agent, SMALL, nothing, seed=3)
    assert (n_steps, n_episodes) == (200 * SMALL.adapt_episodes, SMALL.adapt_episodes)
    np.testing.assert_array_equal(PolicyParameters(model.policy).get_theta(), start)  # the agent is as it was
    assert not np.array_equal(PolicyParameters(adapted.model.policy).get_theta(), start)
    np.testing.assert_array_equal(  # plain learning goes on from here
        critic_parameters(adapted.model).get_theta(),
        np.concatenate([p.detach().numpy().ravel() for p in adapted.model.critic_target.parameters()]),
    )
    none, *_ = adapted_agent(agent, replace(SMALL, adapt_steps=0), nothing, seed=3)
    np.testing.assert_allclose(PolicyParameters(none.model.policy).get_theta(), start, rtol=1e-6)


def watched(agent, action, n_steps):
    transitions = Transitions(agent.statistics)
    env = Watched(agent.recipe.build(), transitions)
    env.reset(seed=0)
    for _ in range(n_steps):
        *_, truncated, _ = env.step(np.array([action], np.float32))
    return transitions, truncated


def test_the_error_of_the_critic_is_that_of_its_values_against_the_discounted_returns(agent):
    model = learner_of(agent)
    transitions, _ = watched(agent, 0.5, 30)
    with th.no_grad():
        for parameter in model.critic.parameters():
            parameter.zero_()
    rewards = transitions.arrays()["rewards"].astype(np.float64)
    returns = [sum(model.gamma**k * r for k, r in enumerate(rewards[i:])) for i in range(30)]
    assert critic_error(model, transitions) == pytest.approx(np.square(returns).mean(), rel=1e-5)


def test_the_buffer_has_scaled_actions_and_only_true_ends(agent):
    transitions, truncated = watched(agent, 1.0, 200)
    assert truncated
    buffer = transitions.buffer(learner_of(agent))
    assert buffer.size() == 200
    np.testing.assert_array_equal(buffer.actions, np.full((200, 1, 1), 0.5, np.float32))  # of a range of -2 to 2
    assert not buffer.dones.any()
    np.testing.assert_array_equal(buffer.observations[1:, 0], buffer.next_observations[:-1, 0])


def test_the_buffer_has_observations_and_rewards_as_training_normalises_them(agent):
    statistics = VecNormalize(make_vec_env(ENV_ID), clip_reward=3.0)
    statistics.obs_rms.mean[:], statistics.obs_rms.var[:] = 0.5, 4.0
    statistics.ret_rms.var = np.array(100.0)
    raw, _ = watched(agent, 1.0, 20)
    normalised, _ = watched(replace(agent, vec_normalize=statistics), 1.0, 20)
    buffer = normalised.buffer(learner_of(agent))
    np.testing.assert_allclose(buffer.observations[:, 0], (raw.arrays()["observations"] - 0.5) / 2, rtol=1e-4)
    np.testing.assert_allclose(buffer.rewards[:, 0], raw.arrays()["rewards"] / 10, rtol=1e-4)


def test_an_agent_at_the_end_of_its_schedule_still_learns():
    model = TD3("MlpPolicy", ENV_ID, learning_rate=lambda progress: 1e-3 * progress, device="cpu", buffer_size=600)
    model._current_progress_remaining = 0.0
    agent = with_tasks(agent_from_model(model, ENV_ID), PUSHED)
    adapted, *_ = adapted_agent(agent, SMALL)
    before, after = (critic_parameters(each).get_theta() for each in (model, adapted.model))
    steps = np.abs(after - before)
    assert 0 < np.median(steps) < 5e-3  # a tenth of the rate


@pytest.mark.slow
def test_without_noise_and_gradient_steps_the_return_is_that_of_a_plain_episode():
    """Also where the environment needs a remedy between two episodes."""
    model = TD3("MlpPolicy", "BipedalWalker-v3", seed=0, device="cpu", buffer_size=10)
    agent = with_tasks(agent_from_model(model, "BipedalWalker-v3"), {"env_kwargs": {"hardcore": False}})
    settings = AdaptationSettings(adapt_episodes=2, adapt_steps=0)
    refiner = MetaRefiner(agent, adaptation=settings, backend="serial")
    theta = refiner.parameters.get_theta()
    theta[refiner.shape.size :] = 0
    with SerialEvaluator(refiner.make_task()) as evaluator:
        (adapted,) = evaluator.evaluate(ExplicitPopulation([theta]), [[1, 2, 3, 4]])
    plain = target_of(agent).run([1, 2, 3, 4]).episodes
    np.testing.assert_allclose([e.episode_return for e in adapted], [e.episode_return for e in plain], atol=1e-4)


# ---------------------------------------------------------------- the search


@pytest.mark.slow
def test_the_result_does_not_depend_on_the_workers(made_agents):
    found = []
    for backend in ("serial", "process:n_workers=2"):
        own = with_tasks(load_agent("td3", ENV_ID, made_agents), PUSHED)
        refiner = refiner_of(own, backend=backend).learn(2)
        found.append((refiner.search.optimizer.theta, refiner.result.baseline.returns))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1], found[1][1])


def test_a_run_is_saved_loaded_and_goes_on(agent, tmp_path):
    refiner = refiner_of(agent).learn(2)
    folder = refiner.save(tmp_path)
    record = json.loads((folder / "refinement.json").read_text())
    assert record["method"] == "meta-es"
    assert record["settings"]["tasks"] == PUSHED
    assert record["rollouts"] > 2 * 3
    assert "meta-learning" in refiner.report(folder).read_text()
    saved = load_agent("td3", ENV_ID, tmp_path)
    found, settings = read_exploration(folder / "exploration.npz")
    np.testing.assert_array_equal(found.actor, refiner.exploration.actor)
    assert settings == SMALL
    again = refiner_of(with_tasks(saved, folder / "tasks.yml"))
    np.testing.assert_array_equal(again.parameters.get_theta(), refiner.parameters.get_theta())
    plain = TD3.load(folder / f"{ENV_ID}.zip", env=None)
    assert not any("exploration" in name for name in vars(plain))


@pytest.mark.slow
def test_an_interrupted_run_is_resumed_to_the_same_bits(made_agents, tmp_path):
    def refiner():
        return refiner_of(with_tasks(load_agent("td3", ENV_ID, made_agents), PUSHED))

    whole = refiner().learn(3)
    refiner().learn(3, checkpoint_folder=tmp_path, time_limit=0)
    cut = refiner()
    update, n_done = cut._update, []

    def stop_after_one(search, evaluator):
        if n_done:
            raise KeyboardInterrupt
        n_done.append(1)
        return update(search, evaluator)

    cut._update = stop_after_one
    with pytest.raises(KeyboardInterrupt):
        cut.learn(3, checkpoint_folder=tmp_path)
    assert cut.result.decision in ("unchecked", "original")
    resumed = refiner().learn(3, checkpoint_folder=tmp_path, resume=True)
    np.testing.assert_array_equal(resumed.search.optimizer.theta, whole.search.optimizer.theta)
    np.testing.assert_array_equal(resumed.result.candidate.returns, whole.result.candidate.returns)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_draws": 1}, "n_draws: expected a whole number of at least 2"),
        ({"tasks_per_update": 0}, "tasks_per_update: expected a whole number of at least 1"),
        ({"start_std": 0}, "start_std: expected a positive number"),
        ({"learning_rate": -1.0}, "learning_rate: expected a number of at least 0"),
    ],
)
def test_wrong_settings_are_refused(agent, change, message):
    with pytest.raises(RefineError, match=message):
        refiner_of(agent, **change)


def test_agents_that_cannot_adapt_so_are_refused(made_agents):
    with pytest.raises(RefineError, match="meta-es needs an agent of ddpg or td3.*got ppo"):
        refiner_of(with_tasks(load_agent("ppo", ENV_ID, made_agents), PUSHED))
    with pytest.raises(RefineError, match="name one with `tasks`"):
        refiner_of(load_agent("td3", ENV_ID, made_agents))
    with pytest.raises(RefineError, match="adapt_episodes: expected a whole number of at least 1"):
        AdaptationSettings(adapt_episodes=0)
    model = PPO("MlpPolicy", ENV_ID, device="cpu")
    with pytest.raises(RefineError, match="got ppo"):
        adapt(agent_from_model(model, ENV_ID))


def test_a_further_search_has_other_draws_tasks_and_test_seeds(agent):
    refiner = refiner_of(agent, learning_rate=0.0, std_learning_rate=0.0).learn(1)
    first = refiner.result
    second = refiner.learn(1).result
    assert set(first.baseline.seeds).isdisjoint(second.baseline.seeds)
    assert first.learning_curve[0].mean_return != second.learning_curve[0].mean_return


@pytest.mark.parametrize("content", [b"", b"not a zip", None])
def test_a_damaged_exploration_is_one_line(agent, tmp_path, content):
    folder = refiner_of(agent).learn(1).save(tmp_path)
    path = folder / "exploration.npz"
    if content is None:  # of another agent
        Exploration(np.ones(3, np.float32), np.ones(2, np.float32)).save(folder, SMALL)
        message = "exploration.npz: of an agent with 3 and 2 parameters"
    else:
        path.write_bytes(content)
        message = "exploration.npz: cannot be read"
    with pytest.raises(RefineError, match=message):
        find_exploration(load_agent("td3", ENV_ID, tmp_path))


def test_no_pickle_in_an_exploration_is_run(agent, tmp_path):
    folder = refiner_of(agent).learn(1).save(tmp_path)
    np.savez(folder / "exploration.npz", actor=np.array([print], dtype=object), critic=np.ones(2), adaptation="{}")
    with pytest.raises(RefineError, match="cannot be read"):
        find_exploration(load_agent("td3", ENV_ID, tmp_path))


# ---------------------------------------------------------------- to one task


@pytest.mark.slow
def test_adapt_judges_the_adapted_agent_and_one_that_is_trained_on(agent, tmp_path):
    task = task_with(agent.recipe.tasks, {"g": 12.0})
    judgement = adapt(agent, task, n_episodes=2, n_eval_episodes=4, backend="serial")
    assert [one["name"] for one in judgement.result.candidates] == ["original", "adapted", "trained on"]
    record = json.loads((judgement.save(tmp_path) / "refinement.json").read_text())
    assert record["method"] == "adapt"
    assert record["settings"]["tasks"] == {"env_kwargs": {"g": 12.0}}
    assert record["tasks"] == [{"g": 12.0}] * 4


def test_adapt_needs_one_task(agent):
    with pytest.raises(RefineError, match="an agent adapts to one task of its family"):
        adapt(agent)
    with pytest.raises(RefineError, match="the agent has no family of tasks"):
        adapt(without_tasks(agent), {"g": 9})
    with pytest.raises(RefineError, match="adapt_steps: expected a whole number of at least 0"):
        adapt(agent, {"g": 9}, adaptation={"adapt_steps": -1})


def test_a_task_needs_a_value_for_each_parameter_that_differs(agent):
    with pytest.raises(RefineError, match="task: a value is missing for g; name it as g:VALUE"):
        task_with(agent.recipe.tasks, {})
    with pytest.raises(RefineError, match="task: the family has no 'm'; choose from g"):
        task_with(agent.recipe.tasks, {"m": 1})


@pytest.mark.slow
def test_meta_and_adapt_on_the_command_line(made_agents, tmp_path, run):
    (tmp_path / "tasks.yml").write_text(yaml.safe_dump(PUSHED))
    where = ["--algo", "td3", "--env", ENV_ID]
    small = ["--adapt-episodes", 2, "--adapt-steps", 2, "--backend", "serial", "--n-eval-episodes", 4]
    meta = [*where, "-f", made_agents, "--tasks", tmp_path / "tasks.yml", *small, "--n-updates", 1, "--n-draws", 2]
    done = run("meta", *meta, "--from-scratch", "-o", tmp_path / "meta")
    assert done.returncode == 0
    assert "returns are those after adaptation" in done.stdout
    folder = tmp_path / "meta" / "td3" / f"{ENV_ID}_1"
    assert {"exploration.npz", "refinement.json", "tasks.yml", "report.md"} <= {path.name for path in folder.iterdir()}
    again = run("meta", "--resume", folder, "--backend", "serial")
    assert again.returncode == 0
    other = run("--resume", folder)
    assert other.returncode == 1
    assert f"sb3-refine meta --resume {folder}" in other.stderr
    card = layout(read_run_folder(folder), "me/agent")
    assert "meta-learning: 1 update" in card["README.md"].decode()
    assert {"tasks.yml", "exploration.npz"} <= card.keys()
    assert "results.json" not in card  # the returns are those after adaptation to tasks
    adapted = run(
        "adapt", *where, "-f", tmp_path / "meta", "--task", "g:9", "--backend", "serial", "--n-eval-episodes", 4,
        "-o", tmp_path / "adapted",
    )  # fmt: skip
    assert adapted.returncode == 0
    assert "adapted: mean return" in adapted.stdout
    wrong = run("adapt", *where, "-f", tmp_path / "meta", "--task", "mass:9")
    assert wrong.returncode == 1
    assert wrong.stderr.count("\n") == 1
    assert "the family has no 'mass'" in wrong.stderr
    (folder / "tasks.yml").write_text(yaml.safe_dump({"env_kwargs": {"g": {"uniform": [5, 9]}, "path": "/etc/passwd"}}))
    stranger = run("adapt", *where, "-f", tmp_path / "meta", "--task", "g:9")
    assert stranger.returncode == 1
    assert "may be a path or a module" in stranger.stderr
