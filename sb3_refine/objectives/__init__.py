"""What is maximised. A new objective is a file here and a line in the registry."""

from sb3_refine.errors import RefineError, did_you_mean
from sb3_refine.objectives.base import MEASURE, Objective
from sb3_refine.objectives.episode_return import Return

OBJECTIVES: dict[str, type[Objective]] = {
    "return": Return,
}


def make_objective(objective: str | Objective) -> Objective:
    """
    :param objective: a name of the registry, or an objective
    :return: the objective
    :raises RefineError: for an unknown name
    """
    if isinstance(objective, Objective):
        return objective
    if objective not in OBJECTIVES:
        hint = did_you_mean(objective, OBJECTIVES)
        raise RefineError(f"objective: unknown {objective!r}{hint}; choose from {', '.join(OBJECTIVES)}")
    return OBJECTIVES[objective]()


__all__ = ["MEASURE", "OBJECTIVES", "Objective", "Return", "make_objective"]
