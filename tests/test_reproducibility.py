"""Same policy, same seed, same episode: what the probe finds, and what it does about it."""

import time
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from conftest import ENV_ID, run_policy
from stable_baselines3 import SAC

from sb3_refine import Refiner, load_agent
from sb3_refine.envs.accelerators import accelerate, box2d
from sb3_refine.envs.families import is_failure
from sb3_refine.envs.remedies import FRESH_ENV
from sb3_refine.envs.spec import EnvRecipe
from sb3_refine.errors import EpisodeError
from sb3_refine.evaluators import ProcessEvaluator, RolloutTask, SerialEvaluator
from sb3_refine.optimizers import NoisePopulation
from sb3_refine.rollouts.reproducibility import probe


class Forgetful(gym.Wrapper):
    """Pendulum whose gravity depends on how many episodes came before."""

    def __init__(self):
        super().__init__(gym.make(ENV_ID))
        self.n_episodes = 0

    def reset(self, **kwargs):
        self.n_episodes += 1
        self.unwrapped.g = 10.0 + self.n_episodes
        return self.env.reset(**kwargs)


class Seedless(gym.Wrapper):
    """Pendulum that does not heed its seed."""

    def __init__(self):
        super().__init__(gym.make(ENV_ID))

    def reset(self, seed=None, **kwargs):
        return self.env.reset(seed=None, **kwargs)


class Replaying(Seedless):
    """Pendulum that draws from a stream of its own, which starts anew with each environment and heeds no seed."""

    def __init__(self):
        super().__init__()
        self.env.reset(seed=0)


class DrawsFromNumpy(gym.ObservationWrapper):
    """Pendulum with sensor noise from the generator of the process."""

    def __init__(self):
        super().__init__(gym.make(ENV_ID))

    def observation(self, observation):
        return observation + np.random.normal(scale=0.1, size=3).astype(np.float32)


class Exits(gym.Wrapper):
    """Pendulum that ends its process, as if all were well."""

    def __init__(self):
        super().__init__(gym.make(ENV_ID))

    def step(self, action):
        raise SystemExit(0)


class Chokes(gym.Wrapper):
    """Pendulum whose rewards are NaN, and that then raises."""

    def __init__(self):
        super().__init__(gym.make(ENV_ID))

    def step(self, action):
        observation, *_ = self.env.step(action)
        if self.unwrapped.last_u is None:
            raise ValueError("of its own NaN")
        self.unwrapped.last_u = None
        return observation, np.nan, False, False, {}


@pytest.fixture
def refiner(made_agents):
    return Refiner(load_agent("ppo", ENV_ID, made_agents), n_eval_episodes=10, n_delta=2)


def probed(refiner, recipe):
    policy = refiner.make_task().policy
    return probe(recipe, policy, refiner.parameters.get_theta())


def test_a_reproducible_environment_needs_no_remedy(refiner):
    found = probed(refiner, refiner.agent.recipe)
    assert (found.recipe, found.seeded) == (refiner.agent.recipe, True)


def test_an_environment_that_leaks_state_is_built_for_each_episode(refiner):
    found = probed(refiner, EnvRecipe(None, make=Forgetful))
    assert (found.recipe.remedy, found.seeded) == (FRESH_ENV, True)
    task = RolloutTask(found.recipe, refiner.make_task().policy)
    mean = refiner.parameters.get_theta()
    with SerialEvaluator(task) as serial, ProcessEvaluator(task, 2) as process:
        expected = run_policy(serial, mean, [4, 5, 4, 5, 6])
        assert expected[:2] == expected[2:4]
        assert run_policy(process, mean, [4, 5, 4, 5, 6]) == expected


@pytest.mark.parametrize(
    ("env_id", "remedy", "module"),
    [
        ("PandaPush-v3", "forget contacts", "panda_gym"),
        pytest.param("PandaStack-v3", FRESH_ENV, "panda_gym", marks=pytest.mark.slow),
        pytest.param("BipedalWalker-v3", "new Box2D world", "Box2D", marks=pytest.mark.slow),
    ],
)
def test_environments_that_are_known_to_leak_state(env_id, remedy, module):
    """Another order, another process, another history: the same episodes."""
    pytest.importorskip(module)
    policy = "MultiInputPolicy" if "Panda" in env_id else "MlpPolicy"
    refiner = Refiner(SAC(policy, env_id, buffer_size=10, device="cpu", seed=0))
    task, theta = refiner.make_task(), refiner.parameters.get_theta()
    assert task.recipe.remedy == remedy
    keys, signs, seeds = [5, 5, 6, 6, 7, 7, 8, 8], [1.0, -1.0] * 4, [[1], [1], [2], [2], [3], [3], [4], [4]]
    population, backwards = (NoisePopulation(theta, 0.3, keys[::s], signs[::s], seed=0) for s in (1, -1))
    with SerialEvaluator(task) as serial, ProcessEvaluator(task, 2) as process:
        expected = serial.evaluate(population, seeds)
        assert process.evaluate(backwards, seeds[::-1]) == expected[::-1]


def test_an_environment_that_ignores_its_seed_is_compared_unpaired(refiner, caplog):
    refiner.agent.recipe = EnvRecipe(None, make=Seedless)
    refiner.backend = "serial"
    refiner.learn(n_updates=1)
    assert "ignores its seed" in caplog.text
    assert not refiner.make_task().replays  # its numbers are new ones in every worker
    assert not refiner.result.paired_difference.paired
    assert len(refiner.result.baseline.seeds) == 20  # twice as many


class GrowsHarder(Forgetful):
    """Pendulum whose gravity rises, but not before its tenth episode."""

    def reset(self, **kwargs):
        observation = super().reset(**kwargs)
        self.unwrapped.g = 10.0 + self.n_episodes // 10
        return observation


def test_a_leak_of_state_that_shows_late_is_reported_at_the_end(refiner, caplog):
    refiner.agent.recipe, refiner.backend = EnvRecipe(None, make=GrowsHarder), "serial"
    refiner.learn(n_updates=1)
    assert "STATE LEAKS BETWEEN EPISODES: the original's returns for the seeds " in caplog.text


def test_a_failed_recheck_of_reproducibility_keeps_the_verdict(refiner, caplog, monkeypatch):
    evaluate = SerialEvaluator.evaluate

    def failing(self, population, seeds, *arguments):
        if len(seeds[0]) == 2:  # those of the recheck
            raise EpisodeError("it broke\nwith a traceback")
        return evaluate(self, population, seeds, *arguments)

    monkeypatch.setattr(SerialEvaluator, "evaluate", failing)
    refiner.backend = "serial"
    refiner.learn(n_updates=1)
    assert refiner.result.candidate is not None
    assert "the original could not be run again at the end: it broke" in caplog.text


def test_without_a_leak_of_state_nothing_is_reported(refiner, caplog):
    refiner.learn(n_updates=1)
    assert "STATE LEAKS" not in caplog.text


def test_a_generator_that_restarts_with_each_environment_is_not_seeding(refiner, caplog):
    found = probed(refiner, EnvRecipe(None, make=Replaying))
    assert (found.recipe.remedy, found.seeded, found.replays) == (None, False, True)
    assert "ignores its seed" in caplog.text
    task = RolloutTask(found.recipe, refiner.make_task().policy, replays=True)
    with ProcessEvaluator(task, 4) as evaluator:  # workers would all draw the same numbers
        assert evaluator.n_workers == 1
        episodes = run_policy(evaluator, refiner.parameters.get_theta(), range(8))
    assert len({episode.episode_return for episode in episodes}) == 8


class Monotonous(Forgetful):
    """Pendulum that has a history, and starts where it always does."""

    def reset(self, **kwargs):
        return super().reset(**{**kwargs, "seed": 0})


def test_a_leak_of_state_takes_a_fresh_environment_even_without_randomness(refiner):
    found = probed(refiner, EnvRecipe(None, make=Monotonous))
    assert (found.recipe.remedy, found.seeded) == (None, False)  # what each reset adds to it looks like a stream

    class OnlySteps(Monotonous):
        def reset(self, **kwargs):
            observation = super().reset(**kwargs)
            self.unwrapped.g = 10.0 + getattr(self, "n_steps", 0)
            return observation

        def step(self, action):
            self.n_steps = getattr(self, "n_steps", 0) + 1
            return super().step(action)

    found = probed(refiner, EnvRecipe(None, make=OnlySteps))
    assert (found.recipe.remedy, found.seeded) == (FRESH_ENV, True)


def test_draws_from_the_global_generators_are_seeded(refiner):
    found = probed(refiner, EnvRecipe(None, make=DrawsFromNumpy))
    assert found.seeded
    task, mean = RolloutTask(found.recipe, refiner.make_task().policy), refiner.parameters.get_theta()
    state = np.random.get_state()[1].tolist()
    with SerialEvaluator(task) as serial, ProcessEvaluator(task, 2) as process:
        expected = run_policy(serial, mean, range(6))
        assert run_policy(process, mean, range(6)[::-1]) == expected[::-1]
    assert len({episode.episode_return for episode in expected}) == 6
    assert np.random.get_state()[1].tolist() == state  # the caller's own numbers are left alone


def test_a_probe_that_fails_says_in_which_episode(refiner):
    with pytest.raises(EpisodeError, match="the episode with seed 1 that probes the environment failed: SystemExit: 0"):
        probed(refiner, EnvRecipe(None, make=Exits))


def test_a_probe_that_hangs_is_given_up(refiner):
    class Hangs(gym.Wrapper):
        def step(self, action):
            time.sleep(60)

    refiner.agent.recipe, refiner.episode_timeout = EnvRecipe(None, make=lambda: Hangs(gym.make(ENV_ID))), 0.5
    with pytest.raises(EpisodeError, match=r"that probes the environment hung \(longer than episode_timeout, 0.5 s\)"):
        refiner.learn(1)


def test_the_probe_survives_an_environment_that_fails_after_nan(refiner):
    assert probed(refiner, EnvRecipe(None, make=Chokes)).seeded


@pytest.mark.parametrize("env_id", ["Hopper", "Walker2D", "HalfCheetah", "Ant", "Humanoid"])
def test_the_accelerated_step_has_the_bits_of_the_stock_one(env_id):
    pytest.importorskip("pybullet_envs_gymnasium")
    stock, fast = (EnvRecipe(f"{env_id}BulletEnv-v0").build() for _ in range(2))
    assert accelerate(fast) == "bullet walker"
    for seed in range(4):
        rng = np.random.default_rng(seed)
        assert np.array_equal(stock.reset(seed=seed)[0], fast.reset(seed=seed)[0])
        action = np.zeros(stock.action_space.shape)
        for _ in range(200):
            action = 0.9 * action + 0.4 * rng.standard_normal(action.shape)  # beyond the limits now and then
            expected, got = stock.step(action.astype(np.float32)), fast.step(action.astype(np.float32))
            assert np.array_equal(expected[0], got[0])
            assert expected[0].dtype == got[0].dtype
            assert expected[1:] == got[1:]
            if expected[2]:
                break


@pytest.mark.parametrize(
    ("env_id", "name"),
    [
        ("LunarLander-v3", "box2d"),
        ("LunarLanderContinuous-v3", "box2d"),
        ("BipedalWalker-v3", "box2d"),
        ("BipedalWalkerHardcore-v3", "box2d"),
        ("PandaReach-v3", "panda"),
        ("PandaPush-v3", "panda"),
        ("PandaSlide-v3", "panda"),
        ("PandaPickAndPlace-v3", "panda"),
        ("PandaStack-v3", "panda"),
        ("PandaReachJointsDense-v3", "panda"),
        ("ReacherBulletEnv-v0", "bullet binding"),
        ("InvertedDoublePendulumBulletEnv-v0", "bullet binding"),
    ],
)
def test_an_accelerated_environment_has_the_trajectories_of_the_stock_one(env_id, name):
    pytest.importorskip({"panda": "panda_gym", "box2d": "Box2D"}.get(name, "pybullet_envs_gymnasium"))
    stock, fast = (EnvRecipe(env_id).build() for _ in range(2))
    assert accelerate(fast) == name
    for seed in range(3):
        fast.action_space.seed(seed)
        assert_same(stock.reset(seed=seed)[0], fast.reset(seed=seed)[0])
        for _ in range(200):
            action = fast.action_space.sample()
            expected, got = stock.step(action), fast.step(action)
            assert_same(expected[0], got[0])
            assert expected[1:] == got[1:]
            if expected[2] or expected[3]:
                break


def assert_same(expected, got):
    for a, b in zip(*(x.values() if isinstance(x, dict) else (x,) for x in (expected, got)), strict=True):
        assert a.dtype == b.dtype
        assert a.tobytes() == b.tobytes()


def test_scalar_functions_have_the_bits_of_numpy():
    values = [*np.random.default_rng(0).normal(size=20), 0.0, -0.0, np.nan, np.inf, -np.inf, 1, -2]
    for dtype in (np.float32, np.float64):
        for x in np.array(values, dtype=dtype):
            for ours, theirs in [
                (box2d._clip(x, 0, 1), np.clip(x, 0, 1)),
                (box2d._clip(x, -0.5, 1.0), np.clip(x, -0.5, 1.0)),
                (box2d._sign(x), np.sign(x)),
                (abs(x), np.abs(x)),
            ]:
                assert (type(ours), ours.tobytes()) == (type(theirs), theirs.tobytes())
    array = np.array(values, dtype=np.float32)
    assert np.array_equal(box2d._clip(array, -1, 1), np.clip(array, -1, 1), equal_nan=True)
    assert box2d._sqrt(2.0) == np.sqrt(2.0)
    with pytest.warns(RuntimeWarning):
        assert np.isnan(box2d._sqrt(-1.0))


def test_other_environments_are_not_accelerated():
    assert accelerate(gym.make(ENV_ID)) is None


def test_a_walker_with_its_own_step_keeps_it():
    envs = pytest.importorskip("pybullet_envs_gymnasium.gym_locomotion_envs")

    class Own(envs.HopperBulletEnv):
        def step(self, a):
            return super().step(a)

    env = Own()
    env.reset(seed=0)
    assert accelerate(env) == "bullet binding"
    assert "step" not in vars(env)


@pytest.mark.parametrize(("algo", "env"), [("ddpg", "HopperBulletEnv-v0"), ("trpo", "Walker2DBulletEnv-v0")])
@pytest.mark.slow
def test_returns_do_not_depend_on_the_accelerator(zoo_agents, algo, env):
    pytest.importorskip("pybullet_envs_gymnasium")
    episodes = []
    for accelerator in (True, False):
        refiner = Refiner(load_agent(algo, env, zoo_agents), accelerator=accelerator)
        task = refiner.make_task()
        assert task.recipe.accelerated is accelerator
        with SerialEvaluator(task) as evaluator:
            episodes.append(run_policy(evaluator, refiner.parameters.get_theta(), [1, 2, 3]))
    assert episodes[0] == episodes[1]


@pytest.mark.parametrize(
    ("env_id", "reward", "info", "failed"),
    [
        ("HopperBulletEnv-v0", 1.0, {}, True),
        ("CartPole-v1", 1.0, {}, True),
        ("MountainCarContinuous-v0", 99.0, {}, False),
        ("Acrobot-v1", 0.0, {}, False),
        ("LunarLander-v3", -100.0, {}, True),
        ("LunarLanderContinuous-v3", 100.0, {}, False),
        ("BipedalWalker-v3", -100.0, {}, True),
        ("BipedalWalkerHardcore-v3", 0.3, {}, False),
        ("PandaReach-v3", 0.0, {"is_success": True}, False),
        ("PandaReach-v3", -1.0, {"is_success": False}, True),
        ("FrozenLake-v1", 0.0, {}, True),
        ("FrozenLake-v1", 1.0, {}, False),
        ("MiniGrid-Empty-5x5-v0", 0.9, {}, False),
        ("Taxi-v3", 20.0, {}, False),
        (None, 0.0, {}, True),
    ],
)
def test_which_terminations_are_failures(env_id, reward, info, failed):
    assert is_failure(env_id, reward, info) is failed


@pytest.mark.parametrize(
    "wrapper",
    [
        "sb3_contrib.common.wrappers.time_feature.TimeFeatureWrapper",
        pytest.param("toy_envs.Untouched", marks=pytest.mark.slow),
    ],
)
def test_a_walker_with_any_wrapper_is_as_reproducible_and_as_fast(zoo_agents, wrapper):
    """Wrappers that may end episodes early must not keep the walker from the reset that it needs when it is made."""
    pytest.importorskip("pybullet_envs_gymnasium")
    agent = load_agent("ddpg", "HopperBulletEnv-v0", zoo_agents)
    expected = episodes_of(agent)
    extra = ((wrapper, {}),)
    agent.recipe = replace(agent.recipe, wrappers=extra if "time_feature" in wrapper else agent.recipe.wrappers + extra)
    assert episodes_of(agent) == expected


def episodes_of(agent):
    refiner = Refiner(agent, backend="serial")
    task = refiner.make_task()
    assert (task.recipe.remedy, task.recipe.accelerated) == (None, True)
    with SerialEvaluator(task) as evaluator:
        return run_policy(evaluator, refiner.parameters.get_theta(), [1, 2])


@pytest.mark.parametrize(
    "env_id",
    [
        f"Panda{kind}-v3"
        for kind in ("Reach", "ReachJointsDense", "PushJoints", "SlideDense", "PickAndPlaceJointsDense", "Stack")
    ],
)
def test_an_accelerated_arm_has_the_bits_of_the_stock_one(env_id):
    pytest.importorskip("panda_gym")
    stock, fast = (EnvRecipe(env_id).build() for _ in range(2))
    assert accelerate(fast) == "panda"
    assert "step" in vars(fast.unwrapped)
    for seed in range(4):
        rng, done = np.random.default_rng(seed), False
        action = np.zeros(stock.action_space.shape)
        expected, got = stock.reset(seed=seed), fast.reset(seed=seed)
        while not done:
            assert_same(expected[0], got[0])
            assert repr(expected[1:]) == repr(got[1:])  # types and the sign of zero, too
            action = 0.8 * action + 0.8 * rng.standard_normal(action.shape)  # beyond the limits now and then
            given = action.astype((np.float32, np.float64)[seed % 2])
            expected, got = stock.step(given), fast.step(given)
            done = expected[2] or expected[3]
        assert_same(expected[0], got[0])
        assert repr(expected[1:]) == repr(got[1:])
    assert np.array_equal(stock.render(), fast.render())


def test_an_arm_with_its_own_task_keeps_its_step():
    pytest.importorskip("panda_gym")
    from panda_gym.envs.panda_tasks import Reach

    class Own(Reach):
        pass

    env = EnvRecipe("PandaReach-v3").build()
    env.unwrapped.task.__class__ = Own
    assert accelerate(env) == "panda"
    assert "step" in vars(env.unwrapped.sim)
    assert "step" not in vars(env.unwrapped)
