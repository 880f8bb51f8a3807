"""What an executor runs in its workers."""

import os
import platform
import signal
import threading
import time
from contextlib import suppress
from typing import Any, NamedTuple

import cloudpickle

from sb3_refine.evaluators.base import processor
from sb3_refine.evaluators.worker import Answer, Job, RolloutWorker, error_answer
from sb3_refine.policies.base import one_thread
from sb3_refine.seeding import globals_restored

_MAX_TASKS = 4  # that a worker keeps at a time: executors may serve several searches


class Parcel(NamedTuple):
    """
    What a worker keeps under a name.

    :param name: tells it from others
    :param content: None where the worker should have it
    """

    name: str
    content: bytes | None


LACKS_CONTENT: Answer = ("lacks content", None, 0.0)


class _Worker:
    """What a process, or a thread, keeps between calls."""

    def __init__(self, task: bytes):
        self._worker = RolloutWorker(cloudpickle.loads(task))
        self._batch_name = ""
        self._batch: Any = None

    def answer(self, batch: Parcel, jobs: list[Job]) -> Answer:
        if self._batch_name != batch.name:
            if batch.content is None:
                return LACKS_CONTENT
            self._batch_name, self._batch = batch.name, cloudpickle.loads(batch.content)
        with one_thread(), globals_restored():
            return self._worker.answer(self._batch, jobs)

    def close(self) -> None:
        self._worker.close()


_here = threading.local()
_lock = threading.Lock()  # threads of one process share generators of random numbers, and torch's number of threads


def process_name() -> str:
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
    is_elsewhere = process_name() != caller
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
            return LACKS_CONTENT
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
