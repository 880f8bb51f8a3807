"""What every backend has in common: the task a worker holds, and the interface it serves."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
import torch as th
from typing_extensions import Self

from sb3_refine.envs.observations import Normalisation
from sb3_refine.envs.spec import EnvRecipe
from sb3_refine.errors import told_of_episode
from sb3_refine.optimizers.candidates import Candidate, direction
from sb3_refine.policies.base import DeterministicPolicy
from sb3_refine.rollouts.episode import Episode
from sb3_refine.rollouts.metrics import MEASURES, Measure
from sb3_refine.rollouts.reproducibility import Episodes
from sb3_refine.rollouts.rollout import measured_rollout, rollout


@dataclass(frozen=True)
class RolloutTask:
    """
    All that a worker is given once, at its start.

    :param recipe: builds the environment
    :param policy: its searched parameters are overwritten for every candidate
    :param seed: seed of the directions
    :param normalisation: of the observations, for trajectories; or None
    :param measures: that episodes may be asked for beside :data:`~sb3_refine.rollouts.metrics.MEASURES`, by name
    :param replays: whether, without heeding a seed, every new environment begins with the same random numbers
    """

    recipe: EnvRecipe
    policy: DeterministicPolicy
    seed: int
    normalisation: Normalisation | None = None
    measures: Mapping[str, Measure] = field(default_factory=dict)
    replays: bool = False


class RolloutWorker:
    """
    Runs candidates one after the other. Every backend runs this, so all give the same episodes.

    Episodes run in torch's inference mode. An environment that differentiates within its step leaves it for that, with
    ``torch.inference_mode(False)``.

    :param task: what to roll out
    """

    def __init__(self, task: RolloutTask):
        self._task = task
        self._episodes = Episodes(task.recipe)

    def run(self, mean: np.ndarray, candidate: Candidate, episode_seed: int, measures: Sequence[str] = ()) -> Episode:
        """
        :param mean: float32 vector that the candidate is a perturbation of
        :param candidate: what to evaluate
        :param episode_seed: seed of the episode
        :param measures: names of what to measure; with none, no trajectory is kept
        :return: the episode
        """
        policy = self._task.policy
        if candidate.scale == 0.0:
            policy.set_parameters(mean)
        else:
            delta = direction(self._task.seed, candidate.update, candidate.pair, mean.size)
            policy.set_parameters(mean, delta, candidate.scale)
        with told_of_episode(f"the episode with seed {episode_seed} of {candidate}"):
            env = self._episodes.next_env(episode_seed)
            with th.inference_mode():
                if not measures:
                    return rollout(policy, env, episode_seed)
                return measured_rollout(policy, env, episode_seed, self._measures(measures), self._task.normalisation)

    def _measures(self, names: Sequence[str]) -> dict[str, Measure]:
        return {name: self._task.measures[name] if name in self._task.measures else MEASURES[name] for name in names}

    def close(self) -> None:
        """Close the environment."""
        self._episodes.close()


class Evaluator(ABC):
    """
    Runs episodes of candidates. A context manager: workers live from entering to leaving it.

    :param task: what to roll out
    :param n_workers: how many episodes run at a time; one where new environments replay their random numbers: several
        workers would run the same episodes
    :param episode_timeout: seconds after which an episode is given up as hanging, where the backend can do so
    """

    def __init__(self, task: RolloutTask, n_workers: int = 1, episode_timeout: float = 600.0):
        self.task = task
        self.n_workers = 1 if task.replays else n_workers
        self.episode_timeout = episode_timeout
        self.n_episodes = 0
        self.n_env_steps = 0

    def evaluate(
        self,
        mean: np.ndarray,
        candidates: Sequence[Candidate],
        episode_seeds: Sequence[int],
        measures: Sequence[str] = (),
    ) -> list[Episode]:
        """
        :param mean: vector that the candidates are perturbations of
        :param candidates: what to evaluate
        :param episode_seeds: one for each candidate
        :param measures: names of what to measure in each episode, see :class:`RolloutTask`
        :return: the episodes, in the order of the candidates, whoever ran them
        """
        if len(candidates) != len(episode_seeds):
            raise ValueError(f"episode_seeds: expected {len(candidates)}, one a candidate, got {len(episode_seeds)}")
        episodes = self._evaluate(np.ascontiguousarray(mean, dtype=np.float32), candidates, episode_seeds, measures)
        self.n_episodes += len(episodes)
        self.n_env_steps += sum(episode.length for episode in episodes)
        return episodes

    def evaluate_mean(
        self, mean: np.ndarray, episode_seeds: Sequence[int], measures: Sequence[str] = ()
    ) -> list[Episode]:
        """
        :param mean: the vector itself is evaluated, unperturbed
        :param episode_seeds: one for each episode
        :param measures: names of what to measure in each
        :return: the episodes, in the order of the seeds
        """
        return self.evaluate(mean, [Candidate(0, 0, 0.0)] * len(episode_seeds), episode_seeds, measures)

    @abstractmethod
    def _evaluate(
        self, mean: np.ndarray, candidates: Sequence[Candidate], episode_seeds: Sequence[int], measures: Sequence[str]
    ) -> list[Episode]: ...

    @abstractmethod
    def __enter__(self) -> Self: ...

    @abstractmethod
    def close(self) -> None:
        """Stop the workers. Safe to call twice."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
