"""One table of normal noise that search directions are slices of."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

_N_OFFSETS = 2**22  # 17 MB of noise


def noise_key(seed: int, *path: int) -> int:
    """
    Draw where in the table a direction begins.

    :param seed: seed of the search
    :param path: which direction, such as the number of the update and of the direction within the update
    :return: an offset, the same for the same arguments
    """
    return int(np.random.SeedSequence(seed, spawn_key=path).generate_state(1)[0]) % _N_OFFSETS


def noise_keys(seed: int, update: int, n_delta: int) -> list[int]:
    """
    :param seed: seed of the search
    :param update: number of updates done
    :param n_delta: how many directions
    :return: the keys of the directions of an update
    """
    return [noise_key(seed, update, number) for number in range(n_delta)]


def weighted_sum(seed: int, keys: Sequence[int], weights: Sequence[float] | np.ndarray, size: int) -> np.ndarray:
    """
    :param seed: seed of the table
    :param keys: of some directions
    :param weights: one each
    :param size: number of parameters
    :return: sum of the weighted directions, float32 of shape ``(size,)``
    """
    total = np.zeros(size, dtype=np.float32)
    for key, weight in zip(keys, weights, strict=True):
        total += np.float32(weight) * direction(seed, key, size)
    return total


def direction(seed: int, key: int, size: int) -> np.ndarray:
    """
    Look up a unit-normal direction. The same arguments give the same bits in every process.

    Directions are slices of one table of noise (https://arxiv.org/abs/1703.03864, section 2.1): drawing new numbers
    takes about thirty times as long as writing them into the policy. Slices that overlap are as uncorrelated as slices
    that do not, since they are shifted against each other.

    :param seed: seed of the table
    :param key: what :func:`noise_key` gave
    :param size: number of parameters
    :return: float32 vector of shape ``(size,)``, read-only
    """
    return _table(seed, _N_OFFSETS + size)[key : key + size]


@lru_cache(maxsize=1)
def _table(seed: int, size: int) -> np.ndarray:
    """The table, made once in each process."""
    noise = np.random.Generator(np.random.SFC64(seed)).standard_normal(size, dtype=np.float32)
    noise.flags.writeable = False
    return noise
