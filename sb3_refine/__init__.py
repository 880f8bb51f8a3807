"""Post-hoc refinement of trained Stable-Baselines3 agents by direct random search."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sb3_refine.agents.agent import Agent
    from sb3_refine.agents.load import load_agent
    from sb3_refine.agents.tasks import with_tasks
    from sb3_refine.auto.auto_refiner import AutoRefiner
    from sb3_refine.deploy.export import export
    from sb3_refine.errors import RefineError
    from sb3_refine.judging import judge
    from sb3_refine.meta.adapt import adapt
    from sb3_refine.meta.meta_refiner import MetaRefiner
    from sb3_refine.planning.planner import Planner, plan
    from sb3_refine.refiner import Refiner, refine
    from sb3_refine.students.distill import distill
    from sb3_refine.training.judge_callback import JudgeCallback
    from sb3_refine.training.trainer import Trainer

__version__ = "0.2.0"

# Imported on first use (PEP 562): torch takes two seconds, and `sb3-refine --help` needs none of it.
_HOMES = {
    "Agent": "agents.agent",
    "AutoRefiner": "auto.auto_refiner",
    "JudgeCallback": "training.judge_callback",
    "MetaRefiner": "meta.meta_refiner",
    "Planner": "planning.planner",
    "RefineError": "errors",
    "Refiner": "refiner",
    "Trainer": "training.trainer",
    "adapt": "meta.adapt",
    "distill": "students.distill",
    "export": "deploy.export",
    "judge": "judging",
    "load_agent": "agents.load",
    "plan": "planning.planner",
    "refine": "refiner",
    "with_tasks": "agents.tasks",
}

__all__ = [
    "Agent",
    "AutoRefiner",
    "JudgeCallback",
    "MetaRefiner",
    "Planner",
    "RefineError",
    "Refiner",
    "Trainer",
    "adapt",
    "distill",
    "export",
    "judge",
    "load_agent",
    "plan",
    "refine",
    "with_tasks",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
