"""How search and training share one budget."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sb3_refine.agents.decoding.schema import list_of, number, optional, record, text
from sb3_refine.auto.arms import Arm
from sb3_refine.files import atomic_path
from sb3_refine.training.checkpoints import read_state

logger = logging.getLogger(__name__)

FILE_NAME = "auto.json"

SECONDS, STEPS = "seconds", "n_env_steps"
"""Units of a budget: what an :class:`~sb3_refine.auto.arms.Arm` counts under these names."""

_TRIAL = 1 / 8  # of the budget: what the training gets before it is compared with the original
_EACH = 3 / 8  # of the budget: what search and training get before they are compared with each other
_MORE = 1 / 8  # of the budget: what the training gets then, if it is ahead


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


class Race:
    """
    Search and training share a budget. A search has to be planned from its beginning, as its noise shrinks to its end,
    and its early iterates say little; so the training begins, and the search is as long as the training allows:

    1. The training gets an eighth of the budget. If it is clearly worse than the original by then, it ends, and the
       search gets the rest.
    2. Otherwise, both get three eighths, and are compared. The better one goes on: the training for another eighth,
       and with what is left, a second search from the best that the better one has found.

    What was decided is kept in a file, so that a race that is interrupted goes on as it had begun.

    :param training: the first arm
    :param budget: what all arms share
    :param compare: of some arms, the fitness of each one's best candidate in the same episodes; None without
        candidates. Of None, the fitness of the original
    :param start_search: makes a search, for a share of the budget, from the best candidate of an arm or, for None, from
        the original
    :param folder: keeps the file
    """

    def __init__(
        self,
        training: Arm,
        budget: Budget,
        compare: Callable[[Sequence[Arm | None]], list[np.ndarray | None]],
        start_search: Callable[[float, Arm | None], Arm],
        folder: Path,
    ):
        self.arms = [training]
        self._budget, self._compare, self._start_search = budget, compare, start_search
        self._path = folder / FILE_NAME
        self._recorded = _read(self._path)
        self.decisions: list[dict[str, Any]] = []

    @property
    def ended(self) -> list[str]:
        """Names of the arms that were cut."""
        return [decision["ends"] for decision in self.decisions if decision["ends"] is not None]

    def run(self, is_stopped: Callable[[], bool] = lambda: False, time_left: Callable[[], float] | None = None) -> None:
        """
        Use up the budget.

        :param is_stopped: whether the user has ended the race
        :param time_left: seconds until the race has to end; the last search goes on until then, instead of to the end
            of the budget
        """
        training = self.arms[0]
        self._advance(training, _TRIAL, is_stopped)
        decision = self._decision(is_stopped, None, training)
        if decision is None:
            return
        if decision["ends"] is not None:
            self._search_to_the_end(None, decision["left"], is_stopped, time_left)
            return
        search = self._add_search(_EACH, None)
        self._advance(search, _EACH, is_stopped)
        self._advance(training, _EACH, is_stopped)
        decision = self._decision(is_stopped, search, training)
        if decision is None:
            return
        if decision["ends"] == training.name:
            self._search_to_the_end(search, decision["left"], is_stopped, time_left)
            return
        self._advance(training, _EACH + _MORE, is_stopped)
        self._search_to_the_end(training, max(0.0, decision["left"] - _MORE), is_stopped, time_left)

    def _add_search(self, share: float, start: Arm | None) -> Arm:
        self.arms.append(self._start_search(share, start))
        return self.arms[-1]

    def _search_to_the_end(
        self,
        start: Arm | None,
        share: float,
        is_stopped: Callable[[], bool],
        time_left: Callable[[], float] | None,
    ) -> None:
        self._advance(self._add_search(share, start), share, is_stopped, time_left)

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

    def _decision(self, is_stopped: Callable[[], bool], first: Arm | None, second: Arm) -> dict[str, Any] | None:
        """What was decided before, or is decided now; None where the race is stopped before that."""
        if is_stopped() and not self._recorded:
            return None
        decision = self._recorded.pop(0) if self._recorded else self._decide(first, second)
        self.decisions.append(decision)
        logger.info("%s", decision["text"])
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(self._path) as path:
            path.write_text(json.dumps([*self.decisions, *self._recorded]))
        return decision

    def _decide(self, first: Arm | None, second: Arm) -> dict[str, Any]:
        found = self._compare([first, second])
        if first is None:
            ends = second.name if _clearly_worse(found) == 1 else None
        else:
            means = [-np.inf if values is None else values.mean() for values in found]
            ends = (first, second)[int(np.argmin(means))].name
        used = sum(map(self._budget.used_by, self.arms)) / self._budget.total
        figures = ", ".join(
            f"{'original' if arm is None else arm.name} {'nothing yet' if values is None else f'{values.mean():.5g}'}"
            for arm, values in zip((first, second), found, strict=True)
        )
        outcome = f"{second.name} goes on" if ends is None else f"{ends} ends"
        return {
            "ends": ends,
            "left": max(0.0, 1 - used),
            "text": f"after {used:.0%} of the budget: {figures}: {outcome}",
        }


def _clearly_worse(found: Sequence[np.ndarray | None]) -> int | None:
    """Which of two is worse by more than two standard errors of the paired difference; None if neither."""
    first, second = found
    if first is None or second is None:
        return None
    difference = first - second
    error = difference.std(ddof=1) / np.sqrt(difference.size)
    if abs(difference.mean()) <= 2 * error:
        return None
    return int(difference.mean() > 0)


_DECISIONS = list_of(record({"ends": optional(text()), "left": number(0, 1), "text": text()}))


def _read(path: Path) -> list[dict[str, Any]]:
    return read_state(path, _DECISIONS) if path.exists() else []
