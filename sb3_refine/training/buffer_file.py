"""A replay buffer in a file without code: resumed training goes on with it."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from sb3_refine.errors import RefineError
from sb3_refine.files import atomic_path

_MAX_HEADER = 1000  # bytes


def save_buffer(buffer: Any, path: Path) -> None:
    """
    :param buffer: of Stable-Baselines3; what is not filled yet is not written
    :param path: where to, ``.npz``
    """
    n_filled = buffer.buffer_size if buffer.full else buffer.pos
    content: dict[str, Any] = {name: np.asarray(getattr(buffer, name)) for name in ("pos", "full")}
    content |= {name: array[:n_filled] for name, array in _arrays(buffer).items()}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **content)


def load_buffer(buffer: Any, path: Path) -> None:
    """
    :param buffer: an empty one of the same kind
    :param path: what :func:`save_buffer` wrote
    :raises RefineError: when the file is damaged, or of another buffer
    """
    if getattr(buffer, "copy_info_dict", False):
        raise RefineError("resume: copy_info_dict=True makes the replay buffer keep what is not saved; start a new run")
    try:
        _check_sizes(buffer, path)
        with np.load(path, allow_pickle=False) as stored:
            for name, array in _arrays(buffer).items():
                array[: len(stored[name])] = stored[name]
            buffer.pos, buffer.full = int(stored["pos"]), bool(stored["full"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise RefineError(f"resume: {path} is damaged ({error}); start a new run") from error
    if hasattr(buffer, "_current_ep_start"):  # of hindsight experience replay: all episodes were ended
        buffer._current_ep_start[:] = buffer.pos


def _check_sizes(buffer: Any, path: Path) -> None:
    """A file that somebody else made may unpack to more than there is memory for."""
    n_bytes = {name: array.nbytes for name, array in _arrays(buffer).items()}
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if member.file_size > n_bytes.get(name, 0) + _MAX_HEADER:
                raise ValueError(f"{name} is larger than the buffer")


def _arrays(buffer: Any) -> dict[str, np.ndarray]:
    """The arrays with a row for each step, by name; those of a dictionary by the name and the key."""
    found: dict[str, np.ndarray] = {}
    for name, value in vars(buffer).items():
        parts = {f"{name}/{key}": part for key, part in value.items()} if isinstance(value, dict) else {name: value}
        for key, part in parts.items():
            is_kept = isinstance(part, np.ndarray) and part.dtype != object and part.ndim > 1
            if is_kept and len(part) == buffer.buffer_size:
                found[key] = part
    return found
