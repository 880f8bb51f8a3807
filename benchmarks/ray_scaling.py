"""
What a Ray cluster survives, what it costs, and how far it scales.

- faults: a cluster of three nodes on this machine; actors are killed or stopped, and nodes removed and added, at random
  moments. "same" counts results that equal those of one process bit for bit.
- overhead: wall time of an update with 128k parameters on two workers, of processes and of Ray in turn, while Ray's
  own processes run; each episode uses the processor for a given time. The overhead of an episode is what its worker
  spends on anything else.
- scaling: costs of Ray measured with up to 32 actors whose episodes only wait, and a model of the loop that hands out
  episodes, with these costs and a virtual clock, for up to 1,000 workers. The costs come from two measurements; two
  others, which the model does not know, are compared with the model. The model's workers have a processor each; those
  of the measurements share the processors of this machine, and "processors busy" shows by how much.

python benchmarks/ray_scaling.py --agents FOLDER --json benchmarks/results/ray_scaling.json --figure docs/scaling.png
"""

import heapq
import logging
import math
import os
import random
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
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


class Lost(logging.Handler):
    """Counts the warnings about workers that were lost."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.n += "replaced" in record.getMessage()


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
        results = []
        with self.evaluator:
            for what, fault in faults.items():
                logging.getLogger("sb3_refine").addHandler(lost := Lost())
                same = sum(fault() for _ in track(range(n), description=what))
                results.append({"fault": what, "injections": n, "calls lost": lost.n, "same": same})
        time.sleep(2)
        return [{**result, "actors left": len(actors())} for result in results]


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
    """What an episode costs beside its own time, on two workers; with ten episodes a call where they are short."""
    task, theta = task_of(seconds, waits=False)
    with ProcessEvaluator(task, 2) as process, RayEvaluator(task, 2) as one, RayEvaluator(task, 2) as ten:
        ten.episodes_per_call = 10
        backends = {"process": process, "ray": one} | ({"ray, ten a call": ten} if seconds < 1 else {})
        for evaluator in backends.values():
            while len(evaluator._workers) < 2:
                seconds_of_update(evaluator, theta, 20, 0)
        times: dict[str, list[float]] = {name: [] for name in backends}
        for update in range(1, rounds + 1):
            for name, evaluator in backends.items():
                times[name].append(2 * seconds_of_update(evaluator, theta, size, update) / size - seconds)
    return {
        "seconds": seconds,
        "episodes": size,
        "rounds": rounds,
        "overhead_ms": {name: 1000 * statistics.median(spent) for name, spent in times.items()},
        "over_process": {
            name: statistics.median((seconds + x) / (seconds + p) for x, p in zip(spent, times["process"], strict=True))
            for name, spent in times.items()
            if name != "process"
        },
    }


# --- scaling


@dataclass(frozen=True)
class Costs:
    """
    Measured, in seconds.

    :param put: to put a population into the object store
    :param call: of the driver's own thread, to send a call and to receive its answer
    :param turn: of the driver, for each worker in each turn of its loop
    :param latency: between two episodes of a worker whose driver is idle; on one machine, so without a network
    :param update: to ask for a population and to tell its fitness, for each candidate of a large population
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
    :param processors_busy: share of the time of all processors of this machine that was used; where measured
    """

    wall: float
    driver: float
    episodes: float
    processors_busy: float = math.nan

    def efficiency(self, n_workers: int) -> float:
        return self.episodes / (n_workers * self.wall)


def measured(n_workers: int, seconds: float, size: int, rounds: int) -> tuple[Update, float, int]:
    """The loop of an update, with actors whose episodes only wait; seconds to put a population, and its bytes."""
    task, theta = task_of(seconds, waits=True)
    updates, puts = [], []
    with RayEvaluator(task, n_workers) as evaluator:
        while len(evaluator._workers) < n_workers:
            seconds_of_update(evaluator, theta, n_workers, 0)
        for update in range(1, rounds + 1):
            candidates = population(theta, size, update)
            started, content = time.perf_counter(), cloudpickle.dumps(candidates)
            ray.put(content)
            puts.append(time.perf_counter() - started)
            used, busy, started = processor_seconds(), time.thread_time(), time.perf_counter()
            evaluator.evaluate(candidates, [[n] for n in range(size)])
            wall, busy = time.perf_counter() - started, time.thread_time() - busy
            share = (processor_seconds() - used) / (wall * (os.cpu_count() or 1))
            updates.append(Update(wall - puts[-1], busy - puts[-1], float(durations(seconds, size).sum()), share))
    return sorted(updates, key=lambda one: one.wall)[rounds // 2], statistics.median(puts), len(content)


def processor_seconds() -> float:
    """:return: of all processors and all processes of this machine, since it started"""
    user, nice, system = Path("/proc/stat").read_text().split()[1:4]
    return (int(user) + int(nice) + int(system)) / os.sysconf("SC_CLK_TCK")


def measure(max_workers: int, rounds: int) -> tuple[Costs, list[Result]]:
    """Fit the costs to the fewest and the most workers; the other measurements tell whether the model holds."""
    few, most = (2, 0.3, 40), (max_workers, 0.3, 4 * max_workers)
    found = {
        case: measured(*case, rounds)
        for case in (few, most, (max_workers // 4, 0.3, max_workers), (max_workers // 2, 1.0, 2 * max_workers))
    }
    (first, put, n_bytes), (last, _, _) = found[few], found[most]
    turn = max(0.0, (last.driver / most[2] - first.driver / few[2]) / (most[0] - few[0]))
    call = max(0.0, first.driver / few[2] - turn * few[0])
    costs = Costs(put, call, turn, 0.0, seconds_of_optimizer(n_bytes // 4), n_bytes)
    latencies = np.linspace(0, 0.1, 1001)
    walls = [loop(replace(costs, latency=each), durations(few[1], few[2]), few[0], 1, 1).wall for each in latencies]
    costs = replace(costs, latency=float(latencies[np.argmin(np.abs(np.array(walls) - first.wall))]))
    rows = [
        {
            "workers": n_workers,
            "mean seconds": seconds,
            "episodes": size,
            "measured_s": update.wall,
            "model_s": loop(costs, durations(seconds, size), n_workers, 1, 1).wall,
            "used for the fit": (n_workers, seconds, size) in (few, most),
            "driver_ms_per_episode": 1000 * update.driver / size,
            "processors busy": update.processors_busy,
        }
        for (n_workers, seconds, size), (update, _, _) in found.items()
    ]
    return costs, rows


def seconds_of_optimizer(n_parameters: int, n_delta: int = 1000) -> float:
    """For each candidate."""
    optimizer = ARS(np.zeros(n_parameters, dtype=np.float32), seed=0, n_updates=100, n_delta=n_delta)
    spent = []
    for _ in range(5):
        started = time.perf_counter()
        optimizer.tell(np.arange(len(optimizer.ask()), dtype=np.float64))
        spent.append(time.perf_counter() - started)
    return statistics.median(spent) / (2 * n_delta)


def loop(costs: Costs, seconds: np.ndarray, n_workers: int, per_call: int, n_nodes: int) -> Update:
    """The loop of a pool, in virtual time: the driver does one thing at a time, workers run side by side."""
    fetch = 0.0 if n_nodes == 1 else n_nodes * costs.n_bytes / NETWORK
    calls = [float(seconds[start : start + per_call].sum()) for start in range(0, len(seconds), per_call)][::-1]
    now, driver, idle, n_sent = 0.0, 0.0, n_workers, 0
    running = list[float]()
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
    return Update(now, driver, float(seconds.sum()))


def update_of(costs: Costs, seconds: np.ndarray, n_workers: int, per_call: int) -> Update:
    """A whole update in the model: the optimizer, the population put into the object store, and the loop."""
    inner = loop(costs, seconds, n_workers, per_call, -(-n_workers // WORKERS_OF_NODE))
    alone = costs.put + costs.update * len(seconds)
    return Update(inner.wall + alone, inner.driver + alone, inner.episodes)


def scaling(costs: Costs) -> list[Result]:
    rows = []
    for seconds in (0.02, 0.3, 2.0):
        for n_workers in (10, 100, 1000):
            cases = ((40, 1), (4 * n_workers, 1), (40 * n_workers, 1), (40 * n_workers, 10))
            for size, per_call in dict.fromkeys(cases):
                update = update_of(costs, durations(seconds, size), n_workers, per_call)
                rows.append(
                    {
                        "mean seconds": seconds,
                        "workers": n_workers,
                        "population": size,
                        "episodes a call": per_call,
                        "updates a minute": 60 / update.wall,
                        "episodes a minute": 60 * size / update.wall,
                        "efficiency": update.efficiency(n_workers),
                        "driver busy": update.driver / update.wall,
                    }
                )
    return rows


def draw(path: Path, costs: Costs) -> None:
    """Episodes a minute by the number of workers, with forty episodes a worker."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    counts = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
    for seconds, colour in ((0.02, "tab:red"), (0.3, "tab:blue"), (2.0, "tab:green")):
        for per_call, style in ((1, "-"), (10, "--")):
            rates = [60 * 40 * n / update_of(costs, durations(seconds, 40 * n), n, per_call).wall for n in counts]
            axes.plot(counts, rates, style, color=colour, label=f"{seconds} s, {per_call} a call")
        axes.plot(counts, [60 * n / seconds for n in counts], ":", color=colour, linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="workers", ylabel="episodes a minute")
    axes.set_title("Model of an update on Ray, by the mean duration of an episode; dotted: without costs", fontsize=10)
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
            rows = [overhead(seconds, 40 if seconds < 1 else 20, options.rounds) for seconds in (0.02, 0.1, 0.3, 1, 2)]
        names = ("process", "ray", "ray, ten a call")
        show(
            "overhead of an episode in ms on two workers; and wall time of Ray over that of processes",
            ["seconds of an episode", *names, *(f"{name}, over processes" for name in names[1:])],
            [
                [
                    row["seconds"],
                    *(row["overhead_ms"].get(name, "") for name in names),
                    *(row["over_process"].get(name, "") for name in names[1:]),
                ]
                for row in rows
            ],
        )
        results.append({"part": "overhead", "rows": rows})
    if "scaling" in options.only:
        with cluster(1, options.max_workers):
            costs, measurements = measure(options.max_workers, options.rounds)
        rows = scaling(costs)
        show("the model and what was measured", list(measurements[0]), [list(each.values()) for each in measurements])
        show(f"model: {costs}", list(rows[0]), [list(each.values()) for each in rows])
        results.append({"part": "scaling", "costs": asdict(costs), "measurements": measurements, "rows": rows})
        if options.figure is not None:
            draw(options.figure, costs)
    write(options.json, results)


if __name__ == "__main__":
    main()
