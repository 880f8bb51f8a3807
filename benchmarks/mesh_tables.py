"""
The paper's Tables III and IV with our agents: gaits of few dimensions, a Panda arm that holds still, less shaking.

Each row is one run; those of Table III have at most a tenth of the paper's 25,600 rollouts for search and choice
together. Afterwards, the original and the result of the search are run on fresh seeds, drawn from another seed. The
dimension is that of the tables: the mean of the two bounds, neither clipped nor replaced for failures; its spread the
mean of their standard deviations. (The search goes by the clipped one.) The published values are those of
paper/tables.csv.

python benchmarks/mesh_tables.py --agents FOLDER --json benchmarks/results/mesh_tables.json

What the paper's own settings and all of its rollouts come to with the same agents, 45 minutes each and more:

python benchmarks/mesh_tables.py --agents FOLDER --paper --json benchmarks/results/mesh_tables_paper.json
"""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import circumstances, parser, show

from sb3_refine import Refiner, load_agent
from sb3_refine.envs.families import family_of
from sb3_refine.evaluation.evaluation import Evaluation, paired_difference
from sb3_refine.evaluation.robustness import BOTH, end_effector_jerk, motion_of
from sb3_refine.evaluation.target import EvaluationTarget
from sb3_refine.evaluators import ProcessEvaluator
from sb3_refine.files import as_json
from sb3_refine.optimizers import ARS
from sb3_refine.reporting.plots import end_effector
from sb3_refine.rollouts.episode import Trajectory
from sb3_refine.rollouts.mesh_dimension import mesh_dimension
from sb3_refine.rollouts.metrics import SMOOTHNESS
from sb3_refine.seeding import EpisodeSeeds

FRESH = 2_000_003  # the seed of the fresh seeds; that of the runs is 0
BUDGET = 2560  # rollouts of search and choice: a tenth of the paper's
STANDS = 0.1  # m/s, below which a walker is said to stand still


@dataclass(frozen=True)
class Published:
    """
    A row of the paper's Table III.

    :param lower: bound of the dimension before, with its standard deviation
    :param upper: bound of the dimension before, with its standard deviation
    :param tuned_dimension: mean of the bounds after
    :param base_return: before
    :param tuned_return: after
    """

    lower: tuple[float, float]
    upper: tuple[float, float]
    tuned_dimension: float
    base_return: float
    tuned_return: float

    @property
    def dimension(self) -> tuple[float, float]:
        """Before, with its spread."""
        return (self.lower[0] + self.upper[0]) / 2, (self.lower[1] + self.upper[1]) / 2


@dataclass(frozen=True)
class Row:
    """
    One run.

    :param group: what it is to show: ``mesh``, ``panda`` or ``smooth``
    :param algo: of the agent
    :param env: of the agent
    :param objective: what is maximised
    :param published: what the paper has
    :param n_updates: length of the search
    :param n_episodes: held-out episodes, of the verdict and fresh ones
    :param settings: of the search, where not the default preset's
    :param budget: rollouts that search and choice may take; None for any number
    """

    group: str
    algo: str
    env: str
    objective: str
    published: Published | None = None
    n_updates: int = 70
    n_episodes: int = 100
    settings: dict[str, Any] = field(default_factory=dict)
    budget: int | None = BUDGET

    @property
    def name(self) -> str:
        """Of the row."""
        return f"{self.group} {self.algo} {self.env}"


FIRST_LAYER: dict[str, Any] = {"parameters": "policy_net.0"}
"""For the two PPO agents, whose return is near its best: the dimension follows fewer parameters, and smaller steps."""

ROWS = (
    Row("panda", "tqc", "PandaReach-v1", "smooth:weight=2", n_updates=60, n_episodes=200),
    Row("smooth", "ddpg", "HopperBulletEnv-v0", "smooth:weight=10", n_updates=110),
    Row(
        "smooth",
        "ppo",
        "HopperBulletEnv-v0",
        "smooth:weight=1",
        n_updates=50,
        settings={"n_delta": 32, "delta_std": (0.01, 0.003)},
    ),
    Row(
        "mesh",
        "a2c",
        "HopperBulletEnv-v0",
        "mesh-dimension",
        Published((0.901, 0.133), (4.791, 0.864), 2.243, 768.7, 2072.6),
    ),
    Row(
        "mesh",
        "ddpg",
        "HopperBulletEnv-v0",
        "mesh-dimension",
        Published((0.952, 0.148), (6.383, 0.789), 3.124, 949.6, 2641.2),
    ),
    Row(
        "mesh",
        "ppo",
        "HopperBulletEnv-v0",
        "mesh-dimension",
        Published((1.434, 0.085), (4.878, 0.841), 2.307, 2537.1, 2559.8),
        settings={**FIRST_LAYER, "delta_std": 0.02, "learning_rate": (0.02, 0.01)},
    ),
    Row(
        "mesh",
        "ppo",
        "Walker2DBulletEnv-v0",
        "mesh-dimension",
        Published((1.561, 0.145), (5.336, 0.661), 2.347, 2111.4, 2024.3),
        settings={**FIRST_LAYER, "delta_std": 0.015, "learning_rate": (0.012, 0.006)},
    ),
    Row(
        "mesh",
        "a2c",
        "Walker2DBulletEnv-v0",
        "mesh-dimension",
        Published((0.657, 0.039), (4.435, 1.143), 1.208, 906.0, 997.1),
        settings={"delta_std": (0.05, 0.01), "learning_rate": (0.05, 0.01)},  # whose default changes nothing
    ),
)


def with_the_papers_budget(row: Row) -> Row:
    """:return: the row with the paper's settings, and ten times the rollouts"""
    settings = dict(ARS.presets["paper"])
    return replace(row, n_updates=settings.pop("n_updates"), settings=settings, budget=None)


def dimension(trajectory: Trajectory) -> list[float]:
    """:return: both bounds, NaN where there is no motion to measure"""
    found = mesh_dimension(trajectory.seen[1:])
    return [found.lower, found.upper] if found.mesh_sizes.size else [np.nan, np.nan]


def speed(trajectory: Trajectory) -> float:
    """:return: forward speed in m/s; the fourth observation of Bullet's walkers is 0.3 times that"""
    return float(trajectory.observations[1:, 3].mean() / 0.3)


METRICS: dict[str, dict[str, Callable[[Trajectory], Any]]] = {
    "mesh": {"dimension": dimension, "speed": speed},
    "panda": {"jerk": partial(end_effector_jerk, arm=family_of("PandaReach-v3").end_effector)},
    "smooth": {"speed": speed},
}


def run(row: Row, options: Any) -> dict[str, Any]:
    """:return: what a run came to"""
    agent = load_agent(row.algo, row.env, options.agents, end_at_success=row.group != "panda")
    n_episodes = options.episodes or row.n_episodes
    refiner = Refiner(
        agent, objective=row.objective, n_workers=options.n_workers, n_eval_episodes=n_episodes, **row.settings
    ).learn(options.n_updates or row.n_updates)
    found = refiner.result
    assert found is not None and found.baseline is not None and refiner.tested is not None
    task, metrics = refiner.make_task(), METRICS[row.group]
    seeds = EpisodeSeeds(FRESH).take("test", n_episodes)
    with ProcessEvaluator(replace(task, metrics={**task.metrics, **metrics}), refiner.n_workers) as evaluator:
        targets = [EvaluationTarget(evaluator, theta) for theta in refiner.tested]
        before, after = (target.run(seeds, (*SMOOTHNESS, *metrics)) for target in targets)
        if row.group == "panda" and options.figure:
            draw(targets, before, after, options.figure)
    n_judged = len(found.baseline.episodes) + (len(found.candidate.episodes) if found.candidate else 0)
    result: dict[str, Any] = {
        "group": row.group,
        "algo": row.algo,
        "env": row.env,
        "settings": refiner.settings | {"n_updates": found.n_updates},
        "decision": found.decision,
        "reason": found.reason,
        "chosen": next(candidate["name"] for candidate in found.candidates if candidate["chosen"]),
        "search_rollouts": found.rollouts - n_judged,
        "rollouts": found.rollouts,
        "wall_time_s": round(found.wall_time_s),
        "before": figures(before, row.group),
        "after": figures(after, row.group),
        "difference": asdict(paired_difference(before, after, paired=refiner.is_seeded)),
        "published": asdict(row.published) if row.published else None,
    }
    return result | {"checks": checks(row, result)}


def figures(evaluation: Evaluation, group: str) -> dict[str, Any]:
    """:return: what the table needs"""
    found = evaluation.summary()
    for name in METRICS[group]:
        values = np.array([episode.metrics[name] for episode in evaluation.episodes])
        if name == "dimension":
            mean, std = np.nanmean(values, axis=0), np.nanstd(values, axis=0)
            found |= {"lower": mean[0], "upper": mean[1], "dimension": mean.mean(), "dimension_spread": std.mean()}
            found["n_without_motion"] = int(np.isnan(values[:, 0]).sum())
        else:
            found[name] = values.mean()
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in found.items()}


def checks(row: Row, result: dict[str, Any]) -> dict[str, bool]:
    """:return: by name, whether what the row is to show holds of the result"""
    before, after = result["before"], result["after"]
    found = {"kept": result["decision"] == "refined"}
    if row.group == "mesh":
        assert row.published is not None
        if row.budget is not None:
            found["rollouts"] = result["search_rollouts"] <= row.budget
        mean, spread = row.published.dimension
        found["before as published"] = abs(before["dimension"] - mean) <= spread
        found["return"] = after["mean_return"] >= row.published.tuned_return
        if after["speed"] >= STANDS:  # else low dimension is bought with standing still: the return decides
            found["dimension"] = after["dimension"] <= row.published.tuned_dimension
    elif row.group == "panda":
        found["jerk"] = after["jerk"] <= before["jerk"] / 2
        found["change"] = after["action_change"] <= before["action_change"] / 2
        found["success"] = after["success_rate"] >= before["success_rate"]
    else:
        found["share"] = after["high_frequency_share"] <= before["high_frequency_share"] / 2
        loss = before["mean_return"] - after["mean_return"]
        found["return"] = loss < 0.05 * abs(before["mean_return"])
    return found


def draw(targets: list[EvaluationTarget], before: Evaluation, after: Evaluation, path: Path) -> None:
    """The end effector on the seed on which the difference of the jerks is the median one."""
    differences = after.metric("jerk") - before.metric("jerk")
    seed = before.seeds[int(np.argsort(differences, kind="stable")[len(differences) // 2])]
    episodes = [target.run([seed], ["trajectory"]).episodes[0] for target in targets]
    found = {name: episode.metrics["trajectory"] for name, episode in zip(BOTH, episodes, strict=True)}
    motion = motion_of(found, targets[0].task.recipe.env_id)
    end_effector(path, motion["end_effector"], ("original", "refined"))


COLUMNS: dict[str, list[tuple[str, str, str]]] = {
    # heading, figure, format
    "mesh": [("D", "dimension", ".2f"), ("return", "mean_return", ".0f"), ("m/s", "speed", ".2f")],
    "panda": [
        ("jerk m/s^3", "jerk", ".0f"),
        ("change", "action_change", ".3f"),
        ("success", "success_rate", ".1%"),
        ("return", "mean_return", ".2f"),
    ],
    "smooth": [
        ("high-frequency share", "high_frequency_share", ".1%"),
        ("change", "action_change", ".3f"),
        ("return", "mean_return", ".0f"),
    ],
}


def print_table(group: str, results: list[dict[str, Any]]) -> None:
    """Before -> after of each figure."""
    columns = COLUMNS[group]
    rows = []
    for result in results:
        cells = [
            f"{format(result['before'][key], form)} -> {format(result['after'][key], form)}" for _, key, form in columns
        ]
        if group == "mesh":
            published = next(row.published for row in ROWS if row.group == group and is_of(row, result))
            assert published is not None
            (mean, spread), tuned = published.dimension, published.tuned_dimension
            cells.append(f"{mean:.2f} ± {spread:.2f} -> {tuned:.2f}")
            cells.append(f"{published.base_return:.0f} -> {published.tuned_return:.0f}")
        missed = ", ".join(name for name, holds in result["checks"].items() if not holds)
        stands = "; stands still" if result["after"].get("speed", 1) < STANDS else ""
        rollouts = f"{result['search_rollouts']} ({result['rollouts']})"
        rows.append(
            [f"{result['algo']} {result['env']}", *cells, rollouts, result["decision"], f"{missed or 'holds'}{stands}"]
        )
    headings = [heading for heading, _, _ in columns] + (["paper's D", "paper's return"] if group == "mesh" else [])
    show(group, ["agent", *headings, "rollouts (all)", "verdict", "not met"], rows)


def is_of(row: Row, result: dict[str, Any]) -> bool:
    """:return: whether the result is the row's"""
    return (row.algo, row.env) == (result["algo"], result["env"])


def main() -> None:
    arguments = parser(__doc__.splitlines()[1])
    arguments.add_argument("--only", default="", help="only rows with this in GROUP ALGO ENV")
    arguments.add_argument("--paper", action="store_true", help="Table III with the paper's settings and budget")
    arguments.add_argument("--n-updates", type=int, help="length of each search (default: the row's)")
    arguments.add_argument("--episodes", type=int, help="held-out episodes, and fresh ones (default: the row's)")
    arguments.add_argument("--n-workers", type=int, default=2, help="worker processes")
    arguments.add_argument("--figure", type=Path, help="write the figure of the Panda's end effector here")
    options = arguments.parse_args()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("sb3_refine").setLevel(logging.ERROR)
    circumstances_of_all = circumstances()
    results: list[dict[str, Any]] = []
    rows = [with_the_papers_budget(row) for row in ROWS if row.group == "mesh"] if options.paper else ROWS
    for row in rows:
        if options.only in row.name:
            results.append({**run(row, options), "run": circumstances_of_all})
            print_table(row.group, results[-1:])
            if options.json is not None:  # it takes most of an hour: keep what there is
                options.json.write_text(as_json(results))
    for group in COLUMNS:
        of_group = [result for result in results if result["group"] == group]
        if len(of_group) > 1:
            print_table(group, of_group)


if __name__ == "__main__":
    main()
