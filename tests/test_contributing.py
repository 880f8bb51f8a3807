"""The optimizers that CONTRIBUTING.md shows keep the contract."""

import re
from pathlib import Path

import pytest

from sb3_refine.testing import OptimizerContract

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
DEFINED: dict[str, type] = {}
for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
    if "(Optimizer)" in block:
        exec(block, DEFINED)


class TestRandomSearch(OptimizerContract):
    optimizer = DEFINED["RandomSearch"]
    options = {"std": 0.1}  # noqa: RUF012


class TestOnePlusLambda(OptimizerContract):
    optimizer = DEFINED["OnePlusLambda"]
    options = {"std": 0.1}  # noqa: RUF012


@pytest.mark.parametrize("name", re.findall(r"`(sb3_refine/[\w/]+\.py)`", TEXT))
def test_named_files_exist(name):
    assert (Path(__file__).parents[1] / name).is_file()
