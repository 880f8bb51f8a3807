"""The state of a search."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from sb3_refine.errors import EpisodeError
from sb3_refine.evaluation.evaluation import Evaluation
from sb3_refine.evaluators import Evaluator
from sb3_refine.optimizers import Optimizer
from sb3_refine.rollouts.episode import Episode
from sb3_refine.seeding import EpisodeSeeds
from sb3_refine.stopwatch import Stopwatch

N_MILESTONES = 6  # parts of a search, the best iterate of each of which is a candidate
N_ITERATES = N_MILESTONES + 2  # with the last iterate and the average
MAX_INVALID_SHARE = 0.2  # of all episodes; above, the search ends with an error


class Update(NamedTuple):
    """
    The result of one update: figures of the episodes of its population.

    :param update: number of updates done, this one included
    :param rollouts: episodes so far, those on validation seeds included
    :param env_steps: their environment steps
    :param mean_return: of the population; NaN is left out
    :param std_return: of the population
    :param min_return: of the population
    :param max_return: of the population
    :param mean_fitness: of the population
    :param failure_rate: of the population
    """

    update: int
    rollouts: int
    env_steps: int
    mean_return: float
    std_return: float
    min_return: float
    max_return: float
    mean_fitness: float
    failure_rate: float


class Iterate(NamedTuple):
    """
    A point that a search has passed.

    :param name: what tables call the point
    :param update: number of updates that led to the point
    :param theta: its parameters
    """

    name: str
    update: int
    theta: np.ndarray


@dataclass
class SearchState:
    """
    Everything that changes during a search.

    :param optimizer: has the current iterate
    :param start_theta: parameters that the search started from
    :param baseline: the original on validation seeds, once evaluated
    :param average: running average of the iterates, later ones weighing more
    :param milestones: of each part of the search, the iterate whose population did best: mean fitness of the
        population, number of updates, parameters
    :param history: the result of each update
    :param run_number: number of searches that the refiner has done before
    :param n_search_seeds: seeds taken from the search stream so far
    :param stopwatch: of the search, with the time before it was resumed
    """

    optimizer: Optimizer
    start_theta: np.ndarray
    baseline: Evaluation | None = None
    average: np.ndarray = field(default_factory=lambda: np.empty(0))
    milestones: dict[int, tuple[float, int, np.ndarray]] = field(default_factory=dict)
    history: list[Update] = field(default_factory=list)
    run_number: int = 0
    n_search_seeds: int = 0
    n_episodes: int = 0
    n_env_steps: int = 0
    n_invalid: int = 0
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    @property
    def n_updates_done(self) -> int:
        """Updates done."""
        return self.optimizer.n_updates_done

    @property
    def best(self) -> tuple[int, np.ndarray]:
        """The iterate whose population did best: number of updates, parameters."""
        if not self.milestones:
            return 0, self.start_theta
        _, update, vector = max(self.milestones.values(), key=lambda milestone: milestone[0])
        return update, vector

    @property
    def best_fitness(self) -> float:
        """Mean fitness of the best population so far; NaN before the first update."""
        return max((fitness for fitness, *_ in self.milestones.values()), default=math.nan)

    @property
    def iterates(self) -> list[Iterate]:
        """The candidates that a search found: the last iterate, the running average, and the best of each part."""
        found = [Iterate("last iterate", self.n_updates_done, self.optimizer.theta)]
        if self.average.size:
            found.append(Iterate("running average", self.n_updates_done, self.average.astype(np.float32)))
        milestones = [Iterate(f"iterate {u}", u, vector) for _, u, vector in self.milestones.values() if u > 0]
        distinct: dict[bytes, Iterate] = {}
        for iterate in (*found, *milestones):
            distinct.setdefault(iterate.theta.tobytes(), iterate)
        return list(distinct.values())

    def take_seeds(self, seeds: EpisodeSeeds, groups: Sequence[int], episodes_per_candidate: int) -> list[list[int]]:
        """
        Take new seeds from the search stream, for a population. No seed is taken twice in a search, whatever the sizes
        of its populations.

        :param seeds: of the run
        :param groups: of each candidate, the number of its group, whose candidates share their seeds
        :param episodes_per_candidate: seeds of each candidate
        :return: the seeds of each candidate
        """
        places = {group: place for place, group in enumerate(dict.fromkeys(groups))}
        n = episodes_per_candidate
        taken = seeds.take("search", len(places) * n, start=self.n_search_seeds)
        self.n_search_seeds += len(taken)
        return [taken[places[group] * n : (places[group] + 1) * n] for group in groups]

    def count(self, evaluator: Evaluator) -> None:
        """:param evaluator: has the counts of all episodes so far"""
        self.n_episodes, self.n_env_steps = evaluator.n_episodes, evaluator.n_env_steps

    def record(self, theta: np.ndarray, episodes: Sequence[Sequence[Episode]], fitness: np.ndarray) -> None:
        """
        Note an update. The mean fitness of the population says how good the iterate is, at no further cost.

        :param theta: the iterate that the population belongs to; the optimizer has moved on from it
        :param episodes: of each candidate
        :param fitness: of each candidate
        :raises EpisodeError: when too many candidates have no fitness
        """
        flat = [episode for own in episodes for episode in own]
        returns = np.array([episode.episode_return for episode in flat])
        self.n_invalid += sum(len(own) for own, value in zip(episodes, fitness, strict=True) if np.isnan(value))
        if self.n_invalid > MAX_INVALID_SHARE * self.n_episodes or np.isnan(fitness).all():
            whose = "rewards or observations; fix the environment" if np.isnan(returns).any() else "fitness; fix it"
            many = f"{self.n_invalid} of {self.n_episodes} episodes are of candidates"
            raise EpisodeError(f"{many} with NaN or infinite {whose}, or perturb less")
        if not np.isfinite(self.optimizer.theta).all():
            update = self.n_updates_done - 1
            raise EpisodeError(f"the search left the finite numbers in update {update}; lower the step size")
        score, before = float(np.nanmean(fitness)), self.n_updates_done - 1
        part = N_MILESTONES * before // self.optimizer.n_updates
        if part not in self.milestones or score > self.milestones[part][0]:
            self.milestones[part] = score, before, theta.copy()
        self._average()
        returns = returns[np.isfinite(returns)]
        self.history.append(
            Update(
                update=self.n_updates_done,
                rollouts=self.n_episodes,
                env_steps=self.n_env_steps,
                mean_return=float(returns.mean()),
                std_return=float(returns.std()),
                min_return=float(returns.min()),
                max_return=float(returns.max()),
                mean_fitness=score,
                failure_rate=float(np.mean([episode.failed for episode in flat])),
            )
        )

    def _average(self) -> None:
        """Polynomial-decay averaging, each iterate weighing as its number (Shamir and Zhang, 2013, eta = 1)."""
        if not self.average.size:
            self.average = self.optimizer.theta.astype(np.float64)
        self.average += 2 / (self.n_updates_done + 1) * (self.optimizer.theta - self.average)

    def state_dict(self) -> dict[str, Any]:
        """:return: a copy of everything, in types that :func:`read_checkpoint` reads"""
        return {
            "optimizer": self.optimizer.state_dict(),
            "start_theta": self.start_theta.copy(),
            "average": self.average.copy(),
            "milestones": {str(part): dict(enumerate(milestone)) for part, milestone in self.milestones.items()},
            "history": np.array(self.history, dtype=np.float64).reshape(-1, len(Update._fields)),
            "run_number": self.run_number,
            "n_search_seeds": self.n_search_seeds,
            "n_episodes": self.n_episodes,
            "n_env_steps": self.n_env_steps,
            "n_invalid": self.n_invalid,
            "elapsed": self.stopwatch.wall_time_s,
            "cpu_time": self.stopwatch.cpu_time_s,
            "baseline": None if self.baseline is None else _plain_evaluation(self.baseline),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """:param state: what :meth:`state_dict` gave"""
        self.optimizer.load_state_dict(state["optimizer"])
        for name in (
            "start_theta",
            "average",
            "run_number",
            "n_search_seeds",
            "n_episodes",
            "n_env_steps",
            "n_invalid",
        ):
            setattr(self, name, state[name])
        self.milestones = {int(part): (m[0], m[1], m[2]) for part, m in state["milestones"].items()}
        self.history = [Update(*map(int, update[:3]), *map(float, update[3:])) for update in state["history"]]
        self.stopwatch = Stopwatch(state["elapsed"], state["cpu_time"])
        if state["baseline"] is not None:
            seeds, episodes = state["baseline"]
            self.baseline = Evaluation(tuple(seeds), tuple(Episode(*episode) for episode in episodes))


def _plain_evaluation(evaluation: Evaluation) -> tuple[list[int], list[list[Any]]]:
    return list(evaluation.seeds), [list(episode) for episode in evaluation.episodes]
