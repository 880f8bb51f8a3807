"""The loop of every pool of workers: hand out episodes, and run those again whose worker is lost."""

import logging
import math
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import cloudpickle
from typing_extensions import Self

from sb3_refine.envs.remedies import FRESH_ENV
from sb3_refine.errors import EpisodeError
from sb3_refine.evaluators.base import Evaluator
from sb3_refine.evaluators.worker import Answer, Batch, Job, RolloutTask, pickled_task
from sb3_refine.rollouts.episode import Episode
from sb3_refine.stopwatch import add_cpu_time

logger = logging.getLogger(__name__)

MAX_TRIES = 3  # of an episode whose worker dies or hangs, and of starting a worker
_MAX_FRESH_ENVS = 500  # in one worker: simulators leak up to 1 MB each time they are made


class WorkerLostError(Exception):
    """
    A worker died or hung.

    :param how: ``"died (...)"`` or ``"hung (...)"``
    :param is_cause: whether its own episodes may be the reason; not where another worker may have taken it along
    """

    def __init__(self, how: str, is_cause: bool = True):
        super().__init__(how)
        self.is_cause = is_cause


class PoolWorker:
    """The caller's end of a worker. A subclass has ``send`` and ``receive``."""

    def __init__(self) -> None:
        self.busy_since = 0.0
        self.n_episodes = 0
        self._cpu_time_s = 0.0

    def send(self, batch: Any, jobs: list[Job]) -> None:
        """
        Let the worker run episodes.

        :param batch: what the evaluator's ``_ship`` returned
        :param jobs: the episodes
        """
        raise NotImplementedError

    def receive(self) -> list[Episode]:
        """
        :return: the episodes of the last call
        :raises WorkerLostError: where there is no answer
        """
        raise NotImplementedError

    def unpacked(self, answer: Answer) -> Any:
        """
        :param answer: of the worker
        :return: its content
        :raises Exception: what the worker raised
        """
        kind, content, cpu_time_s = answer
        add_cpu_time(cpu_time_s - self._cpu_time_s)
        self._cpu_time_s = cpu_time_s
        if kind == "error":
            raise content
        return content


W = TypeVar("W", bound=PoolWorker)


class PoolEvaluator(Evaluator, Generic[W]):
    """
    Workers elsewhere, each handed one call at a time, because episodes differ in length. A worker that dies or hangs is
    replaced, and its episodes are run again with the same result.

    A pool is a subclass with the methods below that are abstract.

    :param task: what to roll out
    :param n_workers: how many episodes run at a time
    :param episode_timeout: seconds after which an episode is given up as hanging
    """

    episodes_per_call = 1

    def __init__(self, task: RolloutTask, n_workers: int | None = None, episode_timeout: float = 600.0):
        super().__init__(task, n_workers, episode_timeout)
        self._payload = pickled_task(task)
        self._workers: list[W] = []
        self._max_episodes = _MAX_FRESH_ENVS if task.recipe.remedy == FRESH_ENV else None

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._kill()
            self.close()
            raise
        return self

    @abstractmethod
    def _start(self) -> None:
        """Start the workers, and wait for them."""

    @abstractmethod
    def _ship(self, batch: bytes) -> Any:
        """:return: what ``send`` gets: the pickled batch, or where workers find it"""

    @abstractmethod
    def _wait(self, running: Mapping[W, range], deadline: float) -> list[W]:
        """:return: workers that have answered or died, as soon as there are any; none after the deadline"""

    @abstractmethod
    def _replace(self, worker: W) -> None:
        """End a worker that has died or hangs, and start another."""

    @abstractmethod
    def _retire(self, worker: W) -> None:
        """End a worker that is idle, and start another."""

    @abstractmethod
    def _kill(self) -> None:
        """End all workers, whatever they are at."""

    def _idle(self, running: Mapping[W, range]) -> list[W]:
        return [worker for worker in self._workers if worker not in running]

    def _run(self, batch: Batch, jobs: Sequence[Job]) -> Iterator[tuple[int, Episode]]:
        if not self._workers:  # an error ended them
            self.__enter__()
        n, shipped = self.episodes_per_call, self._ship(cloudpickle.dumps(batch))
        waiting = deque(range(start, min(start + n, len(jobs))) for start in range(0, len(jobs), n))
        tries, running = dict.fromkeys(waiting, 0), dict[W, range]()
        try:
            while waiting or running:
                for worker in self._idle(running)[: len(waiting)]:
                    running[worker] = numbers = waiting.popleft()
                    worker.busy_since = time.monotonic()
                    worker.send(shipped, [jobs[number] for number in numbers])
                for worker in self._ended(running):
                    numbers = running.pop(worker)
                    try:
                        episodes = worker.receive()
                    except WorkerLostError as lost:
                        tries[numbers] += lost.is_cause
                        what = batch.describe(*jobs[numbers[0]])
                        if tries[numbers] >= MAX_TRIES:
                            raise EpisodeError(f"{what}: its worker {lost} {MAX_TRIES} times") from None
                        self._replace(worker)
                        logger.warning("a worker %s in %s: replaced, and the episode run again", lost, what)
                        waiting.appendleft(numbers)
                    else:
                        self._retire_if_worn(worker, len(numbers))
                        yield from zip(numbers, episodes, strict=True)
        except BaseException:
            self._kill()  # workers are in the middle of episodes that nobody waits for
            raise

    def _ended(self, running: Mapping[W, range]) -> list[W]:
        """Wait for workers that have answered, died, or had their time."""
        ends = {worker: worker.busy_since + self.episode_timeout * len(own) for worker, own in running.items()}
        ended = self._wait(running, min(ends.values(), default=math.inf))
        return ended or [worker for worker, end in ends.items() if time.monotonic() >= end]

    def _retire_if_worn(self, worker: W, n_episodes: int) -> None:
        worker.n_episodes += n_episodes
        if self._max_episodes is not None and worker.n_episodes >= self._max_episodes:
            self._retire(worker)
