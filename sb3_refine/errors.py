"""The errors a user can mend: one line each, naming the remedy."""

import difflib
from collections.abc import Iterable


class RefineError(ValueError):
    """
    Something the user can mend: a wrong name, a broken file, a missing package.

    The message is one line that says what was expected, what came, and what to do.
    The command line prints it without a traceback and exits with status 1.
    """


class EpisodeError(RuntimeError):
    """An environment or policy failed in an episode: which one, and the traceback of the process that ran it."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """
    Suggest the known names closest to a misspelt one.

    :param name: the name as given
    :param known: the names that exist
    :return: `` (did you mean A or B?)``, or an empty string where nothing is close
    """
    matches = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(matches)}?)" if matches else ""
