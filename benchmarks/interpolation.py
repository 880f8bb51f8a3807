"""
Does it help to interpolate between the original and the result of a search, or to extrapolate beyond it?

After a search with the default preset (--n-updates to shorten it), theta_0 + eta (theta - theta_0) is run on the same
episodes for several eta, for the last iterate and for the running average (Rahn et al., https://arxiv.org/abs/2309.14597;
Rame et al., https://arxiv.org/abs/2406.16768, "WARP").

python benchmarks/interpolation.py --agents FOLDER --json benchmarks/results/interpolation.json
"""

import logging
from typing import Any

import numpy as np
from common import parser, show, write

from sb3_refine import Refiner, load_agent
from sb3_refine.evaluation.target import EvaluationTarget
from sb3_refine.seeding import EpisodeSeeds

AGENTS = [
    ("a2c", "HopperBulletEnv-v0"),
    ("tqc", "MountainCarContinuous-v0"),
    ("ddpg", "HopperBulletEnv-v0"),
    ("ppo", "HopperBulletEnv-v0"),
    ("ppo", "Walker2DBulletEnv-v0"),
]
ETAS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
FRESH = 1_000_003  # the seed of the episodes


def measure(algo: str, env: str, options: Any) -> list[dict[str, Any]]:
    agent = load_agent(algo, env, options.agents)
    seeds = EpisodeSeeds(FRESH).take("test", options.episodes)
    with Refiner(agent, n_workers=options.n_workers, acceptance=False, seed=options.seed) as refiner:
        start = refiner.parameters.get_theta()
        refiner.learn(options.n_updates)
        assert refiner.search is not None
        results = []
        with refiner.evaluator() as evaluator:
            before = EvaluationTarget(evaluator, start).run(seeds).returns
            for iterate in refiner.search.iterates[:2]:
                returns = {
                    eta: EvaluationTarget(evaluator, start + np.float32(eta) * (iterate.theta - start))
                    .run(seeds)
                    .returns
                    for eta in ETAS
                }
                gains = {eta: found - returns[1.0] for eta, found in returns.items()}
                results.append(
                    {
                        "agent": f"{algo} {env}",
                        "seed": options.seed,
                        "iterate": iterate.name,
                        "n_updates": refiner.search.n_updates_done,
                        "rollouts": refiner.search.n_episodes,
                        "env_steps": refiner.search.n_env_steps,
                        "original": float(before.mean()),
                        "mean_return": {str(eta): float(found.mean()) for eta, found in returns.items()},
                        "gain_over_1": {str(eta): float(gain.mean()) for eta, gain in gains.items()},
                        "standard_error": {
                            str(eta): float(gain.std(ddof=1) / np.sqrt(gain.size)) for eta, gain in gains.items()
                        },
                    }
                )
    return results


def main() -> None:
    assert __doc__ is not None
    options_parser = parser(__doc__)
    options_parser.add_argument("--n-updates", type=int, help="of the search; the default preset's, if not said")
    options_parser.add_argument("--episodes", type=int, default=100)
    options_parser.add_argument("--n-workers", type=int, default=2)
    options_parser.add_argument("--seed", type=int, default=0)
    options = options_parser.parse_args()
    logging.getLogger("sb3_refine").setLevel(logging.ERROR)
    results: list[dict[str, Any]] = []
    for algo, env in AGENTS:
        results += measure(algo, env, options)
        write(options.json, results)
        rows = [
            [one["agent"], one["iterate"], one["original"], *(one["mean_return"][str(eta)] for eta in ETAS)]
            for one in results
        ]
        show("mean return by eta", ["agent", "iterate", "original", *map(str, ETAS)], rows)


if __name__ == "__main__":
    main()
