"""Episodes on several processes of this machine."""

import ctypes
import logging
import multiprocessing as mp
import os
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any

import cloudpickle
import torch as th
from typing_extensions import Self

from sb3_refine.envs.remedies import FRESH_ENV
from sb3_refine.errors import EpisodeError, RefineError
from sb3_refine.evaluators.base import Evaluator
from sb3_refine.evaluators.worker import Batch, Job, RolloutTask, RolloutWorker
from sb3_refine.rollouts.episode import Episode
from sb3_refine.stopwatch import add_cpu_time

logger = logging.getLogger(__name__)

_MAX_TRIES = 3  # of one episode whose worker dies or hangs, and of starting a worker
_SECONDS_TO_START = 60.0  # or as long as an episode may take, if that is longer
_SECONDS_TO_CLOSE = 10.0  # for an environment to end what it has started
_MAX_FRESH_ENVS = 500  # in one worker: simulators leak up to 1 MB each time they are made


class ProcessEvaluator(Evaluator):
    """
    A pool of worker processes, each handed one episode at a time: episodes differ in length.

    Workers are forked from a clean server process, as Stable-Baselines3's ``SubprocVecEnv`` does it, so no thread or
    lock of the caller reaches them. A worker that dies or hangs is replaced, and its episode run again with the same
    result.

    :param task: what to roll out
    :param n_workers: number of processes; None for as many as there are processors
    :param episode_timeout: seconds after which an episode is given up as hanging
    """

    def __init__(self, task: RolloutTask, n_workers: int | None = None, episode_timeout: float = 600.0):
        super().__init__(task, n_workers, episode_timeout)
        self._context: Any = mp.get_context("forkserver" if "forkserver" in mp.get_all_start_methods() else "spawn")
        self._context.set_forkserver_preload([__name__, "stable_baselines3"])  # else every worker imports them
        self._payload = pickled_task(task)
        self._workers: list[_Worker] = []
        self._max_episodes = _MAX_FRESH_ENVS if task.recipe.remedy == FRESH_ENV else None

    def __enter__(self) -> Self:
        try:
            for _ in range(self.n_workers):
                self._workers.append(self._start_worker())
            for place, worker in enumerate(self._workers):
                self._workers[place] = self._ready(worker)
        except BaseException:
            self._kill()
            raise
        return self

    def _start_worker(self) -> "_Worker":
        return _Worker(self._context, self._payload)

    def _ready(self, worker: "_Worker") -> "_Worker":
        """The worker once it is ready, or another in its place if it dies or hangs on the way."""
        n_tries = 1
        while True:
            try:
                worker.wait_until_ready(max(_SECONDS_TO_START, self.episode_timeout))
                return worker
            except _WorkerLostError as lost:
                worker.kill()
                if n_tries == _MAX_TRIES:
                    raise EpisodeError(f"a worker {lost} while it started, {_MAX_TRIES} times") from None
                logger.warning("a worker %s while it started: another is started", lost)
                worker = self._start_worker()
                n_tries += 1
            except BaseException:
                worker.kill()
                raise

    def _run(self, batch: Batch, jobs: Sequence[Job]) -> Iterator[tuple[int, Episode]]:
        if not self._workers:  # an error ended them
            self.__enter__()
        payload = cloudpickle.dumps(batch)
        waiting, tries = deque(range(len(jobs))), [0] * len(jobs)
        running: dict[_Worker, int] = {}
        try:
            while waiting or running:
                for worker in [w for w in self._workers if w not in running][: len(waiting)]:
                    running[worker] = number = waiting.popleft()
                    tries[number] += 1
                    worker.send_job(payload, jobs[number])
                for worker in _readable_or_overdue(running, self.episode_timeout):
                    number = running.pop(worker)
                    try:
                        episode = worker.receive()
                    except _WorkerLostError as lost:
                        self._replace_lost(worker, lost, batch.describe(*jobs[number]), tries[number])
                        waiting.appendleft(number)
                    else:
                        self._retire_if_worn(worker)
                        yield number, episode
        except BaseException:
            self._kill()  # workers are in the middle of episodes that nobody waits for
            raise

    def _replace_lost(self, worker: "_Worker", lost: "_WorkerLostError", what: str, n_tries: int) -> None:
        if n_tries >= _MAX_TRIES:
            raise EpisodeError(f"{what}: its worker {lost} {_MAX_TRIES} times") from None
        logger.warning("a worker %s in %s: replaced, and the episode run again", lost, what)
        worker.kill()
        self._replace(worker)

    def _retire_if_worn(self, worker: "_Worker") -> None:
        if worker.n_episodes == self._max_episodes:
            worker.send(None)
            worker.retire(_SECONDS_TO_CLOSE)
            self._replace(worker)

    def _replace(self, worker: "_Worker") -> None:
        place = self._workers.index(worker)
        self._workers[place] = self._ready(self._start_worker())

    def close(self) -> None:
        deadline = time.monotonic() + _SECONDS_TO_CLOSE
        for worker in self._workers:
            worker.send(None)
        for worker in self._workers:
            worker.retire(deadline - time.monotonic())
        self._workers = []

    def _kill(self) -> None:
        for worker in self._workers:
            worker.kill()
        self._workers = []


class _WorkerLostError(Exception):
    """A worker died or hung."""


class _Worker:
    """The caller's end of a worker process."""

    def __init__(self, context: Any, payload: bytes):
        self.n_episodes = 0
        self._batch = b""
        self.busy_since = self._cpu_time_s = 0.0
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, payload), daemon=True)
        try:
            with _main_module_hidden():
                self.process.start()
        except BaseException:
            if self.process.pid is not None:  # it is in nobody's list yet
                self.process.kill()
                self.process.join()
            raise
        finally:
            theirs.close()

    def wait_until_ready(self, timeout: float) -> None:
        self.connection.poll(timeout)
        self.receive()
        self.n_episodes = 0

    def send_job(self, batch: bytes, job: Job) -> None:
        """Send an episode to run; with the first of a batch, the batch."""
        self.send((None if batch is self._batch else batch, job))
        self._batch = batch

    def send(self, message: Any) -> None:
        self.busy_since = time.monotonic()
        with suppress(OSError):  # it died between two episodes: receive() will tell
            self.connection.send(message)

    def receive(self) -> Any:
        """Return its answer, or raise what it raised."""
        if not self.connection.poll():
            raise _WorkerLostError("hung (longer than episode_timeout)")
        try:
            kind, content, cpu_time_s = self.connection.recv()
        except (EOFError, OSError):  # the latter in the middle of an answer
            self.process.join()
            raise _WorkerLostError(f"died ({_how(self.process.exitcode)})") from None
        add_cpu_time(cpu_time_s - self._cpu_time_s)
        self._cpu_time_s = cpu_time_s
        if kind == "error":
            raise content
        self.n_episodes += 1
        return content

    def retire(self, seconds: float) -> None:
        """Wait for an idle worker, which was sent None, to close its environment, and with it what that has started."""
        self.process.join(max(0.0, seconds))
        self.kill()

    def kill(self) -> None:
        """End a worker, whatever it is at."""
        self.process.kill()
        self.process.join()
        self.connection.close()


def _readable_or_overdue(running: dict[_Worker, int], timeout: float) -> list[_Worker]:
    """Wait for workers that have answered, died, or had their time."""
    by_connection: dict[Any, _Worker] = {worker.connection: worker for worker in running}
    first_deadline = min(worker.busy_since for worker in running) + timeout
    readable = wait(list(by_connection), timeout=max(0.0, first_deadline - time.monotonic()))
    if readable:
        return [by_connection[connection] for connection in readable]
    return [worker for worker in running if time.monotonic() >= worker.busy_since + timeout]


@contextmanager
def _main_module_hidden() -> Iterator[None]:
    """
    Keep multiprocessing from importing the caller's script again in the worker: what a worker needs comes by
    cloudpickle, so scripts need no ``if __name__ == "__main__"``.
    """
    main = sys.modules["__main__"]
    hidden: dict[str, Any] = {n: main.__dict__.pop(n) for n in ("__file__", "__spec__") if n in main.__dict__}
    main.__spec__ = None
    try:
        yield
    finally:
        main.__dict__.update(hidden)


def pickled_task(task: RolloutTask) -> bytes:
    """
    :param task: what to roll out
    :return: the task for other processes
    :raises RefineError: where parts of it cannot be sent
    """
    try:
        return cloudpickle.dumps(task)
    except Exception as error:  # of whatever the user's environment or objective holds
        raise RefineError(
            f"the environment or the objective cannot be sent to worker processes ({type(error).__name__}: {error}); "
            "make locks, files and the like in the function that uses them, or stay in this process, with "
            "`backend='serial'`"
        ) from error


def _how(exit_code: int) -> str:
    if exit_code == -signal.SIGKILL:
        return "killed: out of memory? fewer workers need less"
    return f"signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}: something called exit()"


def _serve(connection: Connection, payload: bytes) -> None:
    """Life of a worker process: build, then run episodes until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's to handle
    _die_with_parent()
    th.set_num_threads(1)
    with suppress(EOFError, ConnectionError):  # the caller has gone
        try:
            worker = RolloutWorker(cloudpickle.loads(payload))
        except Exception as error:
            connection.send(("error", portable_error(error), time.process_time()))
            return
        connection.send(("ready", None, time.process_time()))
        batch: Any = None
        while True:
            message = connection.recv()
            if message is None:
                with suppress(Exception):
                    worker.close()
                os._exit(0)  # whatever threads the environment has
            new_batch, job = message
            batch = batch if new_batch is None else cloudpickle.loads(new_batch)
            try:
                content: tuple[str, Any] = ("episode", worker.run(batch, job))
            except Exception as error:
                content = ("error", portable_error(error))
            connection.send((*content, time.process_time()))


def _die_with_parent() -> None:
    """The server that forked this process ends when the caller does, however it ends: end too, even if hanging."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def portable_error(error: Exception) -> Exception:
    """:return: an exception that any process can unpickle: ours as it is, any other as text with its traceback"""
    if isinstance(error, (RefineError, EpisodeError)):
        return error
    return EpisodeError(f"a worker failed: {type(error).__name__}: {error}\n{traceback.format_exc()}")
