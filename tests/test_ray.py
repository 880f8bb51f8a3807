"""Episodes on a real Ray cluster of several nodes on this machine: the same bits, whatever is lost on the way."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import children_of, left_after, running_search
from fresh import run_command

from sb3_refine import MetaRefiner, RefineError, Refiner, load_agent
from sb3_refine.envs.spec import EnvRecipe
from sb3_refine.errors import EpisodeError
from sb3_refine.evaluators import RayEvaluator, RolloutTask, SerialEvaluator, ray_cluster
from sb3_refine.meta.adaptation import AdaptationSettings
from sb3_refine.testing import EvaluatorContract
from sb3_refine.testing.evaluators import population_of, small_task

ray = pytest.importorskip("ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")

pytestmark = pytest.mark.slow

SEEDS = [list(range(1, 5))] * 5


@pytest.fixture(scope="module")
def cluster():
    """Three nodes with one processor each, and this process as the driver."""
    made = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(2):
        made.add_node(num_cpus=1)
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


class TestRayEvaluator(EvaluatorContract):
    evaluator = RayEvaluator

    @pytest.fixture(autouse=True)
    def connected(self, cluster):
        pass


class Slow(gym.Wrapper):
    """Takes 5 ms a step, and writes down who runs it."""

    def __init__(self, env, folder):
        super().__init__(env)
        self.folder = folder

    def reset(self, **kwargs):
        (self.folder / str(os.getpid())).touch()
        return self.env.reset(**kwargs)

    def step(self, action):
        time.sleep(0.005)
        return self.env.step(action)


def make_slow(folder):
    return Slow(gym.make("Pendulum-v1", max_episode_steps=50), folder)


@pytest.fixture
def slow_task(tmp_path):
    """Episodes of a quarter of a second."""
    return RolloutTask(EnvRecipe(None, make=partial(make_slow, tmp_path)), small_task().policy)


@pytest.fixture
def expected(slow_task):
    with SerialEvaluator(slow_task) as serial:
        episodes = serial.evaluate(population_of(slow_task), SEEDS)
    for path in slow_task.recipe.make.args[0].iterdir():
        path.unlink()
    return episodes


def later(seconds, action):
    timer = threading.Timer(seconds, action)
    timer.start()
    return timer


def test_a_killed_worker_is_replaced_with_the_same_result(cluster, slow_task, expected, caplog):
    folder = slow_task.recipe.make.args[0]
    with RayEvaluator(slow_task, 2) as evaluator:
        later(0.8, lambda: os.kill(int(next(folder.iterdir()).name), signal.SIGKILL))
        assert evaluator.evaluate(population_of(slow_task), SEEDS) == expected
        assert "replaced, and the episode run again" in caplog.text
        while len(list(folder.iterdir())) < 3:  # the new worker takes seconds to start
            evaluator.evaluate(population_of(slow_task), [[1], [], [], [], []])
    assert len(list(folder.iterdir())) == 3


def test_nodes_may_leave_and_join_in_the_middle_of_a_run(cluster, slow_task, expected, caplog):
    extra = cluster.add_node(num_cpus=2)
    with RayEvaluator(slow_task) as evaluator:
        while evaluator.n_workers < 5:  # Ray needs a moment to count the new node
            evaluator.evaluate(population_of(slow_task), [[1], [], [], [], []])
        leaving = later(0.7, partial(cluster.remove_node, extra))
        assert evaluator.evaluate(population_of(slow_task), SEEDS) == expected
        leaving.join()
        while evaluator.n_workers > 3:
            evaluator.evaluate(population_of(slow_task), [[1], [], [], [], []])
        joined = cluster.add_node(num_cpus=3)
        try:
            while evaluator.n_workers < 6:
                assert evaluator.evaluate(population_of(slow_task), SEEDS) == expected
        finally:
            cluster.remove_node(joined)
    assert "a worker died" in caplog.text


def test_an_episode_that_hangs_is_run_again_and_then_given_up(cluster, slow_task, caplog):
    with (
        RayEvaluator(slow_task, 1, episode_timeout=0.1) as evaluator,
        pytest.raises(EpisodeError, match=r"seed 1 of candidate 0.* its worker hung .* 3 times"),
    ):
        evaluator.evaluate(population_of(slow_task), SEEDS)
    assert caplog.text.count("replaced, and the episode run again") == 2


class TellsThreads(gym.Wrapper):
    def step(self, action):
        observation, _, *rest = self.env.step(action)
        return observation, float(torch.get_num_threads()), *rest


def make_tells_threads():
    return TellsThreads(gym.make("Pendulum-v1", max_episode_steps=1))


def test_a_cluster_without_a_free_processor_is_an_error(cluster, monkeypatch):
    with RayEvaluator(small_task(), 3) as occupying:
        while len(occupying._workers) < 3:
            occupying.evaluate(population_of(small_task()), SEEDS)
        monkeypatch.setattr(ray_cluster, "_SECONDS_TO_START", 3.0)
        with (
            pytest.raises(RefineError, match="no node of the Ray cluster had a free processor within 3 seconds"),
            RayEvaluator(small_task(), 1),
        ):
            pass


def test_a_worker_uses_one_thread(cluster):
    task = RolloutTask(EnvRecipe(None, make=make_tells_threads), small_task().policy)
    with RayEvaluator(task, 1) as evaluator:
        ((episode,), *_) = evaluator.evaluate(population_of(task), [[1], [], [], [], []])
    assert episode.episode_return == 1


def test_a_worker_occupies_its_processor_while_it_runs(cluster):
    with RayEvaluator(small_task(), 3) as evaluator:
        evaluator.evaluate(population_of(small_task()), [[1]] * 5)
        assert ray.available_resources().get("CPU", 0) == 0


def test_a_population_is_put_into_the_object_store_once(cluster, monkeypatch):
    puts, put = [], ray.put
    monkeypatch.setattr(ray, "put", lambda value: puts.append(len(value)) or put(value))
    with RayEvaluator(small_task(), 3) as evaluator:
        assert len(puts) == 1  # the task
        for n_updates in range(1, 4):
            evaluator.evaluate(population_of(small_task()), SEEDS)
            assert len(puts) == 1 + n_updates


def test_tasks_and_adaptations_have_the_bits_of_this_process(cluster, made_agents):
    tasks = {"env_kwargs": {"g": {"uniform": [5.0, 15.0]}}}
    found = []
    for backend in ("serial", "ray"):
        agent = load_agent("td3", "Pendulum-v1", made_agents, tasks=tasks)
        adaptation = AdaptationSettings(adapt_episodes=2, adapt_steps=3, batch_size=16)
        options = {"adaptation": adaptation, "n_draws": 3, "tasks_per_update": 1, "n_eval_episodes": 4}
        refiner = MetaRefiner(agent, backend=backend, **options).learn(1)
        found.append((refiner.search.optimizer.theta, refiner.result.baseline.returns))
    np.testing.assert_array_equal(found[1][0], found[0][0])
    np.testing.assert_array_equal(found[1][1], found[0][1])


def test_several_episodes_a_call_give_the_same_result(cluster, slow_task, expected):
    with RayEvaluator(slow_task, 2, episodes_per_call=3) as evaluator:
        assert evaluator.evaluate(population_of(slow_task), SEEDS) == expected


LACKS_THE_PACKAGE = """
import sys

class Lacks:
    def find_spec(self, name, path=None, target=None):
        if name == "sb3_refine":
            raise ModuleNotFoundError("No module named 'sb3_refine'", name=name)

sys.meta_path.insert(0, Lacks())
"""

LACKS_AN_EXTRA = """
import importlib.metadata

version = importlib.metadata.version

def lacking(name):
    if name == "gymnasium":
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)

importlib.metadata.version = lacking
"""


@pytest.fixture
def odd_node(cluster, tmp_path):
    """Make a node that runs a script at the start of each of its Python processes."""
    nodes = []

    def make(script):
        (tmp_path / "sitecustomize.py").write_text(script)
        nodes.append(cluster.add_node(num_cpus=2, env_vars={"PYTHONPATH": str(tmp_path)}))

    yield make
    for node in nodes:
        cluster.remove_node(node)


def test_a_node_without_the_package_is_named(odd_node, caplog):
    odd_node(LACKS_THE_PACKAGE)
    message = r"a worker died \(node \d+\.\d+\.\d+\.\d+: .*No module named 'sb3_refine'\) while it started, 3 times"
    with pytest.raises(EpisodeError, match=message), RayEvaluator(small_task()) as evaluator:
        while True:
            evaluator.evaluate(population_of(small_task()), SEEDS)
    assert caplog.text.count("another is started") >= 2


def test_a_node_without_an_extra_is_named(odd_node):
    odd_node(LACKS_AN_EXTRA)
    message = r"node \d+\.\d+\.\d+\.\d+ of the cluster has no gymnasium, here it is"
    with pytest.raises(RefineError, match=message), RayEvaluator(small_task()) as evaluator:
        while True:
            evaluator.evaluate(population_of(small_task()), SEEDS)


def test_a_node_with_another_version_is_named(cluster, monkeypatch):
    versions = ray_cluster._versions()
    monkeypatch.setattr(ray_cluster, "_versions", lambda: {**versions, "gymnasium": "0.1", "panda-gym": "9.0"})
    with (
        pytest.raises(RefineError, match=r"node \d+\.\d+\.\d+\.\d+ of the cluster has .*gymnasium .* instead of 0.1"),
        RayEvaluator(small_task(), 1),
    ):
        pass


def test_another_cluster_than_the_one_of_this_process_is_an_error(cluster):
    with (
        pytest.raises(RefineError, match=r"connected to the Ray cluster .* already, not to 127.0.0.1:1; call"),
        RayEvaluator(small_task(), 1, address="127.0.0.1:1"),
    ):
        pass
    with RayEvaluator(small_task(), 1, address=cluster.address) as evaluator:
        assert evaluator.evaluate(population_of(small_task()), [[1]] * 5)


def free_processors_within(seconds, n):
    """The number of free processors, once it is n or the time is up."""
    deadline = time.time() + seconds
    while ray.available_resources().get("CPU", 0) != n and time.time() < deadline:
        time.sleep(0.2)
    return ray.available_resources().get("CPU", 0)


def make_unmakable():
    raise OSError("no such simulator")


def test_an_error_at_the_start_leaves_nothing(cluster):
    task = RolloutTask(EnvRecipe(None, make=make_unmakable), small_task().policy)
    evaluator = RayEvaluator(task, 2)
    with pytest.raises(RefineError, match="no such simulator"), evaluator:
        evaluator.evaluate(population_of(task), SEEDS)
    assert not evaluator._workers
    assert not evaluator._starting
    assert free_processors_within(60, 3) == 3


def test_an_address_where_no_cluster_is_gives_one_line(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with (
        pytest.raises(RefineError, match=r"no connection to the Ray cluster 127.0.0.1:1: "),
        RayEvaluator(small_task(), 1, address="127.0.0.1:1"),
    ):
        pass


def test_without_ray_the_message_names_the_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(RefineError, match=r"ray is not installed; run: pip install 'sb3-refine\[ray\]'"):
        RayEvaluator(small_task())


def test_a_search_on_a_cluster_finds_what_a_search_in_one_process_finds(cluster, made_agents):
    thetas = []
    for backend in ("serial", "ray", "ray:n_workers=2"):
        agent = load_agent("ppo", "Pendulum-v1", made_agents)
        refiner = Refiner(agent, n_delta=4, n_eval_episodes=4, seed=0, backend=backend).learn(2)
        thetas.append(refiner.search.optimizer.theta)
    assert np.array_equal(thetas[0], thetas[1])
    assert np.array_equal(thetas[0], thetas[2])


@pytest.fixture
def apart(monkeypatch):
    """Processes that do not find the cluster of the other tests. Ray allows short paths only."""
    with tempfile.TemporaryDirectory(prefix="r") as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield


def interrupt_at_the_second_update(local_variables, _):
    if local_variables["search"].n_updates_done == 2:
        raise KeyboardInterrupt
    return True


def test_a_search_resumed_on_another_number_of_nodes_has_the_same_bits(cluster, made_agents, tmp_path):
    def refiner(backend):
        agent = load_agent("ppo", "Pendulum-v1", made_agents)
        return Refiner(agent, n_delta=4, n_eval_episodes=4, seed=0, backend=backend)

    whole = refiner("serial").learn(4)
    with pytest.raises(KeyboardInterrupt):
        refiner("ray").learn(4, interrupt_at_the_second_update, checkpoint_folder=tmp_path, checkpoint_interval=1)
    node = cluster.add_node(num_cpus=2)
    try:
        resumed = refiner("ray").learn(4, checkpoint_folder=tmp_path, resume=True)
    finally:
        cluster.remove_node(node)
    assert np.array_equal(resumed.search.optimizer.theta, whole.search.optimizer.theta)
    assert resumed.result.baseline == whole.result.baseline


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.usefixtures("apart")
def test_ctrl_c_leaves_the_best_so_far_and_no_process(made_agents, tmp_path, number):
    """On a Ray that the command has started. Ctrl-C reaches all processes of the group, SIGTERM usually one."""
    with running_search(made_agents, tmp_path, "--backend", "ray:n_workers=2") as (process, run_folder):
        children = children_of(process.pid)
        assert len(children) > 4
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    resume = f"sb3-refine --resume {run_folder} --backend ray:n_workers=2"
    assert errors.endswith(f"to go on from here: {resume}\nsb3-refine: interrupted\n")
    assert (run_folder / "Pendulum-v1.zip").exists()
    assert not left_after(60, children)


def test_an_interrupted_driver_leaves_no_worker_on_the_cluster(cluster, made_agents, tmp_path):
    backend = f"ray:address={cluster.address}"
    with running_search(made_agents, tmp_path, "--backend", backend) as (process, run_folder):
        assert ray.available_resources().get("CPU", 0) == 0
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=120)
    assert process.returncode == 130
    assert (run_folder / "Pendulum-v1.zip").exists()
    assert free_processors_within(60, 3) == 3


@pytest.mark.usefixtures("apart")
def test_a_ray_that_was_started_here_ends_also_after_an_error():
    code = """
import ray
from sb3_refine.errors import EpisodeError
from sb3_refine.evaluators import RayEvaluator
from sb3_refine.testing.evaluators import population_of, small_task
with RayEvaluator(small_task(), 1, episode_timeout=0.001) as evaluator:
    for timeout in (0.001, 600.0):
        evaluator.episode_timeout = timeout
        try:
            print(len(evaluator.evaluate(population_of(small_task()), [[1]] * 5)))
        except EpisodeError as error:
            print(type(error).__name__, ray.is_initialized())
print(ray.is_initialized())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.split("\n")[:3] == ["EpisodeError True", "5", "False"], done.stderr


def test_a_cluster_with_a_token_is_joined_as_the_documentation_says(tmp_path):
    """From Ray 2.59 on, the token is the default."""
    folder = tempfile.mkdtemp(prefix="ray-")  # short: sockets are in it
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    without = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    token = {**without, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": 64 * "a"}
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--port", str(port)]
    options = ["--num-cpus", "1", "--temp-dir", folder, "--include-dashboard", "false", "--disable-usage-stats"]
    head = subprocess.Popen([*start, *options], env=token, stdout=subprocess.DEVNULL, start_new_session=True)
    run = ["--demo", "-o", tmp_path, "--n-updates", 1, "--n-delta", 1, "--n-eval-episodes", 2, "--no-report"]
    run += ["--backend", f"ray:address=127.0.0.1:{port}"]
    try:
        time.sleep(10)  # until the head is there
        done = run_command(*run, env=token)
        assert done.returncode == 0, done.stderr
        assert "decision: " in done.stdout
        refused = run_command(*run, env=without)
        assert "; if the cluster has a token, set RAY_AUTH_MODE=token" in refused.stderr
        assert refused.returncode == 1
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        head.wait(60)
        shutil.rmtree(folder, ignore_errors=True)
