"""Episodes on several processes of this machine."""

import multiprocessing as mp
import os
import signal
import sys
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any

import cloudpickle
import numpy as np
import torch as th
from typing_extensions import Self

from sb3_refine.candidates import Candidate
from sb3_refine.errors import EpisodeError, RefineError
from sb3_refine.evaluators.base import Evaluator, RolloutTask, RolloutWorker
from sb3_refine.rollout import Episode

_MAX_TRIES = 3  # of one episode whose worker dies


class ProcessEvaluator(Evaluator):
    """
    A pool of worker processes, each handed one episode at a time: episodes differ in length.

    Workers are forked from a clean server process, as Stable-Baselines3's ``SubprocVecEnv`` does it, so no thread or
    lock of the caller reaches them. The mean lies in anonymous shared memory, which nothing can leave behind. A worker
    that dies is replaced, and its episode run again.

    :param task: what to roll out
    :param n_workers: number of processes
    """

    def __init__(self, task: RolloutTask, n_workers: int = 1):
        super().__init__(task, n_workers)
        self._context: Any = mp.get_context("forkserver" if "forkserver" in mp.get_all_start_methods() else "spawn")
        self._context.set_forkserver_preload([__name__])
        self._payload = cloudpickle.dumps(task)
        self._shared = self._context.RawArray("f", task.policy.n_parameters)
        self._workers: list[_Worker] = []

    def __enter__(self) -> Self:
        try:
            self._workers = [self._start_worker() for _ in range(self.n_workers)]
            for worker in self._workers:
                _check(worker.receive())
        except BaseException:
            self.close()
            raise
        return self

    def _start_worker(self) -> "_Worker":
        return _Worker(self._context, self._payload, self._shared)

    def _evaluate(
        self, mean: np.ndarray, candidates: Sequence[Candidate], episode_seeds: Sequence[int]
    ) -> list[Episode]:
        assert self._workers, "use the evaluator as a context manager"
        np.frombuffer(self._shared, dtype=np.float32)[:] = mean
        episodes: list[Episode | None] = [None] * len(candidates)
        waiting = deque(range(len(candidates)))
        tries = [0] * len(candidates)
        running: dict[_Worker, int] = {}
        try:
            while waiting or running:
                for worker in [w for w in self._workers if w not in running][: len(waiting)]:
                    index = waiting.popleft()
                    running[worker] = index
                    worker.send((candidates[index], episode_seeds[index]))
                for worker in _ready(running):
                    index = running.pop(worker)
                    try:
                        episodes[index] = _check(worker.receive())
                    except EOFError:
                        tries[index] += 1
                        if tries[index] >= _MAX_TRIES:
                            raise EpisodeError(
                                f"the worker died {_MAX_TRIES} times in the episode with seed {episode_seeds[index]} "
                                f"of {candidates[index]}; out of memory? try fewer workers (n_workers)"
                            ) from None
                        self._replace(worker)
                        waiting.appendleft(index)
        except BaseException:
            self.close()  # workers are in the middle of episodes nobody will ask for
            raise
        assert all(episode is not None for episode in episodes)
        return episodes  # type: ignore[return-value]

    def _replace(self, worker: "_Worker") -> None:
        worker.kill()
        replacement = self._start_worker()
        self._workers[self._workers.index(worker)] = replacement
        _check(replacement.receive())

    def close(self) -> None:
        for worker in self._workers:
            worker.kill()
        self._workers = []


class _Worker:
    """The caller's end of a worker process."""

    def __init__(self, context: Any, payload: bytes, shared: Any):
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, payload, shared), daemon=True)
        with _main_module_hidden():
            self.process.start()
        theirs.close()

    def send(self, message: Any) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # it died between two episodes: receive() will tell
            self.connection.send(message)

    def receive(self) -> Any:
        try:
            return self.connection.recv()
        except ConnectionResetError:
            raise EOFError from None

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def _ready(running: dict[_Worker, int]) -> list[_Worker]:
    by_connection: dict[Any, _Worker] = {worker.connection: worker for worker in running}
    return [by_connection[connection] for connection in wait(list(by_connection))]


def _check(message: tuple[str, Any]) -> Any:
    """Return a worker's result, or raise what it raised."""
    kind, content = message
    if kind == "error":
        raise content
    return content


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


def _serve(connection: Connection, payload: bytes, shared: Any) -> None:
    """Life of a worker process: build, then run episodes until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's to handle
    th.set_num_threads(1)
    mean = np.frombuffer(shared, dtype=np.float32)
    try:
        worker = RolloutWorker(cloudpickle.loads(payload))
    except Exception as error:
        connection.send(("error", _portable(error, "the environment could not be built in a worker")))
        return
    connection.send(("ready", os.getpid()))
    while True:
        try:
            candidate, episode_seed = connection.recv()
        except EOFError:
            return
        try:
            reply: tuple[str, Any] = ("episode", worker.run(mean, candidate, episode_seed))
        except Exception as error:
            reply = ("error", _portable(error, f"the episode with seed {episode_seed} of {candidate} failed"))
        connection.send(reply)


def _portable(error: Exception, what: str) -> Exception:
    """An exception that any process can unpickle: ours as it is, any other as text with its traceback."""
    if isinstance(error, RefineError):
        return error
    return EpisodeError(f"{what}: {type(error).__name__}: {error}\n{traceback.format_exc()}")
