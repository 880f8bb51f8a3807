"""A line an update, for the terminal."""

from typing import Any, TextIO

from stable_baselines3.common.logger import KVWriter

_COLUMNS = (
    ("", 14), ("rollouts", 9), ("time steps", 11), ("mean return", 12), ("best", 10), ("failed", 7), ("time", 7),
    ("left", 7),
)  # fmt: skip


class LineFormat(KVWriter):
    """
    An output of Stable-Baselines3's logger: a line an update, also of training, where its table has a dozen.

    :param file: where to
    """

    def __init__(self, file: TextIO):
        self._file = file
        self._has_header = False
        self._best: float | None = None  # of training

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """
        Write the line of an update.

        :param key_values: what was recorded
        :param key_excluded: of each key, the outputs that leave it out; ignored, as columns are fixed
        :param step: time steps of the model
        """
        if "plan/summary" in key_values:
            print(key_values["plan/summary"], file=self._file, flush=True)
            return
        mean, n_updates = key_values.get("rollout/ep_rew_mean"), key_values.get("refine/n_updates")
        if mean is None:  # of a callback, such as an evaluation
            return
        if n_updates is None:
            self._best = mean if self._best is None else max(self._best, mean)
        cells = (
            "training" if n_updates is None else f"update {n_updates}",
            _text(key_values.get("refine/rollouts"), ",d"),
            f"{step:,d}",
            _text(mean, ",.2f"),
            _text(self._best if n_updates is None else key_values.get("refine/best"), ",.2f"),
            _text(key_values.get("refine/failure_rate"), ".0%"),
            "" if n_updates is None else _duration(key_values.get("time/time_elapsed")),  # training counts in slices
            _duration(key_values.get("time/time_left")),
        )
        if not self._has_header:
            self._has_header = True
            self._print([name for name, _ in _COLUMNS])
        self._print(cells)

    def _print(self, cells: Any) -> None:
        first, *others = (cell.rjust(width) for cell, (_, width) in zip(cells, _COLUMNS, strict=True))
        print(first.strip().ljust(_COLUMNS[0][1]) + "".join(others), file=self._file, flush=True)

    def close(self) -> None:
        """The file is the caller's."""


def _text(value: Any, form: str) -> str:
    return "" if value is None else format(value, form)


def _duration(seconds: float | None) -> str:
    """Minutes and seconds."""
    if seconds is None:
        return ""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
