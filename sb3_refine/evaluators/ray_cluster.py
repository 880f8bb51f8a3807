"""Episodes on a Ray cluster: on this machine, or on many."""

import logging
import math
import os
import platform
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import cloudpickle
import torch as th

from sb3_refine.errors import EpisodeError, RefineError, check_count
from sb3_refine.evaluators.base import processor
from sb3_refine.evaluators.pool import MAX_TRIES, PoolEvaluator, PoolWorker, WorkerLostError
from sb3_refine.evaluators.worker import Answer, Job, RolloutTask, RolloutWorker, error_answer
from sb3_refine.rollouts.episode import Episode
from sb3_refine.versions import package_versions

logger = logging.getLogger(__name__)

_SECONDS_TO_START = 120.0  # until a node has a processor for the first worker
_SECONDS_BETWEEN_LOOKS = 1.0  # at how many processors the cluster has


class RayEvaluator(PoolEvaluator["_Actor"]):
    """
    Actors of a Ray cluster, each on one processor. Where a node is lost, its actors start again on others. Ray itself
    restarts and retries nothing.

    Without an address, the cluster that this process is connected to is used, else the one named by ``RAY_ADDRESS``,
    else one that runs on this machine, else a Ray is started here and stopped in the end.

    :param task: what to roll out
    :param n_workers: number of actors; None for one on each processor of the cluster, also of nodes that join later
    :param episode_timeout: seconds after which an episode is given up as hanging
    :param address: of a cluster, as ``ray.init`` takes it
    :param episodes_per_call: episodes that an actor is sent at a time; more than one saves time where episodes are
        shorter than about 0.1 seconds
    :raises RefineError: where ray is not installed, or the cluster cannot be reached
    """

    def __init__(
        self,
        task: RolloutTask,
        n_workers: int | None = None,
        episode_timeout: float = 600.0,
        address: str | None = None,
        episodes_per_call: int = 1,
    ):
        check_count("episodes_per_call", episodes_per_call, 1)
        self._ray, self._address, self.episodes_per_call = _import_ray(), address, episodes_per_call
        self._follows_cluster = n_workers is None and not task.replays
        super().__init__(task, n_workers, episode_timeout)
        self.processors = set()
        self._task_ref: Any = None
        self._starting: list[_Actor] = []
        self._n_failed_starts = 0  # one after the other; actors that were started together count once
        self._failed_at = self._had_worker_at = -math.inf
        self._has_started_ray = False
        self._looked_at = -math.inf
        self._n_batches = 0

    @classmethod
    def default_n_workers(cls) -> int | None:
        """:return: None: as many as the cluster has processors"""
        return None

    def _start(self) -> None:
        self._has_started_ray |= _connect(self._ray, self._address)  # after an error, Ray is still there
        self._task_ref = self._ray.put(self._payload)
        self._n_failed_starts, self._failed_at, self._had_worker_at = 0, -math.inf, time.monotonic()
        deadline = time.monotonic() + _SECONDS_TO_START
        while not self._workers:
            self._adjust_to_cluster()
            self._wait({}, math.inf)
            has_processor = bool(self._workers) or any(actor.placed_at for actor in self._starting)
            if time.monotonic() >= deadline and not has_processor:
                raise RefineError(
                    f"backend: no node of the Ray cluster had a free processor within {_SECONDS_TO_START:.0f} "
                    "seconds; add nodes, or end other jobs"
                )

    def _ship(self, batch: bytes) -> tuple[int, list[Any]]:
        """Put the batch into the object store once. In a list, Ray leaves the reference to the actors."""
        self._n_batches += 1
        return self._n_batches, [self._ray.put(batch)]

    def _idle(self, running: Mapping["_Actor", range]) -> list["_Actor"]:
        self._adjust_to_cluster()
        return super()._idle(running)

    def _wait(self, running: Mapping["_Actor", range], deadline: float) -> list["_Actor"]:
        """Returns early from time to time, to look at the cluster."""
        by_ref = {actor.answer: actor for actor in [*running, *self._starting]}
        by_ref |= {actor.placed: actor for actor in self._starting if not actor.placed_at}
        seconds = min(_SECONDS_BETWEEN_LOOKS, max(0.0, deadline - time.monotonic()))
        if not by_ref:
            time.sleep(seconds)
            return []
        done, _ = self._ray.wait(list(by_ref), num_returns=1, timeout=seconds, fetch_local=False)
        if done:
            done, _ = self._ray.wait(list(by_ref), num_returns=len(by_ref), timeout=0, fetch_local=False)
        for ref in done:
            by_ref[ref].note(ref)
        seconds_to_start = max(_SECONDS_TO_START, self.episode_timeout)
        for actor in [each for each in self._starting if each.has_answered or each.is_overdue(seconds_to_start)]:
            self._admit(actor)
        self._warn_without_workers()
        return [actor for actor in running if actor.has_answered]

    def _adjust_to_cluster(self) -> None:
        """Start as many actors as are missing; give up those that wait for a processor that is gone."""
        now = time.monotonic()
        if now < self._looked_at + _SECONDS_BETWEEN_LOOKS:
            return
        self._looked_at = now
        if self._follows_cluster:
            self.n_workers = max(1, int(self._ray.cluster_resources().get("CPU", 0)))
        n_missing = self.n_workers - len(self._workers) - len(self._starting)
        self._starting += [_Actor(self._ray, self._task_ref) for _ in range(n_missing)]
        for _ in range(min(-n_missing, len(self._starting))):
            self._starting.pop(0).kill()

    def _admit(self, actor: "_Actor") -> None:
        """Let an actor take part that has started, if its node fits."""
        self._starting.remove(actor)
        try:
            node = actor.started()
        except WorkerLostError as lost:
            actor.kill()
            if actor.busy_since > self._failed_at:
                self._n_failed_starts, self._failed_at = self._n_failed_starts + 1, time.monotonic()
            if self._n_failed_starts >= MAX_TRIES:
                raise EpisodeError(f"a worker {lost} while it started, {MAX_TRIES} times") from None
            logger.warning("a worker %s while it started: another is started", lost)
            self._looked_at = -math.inf
            return
        except BaseException:
            actor.kill()  # it is in no list
            raise
        self._n_failed_starts = 0
        self._workers.append(actor)
        address, processor = node["address"], node["processor"]
        if self.processors and processor not in self.processors:
            logger.warning(
                "node %s has a %s, others have a %s: the same episode may differ in its last bits between them",
                *(address, processor, " and a ".join(sorted(self.processors))),
            )
        self.processors.add(processor)

    def _warn_without_workers(self) -> None:
        now = time.monotonic()
        if self._workers:
            self._had_worker_at = now
        elif now >= self._had_worker_at + _SECONDS_TO_START:
            logger.warning("no worker for %.0f seconds: waiting for a node with a free processor", _SECONDS_TO_START)
            self._had_worker_at = now

    def _replace(self, worker: "_Actor") -> None:
        worker.kill()
        self._workers.remove(worker)
        self._looked_at = -math.inf  # start another at once

    def _retire(self, worker: "_Actor") -> None:
        self._replace(worker)

    def close(self) -> None:
        self._kill()
        self._task_ref = None
        if self._has_started_ray:
            self._ray.shutdown()
            self._has_started_ray = False

    def _kill(self) -> None:
        for actor in [*self._workers, *self._starting]:
            actor.kill()
        self._workers, self._starting, self._looked_at = [], [], -math.inf


class _Actor(PoolWorker):
    """The caller's end of an actor."""

    def __init__(self, ray: Any, task_ref: Any):
        super().__init__()
        self._ray = ray
        # num_cpus also for the running actor, which would count as 0; lost episodes are ours to run again
        actor_class = ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(RolloutActor)
        self._handle = actor_class.remote()
        self.busy_since = time.monotonic()
        self.placed = self._handle.place.remote()
        self.placed_at = 0.0  # when a processor was found for the actor
        self.answer = self._handle.start.remote([task_ref], _versions(), sys.path)
        self.has_answered = False

    def note(self, ref: Any) -> None:
        """
        :param ref: that is ready: of the answer, or of the message that the actor has its processor
        """
        self.placed_at = self.placed_at or time.monotonic()
        self.has_answered |= ref == self.answer

    def is_overdue(self, seconds: float) -> bool:
        """:return: whether the actor has had its processor for that long"""
        return bool(self.placed_at) and time.monotonic() >= self.placed_at + seconds

    def started(self) -> dict[str, str]:
        """:return: facts about the node of an actor that has answered for the first time"""
        if not self.has_answered:
            raise WorkerLostError("hung")
        kind, content, cpu_time_s, node = self._get()
        if kind == "misfit":
            raise RefineError(
                f"backend: node {node['address']} of the cluster has {content}; install the same versions"
            )
        self.unpacked((kind, content, cpu_time_s))
        return dict(node)

    def send(self, batch: tuple[int, list[Any]], jobs: list[Job]) -> None:
        """Send episodes to run."""
        self.answer, self.has_answered = self._handle.run.remote(*batch, jobs), False

    def receive(self) -> list[Episode]:
        """Return the episodes, or raise what the actor raised."""
        if not self.has_answered:
            raise WorkerLostError("hung (longer than episode_timeout)")
        return list(self.unpacked(self._get()))

    def _get(self) -> Any:
        try:
            return self._ray.get(self.answer)
        except self._ray.exceptions.RayError as error:
            raise WorkerLostError(f"died ({_shortened(str(error))})") from None

    def kill(self) -> None:
        """End an actor, whatever it is at."""
        if self._ray.is_initialized():
            self._ray.kill(self._handle, no_restart=True)


class RolloutActor:
    """Runs in a process of a node."""

    def __init__(self) -> None:
        th.set_num_threads(1)  # Ray limits the threads of tasks, not of actors
        self._batch: tuple[int, Any] = (0, None)  # number, content
        self._worker: Any = None

    def place(self) -> None:
        """Answers as soon as the actor has its processor."""

    def start(self, task: list[Any], versions: dict[str, str], paths: list[str]) -> tuple[Any, ...]:
        """
        :param task: reference of the pickled task
        :param versions: of the caller
        :param paths: where the caller looks for modules; of use where nodes share its files
        :return: an answer of kind "ready", "misfit" (with what differs) or "error"; and facts about the node
        """
        ray, here = _import_ray(), _versions()
        node = {"address": ray.util.get_node_ip_address(), "processor": processor()}
        differences = [
            f"{name} {here[name]} instead of {version}" if name in here else f"no {name}, here it is {version}"
            for name, version in versions.items()
            if here.get(name) != version
        ]
        if differences:
            return "misfit", "; ".join(differences), 0.0, node
        sys.path += [path for path in paths if path not in sys.path]
        try:
            self._worker = RolloutWorker(cloudpickle.loads(ray.get(task[0])))
        except Exception as error:
            return *error_answer(error), node
        return "ready", None, time.process_time(), node

    def run(self, number: int, batch: list[Any], jobs: list[Job]) -> Answer:
        """
        :param number: of the batch
        :param batch: reference of the pickled batch
        :param jobs: the episodes
        :return: the episodes, or an error
        """
        if self._batch[0] != number:
            self._batch = number, cloudpickle.loads(_import_ray().get(batch[0]))
        return self._worker.answer(self._batch[1], jobs)


def _shortened(text: str) -> str:
    """:return: of one of Ray's errors, the node and the line that says most"""
    lines, node = text.strip().splitlines(), re.search(r"\bip=([\w.:]+)", text)
    return f"node {node[1]}: {lines[-1]}" if node and len(lines) > 1 else lines[0] if lines else "no reason given"


def _import_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise RefineError("backend: ray is not installed; run: pip install 'sb3-refine[ray]'") from None
    return ray


def _connect(ray: Any, address: str | None) -> bool:
    """
    :return: whether a Ray was started here, or joined, that has to be left in the end
    :raises RefineError: where the cluster cannot be reached, or does not fit
    """
    if ray.is_initialized():
        _check_address(ray.get_runtime_context().gcs_address, address)
        return False
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=address,
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray's handler ends the process
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = address or os.environ.get("RAY_ADDRESS", "on this machine")
        hint = "" if os.environ.get("RAY_AUTH_MODE") else "; if the cluster has a token, set RAY_AUTH_MODE=token"
        raise RefineError(f"backend: no connection to the Ray cluster {where}: {error}{hint}") from error
    return True


def _check_address(connected: str, address: str | None) -> None:
    """:raises RefineError: where another cluster is asked for than the one that this process is connected to"""
    if address in (None, "auto", connected):
        return
    host, _, port = address.rpartition(":")
    with suppress(OSError):
        if f"{socket.gethostbyname(host)}:{port}" == connected:
            return
    raise RefineError(
        f"backend: this process is connected to the Ray cluster {connected} already, not to {address}; call "
        "`ray.shutdown()` first, or leave the address out"
    )


def _versions() -> dict[str, str]:
    """:return: of Python and of the packages that decide episodes, as far as they are installed"""
    return {"python": ".".join(platform.python_version_tuple()[:2])} | package_versions()
