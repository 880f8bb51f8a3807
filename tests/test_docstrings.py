"""The examples in docstrings run."""

import doctest
from importlib import import_module

import pytest

MODULES = (
    "agents.load", "deploy.export",
    "evaluation.acceptance", "evaluation.selection", "evaluation.statistics", "judging", "objectives",
    "optimizers.base", "optimizers.population", "planning.planner", "refiner", "rollouts.mesh_dimension",
    "training.judge_callback", "training.trainer",
)  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    result = doctest.testmod(import_module(f"sb3_refine.{name}"))
    assert result.attempted
    assert not result.failed
