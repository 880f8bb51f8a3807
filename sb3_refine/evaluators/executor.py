"""Episodes on any executor: concurrent.futures, loky, mpi4py and others."""

import logging
import os
import platform
import queue
import signal
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import BrokenExecutor, CancelledError, Future
from contextlib import suppress
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

logger = logging.getLogger(__name__)

_MAX_TASKS = 4  # that a worker keeps at a time: executors may serve several searches


class Executor(Protocol):
    """What runs functions elsewhere, as in ``concurrent.futures``."""

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Any:
        """:return: a future with the methods of ``concurrent.futures.Future``"""


class ExecutorEvaluator(PoolEvaluator["_Slot"]):
    """
    Runs episodes on an executor of processes. Its workers build the environment and the policy with the first call that
    they get, and keep them.

    An executor is used as it is, and left open. A function that makes one is called when it is needed: the executor is
    shut down in the end. Where a worker dies or hangs, it is replaced, if it shows its processes, as those of
    ``concurrent.futures`` and loky do.

    :param task: what to roll out
    :param n_workers: episodes submitted at a time; None for as many as the executor has workers, as far as it tells
    :param episode_timeout: seconds after which an episode is given up as hanging, from when it is submitted
    :param make: an executor; or a function that makes one, with the number of workers as its argument where that is
        given; or the name of such a function, such as ``"mpi4py.futures.MPIPoolExecutor"``
    :param episodes_per_call: episodes that are submitted as one call; more than one saves time where episodes are short
    :raises RefineError: where there is no such function, what it returns has no ``submit``, or new environments replay
        their random numbers: an executor may have several processes
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
        if task.replays:
            raise RefineError(
                "backend: executor: each process would run the same episodes, as new environments replay their random "
                "numbers; use `backend='serial'`"
            )
        super().__init__(task, n_workers, episode_timeout)
        self.episodes_per_call, self._n_workers_asked = episodes_per_call, n_workers
        self._make: Any = _imported(make) if isinstance(make, str) else make
        self.is_ours = not _is_executor(self._make)
        if self.is_ours and not callable(self._make):
            raise RefineError(f"backend: executor: make: expected an executor or what makes one, got {make!r}")
        self.executor: Any = None
        self._name, self._n_batches = uuid.uuid4().hex, 0
        self._n_suspects = 0  # calls that were lost together with others: each of them is run alone
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

    def _idle(self, running: Mapping["_Slot", range]) -> list["_Slot"]:
        idle = super()._idle(running)
        if not self._n_suspects:
            return idle
        if running:
            return []
        self._n_suspects -= 1
        return idle[:1]

    def _wait(self, running: Mapping["_Slot", range], deadline: float) -> list["_Slot"]:
        self._n_running = len(running)
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
        if worker.executor is not self.executor:  # replaced already
            return
        if not self.is_ours or not hasattr(self.executor, "_processes"):
            raise EpisodeError(
                "the executor lost a worker, or one hangs, and cannot be replaced; pass a function that makes an "
                "executor with processes of its own, or use another backend"
            )
        self._discard()
        self.executor = self._made()

    def lost(self, slot: "_Slot", how: str) -> WorkerLostError:
        """
        :param slot: whose call has no answer
        :param how: why
        :return: the error; an executor that breaks loses all calls, of which one is the cause
        """
        is_cause = slot.executor is self.executor and self._n_running == 1
        self._n_suspects += not is_cause
        return WorkerLostError(how, is_cause)

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
        self._workers, self._n_suspects = [], 0
        if self.executor is not None and self.is_ours:
            self._discard()
        self.executor = None

    def _discard(self) -> None:
        """Shut the executor down without waiting for episodes that may hang."""
        for process in list((getattr(self.executor, "_processes", None) or {}).values()):
            with suppress(ProcessLookupError):
                os.kill(process.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
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
            future = self.executor.submit(run_jobs, task, batch, self._jobs, _process(), self._pool.is_ours)
        except RuntimeError as error:  # the executor is broken, or shut down
            future = Future()
            future.set_exception(error)
        self.future = future
        future.add_done_callback(lambda _: self._pool.ended.put((self, future)))

    @property
    def lacks_content(self) -> bool:
        """Whether the worker that got the call had not got the task or the batch."""
        future = self.future
        return not future.cancelled() and future.exception() is None and future.result()[1][0] == _LACKS_CONTENT[0]

    def receive(self) -> list[Episode]:
        """Return the episodes, or raise what the worker raised."""
        if not self.future.done():
            raise WorkerLostError("hung (longer than episode_timeout)")
        error = CancelledError() if self.future.cancelled() else self.future.exception()
        if isinstance(error, (BrokenExecutor, CancelledError, KeyboardInterrupt, SystemExit)):
            raise self._pool.lost(self, f"died ({one_line(error)})")
        if error is not None:
            raise EpisodeError(f"the executor failed: {type(error).__name__}: {error}") from error
        model, answer = self.future.result()
        self._pool.processors.add(model)
        self._cpu_time_s = 0.0  # the answer has that of this call
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
    known: int | None = getattr(executor, "num_workers", None) or getattr(executor, "_max_workers", None)
    if known is None:
        logger.warning(
            "backend: the executor does not tell how many workers it has: %d episodes run at a time, as many as this "
            "machine has processors; n_workers sets another number",
            n_processors(),
        )
    return known or n_processors()


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
_lock = threading.Lock()  # threads of one process share generators of random numbers, and torch's number of threads


def _process() -> str:
    """:return: a name for this process that no other one has"""
    return f"{platform.node()} {os.getpid()}"


def run_jobs(task: Parcel, batch: Parcel, jobs: list[Job], caller: str, ignores_ctrl_c: bool) -> tuple[str, Answer]:
    """
    What the executor runs, in a worker.

    :param task: what to roll out
    :param batch: has the candidates
    :param jobs: the episodes
    :param caller: name of the caller's process
    :param ignores_ctrl_c: whether a process other than the caller's leaves Ctrl-C to the caller from now on
    :return: model of the processor; and the answer, with the CPU time of this call
    """
    is_elsewhere = _process() != caller
    if ignores_ctrl_c and is_elsewhere and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    with _lock:
        started = time.process_time()
        kind, content, _ = _answer(task, batch, jobs)
        spent = time.process_time() - started
    return processor(), (kind, content, spent if is_elsewhere else 0.0)


def _answer(task: Parcel, batch: Parcel, jobs: list[Job]) -> Answer:
    workers: dict[str, _Worker] = _here.__dict__.setdefault("workers", {})
    worker = workers.pop(task.name, None)
    if worker is None:
        if task.content is None:
            return _LACKS_CONTENT
        while len(workers) >= _MAX_TASKS:
            with suppress(Exception):  # whose error is not that of this task
                workers.pop(next(iter(workers))).close()
        try:
            with globals_restored():
                worker = _Worker(task.content)
        except (Exception, SystemExit) as error:
            return error_answer(error)
    workers[task.name] = worker  # the one that was used last
    return worker.answer(batch, jobs)
