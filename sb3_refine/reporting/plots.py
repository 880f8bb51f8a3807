"""The plots of a report: one function a picture, the same two colours for before and after in all of them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image

from sb3_refine.evaluation.by_task import Group
from sb3_refine.evaluation.robustness import BOTH, EndEffectorTraces, Meshes, NoiseLevel, PhasePortrait, Traces
from sb3_refine.files import atomic_path
from sb3_refine.formatting import number_text
from sb3_refine.reporting.record import AgentFigures, CandidateFigures, UpdateFigures

ORIGINAL, REFINED = "#E69F00", "#0072B2"
"""Orange and blue of Okabe and Ito, which differ in brightness, too."""

_COLOURS = (ORIGINAL, REFINED)
_GREY, _DARK = "#8C8C8C", "#303030"
_N_COLOURS = 128
_N_BINS = 31  # odd: returns that are all the same are in the middle of one
_STYLE = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.labelsize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "legend.fontsize": 10,
}


def learning_curve(
    path: Path, history: Sequence[UpdateFigures], candidates: Sequence[CandidateFigures], objective: str = "return"
) -> None:
    """
    Return over updates: the population, and the candidates on validation seeds; below, the objective if it is not the
    return.

    :param path: where to
    :param history: of the search
    :param candidates: on validation seeds
    :param objective: what was maximised
    """
    curve = {
        key: _numbers(getattr(row, key) for row in history)
        for key in ("update", "rollouts", "mean_return", "std_return", "min_return", "max_return", "mean_fitness")
    }
    candidates = [candidate for candidate in candidates if candidate.n_episodes]  # a single one is not run
    updates, mean, std = curve["update"], curve["mean_return"], curve["std_return"]
    n_panels = 1 if objective == "return" else 2
    with _picture(path, 7.6, 2.0 + 2.4 * n_panels) as figure:
        panels = figure.subplots(n_panels, sharex=True, squeeze=False)[:, 0]
        axes = panels[0]
        band: dict[str, Any] = {"color": REFINED, "lw": 0}
        axes.fill_between(
            updates, curve["min_return"], curve["max_return"], alpha=0.12, label="lowest to highest", **band
        )
        low, high = np.maximum(mean - std, curve["min_return"]), np.minimum(mean + std, curve["max_return"])
        axes.fill_between(updates, low, high, alpha=0.25, label="mean ± std", **band)
        axes.plot(updates, mean, color=REFINED, lw=2, label="mean of the population")
        _mark_candidates(axes, candidates, "mean_return")
        _limit(axes, curve, [candidate.mean_return for candidate in candidates])
        axes.set_ylabel("return")
        if n_panels == 2:
            panels[1].plot(updates, curve["mean_fitness"], color=REFINED, lw=2)
            _mark_candidates(panels[1], candidates, "mean_fitness")
            panels[1].set_ylabel("objective")
        panels[-1].set_xlabel("update")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlim(min(0, updates.min()), updates.max() + max(1, 0.02 * updates.max()))
        _add_budget(axes, updates, curve["rollouts"])
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)


def returns(path: Path, before: Sequence[float], after: Sequence[float], names: tuple[str, str]) -> None:
    """
    Distribution of the returns before and after, one above the other.

    :param path: where to
    :param before: returns
    :param after: returns on the same seeds
    :param names: of the two
    """
    samples = [_finite(before), _finite(after)]
    bins, is_cut = _bins(np.concatenate(samples))
    with _picture(path, 7.6, 4.6) as figure:
        panels = figure.subplots(2, sharex=True, sharey=True)
        for axes, sample, name, colour in zip(panels, samples, names, _COLOURS, strict=True):
            shown = np.clip(sample, bins[0], bins[-1])
            axes.hist(shown, bins, color=colour, alpha=0.85)
            rug = {"transform": axes.get_xaxis_transform(), "clip_on": False}
            axes.plot(shown, np.full(shown.size, -0.06), "|", color=_DARK, ms=7, alpha=0.6, **rug)
            if sample.size:
                mean, std = sample.mean(), sample.std()
                axes.axvline(np.clip(mean, bins[0], bins[-1]), color=_DARK, lw=2, ls="--")
                title = f"{name}: mean {number_text(mean)} (dashed), std {number_text(std)}, n = {sample.size}"
                axes.set_title(title, loc="left")
            axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
            axes.tick_params("x", pad=12)
        cut = "; values beyond are in the outermost bars" if is_cut else ""
        panels[1].set_xlabel(f"return{cut}")
        figure.supylabel("episodes", fontsize=11)


def tasks(
    path: Path,
    parameters: Mapping[str, tuple[np.ndarray, list[Group]]],
    before: Sequence[float],
    after: Sequence[float],
    names: tuple[str, str],
) -> None:
    """
    Returns over each parameter of the tasks, with their means in parts of its range.

    :param path: where to
    :param parameters: see :func:`~sb3_refine.evaluation.by_task.numeric_parameters`
    :param before: returns
    :param after: returns on the same seeds
    :param names: of the two
    """
    with _picture(path, 7.6, 1.2 + 2.6 * len(parameters)) as figure:
        panels = figure.subplots(len(parameters), squeeze=False)[:, 0]
        for axes, (parameter, (values, groups)) in zip(panels, parameters.items(), strict=True):
            for sample, name, colour in zip((before, after), names, _COLOURS, strict=True):
                numbers = _numbers(sample)
                axes.plot(values, numbers, ".", color=colour, alpha=0.4, ms=5)
                centres = [values[part].mean() for _, part in groups]
                axes.plot(
                    centres, [np.nanmean(numbers[part]) for _, part in groups], "o-", color=colour, lw=2, label=name
                )
            axes.set_xlabel(parameter)
            axes.set_ylabel("return")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)


def paired(path: Path, before: Sequence[float], after: Sequence[float], names: tuple[str, str]) -> None:
    """
    One dot for each seed: its return before against its return after.

    :param path: where to
    :param before: returns
    :param after: returns on the same seeds
    :param names: of the two
    """
    pairs = np.array([_numbers(before), _numbers(after)])
    old, new = pairs[:, np.isfinite(pairs).all(axis=0)]
    low, high = _widened(np.concatenate([old, new]))
    with _picture(path, 5.6, 5.6) as figure:
        axes = figure.subplots()
        axes.plot([low, high], [low, high], color=_GREY, lw=1.5, zorder=1)
        for which, colour, marker, words in (
            (new > old, REFINED, "o", "higher than the original"),
            (new < old, ORIGINAL, "s", "lower than the original"),
            (new == old, _GREY, "D", "the same"),
        ):
            if which.any():
                label = f"{which.sum()} {words}"
                axes.scatter(
                    old[which], new[which], 40, colour, marker=marker, alpha=0.9, edgecolors="white", label=label
                )
        axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
        axes.set(xlabel=f"return: {names[0]}", ylabel=f"return: {names[1]}")
        figure.legend(loc="outside upper center", ncols=3, columnspacing=1, handletextpad=0.3)


def failures(path: Path, before: AgentFigures, after: AgentFigures, names: tuple[str, str]) -> None:
    """
    Share of the episodes that have failed, over the steps of an episode.

    :param path: where to
    :param before: of the original
    :param after: after the search, on the same seeds
    :param names: of the two
    """
    end = max(*before.lengths, *after.lengths)
    with _picture(path, 7.6, 3.8) as figure:
        axes = figure.subplots()
        for figures, name, colour, dashes in zip((before, after), names, _COLOURS, ("--", "-"), strict=True):
            failed = np.array(figures.failed, dtype=bool)
            steps = np.sort(np.array(figures.lengths)[failed])
            share = np.arange(steps.size + 1) / failed.size
            label = f"{name}: {failed.sum()} of {failed.size} failed"
            axes.step([0, *steps, end], [*share, share[-1]], where="post", color=colour, ls=dashes, lw=2.5, label=label)
        axes.set(xlabel="step of the episode", ylabel="failed until then", ylim=(-0.02, 1.02), xlim=(0, end * 1.02))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        figure.legend(loc="outside upper center", ncols=2)


def actions(path: Path, traces: Traces, names: tuple[str, str]) -> None:
    """
    Actions over steps on one seed, before on the left, after on the right.

    :param path: where to
    :param traces: of an :class:`~sb3_refine.evaluation.robustness.RobustnessResult`
    :param names: of the two
    """
    dimensions = traces["dimensions"]
    both = [traces[key]["actions"] for key in BOTH]
    with _picture(path, 9.6, 1.3 + 1.35 * len(dimensions)) as figure:
        grid = figure.subplots(len(dimensions), 2, sharex=True, sharey="row", squeeze=False)
        for column, (key, name, colour) in enumerate(zip(BOTH, names, _COLOURS, strict=True)):
            trace = traces[key]
            end = "failed" if trace["failed"] else "ended"
            title = f"{name}\nreturn {number_text(trace['return'])}, {end} at step {trace['length']}"
            grid[0, column].set_title(title, loc="left")
            grid[-1, column].set_xlabel("step")
            for axes, values in zip(grid[:, column], trace["actions"], strict=True):
                axes.plot(values, color=colour, lw=1.2, drawstyle="default" if traces["continuous"] else "steps-post")
        for axes, dimension, *values in zip(grid[:, 0], dimensions, *both, strict=True):
            axes.set(ylabel=f"action {dimension}", ylim=_widened(np.concatenate(values)))
            if not traces["continuous"]:
                axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))


def robustness(path: Path, levels: Sequence[NoiseLevel], names: tuple[str, str]) -> None:
    """
    Returns under noise: a dot an episode, a bar for the mean.

    :param path: where to
    :param levels: ``robustness`` of an :class:`~sb3_refine.evaluation.robustness.RobustnessResult`
    :param names: of the two
    """
    rng = np.random.default_rng(0)
    with _picture(path, 8.2, 4.4) as figure:
        axes = figure.subplots()
        for key, name, colour, marker, offset in zip(BOTH, names, _COLOURS, "so", (-0.18, 0.18), strict=True):
            for x, level in enumerate(levels):
                sample = _finite(level[key]["returns"])
                place = x + offset + rng.uniform(-0.1, 0.1, sample.size)
                axes.scatter(place, sample, 20, colour, marker=marker, alpha=0.75, lw=0, label=name if x == 0 else None)
                if sample.size:
                    axes.hlines(sample.mean(), x + offset - 0.16, x + offset + 0.16, color=_DARK, lw=2.5, zorder=3)
        axes.set_xticks(range(len(levels)), [level["noise"].replace(" noise ", "\nnoise ") for level in levels])
        axes.grid(visible=False, axis="x")
        axes.set(ylabel="return")
        axes.plot([], [], color=_DARK, lw=2.5, label="mean")
        figure.legend(loc="outside upper center", ncols=3, markerscale=2)


def mesh(path: Path, meshes: Meshes, names: tuple[str, str]) -> None:
    """
    How many boxes the motion visits, for each size of the boxes.

    :param path: where to
    :param meshes: ``mesh`` of the ``motion`` of an :class:`~sb3_refine.evaluation.robustness.RobustnessResult`
    :param names: of the two
    """
    with _picture(path, 7.6, 4.6) as figure:
        axes = figure.subplots()
        for key, name, colour, marker in zip(BOTH, names, _COLOURS, ("s", "o"), strict=True):
            counts = meshes[key]
            boxes, sizes = np.array(counts["box_sizes"]), np.array(counts["mesh_sizes"])
            label = f"{name}: {counts['lower']:.2f} to {counts['upper']:.2f} dimensions"
            axes.loglog(boxes, sizes, marker, color=colour, ms=4, alpha=0.8, label=label)
            x, y = np.log(boxes[:-1]), np.log(sizes[:-1])  # the coarsest mesh enters neither bound
            line = np.exp(y.mean() - counts["lower"] * (x - x.mean()))
            axes.loglog(boxes[:-1], line, color=colour, lw=1.5, ls="--")
            steepest = int(np.argmin((np.diff(y) / np.diff(x))[:-1]))
            piece = slice(steepest, steepest + 2)
            axes.loglog(boxes[piece], sizes[piece], color=colour, lw=4, solid_capstyle="round")
        axes.plot([], [], color=_DARK, lw=1.5, ls="--", label="line through all: the lower bound")
        axes.plot([], [], color=_DARK, lw=4, label="steepest piece: the upper bound")
        axes.set(xlabel="edge of a box, in units of what the policy sees", ylabel="boxes that the motion visits")
        figure.legend(loc="outside upper center", ncols=2, fontsize="small")


def phase(path: Path, portrait: PhasePortrait, names: tuple[str, str]) -> None:
    """
    Two observations against each other, before on the left, after on the right.

    :param path: where to
    :param portrait: ``phase`` of the ``motion`` of an :class:`~sb3_refine.evaluation.robustness.RobustnessResult`
    :param names: of the two
    """
    first, second = portrait["entries"]
    with _picture(path, 9.6, 4.6) as figure:
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        for axes, key, name, colour in zip(panels, BOTH, names, _COLOURS, strict=True):
            x, y = portrait[key]
            axes.plot(x, y, color=colour, lw=0.9, alpha=0.8)
            axes.plot(x[-1:], y[-1:], "o", color=_DARK, ms=7, mec="white", zorder=3)
            axes.set_title(name, loc="left")
            axes.set_xlabel(f"observation {first}")
        panels[0].set_ylabel(f"observation {second}")


def end_effector(path: Path, traces: EndEffectorTraces, names: tuple[str, str]) -> None:
    """
    Position and speed of the end effector of a Panda arm over time, before on the left, after on the right.

    :param path: where to
    :param traces: ``end_effector`` of the ``motion`` of an :class:`~sb3_refine.evaluation.robustness.RobustnessResult`
    :param names: of the two
    """
    labels = ("x in m", "y in m", "z in m", "speed in m/s")
    both = [[*traces[key]["position"], traces[key]["speed"]] for key in BOTH]
    with _picture(path, 9.6, 6.7) as figure:
        grid = figure.subplots(len(labels), 2, sharex=True, sharey="row")
        for column, (key, name, colour) in enumerate(zip(BOTH, names, _COLOURS, strict=True)):
            title = f"{name}\njerk of the end effector {number_text(traces[key]['jerk'])} m/s³"
            grid[0, column].set_title(title, loc="left")
            grid[-1, column].set_xlabel("seconds")
            for axes, values in zip(grid[:, column], both[column], strict=True):
                axes.plot(traces["seconds_per_step"] * np.arange(len(values)), values, color=colour, lw=1.5)
        for axes, label, *values in zip(grid[:, 0], labels, *both, strict=True):
            axes.set(ylabel=label, ylim=_widened(np.concatenate(values)))


@contextmanager
def _picture(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure of its own, without pyplot, saved at the end."""
    with style.context(["default", _STYLE]):
        figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        yield figure
        canvas.draw()
        picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
        with atomic_path(path) as partial:
            picture.quantize(_N_COLOURS).save(partial, optimize=True)  # a third of the bytes


def _mark_candidates(axes: Axes, candidates: Sequence[CandidateFigures], key: str) -> None:
    label: str | None = "on validation seeds"
    for candidate in candidates:
        if candidate.name == "original":
            axes.axhline(getattr(candidate, key), color=ORIGINAL, lw=2, ls="--", label="original, on validation seeds")
            continue
        place = _numbers([candidate.update]), _numbers([getattr(candidate, key)])
        if candidate.chosen:
            chosen = f"chosen: {candidate.name}"
            axes.plot(*place, "*", color=_DARK, ms=17, mec="white", label=chosen, clip_on=False, zorder=5)
        else:
            axes.plot(*place, "D", color="white", ms=7, mec=_DARK, mew=1.5, label=label, clip_on=False, zorder=4)
            label = None


def _limit(axes: Axes, curve: dict[str, np.ndarray], validated: Sequence[float | None]) -> None:
    """All but the wildest of the population is seen."""
    lows, highs = _finite(curve["min_return"]), _finite(curve["max_return"])
    if lows.size:
        shown = [np.percentile(lows, 5), np.percentile(highs, 98), *_finite(validated), *_finite(curve["mean_return"])]
        axes.set_ylim(_widened(np.array(shown)))


def _add_budget(axes: Axes, updates: np.ndarray, rollouts: np.ndarray) -> None:
    """The episodes so far, along the upper edge."""
    where = np.unique(np.linspace(0, updates.size - 1, 6).round().astype(int))
    top = axes.secondary_xaxis("top")
    top.set_xticks(updates[where], [f"{n:,.0f}" for n in rollouts[where]])
    top.set_xlabel("budget used: episodes so far")


def _bins(values: np.ndarray) -> tuple[np.ndarray, bool]:
    """Edges of bins for all values, or for all but far outliers; and whether any are left out."""
    low, high = _widened(values, 0.0)
    if values.size:
        bulk = np.percentile(values, [2.5, 97.5])
        span = bulk[1] - bulk[0]
        if 0 < 8 * span < high - low:
            low, high = max(low, bulk[0] - span), min(high, bulk[1] + span)
            return np.linspace(low, high, _N_BINS + 1), True
    return np.linspace(low, high, _N_BINS + 1), False


def _widened(values: np.ndarray, margin: float = 0.06) -> tuple[float, float]:
    """Limits around values, with a margin also where they are all the same."""
    values = _finite(values)
    if values.size == 0:
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    space = margin * (high - low)
    if high - low <= 1e-9 * max(1.0, abs(low)):
        space = max(0.5, 0.02 * abs(low))
    return low - space, high + space


def _numbers(values: Any) -> np.ndarray:
    """As floats; what is missing is NaN."""
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _finite(values: Any) -> np.ndarray:
    numbers = _numbers(values)
    return numbers[np.isfinite(numbers)]
