"""Writing files so that nothing is lost."""

import errno
import hashlib
import json
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sb3_refine.errors import RefineError, one_line

MAX_BYTES = 2**30
"""Size of the largest file from somebody else that is read."""

_MAX_ENTRIES = 100_000
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """
    Write a file whole or not at all: a full disk or a kill leaves the last good copy. Symbolic links are replaced, not
    followed.

    :param path: where the file shall be
    :return: context manager giving the path to write to, in the same folder and with the same suffix
    """
    temporary = path.with_name(f".{path.stem}.partial{path.suffix}")
    temporary.unlink(missing_ok=True)  # of a run that was killed, or a link that somebody put there
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def refuse_links(folder: Path) -> None:
    """
    Check that a run's folder, which may come from somebody else, has no links to other places.

    :param folder: of a run; may itself be a link that the user has made
    :raises RefineError: when anything below it is neither a plain file nor a folder
    """
    folders, n_entries = [Path(folder)] if Path(folder).is_dir() else [], 0
    while folders:
        parent = folders.pop()
        try:
            entries = list(parent.iterdir())
        except OSError as error:
            raise RefineError(f"{parent}: cannot be listed ({error.strerror}); make it readable") from None
        n_entries += len(entries)
        if n_entries > _MAX_ENTRIES:
            raise RefineError(f"{folder}: more than {_MAX_ENTRIES:,} files, which no folder of a run has")
        for path in entries:
            status = path.lstat()
            if stat.S_ISDIR(status.st_mode):
                folders.append(path)
            elif not stat.S_ISREG(status.st_mode):
                kind = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "neither a file nor a folder"
                raise RefineError(f"{path}: {kind}, which the folder of a run must not have; remove it first")
            elif status.st_size > MAX_BYTES:
                raise RefineError(f"{path}: larger than {MAX_BYTES / 2**30:g} GiB, which no file of a run is")


def is_disk_full(error: OSError) -> bool:
    """
    :param error: of a write
    :return: whether the disk is full
    """
    return error.errno in _FULL


@contextmanager
def reraise_write_errors(what: str, folder: Path, remark: str = "") -> Iterator[None]:
    """
    Tell in one line what could not be written.

    :param what: name of what is written, for the message
    :param folder: where to
    :param remark: the last words of the message
    :raises RefineError: when it cannot be written
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        is_torchs = type(error) is RuntimeError  # its word for a full disk
        if not (is_torchs or isinstance(error, OSError)):
            raise
        is_full = is_torchs or (isinstance(error, OSError) and is_disk_full(error))
        reason = one_line(error, 200)
        hint = "; is the disk full?" if is_full else "; choose another folder"
        raise RefineError(f"{what} cannot be written to {folder} ({reason}){hint}{remark}") from error


def sha256(path: Path) -> str:
    """
    :param path: a file
    :return: its SHA-256 as hexadecimal digits
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def as_json(content: Any) -> str:
    """
    :param content: dicts, lists, numbers (also numpy's), strings
    :return: JSON: null for NaN and infinity, and anything unknown by its name
    """
    return json.dumps(_plain(content), indent=2, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (str, int, bool, type(None))) else str(value)
