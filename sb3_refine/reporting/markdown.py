"""Texts that may hold names from files, as they are in Markdown."""

import re

from sb3_refine.errors import printable

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|&~!])")


def escaped(text: str) -> str:
    """
    :param text: any text
    :return: the text on one line, with the special characters of Markdown and HTML escaped
    """
    return _SPECIAL.sub(r"\\\1", printable(text))


def code_span(text: str) -> str:
    """
    :param text: any text
    :return: the text as code within a line
    """
    return f"`{printable(text).replace('`', chr(39))}`"
