"""How training and search share one budget."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sb3_refine.agents.decoding.schema import flag, list_of, number, record, text
from sb3_refine.auto.arms import Arm
from sb3_refine.files import atomic_path
from sb3_refine.training.checkpoints import read_state

logger = logging.getLogger(__name__)

FILE_NAME = "auto.json"

SECONDS, STEPS = "seconds", "n_env_steps"
"""Units of a budget: what an :class:`~sb3_refine.auto.arms.Arm` counts under these names."""

_SLICE = 1 / 8  # of the budget: what the training gets before it is compared
_MOST_SLICES = 4


@dataclass(frozen=True)
class Budget:
    """
    :param total: for all arms together
    :param unit: :data:`SECONDS` or :data:`STEPS`
    """

    total: float
    unit: str

    def used_by(self, arm: Arm) -> float:
        """:return: what an arm has used"""
        return float(getattr(arm, self.unit))


class Schedule:
    """
    Training and search share a budget: the training begins, and goes on as long as it pays; the search gets the rest. A
    search has to be planned to its end: it looks bad while its noise is large, so it is not cut short.

    1. The training gets an eighth of the budget, and is compared with the original. If it is clearly better, it gets
       another eighth, and is compared with what it was, and so on until half of the budget is used up.
    2. The search starts from the best of these, or from the original. Where it has nothing to search, the training gets
       the rest.

    What was decided is kept in a file, so that a run that is interrupted goes on as it had begun.

    :param training: the first arm
    :param budget: what both arms share
    :param compare: the fitness, in the same episodes, of the best agent so far (of which it gets the number, None for
        the original) and of the training's best recent candidate; None without candidates
    :param keep: makes that candidate the best agent so far, under a number
    :param start_search: makes the search, for a share of the budget, from the agent with a number; None for the
        original
    :param folder: keeps the file
    """

    def __init__(
        self,
        training: Arm,
        budget: Budget,
        compare: Callable[[int | None], tuple[np.ndarray, np.ndarray | None]],
        keep: Callable[[int], None],
        start_search: Callable[[float, int | None], Arm],
        folder: Path,
    ):
        self.arms = [training]
        self._budget, self._compare, self._keep, self._start_search = budget, compare, keep, start_search
        self._path = folder / FILE_NAME
        self._recorded = _read(self._path)
        self.decisions: list[dict[str, Any]] = []

    @property
    def best(self) -> int | None:
        """Number of the best agent that the training has led to; None where the original is better."""
        better = [number for number, decision in enumerate(self.decisions, start=1) if decision["is_better"]]
        return max(better, default=None)

    def run(self, is_stopped: Callable[[], bool] = lambda: False, time_left: Callable[[], float] | None = None) -> None:
        """
        Use up the budget.

        :param is_stopped: whether the user has ended the run
        :param time_left: seconds until the search has to end; it goes on until then, instead of to the end of the
            budget
        """
        training = self.arms[0]
        for n_slices in range(1, _MOST_SLICES + 1):
            self._advance(training, n_slices * _SLICE, is_stopped)
            if is_stopped() and not self._recorded:
                return
            self._decide(n_slices, training)
            if not self.decisions[-1]["is_better"]:
                break
        share = self.decisions[-1]["left"]
        self.arms.append(self._start_search(share, self.best))
        self._advance(self.arms[-1], share, is_stopped, time_left)
        if self.arms[-1].is_done and not self.arms[-1].candidates():  # no noise changes what the agent does
            self._advance(training, 1.0, is_stopped, time_left)

    def _advance(
        self,
        arm: Arm,
        share: float,
        is_stopped: Callable[[], bool],
        time_left: Callable[[], float] | None = None,
    ) -> None:
        def is_over() -> bool:
            used_up = self._budget.used_by(arm) >= share * self._budget.total
            return is_stopped() or (used_up if time_left is None else time_left() <= 0)

        if not is_over() and not arm.is_done:
            logger.info("%s:", arm.name)
            arm.advance(is_over)

    def _decide(self, number: int, training: Arm) -> None:
        """Compare, unless that was done before."""
        decision = self._recorded.pop(0) if self._recorded else self._compared(number, training)
        self.decisions.append(decision)
        logger.info("%s", decision["text"])
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(self._path) as path:
            path.write_text(json.dumps([*self.decisions, *self._recorded]))

    def _compared(self, number: int, training: Arm) -> dict[str, Any]:
        before, after = self._compare(self.best)
        is_better = after is not None and _is_clearly_better(before, after)
        if is_better:
            self._keep(number)
        total = self._budget.total
        used = self._budget.used_by(training) / total if total > 0 else 1.0
        shown = "nothing yet" if after is None else f"{after.mean():.5g}"
        goes_on = is_better and number < _MOST_SLICES
        outcome = "the training goes on" if goes_on else "the search begins"
        text = f"after {used:.0%} of the budget: {'before' if self.best else 'original'} {before.mean():.5g}, "
        text += f"training {shown}: {outcome}"
        return {"is_better": is_better, "left": max(0.0, 1 - used), "text": text}


def _is_clearly_better(before: np.ndarray, after: np.ndarray) -> bool:
    """By more than two standard errors of the paired difference."""
    difference = after - before
    return bool(difference.mean() > 2 * difference.std(ddof=1) / np.sqrt(difference.size))


_DECISIONS = list_of(record({"is_better": flag, "left": number(0, 1), "text": text()}))


def _read(path: Path) -> list[dict[str, Any]]:
    return read_state(path, _DECISIONS) if path.exists() else []
