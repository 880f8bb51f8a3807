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

    def time_for(self, n_remaining: int, n_episodes: int) -> float:
        """
        :param n_remaining: episodes to come
        :param n_episodes: so far
        :return: seconds that the episodes to come take, at the pace so far
        """
        pace = (time.perf_counter() - self.first_episode) / max(1, n_episodes - self.n_before)
        return pace * n_remaining

    def is_late(self, n_episodes: int, n_remaining: int) -> bool:
        """
        :param n_episodes: so far
        :param n_remaining: of the next update, and after the search
        :return: whether the time left is too short for them
        """
        return self.limit is not None and self.elapsed + self.time_for(n_remaining, n_episodes) >= self.limit
