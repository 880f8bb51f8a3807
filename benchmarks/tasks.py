"""
Families of tasks.

robust: one policy for a family: refined, and trained on for as much CPU time; both judged on held-out tasks, and run
in the environment of the training, too. Three seeds.
meta: the return before and after adaptation over the updates of meta-es, each 10 updates on the same held-out tasks;
with other numbers of draws, gradient steps and fixed standard deviations. The first point is without meta-learning.
Velocity begins with a TD3 agent that was trained on the family for 50,000 steps, direction with a new DDPG agent.
signal: how much of what tells draws from each other is the draws: 16 of them adapt to 16 tasks; the correlation between
their mean scores on one half of the tasks and on the other.

A cell that is in the results is not run again.

python benchmarks/tasks.py robust meta signal --agents FOLDER --json FILE
"""

import argparse
import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
from common import circumstances, parser
from stable_baselines3 import DDPG, TD3
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_refine import Refiner, Trainer, load_agent
from sb3_refine.agents.agent import Agent
from sb3_refine.agents.copies import with_own_policy
from sb3_refine.agents.from_model import agent_from_model
from sb3_refine.agents.tasks import with_tasks, without_tasks
from sb3_refine.evaluation.evaluation import paired_difference
from sb3_refine.evaluation.target import EvaluationTarget, open_targets
from sb3_refine.evaluators import SerialEvaluator
from sb3_refine.meta.adaptation import BEFORE, AdaptationSettings
from sb3_refine.meta.meta_refiner import MetaRefiner
from sb3_refine.seeding import EpisodeSeeds

ROBUST: dict[tuple[str, str], dict[str, Any]] = {
    ("ppo", "LunarLanderContinuous-v2"): {
        "env_kwargs": {"gravity": {"uniform": [-11.99, -2]}, "enable_wind": True, "wind_power": {"uniform": [0, 20]}}
    },
    ("a2c", "Walker2DBulletEnv-v0"): {
        "physics": {"mass": {"log-uniform": [0.7, 1.4]}, "friction": {"log-uniform": [0.5, 2]}}
    },
}
SERIAL: dict[str, Any] = {"n_workers": 1, "backend": "serial"}
N_TEST = 200
N_UPDATES = 40  # of the search

GOALS: dict[str, tuple[str, dict[str, Any]]] = {
    "velocity": ("HalfCheetah-v4", {"goal": {"velocity": {"uniform": [0, 2]}}}),
    "direction": ("HalfCheetah-v4", {"goal": {"direction": {"choice": [-1, 1]}}}),
}
HORIZON = {"env_kwargs": {"max_episode_steps": 200, "ctrl_cost_weight": 0.05}}
VARIANTS: dict[str, dict[str, Any]] = {
    "16 draws": {},
    "64 draws": {"n_draws": 64},
    "fixed std": {"std_learning_rate": 0.0},
    "3 times the gradient steps": {"adaptation": AdaptationSettings(adapt_steps=120)},
}
N_CURVE_TASKS = 16
CURVE_INTERVAL = 10
N_TIMESTEPS = {"velocity": 50_000, "direction": 0}  # of the agent at the start


class Bench:
    """The results so far."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.path = options, options.json
        self.cells: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {}

    def cell(self, name: str, run: Callable[[], dict[str, Any]]) -> None:
        """A cell of the results, run only if it is missing."""
        if name in self.cells:
            return
        started = time.perf_counter()
        self.cells[name] = {**run(), "run": circumstances()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.cells, indent=1) + "\n")
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)


# ---------------------------------------------------------------- robust


def robust(bench: Bench) -> None:
    """One policy for a family of tasks."""
    for (algo, env), tasks in ROBUST.items():
        for seed in bench.options.seeds:
            bench.cell(f"robust {algo} {env} {seed}", lambda a=algo, e=env, t=tasks, s=seed: _robust(bench, a, e, t, s))


def _robust(bench: Bench, algo: str, env: str, tasks: dict[str, Any], seed: int) -> dict[str, Any]:
    original = with_tasks(load_agent(algo, env, bench.options.agents), tasks)
    searched = with_own_policy(original)
    refiner = Refiner(searched, seed=seed, **SERIAL)
    result = refiner.learn(N_UPDATES).result
    assert result is not None and refiner.tested is not None
    refiner.parameters.set_theta(refiner.tested[1])  # accepted or not
    trainer = Trainer(original, seed=seed, **SERIAL)
    trainer.learn(time_limit=result.cpu_time_s)
    judgement = trainer.judgement
    assert judgement is not None
    agents = {"original": original, "search": searched, "train": judgement.agents[1]}
    return {
        "tasks": tasks,
        "decisions": {"search": result.decision, "train": judgement.result.decision},
        "family": _compared(agents, seed),
        "nominal": _compared({name: without_tasks(agent) for name, agent in agents.items()}, seed),
        **{
            f"{name} {figure}": getattr(found, figure)
            for name, found in (("search", result), ("train", judgement.result))
            for figure in ("rollouts", "env_steps", "wall_time_s", "cpu_time_s")
        },
    }


def _compared(agents: dict[str, Agent], seed: int) -> dict[str, Any]:
    """On fresh tasks, of another seed than the test."""
    seeds = EpisodeSeeds(1000 + seed).take("test", N_TEST)
    with open_targets(list(agents.values()), "serial") as targets:
        found = {name: target.run(seeds) for name, target in zip(agents, targets, strict=True)}
    return {
        name: {
            **{key: one.summary()[key] for key in ("mean_return", "std_return", "cvar10_return", "failure_rate")},
            "difference": asdict(paired_difference(found["original"], one)),
        }
        for name, one in found.items()
    }


# ---------------------------------------------------------------- meta


def meta(bench: Bench) -> None:
    """Curves of meta-learning from scratch."""
    for goal in bench.options.goals:
        for variant in bench.options.variants:
            for seed in bench.options.seeds:
                name = f"meta {goal} {variant} {seed}"
                bench.cell(name, lambda g=goal, v=variant, s=seed: _curve(bench, g, v, s))


def _curve(bench: Bench, goal: str, variant: str, seed: int) -> dict[str, Any]:
    agent = _start(bench, goal, seed)
    refiner = MetaRefiner(agent, seed=seed, n_eval_episodes=20, **SERIAL, **VARIANTS[variant])
    curve: list[dict[str, float]] = []
    started, seeds = time.process_time(), EpisodeSeeds(2000 + seed).take("test", N_CURVE_TASKS)
    update = refiner._update

    def measured(search: Any, evaluator: Any) -> Any:
        if search.n_updates_done % CURVE_INTERVAL == 0:
            curve.append(_point(refiner, search, evaluator, seeds, started))
        return update(search, evaluator)

    refiner._update = measured  # type: ignore[method-assign]
    refiner.learn(10_000, time_limit=bench.options.minutes * 60)
    assert refiner.result is not None and refiner.search is not None
    with SerialEvaluator(refiner.make_task()) as evaluator:
        curve.append(_point(refiner, refiner.search, evaluator, seeds, started))
    result = refiner.result
    return {
        "settings": {key: value for key, value in refiner.settings.items() if isinstance(value, (int, float, str))},
        "curve": curve,
        "decision": result.decision,
        "rollouts": result.rollouts,
        "env_steps": result.env_steps,
        "cpu_time_s": result.cpu_time_s,
    }


def _start(bench: Bench, goal: str, seed: int) -> Agent:
    """The agent that meta-learning begins with; one that has been trained is kept beside the results."""
    (env, tasks), n_timesteps = GOALS[goal], N_TIMESTEPS[goal]
    common: dict[str, Any] = {"policy_kwargs": {"net_arch": [100, 100]}, "seed": seed, "device": "cpu"}
    if not n_timesteps:
        model: Any = DDPG("MlpPolicy", env, buffer_size=1, **common)
        return with_tasks(agent_from_model(model, env), {**HORIZON, **tasks})
    noise = NormalActionNoise(np.zeros(6), np.full(6, 0.2))
    model = TD3("MlpPolicy", env, learning_starts=2_000, action_noise=noise, gamma=0.98, **common)
    agent = with_tasks(agent_from_model(model, env), {**HORIZON, **tasks})
    path = bench.path.with_name(f"start_{goal}_{seed}.zip")
    if path.exists():
        model.set_parameters(path)
    else:
        model.set_env(DummyVecEnv([lambda: Monitor(agent.recipe.build())]))
        model.learn(n_timesteps).save(path)
    return agent


def _point(refiner: MetaRefiner, search: Any, evaluator: Any, seeds: list[int], started: float) -> dict[str, float]:
    """The present distribution on held-out tasks."""
    theta = search.optimizer.theta
    episodes = EvaluationTarget(evaluator, theta.copy()).run(seeds).episodes
    _, std = refiner.shape.split(theta)
    return {
        "update": search.n_updates_done,
        "env_steps": search.n_env_steps,
        "cpu_time_s": time.process_time() - started,
        "before": float(np.mean([episode.metrics[BEFORE] for episode in episodes])),
        "after": float(np.mean([episode.episode_return for episode in episodes])),
        "actor_std": float((std / refiner.search.optimizer._first_std)[: refiner.shape.n_actor].mean()),  # type: ignore[union-attr]
    }


# ---------------------------------------------------------------- signal


def signal(bench: Bench) -> None:
    """What an update of meta-es can learn from."""
    for goal in bench.options.goals:
        for seed in bench.options.seeds:
            bench.cell(f"signal {goal} {seed}", lambda g=goal, s=seed: _signal(bench, g, s))


def _signal(bench: Bench, goal: str, seed: int) -> dict[str, Any]:
    refiner = MetaRefiner(_start(bench, goal, seed), seed=seed, **SERIAL)
    population, seeds = refiner._optimizer(1).ask(), EpisodeSeeds(3000 + seed).take("search", N_CURVE_TASKS)
    with SerialEvaluator(refiner.make_task()) as evaluator:
        episodes = evaluator.evaluate(population, [seeds] * len(population))
    returns = np.array([[episode.episode_return for episode in own] for own in episodes])
    scores = (returns - returns.mean(axis=0)) / returns.std(axis=0)  # in each task, over the draws
    halves = scores[:, ::2].mean(axis=1), scores[:, 1::2].mean(axis=1)
    return {
        "n_draws": len(population),
        "n_tasks": len(seeds),
        "mean_return": float(returns.mean()),
        "std_over_draws": float(returns.std(axis=0).mean()),
        "correlation_of_halves": float(np.corrcoef(*halves)[0, 1]),
    }


SECTIONS = {"robust": robust, "meta": meta, "signal": signal}


def main() -> None:
    options_parser = parser("Families of tasks.")
    options_parser.add_argument("sections", nargs="+", choices=SECTIONS)
    options_parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options_parser.add_argument("--goals", nargs="+", default=list(GOALS), choices=GOALS)
    options_parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    options_parser.add_argument("--minutes", type=float, default=60.0, help="of each curve of meta")
    options = options_parser.parse_args()
    if options.json is None:
        options_parser.error("--json: name the file of the results")
    logging.getLogger("sb3_refine").setLevel(logging.ERROR)
    bench = Bench(options)
    for section in options.sections:
        SECTIONS[section](bench)


if __name__ == "__main__":
    main()
