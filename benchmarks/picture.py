"""
The picture of the README: an agent before and after a run, on the seeds of its test. On the left, the episode whose
difference is the median; on the right, all of them.

sb3-refine --algo ddpg --env HopperBulletEnv-v0 -f FOLDER -o OUTPUT
python benchmarks/picture.py OUTPUT/ddpg/HopperBulletEnv-v0_1 docs/before_and_after.png
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from sb3_refine import load_agent
from sb3_refine.evaluation.target import open_targets
from sb3_refine.reporting.record import read_record
from sb3_refine.reporting.video import Film, film

N_PICTURES = 6
COLOURS = {"original": "tab:gray", "refined": "tab:blue"}


def main() -> None:
    options = argparse.ArgumentParser(description="Draw an agent before and after a run.")
    options.add_argument("run_folder", type=Path)
    options.add_argument("figure", type=Path)
    options = options.parse_args()
    record = read_record(options.run_folder)
    assert record.baseline is not None and record.refined is not None
    before, after = (np.array(which.returns, float) for which in (record.baseline, record.refined))
    median = np.argsort(after - before)[len(before) // 2]
    paths = (next((options.run_folder / "state").glob("*.zip")), next(options.run_folder.glob("*.zip")))
    agents = [load_agent(model=path, env=record.env_id) for path in paths]
    with open_targets(agents, backend="serial", n_workers=1) as targets:
        films = [film(target, record.seeds["test"][median]) for target in targets]
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[2.1, 1])
    show_films(left, dict(zip(COLOURS, films, strict=True)))
    axes = right.subplots()
    for name, returns in (("original", before), ("refined", after)):
        axes.hist(returns, bins=np.linspace(0, max(before.max(), after.max()), 30), color=COLOURS[name], alpha=0.8)
        axes.axvline(returns.mean(), color=COLOURS[name], linestyle="--", linewidth=1)
    top = axes.get_ylim()[1]
    for name, returns in (("original", before), ("refined", after)):
        label = f"{name}: {returns.mean():,.0f} ± {returns.std():,.0f}"
        axes.text(returns.mean(), top, label, fontsize=8, va="bottom", ha="center", color=COLOURS[name])
    axes.set_ylabel("episodes")
    axes.set_xlabel(f"return of the same {len(before)} seeds")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(options.figure, dpi=130)


def show_films(figure: Figure, films: dict[str, Film]) -> None:
    """A row for each agent; the columns are points in time."""
    axes = figure.subplots(len(films), N_PICTURES)
    n_pictures = max(len(each.pictures) for each in films.values())
    for row, (name, each) in zip(axes, films.items(), strict=True):
        for index, cell in zip(np.linspace(0, n_pictures - 1, N_PICTURES).astype(int), row, strict=True):
            cell.axis("off")
            if index < len(each.pictures):
                height, width, _ = each.pictures[index].shape
                picture = each.pictures[index][height // 6 : -height // 8, width // 5 : -width // 5]
                cell.imshow(picture)
                cell.set_title(each.captions[index].partition("   ")[0], fontsize=7)
        row[0].axis("on")
        row[0].set(xticks=[], yticks=[])
        row[0].spines[:].set_visible(False)
        row[0].set_ylabel(name, fontsize=9, color=COLOURS[name])
        n_shown = sum(index < len(each.pictures) for index in np.linspace(0, n_pictures - 1, N_PICTURES).astype(int))
        if n_shown < N_PICTURES:
            end = each.captions[-1].partition("   ")[0]
            row[n_shown].text(0.0, 0.5, end, fontsize=9, transform=row[n_shown].transAxes)


if __name__ == "__main__":
    main()
