"""numpy's arrays and numbers in a pickle, rebuilt from their bytes."""

import math
import re
from typing import Any

import numpy as np

from sb3_refine.agents.decoding.pickle_tree import Call, DecodingError, Items, Name, Node, call_of, plain, unknown

_DTYPE = re.compile(r"([<>=|]?)(b1|i[1248]|u[1248]|f[248])")
_MAX_DIMENSIONS = 8
_NUMPY = ("numpy.core", "numpy._core")
_SCALAR_TYPES = {
    **{f"{kind}{bits}": f"{kind[0]}{bits // 8}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"f{bits // 8}" for bits in (16, 32, 64)},
    **{"bool": "b1", "bool_": "b1"},
}


def dtype(node: Node) -> np.dtype:
    """
    :param node: a stored dtype, or the name of a scalar type
    :return: the dtype, of integers, floats or booleans
    :raises DecodingError: for any other dtype
    """
    if isinstance(node, Name) and node.module == "numpy" and node.name in _SCALAR_TYPES:
        return np.dtype(_SCALAR_TYPES[node.name])
    if call_of(node) != ("numpy", "dtype"):
        raise unknown(node)
    text = node.arguments[0] if node.arguments else None
    match = _DTYPE.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise DecodingError("an array of something other than numbers")
    state = [] if node.state is None else arguments_of(node.state)
    order = state[1] if len(state) > 1 else match[1]
    if order not in ("<", ">", "=", "|", "") or any(part not in (None, -1, 0) for part in state[2:]):
        raise DecodingError("an array of something other than numbers")
    return np.dtype(f"{order}{match[2]}")


def array(node: Node) -> np.ndarray:
    """
    :param node: a stored array
    :return: a new array in the machine's byte order, of numbers or booleans
    :raises DecodingError: when its parts are inconsistent
    """
    module, name = call_of(node)
    if module in {f"{core}.multiarray" for core in _NUMPY} and name == "_reconstruct":
        parts = arguments_of(node.state)
        if len(parts) != 5:
            raise DecodingError("an array whose state does not have five parts")
        _, sizes, dtype_node, is_fortran, content = parts
        order = "F" if is_fortran is True else "C"
        axes = None
    elif module in {f"{core}.numeric" for core in _NUMPY} and name == "_frombuffer" and len(node.arguments) in (4, 5):
        content, dtype_node, sizes, order, axes = (*node.arguments, None)[:5]
        axes = None if axes is None else shape(axes)
    else:
        raise unknown(node)
    content = _bytes(content)
    values, size = dtype(dtype_node), shape(sizes)
    if not isinstance(content, bytes) or math.prod(size) * values.itemsize != len(content):
        raise DecodingError("an array whose shape and content differ in size")
    flat = np.frombuffer(content, values)
    found = flat.reshape(size, order="F" if order == "F" else "C")
    if axes is not None:
        if sorted(axes) != list(range(len(size))):
            raise DecodingError("an array with invalid axes")
        found = found.transpose(axes)
    if values.kind == "b" and np.any(flat.view(np.uint8) > 1):
        raise DecodingError("an array of booleans that are neither true nor false")
    return np.array(found, dtype=values.newbyteorder("="))


def _bytes(node: Node) -> Node:
    """Bytes, which protocols before 3 store as text."""
    if call_of(node) == ("_codecs", "encode") and len(node.arguments) == 2 and node.arguments[1] == "latin1":
        node = node.arguments[0]
    return node.encode("latin-1") if isinstance(node, str) else node


def numpy_value(node: Node) -> Any:
    """
    :param node: a stored array or scalar of numpy, or a number
    :return: the same
    :raises DecodingError: for anything else
    """
    if isinstance(node, (bool, int, float)):
        return node
    module, name = call_of(node)
    if module in {f"{core}.multiarray" for core in _NUMPY} and name == "scalar" and len(node.arguments) == 2:
        values, content = dtype(node.arguments[0]), _bytes(node.arguments[1])
        if not isinstance(content, bytes) or len(content) != values.itemsize:
            raise DecodingError("a number whose type and content differ in size")
        return np.frombuffer(content, values)[0].astype(values.newbyteorder("="))
    return array(node)


def shape(node: Node) -> tuple[int, ...]:
    """
    :param node: a tuple of whole numbers, or one of them
    :return: the shape
    :raises DecodingError: for anything else
    """
    sizes = plain(node)
    if isinstance(sizes, int) and not isinstance(sizes, bool):
        sizes = (sizes,)
    is_short = isinstance(sizes, (tuple, list)) and len(sizes) <= _MAX_DIMENSIONS
    if not is_short or not all(isinstance(n, int) and 0 <= n < 2**40 for n in sizes):
        raise DecodingError("a shape that is no tuple of whole numbers")
    return tuple(int(n) for n in sizes)


def arguments_of(node: Node) -> list[Node]:
    """
    :param node: a tuple
    :return: its items
    :raises DecodingError: for anything else
    """
    if not isinstance(node, Items) or node.kind != "tuple":
        raise DecodingError("values that belong in a tuple")
    return node.items


def whole(node: Node, low: int, high: int = 2**31) -> int:
    """
    :param node: a whole number, which may be stored as a float
    :param low: smallest allowed
    :param high: largest allowed
    :return: the number
    :raises DecodingError: when the node is not a whole number, or out of range
    """
    value = numpy_value(node) if isinstance(node, Call) else node
    is_number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not is_number or not low <= value <= high or int(value) != value:
        raise DecodingError(f"expected a whole number from {low} to {high}, got {shown(node)}")
    return int(value)


def finite(node: Node, low: float = -np.inf, high: float = np.inf) -> float:
    """
    :param node: a number
    :param low: smallest allowed
    :param high: largest allowed
    :return: the number, of Python's own type
    :raises DecodingError: when the node is not a finite number, or out of range
    """
    value = numpy_value(node)
    is_huge = isinstance(value, int) and abs(value) >= 2**64
    if isinstance(value, (bool, np.bool_)) or np.ndim(value) != 0 or is_huge or not math.isfinite(value):
        raise DecodingError("expected a finite number")
    value = value.item() if isinstance(value, (np.generic, np.ndarray)) else value
    if not low <= value <= high:
        raise DecodingError(f"a number out of range ({value:g})")
    return value


def limit(node: Node) -> float:
    """
    :param node: a number of at least 0, or infinity for no limit
    :return: the number
    :raises DecodingError: for anything else
    """
    return math.inf if isinstance(node, float) and node == math.inf else finite(node, 0)


def flag(node: Node) -> bool:
    """
    :param node: a boolean, or 0 or 1
    :return: the boolean
    :raises DecodingError: for anything else
    """
    value = numpy_value(node) if isinstance(node, Call) else node
    if not isinstance(value, (bool, np.bool_, int)) or value not in (0, 1):
        raise DecodingError(f"expected true or false, got {shown(node)}")
    return bool(value)


def shown(node: Node) -> str:
    """
    :param node: any node
    :return: what to call it in a message
    """
    if isinstance(node, int) and abs(node) >= 2**64:
        return "a huge number"
    if isinstance(node, (bool, int, float, str, type(None))):
        return repr(node)[:60]
    return "something else"
