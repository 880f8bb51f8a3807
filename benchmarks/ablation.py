"""
What each ingredient of the search is worth: variants of the search on some agents, with the same number of rollouts.

The result of a search is what its verdict tests, whether accepted or not: the candidate that is chosen on validation
seeds, on held-out seeds. A cell that is in the results is not run again: an interrupted run goes on.

python benchmarks/ablation.py --json benchmarks/results/ablation.json
"""

import logging
from functools import partial
from typing import Any

import numpy as np
from common import parser, show
from searching import described, run_missing, search_and_test

from sb3_refine import Refiner, load_agent
from sb3_refine.evaluation import calibration
from sb3_refine.optimizers import OPTIMIZERS, BacktrackingARS
from sb3_refine.optimizers.openai_es import utilities_of_pairs
from sb3_refine.policies.noise_scale import noise_scale

AGENTS = (
    "tqc MountainCarContinuous-v0",
    "ppo LunarLanderContinuous-v2",
    "dqn LunarLander-v2",
    "ddpg HopperBulletEnv-v0",
    "ppo MountainCarContinuous-v0",
    "a2c HopperBulletEnv-v0",
    "a2c Walker2DBulletEnv-v0",
    "ppo Walker2DBulletEnv-v0",
    "ppo HopperBulletEnv-v0",
    "a2c BipedalWalker-v3",
)
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "one std for all layers": {},
    "layers by the square root": {},
    "layers of equal influence": {},
    "std in units of the parameters": {"optimizer": "in-parameter-units", "delta_std": (0.05, 0.025)},
    "raw differences": {"clip": None},
    "ranks": {"optimizer": "by-ranks", "clip": None},
    "without momentum": {"momentum": 0.0},
    "twice the step": {"learning_rate": (3.2, 1.6)},
    "half of the step": {"learning_rate": (0.8, 0.4)},
    "half of the noise": {"delta_std": (0.1, 0.05)},
    "noise that ends at a tenth": {"delta_std": (0.2, 0.02), "learning_rate": 1.6},
    "noise that does not decrease": {"delta_std": 0.2},
    "never goes back": {"optimizer": "never-goes-back", "n_center": 0, "n_delta": 18},
    "goes back by the iterate only": {"optimizer": "by-the-iterate-only"},
    "without patience": {"patience": None},
    "eight episodes of the iterate": {"n_center": 8},
    "guided-es": {"optimizer": "guided-es"},
    "ars": {"optimizer": "ars"},
    "openai-es": {"optimizer": "openai-es"},
    "pgpe": {"optimizer": "pgpe"},
    "cem": {"optimizer": "cem"},
    "cma-es": {"optimizer": "cma-es"},
}
BALANCES = {
    "one std for all layers": 0.0,
    "layers by the square root": 0.5,
    "layers of equal influence": 1.0,
}  # see noise_scale


class InParameterUnits(BacktrackingARS):
    """Without calibration."""

    in_action_units = False


class ByRanks(BacktrackingARS):
    """Differences of ranks, instead of fitness."""

    def _weights(self, fitness: np.ndarray) -> np.ndarray:
        plus, minus = utilities_of_pairs(fitness)
        return super()._weights(np.stack([plus, minus], axis=1).ravel())


class ByTheIterateOnly(BacktrackingARS):
    """Goes back only where the iterate is clearly worse than the start point, whatever the policies around it."""

    def _should_go_back(self, center: np.ndarray, pairs: np.ndarray) -> bool:
        return super()._should_go_back(center, pairs[:0])


class NeverGoesBack(BacktrackingARS):
    """Whatever happens."""

    def _should_go_back(self, center: np.ndarray, pairs: np.ndarray) -> bool:
        return False


OPTIMIZERS["in-parameter-units"], OPTIMIZERS["by-ranks"] = InParameterUnits, ByRanks
OPTIMIZERS["by-the-iterate-only"], OPTIMIZERS["never-goes-back"] = ByTheIterateOnly, NeverGoesBack


def run(agent: str, variant: str, seed: int, budget: int, test_episodes: int, options: Any) -> dict[str, Any]:
    """One search and its verdict."""
    loaded = load_agent(*agent.split(), options.agents)
    refiner = Refiner(loaded, seed=seed, n_eval_episodes=test_episodes, **VARIANTS[variant])
    calibration.noise_scale = partial(noise_scale, balance=BALANCES.get(variant, 0.25))
    return search_and_test(refiner, budget // refiner.episodes_per_update)


def table(results: list[dict[str, Any]]) -> None:
    """Means on held-out seeds, each run a number; in brackets where the original was kept."""
    variants = [variant for variant in VARIANTS if any(each["variant"] == variant for each in results)]
    rows = []
    for name in dict.fromkeys(each["agent"] for each in results):
        own = [each for each in results if each["agent"] == name]
        before = f"{np.mean([each['baseline']['mean_return'] for each in own]):.5g}"
        rows.append([name, before, *(described([each for each in own if each["variant"] == v]) for v in variants)])
    show("mean return on held-out seeds", ["agent", "original", *variants], rows)


def main() -> None:
    options_parser = parser("What each ingredient of the search is worth.")
    options_parser.add_argument("--rollouts", type=int, default=800, help="of a search")
    options_parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options_parser.add_argument("--episodes", type=int, default=100, help="test episodes")
    options_parser.add_argument("--only", nargs="+", metavar="'ALGO ENV'", default=AGENTS, help="agents")
    options_parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS, metavar="NAME")
    options = options_parser.parse_args()
    logging.getLogger("sb3_refine").setLevel(logging.ERROR)
    keys = [
        {
            "agent": name,
            "variant": variant,
            "seed": seed,
            "budget": options.rollouts,
            "test_episodes": options.episodes,
        }
        for seed in options.seeds
        for name in options.only
        for variant in options.variants
    ]
    table(run_missing(keys, partial(run, options=options), options.json))


if __name__ == "__main__":
    main()
