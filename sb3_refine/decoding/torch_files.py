"""torch's files: looked through as data first, then loaded by ``torch.load(weights_only=True)``."""

import io
import math
import zipfile
from typing import Any

import torch as th

from sb3_refine.decoding.archives import read_zip
from sb3_refine.decoding.pickle_tree import DecodingError, Items, Name, Node, read_pickle, trace

_MAX_OPCODES = 200_000
_ITEM_SIZES = {
    "DoubleStorage": 8, "LongStorage": 8, "FloatStorage": 4, "IntStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2,
    "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1,
}  # fmt: skip
_NAMES = {
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch._utils", "_rebuild_tensor_v2"),
    *(("torch", name) for name in _ITEM_SIZES),
}
_MAX_KEY = 200


def read_torch_file(data: bytes, max_opcodes: int = _MAX_OPCODES) -> Any:
    """
    :param data: what ``torch.save`` has written
    :param max_opcodes: of its pickle
    :return: its content: tensors, numbers, text, and containers of these
    :raises DecodingError: when it holds anything else, or tensors beyond the end of the file
    """
    _check(data, max_opcodes)
    try:
        return th.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:100]
        raise DecodingError(f"torch cannot load it ({type(error).__name__}: {reason})") from None


def _check(data: bytes, max_opcodes: int) -> None:
    """torch trusts the sizes that a file claims: a storage that claims more than there is reads other memory."""
    if zipfile.is_zipfile(io.BytesIO(data)):
        members = read_zip(data, lambda name: True, stored=True)
        pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise DecodingError("a torch file without its data.pkl")
        root = pickles[0].partition("/")[0]
        for key, n_bytes in _storages(members[pickles[0]], max_opcodes)[0]:
            if n_bytes > len(members.get(f"{root}/data/{key}", b"")):
                raise DecodingError("a tensor that claims more numbers than the file has")
        return
    position = 0
    for _ in range(3):  # the format before torch 1.6: a magic number, a version, properties of the machine
        position += read_pickle(data[position:], 1000)[1]
    storages, _ = _storages(data[position:], max_opcodes)
    if sum(n_bytes for _, n_bytes in storages) > len(data):
        raise DecodingError("tensors that claim more numbers than the file has")


def _storages(pickled: bytes, max_opcodes: int) -> tuple[list[tuple[str, int]], int]:
    """Key and size in bytes of each storage that a pickle refers to."""
    names, persistent_ids, end = trace(pickled, max_opcodes)
    for name in names:
        if name.key not in _NAMES:
            raise DecodingError(f"refused to load {name.module}.{name.name}"[:200])
    storages: dict[str, int] = {}
    for node in persistent_ids:
        key, n_bytes = _storage(node)
        storages[key] = max(n_bytes, storages.get(key, 0))
    return list(storages.items()), end


def _storage(node: Node) -> tuple[str, int]:
    parts = node.items if isinstance(node, Items) else []
    match parts:
        case ["storage", Name(), str(), str(), int(), *_]:
            _, kind, key, _, size, *_ = parts
            if kind.module == "torch" and kind.name in _ITEM_SIZES and len(key) <= _MAX_KEY and 0 <= size < 2**40:
                return key, size * _ITEM_SIZES[kind.name]
    raise DecodingError("a tensor without a proper storage")


def state_dict(content: Any, n_bytes: int) -> dict[str, th.Tensor]:
    """
    :param content: of a torch file
    :param n_bytes: size of the file
    :return: the parameters of a module by name
    :raises DecodingError: when it is anything else, or holds NaN or infinity
    """
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise DecodingError("not the parameters of a module")
    for name, value in content.items():
        _check_tensor(value, n_bytes, name)
        if not bool(value.isfinite().all()):
            raise DecodingError(f"NaN or inf in {name[:80]}")
    return dict(content)


def optimizer_state(content: Any, n_bytes: int) -> dict[str, Any]:
    """
    :param content: of a torch file
    :param n_bytes: size of the file
    :return: the state of an optimizer, in new containers
    :raises DecodingError: when it is anything else
    """
    if not isinstance(content, dict) or content.keys() != {"state", "param_groups"}:
        raise DecodingError("not the state of an optimizer")
    state, groups = content["state"], content["param_groups"]
    if not isinstance(state, dict) or not isinstance(groups, list) or len(groups) > 100:
        raise DecodingError("not the state of an optimizer")
    return {
        "state": {_index(index): _slots(slots, n_bytes) for index, slots in state.items()},
        "param_groups": [_group(group) for group in groups],
    }


def _slots(slots: Any, n_bytes: int) -> dict[str, Any]:
    if not isinstance(slots, dict) or not all(isinstance(name, str) for name in slots) or len(slots) > 20:
        raise DecodingError("not the state of an optimizer")
    for name, value in slots.items():
        if isinstance(value, th.Tensor):
            _check_tensor(value, n_bytes, name)
        elif not _is_number(value) and value is not None:
            raise DecodingError("not the state of an optimizer")
    return dict(slots)


def _group(group: Any) -> dict[str, Any]:
    """Options of an optimizer, such as its learning rate, and the indices of its parameters."""
    if not isinstance(group, dict) or not isinstance(group.get("params"), list):
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
    return isinstance(value, bool) or (isinstance(value, (int, float)) and math.isfinite(value))


def _check_tensor(value: Any, n_bytes: int, name: str) -> None:
    if type(value) not in (th.Tensor, th.nn.Parameter) or value.layout != th.strided:
        raise DecodingError(f"{name[:80]} is no tensor")
    if value.numel() * value.element_size() > n_bytes:  # one number, expanded
        raise DecodingError(f"{name[:80]} claims more numbers than the file has")
