"""Numbers, Markdown and command lines as text."""

import re
import shlex
import textwrap
from collections.abc import Sequence

import numpy as np

from sb3_refine.errors import printable, printable_lines

METRIC_LABELS = {  # the first in half ranges, see sb3_refine.rollouts.metrics
    "action_change": "action change a step",
    "action_jerk": "action jerk",
    "high_frequency_share": "high-frequency share",
    "mesh_dimension": "mesh dimension",
}

_ROUNDING = 1e-12  # of sums of floats
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|&~!])")
_WIDTH = 100  # of paragraphs


def number_text(value: float | None, sign: str = "") -> str:
    """
    :param value: any number; None for NaN
    :param sign: ``"+"`` to show it also where the number is positive
    :return: two digits after the point, or three significant ones for small numbers
    """
    if value is None:
        return "not valid"
    return f"{value:{sign}.3g}" if _ROUNDING < abs(value) < 0.1 else f"{value:{sign}.2f}"


def digits_of(*values: float) -> int:
    """
    :param values: of one row or column of a table
    :return: digits after the point that show four significant figures of the largest
    """
    largest = max((abs(value) for value in values if np.isfinite(value)), default=0.0)
    return max(0, min(15, 4 - int(np.ceil(np.log10(largest))))) if largest > 0 else 1


def rate_text(rate: float | None, interval: Sequence[float | None] | None) -> str:
    """
    :param rate: a share, or None for NaN
    :param interval: its bounds
    :return: both in per cent
    """
    if rate is None or interval is None or None in interval:
        return "not valid" if rate is None else f"{rate:.1%}"
    low, high = interval
    return f"{rate:.1%} ({low:.1%} to {high:.1%})"


def plural(n: int, noun: str) -> str:
    """
    :param n: how many
    :param noun: in the singular
    :return: both, with the noun in the right number
    """
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def escaped(text: str) -> str:
    """
    :param text: any text, such as a name from a file
    :return: the text on one line, with the special characters of Markdown and HTML escaped
    """
    return _SPECIAL.sub(r"\\\1", printable(text))


def code_span(text: str) -> str:
    """
    :param text: any text
    :return: the text as code within a line
    """
    return f"`{printable(text).replace('`', chr(39))}`"


def code_block(text: str) -> str:
    """
    :param text: any text
    :return: the text as a block of code
    """
    return f"```\n{printable_lines(text)}\n```"


def filled(text: str, indent: str = "") -> str:
    """
    :param text: a paragraph
    :param indent: of all lines but the first
    :return: the paragraph, broken into lines
    """
    return textwrap.fill(
        " ".join(text.split()), _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> str:
    """
    :param header: cells of the first row
    :param rows: cells of the others
    :param align: ``l`` or ``r`` for each column
    :return: a Markdown table that can also be read as plain text
    """
    widths = [max(3, *(len(row[i]) for row in (header, *rows))) for i in range(len(header))]
    rule = ["-" * (width - 1) + (":" if side == "r" else "-") for width, side in zip(widths, align, strict=True)]

    def line(cells: Sequence[str]) -> str:
        columns = zip(cells, widths, align, strict=True)
        padded = (cell.rjust(width) if side == "r" else cell.ljust(width) for cell, width, side in columns)
        return f"| {' | '.join(padded)} |"

    return "\n".join(line(cells) for cells in (header, rule, *rows))


def command_text(*lines: Sequence[str]) -> str:
    """
    :param lines: arguments of a command, line by line
    :return: the command for a shell, on several lines
    """
    return " \\\n  ".join(shlex.join(line) for line in lines if line)


def duration(seconds: float) -> str:
    """
    :param seconds: of a run
    :return: in seconds or minutes
    """
    return plural(round(seconds / 60), "minute") if seconds > 120 else plural(max(1, round(seconds)), "second")
