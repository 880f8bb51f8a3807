"""What every search method has in common."""

from abc import ABC, abstractmethod

import numpy as np

from sb3_refine.candidates import Candidate
from sb3_refine.errors import RefineError


class Optimizer(ABC):
    """
    Ask for candidates, evaluate them, tell their fitness. Always maximises.

    :param mean: start point, shape ``(n_parameters,)``
    :param seed: seed of every direction drawn
    :param n_updates: length of the search, for schedules
    :raises RefineError: when an argument is out of range
    """

    def __init__(self, mean: np.ndarray, seed: int, n_updates: int):
        if n_updates < 1:
            raise RefineError(f"n_updates: expected at least 1, got {n_updates}")
        self.mean = np.array(mean, dtype=np.float32)
        self.seed = seed
        self.n_updates = n_updates
        self.n_updates_done = 0
        self._asked: list[Candidate] | None = None

    @property
    @abstractmethod
    def population_size(self) -> int:
        """Number of candidates an update."""

    def ask(self) -> list[Candidate]:
        """:return: the candidates of this update, around ``mean``"""
        if self._asked is not None:
            raise RuntimeError("ask() was called twice: call tell() with the fitness of the candidates in between")
        self._asked = self._ask()
        return self._asked

    def tell(self, fitness: np.ndarray) -> None:
        """
        Move ``mean``.

        :param fitness: of the candidates, in the order of :meth:`ask`; higher is better
        """
        if self._asked is None:
            raise RuntimeError("tell() was called before ask(): ask for candidates first")
        fitness = np.asarray(fitness, dtype=np.float64)
        if fitness.shape != (len(self._asked),):
            raise ValueError(f"fitness: expected shape ({len(self._asked)},), got {fitness.shape}")
        if not np.isfinite(fitness).all():
            raise ValueError("fitness: expected finite numbers, got NaN or inf")
        self._tell(self._asked, fitness)
        self.n_updates_done += 1
        self._asked = None

    @abstractmethod
    def _ask(self) -> list[Candidate]: ...

    @abstractmethod
    def _tell(self, candidates: list[Candidate], fitness: np.ndarray) -> None: ...


def linear_schedule(start_end: float | tuple[float, float], progress: float) -> float:
    """
    :param start_end: a constant, or start and end
    :param progress: share of the updates done, in [0, 1)
    :return: the value at that point; the end itself is never reached
    """
    start, end = (start_end, start_end) if isinstance(start_end, (int, float)) else start_end
    return start + (end - start) * progress
