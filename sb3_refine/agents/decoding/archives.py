"""Zip files with limits: on the number of members, on their sizes, on what they unpack to."""

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from sb3_refine.agents.decoding.pickle_tree import DecodingError
from sb3_refine.errors import one_line
from sb3_refine.files import MAX_BYTES

_MAX_MEMBERS = 10_000  # torch stores each tensor as one
_MAX_RATIO = 50  # weights do not compress much
_LOCAL_HEADER = 30  # bytes before a member's name and content
_ZIP_ERRORS = (
    *(ArithmeticError, EOFError, KeyError, OSError, RuntimeError, TypeError, ValueError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
)
_MAX_UNPACKED = 2**28  # of all compressed members: Stable-Baselines3 does not compress
_FREE = 1_000_000  # bytes that any member may unpack to


def read_zip(
    file: Path | bytes, is_wanted: Callable[[str], bool], max_bytes: dict[str, int] | None = None, stored: bool = False
) -> dict[str, bytes]:
    """
    :param file: the zip: its path, or its content
    :param is_wanted: whether to read the member of a name
    :param max_bytes: largest unpacked size of some members, by name
    :param stored: whether members must not be compressed
    :return: content of the members wanted, by name
    :raises DecodingError: when the zip is corrupt, or goes beyond the limits
    """
    try:
        # in memory, a read gives what there is: from a file, Python makes room for the size that a zip claims
        if not isinstance(file, bytes) and file.stat().st_size > MAX_BYTES:
            raise DecodingError(f"larger than {MAX_BYTES / 2**30:g} GiB")
        data = file if isinstance(file, bytes) else file.read_bytes()
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            names = [member.filename for member in members]
            if len(names) > _MAX_MEMBERS or len(set(names)) < len(names):
                raise DecodingError("a zip with too many members, or two of one name")
            wanted = [member for member in members if is_wanted(member.filename)]
            if sum(member.file_size for member in wanted if member.compress_type) > _MAX_UNPACKED:
                raise DecodingError(f"members that unpack to more than {_MAX_UNPACKED:,} bytes")
            for member in wanted:
                _check(member, (max_bytes or {}).get(member.filename), stored)
            _check_disjoint(members, len(data))
            return {member.filename: _read(archive, member) for member in wanted}
    except DecodingError:
        raise
    except (*_ZIP_ERRORS, MemoryError) as error:
        raise DecodingError(f"a corrupt zip ({one_line(error, 100)})") from None


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """The size is named, for without it Python unpacks more than the member says it has."""
    with archive.open(member) as file:
        return file.read(member.file_size)


def _check_disjoint(members: list[zipfile.ZipInfo], n_bytes: int) -> None:
    """Each member has its own part of the file: what they unpack to is bounded by what there is."""
    end = 0
    for member in sorted(members, key=lambda member: member.header_offset):
        if member.header_offset < end:
            raise DecodingError("a zip with members that overlap")
        end = member.header_offset + _LOCAL_HEADER + member.compress_size
    if end > n_bytes:
        raise DecodingError("a zip whose members are larger than the zip")


def _check(member: zipfile.ZipInfo, max_bytes: int | None, stored: bool) -> None:
    allowed = (zipfile.ZIP_STORED,) if stored else (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    if member.compress_type not in allowed:
        raise DecodingError(f"{member.filename[:80]}: compressed by a method that Stable-Baselines3 does not use")
    limit = _MAX_RATIO * member.compress_size + _FREE if max_bytes is None else max_bytes
    if member.file_size > limit:
        raise DecodingError(f"{member.filename[:80]}: unpacks to {member.file_size:,} bytes, more than {limit:,}")
