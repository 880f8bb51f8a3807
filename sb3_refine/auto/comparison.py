"""Whether the training has led to something better than what there was."""

import time
from pathlib import Path

import numpy as np

from sb3_refine.agents.agent import Agent
from sb3_refine.agents.candidates import NamedAgent
from sb3_refine.auto.arms import Arm
from sb3_refine.evaluation.selection import Candidate, sequential_halving
from sb3_refine.files import atomic_path
from sb3_refine.judging import Judge
from sb3_refine.training.continuation import agent_at

_N_SEEDS = 16
_FIRST_SEED = 100_000  # in the stream of validation seeds: none that the final choice is made on


class Comparison:
    """
    Compares the training's best recent candidate with the best agent so far, at first the original.

    :param judge: has the original, the objective and the workers
    :param folder: keeps the best agent
    :param trust: see :func:`~sb3_refine.agents.decoding.model_zip.read_model`
    """

    seconds_per_episode = 0.0
    """In the last comparison."""

    def __init__(self, judge: Judge, folder: Path, trust: bool):
        self._judge, self._folder, self._trust = judge, folder, trust
        self._best: tuple[NamedAgent, np.ndarray] | None = None
        self._newest: tuple[NamedAgent, np.ndarray] | None = None

    def of(self, training: Arm, number: int | None) -> tuple[np.ndarray, np.ndarray | None]:
        """
        :param training: the arm
        :param number: of the best agent so far, see :meth:`agent`
        :return: the fitness of the best agent so far and of the training's best recent candidate, in the same episodes;
            None without candidates
        """
        if self._best is None:
            self._best = self._run([NamedAgent("the best so far", self.agent(number))])
        named = training.recent_candidates()
        self._newest = self._run(named) if named else None
        return self._best[1], None if self._newest is None else self._newest[1]

    def keep(self, number: int) -> None:
        """
        Make the training's candidate of the last comparison the best agent so far.

        :param number: of the comparison
        """
        assert self._newest is not None
        self._best, paths = self._newest, self._paths(number)
        agent = self._newest[0].agent
        self._folder.mkdir(parents=True, exist_ok=True)
        if agent.vec_normalize is not None:
            agent.vec_normalize.save(str(paths[1]))
        with atomic_path(paths[0]) as path:
            agent.model.save(path)

    def agent(self, number: int | None) -> Agent:
        """
        :param number: of a comparison after which :meth:`keep` was called; None for the original
        :return: the best agent then
        """
        original = self._judge.original
        return original if number is None else agent_at(original, *self._paths(number), self._trust)

    def _paths(self, number: int) -> tuple[Path, Path]:
        return self._folder / f"best_{number}.zip", self._folder / f"best_{number}.pkl"

    def _run(self, named: list[NamedAgent]) -> tuple[NamedAgent, np.ndarray]:
        """The best of some agents, and its fitness in the episodes of a comparison."""
        seeds, objective = self._judge.seeds.take("validation", _N_SEEDS, _FIRST_SEED), self._judge.objective
        with self._judge.open_targets([each.agent for each in named]) as targets:
            started = time.perf_counter()  # without the start of the workers
            candidates = [Candidate(each.name, target) for each, target in zip(named, targets, strict=True)]
            best = sequential_halving(candidates, seeds, objective.metrics, objective.of_episodes)
            best.run_on(seeds, objective.metrics)
            n_episodes = sum(len(each.episodes) for each in candidates)
            self.seconds_per_episode = (time.perf_counter() - started) / n_episodes
        chosen = next(each for each in named if each.name == best.name)
        return chosen, np.nan_to_num([objective.fitness(episode) for episode in best.episodes], nan=-np.inf)
