"""Episodes on a Ray cluster: on this machine, or on many."""

import importlib.metadata
import logging
import math
import os
import platform
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import cloudpickle
import torch as th
from typing_extensions import Self

from sb3_refine.errors import EpisodeError, RefineError, check_count
from sb3_refine.evaluators.base import Evaluator
from sb3_refine.evaluators.process import pickled_task, portable_error
from sb3_refine.evaluators.worker import Batch, Job, RolloutTask, RolloutWorker
from sb3_refine.rollouts.episode import Episode
from sb3_refine.stopwatch import add_cpu_time

logger = logging.getLogger(__name__)

_MAX_TRIES = 3  # of one call whose worker dies or hangs
_SECONDS_TO_START = 120.0  # until a node has a processor for the first worker
_SECONDS_BETWEEN_LOOKS = 1.0  # at how many processors the cluster has
_PACKAGES = (
    "sb3-refine", "stable-baselines3", "sb3-contrib", "torch", "numpy", "gymnasium", "pybullet", "panda-gym", "mujoco",
    "box2d", "ale-py", "pybullet_envs_gymnasium", "gymnasium-robotics",
)  # fmt: skip


class RayEvaluator(Evaluator):
    """
    Actors of a Ray cluster, each on one processor, and each handed one call at a time. An actor that dies or hangs, or
    whose node is lost, is replaced, and its episodes are run again with the same result. Ray itself restarts and
    retries nothing.

    Without an address, the cluster that this process is connected to is used, else the one named by ``RAY_ADDRESS``,
    else a Ray is started on this machine and stopped in the end.

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
        self._payload = pickled_task(task)
        self._task_ref: Any = None
        self._actors: dict[Any, _Actor] = {}
        self._starting: dict[Any, _Actor] = {}
        self._has_started_ray = False
        self._looked_at = -math.inf
        self._n_batches = 0
        self.nodes: dict[str, dict[str, str]] = {}
        """Of each node that has run episodes, by its address: processor and versions."""

    @classmethod
    def default_n_workers(cls) -> int | None:
        """:return: None: as many as the cluster has processors"""
        return None

    def __enter__(self) -> Self:
        try:
            self._has_started_ray |= _connect(self._ray, self._address)  # after an error, Ray is still there
            self._task_ref = self._ray.put(self._payload)
            self._adjust_to_cluster()
            deadline = time.monotonic() + _SECONDS_TO_START
            while not self._actors:
                self._admit(self._wait([], deadline))
                if not self._actors and time.monotonic() >= deadline:
                    raise RefineError(
                        f"backend: no node of the Ray cluster had a free processor within {_SECONDS_TO_START:.0f} "
                        "seconds; add nodes, or end other jobs"
                    )
        except BaseException:
            self.close()
            raise
        return self

    def _run(self, batch: Batch, jobs: Sequence[Job]) -> Iterator[tuple[int, Episode]]:
        if not self._actors:  # an error ended them
            self.__enter__()
        self._n_batches += 1
        shipped = (
            self._n_batches,
            [self._ray.put(cloudpickle.dumps(batch))],
        )  # in a list, so that actors fetch it once
        n = self.episodes_per_call
        waiting = deque(range(start, min(start + n, len(jobs))) for start in range(0, len(jobs), n))
        tries, running = dict.fromkeys(waiting, 0), dict[Any, tuple[_Actor, range]]()
        try:
            while waiting or running:
                self._adjust_to_cluster()
                busy = {actor for actor, _ in running.values()}
                for actor in [each for each in self._actors.values() if each not in busy][: len(waiting)]:
                    numbers = waiting.popleft()
                    tries[numbers] += 1
                    running[actor.send(shipped, [jobs[number] for number in numbers])] = actor, numbers
                answers = self._wait(list(running), self._first_deadline(running))
                for ref in [*answers, *self._overdue(running, answers)]:
                    if ref not in running:
                        continue
                    actor, numbers = running.pop(ref)
                    try:
                        episodes = actor.receive(ref if ref in answers else None)
                    except _ActorLostError as lost:
                        what = batch.describe(*jobs[numbers[0]])
                        if tries[numbers] >= _MAX_TRIES:
                            raise EpisodeError(f"{what}: its worker {lost} {_MAX_TRIES} times") from None
                        logger.warning("a worker %s in %s: replaced, and the episode run again", lost, what)
                        self._remove(actor)
                        waiting.appendleft(numbers)
                    else:
                        yield from zip(numbers, episodes, strict=True)
                self._admit(answers)
        except BaseException:
            self._kill()  # actors are in the middle of episodes that nobody waits for
            raise

    def _wait(self, refs: list[Any], deadline: float) -> list[Any]:
        """Wait for calls and starts to end, until the deadline, or until it is time to look at the cluster."""
        refs = [*refs, *self._starting]
        seconds = min(_SECONDS_BETWEEN_LOOKS, max(0.0, deadline - time.monotonic()))
        if not refs:
            time.sleep(seconds)
            return []
        done, _ = self._ray.wait(refs, num_returns=1, timeout=seconds, fetch_local=False)
        if done:
            done, _ = self._ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=False)
        return list(done)

    def _first_deadline(self, running: dict[Any, tuple["_Actor", range]]) -> float:
        ends = [actor.busy_since + self.episode_timeout * len(numbers) for actor, numbers in running.values()]
        return min(ends, default=math.inf)

    def _overdue(self, running: dict[Any, tuple["_Actor", range]], answers: list[Any]) -> list[Any]:
        now = time.monotonic()
        return [
            ref
            for ref, (actor, numbers) in running.items()
            if ref not in answers and now >= actor.busy_since + self.episode_timeout * len(numbers)
        ]

    def _adjust_to_cluster(self) -> None:
        """Start as many actors as are missing; give up those that wait for a processor that is gone."""
        now = time.monotonic()
        if now < self._looked_at + _SECONDS_BETWEEN_LOOKS:
            return
        self._looked_at = now
        if self._follows_cluster:
            self.n_workers = max(1, int(self._ray.cluster_resources().get("CPU", 0)))
        for _ in range(self.n_workers - len(self._actors) - len(self._starting)):
            actor = _Actor(self._ray, self._task_ref)
            self._starting[actor.started] = actor
        surplus = len(self._actors) + len(self._starting) - self.n_workers
        for ref in list(self._starting)[: max(0, surplus)]:
            self._starting.pop(ref).kill()

    def _admit(self, answers: list[Any]) -> None:
        """Let actors that have started take part, if their node fits."""
        for ref in answers:
            actor = self._starting.pop(ref, None)
            if actor is None:
                continue
            try:
                actor.check()
            except _ActorLostError as lost:
                logger.warning("a worker %s while it started: another is started", lost)
                self._looked_at = -math.inf
                continue
            self._actors[actor.started] = actor
            self._note(actor.node)

    def _note(self, node: dict[str, str]) -> None:
        known = {each["processor"] for each in self.nodes.values()}
        self.nodes[node["address"]] = node
        if known and node["processor"] not in known:
            logger.warning(
                "node %s has a %s, others have a %s: the same episode may differ in its last bits between them",
                node["address"],
                node["processor"],
                " and a ".join(sorted(known)),
            )

    def _remove(self, actor: "_Actor") -> None:
        actor.kill()
        del self._actors[actor.started]
        self._looked_at = -math.inf  # start another at once

    def close(self) -> None:
        self._kill()
        self._task_ref = None
        if self._has_started_ray:
            self._ray.shutdown()
            self._has_started_ray = False

    def _kill(self) -> None:
        for actor in [*self._actors.values(), *self._starting.values()]:
            actor.kill()
        self._actors, self._starting, self._looked_at = {}, {}, -math.inf


class _ActorLostError(Exception):
    """An actor died or hung."""


class _Actor:
    """The caller's end of an actor."""

    def __init__(self, ray: Any, task_ref: Any):
        self._ray = ray
        # num_cpus also for the running actor, which would count as 0; lost episodes are ours to run again
        actor_class = ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(RolloutActor)
        self._handle = actor_class.remote()
        self.started = self._handle.start.remote([task_ref], _versions(), sys.path)
        self.node: dict[str, str] = {}
        self.busy_since = self._cpu_time_s = 0.0

    def check(self) -> None:
        """Once the actor has started: see whether its node fits."""
        kind, content, node = self._get(self.started)
        self.node = node
        if kind == "error" and isinstance(content, str):
            raise RefineError(
                f"backend: node {node['address']} of the cluster has {content}; install the same versions"
            )
        if kind == "error":
            raise content

    def send(self, shipped: tuple[int, list[Any]], jobs: list[Job]) -> Any:
        """:return: the reference of the answer"""
        self.busy_since = time.monotonic()
        return self._handle.run.remote(*shipped, jobs)

    def receive(self, ref: Any | None) -> list[Episode]:
        """Return the episodes, or raise what the actor raised; None for an answer that is overdue."""
        if ref is None:
            raise _ActorLostError("hung (longer than episode_timeout)")
        kind, content, cpu_time_s = self._get(ref)
        add_cpu_time(cpu_time_s - self._cpu_time_s)
        self._cpu_time_s = cpu_time_s
        if kind == "error":
            raise content
        return content

    def _get(self, ref: Any) -> Any:
        try:
            return self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise _ActorLostError(f"died ({reason})") from None

    def kill(self) -> None:
        """End an actor, whatever it is at."""
        if self._ray.is_initialized():
            self._ray.kill(self._handle, no_restart=True)


class RolloutActor:
    """Runs in a process of a node."""

    def __init__(self) -> None:
        th.set_num_threads(1)  # Ray limits the threads of tasks, not of actors
        self._batch_number = 0
        self._batch: Any = None
        self._worker: Any = None

    def start(self, task: list[Any], versions: dict[str, str], paths: list[str]) -> tuple[str, Any, dict[str, str]]:
        """
        :param task: reference of the pickled task
        :param versions: of the caller
        :param paths: where the caller looks for modules; of use where nodes share its files
        :return: "ready" or "error", what is wrong, and facts about the node
        """
        ray, here = _import_ray(), _versions()
        node = {"address": ray.util.get_node_ip_address(), "processor": _processor(), **here}
        differences = [
            f"{name} {here.get(name, 'is missing')} instead of {version}"
            for name, version in versions.items()
            if here.get(name) != version
        ]
        if differences:
            return "error", "; ".join(differences), node
        sys.path += [path for path in paths if path not in sys.path]
        try:
            self._worker = RolloutWorker(cloudpickle.loads(ray.get(task[0])))
        except Exception as error:
            return "error", portable_error(error), node
        return "ready", None, node

    def run(self, batch_number: int, batch: list[Any], jobs: list[Job]) -> tuple[str, Any, float]:
        """
        :param batch_number: tells the batch from others
        :param batch: reference of the pickled batch
        :param jobs: to run
        :return: "episodes" or "error", these, and the CPU time of the process in seconds
        """
        if batch_number != self._batch_number:
            self._batch, self._batch_number = cloudpickle.loads(_import_ray().get(batch[0])), batch_number
        try:
            return "episodes", [self._worker.run(self._batch, job) for job in jobs], time.process_time()
        except Exception as error:
            return "error", portable_error(error), time.process_time()


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
        return False
    try:
        ray.init(address=address, include_dashboard=None if address else False, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = address or os.environ.get("RAY_ADDRESS", "on this machine")
        raise RefineError(f"backend: no connection to the Ray cluster {where}: {error}") from error
    return True


def _versions() -> dict[str, str]:
    """:return: of Python and of the packages that decide episodes, as far as they are installed"""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _processor() -> str:
    """:return: its model, where the system says so"""
    with suppress(OSError), open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
