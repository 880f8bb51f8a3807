"""
Pickles read as data: the opcodes become an inert tree, in which names stay text and calls stay nodes.

Nothing is imported, called or set while a pickle is read. What a tree means is decided by
:mod:`sb3_refine.agents.decoding.objects`, which rebuilds the few objects that it knows from checked values.
"""

import pickletools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

_MAX_OPCODES = 20_000
_MAX_VALUES = 100_000
_MAX_DEPTH = 32


BROKEN = (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)
"""What libraries raise for values that no check here has foreseen: an error of the file, too."""


class DecodingError(ValueError):
    """A file cannot be read as data: it is corrupt, too large, or holds an object that cannot be rebuilt safely."""


class UnknownObjectError(DecodingError):
    """A file holds an object that only its author's code could make."""


@dataclass(slots=True, eq=False)
class Name:
    """
    A global that a pickle names.

    :param module: its module
    :param name: its qualified name
    """

    module: str
    name: str

    @property
    def key(self) -> tuple[str, str]:
        """Module and name."""
        return self.module, self.name


@dataclass(slots=True, eq=False, repr=False)
class Items:
    """
    A container.

    :param kind: ``"tuple"``, ``"list"``, ``"set"`` or ``"dict"``
    :param items: its items; of a dict, the keys and values as pairs
    """

    kind: str
    items: list[Any] = field(default_factory=list)


@dataclass(slots=True, eq=False, repr=False)
class Call:
    """
    A call in a pickle, and the state and the items that the pickle then gives to the result.

    :param function: usually a :class:`Name`
    :param arguments: positional arguments
    :param state: state to be set, or None
    :param items: items to be appended, or keys and values to be set, as pairs
    """

    function: Any
    arguments: list[Any]
    state: Any = None
    items: list[Any] = field(default_factory=list)


Node: TypeAlias = Any
"""None, bool, int, float, str, bytes, :class:`Name`, :class:`Items` or :class:`Call`."""


def read_pickle(data: bytes, max_opcodes: int = _MAX_OPCODES) -> Node:
    """
    :param data: a pickle of any protocol
    :param max_opcodes: a longer pickle is refused
    :return: its tree
    :raises DecodingError: when the pickle is corrupt, too long, or uses opcodes that no Stable-Baselines3 file has
    """
    return read_first_pickle(data, max_opcodes)[0]


def read_first_pickle(data: bytes, max_opcodes: int) -> tuple[Node, int]:
    """
    :param data: begins with a pickle
    :param max_opcodes: a longer pickle is refused
    :return: its tree, and the position after the pickle
    :raises DecodingError: see :func:`read_pickle`
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about invalid escapes in the text of old protocols
            return _Machine().run(data, max_opcodes)
    except DecodingError:
        raise
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise DecodingError(f"a corrupt pickle ({type(error).__name__}: {str(error)[:100]})") from None


class _Machine:
    """The pickle machine, with nodes in place of objects."""

    def __init__(self) -> None:
        self.stack: list[Node] = []
        self.below: list[list[Node]] = []  # stacks below each mark
        self.memo: dict[int, Node] = {}

    def run(self, data: bytes, max_opcodes: int) -> tuple[Node, int]:
        for count, (opcode, argument, position) in enumerate(pickletools.genops(data)):
            if count >= max_opcodes:
                raise DecodingError(f"a pickle of more than {max_opcodes:,} opcodes")
            handler = _HANDLERS.get(opcode.name)
            if handler is None:
                raise DecodingError(f"a pickle with the opcode {opcode.name}, which no Stable-Baselines3 file has")
            handler(self, argument)
            if opcode.name == "STOP":
                return self.stack.pop(), int(position or 0) + 1
        raise DecodingError("a corrupt pickle (no STOP)")

    def push(self, node: Node) -> None:
        self.stack.append(node)

    def top(self) -> Node:
        return self.stack[-1]

    def to_mark(self) -> list[Node]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def mark(self, _: Any) -> None:
        self.below.append(self.stack)
        self.stack = []

    def pop(self, _: Any) -> None:
        if not self.stack:
            self.to_mark()
            return
        node = self.stack.pop()
        # pickle sets a state by a function of its own so: function, object, state, TUPLE2, REDUCE, POP
        if isinstance(node, Call) and len(node.arguments) == 2 and isinstance(node.arguments[0], Call):
            node.arguments[0].state = node.arguments[1]

    def pop_mark(self, _: Any) -> None:
        self.to_mark()

    def dup(self, _: Any) -> None:
        self.push(self.top())

    def get(self, index: Any) -> None:
        self.push(self.memo[int(index)])

    def put(self, index: Any) -> None:
        self.memo[int(index)] = self.top()

    def memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.top()

    def name(self, argument: Any) -> None:
        module, _, name = str(argument).partition(" ")
        self.push(Name(module, name))

    def stack_name(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise DecodingError("a corrupt pickle (a name that is not text)")
        self.push(Name(module, name))

    def reduce(self, _: Any) -> None:
        arguments = _items_of(self.stack.pop(), "tuple")
        self.push(Call(self.stack.pop(), arguments))

    def new_with_keywords(self, _: Any) -> None:
        keywords = _items_of(self.stack.pop(), "dict")
        if keywords:
            raise DecodingError("a pickle that makes an object with keyword arguments")
        self.reduce(None)

    def instance(self, argument: Any) -> None:
        arguments = self.to_mark()
        self.name(argument)
        self.push(Call(self.stack.pop(), arguments))

    def obj(self, _: Any) -> None:
        function, *arguments = self.to_mark()
        self.push(Call(function, arguments))

    def build(self, _: Any) -> None:
        state, target = self.stack.pop(), self.top()
        if not isinstance(target, Call) or target.state is not None:
            raise DecodingError("a pickle that sets the state of an object twice, or of an object without one")
        target.state = state

    def append(self, _: Any) -> None:
        item = self.stack.pop()
        _container(self.top(), "list").append(item)

    def appends(self, _: Any) -> None:
        items = self.to_mark()
        _container(self.top(), "list").extend(items)

    def additems(self, _: Any) -> None:
        items = self.to_mark()
        _container(self.top(), "set").extend(items)

    def setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _container(self.top(), "dict").append((key, value))

    def setitems(self, _: Any) -> None:
        items = self.to_mark()
        _container(self.top(), "dict").extend(_pairs(items))

    def persistent(self, _: Any) -> None:
        """torch's pickles refer to the storages of tensors in this way."""
        self.push(Call(Name("", "persistent_load"), [self.stack.pop()]))


def _items_of(node: Node, kind: str) -> list[Node]:
    if not isinstance(node, Items) or node.kind != kind:
        raise DecodingError(f"a corrupt pickle (no {kind} where one is expected)")
    return node.items


def _container(node: Node, kind: str) -> list[Node]:
    """Items of a container or of an object that takes items, such as a deque."""
    if isinstance(node, Call):
        return node.items
    if isinstance(node, Items) and node.kind == kind:
        return node.items
    raise DecodingError("a corrupt pickle (items for an object that is not a container)")


def _pairs(items: list[Node]) -> list[tuple[Node, Node]]:
    return list(zip(items[::2], items[1::2], strict=True))


def _constant(value: Any) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.push(value)


def _container_from_mark(kind: str) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.push(Items(kind, machine.to_mark()))


def _empty(kind: str) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.push(Items(kind))


def _tuple_of(n: int) -> Callable[[_Machine, Any], None]:
    def make(machine: _Machine, _: Any) -> None:
        items = [machine.stack.pop() for _ in range(n)]
        machine.push(Items("tuple", items[::-1]))

    return make


def _nothing(machine: _Machine, _: Any) -> None:
    pass


def _argument(machine: _Machine, argument: Any) -> None:
    machine.push(bytes(argument) if isinstance(argument, bytearray) else argument)


_HANDLERS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), _nothing),
    **dict.fromkeys(
        (
            "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
            "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
            "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
        ),
        _argument,
    ),
    "NONE": _constant(None), "NEWTRUE": _constant(True), "NEWFALSE": _constant(False),
    "EMPTY_LIST": _empty("list"), "EMPTY_DICT": _empty("dict"), "EMPTY_SET": _empty("set"),
    "EMPTY_TUPLE": _empty("tuple"), "TUPLE1": _tuple_of(1), "TUPLE2": _tuple_of(2), "TUPLE3": _tuple_of(3),
    "LIST": _container_from_mark("list"), "TUPLE": _container_from_mark("tuple"),
    "FROZENSET": _container_from_mark("set"),
    "DICT": lambda machine, _: machine.push(Items("dict", _pairs(machine.to_mark()))),
    "MARK": _Machine.mark, "POP": _Machine.pop, "POP_MARK": _Machine.pop_mark,
    "DUP": _Machine.dup, "MEMOIZE": _Machine.memoize,
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
    "GLOBAL": _Machine.name, "STACK_GLOBAL": _Machine.stack_name, "INST": _Machine.instance, "OBJ": _Machine.obj,
    "REDUCE": _Machine.reduce, "NEWOBJ": _Machine.reduce, "NEWOBJ_EX": _Machine.new_with_keywords,
    "BUILD": _Machine.build, "BINPERSID": _Machine.persistent,
    "APPEND": _Machine.append, "APPENDS": _Machine.appends, "ADDITEMS": _Machine.additems,
    "SETITEM": _Machine.setitem, "SETITEMS": _Machine.setitems,
}  # fmt: skip


def plain(node: Node, make: Callable[[Call], Any] | None = None, max_values: int = _MAX_VALUES) -> Any:
    """
    A tree of plain values as Python's own.

    :param node: numbers, text, bytes, None, and containers of these
    :param make: gives the value of a call, or raises; None where no call is expected
    :param max_values: more are refused, those that are referred to several times counted as often
    :return: the value; an ``OrderedDict`` is a dict
    :raises UnknownObjectError: for a name, or a call that ``make`` does not know
    :raises DecodingError: when there are too many values, or they are nested too deeply
    """
    n_values = 0

    def convert(node: Node, depth: int) -> Any:
        nonlocal n_values
        n_values += 1
        if depth > _MAX_DEPTH or n_values > max_values:
            raise DecodingError(f"values nested more than {_MAX_DEPTH} deep, or more than {max_values:,} of them")
        if node is None or isinstance(node, (bool, int, float, str, bytes)):
            return node
        pairs = _pairs_of_dict(node)
        if pairs is not None:
            return {_key(key): convert(value, depth + 1) for key, value in pairs}
        if isinstance(node, (list, tuple)):
            node = Items("list", list(node))
        if isinstance(node, Items):
            items = [convert(item, depth + 1) for item in node.items]
            return tuple(items) if node.kind == "tuple" else items
        if isinstance(node, Call) and make is not None:
            return make(node)
        raise unknown(node)

    return convert(node, 0)


def _pairs_of_dict(node: Node) -> list[tuple[Node, Node]] | None:
    """Keys and values of a dict, of a stored ``OrderedDict``, or of a mapping out of JSON; None for anything else."""
    if isinstance(node, dict):
        return list(node.items())
    if isinstance(node, Items) and node.kind == "dict":
        return node.items
    is_ordered = call_of(node) == ("collections", "OrderedDict") and not node.arguments
    return node.items if is_ordered and all(isinstance(item, tuple) for item in node.items) else None


def _key(node: Node) -> Any:
    if not isinstance(node, (str, int)):
        raise DecodingError("a mapping whose keys are neither text nor whole numbers")
    return node


def mapping(node: Node) -> dict[str, Node]:
    """
    :param node: a dict with text as keys
    :return: the dict, with its values as they are
    :raises DecodingError: when the node is anything else
    """
    pairs = _pairs_of_dict(node)
    if pairs is None:
        raise unknown(node) if isinstance(node, (Name, Call)) else DecodingError("expected a mapping")
    if not all(isinstance(key, str) for key, _ in pairs):
        raise DecodingError("a mapping whose keys are not text")
    return dict(pairs)


def call_of(node: Node) -> tuple[str, str]:
    """
    :param node: any node
    :return: module and name of the function or class that the node calls; two empty texts for any other node
    """
    if isinstance(node, Call) and isinstance(node.function, Name):
        return node.function.key
    return "", ""


def unknown(node: Node) -> DecodingError:
    """
    :param node: a node that cannot be rebuilt
    :return: an error that names the object, or says that the node is not an object
    """
    while isinstance(node, Call):
        node = node.function
    if isinstance(node, Name):
        what = f"{node.module}.{node.name}"[:200]
        return UnknownObjectError(f"refused to load {what}, which is not on the list of known objects")
    found = node.kind if isinstance(node, Items) else type(node).__name__
    return DecodingError(f"expected an object of another kind, got {found}")
