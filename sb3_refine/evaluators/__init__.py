"""Who runs the episodes. A new backend is a file here and a line in the registry."""

from collections.abc import Callable
from typing import Any, TypeAlias

from sb3_refine.errors import RefineError, check_count
from sb3_refine.evaluators.base import Evaluator, n_processors
from sb3_refine.evaluators.executor import Executor, ExecutorEvaluator
from sb3_refine.evaluators.process import ProcessEvaluator
from sb3_refine.evaluators.ray_cluster import RayEvaluator
from sb3_refine.evaluators.serial import SerialEvaluator
from sb3_refine.evaluators.worker import Batch, Job, RolloutTask, RolloutWorker
from sb3_refine.parts import check_options, parse_part

EVALUATORS: dict[str, type[Evaluator]] = {
    "executor": ExecutorEvaluator,
    "process": ProcessEvaluator,
    "ray": RayEvaluator,
    "serial": SerialEvaluator,
}
"""Backends by name. To add one of your own, write ``EVALUATORS["my-backend"] = MyEvaluator``."""


Backend: TypeAlias = str | Executor | Callable[..., Executor]
"""``name`` or ``name:option=value,option=value``, or what :class:`ExecutorEvaluator` takes as ``make``."""


def backend_options(argument: str, backend: Backend, n_workers: int | None) -> tuple[str, dict[str, Any]]:
    """
    :param argument: name of the argument, for messages
    :param backend: who runs the episodes
    :param n_workers: the same as the option; None where it is not given
    :return: the name, and the options, ``n_workers`` among them
    :raises RefineError: for an unknown name or option, or where ``n_workers`` is given twice
    """
    if hasattr(backend, "submit") or callable(backend):
        name, given = "executor", {"make": backend}
    else:
        name, given = parse_part(argument, backend, EVALUATORS)
        check_options(argument, name, given, EVALUATORS[name].options())
    if n_workers is not None and "n_workers" in given:
        raise RefineError(f"{argument}: n_workers is given twice: in {backend!r} and as an argument of its own")
    options = {"n_workers": n_workers, **given}
    if options["n_workers"] is not None:
        check_count("n_workers", options["n_workers"], 1)
    return name, options


__all__ = [
    "EVALUATORS",
    "Backend",
    "Batch",
    "Evaluator",
    "Executor",
    "ExecutorEvaluator",
    "Job",
    "ProcessEvaluator",
    "RayEvaluator",
    "RolloutTask",
    "RolloutWorker",
    "SerialEvaluator",
    "backend_options",
    "n_processors",
]
