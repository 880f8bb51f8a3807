"""The result of a refinement."""

from dataclasses import dataclass, field
from typing import Any

from sb3_refine.evaluation.acceptance import Decision
from sb3_refine.evaluation.evaluation import Evaluation, PairedDifference
from sb3_refine.evaluation.judge import Verdict
from sb3_refine.search.state import SearchState, Update


@dataclass(frozen=True)
class Result:
    """
    The result of a refinement.

    :param decision: ``"refined"``, ``"original"`` or ``"unchecked"``
    :param reason: why, in plain words
    :param baseline: the original on the test seeds; None where it was not evaluated
    :param refined: the chosen iterate on the same seeds; None where it was not evaluated
    :param paired_difference: return of refined minus that of baseline; None where either is missing
    :param objective_difference: the same of what is maximised
    :param candidates: what was chosen from on validation seeds: the original, then the iterates
    :param history: the result of each update
    :param rollouts: episodes run, validation and test included
    :param env_steps: environment steps of those episodes
    :param n_invalid: candidates that were dropped for a NaN or an infinity
    :param wall_time_s: seconds from the start of ``learn()`` to its end
    :param n_updates: updates asked for
    :param n_updates_done: updates done
    """

    decision: str
    reason: str
    rollouts: int
    env_steps: int
    n_invalid: int
    wall_time_s: float
    n_updates: int
    n_updates_done: int
    baseline: Evaluation | None = None
    refined: Evaluation | None = None
    paired_difference: PairedDifference | None = None
    objective_difference: PairedDifference | None = None
    candidates: tuple[dict[str, Any], ...] = ()
    history: tuple[Update, ...] = field(default=(), repr=False)


def result_of(search: SearchState, decision: Decision, verdict: Verdict | None = None) -> Result:
    """
    :param search: a search that has ended
    :param decision: about its result
    :param verdict: of the test, where there was one
    :return: both in one
    """
    return Result(
        decision=decision.decision,
        reason=decision.reason,
        rollouts=search.n_episodes,
        env_steps=search.n_env_steps,
        n_invalid=search.n_invalid,
        wall_time_s=search.elapsed,
        n_updates=search.optimizer.n_updates,
        n_updates_done=search.n_updates,
        baseline=verdict.baseline if verdict else None,
        refined=verdict.refined if verdict else None,
        paired_difference=verdict.paired_difference if verdict else None,
        objective_difference=decision.difference,
        candidates=verdict.candidates if verdict else (),
        history=tuple(search.history),
    )
