"""Episodes in groups by a parameter of their tasks."""

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np

from sb3_refine.formatting import number_text

_MAX_VALUES = 8  # of a parameter, with more of which its range is cut into parts
_N_PARTS = 4  # with equally many episodes

Group = tuple[str, np.ndarray]
"""Name of a group, and the places of its episodes."""


def by_parameter(tasks: Sequence[Mapping[str, Any]]) -> dict[str, list[Group]]:
    """
    >>> groups = by_parameter([{"mass": 1, "gravity": -9.8}, {"mass": 2, "gravity": -9.8}])
    >>> {name: [label for label, _ in of_name] for name, of_name in groups.items()}
    {'mass': ['1.00', '2.00']}

    :param tasks: the parameters of the task of each episode
    :return: for each parameter that differs between tasks, the groups of episodes: one for each value, or four equally
        large ones along its range
    """
    names = dict.fromkeys(name for task in tasks for name in task)
    columns = {name: [task.get(name) for task in tasks] for name in names}
    return {name: groups for name, column in columns.items() if len(groups := _groups(column)) > 1}


def numeric_parameters(tasks: Sequence[Mapping[str, Any]]) -> dict[str, tuple[np.ndarray, list[Group]]]:
    """
    :param tasks: the parameters of the task of each episode
    :return: for each parameter whose groups are parts of a range: its value in each episode, and the groups
    """
    found = {}
    for name, groups in by_parameter(tasks).items():
        values = [task.get(name) for task in tasks]
        if all(map(_is_number, values)) and len(set(values)) > _MAX_VALUES:
            found[name] = (np.array(values, dtype=float), groups)
    return found


def _groups(column: list[Any]) -> list[Group]:
    places: dict[str, list[int]] = {}
    for place, value in enumerate(column):
        places.setdefault(repr(value), []).append(place)
    if len(places) <= _MAX_VALUES:
        values = sorted(places.values(), key=lambda own: _order(column[own[0]]))
        return [(_text(column[own[0]]), np.array(own)) for own in values]
    if not all(_is_number(value) for value in column):
        return []
    numbers = np.array(column, dtype=float)
    parts = np.array_split(np.argsort(numbers, kind="stable"), _N_PARTS)
    return [(f"{number_text(numbers[part[0]])} to {number_text(numbers[part[-1]])}", part) for part in parts]


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _order(value: Any) -> tuple[bool, Any]:
    """Numbers first, by their size."""
    return (False, value) if _is_number(value) else (True, repr(value))


def _text(value: Any) -> str:
    return number_text(value) if _is_number(value) else str(value)


def task_text(task: Mapping[str, Any]) -> str:
    """
    :param task: its parameters
    :return: those on one line
    """
    return ", ".join(f"{name} {_text(value)}" for name, value in task.items())
