"""A C header without dependencies."""

import json
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from torch import nn

import sb3_refine
from sb3_refine.deploy.network import DeployedMLP, RoundedLinear
from sb3_refine.errors import RefineError

_PER_LINE = 8


def prefix_of(name: str) -> str:
    """
    :param name: of the file
    :return: beginning of all names in the header
    """
    return re.sub(r"\W", "_", name, flags=re.ASCII).lower().lstrip("0123456789_") or "policy"


def header_text(policy: DeployedMLP, name: str) -> str:
    """
    :param policy: any
    :param name: of the file
    :return: the header
    :raises RefineError: when an activation has no C
    """
    environment = Environment(
        loader=PackageLoader("sb3_refine.deploy"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(floats=_floats, integers=_integers, doubles=_doubles, quoted=_quoted)
    layers: list[dict[str, Any]] = []
    for layer in policy.layers:
        if isinstance(layer, (nn.Linear, RoundedLinear)):
            layers.append({**_arrays(layer), "activations": []})
        else:
            layers[-1]["activations"].append(_in_c(layer))
    n_values = layers[-1]["weight"].shape[0]
    return environment.get_template("policy.h.j2").render(
        version=sb3_refine.__version__,
        prefix=prefix_of(name),
        policy=policy,
        layers=layers,
        stored=layers[0]["weight"].dtype.name,
        n_quantiles=n_values // policy.n_actions,
        n_largest=max(policy.n_inputs, *(layer["weight"].shape[0] for layer in layers)),
        low=policy.low.numpy() if policy.is_continuous else None,
        high=policy.high.numpy() if policy.is_continuous else None,
    )


def _arrays(layer: nn.Linear | RoundedLinear) -> dict[str, np.ndarray]:
    """Weights and bias as they are stored; 16-bit numbers as their bits, which C99 has no type for."""
    arrays = {"weight": layer.weight, "bias": layer.bias, "scale": getattr(layer, "scale", None)}
    found = {name: values.detach().numpy() for name, values in arrays.items() if values is not None}
    found.setdefault("bias", np.zeros(layer.out_features, np.float32))
    return {name: values.view(np.uint16) if values.dtype == np.float16 else values for name, values in found.items()}


_ACTIVATIONS: dict[type[nn.Module], Callable[[Any], str]] = {
    nn.ReLU: lambda layer: "x > 0.0f ? x : 0.0f",
    nn.Tanh: lambda layer: "tanhf(x)",
    nn.Sigmoid: lambda layer: "1.0f / (1.0f + expf(-x))",
    nn.SiLU: lambda layer: "x / (1.0f + expf(-x))",
    nn.ELU: lambda layer: f"x > 0.0f ? x : {float(layer.alpha)}f * expm1f(x)",
    nn.Hardtanh: lambda layer: _clipped(float(layer.min_val), float(layer.max_val)),
    nn.LeakyReLU: lambda layer: f"x > 0.0f ? x : {float(layer.negative_slope)}f * x",
}
"""Expressions of x."""


def _clipped(low: float, high: float) -> str:
    return f"x < {low}f ? {low}f : x > {high}f ? {high}f : x"


def _in_c(layer: nn.Module) -> str:
    if type(layer) not in _ACTIVATIONS:
        raise RefineError(f"format: no C for the activation {type(layer).__name__}; choose another format")
    return _ACTIVATIONS[type(layer)](layer)


def _quoted(key: str) -> str:
    """Within a comment."""
    return json.dumps(key).replace("*/", "* /")


def _floats(values: np.ndarray) -> str:
    return _lines(_literal(f"{value:.9g}", "f") for value in np.asarray(values, dtype=np.float32).ravel())


def _integers(values: np.ndarray) -> str:
    return _lines(str(value) for value in values.ravel())


def _doubles(values: np.ndarray) -> str:
    return _lines(_literal(f"{value:.17g}", "") for value in np.asarray(values, dtype=np.float64).ravel())


def _literal(text: str, suffix: str) -> str:
    if "inf" in text:
        return text.replace("inf", "INFINITY")
    return text + ("" if set(text) & set(".e") else ".0") + suffix


def _lines(literals: Iterable[str]) -> str:
    found = list(literals)
    return ",\n    ".join(", ".join(found[start : start + _PER_LINE]) for start in range(0, len(found), _PER_LINE))
