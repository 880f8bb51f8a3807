"""Every backend in the registry: the same bits, errors that arrive, nothing left behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import BACKENDS, BrokenEnv, train
from fresh import run_script

from sb3_refine import Refiner, load_agent
from sb3_refine.envs.remedies import FRESH_ENV
from sb3_refine.envs.spec import EnvRecipe
from sb3_refine.errors import EpisodeError, RefineError
from sb3_refine.evaluators import (
    EVALUATORS,
    ExecutorEvaluator,
    ProcessEvaluator,
    RayEvaluator,
    RolloutTask,
    SerialEvaluator,
    backend_options,
    process,
)
from sb3_refine.optimizers import ExplicitPopulation, NoisePopulation
from sb3_refine.policies.general import GeneralPolicy
from sb3_refine.policies.parameters import PolicyParameters
from sb3_refine.testing import EvaluatorContract

SEEDS = [[3], [3], [5], [5], [7], [7], [7]]


class TestProcessEvaluator(EvaluatorContract):
    evaluator = ProcessEvaluator


class TestSerialEvaluator(EvaluatorContract):
    evaluator = SerialEvaluator


def test_every_backend_has_a_contract_test():
    tested = {cls.evaluator for cls in EvaluatorContract.__subclasses__() if cls.__module__ == __name__}
    elsewhere = {ExecutorEvaluator, RayEvaluator}  # in test_executor.py and test_ray.py
    assert tested | elsewhere == set(EVALUATORS.values())


def task_of(agent, **kwargs):
    return Refiner(agent, **kwargs).make_task()


def population_of(task):
    """Three antithetic pairs, and the policy itself."""
    theta = np.full(task.policy.n_parameters, 0.01, dtype=np.float32)
    return NoisePopulation(theta, 0.1, [7, 7, 8, 8, 9, 9, 0], [1.0, -1.0] * 3 + [0.0], seed=0)


def episodes_of(task, kind, n_workers=1):
    name, options = backend_options("backend", kind, n_workers)
    with EVALUATORS[name](task, **options) as evaluator:
        return evaluator.evaluate(population_of(task), SEEDS)


def run_zeros(evaluator, seeds):
    """Episodes of the policy whose parameters are all 0."""
    (episodes,) = evaluator.evaluate(ExplicitPopulation(np.zeros((1, evaluator.task.policy.n_parameters))), [seeds])
    return episodes


@pytest.fixture
def task(made_agents):
    return task_of(load_agent("a2c", "Pendulum-v1", made_agents))


@pytest.mark.parametrize(
    ("algo", "env", "module"),
    [
        pytest.param("ddpg", "HopperBulletEnv-v0", "pybullet_envs_gymnasium", marks=pytest.mark.slow),
        pytest.param("a2c", "Walker2DBulletEnv-v0", "pybullet_envs_gymnasium", marks=pytest.mark.slow),
        ("ppo", "LunarLanderContinuous-v2", "Box2D"),
        ("tqc", "Hopper-v3", "mujoco"),
        ("tqc", "MountainCarContinuous-v0", "gymnasium"),
        pytest.param("a2c", "BipedalWalker-v3", "Box2D", marks=pytest.mark.slow),
        ("tqc", "PandaReach-v1", "panda_gym"),
        ("dqn", "CartPole-v1", "gymnasium"),
    ],
)
def test_results_do_not_depend_on_who_computed_them_on_zoo_agents(zoo_agents, algo, env, module):
    pytest.importorskip(module)
    refiner = Refiner(load_agent(algo, env, zoo_agents))
    task, theta = refiner.make_task(), refiner.parameters.get_theta()
    keys, signs = [7, 7, 8, 8, 9, 9], [1.0, -1.0] * 3
    population, backwards = (NoisePopulation(theta, 0.02, keys[::s], signs[::s], seed=0) for s in (1, -1))
    with SerialEvaluator(task) as serial, ProcessEvaluator(task, 2) as process:
        expected = serial.evaluate(population, SEEDS[:6])
        assert process.evaluate(population, SEEDS[:6]) == expected
        assert process.evaluate(backwards, SEEDS[5::-1]) == expected[::-1]  # in another order


def broken_env():
    return BrokenEnv(gym.make("Pendulum-v1"))


@pytest.mark.parametrize("kind", BACKENDS)
def test_an_exception_in_the_env_arrives_with_its_seed_and_traceback(task, kind):
    broken = RolloutTask(EnvRecipe(None, make=broken_env), task.policy)
    message = r"seed 3 of candidate 0, the policy perturbed by .*ArithmeticError: the pend"
    with pytest.raises(EpisodeError, match=message) as error:
        episodes_of(broken, kind)
    assert "in step" in str(error.value)


def test_an_env_that_cannot_be_built_in_a_worker_is_an_error(task):
    with pytest.raises(RefineError, match="unknown environment 'Pendulun-v1' \\(did you mean Pendulum-v1"):
        episodes_of(RolloutTask(EnvRecipe("Pendulun-v1"), task.policy), "process", 2)


def test_a_killed_worker_is_replaced_and_its_episode_run_again(task):
    expected = episodes_of(task, "serial")
    with ProcessEvaluator(task, 2) as evaluator:
        for _ in range(3):
            os.kill(evaluator._workers[0].process.pid, signal.SIGKILL)
            assert evaluator.evaluate(population_of(task), SEEDS) == expected


class Faulty(gym.Wrapper):
    """Pendulum that does something nasty in the first episode with seed 5, or in every one."""

    def __init__(self, fault, marker):
        super().__init__(gym.make("Pendulum-v1"))
        self.fault, self.marker, self.seed = fault, marker, None

    def reset(self, seed=None, **kwargs):
        self.seed = seed
        return self.env.reset(seed=seed, **kwargs)

    def step(self, action):
        if self.seed == 5 and not os.path.exists(self.marker):
            if "once" in self.fault:
                with open(self.marker, "w"):
                    pass
            if "exit" in self.fault:
                os._exit(7)
            time.sleep(3600)
        return self.env.step(action)


@pytest.mark.parametrize(("fault", "timeout"), [("exit once", 600.0), ("hang once", 3.0)])
def test_an_episode_whose_worker_is_lost_is_run_again(task, tmp_path, fault, timeout):
    expected = episodes_of(task, "serial")
    faulty = RolloutTask(EnvRecipe(None, make=partial(Faulty, fault, str(tmp_path / "done"))), task.policy)
    with ProcessEvaluator(faulty, 2, episode_timeout=timeout) as evaluator:
        assert evaluator.evaluate(population_of(task), SEEDS) == expected


@pytest.mark.parametrize(
    ("fault", "timeout", "line"),
    [
        ("exit", 600.0, "died .exit code 7.*3 times"),
        pytest.param("hang", 1.0, "hung .*3 times", marks=pytest.mark.slow),
    ],
)
def test_an_episode_that_loses_every_worker_is_an_error(task, tmp_path, fault, timeout, line):
    faulty = RolloutTask(EnvRecipe(None, make=partial(Faulty, fault, str(tmp_path / "done"))), task.policy)
    with ProcessEvaluator(faulty, 2, timeout) as evaluator, pytest.raises(EpisodeError, match=line):
        evaluator.evaluate(population_of(task), SEEDS)


class NeedsAnother(gym.Wrapper):
    """Pendulum with a process of its own, which ends with it, and an environment that may not be built at first."""

    def __init__(self, folder, fault=""):
        super().__init__(gym.make("Pendulum-v1"))
        if fault and not os.path.exists(os.path.join(folder, "built")):
            with open(os.path.join(folder, "built"), "w"):
                pass
            os._exit(7) if fault == "exit" else time.sleep(3600)
        self.process = subprocess.Popen(["sleep", "3600"])
        with open(os.path.join(folder, "pids"), "a") as file:
            print(self.process.pid, file=file)

    def close(self):
        self.process.kill()
        self.process.wait()
        super().close()


def test_environments_are_closed_and_their_processes_end(task, tmp_path):
    recipe = EnvRecipe(None, make=partial(NeedsAnother, str(tmp_path)))
    with ProcessEvaluator(RolloutTask(recipe, task.policy), 2) as evaluator:
        run_zeros(evaluator, [1, 2, 3])
    pids = (tmp_path / "pids").read_text().split()
    assert len(pids) == 2
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)


class Unclosable(gym.Wrapper):
    """Pendulum that cannot be closed, with a thread that does not end."""

    def __init__(self):
        super().__init__(gym.make("Pendulum-v1"))
        threading.Thread(target=time.sleep, args=(3600,)).start()

    def close(self):
        raise ValueError("it cannot")


def test_an_environment_that_cannot_be_closed_does_not_delay_the_run(task, capfd, monkeypatch):
    monkeypatch.setattr(process, "_SECONDS_TO_CLOSE", 300.0)
    with ProcessEvaluator(RolloutTask(EnvRecipe(None, make=Unclosable), task.policy), 3) as evaluator:
        start = time.monotonic()
    assert time.monotonic() - start < 150
    assert evaluator._workers == []
    assert "it cannot" not in capfd.readouterr().err


@pytest.mark.parametrize("fault", ["exit", "hang"])
def test_a_worker_that_is_lost_while_it_starts_is_replaced(task, tmp_path, fault, monkeypatch):
    wait = process._Worker.wait_until_ready
    timeouts = []

    def wait_until_ready(worker, timeout):
        timeouts.append(timeout)
        if fault == "hang" and len(timeouts) == 1:  # not before it hangs, and then no longer
            while not (tmp_path / "built").exists():
                time.sleep(0.01)
            timeout = 0.1
        wait(worker, timeout)

    monkeypatch.setattr(process._Worker, "wait_until_ready", wait_until_ready)
    recipe = EnvRecipe(None, make=partial(NeedsAnother, str(tmp_path), fault))
    with ProcessEvaluator(RolloutTask(recipe, task.policy), 1) as evaluator:
        (episode,) = run_zeros(evaluator, [1])
    assert episode.length == 200
    assert timeouts == [600.0, 600.0]  # as long as an episode may take


@pytest.mark.parametrize("kind", BACKENDS)
def test_an_env_that_exits_is_an_error(task, kind):
    class Exits(gym.Wrapper):
        def step(self, action):
            sys.exit(0)

    recipe = EnvRecipe(None, make=lambda: Exits(gym.make("Pendulum-v1")))
    with pytest.raises(EpisodeError, match="the episode with seed 3 of .* failed: SystemExit: 0"):
        episodes_of(RolloutTask(recipe, task.policy), kind)


def test_a_worker_that_dies_while_it_starts_is_an_error(task):
    dying = RolloutTask(EnvRecipe(None, make=lambda: os._exit(3)), task.policy)
    with pytest.raises(EpisodeError, match=r"a worker died \(exit code 3.* while it started"):
        episodes_of(dying, "process", 2)


def test_the_general_policy_in_processes(task, made_agents):
    agent = load_agent("a2c", "Pendulum-v1", made_agents)
    slices = PolicyParameters(agent.model.policy).slices()
    general = GeneralPolicy(agent.model.policy, slices, agent.vec_normalize, agent.observation_space)
    assert episodes_of(RolloutTask(task.recipe, general), "process", 2) == episodes_of(task, "serial")


def test_no_worker_outlives_the_evaluator(task):
    with ProcessEvaluator(task, 2) as evaluator:
        pids = [worker.process.pid for worker in evaluator._workers]
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_script_needs_no_main_guard(tmp_path):
    """The caller's module is not imported again in the workers, and its own classes reach them all the same."""
    script = tmp_path / "script.py"
    script.write_text(
        "import gymnasium as gym\n"
        "from stable_baselines3 import PPO\n"
        "from sb3_refine import refine\n"
        "class Slower(gym.Wrapper):\n"
        "    pass\n"
        "model = PPO('MlpPolicy', 'Pendulum-v1', n_steps=32, batch_size=32, device='cpu').learn(32)\n"
        "make = lambda: Slower(gym.make('Pendulum-v1'))\n"
        "print(refine(model, make, n_updates=1, n_delta=2, n_workers=2, n_eval_episodes=2).result.decision)\n"
    )
    done = run_script("import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')", script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("refined", "original")


def test_a_model_in_memory_has_the_results_of_its_saved_self(made_agents):
    """Same policy, same seeds: agents from disk and from memory roll out alike."""
    model = train("a2c")
    from_memory = episodes_of(task_of(model), "serial")
    from_disk = episodes_of(task_of(load_agent("a2c", "Pendulum-v1", made_agents)), "serial")
    assert from_memory == from_disk


class Differentiating(gym.Wrapper):
    """Its reward is a derivative."""

    def step(self, action):
        observation, _, *rest = self.env.step(action)
        with torch.inference_mode(False), torch.enable_grad():
            x = torch.tensor(float(observation[0]), requires_grad=True)
            (x * x).backward()
        return observation, float(x.grad), *rest


def test_an_environment_may_differentiate_in_its_step(task):
    recipe = EnvRecipe(None, make=lambda: Differentiating(gym.make("Pendulum-v1")), remedy=FRESH_ENV)
    episodes = episodes_of(RolloutTask(recipe, task.policy), "process", 2)
    assert episodes == episodes_of(RolloutTask(recipe, task.policy), "serial")
    assert all(np.isfinite(episode.episode_return) for (episode,) in episodes)


class Choking(gym.Wrapper):
    """Shows an infinite observation once, and cannot bear the action that comes of it."""

    def step(self, action):
        assert np.isfinite(action).all(), "what an action"
        observation, *rest = self.env.step(action)
        self.n = getattr(self, "n", 0) + 1
        return observation + np.float32(np.inf if self.n == 5 else 0), *rest


def test_an_environment_that_raises_after_its_own_nan_drops_the_episode(task):
    recipe = EnvRecipe(None, make=lambda: Choking(gym.make("Pendulum-v1")))
    with SerialEvaluator(RolloutTask(recipe, task.policy)) as evaluator:
        invalid, sound = run_zeros(evaluator, [1, 1])
    assert np.isnan(invalid.episode_return)
    assert np.isfinite(sound.episode_return)
