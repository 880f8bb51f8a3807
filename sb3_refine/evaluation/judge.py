"""Is one of some candidates better than the original? Choose on validation seeds, then test once on other seeds."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sb3_refine.errors import RefineError, check_count, did_you_mean
from sb3_refine.evaluation.acceptance import ORIGINAL, Decision, decide, loses_too_much
from sb3_refine.evaluation.baseline import evaluate_baseline, is_number
from sb3_refine.evaluation.evaluation import Evaluation, PairedDifference, paired_difference
from sb3_refine.evaluation.selection import Candidate, episodes_to_resolve, n_selection_episodes, sequential_halving
from sb3_refine.objectives import Objective
from sb3_refine.objectives.episode_return import Return
from sb3_refine.rollouts.episode import Episode
from sb3_refine.rollouts.metrics import SMOOTHNESS
from sb3_refine.seeding import EpisodeSeeds

logger = logging.getLogger(__name__)

AUTO = "auto"
AUTO_EPISODES = (100, 400)
"""Fewest and most test episodes that ``n_eval_episodes="auto"`` settles on."""

MIN_EFFECT_EPISODES = (50, 2000)
"""The same with a ``min_effect``."""

_CAUTION = 3  # times as many test episodes as validation seeds suggest: there, the gain is that of the best of several
# candidates, and the worst episodes are seldom among 50

_VALIDATION_EPISODES = 50  # where the number of test episodes is not known beforehand


@dataclass(frozen=True)
class JudgeSettings:
    """
    How candidates are judged.

    :param objective: what is maximised
    :param objective_name: what reasons call the objective; by default its own name
    :param n_eval_episodes: test episodes of the original and of the chosen candidate; ``"auto"`` for three times as
        many as it takes to show a gain as large as that on the validation seeds, within :data:`AUTO_EPISODES`. Twice
        as many where a seed does not decide an episode, so that episodes cannot be paired
    :param alpha: level of significance
    :param min_effect: the difference to resolve instead, in units of the objective, with ``"auto"``, within
        :data:`MIN_EFFECT_EPISODES`
    :param max_return_loss: share of the original's mean return that may be lost where the objective is not the return;
        from 0 to 1, or infinity for no limit
    :param selection: whether to choose among the candidates on validation seeds; without, the first one is tested
    :param is_time_limited: whether ``"auto"`` means 100 at most, for which time can be set aside
    :raises RefineError: when a setting is out of range
    """

    objective: Objective = field(default_factory=Return)
    objective_name: str = ""
    n_eval_episodes: int | str = AUTO
    alpha: float = 0.05
    min_effect: float | None = None
    max_return_loss: float = 0.05
    selection: bool = True
    is_time_limited: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.n_eval_episodes, str):
            check_count("n_eval_episodes", self.n_eval_episodes, 2, at_most=10**6)
        elif self.n_eval_episodes != AUTO:
            meant = did_you_mean(self.n_eval_episodes, (AUTO,))
            raise RefineError(f"n_eval_episodes: unknown {self.n_eval_episodes!r}{meant}; choose a number or {AUTO}")
        if not 0 < self.alpha < 1:
            raise RefineError(f"alpha: expected a number between 0 and 1, got {self.alpha}")
        if self.min_effect is not None and not self.min_effect > 0:
            raise RefineError(f"min_effect: expected a positive number, got {self.min_effect}")
        if self.min_effect is not None and self.n_eval_episodes != AUTO:
            raise RefineError("min_effect: only used with n_eval_episodes='auto'; ask for that, or leave it out")
        loss = self.max_return_loss
        if not is_number(loss) or not (0 <= loss <= 1 or loss == np.inf):
            raise RefineError(f"max_return_loss: expected a share from 0 to 1, or inf for any, got {loss!r}")

    @property
    def name(self) -> str:
        """What reasons call the objective."""
        return self.objective_name or ("return" if isinstance(self.objective, Return) else self.objective.name)

    @property
    def n_validation_episodes(self) -> int:
        """Half as many as there are test episodes."""
        n = self.n_eval_episodes
        return max(2, int(n) // 2) if not isinstance(n, str) else _VALIDATION_EPISODES

    @property
    def return_loss_limit(self) -> float | None:
        """``max_return_loss``; None for no limit, also where the return is what is maximised."""
        is_free = isinstance(self.objective, Return) or self.max_return_loss == np.inf
        return None if is_free else self.max_return_loss

    @property
    def test_range(self) -> tuple[int, int]:
        """Fewest and most test episodes, where episodes are paired."""
        n = self.n_eval_episodes
        if not isinstance(n, str):
            return int(n), int(n)
        least, most = AUTO_EPISODES if self.min_effect is None else MIN_EFFECT_EPISODES
        return least, AUTO_EPISODES[0] if self.is_time_limited else most

    def for_limited_time(self) -> "JudgeSettings":
        """:return: the same, for a run with a time limit"""
        return replace(self, is_time_limited=True)

    def n_episodes(self, n_candidates: int, has_baseline: bool = False, paired: bool = True) -> int:
        """
        :param n_candidates: at least one
        :param has_baseline: whether the original was already run on validation seeds
        :param paired: whether the same seed means the same episode
        :return: validation and test episodes of :func:`judge_candidates` at most; with ``"auto"``, a guess
        """
        n = self.n_eval_episodes
        n_test = AUTO_EPISODES[0] if isinstance(n, str) else int(n)
        n_validation = 0 if has_baseline else self.n_validation_episodes
        if self.selection:
            n_validation += n_selection_episodes(n_candidates, self.n_validation_episodes)
        return n_validation + 2 * n_test * _factor(paired)


@dataclass(frozen=True)
class Verdict:
    """
    The result of :func:`judge_candidates`.

    :param decision: refined or original
    :param baseline: the original on the test seeds
    :param candidate: the chosen candidate on the same seeds; None where some of its episodes were invalid
    :param paired_difference: of their returns; None where some episodes cannot be judged
    :param chosen: the candidate that was tested; the original where there was none
    :param candidates: the original and the candidates, on validation seeds
    """

    decision: Decision
    baseline: Evaluation
    candidate: Evaluation | None
    paired_difference: PairedDifference | None
    chosen: Candidate
    candidates: tuple[dict[str, Any], ...]


def judge_candidates(
    original: Candidate, candidates: Sequence[Candidate], settings: JudgeSettings, seeds: EpisodeSeeds
) -> Verdict:
    """
    Choose one of some candidates on validation seeds, and test it once against the original on seeds that nothing was
    chosen on. Where candidates come from does not matter: iterates of a search, checkpoints of a training run, another
    agent for the same environment.

    :param original: what to keep unless a candidate is better
    :param candidates: any number
    :param settings: how to judge
    :param seeds: the streams ``"validation"`` and ``"test"`` are used
    :return: the verdict; at level ``alpha``, see :func:`~sb3_refine.evaluation.acceptance.decide`
    :raises EpisodeError: when an episode fails
    """
    if not original.episodes:
        validation_seeds = seeds.take("validation", settings.n_validation_episodes)
        evaluate_baseline(original, validation_seeds, settings.objective, settings.name)
    paired = all(candidate.target.is_seeded for candidate in (original, *candidates))
    candidates = candidates if settings.selection else candidates[:1]
    chosen = _choose(original, candidates, settings, seeds)
    test_seeds = seeds.take("test", _n_test_episodes(original, chosen, paired, settings, seeds))
    metrics = (*settings.objective.metrics, *SMOOTHNESS)
    baseline = tested = original.target.run(test_seeds, metrics)
    if not _is_same(original, chosen):
        tested = chosen.target.run(test_seeds, metrics)
    unjudged = _unjudged(baseline, tested, settings)
    if not candidates:
        unjudged = unjudged or Decision(ORIGINAL, "nothing was searched: there is no candidate but the original")
    return Verdict(
        decision=unjudged or _decide(baseline, tested, paired, settings),
        baseline=baseline,
        candidate=None if tested.n_invalid else tested,
        paired_difference=None if unjudged else paired_difference(baseline, tested, settings.alpha, paired),
        chosen=chosen,
        candidates=tuple(_figures(which, which is chosen, settings) for which in (original, *candidates)),
    )


def _choose(
    original: Candidate, candidates: Sequence[Candidate], settings: JudgeSettings, seeds: EpisodeSeeds
) -> Candidate:
    """The best on validation seeds; one that would be vetoed for its return only if all others would be, too."""
    if not candidates:
        return original

    def keeps_the_return(episodes: Sequence[Episode]) -> bool:
        same_seeds = original.episodes[: len(episodes)]
        before, after = (np.mean([e.episode_return for e in which]) for which in (same_seeds, episodes))
        return not loses_too_much(float(before), float(after), settings.return_loss_limit)

    validation_seeds = seeds.take("validation", settings.n_validation_episodes)
    objective = settings.objective
    return sequential_halving(candidates, validation_seeds, objective.metrics, objective.of_episodes, keeps_the_return)


def _is_same(one: Candidate, other: Candidate) -> bool:
    """Whether both are the same policy in the same environment."""
    same_task = one.target.task is other.target.task
    return same_task and np.array_equal(one.target.theta, other.target.theta)


def _factor(paired: bool) -> int:
    """Unpaired, it takes more episodes to show a difference."""
    return 1 if paired else 2


def _n_test_episodes(
    original: Candidate, chosen: Candidate, paired: bool, settings: JudgeSettings, seeds: EpisodeSeeds
) -> int:
    """
    As many as asked for, or as it takes to resolve a difference; unpaired, twice as many. The number does not depend on
    any test episode, so that there is one test at level ``alpha``.
    """
    least, most = (n * _factor(paired) for n in settings.test_range)
    if least == most:
        return least
    objective, effect, caution = settings.objective, settings.min_effect, 1 if settings.min_effect else _CAUTION
    if _is_same(original, chosen):
        return least
    chosen.run_on(seeds.take("validation", settings.n_validation_episodes), objective.metrics)
    before, after = (np.array([objective.fitness(e) for e in which.episodes]) for which in (original, chosen))
    if effect is None:
        effect = float(np.nanmean(after - before)) if np.isfinite(after - before).any() else 0.0
    if not effect > 0:
        return least
    wanted = episodes_to_resolve(before, after, effect, settings.alpha)
    n_episodes = min(max(caution * wanted, least), most)
    logger.info(
        "%d held-out episodes: to resolve a difference of %.3g takes about %d; at least %d and at most %d are run",
        *(n_episodes, effect, wanted, least, most),
    )
    return n_episodes


def _unjudged(baseline: Evaluation, refined: Evaluation, settings: JudgeSettings) -> Decision | None:
    """The decision where some episodes cannot be judged."""
    for whose, evaluation in (("the original's", baseline), ("its", refined)):
        held_out = f"of {whose} {len(evaluation.seeds)} held-out episodes"
        if evaluation.n_invalid:
            return Decision(ORIGINAL, f"{evaluation.n_invalid} {held_out} had NaN or inf; the original is kept")
        n_without = np.isnan([settings.objective.fitness(episode) for episode in evaluation.episodes]).sum()
        if n_without:
            reason = f"{settings.name} gave NaN or inf for {n_without} {held_out}; the original is kept"
            return Decision(ORIGINAL, reason)
    return None


def _decide(baseline: Evaluation, refined: Evaluation, paired: bool, settings: JudgeSettings) -> Decision:
    objective = settings.objective
    name = settings.name + objective.verdict_note
    return decide(baseline, refined, settings.alpha, paired, objective.fitness, settings.return_loss_limit, name)


def _figures(candidate: Candidate, is_chosen: bool, settings: JudgeSettings) -> dict[str, Any]:
    """The result on validation seeds; without a choice, a candidate was not run on any."""
    returns = [episode.episode_return for episode in candidate.episodes]
    return {
        "name": candidate.name,
        "update": candidate.update,
        "n_episodes": len(returns),
        "env_steps": sum(episode.n_env_steps for episode in candidate.episodes),
        "mean_return": float(np.mean(returns)) if returns else None,
        "mean_fitness": settings.objective.of_episodes(candidate.episodes) if returns else None,
        "chosen": is_chosen,
    }
