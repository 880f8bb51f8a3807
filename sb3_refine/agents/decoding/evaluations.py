"""``evaluations.npz``: what Stable-Baselines3's EvalCallback noted during training."""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np

from sb3_refine.agents.decoding.archives import read_zip
from sb3_refine.agents.decoding.pickle_tree import DecodingError
from sb3_refine.errors import one_line

_MAX_BYTES = 32 * 2**20
_MAX_HEADER = 1000
_MAX_DIMENSIONS = 8


def read_evaluations(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """
    :param path: the file
    :return: time steps, shape ``(n_evaluations,)``, and returns, shape ``(n_evaluations, n_episodes)``
    :raises DecodingError: when the file is corrupt, or its figures are no returns
    """
    names = ("timesteps.npy", "results.npy")
    members = read_zip(path, names.__contains__, dict.fromkeys(names, _MAX_BYTES))
    if set(members) != set(names):
        raise DecodingError("no timesteps or no results in it")
    time_steps, results = (_array(members[name]) for name in names)
    if results.ndim < 2 or time_steps.ndim != 1 or len(results) != len(time_steps) or results.size == 0:
        raise DecodingError(f"results of shape {results.shape} for time steps of shape {time_steps.shape}")
    results = results.reshape(len(results), -1).astype(np.float64)
    if not (np.isfinite(results).all() and np.isfinite(time_steps).all()):
        raise DecodingError("NaN or infinity in it")
    return time_steps, results


def _array(data: bytes) -> np.ndarray:
    """An ``.npy`` file, whose header may claim any size."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        readers: dict[Any, Any] = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        shape, is_fortran, dtype = readers[version](file, max_header_size=_MAX_HEADER)
    except Exception as error:  # numpy has the header parsed as Python's literals
        raise DecodingError(f"a corrupt array ({one_line(error, 80)})") from None
    content = data[file.tell() :]
    is_shape = len(shape) <= _MAX_DIMENSIONS and all(type(n) is int and 0 <= n < 2**40 for n in shape)
    if dtype.kind not in "iuf" or not is_shape or math.prod(shape) * dtype.itemsize != len(content):
        raise DecodingError("an array whose shape and content differ in size, or not of numbers")
    try:
        return np.frombuffer(content, dtype).reshape(shape, order="F" if is_fortran else "C")
    except (ValueError, TypeError, OverflowError):
        raise DecodingError("an array of an impossible shape") from None
