"""Learning rates and clip ranges: read by the numbers of a stored schedule, whose code is never run."""

import math
from collections.abc import Callable
from typing import Any

from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

from sb3_refine.agents.decoding.arrays import finite
from sb3_refine.agents.decoding.objects import state_of
from sb3_refine.agents.decoding.pickle_tree import (
    Call,
    DecodingError,
    Items,
    Name,
    Node,
    UnknownObjectError,
    call_of,
    mapping,
)

_MAX_NESTED = 6
_SB3 = "stable_baselines3.common.utils"


class UnreadableSchedule:
    """
    Stands for a schedule that is the author's own code, and is not run.

    :param name: qualified name of the function or class
    """

    def __init__(self, name: str):
        self.name = name


def schedule(node: Node, depth: int = 0) -> Any:
    """
    :param node: a number, or a stored schedule
    :param depth: how many schedules it is within
    :return: a number or a schedule of Stable-Baselines3, or an :class:`UnreadableSchedule`
    :raises DecodingError: when its numbers are not finite
    """
    if depth > _MAX_NESTED:
        raise DecodingError("schedules nested too deeply")
    if node is None:
        return None
    module, name = call_of(node)
    if (isinstance(node, (int, float)) and not isinstance(node, bool)) or name == "scalar":
        return float(finite(node))
    if (module, name) == (_SB3, "FloatSchedule"):
        value = schedule(state_of(node)["value_schedule"], depth + 1)
        return value if isinstance(value, UnreadableSchedule) else FloatSchedule(value)
    if (module, name) in _CLASSES:
        return _CLASSES[module, name](state_of(node))
    try:
        return _Function(node).schedule(depth)
    except UnknownObjectError:
        return UnreadableSchedule(_title(node))


_CLASSES: dict[tuple[str, str], Callable[[dict[str, Node]], Any]] = {
    (_SB3, "ConstantSchedule"): lambda state: ConstantSchedule(finite(state["val"])),
    (_SB3, "LinearSchedule"): lambda state: LinearSchedule(
        finite(state["start"]), finite(state["end"]), finite(state["end_fraction"], 1e-12, 1)
    ),
    ("rl_zoo3.utils", "SimpleLinearSchedule"): lambda state: LinearSchedule(finite(state["initial_value"]), 0.0, 1.0),
}


def _title(node: Node) -> str:
    while isinstance(node, Call):
        node = node.function
    return f"{node.module}.{node.name}"[:100] if isinstance(node, Name) else "a function"


class _Function:
    """
    A function as cloudpickle stores it: its name, its code and the values it closes over.

    :param node: the stored function
    :raises UnknownObjectError: when it is no function
    """

    def __init__(self, node: Node):
        module, name = call_of(node)
        if module == "cloudpickle.cloudpickle" and name == "_fill_function" and len(node.arguments) == 2:
            skeleton, state = node.arguments  # cloudpickle < 1.5: all in one mapping
            stored = mapping(state)
            self.code = _code_of(skeleton)
            self.closure = _items(stored.get("closure_values"))
            self.name = str(stored.get("qualname") or "")
        elif _makes_a_function(node) and isinstance(node.state, Items) and len(node.state.items) == 2:
            stored = mapping(node.state.items[1])  # the slots
            self.code = _code_of(node)
            self.closure = [_content(cell) for cell in _items(stored.get("__closure__"))]
            self.name = str(stored.get("__qualname__") or "")
        else:
            raise UnknownObjectError("not a function")

    def schedule(self, depth: int) -> Any:
        """
        :param depth: how many schedules it is within
        :return: the schedule that this function computed, in Stable-Baselines3's terms, if it is a known one
        """
        value: Any = self.closure[0] if len(self.closure) == 1 else None
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if self.name == "linear_schedule.<locals>.func" and is_number and self._only_multiplies():  # rl_zoo3.utils
            return LinearSchedule(float(value), 0.0, 1.0)
        if self.name == "constant_fn.<locals>.func" and is_number:  # stable_baselines3.common.utils
            return float(value)
        if self.name == "get_schedule_fn.<locals>.<lambda>" and isinstance(value, Call):  # of the same module
            return schedule(value, depth + 1)
        constant = self._constant()
        return UnreadableSchedule(self.name[:100] or "a function") if constant is None else constant

    def _only_multiplies(self) -> bool:
        """Whether the code has no numbers and no names of its own: other authors use the same function names."""
        constants, names, _ = self.code
        return not names and not any(isinstance(constant, (int, float)) for constant in constants)

    def _constant(self) -> float | None:
        """The value of ``lambda _: value``, which the Zoo passes to run an agent."""
        constants, names, arguments = self.code
        numbers = [constant for constant in constants if isinstance(constant, float)]
        is_constant = not self.closure and not names and arguments == ["_"] and len(numbers) == 1
        return numbers[0] if is_constant and math.isfinite(numbers[0]) else None


def _makes_a_function(node: Node) -> bool:
    """cloudpickle calls its ``_make_function``, or a type that it looks up by name."""
    if call_of(node) == ("cloudpickle.cloudpickle", "_make_function"):
        return True
    return isinstance(node, Call) and _builtin_type(node.function) in ("FunctionType", "LambdaType")


def _builtin_type(node: Node) -> str:
    if call_of(node) == ("cloudpickle.cloudpickle", "_builtin_type") and len(node.arguments) == 1:
        return str(node.arguments[0])
    return ""


def _code_of(node: Node) -> tuple[list[Node], list[Node], list[Node]]:
    """
    Constants, names and arguments of a stored function. In every version of Python they follow the byte code among
    the arguments of a code object.
    """
    code = node.arguments[0] if isinstance(node, Call) and node.arguments else None
    parts = code.arguments if isinstance(code, Call) and _builtin_type(code.function) == "CodeType" else []
    start = next((i for i, part in enumerate(parts) if isinstance(part, bytes)), None)
    if start is None or len(parts) < start + 4:
        raise UnknownObjectError("a function without code")
    constants, names, arguments = (_items(part) for part in parts[start + 1 : start + 4])
    return constants, names, arguments


def _content(cell: Node) -> Node:
    return cell.arguments[0] if call_of(cell)[1] == "_make_cell" and len(cell.arguments) == 1 else None


def _items(node: Node) -> list[Node]:
    return node.items if isinstance(node, Items) and node.kind in ("tuple", "list") else []
