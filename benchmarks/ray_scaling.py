"""
What a Ray cluster survives, what it costs, and how far it scales.

- faults: a cluster of three nodes on this machine; actors are killed or stopped, and nodes removed and added, at random
  moments. "same" counts results that equal those of one process bit for bit.
- overhead: wall time of an update with 128k parameters on two workers, of processes and of Ray in turn; each episode
  uses the processor for a given time. The overhead of an episode is what its worker spends on anything else.
- scaling: costs of Ray measured with up to 32 actors whose episodes only wait, and a model of the loop that hands out
  episodes, with these costs and a virtual clock, for up to 1,000 workers. The model is compared with the measurement
  where both exist.

python benchmarks/ray_scaling.py --agents FOLDER --json benchmarks/results/ray_scaling.json --figure docs/scaling.png
"""

import heapq
import os
import random
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import ray
from common import parser, show, write
from matplotlib.figure import Figure
from ray.cluster_utils import Cluster
from rich.progress import track
from stable_baselines3 import PPO

from sb3_refine import Refiner, load_agent
from sb3_refine.evaluators import Evaluator, ProcessEvaluator, RayEvaluator, RolloutTask, SerialEvaluator
from sb3_refine.optimizers import ARS, NoisePopulation

EPISODE_TIMEOUT = 10.0
NETWORK = 1.25e9  # bytes a second between nodes: 10 gigabit Ethernet
WORKERS_OF_NODE = 32
Result = dict[str, Any]


@contextmanager
def cluster(n_nodes: int, n_cpus: int) -> Iterator[Cluster]:
    """A cluster on this machine, and this process as its driver."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": n_cpus, "include_dashboard": False})
    for _ in range(n_nodes - 1):
        made.add_node(num_cpus=n_cpus)
    ray.init(address=made.address, log_to_driver=False)
    try:
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def population(theta: np.ndarray, size: int, seed: int = 0) -> NoisePopulation:
    """Antithetic pairs."""
    return NoisePopulation(theta, 0.02, [1000 * (n // 2) for n in range(size)], [1.0, -1.0] * (size // 2), seed)


# --- faults


def actors() -> list[int]:
    """Process ids of the actors on this machine."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cmdline").read_bytes().startswith(b"ray::RolloutActor"):
                found.append(int(process.name))
        except OSError:  # it has ended
            continue
    return found


class Faults:
    """A search's population on a cluster of three nodes, again and again."""

    def __init__(self, made: Cluster, options: Any):
        refiner = Refiner(load_agent("ddpg", "HopperBulletEnv-v0", options.agents))
        self.cluster, self.theta = made, refiner.parameters.get_theta()
        task = refiner.make_task()
        self.population = population(self.theta, 24)
        self.seeds = [[10 + number // 2] for number in range(24)]
        with SerialEvaluator(task) as serial:
            self.expected = serial.evaluate(self.population, self.seeds)
        self.evaluator = RayEvaluator(task, episode_timeout=EPISODE_TIMEOUT)

    def run(self, disturb: Callable[[], None]) -> bool:
        """:return: whether the results are those of one process, with a fault after some of the episodes"""
        left = iter(range(random.randint(1, 16), -1, -1))
        self.evaluator.on_episode = lambda: disturb() if next(left, -1) == 0 else None
        return self.evaluator.evaluate(self.population, self.seeds) == self.expected

    def settle(self, n_workers: int) -> None:
        """Wait until so many actors run."""
        self.evaluator.on_episode = lambda: None
        while len(self.evaluator._workers) != n_workers:
            self.evaluator.evaluate(self.population, [[1]] * 6 + [[]] * 18)

    def signalled(self, number: int) -> bool:
        self.settle(3)
        return self.run(lambda: os.kill(random.choice(actors()), number))

    def node_removed(self) -> bool:
        node = self.cluster.add_node(num_cpus=1)
        self.settle(4)
        return self.run(lambda: self.cluster.remove_node(node, allow_graceful=False))

    def node_added(self) -> bool:
        self.settle(3)
        added: list[Any] = []
        same = self.run(lambda: added.append(self.cluster.add_node(num_cpus=1)))
        self.settle(4)  # the new node takes part
        self.cluster.remove_node(added[0])
        return same

    def inject(self, n: int) -> list[Result]:
        faults: dict[str, Callable[[], bool]] = {
            "actor killed (SIGKILL)": partial(self.signalled, signal.SIGKILL),
            "actor hangs (SIGSTOP)": partial(self.signalled, signal.SIGSTOP),
            "node removed": self.node_removed,
            "node added": self.node_added,
        }
        with self.evaluator:
            results = [
                {"fault": what, "injections": n, "same": sum(fault() for _ in track(range(n), description=what))}
                for what, fault in faults.items()
            ]
        time.sleep(2)
        return [{**result, "actors_left": len(actors())} for result in results]


# --- overhead and costs


class Takes(gym.Env):
    """One step that uses the processor for some seconds, or that waits."""

    observation_space = gym.spaces.Box(-1, 1, (16,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (4,), np.float32)

    def __init__(self, seconds: float, waits: bool):
        self.seconds, self.own, self.waits = seconds, seconds, waits

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.own = self.seconds if not self.waits or seed is None else durations(self.seconds, 1000)[seed % 1000]
        return np.zeros(16, np.float32), {}

    def step(self, action: Any) -> Any:
        if self.waits:
            time.sleep(self.own)
        else:
            end = time.process_time() + self.own
            while time.process_time() < end:
                pass
        return np.zeros(16, np.float32), 0.0, True, False, {}


def task_of(seconds: float, waits: bool) -> tuple[RolloutTask, np.ndarray]:
    """A task with 128k parameters; and these."""
    make = partial(Takes, seconds, waits)
    model = PPO("MlpPolicy", make(), policy_kwargs={"net_arch": [345, 345]}, device="cpu", n_steps=8, batch_size=8)
    refiner = Refiner(model, make, accelerator=False)
    return refiner.make_task(), refiner.parameters.get_theta()


def seconds_of_update(evaluator: Evaluator, theta: np.ndarray, size: int, update: int) -> float:
    candidates = population(theta, size, update)
    started = time.perf_counter()
    evaluator.evaluate(candidates, [[update]] * size)
    return time.perf_counter() - started


def overhead(seconds: float, size: int, rounds: int) -> Result:
    """Of an episode, on two workers."""
    task, theta = task_of(seconds, waits=False)
    with (
        ProcessEvaluator(task, 2) as process,
        RayEvaluator(task, 2) as one_by_one,
        RayEvaluator(task, 2, episodes_per_call=10) as by_ten,
    ):
        backends = {"process": process, "ray": one_by_one, "ray, 10 a call": by_ten}
        times: dict[str, list[float]] = {name: [] for name in backends}
        for update in range(rounds + 1):
            for name, evaluator in backends.items():
                spent = 2 * seconds_of_update(evaluator, theta, size, update) / size
                times[name] += [spent] if update else []  # the first one starts the workers
    medians = {name: statistics.median(spent) for name, spent in times.items()}
    return {
        "seconds": seconds,
        "episodes": size,
        "rounds": rounds,
        "seconds_per_episode": medians,
        "ray_over_process": statistics.median(r / p for r, p in zip(times["ray"], times["process"], strict=True)),
        "ray_by_ten_over_process": statistics.median(
            r / p for r, p in zip(times["ray, 10 a call"], times["process"], strict=True)
        ),
    }


# --- scaling


@dataclass(frozen=True)
class Costs:
    """
    Measured, in seconds.

    :param put: to put a population into the object store
    :param call: of the driver, to send a call and to receive its answer
    :param turn: of the driver, for each worker in each turn of its loop
    :param latency: between two episodes of a worker whose driver is idle
    :param update: to ask for a population of 40 and to tell its fitness
    :param n_bytes: of a population that is sent to each node
    """

    put: float
    call: float
    turn: float
    latency: float
    update: float
    n_bytes: int


def durations(seconds: float, size: int, seed: int = 0) -> np.ndarray:
    """Of episodes: between half and one and a half times the mean."""
    return seconds * np.random.default_rng(seed).uniform(0.5, 1.5, size)


@dataclass(frozen=True)
class Update:
    """
    An update, measured or in the model.

    :param wall: its seconds
    :param driver: seconds in which the driver was busy
    :param episodes: seconds of all episodes
    """

    wall: float
    driver: float
    episodes: float

    def efficiency(self, n_workers: int) -> float:
        return self.episodes / (n_workers * self.wall)


def measured(n_workers: int, seconds: float, size: int, rounds: int) -> tuple[Update, float, int]:
    """An update with actors whose episodes only wait; seconds to put its population, and its bytes."""
    task, theta = task_of(seconds, waits=True)
    updates, puts = [], []
    with RayEvaluator(task, n_workers) as evaluator:
        while len(evaluator._workers) < n_workers:
            seconds_of_update(evaluator, theta, n_workers, 0)
        for update in range(1, rounds + 1):
            candidates, busy, started = population(theta, size, update), time.thread_time(), time.perf_counter()
            evaluator.evaluate(candidates, [[n] for n in range(size)])
            wall, busy = time.perf_counter() - started, time.thread_time() - busy
            updates.append(Update(wall, busy, float(durations(seconds, size).sum())))
            started, content = time.perf_counter(), cloudpickle.dumps(candidates)
            ray.put(content)
            puts.append(time.perf_counter() - started)
    return sorted(updates, key=lambda one: one.wall)[rounds // 2], statistics.median(puts), len(content)


def measure(worker_counts: Sequence[int], seconds: float, rounds: int) -> tuple[Costs, list[Result]]:
    found, rows = [], []
    for n_workers in worker_counts:
        size = max(40, 4 * n_workers)
        update, put, n_bytes = measured(n_workers, seconds, size, rounds)
        found.append((n_workers, size, update))
        rows.append({"workers": n_workers, "episodes": size, "seconds": seconds, "measured_s": update.wall})
    turn, call = np.polyfit([n for n, _, _ in found], [update.driver / size for _, size, update in found], 1)
    n_workers, size, update = found[0]
    latency = update.wall * n_workers / size - update.episodes / size - update.driver / size
    costs = Costs(put, max(0.0, call), max(0.0, turn), max(0.0, latency), seconds_of_optimizer(n_bytes // 4), n_bytes)
    for row, (n_workers, size, update) in zip(rows, found, strict=True):
        row["model_s"] = model(costs, durations(seconds, size), n_workers, n_nodes=1).wall - costs.update
        row["efficiency"] = update.efficiency(n_workers)
        row["driver_s_per_episode"] = update.driver / size
    return costs, rows


def seconds_of_optimizer(n_parameters: int) -> float:
    optimizer = ARS(np.zeros(n_parameters, dtype=np.float32), seed=0, n_updates=100, n_delta=20)
    spent = []
    for _ in range(5):
        started = time.perf_counter()
        optimizer.tell(np.arange(len(optimizer.ask()), dtype=np.float64))
        spent.append(time.perf_counter() - started)
    return statistics.median(spent)


def model(costs: Costs, seconds: np.ndarray, n_workers: int, per_call: int = 1, n_nodes: int | None = None) -> Update:
    """The loop of a pool, in virtual time: the driver does one thing at a time, workers run side by side."""
    n_nodes = n_nodes or -(-n_workers // WORKERS_OF_NODE)
    fetch = 0.0 if n_nodes == 1 else n_nodes * costs.n_bytes / NETWORK
    calls = [float(seconds[start : start + per_call].sum()) for start in range(0, len(seconds), per_call)][::-1]
    now, idle, n_sent = costs.put, n_workers, 0
    driver, running = now, list[float]()
    while calls or running:
        busy = costs.turn * n_workers
        while calls and idle:
            busy += costs.call / 2
            n_sent, idle = n_sent + 1, idle - 1
            first = fetch if n_sent <= n_workers else 0.0
            heapq.heappush(running, now + busy + costs.latency + first + calls.pop())
        now = max(now + busy, running[0])
        n_answers = 0
        while running and running[0] <= now:
            heapq.heappop(running)
            n_answers += 1
        idle += n_answers
        now += n_answers * costs.call / 2
        driver += busy + n_answers * costs.call / 2
    update = costs.update * len(seconds) / 40
    return Update(now + update, driver + update, float(seconds.sum()))


def scaling(costs: Costs) -> list[Result]:
    rows = []
    for seconds in (0.02, 0.3, 2.0):
        for n_workers in (10, 100, 1000):
            for size in sorted({40, 4 * n_workers}):
                for per_call in (1, 10) if size > 10 * n_workers or seconds < 0.1 else (1,):
                    update = model(costs, durations(seconds, size), n_workers, per_call)
                    rows.append(
                        {
                            "seconds": seconds,
                            "workers": n_workers,
                            "population": size,
                            "episodes_per_call": per_call,
                            "updates_per_minute": 60 / update.wall,
                            "episodes_per_minute": 60 * size / update.wall,
                            "efficiency": update.efficiency(n_workers),
                            "driver_busy": update.driver / update.wall,
                        }
                    )
    return rows


def draw(path: Path, costs: Costs) -> None:
    """Episodes a minute by the number of workers, with populations of four times as many."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    counts = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
    for seconds, colour in ((0.02, "tab:red"), (0.3, "tab:blue"), (2.0, "tab:green")):
        for per_call, style in ((1, "-"), (10, "--")):
            rates = []
            for n_workers in counts:
                size = 4 * n_workers * per_call
                rates.append(60 * size / model(costs, durations(seconds, size), n_workers, per_call).wall)
            axes.plot(counts, rates, style, color=colour, label=f"{seconds} s, {per_call} a call")
        axes.plot(counts, [60 * n / seconds for n in counts], ":", color=colour, linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="workers", ylabel="episodes a minute")
    axes.set_title("Model of a search on Ray: mean duration of an episode; dotted: without any cost", fontsize=10)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> None:
    options = parser(__doc__.splitlines()[1])
    options.add_argument("-n", type=int, default=20, help="injections of each fault")
    options.add_argument("--rounds", type=int, default=5, help="updates of each measurement")
    options.add_argument("--only", nargs="*", default=["faults", "overhead", "scaling"], help="parts to run")
    options.add_argument("--max-workers", type=int, default=32, help="actors of the largest measurement")
    options.add_argument("--figure", type=Path, help="draw the model here")
    options = options.parse_args()
    random.seed(0)
    results: list[Result] = []
    if "faults" in options.only:
        with cluster(3, 1) as made:
            faults = Faults(made, options).inject(options.n)
        show("faults", list(faults[0]), [list(each.values()) for each in faults])
        results.append({"part": "faults", "rows": faults})
    if "overhead" in options.only:
        with cluster(3, 2):
            rows = [overhead(seconds, 40 if seconds < 1 else 16, options.rounds) for seconds in (0.02, 0.1, 0.3, 1, 2)]
        show(
            "Ray over processes, wall time on two workers",
            ["seconds of an episode", "one a call", "ten a call"],
            [[row["seconds"], row["ray_over_process"], row["ray_by_ten_over_process"]] for row in rows],
        )
        results.append({"part": "overhead", "rows": rows})
    if "scaling" in options.only:
        with cluster(1, options.max_workers):
            costs, measurements = measure([2, 8, options.max_workers], 0.3, options.rounds)
        rows = scaling(costs)
        show("the model and what was measured", list(measurements[0]), [list(each.values()) for each in measurements])
        show(f"model: {costs}", list(rows[0]), [list(each.values()) for each in rows])
        results.append({"part": "scaling", "costs": asdict(costs), "measurements": measurements, "rows": rows})
        if options.figure is not None:
            draw(options.figure, costs)
    write(options.json, results)


if __name__ == "__main__":
    main()
