"""Texts that may hold names from files, as they are in Markdown."""

import re

from sb3_refine.errors import printable

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|&~!])")


def escaped(text: str) -> str:
    """
    :param text: any text
    :return: the text on one line, with nothing in it that Markdown or HTML would act on
    """
    return _SPECIAL.sub(r"\\\1", printable(text))


def code_span(text: str) -> str:
    """
    :param text: any text
    :return: the text as code within a line
    """
    return f"`{printable(text).replace('`', chr(39))}`"
