"""Who runs the episodes. A new backend is a file here and a line in the registry."""

from sb3_refine.evaluators.base import Evaluator, RolloutTask
from sb3_refine.evaluators.process import ProcessEvaluator, n_processors
from sb3_refine.evaluators.serial import SerialEvaluator

EVALUATORS: dict[str, type[Evaluator]] = {
    "process": ProcessEvaluator,
    "serial": SerialEvaluator,
}

__all__ = ["EVALUATORS", "Evaluator", "ProcessEvaluator", "RolloutTask", "SerialEvaluator", "n_processors"]
