"""An optimizer of explicit vectors, one with a standard deviation for each parameter, a backend and an objective."""

from concurrent.futures import ThreadPoolExecutor, as_completed
from queue import SimpleQueue

import cloudpickle
import numpy as np

from sb3_refine.evaluators import Evaluator, RolloutWorker
from sb3_refine.objectives import Objective
from sb3_refine.optimizers import ExplicitPopulation, NoisePopulation, Optimizer
from sb3_refine.optimizers.noise_table import direction, noise_key


class ToyCEM(Optimizer):
    """Moves to the mean of the best quarter of explicit candidates."""

    presets = {"default": {"n_updates": 2, "n_candidates": 8}, "large": {"n_candidates": 16}}  # noqa: RUF012

    def __init__(self, theta, seed, n_updates, n_candidates=12, std=0.3):
        super().__init__(theta, seed, n_updates)
        self.n_candidates = n_candidates
        self.std = std
        self.best = {"history": [0.0], "thetas": [np.zeros(2)]}

    @property
    def population_size(self):
        return self.n_candidates

    def state_dict(self):
        return {**super().state_dict(), "best": {name: list(values) for name, values in self.best.items()}}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.best = {name: list(values) for name, values in state["best"].items()}

    def _ask(self):
        rng = np.random.default_rng([self.seed, self.n_updates_done])
        std = self.std / (1 + len(self.best["history"]) / 10)
        return ExplicitPopulation(self.theta + std * rng.standard_normal((self.n_candidates, self.theta.size)))

    def _tell(self, population, fitness):
        order = np.argsort(np.nan_to_num(-fitness, nan=np.inf), kind="stable")
        elite = [population.theta(index) for index in order[: self.n_candidates // 4] if np.isfinite(fitness[index])]
        if elite:
            self.theta = np.mean(elite, axis=0, dtype=np.float32)
            self.best["history"].append(float(np.nanmax(fitness)))
            self.best["thetas"].append(elite[0].astype(np.float64))


class ToyPGPE(Optimizer):
    """Antithetic pairs with a standard deviation for each parameter; each candidate runs on three seeds."""

    episodes_per_candidate = 3

    def __init__(self, theta, seed, n_updates, n_pairs=5, step=0.05):
        super().__init__(theta, seed, n_updates)
        self.n_pairs, self.step = n_pairs, step
        self.std = np.linspace(0.1, 0.3, self.theta.size)

    @property
    def population_size(self):
        return 2 * self.n_pairs

    def state_dict(self):
        return {**super().state_dict(), "std": self.std.copy()}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.std = state["std"].copy()

    def _keys(self):
        return [noise_key(self.seed, self.n_updates_done, pair) for pair in range(self.n_pairs)]

    def _ask(self):
        keys = np.repeat(self._keys(), 2).tolist()
        return NoisePopulation(self.theta, self.std, keys, [1.0, -1.0] * self.n_pairs, self.seed)

    def _tell(self, population, fitness):
        differences = np.nan_to_num(fitness[0::2] - fitness[1::2])
        scale = np.abs(differences).max() or 1.0
        for key, difference in zip(self._keys(), differences, strict=True):
            step = self.step * difference / scale * self.std * direction(self.seed, key, self.theta.size)
            self.theta += step.astype(np.float32)
        self.std *= 0.999


class ThreadEvaluator(Evaluator):
    """A worker for each of some threads."""

    def __init__(self, task, n_workers=1, episode_timeout=600.0, name="toy"):
        super().__init__(task, n_workers, episode_timeout)
        self.name = name
        self._workers = []

    def __enter__(self):
        self._workers = [RolloutWorker(cloudpickle.loads(cloudpickle.dumps(self.task))) for _ in range(self.n_workers)]
        return self

    def _run(self, batch, jobs):
        idle = SimpleQueue()
        for worker in self._workers:
            idle.put(worker)

        def run(number):
            worker = idle.get()
            try:
                return number, worker.run(batch, jobs[number])
            finally:
                idle.put(worker)

        with ThreadPoolExecutor(self.n_workers, thread_name_prefix=self.name) as pool:
            for done in as_completed([pool.submit(run, number) for number in range(len(jobs))]):
                yield done.result()

    def close(self):
        for worker in self._workers:
            worker.close()
        self._workers = []


class ReturnPerStep(Objective):
    """The return, and a bonus for each step."""

    def __init__(self, bonus=0.0):
        self.bonus = bonus

    def fitness(self, episode):
        return episode.episode_return + self.bonus * episode.length
