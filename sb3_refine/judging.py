"""Choose and test the best of any agents: checkpoints of a training run, or an agent from elsewhere."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from tqdm import tqdm

from sb3_refine.agents.agent import Agent, save_agent
from sb3_refine.agents.candidates import NamedAgent, check_same_environment, load_candidates
from sb3_refine.agents.from_model import agent_from_model
from sb3_refine.agents.zoo import new_run_folder
from sb3_refine.errors import RefineError, check_count, check_seconds
from sb3_refine.evaluation.acceptance import REFINED
from sb3_refine.evaluation.judge import JudgeSettings, Verdict, judge_candidates
from sb3_refine.evaluation.robustness import measure_robustness
from sb3_refine.evaluation.selection import Candidate
from sb3_refine.evaluation.target import AgentTarget, Target, rollout_task
from sb3_refine.evaluators import EVALUATORS, Evaluator, RolloutTask, n_processors
from sb3_refine.files import sha256
from sb3_refine.objectives import Objective, make_objective
from sb3_refine.parts import check_options, parse_part
from sb3_refine.policies.parameters import PolicyParameters
from sb3_refine.reporting.record import read_record, record_of, write_record
from sb3_refine.reporting.report import write_report
from sb3_refine.rollouts.episode import Trajectory
from sb3_refine.search.result import Result
from sb3_refine.seeding import EpisodeSeeds


@dataclass(frozen=True)
class Judgement:
    """
    The result of :func:`judge`.

    :param name: of the candidate that was tested
    :param agents: the original, and that candidate
    :param targets: of both
    :param result: the verdict and its figures
    :param objective: what was compared
    :param settings: every setting that the result depends on
    :param seeds: of the episodes
    """

    name: str
    agents: tuple[Agent, Agent]
    targets: tuple[Target, Target]
    result: Result
    objective: Objective
    settings: dict[str, Any]
    seeds: dict[str, Any]

    @property
    def agent(self) -> Agent:
        """The candidate if it passed the test, else the original."""
        return self.agents[self.result.decision == REFINED]

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
        settings = {**self.settings, "algo": self.agent.algo}
        record = record_of(self.result, self.objective, settings, self.seeds, original.source, digest, "judge")
        write_record(run_folder, record)
        return run_folder

    def report(self, run_folder: str | Path) -> Path:
        """
        Write ``report.md`` and its plots, for which some episodes of both agents are run under noise.

        :param run_folder: where :meth:`save` has saved
        :return: path of ``report.md``
        :raises EpisodeError: when an episode fails; the report is written without it
        """
        run_folder = Path(run_folder)
        record = read_record(run_folder)
        try:
            if self.result.refined is not None:
                robustness = measure_robustness(*self.targets, self.result.refined.seeds)
                record = replace(record, robustness=robustness)
                write_record(run_folder, record)
        finally:
            report = write_report(run_folder, record)
        return report


def judge(
    original: Agent | BaseAlgorithm,
    candidates: Sequence[Agent | BaseAlgorithm | NamedAgent | str | Path],
    objective: str | Objective | Callable[[Trajectory], float] = "return",
    seed: int = 0,
    n_eval_episodes: int | str = 100,
    alpha: float = 0.05,
    min_effect: float | None = None,
    max_return_loss: float = 0.05,
    n_workers: int | None = None,
    backend: str = "process",
    accelerator: bool = True,
    episode_timeout: float = 600.0,
    progress_bar: bool = False,
) -> Judgement:
    """
    Choose the best of some agents on validation seeds, and test it once against the original on held-out seeds, as
    after a search. Where the candidates come from does not matter.

    :param original: what is kept unless a candidate is better
    :param candidates: agents, models with their environment, or paths, see
        :func:`~sb3_refine.agents.candidates.load_candidates`
    :param objective: what is compared, see :class:`~sb3_refine.refiner.Refiner`
    :param seed: the episodes that a refinement with this seed is judged on
    :param n_eval_episodes: see :class:`~sb3_refine.evaluation.judge.JudgeSettings`, as for the next three
    :param alpha: level of significance
    :param min_effect: the difference to resolve
    :param max_return_loss: share of the original's mean return that may be lost
    :param n_workers: episodes run at a time; None for the number of processors
    :param backend: who runs the episodes, see :data:`~sb3_refine.evaluators.EVALUATORS`
    :param accelerator: whether to use a faster, bit-identical ``step`` where there is one
    :param episode_timeout: seconds after which an episode counts as hanging
    :param progress_bar: show a progress bar over all episodes
    :return: the verdict, which can be saved
    :raises RefineError: when an argument is wrong, or a candidate is of another environment
    :raises EpisodeError: when an episode fails
    """
    check_count("seed", seed, 0)
    open_evaluator = _evaluator_maker(backend, n_workers, episode_timeout)
    what = make_objective(objective)
    called = objective if isinstance(objective, str) else what.name
    settings = JudgeSettings(what, called, n_eval_episodes, alpha, min_effect, max_return_loss)
    started, seeds = time.perf_counter(), EpisodeSeeds(seed)
    before = original if isinstance(original, Agent) else agent_from_model(original)
    named = _named(candidates, before)
    n_episodes = settings.n_episodes(len(named))
    with tqdm(total=n_episodes, unit="episode", dynamic_ncols=True, disable=not progress_bar) as progress:

        def candidate_of(each: NamedAgent) -> Candidate:
            parameters = PolicyParameters(each.agent.model.policy, "actor")
            task = rollout_task(each.agent, parameters, accelerator, what, episode_timeout)
            target = AgentTarget(task, parameters.get_theta(), partial(open_evaluator, progress.update))
            return Candidate(each.name, target)

        first, others = candidate_of(NamedAgent("original", before)), list(map(candidate_of, named))
        verdict = judge_candidates(first, others, settings, seeds)
        progress.total = progress.n  # with "auto", or where seeds decide nothing, it is another number
    chosen = next(i for i, candidate in enumerate(others) if candidate is verdict.chosen)
    return Judgement(
        name=named[chosen].name,
        agents=(before, named[chosen].agent),
        targets=(first.target, others[chosen].target),
        result=_result_of(verdict, time.perf_counter() - started),
        objective=what,
        settings=_settings_of(before, named, settings, seed),
        seeds={
            "seed": seed,
            "validation": seeds.take("validation", settings.n_validation_episodes),
            "test": list(verdict.baseline.seeds),
        },
    )


def _named(candidates: Sequence[Agent | BaseAlgorithm | NamedAgent | str | Path], original: Agent) -> list[NamedAgent]:
    """Agents with their names; of paths, all agents that are there."""
    found: list[NamedAgent] = []
    for number, candidate in enumerate(candidates, start=1):
        if isinstance(candidate, (str, Path)):
            found += load_candidates([candidate], original)
        elif isinstance(candidate, NamedAgent):
            found.append(candidate)
        else:
            agent = candidate if isinstance(candidate, Agent) else agent_from_model(candidate)
            found.append(NamedAgent(f"candidate {number}", agent))
    for each in found:
        check_same_environment(original, each.agent, each.name)
    if not found:
        raise RefineError("candidates: there are none; name at least one agent")
    return found


def _evaluator_maker(
    backend: str, n_workers: int | None, episode_timeout: float
) -> Callable[[Callable[[], object], RolloutTask], Evaluator]:
    """What makes workers for a task, which call a function after each episode; the arguments are checked here."""
    check_count("n_workers", 1 if n_workers is None else n_workers, 1)
    check_seconds("episode_timeout", episode_timeout)
    name, options = parse_part("backend", backend, EVALUATORS)
    check_options("backend", name, options, EVALUATORS[name].options())

    def make(on_episode: Callable[[], object], task: RolloutTask) -> Evaluator:
        evaluator = EVALUATORS[name](task, n_workers or n_processors(), episode_timeout, **options)
        evaluator.on_episode = on_episode
        return evaluator

    return make


def _result_of(verdict: Verdict, wall_time_s: float) -> Result:
    tested = [verdict.baseline, *([verdict.refined] if verdict.refined else [])]
    return Result(
        decision=verdict.decision.decision,
        reason=verdict.decision.reason,
        rollouts=sum(one["n_episodes"] for one in verdict.candidates) + sum(len(each.seeds) for each in tested),
        env_steps=sum(one["env_steps"] for one in verdict.candidates) + sum(int(sum(e.lengths)) for e in tested),
        n_invalid=0,
        wall_time_s=wall_time_s,
        n_updates=0,
        n_updates_done=0,
        baseline=verdict.baseline,
        refined=verdict.refined,
        paired_difference=verdict.paired_difference,
        objective_difference=verdict.decision.difference,
        candidates=verdict.candidates,
    )


def _settings_of(original: Agent, named: Sequence[NamedAgent], settings: JudgeSettings, seed: int) -> dict[str, Any]:
    recipe = original.recipe
    return {
        "algo": original.algo,
        "env": recipe.env_id or original.env_name,
        "env_from_callable": recipe.env_id is None,
        "env_kwargs": recipe.env_kwargs,
        "wrappers": [list(wrapper) for wrapper in recipe.wrappers],
        "end_at_success": recipe.end_at_success,
        "seed": seed,
        "objective": settings.name,
        "n_eval_episodes": settings.n_eval_episodes,
        "alpha": settings.alpha,
        "min_effect": settings.min_effect,
        "max_return_loss": settings.max_return_loss,
        "candidates": {each.name: each.agent.source.get("sha256") for each in named},
        "n_updates": 0,
        "n_updates_done": 0,
        "gym_packages": list(recipe.gym_packages),
    }
