"""Episodes on several processes of this machine."""

import ctypes
import logging
import multiprocessing as mp
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any

import cloudpickle
import torch as th

from sb3_refine.errors import EpisodeError
from sb3_refine.evaluators.pool import MAX_TRIES, PoolEvaluator, PoolWorker, WorkerLostError
from sb3_refine.evaluators.worker import Job, RolloutTask, RolloutWorker, error_answer

logger = logging.getLogger(__name__)

_SECONDS_TO_START = 60.0  # or as long as an episode may take, if that is longer
_SECONDS_TO_CLOSE = 10.0  # for an environment to end what it has started


class ProcessEvaluator(PoolEvaluator["_Worker"]):
    """
    Worker processes, forked from a clean server process, as Stable-Baselines3's ``SubprocVecEnv`` does it, so no thread
    or lock of the caller reaches them.

    :param task: what to roll out
    :param n_workers: number of processes; None for as many as there are processors
    :param episode_timeout: seconds after which an episode is given up as hanging
    """

    def __init__(self, task: RolloutTask, n_workers: int | None = None, episode_timeout: float = 600.0):
        super().__init__(task, n_workers, episode_timeout)
        self._context: Any = mp.get_context("forkserver" if "forkserver" in mp.get_all_start_methods() else "spawn")
        self._context.set_forkserver_preload([__name__, "stable_baselines3"])  # else every worker imports them

    def _start(self) -> None:
        for _ in range(self.n_workers):
            self._workers.append(self._start_worker())
        for place, worker in enumerate(self._workers):
            self._workers[place] = self._ready(worker)

    def _start_worker(self) -> "_Worker":
        return _Worker(self._context, self._payload)

    def _ready(self, worker: "_Worker") -> "_Worker":
        """The worker once it is ready, or another in its place if it dies or hangs on the way."""
        n_tries = 1
        while True:
            try:
                worker.wait_until_ready(max(_SECONDS_TO_START, self.episode_timeout))
                return worker
            except WorkerLostError as lost:
                worker.kill()
                if n_tries == MAX_TRIES:
                    raise EpisodeError(f"a worker {lost} while it started, {MAX_TRIES} times") from None
                logger.warning("a worker %s while it started: another is started", lost)
                worker = self._start_worker()
                n_tries += 1
            except BaseException:
                worker.kill()
                raise

    def _ship(self, batch: bytes) -> bytes:
        return batch

    def _wait(self, running: Mapping["_Worker", range], deadline: float) -> list["_Worker"]:
        by_connection: dict[Any, _Worker] = {worker.connection: worker for worker in running}
        readable = wait(list(by_connection), timeout=max(0.0, deadline - time.monotonic()))
        return [by_connection[connection] for connection in readable]

    def _replace(self, worker: "_Worker") -> None:
        worker.kill()
        self._workers[self._workers.index(worker)] = self._ready(self._start_worker())

    def _retire(self, worker: "_Worker") -> None:
        worker.end()
        worker.join(_SECONDS_TO_CLOSE)
        self._replace(worker)

    def close(self) -> None:
        deadline = time.monotonic() + _SECONDS_TO_CLOSE
        for worker in self._workers:
            worker.end()
        for worker in self._workers:
            worker.join(deadline - time.monotonic())
        self._kill()

    def _kill(self) -> None:
        for worker in self._workers:
            worker.kill()
        self._workers = []


class _Worker(PoolWorker):
    """The caller's end of a worker process."""

    def __init__(self, context: Any, payload: bytes):
        super().__init__()
        self._batch = b""
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
        """Wait for a worker that was started."""
        self.connection.poll(timeout)
        self.receive()

    def send(self, batch: bytes, jobs: list[Job]) -> None:
        """Send episodes to run; with the first of a batch, the batch."""
        self._send((None if batch is self._batch else batch, jobs))
        self._batch = batch

    def end(self) -> None:
        """Let an idle worker close its environment, and with it what that has started."""
        self._send(None)

    def _send(self, message: Any) -> None:
        with suppress(OSError):  # it died between two episodes: receive() will tell
            self.connection.send(message)

    def receive(self) -> Any:
        """Return its answer, or raise what it raised."""
        if not self.connection.poll():
            raise WorkerLostError("hung (longer than episode_timeout)")
        try:
            return self.unpacked(self.connection.recv())
        except (EOFError, OSError):  # the latter in the middle of an answer
            self.process.join()
            raise WorkerLostError(f"died ({_how(self.process.exitcode)})") from None

    def join(self, seconds: float) -> None:
        """Wait for a worker to end."""
        self.process.join(max(0.0, seconds))

    def kill(self) -> None:
        """End a worker, whatever it is at."""
        self.process.kill()
        self.process.join()
        self.connection.close()


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
            connection.send(error_answer(error))
            return
        connection.send(("ready", None, time.process_time()))
        batch: Any = None
        while True:
            message = connection.recv()
            if message is None:
                with suppress(Exception):
                    worker.close()
                os._exit(0)  # whatever threads the environment has
            new_batch, jobs = message
            batch = batch if new_batch is None else cloudpickle.loads(new_batch)
            connection.send(worker.answer(batch, jobs))


def _die_with_parent() -> None:
    """The server that forked this process ends when the caller does, however it ends: end too, even if hanging."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
