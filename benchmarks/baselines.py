"""
Why not simply train on? Ways to improve an agent, each with the CPU time of our default search, all judged alike.

Arms: the original against itself; the best of random perturbations; training on with plain Stable-Baselines3; averages
of its checkpoints; sb3-contrib's ARS from the agent's own network; our search; search and training on in competition
(``--method auto``). One worker each, so that CPU time is wall time. Accepted agents run again on fresh seeds.

A cell that is in the results is not run again: an interrupted run goes on. With --part, two processes take different
agents.

python benchmarks/baselines.py --agents FOLDER --results benchmarks/results/baselines --part 1/2
"""

import json
import logging
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from common import circumstances, parser
from sb3_contrib import ARS
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from sb3_refine import AutoRefiner, RefineError, Refiner, Trainer, load_agent
from sb3_refine.agents.agent import Agent
from sb3_refine.agents.averages import average
from sb3_refine.agents.candidates import NamedAgent, load_candidates
from sb3_refine.agents.copies import with_own_policy, with_theta
from sb3_refine.evaluation.evaluation import paired_difference
from sb3_refine.evaluation.target import open_targets
from sb3_refine.judging import Judge, Judgement, Origin
from sb3_refine.policies.choice import rollout_policy
from sb3_refine.policies.exact import ExactPolicy
from sb3_refine.policies.parameters import PolicyParameters
from sb3_refine.search.result import Result
from sb3_refine.seeding import EpisodeSeeds
from sb3_refine.stopwatch import Stopwatch
from sb3_refine.training.environment import training_env

AGENTS = [
    ("a2c", "HopperBulletEnv-v0"),
    ("ppo", "Walker2DBulletEnv-v0"),
    ("ddpg", "HopperBulletEnv-v0"),
    ("tqc", "Walker2DBulletEnv-v0"),
    ("ppo", "HopperBulletEnv-v0"),
    ("trpo", "Walker2DBulletEnv-v0"),
    ("a2c", "Walker2DBulletEnv-v0"),
    ("a2c", "BipedalWalker-v3"),
    ("ppo", "LunarLanderContinuous-v2"),
    ("tqc", "Hopper-v3"),
    ("dqn", "LunarLander-v2"),
    ("tqc", "MountainCarContinuous-v0"),
]
FRESH = 1_000_003  # the seed of the fresh seeds
SERIAL = {"n_workers": 1}
N_AVERAGE = 5
STD = 0.05  # of the random perturbations, in units of the parameters' own standard deviation in each layer


def perturbations(agent: Agent, judge: Judge, seconds: float, seed: int) -> Judgement:
    """Perturbed agents, a few episodes each, as long as there is time; the eight best go to the verdict."""
    stopwatch, rng = Stopwatch(), np.random.default_rng(seed)
    parameters = PolicyParameters(agent.model.policy)
    theta, seeds = parameters.get_theta(), judge.seeds.take("search", 4)
    scale = np.empty_like(theta)
    for where in parameters.slices().values():
        scale[where] = theta[where].std()
    found: list[tuple[float, Agent]] = []
    n_episodes = n_steps = 0
    while stopwatch.cpu_time_s < seconds:
        batch = [with_theta(agent, theta + STD * scale * rng.standard_normal(theta.size)) for _ in range(32)]
        with judge.open_targets(batch) as targets:
            for candidate, target in zip(batch, targets, strict=True):
                run = target.run(seeds)
                n_episodes, n_steps = n_episodes + len(seeds), n_steps + int(run.lengths.sum())
                found.append((float(np.nan_to_num(run.returns, nan=-np.inf).mean()), candidate))
        found = sorted(found, key=lambda one: one[0], reverse=True)[:8]
    origin = Origin("judge", {}, n_episodes, n_steps)
    return judge.judge([NamedAgent(f"perturbation {i}", one) for i, (_, one) in enumerate(found)], origin=origin)


class OutOfTime(Exception):
    """The time of an arm is up."""


class Snap(BaseCallback):
    """Keeps iterates of ARS, and ends it in time: ARS ignores a callback that returns False."""

    def __init__(self, seconds: float, stopwatch: Stopwatch):
        super().__init__()
        self.thetas: list[np.ndarray] = []
        self._seconds, self._stopwatch = seconds, stopwatch

    def _on_step(self) -> bool:
        if self._stopwatch.cpu_time_s > self._seconds:
            raise OutOfTime
        return True

    def _on_rollout_end(self) -> None:
        self.thetas.append(self.model.weights.numpy().copy())


def contrib_ars(agent: Agent, judge: Judge, seconds: float, seed: int) -> Judgement | None:
    """sb3-contrib's ARS with its defaults, from the network of the agent; None for actors that its policies are not."""
    parameters = PolicyParameters(agent.model.policy)
    exact = rollout_policy(agent.model, parameters, agent.statistics, agent.observation_space)
    if not isinstance(exact, ExactPolicy):
        return None
    _, layers, slices, _ = exact._arguments
    linears = [layer for layer in layers if isinstance(layer, nn.Linear)]
    kinds = [nn.Linear, type(layers[1])] * (len(linears) - 1) + [nn.Linear]
    is_squashed = isinstance(layers[-1], nn.Tanh)
    if [type(layer) for layer in layers] != kinds + [nn.Tanh] * is_squashed or any(x.bias is None for x in linears):
        return None
    stopwatch, env = Stopwatch(), one_env(agent, seed)
    policy_kwargs = {
        "net_arch": [layer.out_features for layer in linears[:-1]],
        "activation_fn": type(layers[1]),
        "squash_output": is_squashed,
    }
    model = ARS("MlpPolicy", env, zero_policy=False, policy_kwargs=policy_kwargs, seed=seed, device="cpu")
    ours = [layer for layer in model.policy.action_net if isinstance(layer, nn.Linear)]
    with th.no_grad():
        for mine, theirs in zip(ours, linears, strict=True):
            mine.weight.copy_(theirs.weight)
            mine.bias.copy_(theirs.bias)
    model.weights = th.nn.utils.parameters_to_vector(model.policy.parameters()).detach()
    snap = Snap(seconds, stopwatch)
    with suppress(OutOfTime):
        model.learn(10**9, snap)
    n_episodes = sum(map(len, env.env_method("get_episode_rewards")))
    env.close()
    thetas = snap.thetas[-1 :: -max(1, len(snap.thetas) // 8)][:8]
    if not thetas:
        return None
    candidates = []
    for number, weights in enumerate(reversed(thetas)):
        theta, start = parameters.get_theta(), 0
        for where in (part for pair in slices for part in pair):  # ARS's order: weight, bias of each layer
            theta[where] = weights[start : start + (where.stop - where.start)]
            start += where.stop - where.start
        candidates.append(NamedAgent(f"iterate {number}", with_theta(agent, theta)))
    return judge.judge(candidates, origin=Origin("judge", {}, n_episodes, model.num_timesteps))


def one_env(agent: Agent, seed: int) -> VecEnv:
    """A single environment with the agent's statistics, frozen."""
    alone = with_own_policy(agent)
    alone.model.n_envs = 1
    return training_env(alone, seed, is_frozen=True)


def train(agent: Agent, seconds: float, seed: int, options: Any) -> dict[str, Judgement]:
    """Training on; and of the same training, the averages of its checkpoints alone."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(agent, seed=seed, n_eval_episodes=options.episodes, **SERIAL)
        n_timesteps = 2 * trainer.default_n_timesteps  # more than there is time for
        trained = trainer.learn(n_timesteps, time_limit=seconds, checkpoint_folder=folder)
        names = trained.settings["candidates"]
        checkpoints = load_candidates([folder], agent)
        judge = Judge(agent, seed=seed, n_eval_episodes=options.episodes, **SERIAL)
        last = NamedAgent("average", average([each.agent for each in checkpoints[-N_AVERAGE:]]))
        n_steps = trained.settings["n_timesteps_done"]
        averaged = judge.judge([last], origin=Origin("judge", {"checkpoints": len(names)}, 0, n_steps))
        return {"train": trained, "average": averaged}


def figures(result: Result, name: str) -> dict[str, Any]:
    """What the table is made of."""
    return {
        "decision": result.decision,
        "reason": result.reason,
        "chosen": name,
        "n_candidates": len(result.candidates) - 1,
        "baseline": result.baseline.summary() if result.baseline else None,
        "refined": result.candidate.summary() if result.candidate else None,
        "paired_difference": asdict(result.paired_difference) if result.paired_difference else None,
        "rollouts": result.rollouts,
        "env_steps": result.env_steps,
        "cpu_time_s": round(result.cpu_time_s, 1),
        "wall_time_s": round(result.wall_time_s, 1),
    }


def fresh(agent: Agent, candidate: Agent, options: Any) -> dict[str, Any]:
    """Original and candidate on seeds that no run knew."""
    seeds = EpisodeSeeds(FRESH).take("test", options.fresh)
    with open_targets([agent, candidate]) as targets:
        before, after = (target.run(seeds) for target in targets)
    difference = paired_difference(before, after, paired=all(target.is_seeded for target in targets))
    return {"baseline": before.summary(), "refined": after.summary(), "paired_difference": asdict(difference)}


def run(algo: str, env: str, seed: int, arm: str, seconds: float, options: Any) -> dict[str, dict[str, Any]]:
    """The cells of an arm: one, but for training, whose averages are an arm of their own."""
    agent = load_agent(algo, env, options.agents)
    if arm == "search":
        start = with_own_policy(agent)
        refiner = Refiner(start, seed=seed, n_eval_episodes=options.episodes, **SERIAL).learn(options.n_updates)
        result = refiner.result
        assert result is not None
        assert refiner.tested is not None
        chosen = next(one["name"] for one in result.candidates if one["chosen"])
        found = figures(result, chosen)
        if result.decision == "refined":
            found["fresh"] = fresh(agent, with_theta(agent, refiner.tested[1]), options)
        return {arm: found}
    judge = Judge(agent, seed=seed, n_eval_episodes=options.episodes, **SERIAL)
    if arm == "train":
        judgements: dict[str, Judgement | None] = dict(train(agent, seconds, seed, options))
    elif arm == "auto":
        refiner = AutoRefiner(agent, seed=seed, n_eval_episodes=options.episodes, **SERIAL)
        judgements = {arm: refiner.learn(time_limit=seconds)}
    elif arm == "original":
        judgements = {arm: judge.judge([NamedAgent("the original itself", with_own_policy(agent))])}
    else:
        judge.evaluate_original()
        left = seconds - judge.seconds_per_episode * judge.settings.n_episodes(8, has_baseline=True)
        judgements = {arm: {"perturbations": perturbations, "ars": contrib_ars}[arm](agent, judge, left, seed)}
    cells = {}
    for name, judgement in judgements.items():
        if judgement is None:
            cells[name] = {"decision": "cannot", "reason": "sb3-contrib's ARS has no such policy"}
            continue
        cells[name] = figures(judgement.result, judgement.name)
        cells[name].update({key: judgement.settings[key] for key in ("rounds", "arms") if key in judgement.settings})
        if judgement.result.decision == "refined":
            cells[name]["fresh"] = fresh(agent, judgement.agent, options)
    if "average" in cells:  # its training is that of the arm before
        cells["average"]["cpu_time_s"] += cells["train"]["cpu_time_s"]
    return cells


ARMS = ("search", "train", "auto", "perturbations", "ars", "original")


def main() -> None:
    description = "Search, training on and others, with the same CPU time."
    options_parser = parser(description)
    options_parser.add_argument("--results", type=Path, default=Path("benchmarks/results/baselines"))
    options_parser.add_argument("--part", default="1/1", help="K/N: every N-th agent, from the K-th")
    options_parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options_parser.add_argument("--episodes", type=int, default=100, help="test episodes")
    options_parser.add_argument("--fresh", type=int, default=500, help="fresh episodes of accepted agents")
    options_parser.add_argument("--n-updates", type=int, help="of the search; the default preset's, if not said")
    options_parser.add_argument("--only", nargs="+", metavar="ALGO-ENV", help="only these agents")
    options_parser.add_argument("--arms", nargs="+", default=ARMS, choices=ARMS)
    options = options_parser.parse_args()
    logging.getLogger("sb3_refine").setLevel(logging.ERROR)
    part, n_parts = map(int, options.part.split("/"))
    options.results.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        for algo, env in AGENTS[part - 1 :: n_parts]:
            if options.only and f"{algo}-{env}" not in options.only:
                continue
            path = options.results / f"{algo}-{env}.json"
            cells = json.loads(path.read_text()) if path.exists() else {}
            for arm in options.arms:
                if f"{arm} {seed}" in cells:
                    continue
                seconds = cells.get(f"search {seed}", {}).get("cpu_time_s", 0.0)
                started = time.perf_counter()
                try:
                    found_by_name = run(algo, env, seed, arm, seconds, options)
                except RefineError as error:
                    found_by_name = {arm: {"decision": "cannot", "reason": str(error)}}
                for name, found in found_by_name.items():
                    cells[f"{name} {seed}"] = {**found, "run": circumstances()}
                    print(
                        f"{algo} {env} {name} {seed}: {line(found)}, {time.perf_counter() - started:.0f} s", flush=True
                    )
                path.write_text(json.dumps(cells, indent=1) + "\n")


def line(found: dict[str, Any]) -> str:
    if not found.get("refined"):
        return f"{found['decision']} ({found['reason']})"
    before, after = (found[name]["mean_return"] for name in ("baseline", "refined"))
    return f"{found['decision']}: {before:.1f} -> {after:.1f} by {found['chosen']}, {found['cpu_time_s']} s of CPU time"


if __name__ == "__main__":
    main()
