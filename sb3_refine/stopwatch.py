"""Wall time and CPU time of a run, its workers included."""

import time

_of_workers = {"cpu_time_s": 0.0}


def add_cpu_time(seconds: float) -> None:
    """
    Count CPU time of another process that works for this one.

    :param seconds: since the last call for that process
    """
    _of_workers["cpu_time_s"] += seconds


def cpu_time() -> float:
    """:return: seconds of CPU time that this process and its workers have used, as far as backends count them"""
    return time.process_time() + _of_workers["cpu_time_s"]


class Stopwatch:
    """
    Measures a run.

    :param wall_time_s: of the run so far, where it goes on with an earlier one
    :param cpu_time_s: the same
    """

    def __init__(self, wall_time_s: float = 0.0, cpu_time_s: float = 0.0):
        self._wall_start, self._cpu_start = time.perf_counter() - wall_time_s, cpu_time() - cpu_time_s

    @property
    def wall_time_s(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._wall_start

    @property
    def cpu_time_s(self) -> float:
        """Seconds of CPU time since the start."""
        return cpu_time() - self._cpu_start
