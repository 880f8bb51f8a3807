"""Successive halving of one budget between the arms."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sb3_refine.agents.decoding.schema import list_of, optional, record, text
from sb3_refine.auto.arms import Arm
from sb3_refine.files import atomic_path
from sb3_refine.training.checkpoints import read_state

logger = logging.getLogger(__name__)

FILE_NAME = "auto.json"

SECONDS, STEPS = "seconds", "n_env_steps"
"""Units of a budget: what an :class:`~sb3_refine.auto.arms.Arm` counts under these names."""

_SHARE = 1 / 8  # of the budget: what an arm gets before it is compared again
_LAST_CUTS = (0.5, 0.75)  # of the budget: where one of the first two arms, and of the second two, ends at the latest


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
    Two arms advance in turns, an eighth of the budget each, and are compared on validation seeds. The worse one ends
    once it is clearly worse, at the latest at half of the budget. Where the search ends, a second search starts from
    the best checkpoint of the training, and competes with the training for the rest in the same way.

    What was decided is kept in a file, so that a race that is interrupted goes on as it had begun.

    :param search: the first arm
    :param training: the second arm
    :param budget: what they share
    :param compare: of some arms, the fitness of each one's best candidate in the same episodes; None without candidates
    :param start_second: makes the second search, once there is reason for it
    :param folder: keeps the file
    """

    def __init__(
        self,
        search: Arm,
        training: Arm,
        budget: Budget,
        compare: Callable[[Sequence[Arm]], list[np.ndarray | None]],
        start_second: Callable[[], Arm],
        folder: Path,
    ):
        self.arms = [search, training]
        self._budget, self._compare, self._start_second = budget, compare, start_second
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
        :param time_left: seconds until the race has to end; the last arm goes on until then, instead of to the end of
            the budget
        """
        racing, planned, targets = list(self.arms), 0.0, dict.fromkeys(map(id, self.arms), 0.0)
        while planned < 1 and not all(arm.is_done for arm in racing):
            share = 1 - planned if len(racing) == 1 else min(_SHARE, (1 - planned) / 2)
            for arm in racing:
                targets[id(arm)] = targets.get(id(arm), 0.0) + share * self._budget.total
                limit = None if len(racing) == 2 else time_left
                self._advance(arm, targets[id(arm)], is_stopped, limit)
                planned += share
            if is_stopped() and not self._recorded:
                break
            if len(racing) == 2 and planned < 1:
                racing = self._cut(racing, planned)

    def _advance(
        self, arm: Arm, target: float, is_stopped: Callable[[], bool], time_left: Callable[[], float] | None
    ) -> None:
        def is_over() -> bool:
            used_up = self._budget.used_by(arm) >= target if time_left is None else time_left() <= 0
            return is_stopped() or used_up

        if not is_over() and not arm.is_done:
            logger.info("%s:", arm.name)
            arm.advance(is_over)

    def _cut(self, racing: list[Arm], planned: float) -> list[Arm]:
        """The arms that go on."""
        decision = self._recorded.pop(0) if self._recorded else self._decide(racing, planned)
        self.decisions.append(decision)
        logger.info("%s", decision["text"])
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(self._path) as path:
            path.write_text(json.dumps([*self.decisions, *self._recorded]))
        remaining = [arm for arm in racing if arm.name != decision["ends"]]
        if len(remaining) == 1 and racing[0] is self.arms[0] and remaining[0] is self.arms[1]:
            self.arms.append(self._start_second())
            return [remaining[0], self.arms[-1]]
        return remaining

    def _decide(self, racing: list[Arm], planned: float) -> dict[str, Any]:
        found = self._compare(racing)
        is_last_cut = planned >= _LAST_CUTS[len(self.arms) - 2]
        worse = _clearly_worse(found)
        if worse is None and is_last_cut:
            means = [-np.inf if values is None else values.mean() for values in found]
            worse = int(np.argmin(means))
        figures = ", ".join(
            f"{arm.name} {'nothing yet' if values is None else f'{values.mean():.5g}'}"
            for arm, values in zip(racing, found, strict=True)
        )
        ends = None if worse is None else racing[worse].name
        outcome = "both go on" if ends is None else f"{ends} ends"
        return {"ends": ends, "text": f"after {planned:.0%} of the budget: {figures}: {outcome}"}


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


_DECISIONS = list_of(record({"ends": optional(text()), "text": text()}))


def _read(path: Path) -> list[dict[str, Any]]:
    return read_state(path, _DECISIONS) if path.exists() else []
