"""Pickles that Python 3.6 to 3.13 made, with the numpy and cloudpickle of their time: see make_pickles.py."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces

from sb3_refine.agents.decoding.arrays import array, numpy_value
from sb3_refine.agents.decoding.objects import running_mean_std, space
from sb3_refine.agents.decoding.pickle_tree import read_pickle
from sb3_refine.agents.decoding.schedules import schedule

MADE = {made["python"]: made for made in json.loads(Path(__file__).with_name("pickles.json").read_text())}
SCHEDULES = {"linear": (0.01, 0.005), "constant": (0.2, 0.2), "lambda": (0.5, 0.5)}
SPACES = {
    "box": spaces.Box(np.float32([-1, -2]), np.float32([1, 2])),
    "gymnasium box": spaces.Box(np.float32([-1, -2]), np.float32([1, 2])),
    "discrete": spaces.Discrete(4),
}


@pytest.fixture(params=MADE)
def trees(request):
    return {name: read_pickle(base64.b64decode(text)) for name, text in MADE[request.param]["pickles"].items()}


def test_schedules_of_every_python(trees):
    for name, values in SCHEDULES.items():
        found = schedule(trees[name])
        assert tuple(found(x) if callable(found) else found for x in (1.0, 0.5)) == values


def test_spaces_of_every_python(trees):
    assert {name: space(trees[name]) for name in SPACES} == SPACES


def test_arrays_and_numbers_of_every_python_and_protocol(trees):
    for name in (name for name in trees if name.startswith("fortran")):
        assert array(trees[name]).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert array(trees["big endian"]).tolist() == [0, 1, 2]
    assert numpy_value(trees["scalar"]) == -3.5
    assert type(numpy_value(trees["scalar"])) is np.float32


def test_statistics_of_every_python_and_protocol(trees):
    for name in (name for name in trees if name.startswith("rms")):
        found = running_mean_std(trees[name], (2,))
        assert (found.mean.tolist(), found.var.tolist(), found.count) == ([0.5, 1.5], [1, 2], 10.0001)
