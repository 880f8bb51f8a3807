"""
Table I of "Direct Random Search for Fine Tuning of Deep Reinforcement Learning Policies" (arXiv 2109.05604) with the
agents at hand: the original, the paper's tuned agent as printed, and ours with at most a tenth of its rollouts.

The result of a run is what its verdict tests, whether accepted or not: the candidate that is chosen on validation
seeds, on 100 held-out seeds. The episodes of the search, of the calibration and of the choice are within the rollouts;
those of the test are not. A cell that is in the results is not run again: an interrupted run goes on.

python benchmarks/paper_table.py --json benchmarks/results/paper_table.json
python benchmarks/paper_table.py --only "a2c HopperBulletEnv-v0" --seeds 0    # one cell
python benchmarks/paper_table.py --optimizer paper --seeds 0                        # the paper's algorithm
"""

import logging
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from common import parser, show
from searching import before, described, run_missing, search_and_test

from sb3_refine import Refiner, load_agent
from sb3_refine.optimizers import OPTIMIZERS

N_TEST_EPISODES = 100
PAPER = "paper"  # the paper's algorithm with its rollouts


class Cell(NamedTuple):
    """
    A cell of Table I.

    :param mean: of the paper's tuned agent, 100 episodes
    :param std: of the same
    :param paper_rollouts: of the paper's search
    :param rollouts: that our search and choice may take
    """

    mean: float
    std: float
    paper_rollouts: int
    rollouts: int


CELLS = {
    "ddpg HopperBulletEnv-v0": Cell(2380, 342, 12_800, 1_280),
    "a2c HopperBulletEnv-v0": Cell(1643, 204, 12_800, 640),
    "ppo HopperBulletEnv-v0": Cell(2634, 91, 12_800, 1_280),
    "a2c Walker2DBulletEnv-v0": Cell(914, 269, 12_800, 1_280),
    "ppo Walker2DBulletEnv-v0": Cell(2250, 194, 12_800, 1_280),
    "a2c BipedalWalker-v3": Cell(314, 0.7, 25_600, 2_560),
    "ppo LunarLanderContinuous-v2": Cell(275, 32, 25_600, 2_560),
    "a2c MountainCarContinuous-v0": Cell(92.8, 0.07, 25_600, 2_560),
    "ppo MountainCarContinuous-v0": Cell(96.2, 17, 25_600, 2_560),
    "ddpg MountainCarContinuous-v0": Cell(94.8, 0.36, 25_600, 2_560),
    "sac MountainCarContinuous-v0": Cell(95.1, 1.0, 25_600, 2_560),
    "tqc MountainCarContinuous-v0": Cell(96.1, 0.9, 25_600, 2_560),
}


def refiner_of(agent: str, seed: int, optimizer: str, options: Any) -> Refiner:
    """:return: for the paper's algorithm, without a choice among iterates: the last one is tested"""
    settings = dict(OPTIMIZERS["ars"].presets["paper"]) if optimizer == PAPER else {}
    settings.pop("n_updates", None)
    return Refiner(
        load_agent(*agent.split(), options.agents),
        optimizer="ars" if optimizer == PAPER else optimizer,
        seed=seed,
        n_eval_episodes=N_TEST_EPISODES,
        **settings,
    )


def n_updates_within(refiner: Refiner, rollouts: int) -> int:
    """:return: length of the search that, with calibration and choice, takes at most so many rollouts"""
    n_other = refiner.n_held_out - 2 * N_TEST_EPISODES if refiner.judging.selection else 0
    return (rollouts - n_other - refiner.n_calibration_episodes) // refiner.episodes_per_update


def run(agent: str, seed: int, optimizer: str, options: Any) -> dict[str, Any]:
    """One cell."""
    refiner, cell = refiner_of(agent, seed, optimizer, options), CELLS[agent]
    rollouts = cell.paper_rollouts if optimizer == PAPER else cell.rollouts
    return search_and_test(refiner, n_updates_within(refiner, rollouts))


def is_met(agent: str, rows: list[dict[str, Any]]) -> bool:
    """Whether the median of the runs is at least the paper's mean, within one standard error of 100 episodes."""
    median = sorted(rows, key=lambda row: row["refined"]["mean_return"])[(len(rows) - 1) // 2]["refined"]
    return reaches_the_paper(agent, median["mean_return"], median["std_return"])


def reaches_the_paper(agent: str, mean: float, std: float) -> bool:
    """Within one standard error of the difference of 100 episodes each."""
    cell = CELLS[agent]
    return bool(mean >= cell.mean - np.hypot(std, cell.std) / np.sqrt(N_TEST_EPISODES))


def table(results: list[dict[str, Any]], optimizer: str) -> None:
    rows = []
    for agent, cell in CELLS.items():
        ours = [each for each in results if each["agent"] == agent and each["optimizer"] == optimizer]
        theirs = [each for each in results if each["agent"] == agent and each["optimizer"] == PAPER]
        if not ours:
            continue
        rows.append(
            [
                agent,
                before(ours),
                f"{cell.mean:.5g} ± {cell.std:.3g} ({cell.paper_rollouts:,})",
                described(theirs) or "-",
                f"{described(ours)} ({cell.rollouts:,})",
                "met" if is_met(agent, ours) else "missed",
            ]
        )
    show(
        "mean return ± standard deviation of 100 held-out episodes (rollouts)",
        ["agent", "original", "the paper", "the paper's algorithm here", "ours", "median"],
        rows,
    )


def main() -> None:
    options_parser = parser("Table I of the paper.")
    options_parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options_parser.add_argument("--only", nargs="+", metavar="'ALGO ENV'", default=list(CELLS), choices=CELLS)
    options_parser.add_argument("--optimizer", default="backtracking-ars", help=f"a search method, or {PAPER!r}")
    options = options_parser.parse_args()
    logging.getLogger("sb3_refine").setLevel(logging.ERROR)
    keys = [
        {"agent": agent, "seed": seed, "optimizer": options.optimizer}
        for seed in options.seeds
        for agent in options.only
    ]
    results = run_missing(keys, partial(run, options=options), options.json)
    table(results, "backtracking-ars" if options.optimizer == PAPER else options.optimizer)


if __name__ == "__main__":
    main()
