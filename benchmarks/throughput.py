"""
Environment steps per second of CPU time of one core, ours and peers', on whole episodes of real agents.

All run the same agent in one process on one thread, episode by episode in turn; ratios are medians of rounds.

- ours: ``RolloutWorker``, as every backend runs it
- evaluate_policy: Stable-Baselines3's, on the Zoo's VecEnv with Monitor
- contrib_ars: the evaluation loop of sb3-contrib's ARS: weights loaded from a vector, then ``evaluate_policy``
- evotorch: EvoTorch's ``GymNE`` (if it is installed), on the same layers in a ``torch.nn.Module``
- limit: the stock ``env.step`` alone, along the actions that the agent took

python benchmarks/throughput.py --agents FOLDER --json benchmarks/results/throughput.json
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from common import parser, show, write
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_refine import Refiner, load_agent
from sb3_refine.envs.normalisation import detached
from sb3_refine.evaluators import Batch, RolloutWorker
from sb3_refine.optimizers import ExplicitPopulation
from sb3_refine.policies.exact import network_of

ROWS = [
    ("ppo", "Walker2DBulletEnv-v0"),
    ("ddpg", "HopperBulletEnv-v0"),
    ("a2c", "HopperBulletEnv-v0"),
    ("tqc", "Hopper-v3"),
    ("ppo", "LunarLanderContinuous-v2"),
    ("a2c", "BipedalWalker-v3"),
    ("tqc", "PandaReach-v1"),
    ("ppo", "MountainCarContinuous-v0"),
    ("dqn", "CartPole-v1"),
]

Peer = Callable[[int], int]
"""Runs the episode of a seed and returns its number of steps."""


def ours(refiner: Refiner) -> Peer:
    worker, batch = RolloutWorker(refiner.make_task()), Batch(ExplicitPopulation([refiner.parameters.get_theta()]))
    return lambda seed: worker.run(batch, (0, seed)).length


def vec_env_of(refiner: Refiner) -> Any:
    env = make_vec_env(refiner.agent.recipe.build)
    if refiner.agent.vec_normalize is not None:
        normalize = VecNormalize.__new__(VecNormalize)
        normalize.__setstate__(detached(refiner.agent.vec_normalize).__getstate__())
        normalize.set_venv(env)
        normalize.training = normalize.norm_reward = False
        return normalize
    return env


def sb3(refiner: Refiner, load_weights: bool) -> Peer:
    env, model = vec_env_of(refiner), refiner.model
    weights = model.policy.parameters_to_vector()

    def run(seed: int) -> int:
        env.seed(seed)
        if load_weights:
            model.policy.load_from_vector(weights)
        _, lengths = evaluate_policy(model, env, n_eval_episodes=1, return_episode_rewards=True, warn=False)
        return lengths[0]

    return run


def limit(refiner: Refiner) -> Peer:
    """The stock step alone; the agent's actions are recorded outside the clock."""
    task = refiner.make_task()
    env, policy = task.recipe.__class__(**{**vars(task.recipe), "accelerated": False}).build(), task.policy
    recorded: dict[int, list[Any]] = {}
    for seed in SEEDS:
        actions = recorded[seed] = []
        observation, _ = env.reset(seed=seed)
        done = False
        while not done:
            actions.append(policy(observation))
            observation, _, terminated, truncated, _ = env.step(actions[-1])
            done = terminated or truncated

    def run(seed: int) -> int:
        env.reset(seed=seed)
        for action in recorded[seed]:
            env.step(action)
        return len(recorded[seed])

    return run


class Module(th.nn.Module):
    """The agent as EvoTorch wants it: normalisation and layers; EvoTorch clips to the bounds itself."""

    def __init__(self, refiner: Refiner, keys: list[str | None]):
        super().__init__()
        self.layers = th.nn.Sequential(*network_of(refiner.model.policy).layers)
        self.statistics = refiner.agent.vec_normalize
        if self.statistics is not None:
            parts = [self.statistics.obs_rms[key] if key else self.statistics.obs_rms for key in keys]
            variance = np.concatenate([part.var for part in parts])
            self.mean = th.as_tensor(np.concatenate([part.mean for part in parts]), dtype=th.float32)
            self.std = th.as_tensor(np.sqrt(variance + self.statistics.epsilon), dtype=th.float32)

    def forward(self, observation: th.Tensor) -> th.Tensor:
        if self.statistics is not None:
            clip = float(self.statistics.clip_obs)
            observation = ((observation - self.mean) / self.std).clamp(-clip, clip)
        return self.layers(observation)


class Flat(gym.ObservationWrapper):
    """EvoTorch takes no Dict observations: concatenate their entries, in the order of the agent."""

    def __init__(self, env: gym.Env, keys: list[str]):
        super().__init__(env)
        self.keys = keys
        self.observation_space = gym.spaces.flatten_space(env.observation_space)

    def observation(self, observation: Any) -> np.ndarray:
        return np.concatenate([observation[key] for key in self.keys])


def evotorch(refiner: Refiner) -> Peer | None:
    try:
        from evotorch.neuroevolution import GymNE
    except ImportError:
        return None
    keys = network_of(refiner.model.policy).keys

    def make_env() -> gym.Env:
        env = refiner.agent.recipe.build()
        return env if keys == [None] else Flat(env, keys)

    module = Module(refiner, keys)
    problem = GymNE(make_env, module, observation_normalization=False, num_actors=0)
    batch = problem.generate_batch(1)
    batch.set_values(th.nn.utils.parameters_to_vector(module.parameters()).detach()[None])

    def run(seed: int) -> int:
        before = problem.interaction_count
        problem.evaluate(batch)
        return problem.interaction_count - before

    return run


SEEDS = range(100, 104)


def compare(algo: str, env: str, options: Any) -> dict[str, Any]:
    refiner = Refiner(load_agent(algo, env, options.agents), backend="serial")
    peers = {
        "ours": ours(refiner),
        "evaluate_policy": sb3(refiner, load_weights=False),
        "contrib_ars": sb3(refiner, load_weights=True),
        "evotorch": evotorch(refiner),
        "limit": limit(refiner),
    }
    running = {name: run for name, run in peers.items() if run is not None}
    speeds: dict[str, list[float]] = {name: [] for name in running}
    for round_ in range(options.rounds + 1):
        n_steps, seconds = dict.fromkeys(running, 0), dict.fromkeys(running, 0.0)
        for seed in SEEDS:  # in turn by the episode: the machine's pace changes from second to second
            for name, run in running.items():
                start, target = time.process_time(), n_steps[name] + options.min_steps / len(SEEDS)
                n_steps[name] += run(seed)
                while n_steps[name] < target:  # short episodes: more of them
                    n_steps[name] += run(seed)
                seconds[name] += time.process_time() - start
        if round_ > 0:  # the first warms up
            for name in running:
                speeds[name].append(n_steps[name] / seconds[name])
    ratios = {
        name: statistics.median(a / b for a, b in zip(speeds["ours"], others, strict=True))
        for name, others in speeds.items()
        if name != "ours"
    }
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    return {"algo": algo, "env": env, "steps_per_cpu_s": medians, "ours_relative_to": ratios}


def main() -> None:
    options = parser(__doc__.splitlines()[1])
    options.add_argument("--rounds", type=int, default=5, help="counted rounds")
    options.add_argument("--min-steps", type=int, default=2000, help="steps of each peer in a round, at least")
    options.add_argument("--only", nargs="*", help="environments")
    options = options.parse_args()
    th.set_num_threads(1)
    rows = [row for row in ROWS if not options.only or row[1] in options.only]
    results = [compare(algo, env, options) for algo, env in rows]
    peers = ["evaluate_policy", "contrib_ars", "evotorch", "limit"]
    show(
        "steps per CPU second, and ours relative to each",
        ["agent", "ours", *(f"{peer} (ours x)" for peer in peers)],
        [
            [
                f"{r['algo']} {r['env']}",
                f"{r['steps_per_cpu_s']['ours']:.0f}",
                *(
                    f"{r['steps_per_cpu_s'][p]:.0f} ({r['ours_relative_to'][p]:.2f})"
                    if p in r["steps_per_cpu_s"]
                    else "-"
                    for p in peers
                ),
            ]
            for r in results
        ],
    )
    write(options.json, results)


if __name__ == "__main__":
    main()
