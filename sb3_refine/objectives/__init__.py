"""What is maximised. A new objective is a file here and a line in the registry."""

import inspect
from collections.abc import Callable
from typing import Any

from sb3_refine.agents.decoding.literals import literal
from sb3_refine.agents.decoding.pickle_tree import DecodingError
from sb3_refine.errors import RefineError, did_you_mean
from sb3_refine.objectives.base import MEASURE, Objective
from sb3_refine.objectives.custom import Custom, find_function
from sb3_refine.objectives.cvar import CVaR
from sb3_refine.objectives.episode_return import Return
from sb3_refine.objectives.mesh_dimension import MeshDimensionShaped
from sb3_refine.objectives.smooth import Smooth
from sb3_refine.objectives.success import Success
from sb3_refine.objectives.survival import Survival
from sb3_refine.rollouts.episode import Trajectory

OBJECTIVES: dict[str, type[Objective]] = {
    "return": Return,
    "mesh-dimension": MeshDimensionShaped,
    "cvar": CVaR,
    "success": Success,
    "survival": Survival,
    "smooth": Smooth,
}


def make_objective(objective: str | Objective | Callable[[Trajectory], float]) -> Objective:
    """
    :param objective: ``name``, ``name:option=value,option=value``, ``module:function``, a function of a trajectory, or
        an objective
    :return: the objective
    :raises RefineError: for an unknown name or option, or a wrong value
    """
    if isinstance(objective, Objective):
        return objective
    if not isinstance(objective, str):
        if not callable(objective) or isinstance(objective, type):
            raise RefineError(f"objective: expected a name, a function or an instance of Objective, got {objective!r}")
        return Custom(objective)
    name, colon, rest = objective.partition(":")
    if name in OBJECTIVES:
        return _with_options(name, rest)
    if colon:
        return Custom(find_function(objective))
    known = ", ".join(OBJECTIVES)
    raise RefineError(
        f"objective: unknown {name!r}{did_you_mean(name, OBJECTIVES)}; choose from {known}, or name a module:function"
    )


def _with_options(name: str, text: str) -> Objective:
    cls = OBJECTIVES[name]
    known = [] if cls.__init__ is object.__init__ else list(inspect.signature(cls).parameters)
    options: dict[str, Any] = {}
    for pair in text.split(",") if text else []:
        option, separator, value = pair.partition("=")
        if not separator or option not in known:
            takes = f"takes {', '.join(known)}" if known else "takes no options"
            raise RefineError(f"objective: {name}:{pair}: {name} {takes}, as in {name}:option=value")
        if option in options:
            raise RefineError(f"objective: {name}:{text}: {option} is given twice")
        try:
            options[option] = literal(value)
        except DecodingError:
            options[option] = value
    return cls(**options)


__all__ = ["MEASURE", "OBJECTIVES", "Objective", "make_objective"]
