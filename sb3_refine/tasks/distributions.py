"""Distributions of the parameters of a task."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sb3_refine.errors import RefineError, did_you_mean

_LARGEST = 1e15


class Distribution(ABC):
    """What a parameter is drawn from."""

    @abstractmethod
    def draw(self, rng: np.random.Generator) -> Any:
        """
        :param rng: source of random numbers
        :return: a value
        """

    @property
    @abstractmethod
    def extremes(self) -> list[Any]:
        """The values that differ most: an environment that gives equal episodes for all ignores the parameter."""

    @property
    def middle(self) -> Any:
        """The value that stands for all while another parameter is looked at."""
        return self.extremes[0]


@dataclass(frozen=True)
class Constant(Distribution):
    """Always the same value."""

    value: Any

    def draw(self, rng: np.random.Generator) -> Any:
        """:return: the value"""
        return self.value

    @property
    def extremes(self) -> list[Any]:
        """The value."""
        return [self.value]


@dataclass(frozen=True)
class Uniform(Distribution):
    """
    Uniform between two numbers.

    :param low: the smallest
    :param high: the largest
    """

    low: float
    high: float

    def draw(self, rng: np.random.Generator) -> float:
        """:return: a number"""
        return float(rng.uniform(self.low, self.high))

    @property
    def extremes(self) -> list[float]:
        """Both ends."""
        return [self.low, self.high]

    @property
    def middle(self) -> float:
        """The mean."""
        return (self.low + self.high) / 2


@dataclass(frozen=True)
class LogUniform(Uniform):
    """
    Uniform in the logarithm: for factors, of which a half is as likely as a double.

    :param low: the smallest, above 0
    :param high: the largest
    """

    def draw(self, rng: np.random.Generator) -> float:
        """:return: a number"""
        return float(np.exp(rng.uniform(np.log(self.low), np.log(self.high))))

    @property
    def middle(self) -> float:
        """The geometric mean."""
        return math.sqrt(self.low * self.high)


@dataclass(frozen=True)
class Choice(Distribution):
    """
    One of some values, all with the same probability.

    :param values: at least one
    """

    values: tuple[Any, ...]

    def draw(self, rng: np.random.Generator) -> Any:
        """:return: one of the values"""
        return self.values[int(rng.integers(len(self.values)))]

    @property
    def extremes(self) -> list[Any]:
        """All values."""
        return list(self.values)


@dataclass(frozen=True)
class Grid(Choice):
    """
    Some values, each of which comes in turn from seed to seed; all combinations, where there are several grids.

    :param values: at least one
    """


def _numbers(name: str, kind: str, content: Any, positive: bool) -> tuple[float, float]:
    is_pair = isinstance(content, (list, tuple)) and len(content) == 2
    if not is_pair or not all(_is_finite(value) for value in content) or not content[0] <= content[1]:
        raise RefineError(f"tasks: {name}: {kind}: expected [low, high] with low <= high, got {content!r}")
    if positive and not content[0] > 0:
        raise RefineError(f"tasks: {name}: {kind}: expected numbers above 0, got {content!r}")
    return float(content[0]), float(content[1])


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST


def _values(name: str, kind: str, content: Any) -> tuple[Any, ...]:
    if not isinstance(content, (list, tuple)) or not content:
        raise RefineError(f"tasks: {name}: {kind}: expected a list of at least one value, got {content!r}")
    return tuple(content)


KINDS = ("uniform", "log-uniform", "choice", "grid")
"""Names of the distributions in a file."""


def distribution_of(name: str, content: Any) -> Distribution:
    """
    :param name: of the parameter, for messages
    :param content: a value, or a mapping of one of :data:`KINDS` to its range or values
    :return: the distribution
    :raises RefineError: when the content is anything else
    """
    if not isinstance(content, Mapping):
        return Constant(content)
    if len(content) != 1:
        raise RefineError(f"tasks: {name}: expected one distribution, such as {{uniform: [0, 1]}}, got {content!r}")
    ((kind, values),) = content.items()
    if kind == "uniform":
        return Uniform(*_numbers(name, kind, values, positive=False))
    if kind == "log-uniform":
        return LogUniform(*_numbers(name, kind, values, positive=True))
    if kind in ("choice", "grid"):
        return {"choice": Choice, "grid": Grid}[kind](_values(name, kind, values))
    meant = did_you_mean(str(kind), KINDS)
    raise RefineError(f"tasks: {name}: unknown distribution {kind!r}{meant}; choose from {', '.join(KINDS)}")
