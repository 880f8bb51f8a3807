"""Weights with fewer bits, as small devices have them."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from stable_baselines3.common.policies import BasePolicy

from sb3_refine.errors import RefineError, did_you_mean
from sb3_refine.policies.parameters import PolicyParameters

_BITS = {"int8": 8, "int4": 4}
_SCALE_BITS = 11

ROUNDINGS = ("float16", *_BITS)
"""Names of the formats."""


class Integers(NamedTuple):
    """
    A rounded tensor: the numbers are ``values * scale``.

    :param values: int8, in the shape of the tensor
    :param scale: float32, one for each entry of the first axis, in a shape that broadcasts
    """

    values: np.ndarray
    scale: np.ndarray


def check_rounding(argument: str, name: str | None) -> None:
    """
    :param argument: name of the argument, for the message
    :param name: of a format, or None
    :raises RefineError: when there is no such format
    """
    if name is not None and name not in ROUNDINGS:
        raise RefineError(
            f"{argument}: unknown {name!r}{did_you_mean(str(name), ROUNDINGS)}; choose from {', '.join(ROUNDINGS)}"
        )


def as_integers(tensor: np.ndarray, name: str) -> Integers:
    """
    Symmetric rounding with a scale for each row: the largest number of a row becomes 127 with 8 bits, 7 with 4. A scale
    has few bits, so that its products with the integers are exact.

    :param tensor: at least two-dimensional
    :param name: ``"int8"`` or ``"int4"``
    :return: the rounded tensor
    """
    largest = np.abs(tensor).max(axis=tuple(range(1, tensor.ndim)), keepdims=True).astype(np.float64)
    mantissa, exponent = np.frexp(np.where(largest > 0, largest, 1.0) / (2 ** (_BITS[name] - 1) - 1))
    scale = np.ldexp(np.ceil(mantissa * 2**_SCALE_BITS) / 2**_SCALE_BITS, exponent)
    return Integers(np.rint(tensor / scale).astype(np.int8), scale.astype(np.float32))


def rounded(tensor: np.ndarray, name: str) -> np.ndarray:
    """
    :param tensor: of parameters
    :param name: of the format. ``"float16"`` is for all parameters; integers are for weights, not for what has one
        dimension, such as biases
    :return: float32 numbers that the format can hold. To round them again changes nothing
    """
    if name == "float16":
        with np.errstate(over="ignore"):  # to infinity, as it would be on the device
            return tensor.astype(np.float16).astype(np.float32)
    if tensor.ndim < 2:
        return tensor
    values, scale = as_integers(tensor, name)
    return values * scale


class Rounding:
    """
    Rounds a vector of parameters.

    :param name: of the format
    :param policy: of a Stable-Baselines3 model
    :param parameters: those of the policy that are in the vector
    """

    def __init__(self, name: str, policy: BasePolicy, parameters: PolicyParameters):
        shapes = {key: tuple(value.shape) for key, value in policy.named_parameters()}
        self._name = name
        self._parts: Mapping[str, tuple[slice, tuple[int, ...]]] = {
            key: (where, shapes[key]) for key, where in parameters.slices().items()
        }

    def __call__(self, theta: np.ndarray) -> np.ndarray:
        """
        :param theta: float32, shape ``(n_parameters,)``
        :return: a rounded copy
        """
        found = np.empty_like(theta)
        for where, shape in self._parts.values():
            found[where] = rounded(theta[where].reshape(shape), self._name).ravel()
        return found
