"""Episodes on executors of other libraries: the same bits, whoever runs the episodes."""

import json
import multiprocessing as mp
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest

from sb3_refine import RefineError, Refiner, load_agent
from sb3_refine.envs.spec import EnvRecipe
from sb3_refine.errors import EpisodeError
from sb3_refine.evaluators import ExecutorEvaluator, RolloutTask, SerialEvaluator, executor
from sb3_refine.evaluators.base import processor
from sb3_refine.testing import EvaluatorContract
from sb3_refine.testing.evaluators import population_of, small_task

SEEDS = [list(range(1, 5))] * 5


def process_pool(n_workers=2):
    """Workers that are not forked from this process, which has threads."""
    return ProcessPoolExecutor(n_workers, mp_context=mp.get_context("forkserver"))


class TestExecutorOfConcurrentFutures(EvaluatorContract):
    evaluator = ExecutorEvaluator
    options: ClassVar = {"make": process_pool, "episodes_per_call": 2}


@pytest.mark.slow
class TestExecutorOfLoky(EvaluatorContract):
    evaluator = ExecutorEvaluator

    @pytest.fixture(autouse=True)
    def pool(self):
        self.executor = pytest.importorskip("loky").get_reusable_executor(2)  # the same in all tests

    def make(self, task, n_workers=2, episode_timeout=600.0):
        return ExecutorEvaluator(task, n_workers, episode_timeout, make=self.executor)


@pytest.fixture(scope="module")
def pool():
    with process_pool() as made:
        yield made


class Faulty(gym.Wrapper):
    """Does something in the third step of the episode with seed 3; a file counts how often."""

    def __init__(self, env, folder, what):
        super().__init__(env)
        self.folder, self.what, self.n_steps = folder, what, 0

    def reset(self, *, seed=None, **kwargs):
        self.n_steps = 0 if seed == 3 else -1000
        return self.env.reset(seed=seed, **kwargs)

    def step(self, action):
        self.n_steps += 1
        if self.n_steps == 3:
            self.what(self.folder)
        return self.env.step(action)


def dies_once(folder):
    if not (folder / "died").exists():
        (folder / "died").touch()
        os._exit(3)


def hangs_once(folder):
    if not (folder / "hung").exists():
        (folder / "hung").touch()
        time.sleep(3600)


def dies(folder):
    os._exit(3)


def make_faulty(folder, what):
    return Faulty(gym.make("Pendulum-v1", max_episode_steps=20), folder, what)


@pytest.fixture
def faulty(tmp_path):
    return lambda what: RolloutTask(EnvRecipe(None, make=partial(make_faulty, tmp_path, what)), small_task().policy)


@pytest.fixture
def expected():
    with SerialEvaluator(small_task()) as serial:
        return serial.evaluate(population_of(small_task()), SEEDS)


@pytest.mark.slow
@pytest.mark.parametrize("make", [process_pool, "loky.get_reusable_executor"])
@pytest.mark.parametrize("what", [dies_once, hangs_once])
def test_an_executor_whose_worker_is_lost_is_replaced_with_the_same_result(faulty, expected, make, what, caplog):
    if isinstance(make, str):
        pytest.importorskip("loky")
    with ExecutorEvaluator(faulty(what), 2, 20.0, make=make) as evaluator:
        assert evaluator.evaluate(population_of(small_task()), SEEDS) == expected
    assert "replaced, and the episode run again" in caplog.text


def test_an_episode_that_always_ends_its_worker_is_given_up(faulty):
    with (
        pytest.raises(EpisodeError, match=r"the episode with seed 3 of .*: its worker died \(.*\) 3 times"),
        ExecutorEvaluator(faulty(dies), 2, make=process_pool) as evaluator,
    ):
        evaluator.evaluate(population_of(small_task()), SEEDS)


def test_a_lost_worker_of_an_executor_that_cannot_be_replaced_is_an_error(faulty):
    with (
        process_pool() as given,
        pytest.raises(EpisodeError, match="pass a function that makes an executor"),
        ExecutorEvaluator(faulty(dies_once), make=given) as evaluator,
    ):
        evaluator.evaluate(population_of(small_task()), SEEDS)


def make_exiting():
    raise SystemExit("no display")


def test_an_environment_that_exits_while_it_is_built_is_an_error(pool):
    task = RolloutTask(EnvRecipe(None, make=make_exiting), small_task().policy)
    with (
        pytest.raises(EpisodeError, match="SystemExit: no display"),
        ExecutorEvaluator(task, make=pool) as evaluator,
    ):
        evaluator.evaluate(population_of(small_task()), SEEDS)


@pytest.mark.slow
def test_workers_that_are_forked_from_a_process_with_handlers_are_ended_without_them(faulty, expected):
    """As the command line has them: workers would answer with KeyboardInterrupt."""
    handler = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with ExecutorEvaluator(faulty(hangs_once), 3, 10.0, make=ProcessPoolExecutor) as evaluator:
            assert evaluator.evaluate(population_of(small_task()), SEEDS) == expected
    finally:
        signal.signal(signal.SIGTERM, handler)


@pytest.mark.slow
def test_an_executor_whose_processes_cannot_be_ended_is_not_replaced(faulty):
    def hangs_for_a_while(folder):
        time.sleep(3)

    made = []
    with (
        pytest.raises(EpisodeError, match="cannot be replaced"),
        ExecutorEvaluator(
            faulty(hangs_for_a_while), 1, 1.0, make=lambda n: made.append(ThreadPoolExecutor(n)) or made[0]
        ) as evaluator,
    ):
        evaluator.evaluate(population_of(small_task()), SEEDS)
    made[0].shutdown()  # waits for the thread, which changes generators of this process


def test_an_environment_that_replays_its_random_numbers_is_refused():
    with pytest.raises(RefineError, match="each process would run the same episodes"):
        ExecutorEvaluator(replace(small_task(), replays=True), make=process_pool)


def test_an_executor_of_the_caller_is_left_open_and_serves_several_tasks(pool, faulty, expected):
    tasks = [small_task(), faulty(len)]
    with ExecutorEvaluator(tasks[0], make=pool) as first, ExecutorEvaluator(tasks[1], make=pool) as second:
        for _ in range(3):
            assert first.evaluate(population_of(tasks[0]), SEEDS) == expected
            with pytest.raises(EpisodeError, match="object of type 'PosixPath' has no len"):
                second.evaluate(population_of(tasks[0]), SEEDS)
    assert pool.submit(len, "abc").result() == 3


def test_workers_get_the_task_once_and_each_population_once(pool, monkeypatch):
    sent, submit = [], pool.submit
    monkeypatch.setattr(
        pool,
        "submit",
        lambda function, *args: sent.append([bool(each.content) for each in args[:2]]) or submit(function, *args),
    )
    with ExecutorEvaluator(small_task(), make=pool) as evaluator:
        for _ in range(2):
            evaluator.evaluate(population_of(small_task()), SEEDS)
    n_calls = 2 * 20
    assert n_calls <= len(sent) <= n_calls + 4  # those that a worker without the content got
    assert sum(task for task, _ in sent) <= 6
    assert 4 <= sum(batch for _, batch in sent) <= 8


def test_a_worker_that_joins_later_gets_what_it_lacks(pool, expected, monkeypatch):
    monkeypatch.setattr(executor.Shared, "parcel", lambda self: executor.Parcel(self.full.name, None))
    with ExecutorEvaluator(small_task(), make=pool) as evaluator:
        assert evaluator.evaluate(population_of(small_task()), SEEDS) == expected


def test_the_number_of_workers_is_that_of_the_executor(pool):
    with ExecutorEvaluator(small_task(), make=pool) as evaluator:
        assert evaluator.n_workers == 2
    with ExecutorEvaluator(small_task(), 3, make=process_pool) as evaluator:
        assert evaluator.n_workers == evaluator.executor._max_workers == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (None, "expected an executor or what makes one, got None"),
        ("no_such_module.Pool", "cannot import 'no_such_module.Pool'"),
        ("concurrent.futures.NoSuchPool", "cannot import 'concurrent.futures.NoSuchPool'"),
        ("pool", "cannot import 'pool'"),
        (lambda: 3, "returned 3, which has no `submit`"),
        (lambda: 1 / 0, "failed .*division by zero"),
    ],
)
def test_what_is_no_executor_is_named(make, message):
    with pytest.raises(RefineError, match=message), ExecutorEvaluator(small_task(), make=make):
        pass


def test_a_class_makes_an_executor():
    with ExecutorEvaluator(small_task(), 1, make=ThreadPoolExecutor) as evaluator:
        assert evaluator.is_ours
        assert isinstance(evaluator.executor, ThreadPoolExecutor)


def test_threads_leave_the_callers_generators_alone(expected):
    before = np.random.get_state()[1].copy()
    with ThreadPoolExecutor(1) as threads, ExecutorEvaluator(small_task(), make=threads) as evaluator:
        assert evaluator.evaluate(population_of(small_task()), SEEDS) == expected
    assert np.array_equal(before, np.random.get_state()[1])


def test_a_search_on_an_executor_finds_what_a_search_in_one_process_finds(pool, made_agents):
    thetas = []
    for backend in ("serial", pool, process_pool):
        agent = load_agent("ppo", "Pendulum-v1", made_agents)
        refiner = Refiner(agent, n_delta=4, n_eval_episodes=4, seed=0, backend=backend).learn(2)
        thetas.append(refiner.search.optimizer.theta)
    assert np.array_equal(thetas[0], thetas[1])
    assert np.array_equal(thetas[0], thetas[2])
    assert refiner.backend == "executor"
    assert refiner.result.processors == (processor(),)


@pytest.mark.slow
def test_the_command_line_runs_on_mpi(made_agents, tmp_path):
    pytest.importorskip("mpi4py")
    if shutil.which("mpiexec") is None:
        pytest.skip("no mpiexec on this machine")
    refine = ["--algo", "ppo", "--env", "Pendulum-v1", "-f", str(made_agents), "--n-updates", "2"]
    refine += ["--optimizer", "ars:n_delta=2", "--n-eval-episodes", "4"]
    mpi = ["mpiexec", "-n", "3", "--allow-run-as-root", "--oversubscribe", sys.executable, "-m", "mpi4py.futures"]
    backend = ["--backend", "executor:make=mpi4py.futures.MPIPoolExecutor"]
    found = []
    for command in (
        [*mpi, "-m", "sb3_refine.cli", *refine, *backend],
        [sys.executable, "-m", "sb3_refine.cli", *refine],
    ):
        folder = tmp_path / str(len(found))
        done = subprocess.run([*command, "-o", str(folder)], capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        record = json.loads((folder / "ppo" / "Pendulum-v1_1" / "refinement.json").read_text())
        found.append((record["learning_curve"], record["baseline"], record["refined"]))
    assert found[0] == found[1]
