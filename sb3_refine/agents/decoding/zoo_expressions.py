"""Text in ``config.yml`` that the Zoo passes to ``eval``: what is passed on of it."""

import ast
import logging
from typing import Any

from sb3_refine.agents.decoding.literals import parsed
from sb3_refine.agents.decoding.objects import CLASSES

logger = logging.getLogger(__name__)

_EVALUATED = (
    "normalize", "normalize_kwargs", "policy_kwargs", "replay_buffer_class", "replay_buffer_kwargs",
    "rollout_buffer_class", "rollout_buffer_kwargs", "monitor_kwargs", "env_kwargs",
)  # fmt: skip
_MODULES = {"nn", "th", "torch", "optim"}
_NAMES = {name for modules in CLASSES.values() for names in modules.values() for name in names}


def without_code(config: dict[str, Any]) -> dict[str, Any]:
    """
    :param config: the Zoo's ``config.yml``
    :return: the same without what the Zoo would run as code; each entry that is left out is logged
    """
    kept = {}
    for name, value in config.items():
        is_code = name in _EVALUATED and isinstance(value, str) and not is_harmless(value)
        if is_code or name == "callback":
            logger.warning("config.yml: left out %s: the Zoo would run it as code", name)
        else:
            kept[name] = value
    return kept


def is_harmless(text: str) -> bool:
    """
    :param text: that the Zoo passes to ``eval``
    :return: whether it is made of literals, ``dict(...)`` and names of the classes that a zip may name, too
    """
    try:
        return _is_harmless(parsed(text))
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False


def _is_harmless(node: ast.expr) -> bool:
    match node:
        case ast.Name(name):
            return name in _NAMES
        case ast.Attribute(value, name):
            return name in _NAMES and _is_module(value)
    parts = _parts(node)
    return parts is not None and all(map(_is_harmless, parts))


def _parts(node: ast.expr) -> list[ast.expr] | None:
    """What a literal or a ``dict(...)`` is made of; None for any other expression."""
    match node:
        case ast.Constant() | ast.UnaryOp(ast.USub(), ast.Constant()):
            return []
        case ast.List(items) | ast.Tuple(items):
            return items
        case ast.Dict(keys, values):
            return [*filter(None, keys), *values]
        case ast.Call(ast.Name("dict"), [], keywords):
            return [keyword.value for keyword in keywords]
    return None


def _is_module(node: ast.expr) -> bool:
    if isinstance(node, ast.Attribute):
        return node.attr in _MODULES and _is_module(node.value)
    return isinstance(node, ast.Name) and node.id in _MODULES
