"""What a search found, put to the choice on validation seeds, and to the test on seeds that nothing was chosen on."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sb3_refine.evaluation.acceptance import ORIGINAL, Decision, decide, loses_too_much
from sb3_refine.evaluation.evaluation import Evaluation, PairedDifference, paired_difference
from sb3_refine.evaluation.selection import Iterate, episodes_to_resolve, sequential_halving
from sb3_refine.objectives import Objective
from sb3_refine.objectives.episode_return import Return
from sb3_refine.rollouts.episode import Episode
from sb3_refine.rollouts.metrics import SMOOTHNESS
from sb3_refine.search.state import SearchState
from sb3_refine.seeding import EpisodeSeeds

logger = logging.getLogger(__name__)

AUTO = "auto"
AUTO_EPISODES = (50, 2000)
"""Fewest and most test episodes that ``n_eval_episodes="auto"`` settles on."""

Run = Callable[..., list[Episode]]
"""Runs parameters on seeds: ``run(theta, seeds, measures)``."""

_VALIDATION_EPISODES = 50  # where the number of test episodes is not known beforehand


@dataclass(frozen=True)
class Verdict:
    """
    What came of the held-out seeds.

    :param decision: refined or original
    :param baseline: the original on the test seeds
    :param refined: the chosen iterate on the same seeds; None where some of its episodes were invalid
    :param paired_difference: of their returns; None where some episodes cannot be judged
    :param chosen: the iterate
    :param candidates: the original and what was chosen from, on validation seeds
    """

    decision: Decision
    baseline: Evaluation
    refined: Evaluation | None
    paired_difference: PairedDifference | None
    chosen: Iterate
    candidates: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class HeldOut:
    """
    The held-out part of a run: the arguments are those of :class:`~sb3_refine.refiner.Refiner`.

    :param seeds: all episode seeds of the run
    :param objective: what is maximised
    :param objective_name: what to call it
    :param n_eval_episodes: test episodes, or ``"auto"``
    :param alpha: level of significance
    :param min_effect: a difference worth knowing of, for ``"auto"``
    :param max_return_loss: veto, where the objective is not the return
    :param selection: whether there is a choice
    """

    seeds: EpisodeSeeds
    objective: Objective
    objective_name: str
    n_eval_episodes: int | str
    alpha: float
    min_effect: float | None
    max_return_loss: float
    selection: bool

    @property
    def validation_seeds(self) -> list[int]:
        """Half as many as there are test seeds."""
        n_episodes = self.n_eval_episodes
        n_validation = max(2, n_episodes // 2) if isinstance(n_episodes, int) else _VALIDATION_EPISODES
        return self.seeds.take("validation", n_validation)

    def n_to_come(self, search: SearchState, paired: bool = True) -> int:
        """
        :param search: a search
        :param paired: whether the same seed means the same episode
        :return: episodes of the original and of iterates, on validation and test seeds, at most; as far as is known
        """
        n_validation = len(self.validation_seeds)
        n_test = self.n_eval_episodes if isinstance(self.n_eval_episodes, int) else 2 * _VALIDATION_EPISODES
        n_choice = 4 if self.selection else 0  # 8 iterates on a quarter of the seeds, 4 on another, 2 on the other half
        return (n_choice + (search.baseline is None)) * n_validation + 2 * n_test * (1 if paired else 2)

    def judge(self, search: SearchState, run: Run, paired: bool) -> Verdict:
        """
        Choose among the iterates, and test the choice against the original.

        :param search: a search that has ended
        :param run: runs parameters on seeds
        :param paired: whether the same seed means the same episode
        :return: the verdict
        """
        iterates = search.iterates if self.selection else search.iterates[:1]
        chosen = self._choose(search, iterates, run)
        seeds = tuple(self.seeds.take("test", self._n_test_episodes(search, chosen, run, paired)))
        baseline = Evaluation(seeds, tuple(run(search.start, seeds, SMOOTHNESS)))
        refined = baseline  # a search that ended before its first update has nothing else
        if not np.array_equal(chosen.vector, search.start):
            refined = Evaluation(seeds, tuple(run(chosen.vector, seeds, SMOOTHNESS)))
        unjudged = self._unjudged(search, baseline, refined)
        return Verdict(
            decision=unjudged or self._decide(baseline, refined, paired),
            baseline=baseline,
            refined=None if refined.n_invalid else refined,
            paired_difference=None if unjudged else paired_difference(baseline, refined, self.alpha, paired),
            chosen=chosen,
            candidates=self._candidates(search, iterates, chosen),
        )

    def _choose(self, search: SearchState, iterates: Sequence[Iterate], run: Run) -> Iterate:
        """The best on validation seeds; one that loses as much return as would be vetoed only if all others do, too."""
        assert search.baseline is not None
        original = search.baseline.returns

        def keeps_the_return(episodes: Sequence[Episode]) -> bool:
            return not loses_too_much(
                original[: len(episodes)].mean(),
                float(np.mean([episode.episode_return for episode in episodes])),
                self._max_return_loss,
            )

        return sequential_halving(
            iterates, self.validation_seeds, run, self.objective.of_episodes, is_eligible=keeps_the_return
        )

    @property
    def _max_return_loss(self) -> float | None:
        """None where any may be lost, or the return is what is maximised."""
        is_free = isinstance(self.objective, Return) or self.max_return_loss == np.inf
        return None if is_free else self.max_return_loss

    def _unjudged(self, search: SearchState, baseline: Evaluation, refined: Evaluation) -> Decision | None:
        """Where there is nothing to judge, or what there is cannot be: why."""
        for whose, evaluation in (("the original's", baseline), ("its", refined)):
            held_out = f"of {whose} {len(evaluation.seeds)} held-out episodes"
            if evaluation.n_invalid:
                return Decision(ORIGINAL, f"{evaluation.n_invalid} {held_out} had NaN or inf; the original is kept")
            n_without = np.isnan([self.objective.fitness(episode) for episode in evaluation.episodes]).sum()
            if n_without:
                reason = f"{self.objective_name} gave NaN or inf for {n_without} {held_out}; the original is kept"
                return Decision(ORIGINAL, reason)
        return None if search.n_updates else Decision(ORIGINAL, "nothing was searched: no update was done")

    def _decide(self, baseline: Evaluation, refined: Evaluation, paired: bool) -> Decision:
        name = self.objective_name + self.objective.verdict_note
        return decide(baseline, refined, self.alpha, paired, self.objective.fitness, self._max_return_loss, name)

    def _n_test_episodes(self, search: SearchState, chosen: Iterate, run: Run, paired: bool) -> int:
        """As many as asked for, or as it takes to resolve the least difference of interest."""
        if isinstance(self.n_eval_episodes, int):
            return self.n_eval_episodes * (1 if paired else 2)  # unpaired, a difference shows later
        assert search.baseline is not None
        seeds = search.baseline.seeds
        chosen.episodes += run(chosen.vector, seeds[len(chosen.episodes) :])
        original = self.objective.of_episodes(search.baseline.episodes)
        effect = self.min_effect or abs(original) / 100 or 1.0
        before, after = (
            np.array([self.objective.fitness(episode) for episode in episodes])
            for episodes in (search.baseline.episodes, chosen.episodes)
        )
        wanted = episodes_to_resolve(before, after, effect, self.alpha)
        n_episodes = int(np.clip(wanted, *AUTO_EPISODES))
        logger.info(
            "%d held-out episodes: to resolve a difference of %.3g takes %d; at least %d and at most %d are run",
            *(n_episodes, effect, wanted, *AUTO_EPISODES),
        )
        return n_episodes

    def _candidates(
        self, search: SearchState, iterates: Sequence[Iterate], chosen: Iterate
    ) -> tuple[dict[str, Any], ...]:
        assert search.baseline is not None
        original = Iterate("original", 0, search.start, list(search.baseline.episodes))
        return tuple(self._figures(iterate, iterate is chosen) for iterate in (original, *iterates))

    def _figures(self, iterate: Iterate, is_chosen: bool) -> dict[str, Any]:
        """How an iterate did on validation seeds; without a choice, it was not run on any."""
        returns = [episode.episode_return for episode in iterate.episodes]
        return {
            "name": iterate.name,
            "update": iterate.update,
            "n_episodes": len(returns),
            "mean_return": float(np.mean(returns)) if returns else None,
            "mean_fitness": self.objective.of_episodes(iterate.episodes) if returns else None,
            "chosen": is_chosen,
        }
