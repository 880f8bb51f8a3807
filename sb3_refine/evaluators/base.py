"""The interface of every backend."""

import os
import platform
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from types import TracebackType

from typing_extensions import Self

from sb3_refine.envs.wrappers import Noise
from sb3_refine.evaluators.worker import Batch, Job, RolloutTask
from sb3_refine.optimizers.population import Population
from sb3_refine.parts import options_of
from sb3_refine.rollouts.episode import Episode


def n_processors() -> int:
    """:return: processors that this process may use"""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor() -> str:
    """:return: model of this machine's processor, where the system says so"""
    with suppress(OSError), open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


class Evaluator(ABC):
    """
    Runs episodes of candidates. A context manager: the workers live from entering to leaving it, through any number of
    calls of :meth:`evaluate`.

    A backend is a subclass with ``_run``, which lets a :class:`~sb3_refine.evaluators.worker.RolloutWorker` run each
    job, ``__enter__`` and :meth:`close`. The arguments of its constructor, except the first three, are its options.

    :param task: what to roll out
    :param n_workers: how many episodes run at a time, None for :meth:`default_n_workers`; one where new environments
        replay their random numbers: several workers would run the same episodes
    :param episode_timeout: seconds after which an episode counts as hanging, where the backend can tell
    """

    def __init__(self, task: RolloutTask, n_workers: int | None = None, episode_timeout: float = 600.0):
        self.task = task
        self.n_workers = 1 if task.replays else n_workers or self.default_n_workers() or 1
        self.episode_timeout = episode_timeout
        self.n_episodes = 0
        self.n_env_steps = 0
        self.processors = {processor()}
        """Models of the processors that run episodes: between different ones, these may differ in their last bits."""
        self.on_episode: Callable[[], object] = lambda: None
        """Called after each episode, for a progress bar."""

    @classmethod
    def options(cls) -> dict[str, tuple[type, ...]]:
        """:return: names and types of the arguments that ``NAME:option=value`` may give"""
        return {"n_workers": (int, type(None)), **options_of(cls, n_first=3)}

    @classmethod
    def default_n_workers(cls) -> int | None:
        """:return: how many episodes run at a time where nothing else is said; None where that is only known later"""
        return n_processors()

    def evaluate(
        self,
        population: Population,
        seeds: Sequence[Sequence[int]],
        metrics: Sequence[str] = (),
        noise: Noise | None = None,
    ) -> list[list[Episode]]:
        """
        :param population: the candidates
        :param seeds: the episode seeds of each candidate, one or several
        :param metrics: names of the metrics of each episode, see :class:`~sb3_refine.evaluators.worker.RolloutTask`
        :param noise: on actions and observations, or None
        :return: the episodes of each candidate, in the order of its seeds; the same for any number of workers
        """
        if len(seeds) != len(population):
            raise ValueError(f"seeds: expected {len(population)} lists, one for each candidate, got {len(seeds)}")
        jobs = [(index, seed) for index, own in enumerate(seeds) for seed in own]
        episodes: dict[int, Episode] = {}
        for number, episode in self._run(Batch(population, tuple(metrics), noise), jobs):
            episodes[number] = episode
            self.n_episodes += 1
            self.n_env_steps += episode.n_env_steps
            self.on_episode()
        ordered = (episodes[number] for number in range(len(jobs)))
        return [[next(ordered) for _ in own] for own in seeds]

    @abstractmethod
    def _run(self, batch: Batch, jobs: Sequence[Job]) -> Iterator[tuple[int, Episode]]:
        """Yield the number of each job with its episode, in any order."""

    @abstractmethod
    def __enter__(self) -> Self: ...

    @abstractmethod
    def close(self) -> None:
        """Stop the workers. Safe to call twice."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
