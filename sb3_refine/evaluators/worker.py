"""What every backend runs: a task, and the worker that rolls out candidates of a population."""

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import cloudpickle
import gymnasium as gym
import torch as th

from sb3_refine.envs.spec import EnvRecipe
from sb3_refine.envs.wrappers import Noise, Noisy
from sb3_refine.errors import EpisodeError, RefineError, reraise_as_episode_error
from sb3_refine.optimizers.population import Population
from sb3_refine.policies.base import DeterministicPolicy
from sb3_refine.rollouts.episode import Episode
from sb3_refine.rollouts.metrics import METRICS, Metric
from sb3_refine.rollouts.reproducibility import Episodes
from sb3_refine.rollouts.rollout import rollout_with_metrics

NextEnv = Callable[[int], gym.Env]
"""Gives the environment, fit to be reset with a seed."""

Rollout = Callable[[DeterministicPolicy, NextEnv, int, Mapping[str, Metric]], Episode]


def one_episode(policy: DeterministicPolicy, next_env: NextEnv, seed: int, metrics: Mapping[str, Metric]) -> Episode:
    """
    :param policy: acts
    :param next_env: see :data:`NextEnv`
    :param seed: of the episode
    :param metrics: of the episode, by name
    :return: the episode
    """
    return rollout_with_metrics(policy, next_env(seed), seed, metrics)


@dataclass(frozen=True)
class RolloutTask:
    """
    Everything that a worker gets once, when it starts.

    :param recipe: builds the environment
    :param policy: its searched parameters are overwritten for every candidate
    :param metrics: that episodes may be asked for beside :data:`~sb3_refine.rollouts.metrics.METRICS`, by name
    :param is_seeded: whether the seed decides the episode; if not, episodes cannot be paired by their seeds
    :param replays: whether, without using a seed, every new environment begins with the same random numbers
    :param rollout: runs an episode of a policy, on a seed, with metrics by name
    """

    recipe: EnvRecipe
    policy: DeterministicPolicy
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    is_seeded: bool = True
    replays: bool = False
    rollout: Rollout = one_episode


class Batch(NamedTuple):
    """
    What the episodes of one call of :meth:`~sb3_refine.evaluators.base.Evaluator.evaluate` share.

    :param population: the candidates
    :param metrics: names of the metrics of each episode; with none, no trajectory is kept
    :param noise: on actions and observations, or None
    """

    population: Population
    metrics: tuple[str, ...] = ()
    noise: Noise | None = None

    def describe(self, index: int, seed: int) -> str:
        """:return: what error messages call an episode"""
        return f"the episode with seed {seed} of {self.population.describe(index)}"


Job = tuple[int, int]
"""An episode to run: index of the candidate in the population, episode seed."""

Answer = tuple[str, Any, float]
"""Of a worker in another process: a word for the kind, the content, and the CPU time of the process in seconds."""


class RolloutWorker:
    """
    Runs episodes one after the other. Every backend runs this class, so all backends give the same episodes.

    Episodes run in torch's inference mode. An environment that differentiates within its step leaves this mode for
    that, with ``torch.inference_mode(False)``.

    :param task: what to roll out
    """

    def __init__(self, task: RolloutTask):
        self._task = task
        self._episodes = Episodes(task.recipe)

    def run(self, batch: Batch, job: Job) -> Episode:
        """
        :param batch: has the candidate
        :param job: which candidate, on which seed
        :return: the episode
        """
        (index, seed), policy = job, self._task.policy

        def next_env(of: int) -> gym.Env:
            env = self._episodes.next_env(of)
            return env if batch.noise is None else Noisy(env, batch.noise)

        policy.set_theta(batch.population.theta(index))
        with reraise_as_episode_error(batch.describe(index, seed)), th.inference_mode():
            return self._task.rollout(policy, next_env, seed, self._metrics(batch.metrics))

    def answer(self, batch: Batch, jobs: Sequence[Job]) -> Answer:
        """
        :param batch: has the candidates
        :param jobs: the episodes
        :return: "episodes" with a list of them, or "error" with one that any process can unpickle
        """
        try:
            return "episodes", [self.run(batch, job) for job in jobs], time.process_time()
        except Exception as error:
            return error_answer(error)

    def _metrics(self, names: Sequence[str]) -> dict[str, Metric]:
        return {name: self._task.metrics[name] if name in self._task.metrics else METRICS[name] for name in names}

    def close(self) -> None:
        """Close the environment."""
        self._episodes.close()


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


def error_answer(error: BaseException) -> Answer:
    """:return: the answer with an exception: ours as it is, any other as text with its traceback"""
    if not isinstance(error, (RefineError, EpisodeError)):
        error = EpisodeError(f"a worker failed: {type(error).__name__}: {error}\n{traceback.format_exc()}")
    return "error", error, time.process_time()
