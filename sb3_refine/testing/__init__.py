"""
Contract tests for optimizers, objectives and backends: this package's own, and yours.

Subclass the contract of your part in a test module, say what to test, and let pytest collect it::

    from sb3_refine.testing import OptimizerContract

    class TestMyOptimizer(OptimizerContract):
        optimizer = MyOptimizer
"""

from sb3_refine.testing.evaluators import EvaluatorContract
from sb3_refine.testing.objectives import ObjectiveContract
from sb3_refine.testing.optimizers import OptimizerContract

__all__ = ["EvaluatorContract", "ObjectiveContract", "OptimizerContract"]
