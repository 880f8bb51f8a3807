"""A family of tasks: the seed of an episode decides its task."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from math import prod
from typing import Any

import numpy as np

from sb3_refine.errors import RefineError, did_you_mean, one_line
from sb3_refine.seeding import STREAMS
from sb3_refine.tasks.distributions import Distribution, Grid, distribution_of

SECTIONS = ("env_kwargs", "env_wrapper", "physics", "goal")
"""Where the parameters of a task go, as files name it."""

_STREAM = 2  # beside the random numbers of the environment (the seed alone) and those of noise (1)
_MAX_CHECKED = 16  # tasks of a function, of which one at least must change the episode


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
        of_wrappers = {
            f"{name.rpartition('.')[2]}.{parameter}": value
            for name, kwargs in self.env_wrapper.items()
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
    def variations(self) -> dict[str, list[Task]]:
        """By parameter, tasks that differ in nothing else: where their episodes are equal, it is ignored."""


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

    def variations(self) -> dict[str, list[Task]]:
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
        self._content = {section: content[section] for section in SECTIONS if content.get(section)}
        self._distributions: dict[tuple[str, ...], Distribution] = {
            path: distribution_of(path[-1], value) for path, value in _leaves(self._content)
        }
        self._grids = {path: one for path, one in self._distributions.items() if isinstance(one, Grid)}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TaskDistribution) and self._content == other._content

    def __hash__(self) -> int:
        return hash(repr(self._content))

    def __repr__(self) -> str:
        return f"TaskDistribution({self._content})"

    @property
    def settings(self) -> Any:
        """The content."""
        return self._content

    def task(self, seed: int) -> Task:
        """See :meth:`TaskFamily.task`."""
        rng = np.random.default_rng([seed, _STREAM])
        return _task_of({path: one.draw(rng) for path, one in self._distributions.items()} | self._cell(seed))

    def _cell(self, seed: int) -> dict[tuple[str, ...], Any]:
        """The values of the grids: one combination after the other along each stream of seeds."""
        shape = [len(grid.values) for grid in self._grids.values()]
        place = np.unravel_index(seed // len(STREAMS) % prod(shape), shape) if shape else ()
        return {path: grid.values[i] for (path, grid), i in zip(self._grids.items(), place, strict=True)}

    def variations(self) -> dict[str, list[Task]]:
        """See :meth:`TaskFamily.variations`."""
        middle = {path: one.middle for path, one in self._distributions.items()}
        return {
            ".".join(path): [_task_of(middle | {path: value}) for value in one.extremes]
            for path, one in self._distributions.items()
            if len(one.extremes) > 1 and one.extremes[0] != one.extremes[-1]
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
        return _task_of(dict(_leaves(content)))

    @property
    def settings(self) -> Any:
        """Name of the function."""
        module = getattr(self.function, "__module__", "")
        return f"{module}:{getattr(self.function, '__qualname__', type(self.function).__name__)}"

    def variations(self) -> dict[str, list[Task]]:
        """All parameters together: which of them the function varies is not known."""
        tasks = [self.task(seed) for seed in range(_MAX_CHECKED)]
        return {"the function": tasks} if any(task != tasks[0] for task in tasks) else {}


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
            if not isinstance(key, str):
                raise RefineError(f"tasks: {name}: expected a name, got {key!r}")
            if name == "env_wrapper" and not isinstance(value, Mapping):
                raise RefineError(f"tasks: {name}: {key}: expected parameters with their values, got {value!r}")
    names = [path[-1] if len(path) == 2 else ".".join(path[1:]) for path, _ in _leaves(content)]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise RefineError(f"tasks: {twice[0]} is in two sections; name it once")


def _leaves(content: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Section and name of each parameter (of wrappers: section, wrapper, name), with what the content says."""
    for section, parameters in content.items():
        for name, value in parameters.items():
            if section != "env_wrapper":
                yield (section, name), value
                continue
            for parameter, of_wrapper in value.items():
                yield (section, name, parameter), of_wrapper


def _task_of(values: Mapping[tuple[str, ...], Any]) -> Task:
    task = Task()
    for (section, *inner, name), value in values.items():
        parameters: dict[str, Any] = getattr(task, section)
        for wrapper in inner:
            parameters = parameters.setdefault(wrapper, {})
        parameters[name] = value
    return task
