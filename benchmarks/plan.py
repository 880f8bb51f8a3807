"""
Planning as a teacher: agents, the same with tree search at decision time, and what they have learned from planning.

Weak agents are trained here for a few steps; the others are of the Zoo. Each cell: the return of the agent, of the
agent with searches of 16, 64 and 256 simulations, and of the agent of `--method plan` without search, with its verdict;
the random search and training on get as many environment steps. A cell that is in the results is not run again.

python benchmarks/plan.py --agents FOLDER --json FILE
"""

import argparse
import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from common import circumstances, parser
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_refine import Planner, Refiner, Trainer, load_agent
from sb3_refine.agents.agent import Agent
from sb3_refine.agents.copies import with_own_policy
from sb3_refine.agents.from_model import agent_from_model
from sb3_refine.evaluation.target import open_targets
from sb3_refine.judging import Judgement
from sb3_refine.planning.task import open_planning_targets
from sb3_refine.search.result import Result
from sb3_refine.seeding import EpisodeSeeds

PUSH = 50  # steps between two pushes


class Pushed(gym.Wrapper):
    """CartPole whose cart gets a push to a random side every 50 steps."""

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self._n_steps = 0
        return self.env.reset(**kwargs)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self._n_steps += 1
        if self._n_steps % PUSH == 0:
            inner: Any = self.env.unwrapped
            change = np.array([0, inner.np_random.choice([-1.0, 1.0]), 0, 0])
            inner.state = tuple(np.array(inner.state) + change)
        return self.env.step(action)


def frozen_lake(is_slippery: bool) -> gym.Env:
    return gym.make("FrozenLake-v1", map_name="8x8", is_slippery=is_slippery)


def door_key() -> gym.Env:
    from minigrid.wrappers import FlatObsWrapper

    return FlatObsWrapper(gym.make("MiniGrid-DoorKey-5x5-v0"))


def breakout() -> gym.Env:
    import ale_py

    gym.register_envs(ale_py)
    return gym.make("ALE/Breakout-v5", obs_type="ram", max_episode_steps=500)


def pushed() -> gym.Env:
    return Pushed(gym.make("CartPole-v1"))


@dataclass(frozen=True)
class Cell:
    """
    An agent, its environment, and how much is run.

    :param make: the environment
    :param zoo: algorithm and environment of a Zoo agent; None for a PPO agent that is trained here
    :param n_timesteps: of that training, in its own environment
    :param train_in: the environment of that training, if it is another one
    :param n_episodes: of each search at decision time
    :param n_simulations: of these
    :param planner: settings of the planner
    """

    make: Callable[[], gym.Env]
    zoo: tuple[str, str] | None = None
    n_timesteps: int = 0
    train_in: Callable[[], gym.Env] | None = None
    n_episodes: int = 5
    n_simulations: tuple[int, ...] = (16, 64)
    planner: dict[str, Any] = field(default_factory=lambda: {"n_rounds": 4, "n_episodes": 4})


CELLS = {
    "weak ppo FrozenLake 8x8": Cell(lambda: frozen_lake(False), n_timesteps=5_000, n_simulations=(16, 64, 256)),
    "weak ppo FrozenLake 8x8, slippery": Cell(lambda: frozen_lake(True), n_timesteps=100_000),
    "weak ppo MiniGrid-DoorKey-5x5": Cell(door_key, n_timesteps=20_000),
    "weak ppo Acrobot": Cell(lambda: gym.make("Acrobot-v1"), n_timesteps=20_000),
    "weak ppo CartPole": Cell(lambda: gym.make("CartPole-v1"), n_timesteps=8_192, n_simulations=(16, 64, 256)),
    "ppo CartPole, pushed": Cell(
        pushed,
        n_timesteps=30_000,
        train_in=lambda: gym.make("CartPole-v1"),
    ),
    "dqn CartPole (Zoo), pushed": Cell(pushed, zoo=("dqn", "CartPole-v1")),
    "dqn MountainCar (Zoo)": Cell(
        lambda: gym.make("MountainCar-v0"),
        zoo=("dqn", "MountainCar-v0"),
    ),
    "weak ppo Breakout (RAM)": Cell(
        breakout,
        n_timesteps=20_000,
        n_episodes=3,
        n_simulations=(16,),
        planner={"n_simulations": 16, "n_rounds": 2, "n_episodes": 4},
    ),
}


def agent_of(cell: Cell, seed: int, agents: Any) -> Agent:
    """The agent of a cell, made or loaded."""
    if cell.zoo is not None:
        return agent_from_model(load_agent(*cell.zoo, agents).model, cell.make)
    env = make_vec_env(cell.train_in or cell.make, n_envs=4, seed=seed)
    model = PPO("MlpPolicy", env, n_steps=128, seed=seed, device="cpu").learn(cell.n_timesteps)
    return agent_from_model(model, cell.make)


def run(cell: Cell, seed: int, agents: Any) -> dict[str, Any]:
    """One run of a cell."""
    agent = agent_of(cell, seed, agents)
    planner = Planner(agent, seed=seed, backend="serial", **cell.planner)
    judgement = planner.learn()
    steps = sum(each.n_env_steps for each in planner.rounds)
    mean_length = float(judgement.result.baseline.lengths.mean()) if judgement.result.baseline else 1.0
    return {
        "plan": _verdict(judgement.result),
        "rounds": [asdict(each) for each in planner.rounds],
        "by search": _by_search(cell, agent, seed),
        "random search": _verdict(_searched(agent, seed, steps, mean_length)),
        "train": _verdict(_trained(agent, seed, steps).result),
    }


def _by_search(cell: Cell, agent: Agent, seed: int) -> dict[str, Any]:
    """At decision time, on fresh seeds."""
    seeds = EpisodeSeeds(1000 + seed).take("test", cell.n_episodes)
    with open_targets([agent], "serial") as (target,):
        found = {"none": target.run(seeds)}
    for n_simulations in cell.n_simulations:
        with open_planning_targets([agent], n_simulations, "serial") as (target,):
            found[str(n_simulations)] = target.run(seeds)
    return {
        name: {
            "mean_return": float(each.returns.mean()),
            "std_return": float(each.returns.std()),
            "env_steps": sum(episode.n_env_steps for episode in each.episodes),
        }
        for name, each in found.items()
    }


def _searched(agent: Agent, seed: int, steps: int, mean_length: float) -> Result:
    """As long as the original's episodes suggest, but ended where episodes that get longer have used the steps up."""
    refiner = Refiner(with_own_policy(agent), seed=seed, backend="serial")
    refiner.learn(max(1, int(steps / mean_length) // refiner.episodes_per_update), _Stop(refiner, steps))
    assert refiner.result is not None
    return refiner.result


class _Stop(BaseCallback):
    """Ends a search after some environment steps."""

    def __init__(self, refiner: Refiner, steps: int):
        super().__init__()
        self._refiner, self._steps = refiner, steps

    def _on_step(self) -> bool:
        search = self._refiner.search
        return search is None or search.n_env_steps < self._steps


def _trained(agent: Agent, seed: int, steps: int) -> Judgement:
    return Trainer(agent, seed=seed, backend="serial").learn(steps)


def _verdict(result: Result) -> dict[str, Any]:
    difference = result.paired_difference
    return {
        "decision": result.decision,
        "original": result.baseline.summary() if result.baseline else None,
        "candidate": result.candidate.summary() if result.candidate else None,
        "difference": asdict(difference) if difference else None,
        **{name: getattr(result, name) for name in ("rollouts", "env_steps", "cpu_time_s", "wall_time_s")},
    }


def main() -> None:
    options_parser = parser("Planning as a teacher.")
    options_parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options_parser.add_argument("--only", nargs="+", default=list(CELLS), choices=CELLS, metavar="CELL")
    options: argparse.Namespace = options_parser.parse_args()
    if options.json is None:
        options_parser.error("--json: name the file of the results")
    logging.getLogger("sb3_refine").setLevel(logging.ERROR)
    results: dict[str, Any] = json.loads(options.json.read_text()) if options.json.exists() else {}
    for seed in options.seeds:
        for name in options.only:
            key, started = f"{name} {seed}", time.perf_counter()
            if key in results:
                continue
            results[key] = {**run(CELLS[name], seed, options.agents), "run": circumstances()}
            options.json.write_text(json.dumps(results, indent=1) + "\n")
            of_plan = results[key]["plan"]
            returns = [f"{of_plan[which]['mean_return']:.4g}" for which in ("original", "candidate")]
            print(key, *returns, of_plan["decision"], f"{time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
