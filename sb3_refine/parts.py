"""How parts that can be exchanged (optimizer, objective, backend) are named, with their options."""

import ast
import inspect
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np

from sb3_refine.errors import RefineError, did_you_mean

_MAX_LITERAL = 200  # characters


def parse_part(argument: str, text: str, known: Mapping[str, type]) -> tuple[str, dict[str, Any]]:
    """
    Read ``name`` or ``name:option=value,option=value``.

    :param argument: name of the argument, for messages
    :param text: what was given. A value is a Python literal, such as ``0.5``, ``True`` or ``(0.02, 0.002)``, or text
    :param known: the registered classes by name
    :return: the name, and the options
    :raises RefineError: for an unknown name, or where the options are not of that form
    """
    if not isinstance(text, str):
        raise RefineError(f"{argument}: expected a name, got {text!r}; register a class of your own under a name")
    name, _, rest = text.partition(":")
    if name not in known:
        raise RefineError(
            f"{argument}: unknown {name!r}{did_you_mean(name, known)}; choose from {', '.join(known)}, or name the "
            "module that registers it in `gym_packages`"
        )
    options: dict[str, Any] = {}
    for pair in re.split(r",(?![^(\[{]*[)\]}])", rest) if rest else []:  # not at commas within brackets
        option, separator, value = pair.partition("=")
        if not separator:
            raise RefineError(f"{argument}: {name}:{pair}: expected {name}:option=value,option=value")
        if option in options:
            raise RefineError(f"{argument}: {text}: {option} is given twice")
        options[option] = _literal(value)
    return name, options


def check_options(argument: str, name: str, given: Mapping[str, Any], known: Mapping[str, tuple[type, ...]]) -> None:
    """
    :param argument: name of the argument, for messages
    :param name: of the part
    :param given: the options given
    :param known: the options of the part, see :func:`options_of`
    :raises RefineError: for an unknown option, and for a value that is not of the type of the option
    """
    takes = f"takes {', '.join(known)}" if known else "takes no options"
    for option, value in given.items():
        if option not in known:
            raise RefineError(
                f"{argument}: {name} has no option {option!r}{did_you_mean(option, known)}; {name} {takes}"
            )
        expected = [_TYPES.get(each) for each in known[option]]
        if None not in expected and not any(is_one(value) for _, is_one in filter(None, expected)):
            words = " or ".join(what for what, _ in filter(None, expected))
            raise RefineError(f"{argument}: {name}: {option}: expected {words}, got {value!r}")


def check_choice(argument: str, value: str, known: Iterable[str]) -> None:
    """
    :param argument: name of the argument, for messages
    :param value: what was given
    :param known: what there is to choose from
    :raises RefineError: when the value is none of those
    """
    if value not in known:
        raise RefineError(f"{argument}: unknown {value!r}{did_you_mean(value, known)}; choose from {', '.join(known)}")


_TYPES: dict[type, tuple[str, Callable[[Any], bool]]] = {
    bool: ("True or False", lambda value: isinstance(value, (bool, np.bool_))),
    int: ("a whole number", lambda value: isinstance(value, Integral) and not isinstance(value, bool)),
    float: ("a number", lambda value: isinstance(value, Real) and not isinstance(value, bool)),
    str: ("text", lambda value: isinstance(value, str)),
    type(None): ("None", lambda value: value is None),
}


def options_of(cls: type, n_first: int = 0) -> dict[str, tuple[type, ...]]:
    """
    :param cls: of a part
    :param n_first: arguments of its constructor, from the first on, that are no options
    :return: its options by name: the types that the annotation allows, ``object`` where there is none
    """
    if cls.__init__ is object.__init__:  # type: ignore[misc]
        return {}
    try:
        annotations = typing.get_type_hints(cls.__init__)  # type: ignore[misc]
    except (NameError, TypeError):  # of names that are imported for type checks only
        annotations = {}
    names = list(inspect.signature(cls).parameters)[n_first:]
    found = {name: annotations.get(name, object) for name in names}
    return {name: typing.get_args(each) or (each,) for name, each in found.items()}


def _literal(text: str) -> Any:
    """Long text may be nested so deeply that it stops the interpreter; it may come from a checkpoint."""
    try:
        return ast.literal_eval(text) if len(text) <= _MAX_LITERAL else text
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
