"""
The results of baselines.py as a table in Markdown, and as a figure.

Gains are paired differences of the mean return on test seeds, of what is handed out: 0 where the original is kept. The
regret of ``auto`` is the better of search and training minus auto, in standard errors of that difference.

python benchmarks/baselines_table.py --results benchmarks/results/baselines --figure docs/baselines.png
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from baselines import AGENTS

ARMS = {
    "search": "search",
    "train": "training continued",
    "average": "average of checkpoints",
    "auto": "auto",
    "perturbations": "random perturbations",
    "ars": "sb3-contrib's ARS",
    "original": "the original itself",
}
COMPARED = ("search", "train", "auto")
Z = 1.96  # half-width of an interval at 95%, in standard errors


def gain(cell: dict[str, Any]) -> tuple[float, float]:
    """Mean and standard error of what is handed out, minus the original."""
    if cell["decision"] != "refined":
        return 0.0, 0.0
    difference = cell["paired_difference"]
    return difference["mean"], (difference["ci_high"] - difference["ci_low"]) / (2 * Z)


def of_arm(cells: dict[str, Any], arm: str) -> list[dict[str, Any]]:
    """The runs of an arm, by seed, of those that could be run."""
    found = [cell for name, cell in sorted(cells.items()) if name.rpartition(" ")[0] == arm]
    return [cell for cell in found if cell["decision"] != "cannot"]


def text_of(runs: list[dict[str, Any]]) -> str:
    """Gains of all runs of an arm; in bold where they are accepted."""
    shown = [f"**{gain(run)[0]:+.4g}**" if run["decision"] == "refined" else "kept" for run in runs]
    return ", ".join(shown) or "-"


def regret(cells: dict[str, Any]) -> str:
    """Of auto, for each seed."""
    runs = [of_arm(cells, arm) for arm in COMPARED]
    found = []
    for search, train, auto in zip(*runs, strict=False):
        best, error = max(gain(search), gain(train))
        mine, my_error = gain(auto)
        both = math.hypot(error, my_error)
        found.append("0" if mine >= best else f"{(best - mine) / both:.1f} ({best - mine:.3g})")
    return ", ".join(found) or "-"


def table(results: dict[str, dict[str, Any]]) -> str:
    """In Markdown."""
    arms = [arm for arm in ARMS if any(of_arm(cells, arm) for cells in results.values())]
    lines = [
        "| agent | original | " + " | ".join(ARMS[arm] for arm in arms) + " | CPU time, s | regret of auto |",
        "|---|---|" + "---|" * (len(arms) + 2),
    ]
    for name, cells in results.items():
        before = next(cell["baseline"] for arm in COMPARED for cell in of_arm(cells, arm) if cell["baseline"])
        times = "/".join(f"{np.mean([run['cpu_time_s'] for run in of_arm(cells, arm)] or [0]):.0f}" for arm in arms)
        original = f"{before['mean_return']:.4g} ± {before['std_return']:.3g}"
        found = " | ".join(text_of(of_arm(cells, arm)) for arm in arms)
        lines.append(f"| {name} | {original} | {found} | {times} | {regret(cells)} |")
    return "\n".join(lines)


def draw(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Gains of search, training and auto, as a share of the original's mean return, each run a dot."""
    figure, axes = plt.subplots(figsize=(8, 0.6 + 0.42 * len(results)), layout="constrained")
    for number, cells in enumerate(results.values()):
        for offset, (arm, marker) in enumerate(zip(COMPARED, "osD", strict=True)):
            runs = of_arm(cells, arm)
            scale = [100 / abs(run["baseline"]["mean_return"]) for run in runs]
            values = [gain(run)[0] * s for run, s in zip(runs, scale, strict=True)]
            errors = [Z * gain(run)[1] * s for run, s in zip(runs, scale, strict=True)]
            height = np.full(len(runs), -number + 0.25 - 0.25 * offset)
            label = ARMS[arm] if number == 0 else None
            axes.errorbar(values, height, xerr=errors, fmt=marker, markersize=4, color=f"C{offset}", label=label)
    axes.axvline(0, color="gray", linewidth=0.8)
    axes.set_yticks(-np.arange(len(results)), list(results))
    axes.set_xlabel("gain over the original, % of its mean return, 95% interval; 0: the original is kept")
    axes.set_xscale("symlog", linthresh=1)
    axes.legend(loc="lower left")
    figure.savefig(path, dpi=120)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    options.add_argument("--results", type=Path, default=Path("benchmarks/results/baselines"))
    options.add_argument("--figure", type=Path, help="draw the figure here")
    options = options.parse_args()
    paths = {f"{algo} {env}": options.results / f"{algo}-{env}.json" for algo, env in AGENTS}
    results = {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}
    print(table(results))
    if options.figure is not None:
        draw(results, options.figure)


if __name__ == "__main__":
    main()
