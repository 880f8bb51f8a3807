"""Who runs the episodes. A new backend is a file here and a line in the registry."""

from sb3_refine.evaluators.base import Evaluator
from sb3_refine.evaluators.process import ProcessEvaluator, n_processors
from sb3_refine.evaluators.serial import SerialEvaluator
from sb3_refine.evaluators.worker import Batch, Job, RolloutTask, RolloutWorker

EVALUATORS: dict[str, type[Evaluator]] = {
    "process": ProcessEvaluator,
    "serial": SerialEvaluator,
}

__all__ = [
    "EVALUATORS",
    "Batch",
    "Evaluator",
    "Job",
    "ProcessEvaluator",
    "RolloutTask",
    "RolloutWorker",
    "SerialEvaluator",
    "n_processors",
]
