"""The record of a run, as ``refinement.json`` stores it. Report, plots, model card and tables are made from it."""

import platform
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from typing_extensions import Self

from sb3_refine.agents.decoding.schema import (
    Check,
    SchemaError,
    flag,
    list_of,
    mapping_of,
    number,
    one_of,
    optional,
    plain,
    read_json,
    record,
    row,
    text,
    whole,
)
from sb3_refine.agents.sb3_models import ALGOS
from sb3_refine.errors import RefineError
from sb3_refine.evaluation.evaluation import Evaluation, PairedDifference
from sb3_refine.evaluation.robustness import RobustnessResult
from sb3_refine.files import as_json, atomic_path, reraise_write_errors
from sb3_refine.objectives import Objective
from sb3_refine.reporting.wording import WORDING
from sb3_refine.rollouts.metrics import SMOOTHNESS
from sb3_refine.search.result import Result
from sb3_refine.tasks.family import TaskFamily
from sb3_refine.versions import package_versions

FILE_NAME = "refinement.json"

Number = float | None
"""A figure; None stands for NaN in JSON."""


@dataclass(frozen=True)
class _Part:
    """A part of the record. Fields with a default of None are left out of the JSON where they are None."""

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """:return: the part, from JSON that has been checked; entries of other versions are ignored"""
        return cls(**{each.name: content[each.name] for each in fields(cls) if each.name in content})

    def to_json(self) -> dict[str, Any]:
        """:return: what JSON stores"""
        optional_fields = {each.name for each in fields(self) if each.default is None}
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in found.items() if value is not None or name not in optional_fields}


@dataclass(frozen=True)
class AgentFigures(_Part):
    """Figures of one agent on the test seeds, see :meth:`~sb3_refine.evaluation.evaluation.Evaluation.summary`."""

    mean_return: Number
    std_return: Number
    min_return: Number
    cvar10_return: Number
    mean_length: Number
    failure_rate: Number
    n_episodes: int
    median_return: Number = None
    failure_rate_ci: list[Number] | None = None
    success_rate: Number = None
    success_rate_ci: list[Number] | None = None
    action_change: Number = None
    action_jerk: Number = None
    high_frequency_share: Number = None
    mesh_dimension: Number = None
    mesh_dimension_episodes: int | None = None
    objective: Mapping[str, Number] = field(default_factory=dict)
    returns: list[Number] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    failed: list[bool] = field(default_factory=list)
    success: list[bool] | None = None

    @classmethod
    def of(cls, evaluation: Evaluation, objective: Objective) -> Self:
        """
        :param evaluation: of the agent
        :param objective: what was maximised, for its own figures
        :return: the summary, and the result on every seed: a claim that can be checked seed by seed
        """
        return cls(
            **evaluation.summary(),
            objective=objective.figures(evaluation.episodes),
            returns=evaluation.returns.tolist(),
            lengths=evaluation.lengths.tolist(),
            failed=[episode.failed for episode in evaluation.episodes],
            success=None if evaluation.success_rate is None else [bool(e.success) for e in evaluation.episodes],
        )


@dataclass(frozen=True)
class DifferenceFigures(_Part):
    """See :class:`~sb3_refine.evaluation.evaluation.PairedDifference`."""

    mean: Number
    ci_low: Number
    ci_high: Number
    p_better: Number
    confidence: float
    paired: bool


@dataclass(frozen=True)
class CandidateFigures(_Part):
    """A candidate on validation seeds; without a choice, candidates were not run on any."""

    name: str
    update: int | None
    n_episodes: int
    mean_return: Number
    mean_fitness: Number
    chosen: bool
    env_steps: int | None = None


@dataclass(frozen=True)
class UpdateFigures(_Part):
    """
    See :class:`~sb3_refine.search.state.Update`. ``mean_fitness`` is left out where the search uses another figure than
    the fitness, so that its course cannot be compared.
    """

    update: int
    rollouts: int
    env_steps: int
    mean_return: Number
    std_return: Number
    min_return: Number
    max_return: Number
    failure_rate: Number
    mean_fitness: Number = None


@dataclass(frozen=True)
class RunRecord:
    """
    What a run did and found, and everything that is needed to repeat it.

    :param decision: ``"refined"``, ``"original"`` or ``"unchecked"``
    :param reason: why
    :param baseline: the original on the test seeds; None where it was not tested
    :param refined: the chosen candidate on the same seeds; None where it was not tested
    :param paired_difference: of the returns
    :param objective_difference: of what was maximised
    :param objective_note: remark about the objective
    :param candidates: what was chosen from
    :param learning_curve: of the search
    :param rollouts: episodes run
    :param env_steps: their environment steps
    :param wall_time_s: seconds
    :param cpu_time_s: seconds of CPU time, of all workers; None in older records
    :param invalid_episodes: episodes of candidates that the search dropped
    :param settings: every setting that the result depends on
    :param seeds: ``seed``, ``validation``, ``test``
    :param versions: of Python and packages
    :param source: where the original came from
    :param output_sha256: of the saved agent
    :param method: where the candidates came from, see :data:`~sb3_refine.reporting.wording.WORDING`
    :param date: when the result was recorded, in UTC
    :param command: what the user typed; None for a run from Python
    :param env_steps_by_phase: ``search`` (or training), ``validation`` and ``test``
    :param tasks: the parameters of the task of each test episode; None without tasks
    :param robustness: both agents under noise, once a report was made
    """

    decision: str
    reason: str
    settings: Mapping[str, Any]
    seeds: Mapping[str, Any]
    versions: Mapping[str, str]
    source: Mapping[str, Any]
    output_sha256: str
    rollouts: int
    env_steps: int
    wall_time_s: float = 0.0
    cpu_time_s: Number = None
    invalid_episodes: int = 0
    objective_note: str = ""
    method: str = "search"
    date: str | None = None
    command: str | None = None
    env_steps_by_phase: Mapping[str, int] = field(default_factory=dict)
    baseline: AgentFigures | None = None
    refined: AgentFigures | None = None
    paired_difference: DifferenceFigures | None = None
    objective_difference: DifferenceFigures | None = None
    candidates: tuple[CandidateFigures, ...] = ()
    learning_curve: tuple[UpdateFigures, ...] = ()
    tasks: list[Mapping[str, Any]] | None = None
    robustness: RobustnessResult | None = None

    @property
    def algo(self) -> str:
        """The Zoo's name of the algorithm."""
        return str(self.settings["algo"])

    @property
    def env_id(self) -> str:
        """Id of the environment."""
        return str(self.settings["env"])

    @property
    def objective(self) -> str:
        """Name of what was maximised."""
        return str(self.settings.get("objective", "return"))

    @property
    def is_tested(self) -> bool:
        """Whether both agents were run on the test seeds, and could be compared."""
        return None not in (self.baseline, self.refined, self.paired_difference)

    @property
    def saved(self) -> AgentFigures | None:
        """Figures of the agent that was saved; None where it was not tested."""
        return {"refined": self.refined, "original": self.baseline}.get(self.decision)

    def to_json(self) -> dict[str, Any]:
        """:return: content of ``refinement.json``"""
        content = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "robustness"}
        for name, value in content.items():
            if isinstance(value, _Part):
                content[name] = value.to_json()
            elif isinstance(value, tuple):
                content[name] = [part.to_json() for part in value]
        if self.tasks is None:
            del content["tasks"]
        return content if self.robustness is None else {**content, "examination": asdict(self.robustness)}

    @classmethod
    def from_json(cls, content: Any) -> Self:
        """
        :param content: of ``refinement.json``, also of one that somebody else has written
        :return: the record
        :raises SchemaError: when something is missing, or of another type
        """
        _CONTENT(content)
        n_tasks = len(content.get("tasks") or ())
        if n_tasks and n_tasks != len(content["seeds"].get("test") or ()):
            raise SchemaError("tasks: not one for each test episode")
        known = {each.name: content[each.name] for each in fields(cls) if content.get(each.name) is not None}
        for name, part in _PARTS.items():
            if name in known:
                known[name] = part.from_json(known[name])
        for name, part in _LISTS.items():
            known[name] = tuple(part.from_json(item) for item in known.get(name, ()))
        robustness = content.get("examination")
        return cls(**known, robustness=_robustness_of(robustness) if robustness else None)


def _robustness_of(content: Mapping[str, Any]) -> RobustnessResult:
    """What later versions add is left out."""
    return RobustnessResult(
        **{each.name: content[each.name] for each in fields(RobustnessResult) if each.name in content}
    )


_PARTS: dict[str, type[_Part]] = {
    "baseline": AgentFigures,
    "refined": AgentFigures,
    "paired_difference": DifferenceFigures,
    "objective_difference": DifferenceFigures,
}
_LISTS: dict[str, type[_Part]] = {"candidates": CandidateFigures, "learning_curve": UpdateFigures}


def record_of(
    result: Result,
    objective: Objective,
    settings: Mapping[str, Any],
    seeds: Mapping[str, Any],
    source: Mapping[str, Any],
    output_sha256: str,
    method: str = "search",
    tasks: TaskFamily | None = None,
) -> RunRecord:
    """
    :param result: of the run
    :param objective: what was maximised
    :param settings: every setting that the result depends on
    :param seeds: of the episodes
    :param source: where the original came from
    :param output_sha256: of the saved agent
    :param method: where the candidates came from, see :data:`~sb3_refine.reporting.wording.WORDING`
    :param tasks: that episodes were drawn from; None for none
    :return: the record of the run
    """
    test_seeds = seeds["test"] if tasks is not None and result.baseline is not None else None
    curve = (update._asdict() for update in result.learning_curve)
    return RunRecord(
        decision=result.decision,
        reason=result.reason,
        baseline=AgentFigures.of(result.baseline, objective) if result.baseline else None,
        refined=AgentFigures.of(result.candidate, objective) if result.candidate else None,
        paired_difference=_difference(result.paired_difference),
        objective_difference=_difference(result.objective_difference),
        objective_note=objective.verdict_note,
        candidates=tuple(CandidateFigures(**candidate) for candidate in result.candidates),
        learning_curve=tuple(UpdateFigures(**update) for update in curve),
        rollouts=result.rollouts,
        env_steps=result.env_steps,
        wall_time_s=round(result.wall_time_s, 3),
        cpu_time_s=round(result.cpu_time_s, 3),
        invalid_episodes=result.n_invalid,
        settings={**settings, "processors": list(result.processors)},
        seeds=seeds,
        versions=versions(),
        source=source,
        output_sha256=output_sha256,
        method=method,
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        env_steps_by_phase=_steps_by_phase(result),
        tasks=None if tasks is None or not test_seeds else [tasks.task(seed).parameters for seed in test_seeds],
    )


def _steps_by_phase(result: Result) -> dict[str, int]:
    """Episodes of the original that no choice was made on, as where a run was interrupted, count as the search's."""
    tested = {id(each): each for each in (result.baseline, result.candidate) if each is not None}
    n_test = sum(each.n_env_steps for each in tested.values())
    n_validation = sum(candidate["env_steps"] for candidate in result.candidates)
    return {"search": result.env_steps - n_validation - n_test, "validation": n_validation, "test": n_test}


def _difference(found: PairedDifference | None) -> DifferenceFigures | None:
    return DifferenceFigures(**asdict(found)) if found else None


def write_record(run_folder: Path, content: RunRecord) -> None:
    """
    Write ``refinement.json``.

    :param run_folder: where to
    :param content: the record
    :raises RefineError: when it cannot be written
    """
    with reraise_write_errors(FILE_NAME, run_folder), atomic_path(run_folder / FILE_NAME) as path:
        path.write_text(as_json(content.to_json()))


def read_record(run_folder: Path) -> RunRecord:
    """
    Read ``refinement.json``.

    :param run_folder: where from
    :return: the record
    :raises RefineError: when it cannot be read
    """
    path = run_folder / FILE_NAME
    try:
        return RunRecord.from_json(read_json(path))
    except SchemaError as error:
        raise RefineError(f"{path}: cannot be read ({error}); refine the agent again") from None


def versions() -> dict[str, str]:
    """:return: versions of Python and of the installed packages that a result depends on"""
    return {"python": platform.python_version()} | package_versions()


# ---------------------------------------------------------------- checks of files that somebody else may have written

_HEX = r"[0-9a-f]{64}"
_ID = r"[\w./:-]{1,200}"
_FIGURE = optional(number(-1e300, 1e300))
_FIGURES = list_of(_FIGURE)
_INTERVAL = row(_FIGURE, _FIGURE)
_COUNT = whole(0)

SOURCE = record(
    {
        "path?": optional(text()),
        "sha256?": optional(text(_HEX)),
        "repo?": optional(text(_ID)),
        "revision?": optional(text(r"[\w./-]{1,200}")),
    },
    others=plain,
)
"""Where an agent came from, as ``source.json`` and ``refinement.json`` have it."""

_CHECKS: dict[str, Check] = {
    "update": optional(_COUNT),
    **dict.fromkeys(("n_episodes", "rollouts", "env_steps", "mesh_dimension_episodes"), _COUNT),
    **dict.fromkeys(("failure_rate_ci", "success_rate_ci"), _INTERVAL),
    "returns": _FIGURES, "lengths": list_of(_COUNT), "failed": list_of(flag), "success": list_of(flag),
    "objective": mapping_of(_FIGURE), "confidence": number(0, 1), "paired": flag, "chosen": flag, "name": text(),
}  # fmt: skip


def _check_of(part: type[_Part]) -> Check:
    """All other fields are figures."""
    checks: dict[str, Check] = {}
    for each in fields(part):
        is_required = each.default is MISSING and each.default_factory is MISSING
        check = _CHECKS.get(each.name, _FIGURE)
        checks[each.name if is_required else f"{each.name}?"] = check if is_required else optional(check)
    return record(checks)


def _both(check: Check, **others: Check) -> Check:
    return record({"original": check, "refined": check, **others})


_ROWS = list_of(_FIGURES)
_ROBUSTNESS = record(
    {
        "robustness": list_of(_both(record({"returns": _FIGURES}), noise=text())),
        "smoothness": mapping_of(_both(_FIGURES), "|".join(SMOOTHNESS)),
        "traces": _both(
            record({"actions": _ROWS, "return": _FIGURE, "length": _COUNT, "failed": flag}),
            seed=_COUNT,
            continuous=flag,
            dimensions=list_of(_COUNT),
        ),
        "paired": flag,
        "n_episodes": _COUNT,
        "n_env_steps": _COUNT,
        "motion?": record(
            {
                "mesh?": _both(
                    record({"lower": number(), "upper": number(), "box_sizes": _FIGURES, "mesh_sizes": _FIGURES})
                ),
                "phase?": _both(row(_FIGURES, _FIGURES), entries=row(_COUNT, _COUNT)),
                "end_effector?": _both(
                    record({"position": _ROWS, "speed": _FIGURES, "jerk": _FIGURE}), seconds_per_step=number(0)
                ),
            }
        ),
    }
)

_CONTENT = record(
    {
        "decision": one_of("refined", "original", "unchecked"),
        "reason": text(),
        **{f"{name}?": optional(_check_of(part)) for name, part in _PARTS.items()},
        **{f"{name}?": optional(list_of(_check_of(part))) for name, part in _LISTS.items()},
        "rollouts": _COUNT,
        "env_steps": _COUNT,
        **dict.fromkeys(("wall_time_s?", "cpu_time_s?"), optional(number(0))),
        "invalid_episodes?": optional(_COUNT),
        "objective_note?": optional(text()),
        "method?": one_of(*WORDING),
        "date?": optional(text(r"[\d-]{10}T[\d:]{8}\+00:00")),
        "command?": optional(text()),
        "env_steps_by_phase?": mapping_of(_COUNT, "search|validation|test"),
        "settings": record(
            {
                "algo": one_of(*ALGOS),
                "env": text(_ID),
                "optimizer?": text(),
                "objective?": text(),
                "n_updates": _COUNT,
                "n_updates_done": _COUNT,
                "n_timesteps?": _COUNT,
                "n_timesteps_done?": _COUNT,
                "rounds?": list_of(text()),
                "arms?": mapping_of(row(_COUNT, _COUNT, number(0))),
            },
            others=plain,
        ),
        "seeds": record({"seed": _COUNT, "test?": optional(list_of(_COUNT)), "validation?": optional(list_of(_COUNT))}),
        "versions": mapping_of(text(r"[\w.+!-]{1,50}"), r"[\w.-]{1,50}"),
        "source": SOURCE,
        "output_sha256": text(_HEX),
        "tasks?": optional(list_of(mapping_of(plain))),
        "examination?": optional(_ROBUSTNESS),
    }
)
