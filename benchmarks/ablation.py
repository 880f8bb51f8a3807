"""
What each ingredient of the search is worth: variants of the search on some agents, with the same number of rollouts.

The result of a search is what its verdict tests, whether accepted or not: the candidate that is chosen on validation
seeds, on held-out seeds. A cell that is in the results is not run again: an interrupted run goes on.

python benchmarks/ablation.py --json benchmarks/results/ablation.json
"""

import json
import logging
import time
from dataclasses import asdict
from typing import Any

import numpy as np
from common import circumstances, parser, show

from sb3_refine import Refiner, load_agent

AGENTS = (
    "ppo HopperBulletEnv-v0",
    "a2c Walker2DBulletEnv-v0",
    "tqc MountainCarContinuous-v0",
    "ppo LunarLanderContinuous-v2",
    "a2c HopperBulletEnv-v0",
    "ppo Walker2DBulletEnv-v0",
    "ddpg HopperBulletEnv-v0",
    "a2c BipedalWalker-v3",
)
VARIANTS: dict[str, dict[str, Any]] = {
    "backtracking-ars": {"optimizer": "backtracking-ars"},
    "ars": {"optimizer": "ars"},
    "openai-es": {"optimizer": "openai-es"},
    "pgpe": {"optimizer": "pgpe"},
    "without going back": {"optimizer": "backtracking-ars", "tolerance": float("inf")},
    "without momentum": {"optimizer": "backtracking-ars", "momentum": 0.0},
    "less noise": {"optimizer": "backtracking-ars", "delta_std": (0.025, 0.0025)},
}


def run(name: str, variant: str, seed: int, options: Any) -> dict[str, Any]:
    """One search and its verdict."""
    agent, started = load_agent(*name.split(), options.agents), time.perf_counter()
    refiner = Refiner(agent, seed=seed, n_eval_episodes=options.episodes, **VARIANTS[variant])
    with refiner:
        refiner.learn(options.rollouts // refiner.episodes_per_update)
    result, search = refiner.result, refiner.search
    assert result is not None
    assert search is not None
    return {
        "agent": name,
        "variant": variant,
        "seed": seed,
        "decision": result.decision,
        "chosen": next(one["name"] for one in result.candidates if one["chosen"]),
        "baseline": result.baseline.summary() if result.baseline else None,
        "refined": result.refined.summary() if result.refined else None,
        "paired_difference": asdict(result.paired_difference) if result.paired_difference else None,
        "rollouts_of_search": search.history[-1].rollouts,
        "population_means": [round(update.mean_return, 2) for update in search.history],
        "rollouts": result.rollouts,
        "env_steps": result.env_steps,
        "cpu_time_s": round(result.cpu_time_s, 1),
        "wall_time_s": round(time.perf_counter() - started, 1),
    }


def table(results: list[dict[str, Any]]) -> None:
    """Means on held-out seeds, each run a number; in brackets where the original was kept."""
    variants = [variant for variant in VARIANTS if any(each["variant"] == variant for each in results)]
    rows = []
    for name in dict.fromkeys(each["agent"] for each in results):
        own = [each for each in results if each["agent"] == name]
        before = f"{np.mean([each['baseline']['mean_return'] for each in own]):.5g}"
        rows.append([name, before, *(cell([each for each in own if each["variant"] == v]) for v in variants)])
    show("mean return on held-out seeds", ["agent", "original", *variants], rows)


def cell(runs: list[dict[str, Any]]) -> str:
    texts = [f"{run['refined']['mean_return']:.5g} ± {run['refined']['std_return']:.3g}" for run in runs]
    return ", ".join(
        text if run["decision"] == "refined" else f"({text})" for text, run in zip(texts, runs, strict=True)
    )


def main() -> None:
    options_parser = parser("What each ingredient of the search is worth.")
    options_parser.add_argument("--rollouts", type=int, default=800, help="of a search")
    options_parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options_parser.add_argument("--episodes", type=int, default=100, help="test episodes")
    options_parser.add_argument("--only", nargs="+", metavar="'ALGO ENV'", default=AGENTS, help="agents")
    options_parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    options = options_parser.parse_args()
    logging.getLogger("sb3_refine").setLevel(logging.ERROR)
    path = options.json
    results = json.loads(path.read_text()) if path is not None and path.exists() else []
    done = {(each["agent"], each["variant"], each["seed"]) for each in results}
    for seed in options.seeds:
        for name in options.only:
            for variant in options.variants:
                if (name, variant, seed) in done:
                    continue
                results.append({**run(name, variant, seed, options), "run": circumstances()})
                print(name, variant, seed, cell(results[-1:]), f"{results[-1]['wall_time_s']:.0f} s", flush=True)
                if path is not None:
                    path.write_text(json.dumps(results, indent=1) + "\n")
    table(results)


if __name__ == "__main__":
    main()
