"""The errors that a user can fix: one line each, naming the remedy."""

import difflib
import numbers
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

_MAX_MESSAGE = 1000


class RefineError(ValueError):
    """
    Something that the user can fix: a wrong name, a corrupt file, a missing package.

    The message is one line that says what was expected, what came, and what to do.
    The command line prints it without a traceback and exits with status 1. Control characters in it, which may come
    from a file, are escaped.
    """

    def __init__(self, message: str):
        message = printable(message)
        if len(message) > _MAX_MESSAGE:  # the remedy is at the end
            message = f"{message[: _MAX_MESSAGE // 2]} ... {message[-_MAX_MESSAGE // 3 :]}"
        super().__init__(message)


class NoEffectError(RefineError):
    """The parameters that a search would move do not change what the agent does."""


class EpisodeError(RuntimeError):
    """An environment or policy failed in an episode: which one, and the traceback of the process that ran it."""


@contextmanager
def reraise_as_episode_error(what: str) -> Iterator[None]:
    """
    Whatever goes wrong in an environment arrives as one kind of error, also when it calls ``exit()``.

    :param what: the episode
    :raises EpisodeError: which episode failed, and the traceback
    """
    try:
        yield
    except (RefineError, EpisodeError):  # these messages already name the episode
        raise
    except (Exception, SystemExit) as error:
        what_failed = f"{what} failed: {type(error).__name__}: {error}"
        raise EpisodeError(f"{what_failed}\n{traceback.format_exc()}") from error


def printable(text: str) -> str:
    """
    :param text: may hold names from files
    :return: the text without characters that a terminal would act on: each becomes an escape such as ``\\x1b``
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def printable_lines(text: str) -> str:
    """
    :param text: several lines
    :return: each line as :func:`printable` gives it, with tabs as spaces
    """
    return "\n".join(printable(line.expandtabs()) for line in text.split("\n"))


def one_line(error: BaseException, n_characters: int = 150) -> str:
    """
    :param error: any error
    :param n_characters: the most to give of its message
    :return: the beginning of its message, on one line; its type where there is none
    """
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= n_characters else f"{text[:n_characters]}..."


def check_seconds(name: str, value: Any, allow_zero: bool = False) -> None:
    """
    :param name: of an argument
    :param value: its value
    :param allow_zero: whether it may be 0
    :raises RefineError: when it is not a number of seconds
    """
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not (value > 0 or (allow_zero and value == 0)):
        least = "of at least 0" if allow_zero else "above 0"
        raise RefineError(f"{name}: expected a number of seconds {least}, got {value!r}")


def check_count(name: str, value: Any, at_least: int, at_most: int | None = None) -> None:
    """
    :param name: of an argument
    :param value: its value
    :param at_least: the smallest whole number it may be
    :param at_most: the largest, or None
    :raises RefineError: when it is anything else
    """
    if not isinstance(value, numbers.Integral) or value < at_least:
        raise RefineError(f"{name}: expected a whole number of at least {at_least}, got {value!r}")
    if at_most is not None and int(value) > at_most:
        raise RefineError(f"{name}: expected a whole number of at most {at_most:,}, got {value!r}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """
    Suggest the known names closest to a misspelt one.

    :param name: the name as given
    :param known: the names that exist
    :return: `` (did you mean A or B?)``, or an empty string where nothing is close
    """
    by_lower_case = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), by_lower_case, n=3, cutoff=0.6)
    matches = [by_lower_case[match] for match in close]
    return f" (did you mean {' or '.join(matches)}?)" if matches else ""
