"""``report.md`` and ``plots/``: what a run came to, for a reader who doubts it."""

import re
import shlex
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sb3_refine.errors import printable_lines
from sb3_refine.evaluation.robustness import BOTH, MAX_DIMENSIONS, N_PHASE, Examination
from sb3_refine.evaluation.statistics import mean_interval
from sb3_refine.files import atomic_path
from sb3_refine.reporting.markdown import code_span, escaped
from sb3_refine.rollouts.metrics import SMOOTHNESS, tail_mean

PLOTS = ("learning_curve", "returns", "paired", "failures", "actions", "mesh", "phase", "end_effector", "robustness")
"""Names of the pictures that a report may have."""

_N_WORST = 5
_N_RESAMPLES = 2000
_FEW = 10  # episodes, with fewer of which intervals say little
_WIDTH = 100  # of paragraphs

_AFTER = {"refined": "refined", "original": "after the search (not kept)", "unchecked": "after the search (untested)"}
_TITLES = {"refined": "refined", "original": "the original was kept", "unchecked": "searched, not tested"}
_KEPT_ORIGINAL = "The original agent was kept; what the search found did not pass"
_LABELS = {
    "action_change": "action change a step",
    "action_jerk": "action jerk",
    "high_frequency_share": "high-frequency share",
}


def write_report(run_folder: str | Path, refinement: dict[str, Any], examination: Examination | None = None) -> Path:
    """
    Write ``report.md`` and ``plots/*.png``.

    :param run_folder: where to: ``OUTPUT/ALGO/ENV_K``, with the saved agent in it
    :param refinement: content of ``refinement.json``
    :param examination: see :func:`examine`; without, the one in ``refinement`` under ``examination``, if any
    :return: path of ``report.md``
    """
    run_folder = Path(run_folder)
    if examination is None and refinement.get("examination"):
        examination = Examination(**refinement["examination"])
    report = _Report(run_folder, refinement, examination)
    with atomic_path(run_folder / "report.md") as path:
        path.write_text(report.text())
    return run_folder / "report.md"


@dataclass(frozen=True)
class _Row:
    """
    A figure before and after.

    :param label: its name
    :param before: of the original
    :param after: after the search
    :param interval: of the change, or None where there is none
    :param sense: 1 where higher is better, -1 where lower is, 0 where neither is
    :param percent: whether it is a share
    """

    label: str
    before: float
    after: float
    interval: tuple[float, float] | None
    sense: int = 1
    percent: bool = False

    @property
    def word(self) -> str:
        """What to make of it."""
        if self.interval is None or not np.isfinite(self.interval).all():
            return ""
        low, high = self.interval
        if low == high == 0:
            return "same"
        if low <= 0 <= high:
            return "no clear change"
        return {1: "better", -1: "worse", 0: "higher" if low > 0 else "lower"}[self.sense * (1 if low > 0 else -1)]

    def cells(self, digits: int | None = None) -> list[str]:
        """
        :param digits: after the point; None for as many as fit the row
        :return: cells of a table
        """
        digits = _digits(self.before, self.after) if digits is None else digits
        form, scale = (f"{{:,.{digits}f}}", 1) if not self.percent else ("{:,.1f}%", 100)
        before, after = (form.format(scale * value) for value in (self.before, self.after))
        change = form.replace(":", ":+").format(scale * (self.after - self.before))
        if self.interval is not None:
            low, high = (form.format(scale * bound) for bound in self.interval)
            change = f"{change} ({low} to {high})"
        return [self.label, before, after, change, self.word]


class _Report:
    """
    The parts of ``report.md``; each draws its plot.

    :param run_folder: of the run
    :param refinement: content of ``refinement.json``
    :param examination: see :func:`examine`, or None
    """

    def __init__(self, run_folder: Path, refinement: dict[str, Any], examination: Examination | None):
        self.folder, self.refinement, self.examination = run_folder, refinement, examination
        self.settings, self.decision = refinement["settings"], refinement["decision"]
        self.reason = escaped(refinement["reason"])
        self.before, self.after = refinement["baseline"], refinement["refined"]
        self.difference = refinement["paired_difference"]
        self.seeds = refinement["seeds"]["test"] or []
        self.names = ("original", _AFTER[self.decision])
        self.after_name = self.names[1].partition(" (")[0]
        self.is_paired = self.difference["paired"] if self.difference else examination is None or examination.paired
        self.confidence = self.difference["confidence"] if self.difference else 0.95
        self.is_tested = self.before is not None and self.after is not None and self.difference is not None
        self.rows = self._rows() if self.is_tested else []
        self.noise_rows = self._noise_rows()

    def text(self) -> str:
        """:return: the whole report"""
        plots = self.folder / "plots"
        plots.mkdir(parents=True, exist_ok=True)
        for name in PLOTS:
            (plots / f"{name}.png").unlink(missing_ok=True)  # of an earlier report
        title = escaped(f"{self.settings['algo']} {self.settings['env']}")
        parts = [[f"# {title}: {_TITLES[self.decision]}"], self._verdict()]
        if self.is_tested:
            parts += [self._before_and_after(), self._distribution(), self._seed_by_seed(), self._worst_seeds()]
            parts += [self._failures()]
        else:
            missing = "The saved agent has no held-out episodes yet. This runs some:"
            parts += [["## Held-out episodes", missing, _code(self._command())]]
        parts += [self._actions(), self._motion(), self._robustness(), self._search(), self._videos(), self._making()]
        return "\n\n".join(block for part in parts for block in part) + "\n"

    # ------------------------------------------------------------ figures

    def _rows(self) -> list[_Row]:
        before, after = self.before, self.after
        old, new = np.array(before["returns"], float), np.array(after["returns"], float)
        lengths, failed = ((np.array(before[k], float), np.array(after[k], float)) for k in ("lengths", "failed"))

        def row(label: str, key: str, interval: tuple[float, float] | None, sense: int = 1, **kwargs: Any) -> _Row:
            return _Row(label, before[key], after[key], interval, sense, **kwargs)

        rows = [
            row("mean return", "mean_return", (self.difference["ci_low"], self.difference["ci_high"])),
            *self._objective_rows(),
            row("median return", "median_return", self._interval(old, new, np.median)),
            row("standard deviation", "std_return", self._interval(old, new, np.std), -1),
            row("worst tenth (CVaR10)", "cvar10_return", self._interval(old, new, tail_mean)),
            row("lowest return", "min_return", None),
            row("mean length", "mean_length", self._interval(*lengths), 0),
            row("failure rate", "failure_rate", self._interval(*failed), -1, percent=True),
        ]
        if "success_rate" in before and "success_rate" in after:
            was, is_now = (np.array(figures.get("success", [None] * old.size), float) for figures in (before, after))
            rows.append(row("success rate", "success_rate", self._interval(was, is_now), percent=True))
        if "mesh_dimension" in before and "mesh_dimension" in after:
            rows.append(row("mesh dimension", "mesh_dimension", None, 0))
        return rows + self._smoothness_rows()

    def _objective_rows(self) -> list[_Row]:
        old, new = (figures.get("objective", {}) for figures in (self.before, self.after))
        return [_Row(label, old[label], new[label], None) for label in old if None not in (old[label], new.get(label))]

    def _smoothness_rows(self) -> list[_Row]:
        if self.examination is None:
            known = [name for name in SMOOTHNESS if name in self.before and name in self.after]
            return [_Row(_LABELS[name], self.before[name], self.after[name], None, -1) for name in known]
        rows = []
        for name, values in self.examination.smoothness.items():
            if name == "action_change" or self.examination.traces["continuous"]:  # the others need numbers
                old, new = (np.array(values[who], float) for who in BOTH)
                rows.append(_Row(f"{_LABELS[name]} *", *_means(old, new), self._interval(old, new), -1))
        return rows

    def _noise_rows(self) -> list[tuple[_Row, _Row]]:
        """For each condition: the return, and the return lost to the noise, with the sign of a loss."""
        rows: list[tuple[_Row, _Row]] = []
        levels = self.examination.robustness if self.examination else []
        undisturbed = [np.array(levels[0][who]["returns"], float) for who in BOTH] if levels else []
        for level in levels:
            old, new = (np.array(level[who]["returns"], float) for who in BOTH)
            lost = [still - now for still, now in zip(undisturbed, (old, new), strict=True)]
            rows.append(
                (
                    _Row(level["noise"], *_means(old, new), self._interval(old, new)),
                    _Row(level["noise"], *_means(*lost), self._interval(*lost), -1),
                )
            )
        return rows

    def _interval(
        self, old: np.ndarray, new: np.ndarray, statistic: Callable[..., np.ndarray] | None = None
    ) -> tuple[float, float] | None:
        """Of the change of the mean, or by bootstrap of another statistic."""
        valid = np.isfinite(old) & np.isfinite(new)
        old, new = old[valid], new[valid]
        if old.size < 2:
            return None
        rng, alpha = np.random.default_rng(0), 1 - self.confidence
        if statistic is None:
            return mean_interval(old, new if self.is_paired else rng.permutation(new), alpha)
        drawn = rng.integers(old.size, size=(_N_RESAMPLES, old.size))
        drawn_too = drawn if self.is_paired else rng.integers(old.size, size=drawn.shape)
        changes = statistic(new[drawn_too], axis=1) - statistic(old[drawn], axis=1)
        low, high = np.quantile(changes, [alpha / 2, 1 - alpha / 2])
        return float(low), float(high)

    # ------------------------------------------------------------ parts

    def _verdict(self) -> list[str]:
        """First what became of it, then what got worse."""
        if not self.is_tested:
            what = "Not tested" if self.decision == "unchecked" else "The original agent was kept"
            lines = [
                f"**{what}**: {self.reason}.",
                "How good the result of the search is, is not known.",
            ]
            if self.before and self.before["mean_return"] is not None:
                mean, std = _short(self.before["mean_return"]), _short(self.before["std_return"])
                n = self.before["n_episodes"]
                lines.append(f"The original: mean return {mean}, standard deviation {std} on {n} held-out seeds.")
            return [_filled(line) for line in lines]
        what = "The refined agent is better and was kept" if self.decision == "refined" else _KEPT_ORIGINAL
        _, before, after, change, _ = self.rows[0].cells()
        found = f"Mean return {before} before, {after} after, on {self.before['n_episodes']} held-out seeds: {change}"
        found = f"{found}, {self.confidence:.0%} interval; {self._who_was_better()}."
        return [
            _filled(f"**{what}.** {self._in_its_objective()}{found}"),
            _filled(self._what_got_worse()),
            _filled(f"Decision: `{self.decision}` ({self.reason})."),
        ]

    def _in_its_objective(self) -> str:
        """Where it was not the return that was maximised."""
        name, d = self.settings.get("objective", "return"), self.refinement.get("objective_difference")
        if name == "return" or d is None:
            return ""
        what = code_span(name) + escaped(self.refinement.get("objective_note", ""))
        return f"Its objective, {what}, changed by {d['mean']:+.4g} ({d['ci_low']:.4g} to {d['ci_high']:.4g}). "

    def _who_was_better(self) -> str:
        if not self.is_paired:
            return "unpaired, as the environment ignores its seed"
        changes = np.subtract(self.after["returns"], self.before["returns"])
        return (
            f"higher on {(changes > 0).sum()} seeds, lower on {(changes < 0).sum()}, the same on {(changes == 0).sum()}"
        )

    def _what_got_worse(self) -> str:
        worse = [row.label.rstrip(" *") for row in self.rows if row.word == "worse"]
        for what, which in (("return under", 0), ("robustness: it loses more to", 1)):
            noise = [pair[which].label for pair in self.noise_rows[1:] if pair[which].word == "worse"]
            worse += [f"{what} {', '.join(noise)}"] if noise else []
        unknown = "" if self.examination else " Robustness to noise was not measured."
        if worse:
            return f"**Worse after the search:** {'; '.join(worse)}.{unknown}"
        return f"Nothing that was measured got clearly worse.{unknown}"

    def _before_and_after(self) -> list[str]:
        notes = (
            "Better and worse are said where the interval of the change excludes 0. Each interval holds on its own: "
            f"about 1 in {round(1 / (1 - self.confidence))} excludes 0 by chance."
        )
        if self.before["n_episodes"] < _FEW:
            notes += f" With fewer than {_FEW} episodes they say little."
        for name in ("failure", "success"):
            if f"{name}_rate_ci" in self.before and f"{name}_rate_ci" in self.after:
                before, after = (_rate(figures, name) for figures in (self.before, self.after))
                notes += f" The {name} rate with Wilson's 95% interval: {before} before, {after} after."
        if self.examination:
            notes += f" Rows with * are of the first {self.examination.n_seeds} of the seeds."
        return ["## Before and after", self._compared("", self.rows), _filled(notes)]

    def _distribution(self) -> list[str]:
        plot = self._plot("returns", self.before["returns"], self.after["returns"], self.names)
        return ["## Returns", plot, "How often each return came up; a tick is an episode. Far left is what went wrong."]

    def _seed_by_seed(self) -> list[str]:
        if not self.is_paired:
            return ["## Seed by seed", "The environment ignores its seed: there are no pairs of episodes to show."]
        plot = self._plot("paired", self.before["returns"], self.after["returns"], self.names)
        return [
            "## Seed by seed",
            plot,
            "A dot is a seed. Above the line it went better after the search, below worse.",
        ]

    def _worst_seeds(self) -> list[str]:
        is_refined = self.decision != "original"
        kept = self.after if is_refined else self.before
        old, new = (np.array(figures["returns"], float) for figures in (self.before, self.after))
        lowest = np.argsort(new if is_refined else old, kind="stable")[:_N_WORST].tolist()
        losses = [i for i in np.argsort(new - old, kind="stable")[:_N_WORST].tolist() if new[i] < old[i]]
        losses = losses if is_refined and self.is_paired else []
        rows, commands, digits = [], [], _digits(*old, *new)
        for i in dict.fromkeys([*lowest, *losses]):
            why = " and ".join(["lowest return"] * (i in lowest) + ["largest loss"] * (i in losses))
            end = f"{'failed' if kept['failed'][i] else 'ended'} at step {kept['lengths'][i]}"
            rows.append([str(self.seeds[i]), *_Row("", old[i], new[i], None).cells(digits)[1:4], end, why])
            commands.append(self._command("--no-noise", "--seeds", str(self.seeds[i]), "--video", "videos"))
        header = ["seed", "original", self.after_name, "change", "its end", "listed for"]
        read = f"Where the saved agent ({'refined' if is_refined else 'the original'}) did worst"
        read += (
            "; on no seed did it return less than the original."
            if is_refined and self.is_paired and not losses
            else "."
        )
        return [
            "## Worst seeds",
            read,
            _table(header, rows, "rrrrll"),
            "These run them again, and film them:",
            _code(*commands),
        ]

    def _failures(self) -> list[str]:
        if not any(self.before["failed"]) and not any(self.after["failed"]):
            n = self.before["n_episodes"]
            return ["## Failures", f"None of the {n} episodes ended in a failure, neither before nor after."]
        plot = self._plot("failures", self.before, self.after, self.names)
        return ["## Failures", plot, "How many episodes had failed by each step. The lower line is the better one."]

    def _actions(self) -> list[str]:
        if self.examination is None:
            return []
        traces, n = self.examination.traces, self.examination.n_seeds
        read = (
            f"The first steps on seed {traces['seed']}, on which the difference of the returns is the median of "
            f"those of the first {n} seeds. "
        )
        read += "The more jagged, the harder on a motor. " if traces["continuous"] else ""
        if len(traces["dimensions"]) == MAX_DIMENSIONS:
            read += f"At most {MAX_DIMENSIONS} actions are shown, those that move most."
        return ["## Actions", self._plot("actions", traces, self.names), _filled(read)]

    def _motion(self) -> list[str]:
        motion = self.examination.motion if self.examination else {}
        if not motion:
            return []
        parts = ["## Motion", "Of the episodes that the actions above are from."]
        for name in ("mesh", "phase", "end_effector"):
            if name in motion:
                read = getattr(self, f"_read_{name}")(motion[name])
                parts += [self._plot(name, motion[name], self.names), _filled(read)]
        return parts

    def _read_mesh(self, meshes: dict[str, Any]) -> str:
        before, after = (f"{meshes[name]['lower']:.2f} to {meshes[name]['upper']:.2f}" for name in BOTH)
        return (
            "How many boxes the observations pass through, all of them and over the whole episode, from one box for "
            f"each step to one for all. The flatter, the fewer dimensions the motion has: {before} before, {after} "
            "after. Read it beside the return: what stands still, or falls at once, has few dimensions, too."
        )

    def _read_phase(self, portraits: dict[str, Any]) -> str:
        first, second = portraits["entries"]
        is_cut = max(len(portraits[name][0]) for name in BOTH) >= N_PHASE
        which = f"the last {N_PHASE} steps" if is_cut else "the whole episode"
        return (
            f"Observations {first} and {second} (numbered from 0) against each other over {which}; the dot is where "
            "they end. A regular gait is a closed loop, the thinner the more regular; what settles shrinks to a point; "
            "shaking is a tangle."
        )

    def _read_end_effector(self, traces: dict[str, Any]) -> str:
        before, after = (_short(traces[name]["jerk"]) for name in BOTH)
        read = (
            "Position and speed of the end effector. A good reach is one rise of the speed and a fall to 0, with flat "
            f"lines from there on. Its jerk, the root mean square of the third derivative of the position: {before} "
            f"m/s³ before, {after} after."
        )
        ends = self.settings.get("end_at_success", True)
        return (
            f"{read} The episodes end at success; with `--no-end-at-success` the goal has to be held." if ends else read
        )

    def _robustness(self) -> list[str]:
        title = "## Robustness to noise"
        if self.examination is None:
            return [title, "Not measured. This does:", _code(self._command())]
        read = (
            f"Mean returns of the first {self.examination.n_seeds} seeds. The noise is Gaussian, drawn anew in every "
            "step; its standard deviation is a share of the range of each action, or of the range of each observation "
            "in the undisturbed episodes. Of actions that are not continuous, it is the share that is random."
        )
        returns, losses = zip(*self.noise_rows, strict=True)
        digits = _digits(*(value for row in returns for value in (row.before, row.after)))
        return [
            title,
            self._plot("robustness", self.examination.robustness, self.names),
            _filled(read),
            self._compared("mean return", returns, digits),
            "What the noise costs each; less is better, but who has more can lose more:",
            self._compared("return lost to", losses[1:], digits),
        ]

    def _search(self) -> list[str]:
        history, candidates = (self.refinement.get(key) or [] for key in ("learning_curve", "candidates"))
        used = (
            f"{self.settings['n_updates_done']} of {_count(self.settings['n_updates'], 'update')}, "
            f"{_count(self.refinement['rollouts'], 'episode')} with the held-out ones, "
            f"{_count(self.refinement['env_steps'], 'environment step')}, {self.refinement['wall_time_s']:,.0f} s."
        )
        if not history:
            return ["## The search", used]
        read = (
            f"{used} The band is a population of perturbed policies; the iterate in their middle usually does better. "
            "Star and diamonds are iterates on validation seeds, which are other than those that the verdict is from; "
            "those with fewer episodes did worse on these than others did, and were left behind."
        )
        objective = self.settings.get("objective", "return")
        parts = ["## The search", self._plot("learning_curve", history, candidates, objective), _filled(read)]
        header = ["on validation seeds", "update", "episodes", "mean return"]
        rows = [[c["name"], str(c["update"]), str(c["n_episodes"]), _validated(c, "mean_return")] for c in candidates]
        if objective != "return":
            header.append("objective")
            rows = [[*row, _validated(c, "mean_fitness")] for row, c in zip(rows, candidates, strict=True)]
        rows = [[*row, "chosen" * c["chosen"]] for row, c in zip(rows, candidates, strict=True)]
        return [*parts, _table([*header, ""], rows, "l" + (len(header) - 1) * "r" + "l")] if rows else parts

    def _videos(self) -> list[str]:
        videos = sorted(self.folder.glob("videos/*.mp4"))
        return ["## Video", "\n".join(f"- [{path.name}](videos/{path.name})" for path in videos)] if videos else []

    def _making(self) -> list[str]:
        source, seed = self.refinement["source"], self.refinement["seeds"]["seed"]
        origin = (
            f"{source['repo']} at {source.get('revision')}" if source.get("repo") else "a folder or a model in memory"
        )
        settings = " ".join(f"{key}={value}" for key, value in self.settings.items())
        versions = ", ".join(f"{package} {version}" for package, version in self.refinement["versions"].items())
        lines = [
            f"original: from {escaped(origin)}, SHA-256 `{source.get('sha256')}`",
            f"saved agent: SHA-256 `{self.refinement['output_sha256']}`",
            f"seed {seed}, {len(self.seeds)} held-out seeds, which `refinement.json` lists with the return of each",
            f"versions: {versions}",
            f"settings: {code_span(settings)}",
        ]
        if self.examination:
            n_episodes, n_steps = self.examination.n_episodes, self.examination.n_env_steps
            lines.append(f"for this report: {n_episodes:,} further episodes, {n_steps:,} environment steps")
        return ["## How it was made", "\n".join(_filled(f"- {line}", "  ") for line in lines)]

    # ------------------------------------------------------------ what they are made of

    def _plot(self, name: str, *data: Any) -> str:
        """Draw a plot; the line that shows it."""
        try:
            from sb3_refine.reporting import plots
        except ImportError:
            return f"(No plot `{name}`: matplotlib is missing; pip install 'sb3-refine[report]'.)"
        getattr(plots, name)(self.folder / "plots" / f"{name}.png", *data)
        return f"![{name.replace('_', ' ')}](plots/{name}.png)"

    def _compared(self, corner: str, rows: Sequence[_Row], digits: int | None = None) -> str:
        header = [corner, "original", self.after_name, f"change, {self.confidence:.0%} interval", ""]
        return _table(header, [row.cells(digits) for row in rows], "lrrrl")

    def _command(self, *options: str) -> str:
        """What evaluates the saved agent, against the original where that is at hand."""
        algo, env, state = str(self.settings["algo"]), str(self.settings["env"]), self.folder / "state"
        numbered = re.fullmatch(r"(.+)_(\d+)", self.folder.name)
        if numbered and self.folder.parent.name == algo and numbered[1] == env.replace("/", "-"):
            where = ["-f", str(self.folder.parent.parent), "--exp-id", numbered[2]]
        else:
            where = ["--model", str(self.folder / f"{env.replace('/', '-')}.zip")]
        if not self.settings.get("end_at_success", True):
            where.append("--no-end-at-success")
        if self.settings.get("gym_packages"):
            where += ["--gym-packages", *self.settings["gym_packages"]]
        if self.decision != "original" and any(state.glob("*.zip")):
            options = ("--compare-to", str(state), *options)
        lines = [shlex.join(["sb3-refine", "evaluate", "--algo", algo, "--env", env, *where]), shlex.join(options)]
        command = " \\\n  ".join(line for line in lines if line)
        if self.settings.get("env_from_callable"):
            return f"# {env} as it is registered, if it is: this run's came from a callable\n{command}"
        return command


def _means(old: np.ndarray, new: np.ndarray) -> tuple[float, float]:
    """Of what is not NaN."""
    valid = [values[np.isfinite(values)] for values in (old, new)]
    old_mean, new_mean = (float(values.mean()) if values.size else float("nan") for values in valid)
    return old_mean, new_mean


def _digits(*values: float) -> int:
    """After the point, for four figures in the largest."""
    largest = max((abs(value) for value in values if np.isfinite(value)), default=0.0)
    return max(0, min(15, 4 - int(np.ceil(np.log10(largest))))) if largest > 0 else 1


def _rate(figures: dict[str, Any], name: str) -> str:
    low, high = figures[f"{name}_rate_ci"]
    return f"{figures[f'{name}_rate']:.1%} ({low:.1%} to {high:.1%})"


def _table(header: list[str], rows: list[list[str]], align: str) -> str:
    """Markdown that is a table in a terminal, too."""
    widths = [max(3, *(len(row[i]) for row in (header, *rows))) for i in range(len(header))]
    rule = ["-" * (width - 1) + (":" if side == "r" else "-") for width, side in zip(widths, align, strict=True)]

    def line(cells: list[str]) -> str:
        columns = zip(cells, widths, align, strict=True)
        padded = (cell.rjust(width) if side == "r" else cell.ljust(width) for cell, width, side in columns)
        return f"| {' | '.join(padded)} |"

    return "\n".join(line(cells) for cells in (header, rule, *rows))


def _filled(text: str, indent: str = "") -> str:
    return textwrap.fill(text, _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _code(*lines: str) -> str:
    return "\n".join(["```", *(printable_lines(line) for line in lines), "```"])


def _validated(candidate: dict[str, Any], key: str) -> str:
    """What a candidate came to on validation seeds, if it was run on any."""
    if not candidate["n_episodes"]:
        return ""
    return "not valid" if candidate["mean_fitness"] is None else _short(candidate[key])


def _short(value: float | None) -> str:
    if value is None:  # NaN, in JSON
        return "not valid"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"
