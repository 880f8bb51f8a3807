"""The formats of an exported policy: how each is written, and run again for the check."""

import ctypes
import logging
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as th

from sb3_refine.deploy.c_header import header_text, prefix_of
from sb3_refine.deploy.network import DeployedMLP, DeployedPolicy
from sb3_refine.errors import RefineError, one_line

INPUT, OUTPUT = "observation", "action"
"""Names of the input and of the output."""

Function = Callable[..., Sequence[np.ndarray]]
"""
From a batch of observations, float32 of shape ``(n, n_inputs)``, and the state of a policy that has one, to the actions
and the state for the next step.
"""


class CannotRunError(Exception):
    """A file that was written cannot be run on this machine, so that it cannot be compared."""


class Format(NamedTuple):
    """
    :param suffix: of the file
    :param check_packages: raises :class:`~sb3_refine.errors.RefineError` when a package is missing
    :param write: writes a policy to a path; the third argument is the name of the final file
    :param read: the function in a file that was written; raises :class:`CannotRunError`
    """

    suffix: str
    check_packages: Callable[[], None]
    write: Callable[[DeployedPolicy, Path, str], None]
    read: Callable[[Path, DeployedPolicy, str], Function]


def _check_onnx() -> None:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise RefineError(f"format: onnx needs {', '.join(missing)}; run: pip install 'sb3-refine[export]'")


def _write_onnx(policy: DeployedPolicy, path: Path, name: str) -> None:
    import onnx

    names = [entry.name for entry in policy.state]
    with _quiet_exporter(), _exporter_errors("onnx"):
        th.onnx.export(
            policy,
            _example(policy),
            str(path),
            input_names=[INPUT, *names],
            output_names=[OUTPUT, *(f"next_{name}" for name in names)],
            dynamic_shapes=_dynamic_shapes(policy),
            external_data=False,
            dynamo=True,
            verbose=False,
            optimize=not policy.is_rounded,  # which would store the weights as float32
        )
    model = onnx.load(str(path))
    for node in model.graph.node:  # with the exporter's stack traces, a small policy is twice as large
        del node.metadata_props[:]
    onnx.save(model, str(path))


@contextmanager
def _exporter_errors(name: str) -> Iterator[None]:
    """PyTorch's exporter knows not every operation that a network may have."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {one_line(error, 200)}"
        raise RefineError(f"format: {name}: PyTorch cannot export this policy ({reason}); choose another") from error


def _example(policy: DeployedPolicy) -> tuple[th.Tensor, ...]:
    """Inputs of a batch of two."""
    return (th.zeros(2, policy.n_inputs), *(th.from_numpy(entry.zeros(2)) for entry in policy.state))


def _dynamic_shapes(policy: DeployedPolicy) -> tuple[dict[int, Any], ...]:
    """Where each input has the batch."""
    batch = th.export.Dim("batch")
    return ({0: batch}, *({entry.shape.index(None): batch} for entry in policy.state))


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Hide what the exporter says about torchvision and about its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _read_onnx(path: Path, policy: DeployedPolicy, name: str) -> Function:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # errors: not that there is no kernel for a constant of 8 bits
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [INPUT, *(entry.name for entry in policy.state)]
    return lambda *inputs: [np.asarray(each) for each in session.run(None, dict(zip(names, inputs, strict=True)))]


def _write_torch(policy: DeployedPolicy, path: Path, name: str) -> None:
    with _exporter_errors("torch"):
        program = th.export.export(policy, _example(policy), dynamic_shapes=_dynamic_shapes(policy))
    th.export.save(program, path)


def _read_torch(path: Path, policy: DeployedPolicy, name: str) -> Function:
    module = th.export.load(path).module()

    def run(*inputs: np.ndarray) -> list[np.ndarray]:
        found = module(*map(th.from_numpy, inputs))
        return [each.detach().numpy() for each in (found if policy.state else [found])]

    return run


def _write_c(policy: DeployedPolicy, path: Path, name: str) -> None:
    assert isinstance(policy, DeployedMLP)
    path.write_text(header_text(policy, name), encoding="utf-8")


def _read_c(path: Path, policy: DeployedPolicy, name: str) -> Function:
    compiler = shutil.which("cc")
    if compiler is None:
        raise CannotRunError("there is no C compiler (cc)")
    kind = "float" if policy.is_continuous else "int"
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "policy.c", Path(folder) / "policy.so"
        source.write_text(
            f'#include "{path.resolve()}"\nvoid act(const float *o, {kind} *a) {{ {prefix_of(name)}_act(o, a); }}\n',
            encoding="utf-8",
        )
        command = [compiler, "-std=c99", "-O2", "-shared", "-fPIC", str(source), "-o", str(library), "-lm"]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
            act = ctypes.CDLL(str(library)).act
        except subprocess.CalledProcessError as error:
            raise CannotRunError(f"the C compiler failed: {one_line(RuntimeError(error.stderr), 200)}") from error
        except OSError as error:
            raise CannotRunError(f"the compiled header cannot be loaded: {one_line(error, 200)}") from error
    dtype = np.float32 if policy.is_continuous else np.intc

    def run(observations: np.ndarray) -> list[np.ndarray]:
        actions = np.zeros((len(observations), policy.n_actions if policy.is_continuous else 1), dtype=dtype)
        for observation, action in zip(np.ascontiguousarray(observations), actions, strict=True):
            act(observation.ctypes.data_as(ctypes.c_void_p), action.ctypes.data_as(ctypes.c_void_p))
        return [actions.reshape(-1, *policy.action_shape) if policy.is_continuous else actions[:, 0]]

    return run


FORMATS = {
    "onnx": Format(".onnx", _check_onnx, _write_onnx, _read_onnx),
    "torch": Format(".pt2", lambda: None, _write_torch, _read_torch),
    "c": Format(".h", lambda: None, _write_c, _read_c),
}
"""By the name on the command line."""
