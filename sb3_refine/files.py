"""Writing files so that nothing is lost."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """
    Write a file whole or not at all: a full disk or a kill leaves the last good copy.

    :param path: where the file shall be
    :return: context manager giving the path to write to, in the same folder and with the same suffix
    """
    temporary = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """
    :param path: a file
    :return: its SHA-256 as hexadecimal digits
    """
    return hashlib.sha256(path.read_bytes()).hexdigest()
