"""How a candidate is named in a few bytes, and written out where it is evaluated."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np


class Candidate(NamedTuple):
    """
    One point of the search space: ``mean + scale * direction(update, pair)``.

    Only these numbers travel to a worker; the mean is broadcast once an update and the direction is drawn
    again where it is needed. A ``scale`` of 0 names the mean itself.

    :param update: number of the update that drew the direction
    :param pair: number of the direction within the update; the two candidates of an antithetic pair share it
    :param scale: signed standard deviation of the perturbation, in units of the parameters
    """

    update: int
    pair: int
    scale: float

    def __str__(self) -> str:
        if self.scale == 0.0:
            return "the unperturbed policy"
        return f"the policy perturbed by {self.scale:+g} times direction {self.pair} of update {self.update}"


_N_OFFSETS = 2**22  # 17 MB of noise


def direction(seed: int, update: int, pair: int, size: int) -> np.ndarray:
    """
    Draw a unit-normal direction. The same arguments give the same bits in every process.

    Directions are slices of one table of noise, at offsets drawn for each (https://arxiv.org/abs/1703.03864, section
    2.1): numbers drawn anew cost some thirty times as much as writing them into the policy. Slices that overlap are as
    uncorrelated as others, since they are shifted.

    :param seed: seed of the whole search
    :param update: number of the update
    :param pair: number of the direction within the update
    :param size: number of parameters
    :return: float32 vector of shape ``(size,)``, not to be written to
    """
    sequence = np.random.SeedSequence(seed, spawn_key=(update, pair))
    start = int(sequence.generate_state(1)[0]) % _N_OFFSETS
    return _noise(seed, _N_OFFSETS + size)[start : start + size]


@lru_cache(maxsize=1)
def _noise(seed: int, size: int) -> np.ndarray:
    """The table, made once in each process."""
    noise = np.random.Generator(np.random.SFC64(seed)).standard_normal(size, dtype=np.float32)
    noise.flags.writeable = False
    return noise
