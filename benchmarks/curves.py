"""
How much return a number of rollouts buys: the paper's algorithm (arXiv 2109.05604) and ours, at shares of the paper's
rollouts, on two Bullet and two Box2D cells of Table I.

All searches lower noise and step to their end. The curve of the paper's algorithm is that of one search of full length,
whose iterates are tested; only its last point has the schedule to its end. Each point of the others is a search of its
own, with calibration and choice within the rollouts, and is what the verdict tests, whether accepted or not. All points
of an agent and seed have the same 100 held-out seeds. A curve that is in the results is not run again.

python benchmarks/curves.py --json benchmarks/results/curves.json --figure docs/curves.png
"""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from common import parser, show
from paper_table import CELLS, PAPER, n_updates_within, reaches_the_paper, refiner_of
from scipy import stats
from searching import run_missing
from stable_baselines3.common.callbacks import BaseCallback

from sb3_refine import Refiner
from sb3_refine.evaluation.evaluation import Evaluation
from sb3_refine.evaluation.target import EvaluationTarget
from sb3_refine.stopwatch import Stopwatch

AGENTS = (
    "a2c HopperBulletEnv-v0",
    "ppo HopperBulletEnv-v0",
    "ppo LunarLanderContinuous-v2",
    "a2c BipedalWalker-v3",
)
SHARES = (0.05, 0.1, 0.25, 0.5, 1.0)
NAMES = {PAPER: "the paper's algorithm", "ars": "--optimizer ars", "backtracking-ars": "the default"}


class Marks(BaseCallback):
    """Keeps the iterates after some numbers of updates."""

    def __init__(self, refiner: Refiner, updates: list[int]):
        super().__init__()
        self.refiner, self.updates = refiner, updates
        self.thetas: dict[int, np.ndarray] = {}

    def _on_step(self) -> bool:
        if self.n_calls in self.updates:
            self.thetas[self.n_calls] = self.refiner.parameters.get_theta()
        return True


def run(agent: str, optimizer: str, seed: int, shares: list[float], options: Any) -> dict[str, Any]:
    """The points of one curve."""
    watch = Stopwatch()
    if optimizer == PAPER:
        points, env_steps = curve_of_iterates(agent, seed, shares, options)
    else:
        found = [point_of_search(agent, optimizer, seed, share, options) for share in shares]
        points, env_steps = [each for each, _ in found], sum(n for _, n in found)
    times = {"cpu_time_s": round(watch.cpu_time_s, 1), "wall_time_s": round(watch.wall_time_s, 1)}
    return {"points": points, "env_steps": env_steps, **times}


def curve_of_iterates(agent: str, seed: int, shares: list[float], options: Any) -> tuple[list[dict[str, Any]], int]:
    """Of the paper's algorithm: the points, and environment steps."""
    refiner = refiner_of(agent, seed, PAPER, options)
    n_updates = n_updates_within(refiner, CELLS[agent].paper_rollouts)
    updates = [max(1, round(share * n_updates)) for share in shares]
    marks = Marks(refiner, updates)
    with refiner, refiner.evaluator() as evaluator:
        refiner.learn(n_updates, marks)
        assert refiner.search is not None and refiner.result is not None and refiner.result.baseline is not None
        points = [point(0.0, 0, refiner.result.baseline)]
        for share, update in zip(shares, updates, strict=True):
            tested = EvaluationTarget(evaluator, marks.thetas[update]).run(refiner.result.baseline.seeds)
            points.append(point(share, update * refiner.episodes_per_update, tested))
        return points, evaluator.n_env_steps


def point_of_search(agent: str, optimizer: str, seed: int, share: float, options: Any) -> tuple[dict[str, Any], int]:
    """Of a search with its choice: the point, and environment steps."""
    refiner = refiner_of(agent, seed, optimizer, options)
    rollouts = round(share * CELLS[agent].paper_rollouts)
    result = refiner.learn(n_updates_within(refiner, rollouts)).result
    assert result is not None and result.candidate is not None
    return {**point(share, rollouts, result.candidate), "decision": result.decision}, result.env_steps


def point(share: float, rollouts: int, tested: Evaluation) -> dict[str, Any]:
    """With a bootstrap interval of the mean, at 95%."""
    bounds = stats.bootstrap((tested.returns,), np.mean, method="percentile", rng=0).confidence_interval
    mean, std = tested.returns.mean(), tested.returns.std()
    return {"share": share, "rollouts": rollouts, "mean": mean, "std": std, "ci": [bounds.low, bounds.high]}


def last_mean(rows: list[dict[str, Any]]) -> str:
    """:return: what is printed after a curve"""
    return f"{rows[0]['points'][-1]['mean']:.5g}"


def rollouts_to_reach(agent: str, points: list[dict[str, Any]]) -> int | None:
    """:return: rollouts of the first point whose mean is the paper's, within one standard error of 100 episodes"""
    searched = (each for each in points if each["rollouts"])  # not the original, which may be within an error, too
    reached = (each for each in searched if reaches_the_paper(agent, each["mean"], each["std"]))
    return next((each["rollouts"] for each in reached), None)


def table(results: list[dict[str, Any]]) -> None:
    rows = []
    for row in results:
        found = {each["share"]: f"{each['mean']:.5g} ± {each['std']:.3g}" for each in row["points"]}
        reached = rollouts_to_reach(row["agent"], row["points"])
        curve = [found.get(share, "") for share in SHARES]
        rows.append([row["agent"], NAMES[row["optimizer"]], row["seed"], *curve, reached or "not reached"])
    shares = [f"{share:.0%}" for share in SHARES]
    show(
        "mean return by share of the paper's rollouts", ["agent", "search", "seed", *shares, "reaches the paper"], rows
    )


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """A panel for each agent."""
    agents = list(dict.fromkeys(row["agent"] for row in results))
    figure, panels = plt.subplots(1, len(agents), figsize=(3.4 * len(agents), 3), layout="constrained", squeeze=False)
    for axes, agent in zip(panels[0], agents, strict=True):
        axes.axhline(CELLS[agent].mean, color="gray", linewidth=0.8, linestyle="--", label="printed in the paper")
        for row in [each for each in results if each["agent"] == agent]:
            points = row["points"]
            means = np.array([each["mean"] for each in points])
            errors = np.abs(np.array([each["ci"] for each in points]).T - means)
            color = f"C{list(NAMES).index(row['optimizer'])}"
            label = NAMES[row["optimizer"]] if row["seed"] == 0 else None
            rollouts = [each["rollouts"] for each in points]
            axes.errorbar(rollouts, means, errors, marker="o", markersize=3, linewidth=1, color=color, label=label)
        axes.set_title(agent, fontsize=9)
        axes.set_xlabel("rollouts")
    panels[0][0].set_ylabel("mean return, 95% interval")
    panels[0][0].legend(fontsize=7)
    figure.savefig(path, dpi=120)


def main() -> None:
    options_parser = parser("Return by number of rollouts.")
    options_parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options_parser.add_argument("--only", nargs="+", metavar="'ALGO ENV'", default=AGENTS, choices=CELLS)
    options_parser.add_argument("--optimizers", nargs="+", default=list(NAMES), choices=NAMES)
    options_parser.add_argument("--most", type=float, default=0.25, help="largest share, except for the paper's search")
    options_parser.add_argument("--figure", type=Path, help="draw the curves here")
    options = options_parser.parse_args()
    logging.getLogger("sb3_refine").setLevel(logging.ERROR)
    keys = [
        {
            "agent": agent,
            "optimizer": optimizer,
            "seed": seed,
            "shares": [share for share in SHARES if optimizer == PAPER or share <= options.most],
        }
        for seed in options.seeds
        for agent in options.only
        for optimizer in options.optimizers
    ]
    results = run_missing(keys, partial(run, options=options), options.json, last_mean)
    table(results)
    if options.figure is not None:
        draw(results, options.figure)


if __name__ == "__main__":
    main()
