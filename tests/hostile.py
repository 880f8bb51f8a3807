"""Pickles and files that are made to do harm, by the ways that were found to do it."""

import io
import pickle
import zipfile

import numpy as np


def text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + len(encoded).to_bytes(4, "little") + encoded


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def body(value) -> bytes:
    """The opcodes of a value, to be put into a pickle."""
    return pickle.dumps(value, 3)[2:-1]


def pickled(*parts: bytes) -> bytes:
    return b"\x80\x04" + b"".join(parts) + b"."


BOX = name("gymnasium.spaces.box", "Box") + b")\x81"
DICT = name("gymnasium.spaces.dict", "Dict") + b")\x81"
ADDRESS = {"data": (4660, False), "shape": (4,), "typestr": "<i8", "version": 3}
PAIRS = b"](" + text("__array_interface__") + body(ADDRESS) + b"\x86e"
DTYPE = name("numpy", "dtype") + b"(" + text("f8") + b"\x89\x88tR"
ARRAY = name("numpy.core.multiarray", "_reconstruct") + name("numpy", "ndarray") + body((0,)) + body(b"b") + b"\x87R"
OBJECTS = name("numpy", "dtype") + b"(" + text("O8") + b"\x89\x88tR"
CONTENT = b"t" + DTYPE + b"\x89" + body(b"\0" * 8) + b"tb"
FILLED = ARRAY + b"(K\x01(K\x01t" + DTYPE + b"\x89" + body(b"\0" * 8) + b"tb"


def dtype_with(*state) -> bytes:
    return DTYPE + body(state) + b"b"


def array_of(dtype: bytes, content: bytes) -> bytes:
    return ARRAY + b"(K\x01(K\x01t" + dtype + b"\x89" + body(content) + b"tb"


class Evaluates:
    def __init__(self, code: str):
        self.code = code

    def __reduce__(self):
        return eval, (self.code,)


HARMFUL_PICKLES = {
    "eval": pickle.dumps(Evaluates("__import__('os').abort()")),
    "a state of pairs": pickled(BOX, PAIRS, b"b"),
    "an address read by a scalar": pickled(name("numpy", "float64"), BOX, PAIRS, b"b\x85R"),
    "a space as a state": pickled(BOX, DICT, b"}", text("spaces"), b"}", text("__class__"), body(1), b"ssb", b"b"),
    "a dtype with flags": pickled(array_of(dtype_with(3, "|", None, None, None, 8, 1, 4), b"\0" * 8)),
    "a dtype of size -1": pickled(array_of(dtype_with(3, "|", None, None, None, -7, -1, 0), b"\0" * 8)),
    "a dtype of objects": pickled(array_of(OBJECTS, b"\x34\x12" * 4)),
    "an array with another state": pickled(FILLED, b"(K\x01(K\x00t", DTYPE, b"\x89", body(b""), b"tb"),
    "a shape larger than its content": pickled(ARRAY, b"(K\x01(J\xff\xff\xff\x7f", CONTENT),
    "a negative shape": pickled(ARRAY, b"(K\x01(J\xff\xff\xff\xff", CONTENT),
    "an append that calls": pickled(BOX, b"}", text("append"), name("os", "system"), b"sb", text("false"), b"a"),
    "a class that is called": pickled(name("stable_baselines3.common.buffers", "ReplayBuffer"), b"(I9\ntR"),
    "INST": b"(S'false'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nS'false'\no.",
    "NEWOBJ_EX": pickled(name("subprocess", "Popen"), b")}", text("args"), text("false"), b"s\x92"),
    "a persistent id": b"Pother\n.",
    "an extension": pickled(b"\x82\x01"),
    "a bytearray of 6 GB": pickled(name("builtins", "bytearray"), b"\x8a\x05\x00\xbc\xa0\x65\x01\x85R"),
    "tuples of tuples as a key": pickled(b"})", b"".join(b"q%ch%c\x86" % (i, i) for i in range(60)), b"Ns"),
    "an exponential list": pickled(b"]", b"".join(b"q%ch%ch%ch%c\x87" % (i, i, i, i) for i in range(60))),
    "two million tuples in each other": b"\x80\x02)" + b"\x85" * 2_000_000 + b".",
    "lists in each other": b"\x80\x02" + b"]" * 15_000 + b"a" * 14_999 + b".",
    "a list in itself": pickled(b"]q\x00h\x00a"),
    "a dict in itself": pickled(b"}q\x00", text("a"), b"h\x00s"),
    "more than can be printed": pickled(BOX, b"]", b"(" + body("x" * 1000) * 500 + b"e", b"b}b"),
    "an int of many digits": b"I" + b"9" * 100_000 + b"\n.",
    "nothing": b"",
    "no STOP": b"\x80\x04]",
    "an empty stack": b"\x80\x04.",
    "an unknown memo": b"\x80\x04h\x07.",
    "odd items": pickled(b"}(K\x01u"),
}  # fmt: skip
"""By what they do where a pickle is loaded instead of decoded."""


def bomb(content: bytes, name: str = "data", method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip whose one member unpacks to much more."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr(name, content)
    return file.getvalue()


def npz(**arrays) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()
