"""The result of a refinement."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from sb3_refine.evaluation.acceptance import ORIGINAL, Decision, unchecked
from sb3_refine.evaluation.evaluation import Evaluation, PairedDifference
from sb3_refine.evaluation.judge import JudgeSettings, Verdict, judge_candidates
from sb3_refine.evaluation.selection import Candidate
from sb3_refine.evaluation.target import EvaluationTarget
from sb3_refine.evaluators import Evaluator
from sb3_refine.search.state import SearchState, Update
from sb3_refine.search.summary import summary_text
from sb3_refine.seeding import EpisodeSeeds

FEW_EPISODES = 30
"""Fewer held-out episodes show large differences only."""


@dataclass(frozen=True)
class Result:
    """
    The result of a refinement.

    :param decision: ``"refined"``, ``"original"`` or ``"unchecked"``
    :param reason: why, in plain words
    :param baseline: the original on the test seeds; None where it was not evaluated
    :param candidate: the chosen iterate on the same seeds; None where it was not evaluated
    :param paired_difference: return of the candidate minus that of the original; None where either is missing
    :param objective_difference: the same of what is maximised
    :param candidates: what was chosen from on validation seeds: the original, then the iterates
    :param learning_curve: the result of each update
    :param candidate_name: what tables call the candidate
    :param processors: models of the processors that ran the episodes
    :param rollouts: episodes run, validation and test included
    :param env_steps: environment steps of those episodes
    :param n_invalid: episodes of candidates that were dropped for a NaN or an infinity
    :param wall_time_s: seconds from the start of ``learn()`` to its end
    :param cpu_time_s: seconds of CPU time in that time, of all workers, as far as the backend counts them
    :param n_updates: updates asked for
    :param n_updates_done: updates done
    """

    decision: str
    reason: str
    rollouts: int
    env_steps: int
    n_invalid: int
    wall_time_s: float
    cpu_time_s: float
    n_updates: int
    n_updates_done: int
    baseline: Evaluation | None = None
    candidate: Evaluation | None = None
    paired_difference: PairedDifference | None = None
    objective_difference: PairedDifference | None = None
    candidates: tuple[dict[str, Any], ...] = ()
    learning_curve: tuple[Update, ...] = field(default=(), repr=False)
    processors: tuple[str, ...] = ()
    candidate_name: str = "after the search"

    @property
    def saved(self) -> Evaluation | None:
        """The agent that is kept, on the test seeds: candidate or original; None where it was not evaluated."""
        return self.baseline if self.decision == ORIGINAL else self.candidate

    def to_dataframe(self) -> pd.DataFrame:
        """
        :return: a row for each test seed, with the columns ``seed``, ``original_return``, ``original_length``,
            ``original_failed``, and the same of the ``candidate``; empty without a test
        """
        columns: dict[str, Any] = {"seed": self.baseline.seeds if self.baseline else ()}
        for name, evaluation in (("original", self.baseline), ("candidate", self.candidate)):
            if evaluation is not None:
                columns[f"{name}_return"], columns[f"{name}_length"] = evaluation.returns, evaluation.lengths
                columns[f"{name}_failed"] = [episode.failed for episode in evaluation.episodes]
        return pd.DataFrame(columns)

    def __str__(self) -> str:
        return summary_text(self)


def tested_result(
    search: SearchState, original: Candidate, evaluator: Evaluator, settings: JudgeSettings, seeds: EpisodeSeeds
) -> tuple[Result, np.ndarray]:
    """
    Judge the iterates of a search.

    :param search: that has ended
    :param original: where the search started, fit to be evaluated
    :param evaluator: the workers
    :param settings: how to judge
    :param seeds: of the run
    :return: the result, and the parameters of the iterate that was tested
    """
    iterates = search.iterates if search.n_updates_done else []
    candidates = [Candidate(one.name, EvaluationTarget(evaluator, one.theta), one.update) for one in iterates]
    verdict = judge_candidates(original, candidates, settings, seeds)
    search.count(evaluator)
    return _result_of(
        search, with_advice(verdict.decision, len(verdict.baseline.seeds)), verdict
    ), verdict.chosen.target.theta


def untested_result(search: SearchState) -> Result:
    """
    :param search: that has ended
    :return: the result where there is no test
    """
    reason = "the last iterate, not tested on held-out seeds (acceptance was switched off)"
    return _result_of(search, unchecked(reason))


def interrupted_result(search: SearchState) -> Result | None:
    """
    :param search: that was interrupted
    :return: the result, for the best iterate so far; None before the first update
    """
    if not search.n_updates_done:
        return None
    update, best = search.best
    after = f"interrupted after {search.n_updates_done} of {search.optimizer.n_updates} updates"
    if np.array_equal(best, search.start_theta):
        return _result_of(search, Decision(ORIGINAL, f"{after}: nothing better yet, this is the original"))
    which = f"this is the best iterate so far, that after update {update}"
    return _result_of(search, unchecked(f"{after}: {which}, not tested on held-out seeds"))


def _result_of(search: SearchState, decision: Decision, verdict: Verdict | None = None) -> Result:
    return Result(
        decision=decision.decision,
        reason=decision.reason,
        rollouts=search.n_episodes,
        env_steps=search.n_env_steps,
        n_invalid=search.n_invalid,
        wall_time_s=search.stopwatch.wall_time_s,
        cpu_time_s=search.stopwatch.cpu_time_s,
        n_updates=search.optimizer.n_updates,
        n_updates_done=search.n_updates_done,
        baseline=verdict.baseline if verdict else None,
        candidate=verdict.candidate if verdict else None,
        paired_difference=verdict.paired_difference if verdict else None,
        objective_difference=decision.difference,
        candidates=verdict.candidates if verdict else (),
        learning_curve=tuple(search.history),
        processors=tuple(sorted(verdict.chosen.target.processors)) if verdict else (),
    )


def with_advice(decision: Decision, n_episodes: int) -> Decision:
    """
    :param decision: about the result of a search
    :param n_episodes: of the test
    :return: the same; where the test found no better agent, with what the user may try next
    """
    difference = decision.difference
    if decision.decision != ORIGINAL or difference is None or difference.ci_low > 0:
        return decision
    return replace(decision, reason=f"{decision.reason}. {_advice(difference, n_episodes)}")


def _advice(difference: PairedDifference, n_episodes: int) -> str:
    if difference.ci_high < 0 or difference.mean < 0:
        return "Try smaller steps and perturbations, or more updates"
    if difference.ci_low == difference.ci_high == 0:
        return "The agent may be at its best already; if not, try larger perturbations"
    if n_episodes < FEW_EPISODES:
        return (
            f"{n_episodes} held-out episodes are too few for this difference: try n_eval_episodes=100 and another seed"
        )
    if difference.is_mostly_better:
        return f"Try n_eval_episodes={3 * n_episodes} and another seed, or more updates"
    return "Try more held-out episodes (n_eval_episodes), more updates, or another seed"
