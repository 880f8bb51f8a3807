"""What is maximised. A new objective is a file here and a line in the registry."""

from collections.abc import Callable

from sb3_refine.errors import RefineError, did_you_mean
from sb3_refine.objectives.base import OBJECTIVE_METRIC, Objective
from sb3_refine.objectives.custom import Custom, find_function
from sb3_refine.objectives.cvar import CVaR
from sb3_refine.objectives.episode_return import Return
from sb3_refine.objectives.mesh_dimension import MeshDimensionShaped
from sb3_refine.objectives.smooth import Smooth
from sb3_refine.objectives.success import Success
from sb3_refine.objectives.survival import Survival
from sb3_refine.objectives.worst import Worst
from sb3_refine.parts import check_options, parse_part
from sb3_refine.rollouts.episode import Trajectory

OBJECTIVES: dict[str, type[Objective]] = {
    "return": Return,
    "mesh-dimension": MeshDimensionShaped,
    "cvar": CVaR,
    "worst": Worst,
    "success": Success,
    "survival": Survival,
    "smooth": Smooth,
}
"""Objectives by name. To add one of your own, write ``OBJECTIVES["my-objective"] = MyObjective``."""


def make_objective(objective: str | Objective | Callable[[Trajectory], float]) -> Objective:
    """
    >>> make_objective("smooth:weight=2").name
    'Smooth:weight=2.0'
    >>> make_objective(lambda steps: steps.rewards.min()).needs_trajectory
    True

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
    if objective.partition(":")[0] in OBJECTIVES:
        name, options = parse_part("objective", objective, OBJECTIVES)
        check_options("objective", name, options, OBJECTIVES[name].options())
        return OBJECTIVES[name](**options)
    if ":" in objective:
        return Custom(find_function(objective))
    known = ", ".join(OBJECTIVES)
    meant = did_you_mean(objective, OBJECTIVES)
    raise RefineError(f"objective: unknown {objective!r}{meant}; choose from {known}, or name a module:function")


__all__ = ["OBJECTIVES", "OBJECTIVE_METRIC", "Objective", "make_objective"]
