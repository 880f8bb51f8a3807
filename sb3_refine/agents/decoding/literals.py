"""Python literals as text, in options and in the Zoo's YAML: read, never run."""

import ast
from typing import Any

from sb3_refine.agents.decoding.pickle_tree import DecodingError

_MAX_LENGTH = 2000


def literal(text: str) -> Any:
    """
    :param text: a literal, or ``dict(name=literal, ...)``
    :return: its value
    :raises DecodingError: when it is anything else, or too long
    """
    try:
        node = parsed(text)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
            return {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords if keyword.arg}
        return ast.literal_eval(node)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        raise DecodingError(f"expected a literal, got {text[:60]!r}") from None


def parsed(text: str) -> ast.expr:
    """
    :param text: an expression
    :return: its syntax tree
    :raises SyntaxError: when the text is not an expression
    :raises ValueError: when the text is too long
    """
    if len(text) > _MAX_LENGTH:
        raise ValueError("too long")
    return ast.parse(text.strip(), mode="eval").body
