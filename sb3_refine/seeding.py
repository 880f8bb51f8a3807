"""Every episode seed of a run, from one seed; and the random numbers that environments share with their process."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch as th

STREAMS = ("search", "validation", "test")
_STREAM_LENGTH = 2**29  # three interleaved streams of this length fill the non-negative int32 range


class EpisodeSeeds:
    """
    Three disjoint streams of episode seeds: what the search sees is never what it is judged on.

    The streams interleave (a seed modulo 3 is its stream), so they cannot collide, and no stream repeats a seed
    before its 2**29th. Each starts at a place drawn from ``numpy.random.SeedSequence(seed)``.

    :param seed: the seed of the whole run
    """

    def __init__(self, seed: int):
        self.seed = seed
        self._offsets = np.random.SeedSequence(seed).generate_state(len(STREAMS))

    def take(self, stream: str, n_seeds: int, start: int = 0) -> list[int]:
        """
        :param stream: one of ``"search"``, ``"validation"``, ``"test"``
        :param n_seeds: how many
        :param start: position in the stream of the first
        :return: episode seeds, each fit for ``env.reset(seed=...)``
        """
        which = STREAMS.index(stream)
        first = int(self._offsets[which]) + start
        return [(first + i) % _STREAM_LENGTH * len(STREAMS) + which for i in range(n_seeds)]


def derived_seed(seed: int, number: int) -> int:
    """
    :param seed: of a first run
    :param number: of a further run
    :return: the seed of that run
    """
    return int(np.random.SeedSequence(seed, spawn_key=(number,)).generate_state(1)[0])


def seed_globals(seed: int) -> None:
    """
    Seed the generators of the process: some environments draw from them instead of their own.

    :param seed: of the episode to come
    """
    random.seed(seed)
    np.random.seed(seed)
    th.default_generator.manual_seed(seed)


@contextmanager
def globals_restored() -> Iterator[None]:
    """Leave the generators of the process as they were: they are the caller's."""
    states = random.getstate(), np.random.get_state(), th.default_generator.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        th.default_generator.set_state(states[2])
