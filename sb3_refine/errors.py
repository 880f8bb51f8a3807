"""The errors a user can mend: one line each, naming the remedy."""

import difflib
import numbers
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


class RefineError(ValueError):
    """
    Something the user can mend: a wrong name, a broken file, a missing package.

    The message is one line that says what was expected, what came, and what to do.
    The command line prints it without a traceback and exits with status 1.
    """


class EpisodeError(RuntimeError):
    """An environment or policy failed in an episode: which one, and the traceback of the process that ran it."""


@contextmanager
def told_of_episode(what: str) -> Iterator[None]:
    """
    Whatever goes wrong in an environment arrives as one kind of error, also when it calls ``exit()``.

    :param what: the episode
    :raises EpisodeError: which episode failed, and the traceback
    """
    try:
        yield
    except (RefineError, EpisodeError):  # those that do not fit the environment say so themselves
        raise
    except (Exception, SystemExit) as error:
        what_failed = f"{what} failed: {type(error).__name__}: {error}"
        raise EpisodeError(f"{what_failed}\n{traceback.format_exc()}") from error


def check_count(name: str, value: Any, at_least: int) -> None:
    """
    :param name: of an argument
    :param value: its value
    :param at_least: the smallest whole number it may be
    :raises RefineError: when it is anything else
    """
    if not isinstance(value, numbers.Integral) or value < at_least:
        raise RefineError(f"{name}: expected a whole number of at least {at_least}, got {value!r}")


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
