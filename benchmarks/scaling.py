"""
What more workers bring, what coordinating them costs, and how much memory it takes.

- two workers: wall time of the same episodes on one worker and on two, in turn; median ratio
- what the machine allows: the same episodes on one worker, and on each of two that know nothing of each other at the
  same time, twice the first time over the second; two workers that share out episodes cannot do better
- overhead: wall time of an update (ask, evaluate, tell) on an environment whose episodes end at once, which leaves
  broadcast, scheduling, writing the parameters, and the update; relative to that of the real update; and the same with
  the directions that workers draw
- memory: peak of the caller and of a worker (resident, and what is its alone), by numbers of parameters and directions

python benchmarks/scaling.py --agents FOLDER --json benchmarks/results/scaling.json
"""

import multiprocessing as mp
import re
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from common import EndsAtOnce, parser, show, write
from stable_baselines3 import PPO

from sb3_refine import Refiner, load_agent
from sb3_refine.envs.spec import EnvRecipe
from sb3_refine.evaluators import ProcessEvaluator, RolloutTask
from sb3_refine.optimizers import ARS, ExplicitPopulation


def without_episodes(task: RolloutTask) -> RolloutTask:
    env = task.recipe.build()
    make = partial(EndsAtOnce, env.observation_space, env.action_space)
    return replace(task, recipe=EnvRecipe(None, make=make))


class Updates:
    """Updates of a search on a pool of workers."""

    def __init__(self, task: RolloutTask, theta: np.ndarray, n_workers: int, n_delta: int):
        start = time.perf_counter()
        self.evaluator = ProcessEvaluator(task, n_workers).__enter__()
        self.start_s = time.perf_counter() - start
        self.optimizer = ARS(theta, seed=0, n_updates=1_000_000, n_delta=n_delta)  # the schedules stand still
        self.theta = theta

    def time(self, update: int, perturbed: bool = True) -> float:
        """Wall time of one update, always around the original parameters; the same update is the same work."""
        self.optimizer.load_state_dict({"theta": self.theta, "n_updates_done": update})
        start = time.perf_counter()
        population = self.optimizer.ask()
        seeds = [[update * 1000 + group] for group in population.groups]
        if not perturbed:
            population = ExplicitPopulation(self.theta[None].repeat(len(population), axis=0))
        episodes = self.evaluator.evaluate(population, seeds)
        returns = np.array([episode.episode_return for (episode,) in episodes])
        self.optimizer.tell(returns if perturbed else np.arange(returns.size))
        return time.perf_counter() - start


def workers_and_overhead(refiner: Refiner, n_delta: int, rounds: int) -> list[dict[str, Any]]:
    task, theta = refiner.make_task(), refiner.parameters.get_theta()
    one, two, other = (Updates(task, theta, n, n_delta) for n in (1, 2, 1))
    empty = Updates(without_episodes(task), theta, 2, n_delta)
    work: dict[str, Callable[[int], float]] = {
        "one": one.time,
        "two": two.time,
        "apart": partial(apart, one, other),
        "empty": partial(empty.time, perturbed=False),
        "drawn": empty.time,
    }
    times: dict[str, list[float]] = {name: [] for name in work}
    for update in range(rounds + 1):
        for name, timed in work.items():
            seconds = timed(update)
            if update > 0:  # the first warms up
                times[name].append(seconds)
    for updates in (one, two, other, empty):
        updates.evaluator.close()
    common = {"env": refiner.agent.env_name, "parameters": theta.size, "episodes": 2 * n_delta}
    ratio = statistics.median(a / b for a, b in zip(times["one"], times["two"], strict=True))
    twice = [2 * seconds for seconds in times["one"]]
    allowed = statistics.median(a / b for a, b in zip(twice, times["apart"], strict=True))
    overhead, drawn = (
        statistics.median(a / b for a, b in zip(times[name], times["two"], strict=True)) for name in ("empty", "drawn")
    )
    return [
        {"what": "two workers relative to one", **common, "value": ratio, "spread": spread(times["one"], times["two"])},
        {"what": "what the machine allows", **common, "value": allowed, "spread": spread(twice, times["apart"])},
        {"what": "overhead of an update", **common, "value": overhead, "spread": spread(times["empty"], times["two"])},
        {"what": "... with drawing", **common, "value": drawn, "spread": spread(times["drawn"], times["two"])},
        {"what": "start of the first worker, s", **common, "value": one.start_s},
        {"what": "start of two more, s", **common, "value": two.start_s},
    ]


def apart(one: Updates, other: Updates, update: int) -> float:
    """Wall time of the same update on each of two pools at the same time."""
    with ThreadPoolExecutor(2) as both:
        return max(both.map(lambda updates: updates.time(update), (one, other)))


def spread(a: list[float], b: list[float]) -> list[float]:
    ratios = [x / y for x, y in zip(a, b, strict=True)]
    return [min(ratios), max(ratios)]


def peak_memory(n_hidden: int, n_delta: int) -> dict[str, Any]:
    """In a process of its own: one update of an agent of that size; memory in MB."""
    th.set_num_threads(1)
    model = PPO("MlpPolicy", "Pendulum-v1", n_steps=64, policy_kwargs={"net_arch": [n_hidden, n_hidden]}, device="cpu")
    refiner = Refiner(model, "Pendulum-v1")
    task, theta = without_episodes(refiner.make_task()), refiner.parameters.get_theta()
    before = status("self", "VmHWM")
    updates = Updates(task, theta, 1, n_delta)
    updates.time(0)
    worker = updates.evaluator._workers[0].process.pid
    result = {
        "what": "memory",
        "parameters": theta.size,
        "directions": n_delta,
        "caller_before_mb": before,
        "caller_peak_mb": status("self", "VmHWM"),
        "worker_peak_mb": status(worker, "VmHWM"),
        "worker_private_mb": private(worker),
    }
    updates.evaluator.close()
    return result


def status(pid: Any, field: str) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+)", text)[1]) / 1024  # type: ignore[index]


def private(pid: int) -> float:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(map(int, re.findall(r"Private_\w+:\s+(\d+)", text))) / 1024


def memory() -> list[dict[str, Any]]:
    results = []
    for n_hidden in (64, 356, 1000):  # 4k, 128k and 1M parameters
        for n_delta in (16, 64, 256):
            with ProcessPoolExecutor(1, mp.get_context("spawn")) as alone:
                results.append(alone.submit(peak_memory, n_hidden, n_delta).result())
    return results


def main() -> None:
    options = parser(__doc__.splitlines()[1])
    options.add_argument("--rounds", type=int, default=10, help="counted rounds")
    options.add_argument("--no-memory", action="store_true", help="leave the memory out")
    options.add_argument(
        "--n-delta", type=int, nargs="+", default=[16, 64], help="directions of an update, each in turn"
    )
    options = options.parse_args()
    refiner = Refiner(load_agent("ddpg", "HopperBulletEnv-v0", options.agents))
    timed = [row for n_delta in options.n_delta for row in workers_and_overhead(refiner, n_delta, options.rounds)]
    columns = ["", "parameters", "episodes", "median", "range"]
    rows = [[r["what"], r["parameters"], r["episodes"], r["value"], pair(r.get("spread"))] for r in timed]
    show(f"workers, {refiner.agent.algo} {refiner.agent.env_name}", columns, rows)
    measured = [] if options.no_memory else memory()
    names = ["parameters", "directions", "caller_before_mb", "caller_peak_mb", "worker_peak_mb", "worker_private_mb"]
    show("peak memory of one update", names, [[r[name] for name in names] for r in measured])
    write(options.json, timed + measured)


def pair(spread: list[float] | None) -> str:
    return "" if spread is None else f"{spread[0]:.3g} to {spread[1]:.3g}"


if __name__ == "__main__":
    main()
