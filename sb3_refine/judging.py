"""Choose and test the best of any agents: checkpoints of a training run, or an agent from elsewhere."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from tqdm import tqdm

from sb3_refine.agents.agent import Agent, environment_of, save_agent, teacher_of
from sb3_refine.agents.averages import average
from sb3_refine.agents.candidates import NamedAgent, check_same_environment, load_candidates, without_copies
from sb3_refine.agents.from_model import agent_from_model
from sb3_refine.agents.tasks import write_tasks
from sb3_refine.agents.zoo import new_run_folder
from sb3_refine.errors import RefineError, check_count, check_seconds
from sb3_refine.evaluation.acceptance import ORIGINAL, UNCHECKED
from sb3_refine.evaluation.baseline import evaluate_baseline
from sb3_refine.evaluation.evaluation import Evaluation
from sb3_refine.evaluation.judge import AUTO, JudgeSettings, Verdict, judge_candidates
from sb3_refine.evaluation.selection import Candidate
from sb3_refine.evaluation.soup import greedy_soup, n_scores
from sb3_refine.evaluation.target import EvaluationTarget, open_targets
from sb3_refine.evaluators import Backend, backend_options
from sb3_refine.files import sha256
from sb3_refine.objectives import Objective, make_objective
from sb3_refine.reporting.record import read_record, record_of, write_record
from sb3_refine.reporting.report import report_on, write_report
from sb3_refine.rollouts.episode import Episode, Trajectory
from sb3_refine.search.result import Result
from sb3_refine.seeding import EpisodeSeeds
from sb3_refine.stopwatch import Stopwatch


@dataclass(frozen=True)
class Origin:
    """
    Where candidates come from, and what they have cost.

    :param method: as ``refinement.json`` has it
    :param settings: of that method
    :param n_episodes: run for them
    :param n_env_steps: of these episodes
    """

    method: str = "judge"
    settings: dict[str, Any] = field(default_factory=dict)
    n_episodes: int = 0
    n_env_steps: int = 0


@dataclass(frozen=True)
class Judgement:
    """
    The result of :class:`Judge`.

    :param name: of the candidate that was tested
    :param agents: the original, and that candidate
    :param result: the verdict and its figures
    :param objective: what was compared
    :param settings: every setting that the result depends on
    :param seeds: of the episodes
    :param method: where the candidates came from, as ``refinement.json`` has it
    :param open_targets: starts workers for agents
    """

    name: str
    agents: tuple[Agent, Agent]
    result: Result
    objective: Objective
    settings: dict[str, Any]
    seeds: dict[str, Any]
    method: str
    open_targets: Callable[[Sequence[Agent]], AbstractContextManager[list[EvaluationTarget]]]

    @property
    def agent(self) -> Agent:
        """The candidate if it passed the test or was not tested, else the original."""
        return self.agents[self.result.decision != ORIGINAL]

    def save(self, folder: str | Path = "refined-agents", run_folder: str | Path | None = None) -> Path:
        """
        Save :attr:`agent` in the Zoo's layout, with ``refinement.json`` beside it, and the original in ``state/``.

        :param folder: output folder; the agent goes to ``folder/ALGO/ENV_K``, K the next free number and ALGO its own
            algorithm
        :param run_folder: a folder made by :func:`~sb3_refine.agents.zoo.new_run_folder`, instead
        :return: the run's folder
        :raises RefineError: when the folder cannot be written
        """
        original, _ = self.agents
        run_folder = Path(run_folder or new_run_folder(folder, self.agent.algo, self.agent.env_name))
        save_agent(original, run_folder / "state")
        digest = sha256(save_agent(self.agent, run_folder))
        settings = {**self.settings, "algo": self.agent.algo, **teacher_of(original)}
        record = record_of(
            *(self.result, self.objective, settings, self.seeds, original.source, digest, self.method),
            tasks=original.recipe.tasks,
        )
        write_record(run_folder, record)
        write_tasks(run_folder, original)
        return run_folder

    def report(
        self, run_folder: str | Path, video: bool = False, phase_portrait: tuple[int, int] | None = None
    ) -> Path:
        """
        Write ``report.md`` and its plots, for which some episodes of both agents are run under noise.

        :param run_folder: where :meth:`save` has saved
        :param video: whether to record an episode of both, side by side
        :param phase_portrait: two observations, by index, to draw against each other; by default the two that move most
        :return: path of ``report.md``
        :raises RefineError: when nothing was saved there, there are no such observations, or no video can be made
        :raises EpisodeError: when an episode fails; the report is written without it
        """
        if self.result.candidate is None:
            return write_report(Path(run_folder), read_record(Path(run_folder)))
        with self.open_targets(self.agents) as (original, refined):
            return report_on(original, refined, self.result.candidate.seeds, Path(run_folder), video, phase_portrait)


class Judge:
    """
    Choose the best of some agents on validation seeds, and test it once against the original on held-out seeds, as
    after a search. Where the candidates come from does not matter.

    :param original: what is kept unless a candidate is better
    :param objective: what is compared, see :class:`~sb3_refine.refiner.Refiner`
    :param seed: the episodes that a refinement with this seed is judged on
    :param n_eval_episodes: see :class:`~sb3_refine.evaluation.judge.JudgeSettings`, as for the next three
    :param alpha: level of significance
    :param min_effect: the difference to resolve
    :param max_return_loss: share of the original's mean return that may be lost
    :param n_workers: episodes run at a time; None for the number of processors
    :param backend: who runs the episodes, see :class:`~sb3_refine.refiner.Refiner`
    :param accelerator: whether to use a faster, bit-identical ``step`` where there is one
    :param episode_timeout: seconds after which an episode counts as hanging
    :raises RefineError: when an argument is wrong
    """

    def __init__(
        self,
        original: Agent | BaseAlgorithm,
        objective: str | Objective | Callable[[Trajectory], float] = "return",
        seed: int = 0,
        n_eval_episodes: int | str = AUTO,
        alpha: float = 0.05,
        min_effect: float | None = None,
        max_return_loss: float = 0.05,
        n_workers: int | None = None,
        backend: Backend = "process",
        accelerator: bool = True,
        episode_timeout: float = 600.0,
    ):
        check_count("seed", seed, 0)
        check_seconds("episode_timeout", episode_timeout)
        backend_name, backend_kwargs = backend_options("backend", backend, n_workers)
        self.objective = make_objective(objective)
        called = objective if isinstance(objective, str) else self.objective.name
        self.settings = JudgeSettings(self.objective, called, n_eval_episodes, alpha, min_effect, max_return_loss)
        self.seed, self.seeds, self.stopwatch = seed, EpisodeSeeds(seed), Stopwatch()
        self.original = original if isinstance(original, Agent) else agent_from_model(original)
        self._workers: dict[str, Any] = {
            "backend": backend_name,
            "accelerator": accelerator,
            "objective": self.objective,
            "episode_timeout": episode_timeout,
            **backend_kwargs,
        }
        self.seconds_per_episode = 0.0
        """Of the original's episodes on all workers, once they were run."""
        self._baseline: list[Episode] = []
        self._n_tried = self._n_tried_steps = 0  # for a greedy soup

    @property
    def recorded(self) -> dict[str, Any]:
        """Settings that the verdict depends on."""
        names = ("n_eval_episodes", "alpha", "min_effect", "max_return_loss")
        return {
            "seed": self.seed,
            "objective": self.settings.name,
            **{
                name: value
                for name, value in environment_of(self.original).items()
                if name in ("end_at_success", "tasks")
            },
            **{name: getattr(self.settings, name) for name in names},
        }

    def open_targets(
        self, agents: Sequence[Agent], on_episode: Callable[[], object] = lambda: None
    ) -> AbstractContextManager[list[EvaluationTarget]]:
        """
        :param agents: any
        :param on_episode: called after each episode
        :return: the agents, fit to be evaluated, see :func:`~sb3_refine.evaluation.target.open_targets`
        """
        return open_targets(agents, on_episode=on_episode, **self._workers)

    def n_episodes(self, n_candidates: int, n_average: int = 0) -> int:
        """
        :param n_candidates: how many
        :param n_average: see :meth:`judge`
        :return: the most episodes that judging them takes, those of :meth:`evaluate_original` not counted
        """
        if not n_average:
            return self.settings.n_episodes(n_candidates, has_baseline=True)
        n_soup = n_scores(n_candidates) * self._n_soup_seeds
        return n_soup + self.settings.n_episodes(n_candidates + 2, has_baseline=True)

    @property
    def _n_soup_seeds(self) -> int:
        return max(1, self.settings.n_validation_episodes // 2)

    def evaluate_original(self) -> Evaluation:
        """
        Run the original on the validation seeds, before there are candidates.

        :return: the episodes, which :meth:`judge` does not run again
        """
        seeds = self.seeds.take("validation", self.settings.n_validation_episodes)
        with self.open_targets([self.original]) as (target,):
            started = time.perf_counter()
            original = Candidate("original", target, episodes=list(self._baseline))
            baseline = evaluate_baseline(original, seeds, self.objective, self.settings.name)
            if not self._baseline:
                self.seconds_per_episode = (time.perf_counter() - started) / len(seeds)
        self._baseline = original.episodes
        return baseline

    def judge(
        self,
        candidates: Sequence[NamedAgent],
        progress_bar: bool = False,
        origin: Origin | None = None,
        n_average: int = 0,
        is_time_limited: bool = False,
    ) -> Judgement:
        """
        :param candidates: at least one, for the environment of the original
        :param progress_bar: show a progress bar over all episodes
        :param origin: where the candidates come from; by default, from elsewhere
        :param n_average: add the average of this many candidates, the last ones, and a greedy soup of all, see
            :func:`~sb3_refine.evaluation.soup.greedy_soup`; 0 for neither
        :param is_time_limited: whether ``n_eval_episodes="auto"`` is its smallest number
        :return: the verdict, which can be saved
        :raises RefineError: when there is no candidate, or one is of another environment
        :raises EpisodeError: when an episode fails
        """
        for each in candidates:
            check_same_environment(self.original, each.agent, f"candidates: {each.name}")
        if not candidates:
            raise RefineError("candidates: there are none; name at least one agent")
        self._n_tried = self._n_tried_steps = 0
        named = without_copies(candidates, self.original)
        if n_average:
            named += self._averages(named, n_average)
        agents = [self.original, *(each.agent for each in named)]
        n_episodes = self.settings.n_episodes(len(named), has_baseline=bool(self._baseline))
        with (
            tqdm(total=n_episodes, unit="episode", dynamic_ncols=True, disable=not progress_bar) as progress,
            self.open_targets(agents, on_episode=progress.update) as targets,
        ):
            original = Candidate("original", targets[0], episodes=list(self._baseline))
            others = [Candidate(each.name, target) for each, target in zip(named, targets[1:], strict=True)]
            settings = self.settings.for_limited_time() if is_time_limited else self.settings
            verdict = judge_candidates(original, others, settings, self.seeds)
            progress.total = progress.n  # with "auto", or where seeds decide nothing, it is another number
        chosen = next(each for each in named if each.name == verdict.chosen.name)
        return self._judgement(chosen, named, _result_of(verdict), origin or Origin())

    def _averages(self, named: Sequence[NamedAgent], n_average: int) -> list[NamedAgent]:
        """Of several candidates: the average of the last ones, and a greedy soup, if it is more than one candidate."""
        if len(named) < 2:
            return []
        last = [each.agent for each in named[-n_average:]]
        seeds = self.seeds.take("validation", self._n_soup_seeds)

        def score(agents: Sequence[Agent]) -> list[float]:
            with self.open_targets(agents) as targets:
                runs = [target.run(seeds, self.objective.metrics) for target in targets]
            self._n_tried += sum(len(run.episodes) for run in runs)
            self._n_tried_steps += int(sum(sum(run.lengths) for run in runs))
            scores = [self.objective.of_episodes(run.episodes) for run in runs]
            return [-math.inf if math.isnan(value) else value for value in scores]

        self.evaluate_original()  # calibrates the objective
        found = [NamedAgent(f"average of the last {len(last)}", average(last)), greedy_soup(named, score)]
        return [each for each in found if each is not None]

    def unchecked(self, candidate: NamedAgent, reason: str, origin: Origin) -> Judgement:
        """
        :param candidate: what to save, although it is not tested
        :param reason: why it is not
        :param origin: where the candidate comes from
        :return: the judgement that says so
        """
        baseline = Evaluation((), tuple(self._baseline))
        result = Result(
            UNCHECKED, reason, len(self._baseline), int(sum(baseline.lengths)), n_invalid=0, wall_time_s=0.0,
            cpu_time_s=0.0, n_updates=0, n_updates_done=0,
        )  # fmt: skip
        return self._judgement(candidate, [candidate], result, origin)

    def _judgement(self, chosen: NamedAgent, named: Sequence[NamedAgent], result: Result, origin: Origin) -> Judgement:
        test_seeds = None if result.baseline is None else list(result.baseline.seeds)
        result = replace(
            result,
            rollouts=result.rollouts + origin.n_episodes + self._n_tried,
            env_steps=result.env_steps + origin.n_env_steps + self._n_tried_steps,
            wall_time_s=self.stopwatch.wall_time_s,
            cpu_time_s=self.stopwatch.cpu_time_s,
        )
        return Judgement(
            name=chosen.name,
            agents=(self.original, chosen.agent),
            result=result,
            objective=self.objective,
            settings={**_settings_of(self.original, named, self.settings, self.seed), **origin.settings},
            seeds={
                "seed": self.seed,
                "validation": self.seeds.take("validation", self.settings.n_validation_episodes),
                "test": test_seeds,
            },
            method=origin.method,
            open_targets=self.open_targets,
        )


def judge(
    original: Agent | BaseAlgorithm,
    candidates: Sequence[Agent | BaseAlgorithm | NamedAgent | str | Path],
    progress_bar: bool = False,
    n_average: int = 0,
    **kwargs: Any,
) -> Judgement:
    """
    Judge agents in one call.

    >>> from stable_baselines3 import DQN
    >>> one, other = (DQN("MlpPolicy", "CartPole-v1", seed=seed, device="cpu") for seed in (0, 1))
    >>> judgement = judge(one, [other], n_eval_episodes=10, backend="serial")
    >>> judgement.name
    'candidate 1'
    >>> judgement.agent.model in (one, other)
    True

    :param original: what is kept unless a candidate is better
    :param candidates: agents, models with their environment, or paths, see
        :func:`~sb3_refine.agents.candidates.load_candidates`
    :param progress_bar: show a progress bar over all episodes
    :param n_average: see :meth:`Judge.judge`
    :param kwargs: any other argument of :class:`Judge`
    :return: the verdict, which can be saved
    :raises RefineError: when an argument is wrong, or a candidate is of another environment
    :raises EpisodeError: when an episode fails
    """
    judge = Judge(original, **kwargs)
    return judge.judge(_named(candidates, judge.original), progress_bar, n_average=n_average)


def _named(candidates: Sequence[Agent | BaseAlgorithm | NamedAgent | str | Path], original: Agent) -> list[NamedAgent]:
    """Agents with their names; of paths, all agents that are there."""
    found: list[NamedAgent] = []
    for number, candidate in enumerate(candidates, start=1):
        if isinstance(candidate, (str, Path)):
            found += load_candidates([candidate], original, tasks=original.recipe.tasks)
        elif isinstance(candidate, NamedAgent):
            found.append(candidate)
        else:
            agent = candidate if isinstance(candidate, Agent) else agent_from_model(candidate)
            found.append(NamedAgent(f"candidate {number}", agent))
    return found


def _result_of(verdict: Verdict) -> Result:
    tested = [verdict.baseline, *([verdict.candidate] if verdict.candidate else [])]
    return Result(
        decision=verdict.decision.decision,
        reason=verdict.decision.reason,
        rollouts=sum(one["n_episodes"] for one in verdict.candidates) + sum(len(each.seeds) for each in tested),
        env_steps=sum(one["env_steps"] for one in verdict.candidates) + sum(int(sum(e.lengths)) for e in tested),
        n_invalid=0,
        wall_time_s=0.0,
        cpu_time_s=0.0,
        n_updates=0,
        n_updates_done=0,
        baseline=verdict.baseline,
        candidate=verdict.candidate,
        paired_difference=verdict.paired_difference,
        objective_difference=verdict.decision.difference,
        candidates=verdict.candidates,
        processors=tuple(sorted(verdict.chosen.target.processors)),
        candidate_name=verdict.chosen.name,
    )


def _settings_of(original: Agent, named: Sequence[NamedAgent], settings: JudgeSettings, seed: int) -> dict[str, Any]:
    return {
        **environment_of(original),
        "seed": seed,
        "objective": settings.name,
        "n_eval_episodes": settings.n_eval_episodes,
        "alpha": settings.alpha,
        "min_effect": settings.min_effect,
        "max_return_loss": settings.max_return_loss,
        "candidates": {each.name: each.agent.source.get("sha256") for each in named},
        "n_updates": 0,
        "n_updates_done": 0,
        "gym_packages": list(original.recipe.gym_packages),
    }
