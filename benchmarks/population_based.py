"""
Four searches of one agent with population-based training, and the original tested against the four.

From time to time, the worst search goes on from the best one with other settings, and its own rollouts are lost: the
rollouts of a member are those that led to its last iterate. The original is compared with the last iterates on
validation seeds, and with the best of these on test seeds.

python benchmarks/population_based.py --agents FOLDER --json benchmarks/results/population_based.json
"""

import tempfile
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import ray
from common import parser, show, write
from ray import tune

from sb3_refine import judge, load_agent
from sb3_refine.tuning import AGENT_FOLDER, trainable

ALGO, ENV = "ppo", "LunarLanderContinuous-v2"
SETTINGS = {
    "delta_std": tune.uniform(0.05, 0.3),
    "learning_rate": tune.uniform(0.2, 1.0),
}


def search(options: Any, storage: str) -> tune.ResultGrid:
    scheduler = tune.schedulers.PopulationBasedTraining(
        time_attr="training_iteration", perturbation_interval=1, hyperparam_mutations=SETTINGS, quantile_fraction=0.25
    )
    make_agent = partial(load_agent, ALGO, ENV, options.agents.resolve())
    return tune.Tuner(
        trainable(make_agent, n_updates=options.n_updates),
        param_space={**SETTINGS, "seed": tune.grid_search(list(range(options.n_members)))},
        tune_config=tune.TuneConfig(metric="mean_return", mode="max", scheduler=scheduler),
        run_config=tune.RunConfig(storage_path=storage, name="population", verbose=0),
    ).fit()


def main() -> None:
    options = parser(__doc__.splitlines()[1])
    options.add_argument("--n-updates", type=int, default=30, help="updates of each search")
    options.add_argument("--n-members", type=int, default=4, help="searches at a time")
    options = options.parse_args()
    started = time.monotonic()
    ray.init("local", num_cpus=options.n_members, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as storage:
        results = search(options, storage)
        n_changes = sum(len(path.read_text().splitlines()) for path in Path(storage).glob("*/pbt_policy_*.txt"))
        paths = [next((Path(result.checkpoint.path) / AGENT_FOLDER).glob("*.zip")) for result in results]
        wall_time_s = time.monotonic() - started
        ray.shutdown()
        found = judge(load_agent(ALGO, ENV, options.agents), paths).result
    names = ("mean_return", "n_updates", "rollouts", "env_steps")
    members = [{**result.config, **{name: result.metrics[name] for name in names}} for result in results]
    before, after = (figures.summary() for figures in (found.baseline, found.candidate))
    difference = found.paired_difference
    show(
        f"{ALGO} {ENV}: {n_changes} times, a search went on from another one",
        ["seed", "delta_std", "learning_rate", "mean return on 20 validation seeds", "rollouts that led there"],
        [[each[name] for name in ("seed", *SETTINGS, "mean_return", "rollouts")] for each in members],
    )
    show(
        f"100 test seeds: {found.decision}",
        ["original", "best of the four", "difference"],
        [
            [
                f"{before['mean_return']:.5g} ± {before['std_return']:.3g}",
                f"{after['mean_return']:.5g} ± {after['std_return']:.3g}",
                f"{difference.mean:+.4g} ({difference.ci_low:.4g}, {difference.ci_high:.4g})",
            ]
        ],
    )
    verdict = {
        "decision": found.decision,
        "baseline": before,
        "refined": after,
        "paired_difference": asdict(difference),
        "rollouts": found.rollouts,
        "env_steps": found.env_steps,
    }
    result = {"members": members, "n_changes": n_changes, "wall_time_s": round(wall_time_s), "judge": verdict}
    write(options.json, [result])


if __name__ == "__main__":
    main()
