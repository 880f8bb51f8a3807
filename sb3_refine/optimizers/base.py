"""The interface of every search method."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from sb3_refine.errors import RefineError, check_count
from sb3_refine.optimizers.population import Population
from sb3_refine.parts import options_of


class Optimizer(ABC):
    """
    Ask for candidates, evaluate them, tell their fitness. Always maximises.

    A search method is a subclass with :attr:`population_size`, ``_ask`` and ``_tell``; what changes beside ``theta``
    goes into :meth:`state_dict`. The arguments of its constructor, except the first three, are its options.

    >>> import numpy as np
    >>> from sb3_refine.optimizers import BacktrackingARS
    >>> optimizer = BacktrackingARS(np.zeros(3, np.float32), seed=0, n_updates=60)
    >>> for _ in range(60):
    ...     population = optimizer.ask()
    ...     thetas = [population.theta(number) for number in range(len(population))]
    ...     optimizer.tell(np.array([-np.sum((theta - 1) ** 2) for theta in thetas]))
    >>> optimizer.theta.round(1).tolist()
    [1.0, 1.0, 1.0]

    :param theta: start point, shape ``(n_parameters,)``
    :param seed: seed of everything random
    :param n_updates: length of the search, for schedules
    :raises RefineError: when an argument is out of range
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"default": {}}
    """Sets of options by name. What a preset leaves out has the default of its argument; beside the options of the
    optimizer, a preset may hold ``n_updates`` and ``selection``, see
    :class:`~sb3_refine.evaluation.judge.JudgeSettings`."""

    in_action_units: ClassVar[bool] = False
    """Whether noise and steps are measured by how much they change the actions, see
    :func:`~sb3_refine.policies.noise_scale.noise_scale`. If so, the optimizer searches the changes of the parameters,
    each divided by the standard deviation that changes the actions by one unit, and starts at zero."""

    uses_critic_gradient: ClassVar[bool] = False
    """Whether to set :attr:`critic_gradient` before the search; only with :attr:`in_action_units`."""

    critic_gradient: np.ndarray = np.empty(0, dtype=np.float32)
    """Gradient of the values of the agent's critic at the start, with respect to what the optimizer searches, see
    :func:`~sb3_refine.policies.critic_gradient.critic_gradient`; empty for agents without one. Belongs to the state."""

    episodes_per_candidate: int = 1
    """Episodes that the fitness of a candidate is the mean of, each on another seed."""

    def __init__(self, theta: np.ndarray, seed: int, n_updates: int):
        check_count("n_updates", n_updates, 1)
        self.theta: np.ndarray = np.array(theta, dtype=np.float32)
        self.seed = seed
        self.n_updates = n_updates
        self.n_updates_done = 0
        self._asked: Population | None = None

    @classmethod
    def options(cls) -> dict[str, tuple[type, ...]]:
        """:return: names and types of the arguments that are the optimizer's own"""
        return options_of(cls, n_first=3)

    @property
    @abstractmethod
    def population_size(self) -> int:
        """Number of candidates in the next update."""

    def tell_start(self, fitness: np.ndarray) -> None:  # noqa: B027 - most optimizers have no use for it
        """
        Called before the first update, where the start point has been run already.

        :param fitness: of the start point, one for each of some seeds that belong to no update
        """

    def ask(self) -> Population:
        """:return: the candidates of this update"""
        if self._asked is not None:
            raise RuntimeError("ask() was called twice: call tell() with the fitness of the candidates in between")
        self._asked = self._ask()
        return self._asked

    def tell(self, fitness: np.ndarray) -> None:
        """
        Move ``theta``.

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
        """:return: a copy of everything that changes; nested dicts and lists of arrays, numbers and strings"""
        return {"theta": self.theta.copy(), "n_updates_done": self.n_updates_done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """:param state: what :meth:`state_dict` gave"""
        self.theta, self.n_updates_done = state["theta"].copy(), state["n_updates_done"]
        self._asked = None

    @abstractmethod
    def _ask(self) -> Population: ...

    @abstractmethod
    def _tell(self, population: Population, fitness: np.ndarray) -> None: ...


def linear_schedule(start_end: float | tuple[float, float], progress: float) -> float:
    """
    :param start_end: a constant, or start and end
    :param progress: share of the updates done, in [0, 1)
    :return: the value at that point; the end itself is never reached
    """
    start, end = np.broadcast_to(np.asarray(start_end, dtype=np.float64), 2)
    return float(start + (end - start) * progress)


def check_schedule(name: str, value: Any, allow_zero: bool = False) -> None:
    """
    :param name: of an argument of :func:`linear_schedule`
    :param value: what was given
    :param allow_zero: whether the value may be 0 all the time
    :raises RefineError: when it is neither a positive number nor a start and an end
    """
    try:
        numbers = np.asarray(value)
    except ValueError:  # lists of different lengths
        numbers = np.asarray("neither")
    if numbers.dtype.kind not in "iuf" or numbers.shape not in ((), (2,)) or not np.isfinite(numbers).all():
        raise RefineError(f"{name}: expected a positive number or a start and an end, got {value!r}")
    if numbers.min() < 0 or (numbers.max() == 0 and not allow_zero):
        raise RefineError(f"{name}: expected a positive number or a start and an end, got {value}")
