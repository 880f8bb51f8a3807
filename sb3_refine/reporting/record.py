"""``refinement.json``: what was done, what came of it, and all that is needed to do it again."""

import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sb3_refine.evaluation.evaluation import Evaluation
from sb3_refine.files import as_json, atomic_path, reraise_write_errors, sha256
from sb3_refine.objectives import Objective
from sb3_refine.search.state import Update

if TYPE_CHECKING:
    from sb3_refine.refiner import Refiner

_PACKAGES = (
    "sb3-refine", "stable-baselines3", "sb3-contrib", "gymnasium", "numpy", "torch",
    "pybullet", "pybullet-envs-gymnasium", "panda-gym", "mujoco", "box2d",
)  # fmt: skip


def content_of(refiner: "Refiner", zip_path: Path) -> dict[str, Any]:
    """
    :param refiner: a refiner whose ``learn()`` has concluded
    :param zip_path: the saved agent, for its hash
    :return: content of ``refinement.json``
    """
    result = refiner.result
    assert result is not None
    difference = result.paired_difference
    return {
        "decision": result.decision,
        "reason": result.reason,
        "baseline": _with_returns(result.baseline, refiner.objective),
        "refined": _with_returns(result.refined, refiner.objective),
        "paired_difference": None if difference is None else asdict(difference),
        "objective_difference": None if result.objective_difference is None else asdict(result.objective_difference),
        "objective_note": refiner.objective.verdict_note,
        "candidates": list(result.candidates),
        "learning_curve": [_shown(update, refiner.objective) for update in result.history],
        "rollouts": result.rollouts,
        "env_steps": result.env_steps,
        "wall_time_s": round(result.wall_time_s, 3),
        "invalid_episodes": result.n_invalid,
        "settings": {
            **refiner.settings,
            "n_updates": result.n_updates,
            "n_updates_done": result.n_updates_done,
            "wrappers": [list(wrapper) for wrapper in refiner.agent.recipe.wrappers],
            "gym_packages": list(refiner.agent.recipe.gym_packages),
            "env_from_callable": refiner.agent.recipe.env_id is None,
            "backend": refiner.backend,
            "n_workers": refiner.n_workers,
        },
        "seeds": {
            "seed": refiner.run_seed,
            "validation": list(refiner.validation_seeds) if result.candidates else None,
            "test": list(result.baseline.seeds) if result.baseline else None,
        },
        "versions": versions(),
        "source": refiner.agent.source,
        "output_sha256": sha256(zip_path),
    }


def _shown(update: Update, objective: Objective) -> dict[str, Any]:
    """An objective that the search goes by another figure of has no course that could be compared."""
    found = update._asdict()
    if type(objective).of_population is not Objective.of_population:
        del found["mean_fitness"]
    return found


def write_refinement(run_folder: Path, content: dict[str, Any]) -> None:
    """
    Write ``refinement.json``.

    :param run_folder: where to
    :param content: see :func:`content_of`
    :raises RefineError: when it cannot be written
    """
    with reraise_write_errors("refinement.json", run_folder), atomic_path(run_folder / "refinement.json") as path:
        path.write_text(as_json(content))


def versions() -> dict[str, str]:
    """:return: versions of Python and of the installed packages that a result depends on"""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _with_returns(evaluation: Evaluation | None, objective: Objective) -> dict[str, Any] | None:
    """The summary, and what came of every seed: a claim that can be checked seed by seed."""
    if evaluation is None:
        return None
    return {
        **evaluation.summary(),
        "objective": objective.figures(evaluation.episodes),
        "returns": evaluation.returns.tolist(),
        "lengths": evaluation.lengths.tolist(),
        "failed": [episode.failed for episode in evaluation.episodes],
        **({} if evaluation.success_rate is None else {"success": [bool(e.success) for e in evaluation.episodes]}),
    }
