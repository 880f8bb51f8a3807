"""
What goes wrong, injected again and again into real rollouts: are the results those of a run without faults, and is
nothing left behind?

Faults of a worker strike the pool that rolls out perturbed policies of an agent; faults of the run strike the command
line on the demo agent, at a random moment of its search. "same" counts results that equal those without faults bit for
bit (for NaN: in all other episodes; for an exception: that it arrives with traceback, seed and candidate; for Ctrl-C
and SIGTERM: exit status 130 and a saved agent). "left" counts processes and shared memory found afterwards.

python benchmarks/faults.py --agents FOLDER --json benchmarks/results/faults.json
"""

import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from common import parser, show, write
from rich.progress import track

from sb3_refine import Refiner, load_agent
from sb3_refine.envs.spec import EnvRecipe
from sb3_refine.errors import EpisodeError
from sb3_refine.evaluators import ProcessEvaluator, RolloutTask
from sb3_refine.optimizers import NoisePopulation
from sb3_refine.rollouts.episode import Episode

KEYS, SIGNS = [1000 * (number // 2) for number in range(12)], [1.0, -1.0] * 6
SEEDS = [10 + number // 2 for number in range(12)]
EPISODE_TIMEOUT = 4.0
TAG = "SB3_REFINE_FAULTS"


class Faulty(gym.Wrapper):
    """Does something nasty in a step of the episode with a certain seed; once, where a marker is to be left."""

    def __init__(self, recipe: EnvRecipe, fault: str, seed: int, at_step: int, marker: Path | None):
        super().__init__(recipe.build())
        self.fault, self.fault_seed, self.at_step, self.marker = fault, seed, at_step, marker
        self.countdown = -1

    def reset(self, *, seed: int | None = None, **kwargs: Any) -> Any:
        self.countdown = self.at_step if seed == self.fault_seed else -1
        return self.env.reset(seed=seed, **kwargs)

    def step(self, action: Any) -> Any:
        observation, reward, *rest = self.env.step(action)
        self.countdown -= 1
        if self.countdown == 0 and not (self.marker and self.marker.exists()):
            if self.marker:
                self.marker.touch()
            if self.fault == "exit":
                os._exit(1)
            if self.fault == "raise":
                raise ValueError("something is wrong in the simulator")
            if self.fault == "NaN reward":
                reward = math.nan
            if self.fault == "infinite observation":
                observation = observation + np.float32(np.inf)
        return observation, reward, *rest


class Pool:
    """The task, and its results without faults."""

    def __init__(self, options: Any):
        refiner = Refiner(load_agent("ddpg", "HopperBulletEnv-v0", options.agents))
        self.task, theta = refiner.make_task(), refiner.parameters.get_theta()
        self.population = NoisePopulation(theta, 0.02, KEYS, SIGNS, seed=0)
        self.expected = self.run(self.task)

    def run(self, task: RolloutTask, disturb: Callable[[ProcessEvaluator], None] | None = None) -> list[Episode]:
        with ProcessEvaluator(task, 2, EPISODE_TIMEOUT) as evaluator:
            if disturb is not None:
                threading.Thread(target=disturb, args=(evaluator,), daemon=True).start()
            start = time.perf_counter()
            episodes = evaluator.evaluate(self.population, [[seed] for seed in SEEDS])
            self.duration = time.perf_counter() - start
            return [episode for (episode,) in episodes]

    def faulty(self, fault: str, marker: Path | None = None) -> RolloutTask:
        i = random.randrange(len(SEEDS))
        at_step = random.randint(1, min(e.length for e, s in zip(self.expected, SEEDS, strict=True) if s == SEEDS[i]))
        self.struck = SEEDS[i]
        make = partial(Faulty, self.task.recipe, fault, SEEDS[i], at_step, marker)
        return replace(self.task, recipe=EnvRecipe(self.task.recipe.env_id, make=make))


def signalled(pool: Pool, number: int) -> bool:
    """A worker gets a signal at a random moment; SIGSTOP makes it hang."""

    struck = []

    def disturb(evaluator: ProcessEvaluator) -> None:
        workers = list(evaluator._workers)
        time.sleep(random.uniform(0, 0.5 * pool.duration))
        process = random.choice(workers).process
        if process.is_alive():
            os.kill(process.pid, number)
            struck.append(process.pid)

    while not struck:  # it may have been too late
        same = pool.run(pool.task, disturb) == pool.expected
    return same


def exits(pool: Pool, folder: Path) -> bool:
    return pool.run(pool.faulty("exit", folder / "marker")) == pool.expected


def raises(pool: Pool, folder: Path) -> bool:
    try:
        pool.run(pool.faulty("raise"))
    except EpisodeError as error:
        told = ("something is wrong in the simulator", "Traceback", f"seed {pool.struck}", "direction", "in step")
        return all(text in str(error) for text in told)
    return False


def invalid(pool: Pool, folder: Path, fault: str) -> bool:
    """The struck pair has NaN as its return; all others are as they were."""
    episodes = pool.run(pool.faulty(fault))
    return all(
        math.isnan(got.episode_return) if seed == pool.struck else got == expected
        for got, expected, seed in zip(episodes, pool.expected, SEEDS, strict=True)
    )


class Runs:
    """The command line on the demo agent."""

    command = (
        *(sys.executable, "-m", "sb3_refine.cli", "--demo", "--n-updates", "60", "--n-delta", "4"),
        *("--n-eval-episodes", "10", "--checkpoint-interval", "2", "--log-interval", "1", "--verbose", "0"),
    )

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([*self.command, "-o", folder], check=True, capture_output=True)
            self.expected = self.outcome(self.run_folder(folder))

    @staticmethod
    def run_folder(folder: Any) -> Path:
        return next(Path(folder).glob("*/*_1"))

    @staticmethod
    def outcome(run_folder: Path) -> Any:
        """All that a run came to, but for times."""
        record = json.loads((run_folder / "refinement.json").read_text())
        names = ("decision", "baseline", "refined", "paired_difference", "rollouts", "env_steps")
        return [record[name] for name in names]

    def interrupted(self, folder: Path, number: int) -> int:
        """Start, wait for a random moment of the search, send the signal; return the exit status."""
        process = subprocess.Popen(
            [*self.command, "-o", str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while not any(folder.glob("*/*_1/state/checkpoint.pt")):
            time.sleep(0.01)
        time.sleep(random.uniform(0, 1.0))
        process.send_signal(number)
        return process.wait()

    def killed_and_resumed(self, folder: Path) -> bool:
        if self.interrupted(folder, signal.SIGKILL) == 0:
            raise RuntimeError("the run ended before it was killed: make it longer")
        resume = [*self.command[:3], "--resume", str(self.run_folder(folder)), "--verbose", "0"]
        resumed = subprocess.run(resume, check=False, capture_output=True, text=True)
        if resumed.returncode != 0:
            print(resumed.stderr, file=sys.stderr)
            return False
        return self.outcome(self.run_folder(folder)) == self.expected

    def stopped(self, folder: Path, number: int) -> bool:
        status = self.interrupted(folder, number)
        return status == 130 and any(folder.glob("*/*_1/*.zip"))


def left_behind() -> list[str]:
    """Processes that carry our tag, ourselves excepted, and names of shared memory."""
    tag, found = f"{TAG}={os.getpid()}".encode(), []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if tag in (process / "environ").read_bytes() and process.name != str(os.getpid()):
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:  # it has ended, or is not ours
            continue
    own = ("forkserver", "resource_tracker")  # of this benchmark, for as long as it runs
    return [what for what in found if not any(name in what for name in own)] + os.listdir("/dev/shm")


def inject(what: str, fault: Callable[[Path], bool], n: int) -> dict[str, Any]:
    same, left = 0, 0
    before = len(left_behind())
    for _ in track(range(n), description=what):
        with tempfile.TemporaryDirectory() as folder:
            same += fault(Path(folder))
        time.sleep(0.1)
        left += len(left_behind()) - before
    return {"fault": what, "injections": n, "same": same, "left": left}


def main() -> None:
    options = parser(__doc__.splitlines()[1])
    options.add_argument("-n", type=int, default=20, help="injections of each fault")
    options.add_argument("--only", nargs="*", help="faults whose name contains one of these")
    options = options.parse_args()
    random.seed(0)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # runs in the background inherit that it is ignored
    os.environ[TAG] = str(os.getpid())  # which every process that is started from here on carries
    pool, runs = Pool(options), Runs()
    faults: dict[str, Callable[[Path], bool]] = {
        "worker killed (SIGKILL)": lambda folder: signalled(pool, signal.SIGKILL),
        "worker exits in a step": partial(exits, pool),
        "worker hangs (SIGSTOP)": lambda folder: signalled(pool, signal.SIGSTOP),
        "environment raises": partial(raises, pool),
        "NaN reward": partial(invalid, pool, fault="NaN reward"),
        "infinite observation": partial(invalid, pool, fault="infinite observation"),
        "run killed (SIGKILL), resumed": runs.killed_and_resumed,
        "run stopped by SIGTERM": partial(runs.stopped, number=signal.SIGTERM),
        "run stopped by Ctrl-C": partial(runs.stopped, number=signal.SIGINT),
    }
    chosen = {k: v for k, v in faults.items() if not options.only or any(part in k for part in options.only)}
    results = [inject(what, fault, options.n) for what, fault in chosen.items()]
    show("faults", ["fault", "injections", "same", "left"], [list(result.values()) for result in results])
    write(options.json, results)


if __name__ == "__main__":
    main()
