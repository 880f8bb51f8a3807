"""Python expressions as text, in options and in the Zoo's YAML: read as literals, never run."""

import ast
from typing import Any

from sb3_refine.decoding.pickle_tree import DecodingError

_MAX_LENGTH = 2000
_ALLOWED = (
    ast.Constant, ast.Dict, ast.List, ast.Tuple, ast.UnaryOp, ast.USub, ast.Call, ast.keyword, ast.Name, ast.Attribute,
    ast.Load,
)  # fmt: skip
_NAMES = {"dict", "nn"}


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
    :return: whether it only names literals, ``dict(...)`` and attributes of ``nn``, such as ``nn.ReLU``
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
    if isinstance(node, ast.Name):
        return node.id in _NAMES
    if isinstance(node, ast.Attribute):
        return isinstance(node.value, ast.Name) and node.value.id == "nn" and node.attr.isalnum()
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
    :return: the same without what would be run by the Zoo: expressions other than literals, and callbacks
    """
    return {
        name: value
        for name, value in config.items()
        if name != "callback" and not (name in _EVALUATED and isinstance(value, str) and not is_harmless(value))
    }
