"""Episodes on any executor: concurrent.futures, loky, mpi4py and others."""

import os
import platform
import queue
import signal
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import BrokenExecutor, CancelledError, Future
from importlib import import_module
from typing import Any, NamedTuple, Protocol

import cloudpickle

from sb3_refine.errors import EpisodeError, RefineError, check_count, one_line
from sb3_refine.evaluators.base import n_processors, processor
from sb3_refine.evaluators.pool import PoolEvaluator, PoolWorker, WorkerLostError
from sb3_refine.evaluators.worker import Answer, Job, RolloutTask, RolloutWorker, error_answer
from sb3_refine.policies.base import one_thread
from sb3_refine.rollouts.episode import Episode
from sb3_refine.seeding import globals_restored

_MAX_TASKS = 4  # that a worker keeps at a time: executors may serve several searches


class Executor(Protocol):
    """What runs functions elsewhere, as in ``concurrent.futures``."""

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Any:
        """:return: a future with ``add_done_callback`` and ``result``"""


class ExecutorEvaluator(PoolEvaluator["_Slot"]):
    """
    Runs episodes on an executor of processes. Its workers build the environment and the policy with the first call that
    they get, and keep them.

    An executor is used as it is, and left open. A function that makes one is called when it is needed: the executor is
    shut down in the end, and replaced where a worker dies or hangs.

    :param task: what to roll out
    :param n_workers: episodes submitted at a time; None for as many as the executor has workers, as far as it tells
    :param episode_timeout: seconds after which an episode is given up as hanging
    :param make: an executor; or a function that makes one, with the number of workers as its argument where that is
        given; or the name of such a function, such as ``"mpi4py.futures.MPIPoolExecutor"``
    :param episodes_per_call: episodes that are submitted as one call; more than one saves time where episodes are short
    :raises RefineError: where there is no such function, or what it returns has no ``submit``
    """

    def __init__(
        self,
        task: RolloutTask,
        n_workers: int | None = None,
        episode_timeout: float = 600.0,
        make: str | Executor | Callable[..., Executor] | None = None,
        episodes_per_call: int = 1,
    ):
        check_count("episodes_per_call", episodes_per_call, 1)
        super().__init__(task, n_workers, episode_timeout)
        self.episodes_per_call, self._n_workers_asked = episodes_per_call, 1 if task.replays else n_workers
        self._make: Any = _imported(make) if isinstance(make, str) else make
        self.is_ours = not _is_executor(self._make)
        if self.is_ours and not callable(self._make):
            raise RefineError(f"backend: executor: make: expected an executor or what makes one, got {make!r}")
        self.executor: Any = None
        self._name, self._n_batches = uuid.uuid4().hex, 0
        self.cpu_times: dict[str, float] = {}
        """Seconds of CPU time, by process."""
        self.processors = set()

    @classmethod
    def default_n_workers(cls) -> int | None:
        """:return: None: as many as the executor has"""
        return None

    def _start(self) -> None:
        executor = self.executor = self._made() if self.is_ours else self._make
        self.n_workers = self._n_workers_asked or _n_workers_of(executor)
        self.task_parcels = Shared(self._name, self._payload, self.n_workers)
        self.ended: queue.SimpleQueue[tuple[_Slot, Any]] = queue.SimpleQueue()
        self._workers = [_Slot(self) for _ in range(self.n_workers)]

    def _made(self) -> Any:
        arguments = () if self._n_workers_asked is None else (self._n_workers_asked,)
        try:
            executor = self._make(*arguments)
        except Exception as error:
            raise RefineError(f"backend: executor: make: {self._make!r} failed ({one_line(error)})") from error
        if not _is_executor(executor):
            raise RefineError(f"backend: executor: make: {self._make!r} returned {executor!r}, which has no `submit`")
        return executor

    def _ship(self, batch: bytes) -> "Shared":
        self._n_batches += 1
        return Shared(f"{self._name}-{self._n_batches}", batch, self.n_workers)

    def _wait(self, running: Mapping["_Slot", range], deadline: float) -> list["_Slot"]:
        while True:
            try:
                slot, future = self.ended.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return []
            if slot.future is not future or slot not in running:
                continue  # of a call that was given up
            if slot.lacks_content:
                slot.submit_in_full()
                continue
            return [slot]

    def _replace(self, worker: "_Slot") -> None:
        if not self.is_ours:
            raise EpisodeError(
                "the executor lost a worker, or one hangs; pass a function that makes an executor, so that another can "
                "replace it"
            )
        if worker.executor is self.executor:  # not another one already
            self._discard()
            self.executor = self._made()

    def _retire(self, worker: "_Slot") -> None:
        """Only an executor ends its workers."""

    def close(self) -> None:
        self._workers = []
        if self.executor is not None and self.is_ours:
            self.executor.shutdown()
        self.executor = None

    def _kill(self) -> None:
        for slot in self._workers:
            slot.future.cancel()
        self._workers = []
        if self.executor is not None and self.is_ours:
            self._discard()
        self.executor = None

    def _discard(self) -> None:
        """Shut the executor down without waiting for episodes that may hang."""
        for process in list((getattr(self.executor, "_processes", None) or {}).values()):
            process.terminate()
        self.executor.shutdown(wait=False)


class _Slot(PoolWorker):
    """One of the calls that are submitted at a time."""

    def __init__(self, pool: ExecutorEvaluator):
        super().__init__()
        self._pool = pool
        self.executor: Any = None
        self.future: Any = Future()

    def send(self, batch: "Shared", jobs: list[Job]) -> None:
        """Submit episodes."""
        self._batch, self._jobs = batch, jobs
        self._submit(self._pool.task_parcels.parcel(), batch.parcel())

    def submit_in_full(self) -> None:
        """Submit the same episodes again, for a worker that lacks the task or the batch."""
        self._submit(self._pool.task_parcels.full, self._batch.full)

    def _submit(self, task: "Parcel", batch: "Parcel") -> None:
        self.executor = self._pool.executor
        try:
            future = self.executor.submit(run_jobs, task, batch, self._jobs, self._pool.is_ours)
        except RuntimeError as error:  # the executor is broken, or shut down
            future = Future()
            future.set_exception(error)
        self.future = future
        future.add_done_callback(lambda _: self._pool.ended.put((self, future)))

    @property
    def lacks_content(self) -> bool:
        """Whether the worker that got the call had not got the task or the batch."""
        future = self.future
        return not future.cancelled() and future.exception() is None and future.result()[1] == _LACKS_CONTENT

    def receive(self) -> list[Episode]:
        """Return the episodes, or raise what the worker raised."""
        if not self.future.done():
            raise WorkerLostError("hung (longer than episode_timeout)")
        try:
            sender, answer = self.future.result()
        except (BrokenExecutor, CancelledError) as error:
            raise WorkerLostError(f"died ({str(error).splitlines()[0] if str(error) else 'no reason given'})") from None
        except Exception as error:
            raise EpisodeError(f"the executor failed: {type(error).__name__}: {error}") from error
        pool = self._pool
        pool.processors.add(sender.processor)
        self._cpu_time_s = pool.cpu_times.get(sender.process, 0.0)
        pool.cpu_times[sender.process] = answer[2]
        return list(self.unpacked(answer))


def _is_executor(value: Any) -> bool:
    return hasattr(value, "submit") and not isinstance(value, type)


def _imported(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise RefineError(f"backend: executor: make: cannot import {name!r} ({error})") from None


def _n_workers_of(executor: Any) -> int:
    """:return: as far as the executor tells; else the number of processors of this machine"""
    return getattr(executor, "num_workers", None) or getattr(executor, "_max_workers", None) or n_processors()


class Parcel(NamedTuple):
    """
    What a worker keeps under a name.

    :param name: tells it from others
    :param content: None where the worker should have it
    """

    name: str
    content: bytes | None


class Shared:
    """
    What all workers need: sent with the first calls, then only named.

    :param name: tells it from others
    :param content: pickled
    :param n_workers: so many calls carry the content
    """

    def __init__(self, name: str, content: bytes, n_workers: int):
        self.full = Parcel(name, content)
        self._n_left = n_workers

    def parcel(self) -> Parcel:
        """:return: for the next call"""
        self._n_left -= 1
        return self.full if self._n_left >= 0 else Parcel(self.full.name, None)


class Sender(NamedTuple):
    """
    Who ran a call.

    :param process: name of the process
    :param processor: its model
    """

    process: str
    processor: str


_LACKS_CONTENT: Answer = ("lacks content", None, 0.0)


class _Worker:
    """What a process, or a thread, keeps between calls."""

    def __init__(self, task: bytes):
        self._worker = RolloutWorker(cloudpickle.loads(task))
        self._batch_name = ""
        self._batch: Any = None

    def answer(self, batch: Parcel, jobs: list[Job]) -> Answer:
        if self._batch_name != batch.name:
            if batch.content is None:
                return _LACKS_CONTENT
            self._batch_name, self._batch = batch.name, cloudpickle.loads(batch.content)
        with one_thread(), globals_restored():
            return self._worker.answer(self._batch, jobs)

    def close(self) -> None:
        self._worker.close()


_here = threading.local()


def run_jobs(task: Parcel, batch: Parcel, jobs: list[Job], ignores_ctrl_c: bool) -> tuple[Sender, Answer]:
    """
    What the executor runs, in a worker.

    :param task: what to roll out
    :param batch: has the candidates
    :param jobs: the episodes
    :param ignores_ctrl_c: whether the process leaves Ctrl-C to the caller from now on
    :return: who ran this, and the answer
    """
    if ignores_ctrl_c and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return Sender(f"{platform.node()} {os.getpid()}", processor()), _answer(task, batch, jobs)


def _answer(task: Parcel, batch: Parcel, jobs: list[Job]) -> Answer:
    workers: dict[str, _Worker] = _here.__dict__.setdefault("workers", {})
    worker = workers.pop(task.name, None)
    if worker is None:
        if task.content is None:
            return _LACKS_CONTENT
        while len(workers) >= _MAX_TASKS:
            workers.pop(next(iter(workers))).close()
        try:
            with globals_restored():
                worker = _Worker(task.content)
        except Exception as error:
            return error_answer(error)
    workers[task.name] = worker  # the one that was used last
    return worker.answer(batch, jobs)
