"""Attributes of a model that have other values while it is trained on."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import FloatSchedule

_SCHEDULES = ("lr_schedule", "clip_range", "clip_range_vf", "delta_std_schedule", "exploration_schedule")


@contextmanager
def schedules_held(model: BaseAlgorithm, progress_remaining: float) -> Iterator[None]:
    """
    Hold the schedules of a model at one value: of the learning rate, the clip range and the exploration rate.

    :param model: any
    :param progress_remaining: share of the original training that was left at that value, from 1, its beginning, to 0,
        its end
    """
    schedules = {name: vars(model)[name] for name in _SCHEDULES if callable(vars(model).get(name))}
    held = {name: FloatSchedule(float(schedule(progress_remaining))) for name, schedule in schedules.items()}
    with attributes(model, held):
        yield


@contextmanager
def attributes(model: BaseAlgorithm, values: dict[str, Any]) -> Iterator[None]:
    """
    :param model: any
    :param values: of attributes, which get their own values back at the end
    """
    own = {name: vars(model)[name] for name in values}
    vars(model).update(values)
    try:
        yield
    finally:
        vars(model).update(own)
