"""The candidates of one update, in a form that is small enough to be sent to every worker."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from sb3_refine.optimizers.noise_table import direction, noise_keys


class Population(ABC):
    """
    The candidates of one update. A population is pickled and sent to each worker once; a worker computes the parameter
    vectors of the candidates that it runs.
    """

    groups: Sequence[int]
    """Of each candidate, the number of its group. The candidates of a group run on the same episode seeds."""

    def __len__(self) -> int:
        """:return: the number of candidates"""
        return len(self.groups)

    @abstractmethod
    def theta(self, index: int) -> np.ndarray:
        """
        :param index: of a candidate
        :return: its parameters, float32 of shape ``(n_parameters,)``, the same bits in every process
        """

    def describe(self, index: int) -> str:
        """
        :param index: of a candidate
        :return: what error messages call the candidate
        """
        return f"candidate {index}"


class NoisePopulation(Population):
    r"""
    Candidates :math:`\theta + s_i \sigma \odot \delta_i`, where each direction :math:`\delta_i` is a slice of the noise
    table. Beside ``theta``, a candidate takes a few bytes.

    >>> pair = NoisePopulation(np.zeros(3), std=0.1, keys=[7, 7], signs=[1.0, -1.0], seed=0)
    >>> bool(np.all(pair.theta(0) == -pair.theta(1)))
    True
    >>> pair.groups  # both run on the same episode seeds
    [0, 0]

    :param theta: the point to perturb, float32 of shape ``(n_parameters,)``
    :param std: standard deviation of the perturbation: one for all parameters, or one each, shape ``(n_parameters,)``
    :param keys: of each candidate, the key of its direction, see :func:`~sb3_refine.optimizers.noise_table.noise_key`
    :param signs: of each candidate, the sign of its perturbation: 1.0 or -1.0, or 0.0 for ``theta`` itself
    :param seed: seed of the noise table
    """

    def __init__(
        self, theta: np.ndarray, std: float | np.ndarray, keys: Sequence[int], signs: Sequence[float], seed: int
    ):
        if len(keys) != len(signs):
            raise ValueError(f"signs: expected {len(keys)}, one for each key, got {len(signs)}")
        self.center = np.array(theta, dtype=np.float32)
        self.std = std
        self.keys = list(keys)
        self.signs = list(signs)
        self.seed = seed
        numbers = {key: number for number, key in enumerate(dict.fromkeys(self.keys))}
        self.groups = [numbers[key] for key in self.keys]  # candidates of one direction share their episode seeds

    def theta(self, index: int) -> np.ndarray:
        scaled = direction(self.seed, self.keys[index], self.center.size) * np.float32(self.signs[index] * self.std)
        return np.add(scaled, self.center, out=scaled)

    def describe(self, index: int) -> str:
        if self.signs[index] == 0:
            return "the iterate"
        std = f"{self.signs[index] * self.std:+g}" if np.ndim(self.std) == 0 else f"{self.signs[index]:+g} std"
        number = list(dict.fromkeys(self.keys)).index(self.keys[index])
        return f"candidate {index}, the policy perturbed by {std} times direction {number}"


def antithetic(theta: np.ndarray, std: float | np.ndarray, seed: int, update: int, n_delta: int) -> NoisePopulation:
    """
    :param theta: the point to perturb
    :param std: see :class:`NoisePopulation`
    :param seed: of the search
    :param update: number of updates done
    :param n_delta: number of directions
    :return: pairs of candidates, plus and minus each direction of the update
    """
    keys = np.repeat(noise_keys(seed, update, n_delta), 2).tolist()
    return NoisePopulation(theta, std, keys, [1.0, -1.0] * n_delta, seed)


class ExplicitPopulation(Population):
    """
    Candidates given as vectors: for searches in few dimensions, and to evaluate policies as they are.

    :param thetas: parameters of the candidates, shape ``(n_candidates, n_parameters)``
    :param groups: of each candidate, the number of its group; by default all are in one, and so share their seeds
    :param names: what error messages call the candidates
    """

    def __init__(
        self,
        thetas: Sequence[np.ndarray] | np.ndarray,
        groups: Sequence[int] | None = None,
        names: Sequence[str] | None = None,
    ):
        self.thetas = np.array(thetas, dtype=np.float32)
        if self.thetas.ndim != 2:
            raise ValueError(f"thetas: expected shape (n_candidates, n_parameters), got {self.thetas.shape}")
        self.groups = [0] * len(self.thetas) if groups is None else list(groups)
        self.names = None if names is None else list(names)
        if len(self.groups) != len(self.thetas):
            raise ValueError(f"groups: expected {len(self.thetas)}, one for each candidate, got {len(self.groups)}")

    def theta(self, index: int) -> np.ndarray:
        return self.thetas[index]

    def describe(self, index: int) -> str:
        return super().describe(index) if self.names is None else self.names[index]


def pair_weights(fitness: np.ndarray, clip: float | None = None) -> np.ndarray:
    """
    Weights of antithetic pairs in a step whose size does not depend on the scale of the fitness: their differences,
    divided by the root mean square of these and by the number of pairs.

    :param fitness: of the candidates, shape ``(2 * n_pairs,)``: plus and minus of each pair; NaN for lost ones
    :param clip: the largest difference, in units of the median size of those that are not 0; larger ones are clipped,
        so that a rare episode that fails does not outweigh all other pairs. None for differences as they are
    :return: shape ``(n_pairs,)``; 0 for a pair that lost a candidate
    """
    differences = fitness[0::2] - fitness[1::2]
    sizes = np.abs(differences[np.isfinite(differences)])
    if not sizes.any():
        return np.zeros(len(differences))
    limit = math.inf if clip is None else clip * np.median(sizes[sizes > 0])
    size = math.sqrt(np.square(np.minimum(sizes, limit)).mean())
    return np.nan_to_num(np.clip(differences, -limit, limit)) / (len(differences) * size)
