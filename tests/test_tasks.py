"""Families of tasks: each episode is another environment, which the episode's seed decides."""

import json
from dataclasses import replace
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import yaml
from conftest import ENV_ID, target_of
from stable_baselines3.common.vec_env import VecFrameStack

from sb3_refine import RefineError, Refiner, distill, judge, load_agent
from sb3_refine.agents.tasks import with_tasks, without_tasks
from sb3_refine.envs.spec import EnvRecipe
from sb3_refine.errors import EpisodeError
from sb3_refine.evaluation.by_task import by_parameter
from sb3_refine.evaluation.target import open_targets
from sb3_refine.reporting.record import read_record
from sb3_refine.rollouts.recording import Recording
from sb3_refine.rollouts.reproducibility import Episodes
from sb3_refine.seeding import EpisodeSeeds
from sb3_refine.tasks.family import FixedTask, Task, TaskDistribution, TaskFunction, family_of_tasks

GRAVITY = {"env_kwargs": {"g": {"uniform": [8.0, 12.0]}}}  # of Pendulum
HOPPER = "Hopper-v4"
BULLET = "HopperBulletEnv-v0"


@pytest.fixture(autouse=True)
def bullet_is_there(request):
    """Tests of Bullet need the extra `bullet`."""
    env = getattr(getattr(request.node, "callspec", None), "params", {}).get("env")
    if env == BULLET or "bullet" in request.node.name:
        pytest.importorskip("pybullet_envs_gymnasium", reason="needs the extra bullet")


@pytest.fixture
def agent(made_agents):
    return load_agent("ppo", ENV_ID, made_agents)


def steps_of(recipe, seed, n_steps=60, before=()):
    """Observations and rewards of an episode with the same actions, after episodes with other seeds."""
    episodes = Episodes(recipe)
    try:
        for number in (*before, seed):
            env = episodes.next_env(number)
            observation, info = env.reset(seed=number)
            rng = np.random.default_rng(0)
            found = [np.append(observation, 0.0)]
            for _ in range(n_steps):
                observation, reward, terminated, truncated, info = env.step(
                    rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
                )
                found.append(np.append(observation, reward))
                if terminated or truncated:
                    break
        return np.array(found), info
    finally:
        episodes.close()


# ---------------------------------------------------------------- which task an episode has


def test_the_seed_decides_the_task():
    family = TaskDistribution(GRAVITY)
    assert family.task(3) == family.task(3)
    assert family.task(3) != family.task(4)


def test_search_validation_and_test_have_other_tasks():
    family, seeds = TaskDistribution(GRAVITY), EpisodeSeeds(0)
    tasks = [
        family.task(seed).parameters["g"]
        for stream in ("search", "validation", "test")
        for seed in seeds.take(stream, 200)
    ]
    assert len(set(tasks)) == 600


@pytest.mark.parametrize(
    ("content", "low", "high", "mean"),
    [
        ({"uniform": [2, 4]}, 2, 4, 3),
        ({"log-uniform": [0.25, 4]}, 0.25, 4, 3.75 / np.log(16)),
        ({"choice": [0, 1, 5]}, 0, 5, 2),
    ],
)
def test_distributions(content, low, high, mean):
    family = TaskDistribution({"env_kwargs": {"x": content}})
    values = [family.task(seed).parameters["x"] for seed in range(4000)]
    assert min(values) >= low
    assert max(values) <= high
    assert np.mean(values) == pytest.approx(mean, abs=4 * np.std(values) / np.sqrt(4000))


def test_grids_give_each_combination_equally_often_along_a_stream_of_seeds():
    family = TaskDistribution({"env_kwargs": {"x": {"grid": [1, 2]}, "y": {"grid": ["a", "b", "c"]}, "z": 7}})
    seeds = EpisodeSeeds(0).take("test", 12)
    cells = [tuple(family.task(seed).parameters.values()) for seed in seeds]
    assert len(set(cells[:6])) == 6
    assert cells[:6] == cells[6:]


def test_the_order_of_parameters_does_not_matter():
    uniform = {"uniform": [0.0, 1.0]}
    one = TaskDistribution({"physics": {"mass": uniform, "friction": uniform}})
    other = TaskDistribution({"physics": {"friction": uniform, "mass": uniform}})
    assert one == other
    assert hash(one) == hash(other)
    assert one.task(5) == other.task(5)
    assert one.task(5).physics["mass"] != one.task(5).physics["friction"]
    alone = TaskDistribution({"physics": {"mass": uniform}})
    assert alone != one
    assert alone.task(5).physics["mass"] == one.task(5).physics["mass"]


def test_numbers_of_numpy_are_numbers_and_arrays_are_refused():
    family = TaskFunction(lambda rng: {"goal": {"direction": rng.choice([-1, 1])}})
    assert type(family.task(0).goal["direction"]) is int
    with pytest.raises(RefineError, match="direction: expected a number, text or a list, got an array"):
        TaskFunction(lambda rng: {"goal": {"direction": rng.choice([-1, 1], 2)}}).task(0)


def test_a_function_draws_tasks_from_the_generator_that_it_gets():
    family = TaskFunction(lambda rng: {"env_kwargs": {"g": float(rng.choice([9, 11]))}})
    assert {family.task(seed).parameters["g"] for seed in range(20)} == {9.0, 11.0}
    assert family.task(5) == family.task(5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "expected a mapping of env_kwargs, env_wrapper, physics, goal"),
        ([], "expected a file, a mapping"),
        ({"physic": {"mass": 1}}, "unknown section 'physic' .did you mean physics"),
        ({"physics": {}}, "physics: expected parameters with their values, got {}"),
        ({"physics": {"mass": {"uniform": []}}}, "mass: uniform: expected .low, high. with low <= high"),
        ({"physics": {"mass": {"uniform": [2, 1]}}}, "mass: uniform: expected .low, high. with low <= high"),
        ({"physics": {"mass": {"log-uniform": [0, 1]}}}, "mass: log-uniform: expected numbers above 0"),
        ({"physics": {"mass": {"choice": []}}}, "mass: choice: expected a list of at least one value"),
        ({"physics": {"mass": {"unifrom": [1, 2]}}}, "unknown distribution 'unifrom' .did you mean uniform"),
        ({"physics": {"mass": {}}}, "mass: expected one distribution"),
        ({"physics": {"gravity": 1}, "env_kwargs": {"gravity": 1}}, "gravity is in two sections"),
        ({"env_wrapper": {"my.Wrapper": 3}}, "my.Wrapper: expected parameters with their values"),
        ({"env_wrapper": {"my.Wrapper": {3: 1}}}, "expected a name, got 3"),
        ({"physics": {3: 1}}, "expected a name, got 3"),
        ({"physics": {"mass": {"uniform": [-1e308, 1e308]}}}, "expected .low, high."),
    ],
)
def test_what_is_no_family_of_tasks_is_refused(content, message):
    with pytest.raises(RefineError, match=message):
        family_of_tasks(content)


# ---------------------------------------------------------------- the environment of a task


@pytest.mark.parametrize(
    ("env", "nominal"),
    [
        (HOPPER, {"mass": 1.0, "friction": 1.0, "damping": 1.0, "gravity": -9.81}),
        (BULLET, {"mass": 1.0, "friction": 1.0}),
    ],
)
def test_nominal_physics_are_those_of_the_environment_to_the_bit(env, nominal):
    recipe = EnvRecipe(env)
    stock, _ = steps_of(recipe, 3)
    same, _ = steps_of(replace(recipe, tasks=FixedTask(Task(physics=nominal))), 3)
    np.testing.assert_array_equal(same, stock)


@pytest.mark.parametrize(
    ("env", "physics"),
    [
        (HOPPER, {name: {"choice": [0.6, 1.0, 1.7]} for name in ("mass", "friction", "damping")}),
        (HOPPER, {"gravity": {"choice": [-9.81, -5, -15]}}),
        (BULLET, {name: {"choice": [0.6, 1.0, 1.7]} for name in ("mass", "friction")}),
        (BULLET, {"gravity": {"choice": [-9.8, -5, -15]}}),
    ],
)
def test_an_episode_does_not_depend_on_the_tasks_before(env, physics):
    recipe = EnvRecipe(env, tasks=TaskDistribution({"physics": physics}))
    for seed in range(4):
        alone, info = steps_of(recipe, seed)
        after_others, same_info = steps_of(recipe, seed, before=(10, 11, 12))
        np.testing.assert_array_equal(after_others, alone)
        assert info["task"] == same_info["task"] == recipe.tasks.task(seed).parameters


def test_physics_do_what_their_names_say():
    """A body without support falls as fast as gravity says; a heavier one weighs more."""

    def model(**physics):
        env = EnvRecipe(HOPPER, tasks=FixedTask(Task(physics=physics))).build()
        env.reset(seed=0)
        return env.unwrapped.model

    stock, changed = model(mass=1.0), model(mass=2.0, friction=0.5, damping=3.0, gravity=-1.6)
    np.testing.assert_allclose(changed.body_mass, 2 * stock.body_mass)
    np.testing.assert_allclose(changed.body_inertia, 2 * stock.body_inertia)
    np.testing.assert_allclose(changed.body_subtreemass, 2 * stock.body_subtreemass)
    np.testing.assert_allclose(changed.geom_friction, 0.5 * stock.geom_friction)
    np.testing.assert_allclose(changed.dof_damping, 3 * stock.dof_damping)
    np.testing.assert_allclose(changed.opt.gravity, [0, 0, -1.6])


def test_physics_of_bullet_reach_the_simulation():
    def simulation(**physics):
        env = EnvRecipe(BULLET, tasks=FixedTask(Task(physics=physics))).build()
        env.reset(seed=0)
        raw = env.unwrapped
        bodies = range(raw._p.getNumBodies())
        links = [(body, link) for body in bodies for link in range(-1, raw._p.getNumJoints(body))]
        return np.array([raw._p.getDynamicsInfo(*each)[:2] for each in links])

    stock, changed = simulation(mass=1.0), simulation(mass=2.0, friction=0.5)
    np.testing.assert_allclose(changed, stock * [2.0, 0.5])


@pytest.mark.parametrize("env", ["HalfCheetah-v4", "HalfCheetah-v5", "Ant-v4", "Ant-v5"])
def test_goals_replace_the_reward_for_running_forward(env):
    stock = gym.make(env)
    for name, value, expected in (
        ("velocity", 1.5, lambda v: -abs(v - 1.5)),
        ("direction", -1.0, lambda v: -v),
    ):
        with_goal = EnvRecipe(env, tasks=FixedTask(Task(goal={name: value}))).build()
        for each in (stock, with_goal):
            each.reset(seed=1)
        rng = np.random.default_rng(0)
        for _ in range(20):
            action = rng.uniform(-1, 1, stock.action_space.shape)
            observation, reward, *_, info = stock.step(action)
            same, other, *_, task_info = with_goal.step(action)
            np.testing.assert_array_equal(same, observation)  # the goal is not observed
            forward = info["reward_run"] if "reward_run" in info else info["reward_forward"]
            assert other == pytest.approx(reward - forward + expected(info["x_velocity"]))
            assert task_info["task"] == {name: value}


def test_a_reset_without_a_seed_draws_another_task_at_the_end_of_an_episode_only():
    env = EnvRecipe(ENV_ID, tasks=TaskDistribution(GRAVITY)).build()
    _, info = env.reset(seed=0)
    env.step(np.zeros(1))
    assert env.reset()[1]["task"] == info["task"]  # a wrapper has ended the episode, as for a lost life
    seen = []
    for _ in range(5):
        while not env.step(np.zeros(1))[3]:
            pass
        seen.append(env.reset()[1]["task"]["g"])
    assert len(set(seen)) == 5


def test_parameters_of_wrappers():
    content = {"env_wrapper": {"gymnasium.wrappers.TimeLimit": {"max_episode_steps": {"choice": [10, 20]}}}}
    recipe = EnvRecipe(ENV_ID, tasks=TaskDistribution(content))
    for seed in range(6):
        steps, info = steps_of(recipe, seed)
        assert len(steps) - 1 == info["task"]["TimeLimit.max_episode_steps"]


def test_wrappers_without_parameters_and_two_of_one_name():
    limit = {"max_episode_steps": 5}
    wrappers = {"gymnasium.wrappers.FlattenObservation": None, "gymnasium.wrappers.TimeLimit": limit}
    family = TaskDistribution({"env_wrapper": wrappers})
    assert "FlattenObservation" in str(EnvRecipe(ENV_ID, tasks=family).build())
    assert family.task(0).parameters == {"TimeLimit.max_episode_steps": 5}
    twice = Task(env_wrapper={"a.W": {"x": 1}, "b.W": {"x": 2}})
    assert twice.parameters == {"a.W.x": 1, "b.W.x": 2}


@pytest.mark.parametrize(
    ("env", "content", "message"),
    [
        (ENV_ID, {"env_kwargs": {"gravity": {"uniform": [1, 2]}}}, "unexpected keyword argument 'gravity'"),
        (ENV_ID, {"physics": {"gravity": -1}}, "an environment of neither MuJoCo nor PyBullet"),
        (ENV_ID, {"goal": {"speed": 1}}, "goal: unknown 'speed'; choose from velocity, direction"),
        (ENV_ID, {"goal": {"velocity": "fast"}}, "goal: velocity: expected a number, got 'fast'"),
        (ENV_ID, {"goal": {"velocity": 1, "direction": 1}}, "goal: expected one of velocity, direction"),
        (
            ENV_ID,
            {"env_wrapper": {"gymnasium.wrappers.TimeLimit": {"steps": 3}}},
            "env_wrapper: gymnasium.wrappers.Time",
        ),
        (HOPPER, {"physics": {"mass": 0}}, "mass: expected a factor above 0, got 0"),
        (HOPPER, {"physics": {"friction": -1}}, "friction: expected a factor of at least 0, got -1"),
        (HOPPER, {"physics": {"gravity": "low"}}, "gravity: expected a number, got 'low'"),
        (ENV_ID, {"goal": {"velocity": float("nan")}}, "goal: velocity: expected a number, got nan"),
        (HOPPER, {"physics": {"masses": 2}}, "has no 'masses' .did you mean mass"),
        (BULLET, {"physics": {"damping": 2}}, "has no 'damping'.*choose from mass, friction, gravity"),
    ],
)
def test_tasks_that_an_environment_cannot_have_are_refused_when_it_is_made(env, content, message):
    with pytest.raises(RefineError, match=message):
        EnvRecipe(env, tasks=TaskDistribution(content)).build()


# ---------------------------------------------------------------- an agent in a family of tasks


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"env_wrapper": {"os.path.Join": {"x": 1}}}, "the module 'os.path' is not imported"),
        ({"goal": {"velocity": {"uniform": [0, 2]}}}, "does not say how fast it runs"),
    ],
)
def test_tasks_that_do_not_fit_the_agent_are_refused(agent, content, message):
    with pytest.raises(RefineError, match=message):
        target_of(with_tasks(agent, content))


class Deaf(gym.Wrapper):
    """Takes an argument and does nothing with it, or changes the observations' shape."""

    def __init__(self, env, loudness=0.0, extra=0):
        super().__init__(env)
        self.extra = extra
        space = env.observation_space
        pad = np.zeros(extra, space.dtype)
        self.observation_space = gym.spaces.Box(
            np.append(space.low, pad), np.append(space.high, pad), dtype=space.dtype
        )


def family_of_wrapper(agent, **parameters):
    content = {"env_wrapper": {f"{__name__}.Deaf": parameters}}
    recipe = replace(agent.recipe, gym_packages=(__name__,))
    return with_tasks(replace(agent, recipe=recipe), content)


def test_a_parameter_that_the_environment_ignores_is_found_out(agent):
    with pytest.raises(RefineError, match="loudness: the environment ignores it: episodes with .* are equal"):
        target_of(family_of_wrapper(agent, loudness={"uniform": [0, 1]}))


class Switched(gym.Wrapper):
    """A push of some strength, if it is switched on."""

    def __init__(self, env, is_on=False, strength=0.0):
        super().__init__(env)
        self._push = strength if is_on else 0.0

    def step(self, action):
        return self.env.step(np.clip(action + self._push, -2, 2))


@pytest.mark.parametrize("is_on", [[False, True], [True, False]])
def test_a_parameter_that_another_one_switches_on_is_not_ignored(agent, is_on):
    parameters = {"is_on": {"choice": is_on}, "strength": {"uniform": [0.0, 1.0]}}
    recipe = replace(agent.recipe, gym_packages=(__name__,))
    content = {"env_wrapper": {f"{__name__}.Switched": parameters}}
    assert target_of(with_tasks(replace(agent, recipe=recipe), content)).is_seeded


def test_a_longer_time_limit_is_no_ignored_parameter(agent):
    content = {"env_kwargs": {"max_episode_steps": {"choice": [400, 500]}}}
    assert target_of(with_tasks(agent, content)).is_seeded


def test_tasks_must_not_change_the_observation_space(agent):
    with pytest.raises(RefineError, match="the observation space is Box.*must not change it|does not match"):
        target_of(family_of_wrapper(agent, extra={"choice": [0, 2]}))


def test_tasks_of_a_function_that_change_nothing_are_found_out(agent):
    def tasks(rng):
        return {"env_wrapper": {f"{__name__}.Deaf": {"loudness": float(rng.random())}}}

    recipe = replace(agent.recipe, gym_packages=(__name__,))
    with pytest.raises(RefineError, match="the function: the environment ignores it"):
        target_of(with_tasks(replace(agent, recipe=recipe), tasks))


def test_without_tasks_the_agent_is_in_its_own_environment(agent):
    family = with_tasks(agent, GRAVITY)
    assert without_tasks(family).recipe == agent.recipe


def shortest_with_high_gravity(trajectory):
    return trajectory.task["g"]


def test_objectives_see_the_task(agent):
    refiner = Refiner(with_tasks(agent, GRAVITY), objective=shortest_with_high_gravity, backend="serial")
    with refiner.evaluator() as evaluator:
        episodes = target_of(refiner.agent, refiner.objective).run([1, 2], refiner.objective.metrics).episodes
    family = refiner.agent.recipe.tasks
    assert [episode.metrics["objective"] for episode in episodes] == [family.task(s).parameters["g"] for s in (1, 2)]
    assert evaluator.task.recipe.tasks == family


def small_refiner(agent, tasks=GRAVITY, **kwargs):
    return Refiner(agent, tasks=tasks, n_delta=2, n_eval_episodes=8, **kwargs)


def test_the_result_in_a_family_does_not_depend_on_the_workers(made_agents):
    results = []
    for backend in ("serial", "process:n_workers=2"):
        refiner = small_refiner(load_agent("ppo", ENV_ID, made_agents), backend=backend).learn(2)
        results.append((refiner.result.baseline.returns, refiner.tested[1]))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])


def test_a_saved_run_names_its_tasks(agent, tmp_path, run):
    refiner = small_refiner(agent, backend="serial").learn(1)
    folder = refiner.save(tmp_path / "out")
    record = json.loads((folder / "refinement.json").read_text())
    family = refiner.agent.recipe.tasks
    assert record["settings"]["tasks"] == GRAVITY
    assert record["tasks"] == [family.task(seed).parameters for seed in record["seeds"]["test"]]
    assert yaml.safe_load((folder / "tasks.yml").read_text()) == GRAVITY
    config = yaml.load((folder / ENV_ID / "args.yml").read_text(), yaml.UnsafeLoader)
    assert not config.get("env_kwargs")  # the saved agent is one of its own environment
    text = refiner.report(folder).read_text()
    assert "## Tasks" in text
    assert f"--tasks {folder / 'tasks.yml'}" in text
    where = ["--algo", "ppo", "--env", ENV_ID, "-f", str(tmp_path / "out"), "--tasks", str(folder / "tasks.yml")]
    seeds = map(str, record["seeds"]["test"])
    how = ["--no-noise", "--backend", "serial", "--json", str(tmp_path / "x"), "--seeds"]
    done = run("evaluate", *where, *how, *seeds)
    assert done.returncode == 0
    assert "low return of the agent, seed" in done.stdout
    again = json.loads((tmp_path / "x").read_text())
    kept = record["refined" if record["decision"] == "refined" else "baseline"]["returns"]
    assert again["agents"]["agent"]["conditions"]["no noise"]["returns"] == kept
    assert again["task_of_episode"] == record["tasks"]


@pytest.mark.slow
def test_an_interrupted_search_goes_on_in_the_same_tasks(made_agents, tmp_path, run, monkeypatch):
    def log(logger, search, *_):
        if search.n_updates_done == 1:
            raise EpisodeError("the pendulum fell off")

    (tmp_path / "tasks.yml").write_text(yaml.safe_dump(GRAVITY))
    where = ["--algo", "ppo", "--env", ENV_ID, "-f", str(made_agents), "--tasks", str(tmp_path / "tasks.yml")]
    how = ["--n-delta", "2", "--n-eval-episodes", "8", "--backend", "serial", "--no-report", "--n-updates", "2"]
    assert run(*where, *how, "-o", str(tmp_path / "whole")).returncode == 0
    with monkeypatch.context() as patch:
        patch.setattr("sb3_refine.refiner.log_update", log)
        assert run(*where, *how, "-o", str(tmp_path / "cut"), "--checkpoint-interval", "1").returncode == 1
    folder = tmp_path / "cut" / "ppo" / f"{ENV_ID}_1"
    assert run("--resume", str(folder), "--backend", "serial", "--no-report").returncode == 0
    whole, resumed = (
        json.loads((tmp_path / name / "ppo" / f"{ENV_ID}_1" / "refinement.json").read_text())
        for name in ("whole", "cut")
    )
    assert resumed["settings"]["tasks"] == GRAVITY
    assert resumed["refined"]["returns"] == whole["refined"]["returns"]


def test_a_missing_or_broken_file_is_one_line(made_agents, tmp_path, run):
    where = ["evaluate", "--algo", "ppo", "--env", ENV_ID, "-f", str(made_agents), "--tasks"]
    missing = run(*where, str(tmp_path / "none.yml"))
    assert missing.returncode == 1
    assert "tasks: there is no file" in missing.stderr
    (tmp_path / "bad.yml").write_text("a: [")
    broken = run(*where, str(tmp_path / "bad.yml"))
    assert broken.returncode == 1
    assert "cannot be read as YAML" in broken.stderr


def test_judge_compares_agents_in_the_same_tasks(agent, made_agents, tmp_path):
    judgement = judge(with_tasks(agent, GRAVITY), [agent.source["path"]], n_eval_episodes=4, backend="serial")
    assert judgement.result.decision == "original"
    assert judgement.result.paired_difference.mean == 0
    with pytest.raises(RefineError, match="are not in the same tasks"):
        judge(with_tasks(agent, GRAVITY), [agent], n_eval_episodes=4, backend="serial")


def test_objectives_of_agents_with_stacked_frames_see_the_task(agent):
    recipe = replace(agent.recipe, vec_wrappers=(partial(VecFrameStack, n_stack=2),), tasks=TaskDistribution(GRAVITY))
    recording = Recording(recipe.build())
    recording.reset(seed=3)
    recording.step(np.zeros(1, np.float32))
    assert recording.trajectory(False, None).task == recipe.tasks.task(3).parameters


def test_distill_keeps_the_tasks(agent, tmp_path):
    short = {"n_episodes": 2, "n_rounds": 0, "n_gradient_steps": 20, "n_eval_episodes": 2, "backend": "serial"}
    found = distill(with_tasks(agent, GRAVITY), "linear", **short)
    folder = found.save(tmp_path)
    assert yaml.safe_load((folder / "tasks.yml").read_text()) == GRAVITY
    assert json.loads((folder / "distillation.json").read_text())["tasks"] == GRAVITY


def test_tasks_of_a_record_must_be_those_of_its_episodes(agent, tmp_path):
    folder = small_refiner(agent, backend="serial").learn(1).save(tmp_path)
    content = json.loads((folder / "refinement.json").read_text())
    (folder / "refinement.json").write_text(json.dumps({**content, "tasks": content["tasks"][1:]}))
    with pytest.raises(RefineError, match="tasks: not one for each test episode"):
        read_record(folder)


def test_groups_by_a_parameter():
    tasks = [{"mass": value / 40, "kind": "ab"[value % 2], "same": 3} for value in range(40)]
    groups = by_parameter(tasks)
    assert list(groups) == ["mass", "kind"]
    assert [(label, len(part)) for label, part in groups["kind"]] == [("a", 20), ("b", 20)]
    assert [len(part) for _, part in groups["mass"]] == [10, 10, 10, 10]
    assert groups["mass"][0][0] == "0.00 to 0.23"


def test_targets_with_and_without_tasks_have_workers_of_their_own(agent):
    family = with_tasks(agent, GRAVITY)
    with open_targets([agent, family], backend="serial") as (nominal, varied):
        one, other = nominal.run([1, 2, 3]).returns, varied.run([1, 2, 3]).returns
    assert (one != other).all()
