"""``config.yml`` and ``args.yml`` of the Zoo: plain values, within limits."""

import datetime
from collections import OrderedDict
from pathlib import Path
from typing import Any, cast

import yaml

from sb3_refine.errors import RefineError, one_line

_MAX_BYTES = 200_000
_MAX_DEPTH = 20
_MAX_VALUES = 20_000  # with those that aliases repeat


class _ZooLoader(yaml.SafeLoader):
    """The Zoo's YAML uses two Python tags."""


_ZooLoader.add_constructor(
    "tag:yaml.org,2002:python/object/apply:collections.OrderedDict",
    lambda loader, node: OrderedDict(loader.construct_sequence(cast(yaml.SequenceNode, node), deep=True)[0]),
)


_ZooLoader.add_constructor(
    "tag:yaml.org,2002:python/tuple",
    lambda loader, node: tuple(loader.construct_sequence(cast(yaml.SequenceNode, node), deep=True)),
)


def read_zoo_yaml(path: Path) -> dict[str, Any]:
    """
    Read a ``config.yml`` or ``args.yml`` of the Zoo without running anything in it.

    :param path: the file
    :return: its mapping: text to plain values
    :raises RefineError: for invalid YAML, for any other Python tag, and beyond the limits
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ValueError(f"larger than {_MAX_BYTES:,} bytes")
        text = data.decode()
        _check_size(text)
        content = _plain(yaml.load(text, Loader=_ZooLoader))
    except Exception as error:  # PyYAML's constructors raise anything
        reason = _reason(error)
        raise RefineError(f"{path}: cannot be read as YAML ({reason})") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise RefineError(f"{path}: expected a mapping of names to values")
    return dict(content)


def _reason(error: Exception) -> str:
    """Without the lines of the file that PyYAML shows."""
    if isinstance(error, yaml.MarkedYAMLError):
        where = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        return f"{error.problem}{where}"[:200]
    return one_line(error, 200)


def _check_size(text: str) -> None:
    """Go through the events of the parser, which come one at a time, before anything is made of them."""
    sizes: dict[str, int] = {}  # by anchor: values in what it names
    open_nodes: list[tuple[str | None, int]] = []  # anchor, and values before it
    n_values = 0
    for event in yaml.parse(text, Loader=_ZooLoader):
        if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            open_nodes.append((event.anchor, n_values))
        if isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            anchor, before = open_nodes.pop()
            if anchor is not None:
                sizes[anchor] = n_values - before
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise ValueError(f"an alias *{event.anchor} within what it names, or to nothing")
            n_values += sizes[event.anchor]
        elif isinstance(event, yaml.NodeEvent):
            n_values += 1
            if isinstance(event, yaml.ScalarEvent) and event.anchor is not None:
                sizes[event.anchor] = 1
        if len(open_nodes) > _MAX_DEPTH or n_values > _MAX_VALUES:
            raise ValueError(f"nested more than {_MAX_DEPTH} deep, or more than {_MAX_VALUES:,} values")


def _plain(value: Any) -> Any:
    """The value, if it is made of numbers, text and containers; dates as text."""
    if isinstance(value, dict):
        return type(value)((_plain_key(key), _plain(part)) for key, part in value.items())
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(part) for part in value)
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, int) and abs(value) >= 2**64:
        raise ValueError("a whole number out of range")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"a value of type {type(value).__name__}")


def _plain_key(key: Any) -> Any:
    if not isinstance(key, (str, bool, int, float, type(None))):
        raise ValueError("a mapping whose keys are not text")
    return key
