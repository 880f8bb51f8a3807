"""
Every agent below a Zoo folder refined with the default preset, and the verdict checked on fresh seeds.

The original and what the run gave back are run again on seeds that the run did not know, drawn from another seed.
Agents that were given back unchanged are not run again. An agent that is in the results is left out: an interrupted run
goes on.

python benchmarks/refine_zoo.py --agents FOLDER --json benchmarks/results/refine_zoo.json
"""

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from common import circumstances, parser, show
from rich.progress import track

from sb3_refine import RefineError, Refiner, load_agent
from sb3_refine.agents.sb3_models import ALGOS, HER
from sb3_refine.errors import EpisodeError
from sb3_refine.evaluation.evaluation import paired_difference
from sb3_refine.evaluation.target import EvaluationTarget
from sb3_refine.optimizers import default_n_updates
from sb3_refine.rollouts.metrics import SMOOTHNESS
from sb3_refine.seeding import EpisodeSeeds

FRESH = 1_000_003  # the seed of the fresh seeds; that of the runs is 0


def agents(folder: Path) -> list[tuple[str, str, int]]:
    """:return: algorithm, environment and experiment number of each agent"""
    runs = [run for algo in (*ALGOS, HER) for run in sorted((folder / algo).glob("*_*")) if run.is_dir()]
    return [(run.parent.name, *split(run.name)) for run in runs]


def split(name: str) -> tuple[str, int]:
    env, _, number = name.rpartition("_")
    return env, int(number)


def refine(algo: str, env: str, exp_id: int, options: Any) -> dict[str, Any]:
    result: dict[str, Any] = {"algo": algo, "env": env, "exp_id": exp_id, "decision": "cannot"}
    try:
        agent = load_agent(algo, env, options.agents, exp_id=exp_id)
        refiner = Refiner(agent, optimizer=options.optimizer, n_workers=options.n_workers)
        refiner.learn(options.n_updates)
    except (RefineError, EpisodeError) as error:
        return {**result, "reason": str(error).splitlines()[0]}
    found = refiner.result
    assert found is not None and found.baseline is not None
    result.update(
        command=f"sb3-refine --algo {algo} --env {env} -f FOLDER --exp-id {exp_id} "
        f"--optimizer {options.optimizer} --n-updates {options.n_updates}",
        decision=found.decision,
        reason=found.reason,
        chosen=next(candidate["name"] for candidate in found.candidates if candidate["chosen"]),
        rollouts=found.rollouts,
        env_steps=found.env_steps,
        steps_of_training=agent.config.get("n_timesteps"),
        cpu_time_s=round(found.cpu_time_s),
        wall_time_s=round(found.wall_time_s),
        baseline=found.baseline.summary(),
        refined=found.candidate.summary() if found.candidate else None,
        paired_difference=asdict(found.paired_difference) if found.paired_difference else None,
        fresh=confirm(refiner, options) if found.decision == "refined" else None,
    )
    return result


def confirm(refiner: Refiner, options: Any) -> dict[str, Any]:
    """:return: the original and the refined agent on fresh seeds"""
    seeds = EpisodeSeeds(FRESH).take("test", options.episodes)
    assert refiner.tested is not None
    with refiner.evaluator() as evaluator:
        before, after = (EvaluationTarget(evaluator, theta).run(seeds, SMOOTHNESS) for theta in refiner.tested)
    difference = paired_difference(before, after, paired=refiner.is_seeded)
    return {"baseline": before.summary(), "refined": after.summary(), "paired_difference": asdict(difference)}


def row(result: dict[str, Any]) -> list[Any]:
    name = f"{result['algo']} {result['env']}_{result['exp_id']}"
    if result["decision"] == "cannot":
        return [name, "cannot", "", "", "", "", "", result["reason"]]
    before, after = (
        "" if figures is None else f"{figures['mean_return']:.5g} ± {figures['std_return']:.3g}"
        for figures in (result["baseline"], result["refined"])
    )
    return [
        *(name, result["decision"], before, after, interval(result["paired_difference"]), fresh(result["fresh"])),
        *(cost(result), f"{result['cpu_time_s']} s"),
    ]


def cost(result: dict[str, Any]) -> str:
    """Environment steps, and their share of those that the agent was trained for."""
    training = result["steps_of_training"]
    share = f" ({result['env_steps'] / training:.2g} of the training)" if training else ""
    return f"{result['env_steps']:,}{share}"


def median_share(results: list[dict[str, Any]]) -> float:
    """Median of the steps of a refinement, in steps of the agent's training."""
    known = [one for one in results if one.get("steps_of_training")]
    return float(np.median([one["env_steps"] / one["steps_of_training"] for one in known])) if known else float("nan")


def interval(difference: dict[str, Any] | None) -> str:
    if difference is None:
        return ""
    return f"{difference['mean']:+.4g} ({difference['ci_low']:.4g}, {difference['ci_high']:.4g})"


def fresh(found: dict[str, Any] | None) -> str:
    return "" if found is None else interval(found["paired_difference"])


def main() -> None:
    options = parser(__doc__.splitlines()[1])
    options.add_argument("--only", nargs="+", default=[""], help="only agents with one of these in ALGO ENV_K")
    options.add_argument("--optimizer", default="backtracking-ars", help="search method")
    options.add_argument("--n-updates", type=int, help="length of each search (default: the preset's)")
    options.add_argument("--episodes", type=int, default=500, help="fresh episodes of each agent that was refined")
    options.add_argument("--n-workers", type=int, default=2, help="worker processes")
    options = options.parse_args()
    options.n_updates = options.n_updates or default_n_updates(options.optimizer)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("sb3_refine").setLevel(logging.ERROR)
    results = json.loads(options.json.read_text()) if options.json is not None and options.json.exists() else []
    done = {(result["algo"], result["env"], result["exp_id"]) for result in results}
    found = [one for one in agents(options.agents) if any(part in "{} {}_{}".format(*one) for part in options.only)]
    run = circumstances()
    for agent in track([agent for agent in found if agent not in done], description="agents"):
        results.append({**refine(*agent, options), "run": run})
        if options.json is not None:  # it takes hours: keep what there is
            options.json.write_text(json.dumps(results, indent=1) + "\n")
    verdicts = [result["decision"] for result in results]
    show(
        f"{verdicts.count('refined')} refined, {verdicts.count('original')} originals kept; environment steps of a "
        f"refinement: a median of {median_share(results):.2g} times those of the training",
        [
            "agent",
            "verdict",
            "original",
            "after the search",
            "held-out difference",
            "on fresh seeds",
            "steps",
            "CPU time",
        ],
        [row(result) for result in results],
    )


if __name__ == "__main__":
    main()
