"""The formats of an exported policy: how each is written, and run again for the check."""

import ctypes
import logging
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch as th

from sb3_refine.deploy.c_header import header_text, prefix_of
from sb3_refine.deploy.network import DeployedPolicy
from sb3_refine.errors import RefineError, one_line

INPUT, OUTPUT = "observation", "action"
"""Names of the input and of the output."""

Function = Callable[[np.ndarray], np.ndarray]
"""From a batch of observations, float32 of shape ``(n, n_inputs)``, to the actions."""


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
    with _quiet_exporter():
        th.onnx.export(
            policy,
            (th.zeros(2, policy.n_inputs),),
            str(path),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={INPUT: {0: th.export.Dim("batch")}},
            external_data=False,
            dynamo=True,
            verbose=False,
        )


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
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda observations: np.asarray(session.run([OUTPUT], {INPUT: observations})[0])


def _write_torch(policy: DeployedPolicy, path: Path, name: str) -> None:
    batch = {INPUT: {0: th.export.Dim("batch")}}
    program = th.export.export(policy, (th.zeros(2, policy.n_inputs),), dynamic_shapes=batch)
    th.export.save(program, path)


def _read_torch(path: Path, policy: DeployedPolicy, name: str) -> Function:
    module = th.export.load(path).module()
    return lambda observations: module(th.from_numpy(observations)).detach().numpy()


def _write_c(policy: DeployedPolicy, path: Path, name: str) -> None:
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

    def run(observations: np.ndarray) -> np.ndarray:
        actions = np.zeros((len(observations), policy.n_actions if policy.is_continuous else 1), dtype=dtype)
        for observation, action in zip(np.ascontiguousarray(observations), actions, strict=True):
            act(observation.ctypes.data_as(ctypes.c_void_p), action.ctypes.data_as(ctypes.c_void_p))
        return actions.reshape(-1, *policy.action_shape) if policy.is_continuous else actions[:, 0]

    return run


FORMATS = {
    "onnx": Format(".onnx", _check_onnx, _write_onnx, _read_onnx),
    "torch": Format(".pt2", lambda: None, _write_torch, _read_torch),
    "c": Format(".h", lambda: None, _write_c, _read_c),
}
"""By the name on the command line."""
