"""Checks of values in files of a run, which somebody else may have written."""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from sb3_refine.agents.decoding.arrays import shown
from sb3_refine.errors import one_line

Check: TypeAlias = Callable[[Any], None]
"""Raises a :class:`SchemaError` for an invalid value."""

_MAX_JSON_BYTES = 32 * 2**20
_MAX_JSON_MARKS = 2_000_000  # brackets and commas: each becomes an object
_MAX_TEXT = 10_000


class SchemaError(ValueError):
    """A value is invalid."""


def whole(low: float = -math.inf, high: float = 2**63) -> Check:
    """
    :param low: smallest allowed
    :param high: largest allowed
    :return: a check for whole numbers
    """

    def check(value: Any) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise _expected(f"a whole number{_range(low, high)}", value)

    return check


def number(low: float = -math.inf, high: float = math.inf, allow_nan: bool = False) -> Check:
    """
    :param low: smallest allowed
    :param high: largest allowed
    :param allow_nan: whether NaN is allowed
    :return: a check for numbers
    """

    def check(value: Any) -> None:
        is_number = isinstance(value, float) or (isinstance(value, int) and abs(value) <= 2**63)
        if not is_number or isinstance(value, bool) or not (low <= value <= high or (allow_nan and math.isnan(value))):
            raise _expected(f"a number{_range(low, high)}", value)

    return check


def flag(value: Any) -> None:
    """:param value: must be true or false"""
    if not isinstance(value, bool):
        raise _expected("true or false", value)


def text(pattern: str = r"(?s).*") -> Check:
    """
    :param pattern: regular expression of the whole text
    :return: a check for text
    """

    def check(value: Any) -> None:
        if not isinstance(value, str) or len(value) > _MAX_TEXT or not re.fullmatch(pattern, value):
            raise _expected("text" if pattern == r"(?s).*" else f"text like {pattern}", value)

    return check


def one_of(*choices: Any) -> Check:
    """
    :param choices: what is allowed
    :return: a check for one of them
    """

    def check(value: Any) -> None:
        if not any(type(value) is type(choice) and value == choice for choice in choices):
            raise _expected(f"one of {', '.join(map(repr, choices))}", value)

    return check


def either(*checks: Check) -> Check:
    """
    :param checks: of which one must pass
    :return: a check for any of them
    """

    def check(value: Any) -> None:
        errors = []
        for part in checks:
            try:
                return part(value)
            except SchemaError as error:
                errors.append(error)
        raise errors[-1]

    return check


def optional(check: Check) -> Check:
    """
    :param check: of the value, where there is one
    :return: a check that also allows None
    """
    return lambda value: None if value is None else check(value)


def list_of(check: Check, n_items: int | None = None) -> Check:
    """
    :param check: of each item
    :param n_items: how many there must be; None for any number
    :return: a check for lists and tuples
    """

    def check_all(value: Any) -> None:
        if not isinstance(value, (list, tuple)) or (n_items is not None and len(value) != n_items):
            raise _expected("a list" if n_items is None else f"a list of {n_items}", value)
        for index, item in enumerate(value):
            _at(str(index), check, item)

    return check_all


def row(*checks: Check) -> Check:
    """
    :param checks: of each item
    :return: a check for a list of that many items
    """

    def check(value: Any) -> None:
        list_of(lambda _: None, len(checks))(value)
        for index, (part, item) in enumerate(zip(checks, value, strict=True)):
            _at(str(index), part, item)

    return check


def record(checks: Mapping[str, Check], others: Check | None = None) -> Check:
    """
    :param checks: by key, each of which must be there; one that ends in ``?`` may be missing
    :param others: of the values of all other keys; None: they may be anything
    :return: a check for dicts
    """

    def check(value: Any) -> None:
        mapping_of(lambda _: None)(value)
        for key, part in checks.items():
            name = key.removesuffix("?")
            if name in value:
                _at(name, part, value[name])
            elif name == key:
                raise SchemaError(f"{name} is missing")
        for name in value.keys() - {key.removesuffix("?") for key in checks}:
            if others is not None:
                _at(name, others, value[name])

    return check


def mapping_of(check: Check, key_pattern: str = r".{1,200}") -> Check:
    """
    :param check: of each value
    :param key_pattern: regular expression of the keys
    :return: a check for dicts
    """

    def check_all(value: Any) -> None:
        if not isinstance(value, dict) or not all(isinstance(k, str) and re.fullmatch(key_pattern, k) for k in value):
            raise _expected("a mapping", value)
        for key, item in value.items():
            _at(key, check, item)

    return check_all


def vector(n: int, dtype: type) -> Check:
    """
    :param n: length
    :param dtype: of the numbers
    :return: a check for arrays of shape ``(n,)``, all finite
    """

    def check(value: Any) -> None:
        if not isinstance(value, np.ndarray) or value.shape != (n,) or value.dtype != dtype:
            raise _expected(f"{n} numbers", value)
        if not np.isfinite(value).all():
            raise SchemaError("NaN or infinity in it")

    return check


def table(n_columns: int) -> Check:
    """
    :param n_columns: number of columns
    :return: a check for float64 arrays with that many columns; NaN is allowed
    """

    def check(value: Any) -> None:
        is_table = isinstance(value, np.ndarray) and value.ndim == 2 and value.dtype == np.float64
        if not is_table or value.shape[1] != n_columns or not np.all(np.abs(value[:, :3]) < 2**53):
            raise _expected(f"{n_columns} columns of numbers", value)

    return check


def plain(value: Any, depth: int = 0) -> None:
    """:param value: must be made of numbers, short text and containers"""
    if depth > 10:
        raise SchemaError("nested too deeply")
    if isinstance(value, dict):
        mapping_of(lambda item: plain(item, depth + 1))(value)
    elif isinstance(value, (list, tuple)):
        list_of(lambda item: plain(item, depth + 1))(value)
    elif isinstance(value, str):
        text()(value)
    elif isinstance(value, (bool, int, float)):
        number(allow_nan=True)(float(value) if isinstance(value, bool) else value)
    elif value is not None:
        raise _expected("a plain value", value)


def read_json(path: Path) -> Any:
    """
    :param path: a file
    :return: its content
    :raises SchemaError: when it cannot be read, or is too large
    """
    try:
        with path.open("rb") as file:
            return parse_json(file.read(_MAX_JSON_BYTES + 1))
    except OSError as error:
        raise SchemaError(one_line(error)) from None


def parse_json(data: bytes) -> Any:
    """
    :param data: JSON
    :return: its content
    :raises SchemaError: when the file is corrupt, or too large
    """
    if len(data) > _MAX_JSON_BYTES or sum(data.count(mark) for mark in (b"[", b"{", b",")) > _MAX_JSON_MARKS:
        raise SchemaError("too large")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise SchemaError(one_line(error)) from None


def _at(name: str, check: Check, value: Any) -> None:
    try:
        check(value)
    except SchemaError as error:
        text_of_error = str(error)
        separator = "." if re.match(r"[\w.]+: ", text_of_error) else ": "
        raise SchemaError(f"{name}{separator}{text_of_error}") from None


def _range(low: float, high: float) -> str:
    if high >= 2**63:
        return f" of at least {low:g}" if low > -math.inf else ""
    return f" from {low:g} to {high:g}"


def _expected(what: str, value: Any) -> SchemaError:
    return SchemaError(f"expected {what}, got {shown(value)}")
