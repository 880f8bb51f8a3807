"""``report.md`` and ``plots/``: the result of a run, for a reader who doubts it."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sb3_refine.evaluation.by_task import numeric_parameters, task_text
from sb3_refine.evaluation.robustness import BOTH, MAX_DIMENSIONS, N_PHASE, Motion, measure_robustness
from sb3_refine.evaluation.target import Target
from sb3_refine.files import atomic_path
from sb3_refine.formatting import (
    code_span,
    digits_of,
    escaped,
    number_text,
    plural,
    rate_text,
    table,
)
from sb3_refine.reporting.changes import Change, Changes
from sb3_refine.reporting.commands import evaluate_command, needs_python
from sb3_refine.reporting.record import AgentFigures, CandidateFigures, RunRecord, read_record, write_record
from sb3_refine.reporting.templates import render
from sb3_refine.reporting.video import record_video
from sb3_refine.reporting.wording import WORDING, notes_of

PLOTS = (
    "learning_curve",
    "returns",
    "paired",
    "tasks",
    "failures",
    "actions",
    "mesh",
    "phase",
    "end_effector",
    "robustness",
)
"""Names of the pictures that a report may have."""

_SHOWN_ELSEWHERE = ("candidates", "rounds", "arms", "teacher", "tasks")  # of the settings
_N_WORST = 5
ROLLOUT = "rollout"
_FEW = 10  # episodes, with fewer of which intervals say little

_OUTCOMES = {"refined": "refined", "original": "the original was kept", "unchecked": "searched, not tested"}


def write_report(run_folder: str | Path, record: RunRecord) -> Path:
    """
    Write ``report.md`` and ``plots/*.png``.

    :param run_folder: where to: ``OUTPUT/ALGO/ENV_K``, with the saved agent in it
    :param record: of the run
    :return: path of ``report.md``
    """
    run_folder = Path(run_folder)
    drawn = _draw_plots(run_folder / "plots", record)
    with atomic_path(run_folder / "report.md") as path:
        path.write_text(report_text(run_folder, record, drawn))
    return run_folder / "report.md"


def report_on(
    original: Target,
    refined: Target,
    seeds: Sequence[int],
    run_folder: Path,
    video: bool = False,
    phase_portrait: tuple[int, int] | None = None,
) -> Path:
    """
    Run some episodes of both agents under noise, note the result in ``refinement.json``, and write the report.

    :param original: the original
    :param refined: the candidate that was tested
    :param seeds: of the test
    :param run_folder: where the run was saved
    :param video: whether to record an episode of both, side by side
    :param phase_portrait: two observations, by index, to draw against each other; by default the two that move most
    :return: path of ``report.md``
    :raises RefineError: when there are no such observations, or no video can be made
    :raises EpisodeError: when an episode fails; the report is written without it
    """
    record = read_record(run_folder)
    try:
        robustness = measure_robustness(original, refined, seeds, entries=phase_portrait)
        record = replace(record, robustness=robustness)
        write_record(run_folder, record)
        if video:
            seed, env_name = robustness.traces["seed"], record.env_id.replace("/", "-")
            path = run_folder / "videos" / f"{env_name}-seed-{seed}.mp4"
            record_video(dict(zip(BOTH, (original, refined), strict=True)), seed, path)
    finally:  # also of what is known where the environment fails under noise or cannot be filmed
        report = write_report(run_folder, record)
    return report


def report_text(run_folder: Path, record: RunRecord, plots: set[str]) -> str:
    """
    :param run_folder: of the run
    :param record: of the run
    :param plots: names of the plots that were drawn
    :return: the text of ``report.md``
    """
    changes, robustness = Changes(record), record.robustness
    returns, losses = zip(*changes.noise, strict=True) if changes.noise else ((), ())
    return render(
        "report.md.j2",
        record=record,
        changes=changes,
        robustness=robustness,
        after=WORDING[record.method].after,
        tested=WORDING[record.method].tested,
        heading=WORDING[record.method].heading,
        title=f"{record.algo} {record.env_id}",
        outcome=_OUTCOMES[record.decision],
        notes=notes_of(record.settings),
        confidence=f"{changes.confidence:.0%}",
        by_chance=round(1 / (1 - changes.confidence)),
        few=_FEW,
        who_was_better=_who_was_better(record, changes) if record.is_tested else "",
        rates=_rates(record),
        unit=unit_of(record),
        steps_of=partial(_steps_of, unit=unit_of(record)),
        worst=_worst_seeds(run_folder, record, changes) if record.is_tested else None,
        failed=record.is_tested and any((*_of(record.baseline).failed, *_of(record.refined).failed)),
        max_dimensions=MAX_DIMENSIONS,
        is_about_mesh=_is_about_mesh(record),
        bounds=lambda mesh: f"{number_text(mesh['lower'])} to {number_text(mesh['upper'])}",
        phase_span=_phase_span(robustness.motion) if robustness else "",
        noise_returns=returns,
        noise_losses=losses[1:],
        noise_digits=digits_of(*(value for change in returns for value in (change.before, change.after))),
        by_task=changes.by_task,
        candidates_table=_candidates_table(record),
        videos=sorted(path.name for path in run_folder.glob("videos/*.mp4")),
        origin=_origin(record),
        compared=partial(_compared, record, changes),
        plots=plots,
        plot=lambda name: _plot_line(name, plots),
        command=lambda *options: evaluate_command(run_folder, record, *options),
        in_python=needs_python(record),
        plural=plural,
    )


def unit_of(record: RunRecord) -> str:
    """
    :param record: of a run
    :return: what its episodes are called
    """
    return "adaptation" if record.method == "meta-es" else ROLLOUT


def _name_of_tested(record: RunRecord) -> str:
    """What tables and plots call the agent that was tested against the original."""
    after = WORDING[record.method].column
    return {"refined": "refined", "original": f"{after} (not kept)", "unchecked": f"{after} (untested)"}[
        record.decision
    ]


def _of(figures: AgentFigures | None) -> AgentFigures:
    assert figures is not None
    return figures


# ---------------------------------------------------------------- plots


def _draw_plots(folder: Path, record: RunRecord) -> set[str]:
    """Draw what there is to show, and remove plots of an earlier report; the names of those drawn."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in PLOTS:
        (folder / f"{name}.png").unlink(missing_ok=True)
    try:
        from sb3_refine.reporting import plots
    except ImportError:
        return set()
    shown = _plotted(record)
    for name, data in shown.items():
        getattr(plots, name)(folder / f"{name}.png", *data)
    return set(shown)


def _plotted(record: RunRecord) -> dict[str, tuple[Any, ...]]:
    """The data of each plot that there is something to show for."""
    names, robustness = ("original", _name_of_tested(record)), record.robustness
    shown: dict[str, tuple[Any, ...]] = {}
    if record.learning_curve:
        shown["learning_curve"] = (record.learning_curve, record.candidates, record.objective)
    if record.is_tested:
        before, after = _of(record.baseline), _of(record.refined)
        shown["returns"] = (before.returns, after.returns, names)
        if Changes(record).is_paired:
            shown["paired"] = (before.returns, after.returns, names)
        if any((*before.failed, *after.failed)):
            shown["failures"] = (before, after, names)
        if record.tasks and (groups := numeric_parameters(record.tasks)):
            shown["tasks"] = (groups, before.returns, after.returns, names)
    if robustness is not None:
        shown["actions"], shown["robustness"] = (robustness.traces, names), (robustness.robustness, names)
        shown |= {
            name: (robustness.motion[name], names)
            for name in ("mesh", "phase", "end_effector")
            if name in robustness.motion and (name != "mesh" or _is_about_mesh(record))
        }
    return shown


def _is_about_mesh(record: RunRecord) -> bool:
    """Whether the mesh dimension was maximised. Otherwise its plot is left out: few readers know the quantity."""
    return record.objective.replace("_", "-").startswith("mesh-dimension")


def _plot_line(name: str, plots: set[str]) -> str:
    """The line that shows a plot."""
    if name not in plots:
        return f"(No plot `{name}`: matplotlib is missing; pip install 'sb3-refine[report]'.)"
    return f"![{name.replace('_', ' ')}](plots/{name}.png)"


# ---------------------------------------------------------------- what the template shows


def _who_was_better(record: RunRecord, changes: Changes) -> str:
    if not changes.is_paired:
        return "unpaired, as the environment ignores its seed"
    differences = np.subtract(*(np.array(_of(which).returns, float) for which in (record.refined, record.baseline)))
    higher, lower, same = ((differences > 0).sum(), (differences < 0).sum(), (differences == 0).sum())
    return f"higher on {higher} seeds, lower on {lower}, the same on {same}"


def _rates(record: RunRecord) -> list[tuple[str, str, str]]:
    """Of failure and success: before and after."""
    found = []
    for name in ("failure", "success") if record.is_tested else ():
        both = [
            (getattr(which, f"{name}_rate"), getattr(which, f"{name}_rate_ci"))
            for which in (record.baseline, record.refined)
        ]
        if all(interval is not None for _, interval in both):
            before, after = (rate_text(*rate) for rate in both)
            found.append((name, before, after))
    return found


def _steps_of(figures: AgentFigures, unit: str) -> str:
    if unit != ROLLOUT:
        return plural(figures.n_episodes, unit)
    return f"{plural(figures.n_episodes, unit)} with {plural(sum(figures.lengths), 'environment step')}"


def _compared(record: RunRecord, changes: Changes, corner: str, rows: list[Change], digits: int | None = None) -> str:
    after = _name_of_tested(record).partition(" (")[0]
    header = [corner, "original", after, f"change, {changes.confidence:.0%} interval", ""]
    return table(header, [row.cells(digits) for row in rows], "lrrrl")


def _worst_seeds(run_folder: Path, record: RunRecord, changes: Changes) -> dict[str, Any]:
    """The seeds with the lowest returns and the largest losses of the saved agent, and how to run them again."""
    before, after, is_refined = _of(record.baseline), _of(record.refined), record.decision != "original"
    kept, seeds = after if is_refined else before, record.seeds["test"]
    old, new = (np.array(figures.returns, float) for figures in (before, after))
    lowest = np.argsort(new if is_refined else old, kind="stable")[:_N_WORST].tolist()
    losses = [i for i in np.argsort(new - old, kind="stable")[:_N_WORST].tolist() if new[i] < old[i]]
    losses = losses if is_refined and changes.is_paired else []
    rows, digits, listed = [], digits_of(*old, *new), list(dict.fromkeys([*lowest, *losses]))
    for i in listed:
        why = " and ".join(["lowest return"] * (i in lowest) + ["largest loss"] * (i in losses))
        end = f"{'failed' if kept.failed[i] else 'ended'} at step {kept.lengths[i]}"
        task = [task_text(record.tasks[i])] if record.tasks else []
        rows.append(
            [str(seeds[i]), *Change("", old[i], new[i], None).cells(digits)[1:4], end, why, *map(escaped, task)]
        )
    header = [
        "seed",
        "original",
        _name_of_tested(record).partition(" (")[0],
        "change",
        "end",
        "listed for",
        *["task"] * bool(record.tasks),
    ]
    numbers = ["--seeds", *(str(seeds[i]) for i in listed)]
    return {
        "table": table(header, rows, "rrrrll" + "l" * bool(record.tasks)),
        "command": evaluate_command(run_folder, record, "--no-noise", *numbers, "--video", "videos"),
        "without_loss": is_refined and changes.is_paired and not losses,
    }


def _phase_span(motion: Motion) -> str:
    is_cut = "phase" in motion and max(len(motion["phase"][name][0]) for name in BOTH) >= N_PHASE
    return f"the last {N_PHASE} steps" if is_cut else "the whole episode"


def _candidates_table(record: RunRecord) -> str:
    if not record.candidates:
        return ""
    has_updates = record.method == "search"
    header = ["on validation seeds", *["update"] * has_updates, "episodes", "steps", "mean return"]
    rows = [
        [
            one.name,
            *["" if one.update is None else str(one.update)] * has_updates,
            str(one.n_episodes),
            _steps(one),
            _validated(one, one.mean_return),
        ]
        for one in record.candidates
    ]
    if record.objective != "return":
        header.append("objective")
        rows = [[*row, _validated(one, one.mean_fitness)] for row, one in zip(rows, record.candidates, strict=True)]
    rows = [[*map(escaped, row), "chosen" * one.chosen] for row, one in zip(rows, record.candidates, strict=True)]
    return table([*header, ""], rows, "l" + (len(header) - 1) * "r" + "l")


def _steps(candidate: CandidateFigures) -> str:
    return "" if candidate.env_steps is None else f"{candidate.env_steps:,}"


def _validated(candidate: CandidateFigures, value: float | None) -> str:
    """A figure of a candidate on validation seeds, if it was run on any."""
    if not candidate.n_episodes:
        return ""
    return number_text(None if candidate.mean_fitness is None else value)


def _origin(record: RunRecord) -> list[str]:
    """How the run can be repeated."""
    source, robustness = record.source, record.robustness
    origin = f"{source['repo']} at {source.get('revision')}" if source.get("repo") else "a folder or a model in memory"
    settings = " ".join(f"{key}={value}" for key, value in record.settings.items() if key not in _SHOWN_ELSEWHERE)
    tasks = record.settings.get("tasks")
    family = [f"tasks: {code_span(str(tasks))}"] if tasks else []
    lines = [
        f"original: from {escaped(origin)}, SHA-256 `{source.get('sha256')}`",
        f"saved agent: SHA-256 `{record.output_sha256}`",
        f"seed {record.seeds['seed']}; {len(record.seeds.get('test') or [])} held-out seeds, whose returns are in "
        "`refinement.json`",
        f"versions: {', '.join(f'{package} {version}' for package, version in record.versions.items())}",
        f"settings: {code_span(settings)}",
        *family,
    ]
    if robustness is not None:
        further = (
            f"{plural(robustness.n_episodes, 'further rollout')}, {plural(robustness.n_env_steps, 'environment step')}"
        )
        lines.append(f"for this report: {further}")
    return lines
