"""
torch's files, read as data.

``torch.load(weights_only=True)`` is not used: a few bytes can make it hash a nested value without end.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch as th

from sb3_refine.agents.decoding.archives import read_zip
from sb3_refine.agents.decoding.pickle_tree import (
    Call,
    DecodingError,
    Items,
    Name,
    Node,
    call_of,
    plain,
    read_first_pickle,
    read_pickle,
    unknown,
)

_MAX_OPCODES = 200_000
_MAX_SHARED = 8  # times that all tensors together may be larger than the file, as several may share their numbers
_MAX_DIMENSIONS = 16
_MAX_NAMES = 2000  # of parameters
_ZIP = b"PK\x03\x04"
_HEADER = 3  # pickles before the content in the format before torch 1.6: a magic number, a version, the machine's sizes
_DTYPES = {
    "DoubleStorage": th.float64, "FloatStorage": th.float32, "HalfStorage": th.float16, "BFloat16Storage": th.bfloat16,
    "LongStorage": th.int64, "IntStorage": th.int32, "ShortStorage": th.int16, "CharStorage": th.int8,
    "ByteStorage": th.uint8, "BoolStorage": th.bool,
}  # fmt: skip


def read_torch_file(data: bytes) -> Any:
    """
    :param data: what ``torch.save`` has written
    :return: its content: tensors on the CPU, numbers, text, and containers of these
    :raises DecodingError: when it holds anything else, or tensors beyond the end of the file
    """
    tree, storages = (_read_zip if data.startswith(_ZIP) else _read_before_1_6)(data)
    return plain(tree, _Tensors(storages, _MAX_SHARED * len(data)).make, _MAX_OPCODES)


def _read_zip(data: bytes) -> tuple[Node, Mapping[str, bytes]]:
    members = read_zip(data, lambda name: True, stored=True)
    pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise DecodingError("a torch file without its data.pkl")
    root = pickles[0].partition("/")[0]
    if members.get(f"{root}/byteorder", b"little") != b"little":
        raise DecodingError("a torch file with another byte order")
    start = f"{root}/data/"
    storages = {name.removeprefix(start): part for name, part in members.items() if name.startswith(start)}
    return read_pickle(members[pickles[0]], _MAX_OPCODES), storages


def _read_before_1_6(data: bytes) -> tuple[Node, Mapping[str, bytes]]:
    """The content's pickle, one with the keys of the storages, then each storage: its length, and its numbers."""
    position = 0
    for _ in range(_HEADER):
        position += read_first_pickle(data[position:], 1000)[1]
    tree, n_bytes = read_first_pickle(data[position:], _MAX_OPCODES)
    position += n_bytes
    keys_node, n_bytes = read_first_pickle(data[position:], _MAX_OPCODES)
    position += n_bytes
    keys = plain(keys_node)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise DecodingError("a torch file without the keys of its tensors")
    storages = {}
    for key, size in zip(keys, _sizes(tree, keys), strict=True):
        count = int.from_bytes(data[position : position + 8], "little")
        position += 8
        storages[key] = data[position : position + count * size]
        position += len(storages[key])
    return tree, storages


def _sizes(tree: Node, keys: list[str]) -> list[int]:
    """Bytes of a number in each storage: only the references to a storage say so."""
    sizes: dict[str, int] = {}

    def note(call: Call) -> None:
        for part in [call, *call.arguments]:
            if call_of(part)[1] == "_rebuild_tensor_v2" and part.arguments:
                key, dtype, _ = _reference(part.arguments[0])
                sizes[key] = dtype.itemsize

    plain(tree, note)
    if not set(keys) <= sizes.keys():
        raise DecodingError("a torch file with data that belongs to no tensor")
    return [sizes[key] for key in keys]


def _reference(node: Node) -> tuple[str, th.dtype, int]:
    """Key, type and length of the storage that a tensor refers to."""
    parts = node.arguments[0] if call_of(node) == ("", "persistent_load") else None
    match parts.items if isinstance(parts, Items) else []:
        case ["storage", Name("torch", kind), str(key), str(), int(length), *_] if kind in _DTYPES:
            return key, _DTYPES[kind], length
        case ["storage", Name() as kind, *_]:
            raise unknown(kind)
    raise DecodingError("a tensor without a proper storage")


class _Tensors:
    """
    Rebuilds tensors.

    :param storages: their numbers by key
    :param max_bytes: that all of them together may have
    """

    def __init__(self, storages: Mapping[str, bytes], max_bytes: int):
        self._storages, self._bytes_left = storages, max_bytes
        self._flat: dict[str, th.Tensor] = {}

    def make(self, node: Call) -> th.Tensor:
        """
        :param node: a call
        :return: the tensor that it rebuilds
        :raises DecodingError: when the call rebuilds something else, or a tensor larger than its storage
        """
        if call_of(node) == ("torch._utils", "_rebuild_parameter") and node.arguments:
            node = node.arguments[0]
        if call_of(node) != ("torch._utils", "_rebuild_tensor_v2") or len(node.arguments) < 4:
            raise unknown(node)
        reference, offset, size, stride = (node.arguments[0], *map(plain, node.arguments[1:4]))
        key, dtype, length = _reference(reference)
        numbers = self._numbers(key, dtype)
        if length > len(numbers):
            raise DecodingError("a tensor that claims more numbers than the file has")
        _check_layout(offset, size, stride, len(numbers))
        self._bytes_left -= math.prod(size) * dtype.itemsize
        if self._bytes_left < 0:
            raise DecodingError("tensors that claim more numbers than the file has")
        return numbers.as_strided(size, stride, offset)

    def _numbers(self, key: str, dtype: th.dtype) -> th.Tensor:
        if key not in self._flat:
            data = bytearray(self._storages.get(key, b""))
            n_bytes = len(data) - len(data) % dtype.itemsize
            is_bool = dtype == th.bool
            flat = th.frombuffer(data[:n_bytes], dtype=th.uint8 if is_bool else dtype) if n_bytes else th.empty(0)
            self._flat[key] = flat.to(dtype)
        if self._flat[key].dtype != dtype:
            raise DecodingError("tensors that read the same numbers as different types")
        return self._flat[key]


def _check_layout(offset: Any, size: Any, stride: Any, n_numbers: int) -> None:
    parts = (offset, *size, *stride) if isinstance(size, tuple) and isinstance(stride, tuple) else ("none",)
    if not all(type(part) is int and 0 <= part < 2**40 for part in parts) or len(size) != len(stride):
        raise DecodingError("a tensor of an impossible shape")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if len(size) > _MAX_DIMENSIONS or (math.prod(size) and last >= n_numbers) or math.prod(size) > n_numbers:
        raise DecodingError("a tensor that claims more numbers than the file has")


def state_dict(content: Any) -> dict[str, th.Tensor]:
    """
    :param content: of a torch file
    :return: the parameters of a module by name
    :raises DecodingError: when it is anything else, or holds NaN or infinity
    """
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content) or len(content) > _MAX_NAMES:
        raise DecodingError("not the parameters of a module")
    for name, value in content.items():
        if not isinstance(value, th.Tensor):
            raise DecodingError(f"{name[:80]} is not a tensor")
        if not bool(value.isfinite().all()):
            raise DecodingError(f"NaN or inf in {name[:80]}")
    return dict(content)


def optimizer_state(content: Any) -> dict[str, Any]:
    """
    :param content: of a torch file
    :return: the state of an optimizer, in new containers
    :raises DecodingError: when it is anything else
    """
    if not isinstance(content, dict) or content.keys() != {"state", "param_groups"}:
        raise DecodingError("not the state of an optimizer")
    state, groups = content["state"], content["param_groups"]
    if not isinstance(state, dict) or not isinstance(groups, list) or len(groups) > 100:
        raise DecodingError("not the state of an optimizer")
    return {
        "state": {_index(index): _slots(slots) for index, slots in state.items()},
        "param_groups": [_group(group) for group in groups],
    }


def _slots(slots: Any) -> dict[str, Any]:
    if not isinstance(slots, dict) or not all(isinstance(name, str) for name in slots) or len(slots) > 20:
        raise DecodingError("not the state of an optimizer")
    if not all(isinstance(value, th.Tensor) or _is_number(value) or value is None for value in slots.values()):
        raise DecodingError("not the state of an optimizer")
    return dict(slots)


def _group(group: Any) -> dict[str, Any]:
    """Options of an optimizer, such as its learning rate, and the indices of its parameters."""
    if not isinstance(group, dict) or not isinstance(group.get("params"), list) or not _is_number(group.get("lr")):
        raise DecodingError("not the state of an optimizer")
    for name, value in group.items():
        parts = value if isinstance(value, (tuple, list)) else [value]
        if not isinstance(name, str) or not all(part is None or _is_number(part) for part in parts):
            raise DecodingError("an optimizer whose options are not numbers")
    return {name: list(value) if isinstance(value, list) else value for name, value in group.items()}


def _index(index: Any) -> int:
    if not isinstance(index, int) or isinstance(index, bool):
        raise DecodingError("not the state of an optimizer")
    return index


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and -1e300 < value < 1e300
