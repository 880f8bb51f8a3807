"""Search methods. A new one is a file here and a line in the registry."""

from collections.abc import Mapping
from typing import Any

from sb3_refine.errors import RefineError
from sb3_refine.optimizers.ars import ARS
from sb3_refine.optimizers.backtracking_ars import BacktrackingARS
from sb3_refine.optimizers.base import Optimizer
from sb3_refine.optimizers.cem import CEM
from sb3_refine.optimizers.cma_es import CMAES
from sb3_refine.optimizers.guided_es import GuidedES
from sb3_refine.optimizers.openai_es import OpenAIES, PlainOpenAIES
from sb3_refine.optimizers.pgpe import PGPE
from sb3_refine.optimizers.population import ExplicitPopulation, NoisePopulation, Population
from sb3_refine.optimizers.scaled import ScaledOptimizer
from sb3_refine.parts import check_options, parse_part

OPTIMIZERS: dict[str, type[Optimizer]] = {
    "ars": ARS,
    "backtracking-ars": BacktrackingARS,
    "cem": CEM,
    "cma-es": CMAES,
    "guided-es": GuidedES,
    "openai-es": OpenAIES,
    "pgpe": PGPE,
    "plain-openai-es": PlainOpenAIES,
}
"""Search methods by name. To add one of your own, write ``OPTIMIZERS["my-search"] = MySearch``."""


def given_options(optimizer: str, kwargs: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """
    :param optimizer: ``name`` or ``name:option=value,option=value``
    :param kwargs: further options
    :return: the name, and the options that are given
    :raises RefineError: for an unknown name or option, or one that is given twice
    """
    name, options = parse_part("optimizer", optimizer, OPTIMIZERS)
    for option in options:
        if option in kwargs:
            raise RefineError(f"optimizer: {option} is given twice: in {optimizer!r} and as an argument of its own")
    given = {**options, **kwargs}
    check_options("optimizer", name, given, OPTIMIZERS[name].options())
    return name, given


def optimizer_options(optimizer: str, kwargs: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """
    :param optimizer: ``name`` or ``name:option=value,option=value``
    :param kwargs: further options
    :return: the name, and all options, those of the default preset included
    :raises RefineError: for an unknown name or option, or one that is given twice
    """
    name, given = given_options(optimizer, kwargs)
    cls = OPTIMIZERS[name]
    preset = {option: value for option, value in cls.presets["default"].items() if option in cls.options()}
    return name, {**preset, **given}


def default_n_updates(optimizer: str) -> int:
    """
    :param optimizer: name of a search method
    :return: the number of updates of its default preset
    """
    return int(OPTIMIZERS[optimizer].presets["default"].get("n_updates", 80))


__all__ = [
    "ARS",
    "CEM",
    "CMAES",
    "OPTIMIZERS",
    "PGPE",
    "BacktrackingARS",
    "ExplicitPopulation",
    "GuidedES",
    "NoisePopulation",
    "OpenAIES",
    "Optimizer",
    "PlainOpenAIES",
    "Population",
    "ScaledOptimizer",
    "default_n_updates",
]
