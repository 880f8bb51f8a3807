"""What an agent whose author is trusted may ask for: unpickling, which runs any code that the file holds."""

from typing import Any

import cloudpickle

from sb3_refine.errors import RefineError, one_line

TRUST = "if you trust the file's author, pass `trust_remote_code=True`"
"""The remedy where a file cannot be read as data."""


def unpickle(where: str, pickled: bytes) -> Any:
    """
    :param where: the file and the part of it, for the message
    :param pickled: a pickle of an author who is trusted
    :return: the object
    :raises RefineError: when it cannot be unpickled
    """
    try:
        return cloudpickle.loads(pickled)
    except Exception as error:
        raise RefineError(f"{where}: cannot be unpickled ({type(error).__name__}: {one_line(error)})") from error
