"""
Write the pickles of one version of Python, for test_pickles.py. Needs numpy and cloudpickle only:

    for v in 3.6 3.7 3.8 3.9 3.10 3.12 3.13; do python$v tests/make_pickles.py $v.json; done

pickles.json is the list of what these files hold.
"""

import base64
import json
import pickle
import sys
import types

import cloudpickle
import numpy as np


def stand_in(module_name, name, **state):
    """An object of a class that only has the name of the real one, which need not be installed."""
    parts = module_name.split(".")
    for end in range(1, len(parts) + 1):
        sys.modules.setdefault(".".join(parts[:end]), types.ModuleType(".".join(parts[:end])))
    cls = type(name, (), {"__module__": module_name})
    cls.__qualname__ = name
    setattr(sys.modules[module_name], name, cls)
    made = cls()
    made.__dict__.update(state)
    return made


def linear_schedule(initial_value):  # as in rl_zoo3.utils
    def func(progress_remaining):
        return progress_remaining * initial_value

    return func


def constant_fn(val):  # as in stable_baselines3.common.utils
    def func(_):
        return val

    return func


def box(package):
    bounds = np.array([1, 2], dtype=np.float32)
    bounded = np.array([True, True])
    state = {"low": -bounds, "high": bounds, "bounded_below": bounded, "_shape": (2,), "np_random": None}
    return stand_in(package + ".spaces.box", "Box", dtype=np.dtype("float32"), **state)


def values():
    discrete = {"n": 4, "_shape": (), "dtype": np.dtype("int64"), "_np_random": np.random.RandomState(3)}
    figures = {"mean": np.array([0.5, 1.5]), "var": np.array([1.0, 2.0]), "count": 10.0001}
    return {
        "linear": linear_schedule(0.01),
        "constant": constant_fn(0.2),
        "lambda": lambda _: 0.5,
        "box": box("gym"),
        "gymnasium box": box("gymnasium"),
        "discrete": stand_in("gym.spaces.discrete", "Discrete", **discrete),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big endian": np.arange(3, dtype=">f8"),
        "scalar": np.float32(-3.5),
        "rms": stand_in("stable_baselines3.common.running_mean_std", "RunningMeanStd", **figures),
    }


def main():
    made = values()
    pickles = {name: cloudpickle.dumps(value) for name, value in made.items()}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        pickles["fortran protocol %d" % protocol] = pickle.dumps(made["fortran"], protocol)  # noqa: UP031 - Python 3.6
        if protocol >= 2:
            pickles["rms protocol %d" % protocol] = pickle.dumps(made["rms"], protocol)  # noqa: UP031
    content = {
        "python": sys.version.split()[0],
        "numpy": np.__version__,
        "cloudpickle": cloudpickle.__version__,
        "pickles": {name: base64.b64encode(value).decode() for name, value in pickles.items()},
    }
    with open(sys.argv[1], "w") as file:
        json.dump(content, file)


if __name__ == "__main__":
    main()
