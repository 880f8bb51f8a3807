"""Every episode seed of a run, from one seed."""

import numpy as np

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
