"""When a search has to end so that its result can still be judged in time."""

import time

from sb3_refine.errors import check_seconds


class Clock:
    """
    The time limit of a search, at the pace of the episodes so far.

    :param limit: seconds from now on, or None
    :raises RefineError: when the limit is no number of seconds
    """

    def __init__(self, limit: float | None):
        if limit is not None:
            check_seconds("time_limit", limit, allow_zero=True)
        self.limit = limit
        self.started = self.first_episode = time.perf_counter()
        self.n_before = 0

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.started

    def start_episodes(self, n_episodes: int) -> None:
        """:param n_episodes: run before, where a search is resumed"""
        self.first_episode, self.n_before = time.perf_counter(), n_episodes

    def is_late(self, n_episodes: int, n_remaining: int) -> bool:
        """
        :param n_episodes: so far
        :param n_remaining: of the next update, and after the search
        :return: whether the time left is too short for them
        """
        now = time.perf_counter()
        pace = (now - self.first_episode) / max(1, n_episodes - self.n_before)
        return self.limit is not None and now - self.started + pace * n_remaining >= self.limit
