"""What every search method has in common."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from sb3_refine.errors import check_count
from sb3_refine.optimizers.candidates import Candidate


class Optimizer(ABC):
    """
    Ask for candidates, evaluate them, tell their fitness. Always maximises.

    :param mean: start point, shape ``(n_parameters,)``
    :param seed: seed of every direction drawn
    :param n_updates: length of the search, for schedules
    :raises RefineError: when an argument is out of range
    """

    def __init__(self, mean: np.ndarray, seed: int, n_updates: int):
        check_count("n_updates", n_updates, 1)
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

        :param fitness: of the candidates, in the order of :meth:`ask`; higher is better; NaN drops a candidate
        """
        if self._asked is None:
            raise RuntimeError("tell() was called before ask(): ask for candidates first")
        fitness = np.asarray(fitness, dtype=np.float64)
        if fitness.shape != (len(self._asked),):
            raise ValueError(f"fitness: expected shape ({len(self._asked)},), got {fitness.shape}")
        if np.isinf(fitness).any():
            raise ValueError("fitness: expected finite numbers, or NaN to drop a candidate, got inf")
        self._tell(self._asked, fitness)
        self.n_updates_done += 1
        self._asked = None

    def state_dict(self) -> dict[str, Any]:
        """:return: all that changes, to go on from later; subclasses add theirs"""
        return {"mean": self.mean.copy(), "n_updates_done": self.n_updates_done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """:param state: what :meth:`state_dict` gave"""
        self.mean, self.n_updates_done = state["mean"].copy(), state["n_updates_done"]
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
    start, end = (start_end, start_end) if isinstance(start_end, (int, float, np.number)) else start_end
    return start + (end - start) * progress
