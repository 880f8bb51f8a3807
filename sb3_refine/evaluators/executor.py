"""Episodes on any executor: concurrent.futures, loky, mpi4py and others."""

import logging
import os
import queue
import signal
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import BrokenExecutor, CancelledError, Future
from contextlib import suppress
from importlib import import_module
from typing import Any, Protocol

from sb3_refine.errors import EpisodeError, RefineError, check_count, one_line
from sb3_refine.evaluators.base import n_processors
from sb3_refine.evaluators.executor_worker import LACKS_CONTENT, Parcel, process_name, run_jobs
from sb3_refine.evaluators.pool import PoolEvaluator, PoolWorker, WorkerLostError
from sb3_refine.evaluators.worker import Job, RolloutTask
from sb3_refine.rollouts.episode import Episode

logger = logging.getLogger(__name__)


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
            future = self.executor.submit(run_jobs, task, batch, self._jobs, process_name(), self._pool.is_ours)
        except RuntimeError as error:  # the executor is broken, or shut down
            future = Future()
            future.set_exception(error)
        self.future = future
        future.add_done_callback(lambda _: self._pool.ended.put((self, future)))

    @property
    def lacks_content(self) -> bool:
        """Whether the worker that got the call had not got the task or the batch."""
        future = self.future
        return not future.cancelled() and future.exception() is None and future.result()[1][0] == LACKS_CONTENT[0]

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
