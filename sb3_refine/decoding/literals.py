"""Python expressions as text, in options and in the Zoo's YAML: read as literals, never run."""

import ast
import logging
from typing import Any

from sb3_refine.decoding.pickle_tree import DecodingError

logger = logging.getLogger(__name__)

_MAX_LENGTH = 2000
_ALLOWED = (
    ast.Constant, ast.Dict, ast.List, ast.Tuple, ast.UnaryOp, ast.USub, ast.keyword, ast.Name,
    ast.Load,
)  # fmt: skip


def literal(text: str) -> Any:
    """
    :param text: a literal, or ``dict(name=literal, ...)``
    :return: its value
    :raises DecodingError: when it is anything else, or too long
    """
    try:
        node = _parsed(text)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
            return {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords if keyword.arg}
        return ast.literal_eval(node)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        raise DecodingError(f"expected a literal, got {text[:60]!r}") from None


def is_harmless(text: str) -> bool:
    """
    :param text: that the Zoo passes to ``eval``
    :return: whether it is made of literals, names, ``dict(...)`` and attributes such as ``nn.ReLU``: none of them runs
        anything
    """
    try:
        return all(_is_harmless(node) for node in ast.walk(_parsed(text)))
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False


def _parsed(text: str) -> ast.expr:
    if len(text) > _MAX_LENGTH:
        raise ValueError("too long")
    return ast.parse(text.strip(), mode="eval").body


def _is_harmless(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute):
        return not node.attr.startswith("_")
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "dict"
    return isinstance(node, _ALLOWED)


_EVALUATED = (
    "normalize", "normalize_kwargs", "policy_kwargs", "replay_buffer_class", "replay_buffer_kwargs",
    "rollout_buffer_class", "rollout_buffer_kwargs", "monitor_kwargs", "env_kwargs",
)  # fmt: skip
"""Entries of ``config.yml`` that the Zoo passes to ``eval`` where they are text."""


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
