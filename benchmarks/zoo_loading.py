"""
Every checkpoint below a folder: does it load, what does it need, and does it do what its own evaluations say?

Episodes are those of the evaluator that a refinement uses, on the first seeds of the test stream. "as expected" is by
evaluations.npz, see ``sb3_refine.agents.zoo.expected_return``.

python benchmarks/zoo_loading.py FOLDER --episodes 10 --json benchmarks/results/zoo_loading.json
"""

import argparse
import logging
import statistics
from pathlib import Path
from typing import Any

from common import show, write
from rich.progress import track

from sb3_refine import RefineError, Refiner, load_agent
from sb3_refine.agents.sb3_models import ALGOS, HER
from sb3_refine.evaluation.target import EvaluationTarget
from sb3_refine.evaluators import ProcessEvaluator
from sb3_refine.seeding import EpisodeSeeds

NO_CHECKPOINTS = ("train_eval_metrics.zip",)


def checkpoints(folder: Path) -> list[tuple[str, Path]]:
    """:return: algorithm (the name of the folder that the run's lies in) and zip of each checkpoint"""
    zips = sorted(path for path in folder.glob("**/*.zip") if path.name not in NO_CHECKPOINTS)
    return [(path.parent.parent.name, path) for path in zips if path.parent.parent.name in (*ALGOS, HER)]


def try_out(algo: str, path: Path, folder: Path, n_episodes: int, n_workers: int) -> dict[str, Any]:
    result: dict[str, Any] = {"path": str(path.relative_to(folder)), "status": "cannot", "reason": "", "needs": []}
    result.update(mean_return=None, std_return=None, expected_return=None, as_expected=None)
    try:
        agent = load_agent(algo, model=path)
        result.update(status="loads", needs=needs(agent, path))
        refiner = Refiner(agent)
        with ProcessEvaluator(refiner.make_task(), n_workers) as evaluator:
            seeds = EpisodeSeeds(0).take("test", n_episodes)
            episodes = EvaluationTarget(evaluator, refiner.parameters.get_theta()).run(seeds).episodes
    except RefineError as error:
        return {**result, "reason": str(error).splitlines()[0]}
    returns = [episode.episode_return for episode in episodes]
    result.update(mean_return=statistics.fmean(returns), std_return=statistics.pstdev(returns))
    expected = agent.expected_return
    if expected is not None:
        as_expected = expected.low <= result["mean_return"] <= expected.high
        result.update(expected_return=expected.last, as_expected=as_expected)
    return result


def needs(agent: Any, path: Path) -> list[str]:
    """:return: what of the agent differs from what it was saved with"""
    found = []
    trained_on = next((p.parent.name for p in path.parent.glob("*/config.yml")), path.stem)
    if agent.recipe.env_id != trained_on:
        found.append(f"{trained_on} as {agent.recipe.env_id}")
    found += [name.rpartition(".")[2] for name, _ in agent.recipe.wrappers]
    found += ["vecnormalize.pkl"] if agent.vec_normalize is not None else []
    return found + (["its algorithm inferred"] if path.parent.parent.name != agent.algo else [])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    options.add_argument("folder", type=Path, help="a log folder of the Zoo")
    options.add_argument("--episodes", type=int, default=10, help="episodes of each checkpoint")
    options.add_argument("--n-workers", type=int, default=2, help="worker processes")
    options.add_argument("--json", type=Path, help="write the results here too")
    options = options.parse_args()
    logging.getLogger("sb3_refine").setLevel(logging.ERROR)
    found = checkpoints(options.folder)
    results = [
        try_out(algo, path, options.folder, options.episodes, options.n_workers)
        for algo, path in track(found, description="checkpoints")
    ]
    show(
        f"{sum(r['status'] == 'loads' for r in results)} of {len(results)} checkpoints load",
        ["checkpoint", "status", "needs", "mean return", "its evaluations", "as expected"],
        [row(result) for result in results],
    )
    write(options.json, results)


def row(result: dict[str, Any]) -> list[str]:
    """:return: a line of the table"""
    as_expected = {None: "", True: "yes", False: "NO"}[result["as_expected"]]
    numbers = (number(result["mean_return"]), number(result["expected_return"]))
    return [result["path"], result["reason"] or result["status"], ", ".join(result["needs"]), *numbers, as_expected]


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


if __name__ == "__main__":
    main()
