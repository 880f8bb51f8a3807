"""Figures of two agents side by side: what changed, with which interval, and whether it is better or worse."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sb3_refine.evaluation.by_task import by_parameter
from sb3_refine.evaluation.robustness import BOTH
from sb3_refine.evaluation.statistics import mean_interval
from sb3_refine.formatting import METRIC_LABELS, digits_of
from sb3_refine.reporting.record import RunRecord
from sb3_refine.rollouts.metrics import SMOOTHNESS, tail_mean

_N_RESAMPLES = 2000
_RETURNS = (
    ("median_return", "median return", np.median, 1),
    ("std_return", "standard deviation", np.std, -1),
    ("cvar10_return", "worst tenth (CVaR10)", tail_mean, 1),
)

Interval = tuple[float, float] | None


@dataclass(frozen=True)
class Change:
    """
    A figure before and after.

    :param label: its name
    :param before: of the original
    :param after: after the search
    :param interval: of the change, or None where there is none
    :param sense: 1 where higher is better, -1 where lower is, 0 where neither is
    :param percent: whether it is a share
    """

    label: str
    before: float
    after: float
    interval: Interval
    sense: int = 1
    percent: bool = False

    @property
    def word(self) -> str:
        """``"better"``, ``"worse"`` and so on, where the interval excludes 0."""
        if self.interval is None or not np.isfinite(self.interval).all():
            return ""
        low, high = self.interval
        if low == high == 0:
            return "same"
        if low <= 0 <= high:
            return "no clear change"
        return {1: "better", -1: "worse", 0: "higher" if low > 0 else "lower"}[self.sense * (1 if low > 0 else -1)]

    def cells(self, digits: int | None = None) -> list[str]:
        """
        :param digits: after the point; None for as many as fit the row
        :return: cells of a table: label, before, after, change, word
        """
        digits = digits_of(self.before, self.after) if digits is None else digits
        form, scale = (f"{{:,.{digits}f}}", 1) if not self.percent else ("{:,.1f}%", 100)
        before, after = (form.format(scale * value) for value in (self.before, self.after))
        change = form.replace(":", ":+").format(scale * (self.after - self.before))
        if self.interval is not None:
            low, high = (form.format(scale * bound) for bound in self.interval)
            change = f"{change} ({low} to {high})"
        return [self.label, before, after, change, self.word]


class Changes:
    """
    All changes of a run.

    :param record: of the run; both agents were tested
    """

    def __init__(self, record: RunRecord):
        difference, robustness = record.paired_difference, record.robustness
        self.confidence = difference.confidence if difference else 0.95
        self.is_paired = difference.paired if difference else robustness is None or robustness.paired
        self._record = record
        self.figures = self._figures() if record.is_tested else []
        self.by_task = self._by_task() if record.is_tested and record.tasks else {}
        """For each parameter of the tasks, the mean return in parts of its range."""
        self.noise = self._noise()
        """For each condition, without noise first: the return, and the return lost to the noise."""

    @property
    def worse(self) -> list[str]:
        """What got worse: figures, then what noise does to the returns."""
        worse = [change.label.rstrip(" *") for change in self.figures if change.word == "worse"]
        for what, which in (("return under", 0), ("robustness: it loses more to", 1)):
            labels = [pair[which].label for pair in self.noise[1:] if pair[which].word == "worse"]
            worse += [f"{what} {', '.join(labels)}"] if labels else []
        return worse

    def _figures(self) -> list[Change]:
        before, after, difference = self._record.baseline, self._record.refined, self._record.paired_difference
        assert before is not None and after is not None and difference is not None
        old, new = (_numbers(figures.returns) for figures in (before, after))
        lengths = self._interval(_numbers(before.lengths), _numbers(after.lengths))
        failed = self._interval(_numbers(before.failed), _numbers(after.failed))

        def change(label: str, name: str, interval: Interval, sense: int = 1, percent: bool = False) -> Change:
            old_value, new_value = (_number(getattr(figures, name)) for figures in (before, after))
            return Change(label, old_value, new_value, interval, sense, percent)

        changes = [change("mean return", "mean_return", (_number(difference.ci_low), _number(difference.ci_high)))]
        changes += [
            Change(label, _number(value), _number(after.objective[label]), None)
            for label, value in before.objective.items()
            if None not in (value, after.objective.get(label))
        ]
        changes += [
            change(label, name, self._interval(old, new, statistic), sense)
            for name, label, statistic, sense in _RETURNS
        ]
        changes += [
            change("lowest return", "min_return", None),
            change("mean length", "mean_length", lengths, 0),
            change("failure rate", "failure_rate", failed, -1, percent=True),
        ]
        if before.success_rate is not None and after.success_rate is not None:
            was, is_now = (_numbers(figures.success or [None] * old.size) for figures in (before, after))
            interval = self._interval(was, is_now)
            changes.append(change("success rate", "success_rate", interval, percent=True))
        if before.mesh_dimension is not None and after.mesh_dimension is not None:
            changes.append(change("mesh dimension", "mesh_dimension", None, 0))
        return changes + self._smoothness()

    def _by_task(self) -> dict[str, list[Change]]:
        assert self._record.baseline is not None and self._record.refined is not None and self._record.tasks is not None
        old, new = (_numbers(figures.returns) for figures in (self._record.baseline, self._record.refined))
        return {
            name: [
                Change(f"{label} ({len(part)})", *_means(old[part], new[part]), self._interval(old[part], new[part]))
                for label, part in groups
            ]
            for name, groups in by_parameter(self._record.tasks).items()
        }

    def _smoothness(self) -> list[Change]:
        before, after, robustness = self._record.baseline, self._record.refined, self._record.robustness
        if robustness is None:
            pairs = {name: (getattr(before, name), getattr(after, name)) for name in SMOOTHNESS}
            return [Change(METRIC_LABELS[name], *pair, None, -1) for name, pair in pairs.items() if None not in pair]
        changes = []
        for name, values in robustness.smoothness.items():
            if name == "action_change" or robustness.traces["continuous"]:  # the others need continuous actions
                old, new = (_numbers(values[who]) for who in BOTH)
                changes.append(Change(f"{METRIC_LABELS[name]} *", *_means(old, new), self._interval(old, new), -1))
        return changes

    def _noise(self) -> list[tuple[Change, Change]]:
        levels = self._record.robustness.robustness if self._record.robustness else []
        without = [_numbers(levels[0][who]["returns"]) for who in BOTH] if levels else []
        changes: list[tuple[Change, Change]] = []
        for level in levels:
            label, (old, new) = level["noise"], (_numbers(level[who]["returns"]) for who in BOTH)
            lost = [still - now for still, now in zip(without, (old, new), strict=True)]
            changes.append(
                (
                    Change(label, *_means(old, new), self._interval(old, new)),
                    Change(label, *_means(*lost), self._interval(*lost), -1),
                )
            )
        return changes

    def _interval(
        self, old: np.ndarray, new: np.ndarray, statistic: Callable[..., np.ndarray] | None = None
    ) -> Interval:
        """Of the change of the mean, or by bootstrap of another statistic."""
        valid = np.isfinite(old) & np.isfinite(new)
        old, new = old[valid], new[valid]
        if old.size < 2:
            return None
        rng, alpha = np.random.default_rng(0), 1 - self.confidence
        if statistic is None:
            return mean_interval(old, new if self.is_paired else rng.permutation(new), alpha)
        drawn = rng.integers(old.size, size=(_N_RESAMPLES, old.size))
        drawn_too = drawn if self.is_paired else rng.integers(old.size, size=drawn.shape)
        changes = statistic(new[drawn_too], axis=1) - statistic(old[drawn], axis=1)
        low, high = np.quantile(changes, [alpha / 2, 1 - alpha / 2])
        return float(low), float(high)


def _numbers(values: Any) -> np.ndarray:
    """An array, with NaN for None."""
    return np.array(values, dtype=float)


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _means(old: np.ndarray, new: np.ndarray) -> tuple[float, float]:
    """Of what is not NaN."""
    valid = [values[np.isfinite(values)] for values in (old, new)]
    old_mean, new_mean = (float(values.mean()) if values.size else float("nan") for values in valid)
    return old_mean, new_mean
