"""How parts that can be exchanged (optimizer, objective, backend) are named, with their options."""

import ast
import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any

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
    name, _, rest = text.partition(":")
    check_choice(argument, name, known)
    options: dict[str, Any] = {}
    for pair in re.split(r",(?![^(\[{]*[)\]}])", rest) if rest else []:  # not at commas within brackets
        option, separator, value = pair.partition("=")
        if not separator:
            raise RefineError(f"{argument}: {name}:{pair}: expected {name}:option=value,option=value")
        if option in options:
            raise RefineError(f"{argument}: {text}: {option} is given twice")
        options[option] = _literal(value)
    return name, options


def check_options(argument: str, name: str, given: Iterable[str], known: Iterable[str]) -> None:
    """
    :param argument: name of the argument, for messages
    :param name: of the part
    :param given: names of the options given
    :param known: names of the options that the part has
    :raises RefineError: for an unknown option
    """
    known = list(known)
    takes = f"takes {', '.join(known)}" if known else "takes no options"
    for option in given:
        if option not in known:
            raise RefineError(
                f"{argument}: {name} has no option {option!r}{did_you_mean(option, known)}; {name} {takes}"
            )


def check_choice(argument: str, value: str, known: Iterable[str]) -> None:
    """
    :param argument: name of the argument, for messages
    :param value: what was given
    :param known: what there is to choose from
    :raises RefineError: when the value is none of those
    """
    if value not in known:
        raise RefineError(f"{argument}: unknown {value!r}{did_you_mean(value, known)}; choose from {', '.join(known)}")


def options_of(cls: type) -> list[str]:
    """:return: names of the arguments of a constructor"""
    return [] if cls.__init__ is object.__init__ else list(inspect.signature(cls).parameters)  # type: ignore[misc]


def _literal(text: str) -> Any:
    """Long text may be nested so deeply that it stops the interpreter; it may come from a checkpoint."""
    try:
        return ast.literal_eval(text) if len(text) <= _MAX_LITERAL else text
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
