"""A family of tasks: the seed of an episode decides its task."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from math import prod
from typing import Any
from zlib import crc32

import numpy as np

from sb3_refine.errors import RefineError, did_you_mean, one_line
from sb3_refine.seeding import STREAMS
from sb3_refine.tasks.distributions import Distribution, Grid, distribution_of

SECTIONS = ("env_kwargs", "env_wrapper", "physics", "goal")
"""Where the parameters of a task go, as files name it."""

_STREAM = 2  # beside the random numbers of the environment (the seed alone) and those of noise (1)
_MAX_CHECKED = 16  # tasks of a function, of which one at least must change the episode
_N_COMBINATIONS = 6  # of other values, in one of which a parameter must change the episode

Path = tuple[str, ...]
"""Section and name of a parameter; of a wrapper's: section, wrapper, name."""


@dataclass(frozen=True)
class Task:
    """
    What an environment is in one episode.

    :param env_kwargs: keyword arguments of the environment, over those of the agent
    :param env_wrapper: keyword arguments of further wrappers by dotted name, innermost first
    :param physics: see :mod:`sb3_refine.envs.physics`
    :param goal: see :mod:`sb3_refine.envs.goals`
    """

    env_kwargs: dict[str, Any] = field(default_factory=dict)
    env_wrapper: dict[str, dict[str, Any]] = field(default_factory=dict)
    physics: dict[str, Any] = field(default_factory=dict)
    goal: dict[str, Any] = field(default_factory=dict)

    @property
    def parameters(self) -> dict[str, Any]:
        """All parameters by name; those of wrappers as ``Wrapper.parameter``."""
        short = [name.rpartition(".")[2] for name in self.env_wrapper]
        of_wrappers = {
            f"{one if short.count(one) == 1 else name}.{parameter}": value
            for one, (name, kwargs) in zip(short, self.env_wrapper.items(), strict=True)
            for parameter, value in kwargs.items()
        }
        return {**self.env_kwargs, **of_wrappers, **self.physics, **self.goal}


class TaskFamily(ABC):
    """
    The tasks of a run. The task of an episode is drawn from the episode's seed. So the search, the choice on validation
    seeds and the test have disjoint streams of tasks, as of seeds, and the candidates of a group share their tasks.
    """

    @abstractmethod
    def task(self, seed: int) -> Task:
        """
        :param seed: of an episode
        :return: its task
        """

    @property
    @abstractmethod
    def settings(self) -> Any:
        """The family as JSON and YAML can hold it, or its name."""

    @abstractmethod
    def variations(self) -> dict[str, list[list[Task]]]:
        """
        By parameter, groups of tasks that differ in nothing else: where the episodes of each group are equal, the
        parameter is ignored.
        """


@dataclass(frozen=True)
class FixedTask(TaskFamily):
    """
    The same task in every episode.

    :param fixed: the task
    """

    fixed: Task

    def task(self, seed: int) -> Task:
        """:return: the task"""
        return self.fixed

    @property
    def settings(self) -> Any:
        """The sections that are not empty."""
        return {name: values for name, values in asdict(self.fixed).items() if values}

    def variations(self) -> dict[str, list[list[Task]]]:
        """None."""
        return {}


class TaskDistribution(TaskFamily):
    """
    Tasks whose parameters are drawn independently.

    :param content: of :data:`SECTIONS`, by parameter, a value or a distribution; of ``env_wrapper``, by wrapper
    :raises RefineError: when the content is anything else
    """

    def __init__(self, content: Mapping[str, Any]):
        _check_sections(content)
        self._content = {section: content[section] for section in SECTIONS if section in content}
        self._distributions: dict[Path, Distribution] = {
            path: distribution_of(path[-1], value) for path, value in sorted(_leaves(self._content))
        }
        self._grids = {path: one for path, one in self._distributions.items() if isinstance(one, Grid)}

    @property
    def _key(self) -> str:
        """Equal for families with the same tasks, whatever the order of their parameters."""
        return repr((list(self._content.get("env_wrapper", ())), sorted(self._distributions.items())))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TaskDistribution) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return f"TaskDistribution({self._content})"

    @property
    def settings(self) -> Any:
        """The content."""
        return self._content

    def leaves(self) -> list[tuple[Path, Any]]:
        """:return: each parameter with what the content says"""
        return list(_leaves(self._content))

    def task(self, seed: int) -> Task:
        """See :meth:`TaskFamily.task`. The value of a parameter does not depend on which others there are."""
        drawn = {path: one.draw(_rng(seed, path)) for path, one in self._distributions.items()}
        return _task_of(self._content, drawn | self._cell(seed))

    def _cell(self, seed: int) -> dict[Path, Any]:
        """The values of the grids: one combination after the other along each stream of seeds."""
        shape = [len(grid.values) for grid in self._grids.values()]
        place = np.unravel_index(seed // len(STREAMS) % prod(shape), shape) if shape else ()
        return {path: grid.values[i] for (path, grid), i in zip(self._grids.items(), place, strict=True)}

    def variations(self) -> dict[str, list[list[Task]]]:
        """See :meth:`TaskFamily.variations`. The other parameters are in their middle first, then drawn."""
        middle = {path: one.middle for path, one in self._distributions.items()}
        others = [middle] + [
            {path: one.draw(_rng(number, path)) for path, one in self._distributions.items()}
            for number in range(_N_COMBINATIONS)
        ]
        return {
            ".".join(path): [
                [_task_of(self._content, {**values, path: value}) for value in one.extremes] for values in others
            ]
            for path, one in self._distributions.items()
            if len(set(map(repr, one.extremes))) > 1
        }


@dataclass(frozen=True)
class TaskFunction(TaskFamily):
    """
    Tasks from a function of the user's.

    :param function: takes a ``numpy.random.Generator``; returns a mapping of :data:`SECTIONS` to parameters
    """

    function: Callable[[np.random.Generator], Mapping[str, Any]]

    def task(self, seed: int) -> Task:
        """
        :return: what the function returns
        :raises RefineError: when it fails or returns anything else
        """
        try:
            content = self.function(np.random.default_rng([seed, _STREAM]))
        except Exception as error:
            raise RefineError(f"tasks: the function failed: {type(error).__name__}: {one_line(error)}") from error
        _check_sections(content)
        return _task_of(content, dict(_leaves(content)))

    @property
    def settings(self) -> Any:
        """Name of the function."""
        module = getattr(self.function, "__module__", "")
        return f"{module}:{getattr(self.function, '__qualname__', type(self.function).__name__)}"

    def variations(self) -> dict[str, list[list[Task]]]:
        """All parameters together: which of them the function varies is not known."""
        tasks = [self.task(seed) for seed in range(_MAX_CHECKED)]
        return {"the function": [tasks]} if any(task != tasks[0] for task in tasks) else {}


def family_of_tasks(tasks: Any) -> TaskFamily:
    """
    :param tasks: a family, a mapping as :class:`TaskDistribution` takes it, or a function as :class:`TaskFunction`
        takes it
    :return: the family
    :raises RefineError: for anything else
    """
    if isinstance(tasks, TaskFamily):
        return tasks
    if isinstance(tasks, Mapping):
        return TaskDistribution(tasks)
    if callable(tasks):
        return TaskFunction(tasks)
    raise RefineError(f"tasks: expected a file, a mapping of {', '.join(SECTIONS)}, or a function, got {tasks!r}")


def _rng(seed: int, path: Path) -> np.random.Generator:
    return np.random.default_rng([seed, _STREAM, crc32(".".join(path).encode())])


def _check_sections(content: Any) -> None:
    if not isinstance(content, Mapping) or not content:
        raise RefineError(f"tasks: expected a mapping of {', '.join(SECTIONS)} to parameters, got {content!r}")
    for name, section in content.items():
        if name not in SECTIONS:
            meant = did_you_mean(str(name), SECTIONS)
            raise RefineError(f"tasks: unknown section {name!r}{meant}; choose from {', '.join(SECTIONS)}")
        if not isinstance(section, Mapping) or not section:
            raise RefineError(f"tasks: {name}: expected parameters with their values, got {section!r}")
        for key, value in section.items():
            if name == "env_wrapper" and not isinstance(value, Mapping | None):
                raise RefineError(f"tasks: {name}: {key}: expected parameters with their values, got {value!r}")
    for path, _ in _leaves(content):
        if not all(isinstance(name, str) for name in path):
            raise RefineError(f"tasks: {path[0]}: expected a name, got {path[-1]!r}")
    names = [path[-1] if len(path) == 2 else ".".join(path[1:]) for path, _ in _leaves(content)]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise RefineError(f"tasks: {twice[0]} is in two sections; name it once")


def _leaves(content: Mapping[str, Any]) -> Iterator[tuple[Path, Any]]:
    """Section and name of each parameter (of wrappers: section, wrapper, name), with what the content says."""
    for section, parameters in content.items():
        for name, value in parameters.items():
            if section != "env_wrapper":
                yield (section, name), value
                continue
            for parameter, of_wrapper in (value or {}).items():
                yield (section, name, parameter), of_wrapper


def _task_of(content: Mapping[str, Any], values: Mapping[Path, Any]) -> Task:
    """The task with these values, and with all wrappers of the content in its order."""
    task = Task(env_wrapper={name: {} for name in content.get("env_wrapper", ())})
    for (section, *inner, name), value in values.items():
        parameters: dict[str, Any] = getattr(task, section)
        for wrapper in inner:
            parameters = parameters[wrapper]
        parameters[name] = _plain(name, value)
    return task


def _plain(name: str, value: Any) -> Any:
    """numpy's numbers as Python's; arrays cannot be compared and written as numbers can."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        raise RefineError(f"tasks: {name}: expected a number, text or a list, got an array; use its tolist()")
    return value
