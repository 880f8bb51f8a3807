"""
The last layer alone, by CMA-ES (de Bruin et al., 2020, "Fine-tuning deep RL with gradient-free optimization"): an agent
of the Zoo with discrete actions, and an agent that sees pixels.

The noise at the start is measured in two ways: by how much it changes the actions (or, with discrete actions, the
values), as the optimizer does it, and, with discrete actions, by the share of observations in which another action is
taken, as in the paper. The table has both for each row.

The agent that sees pixels, PPO with the wrappers of the Zoo on CarRacing-v3, is trained first, once, into --pixels.

python benchmarks/head_tuning.py --json benchmarks/results/head_tuning.json
"""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from common import parser, show
from gymnasium.wrappers import GrayscaleObservation, MaxAndSkipObservation, ResizeObservation
from searching import before, described, run_missing, search_and_test
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv, VecFrameStack

from sb3_refine import Agent, Refiner, load_agent
from sb3_refine.agents.from_model import agent_from_model
from sb3_refine.evaluation import calibration
from sb3_refine.policies.noise_scale import noise_scale
from sb3_refine.policies.parameters import action_scores

PIXELS = "ppo CarRacing-v3"
ROWS = [
    *(("dqn LunarLander-v2", "change of the values", level) for level in (0.05, 0.1, 0.25, 0.5)),
    *(("dqn LunarLander-v2", "share of other actions", level) for level in (0.1, 0.25, 0.5)),
    *((PIXELS, "change of the actions", level) for level in (0.1, 0.25)),
]


def make_pixel_env() -> gym.Env:
    """As the Zoo makes it: every second frame, 64 by 64, grey."""
    env = MaxAndSkipObservation(gym.make("CarRacing-v3"), skip=2)
    return GrayscaleObservation(ResizeObservation(env, (64, 64)), keep_dim=True)


def pixel_agent(path: Path, n_steps: int) -> Agent:
    """The agent, trained if it is not there; with the Zoo's hyperparameters, but for less time."""
    env = VecFrameStack(make_vec_env(make_pixel_env, n_envs=2, vec_env_cls=SubprocVecEnv), n_stack=2)
    if not path.exists():
        policy = {"log_std_init": -2, "ortho_init": False, "activation_fn": th.nn.GELU, "net_arch": [256]}
        model = PPO(
            "CnnPolicy", env, batch_size=128, n_steps=1024, gae_lambda=0.95, gamma=0.99, n_epochs=10, ent_coef=0.0,
            sde_sample_freq=4, max_grad_norm=0.5, vf_coef=0.5, learning_rate=1e-4, use_sde=True, clip_range=0.2,
            policy_kwargs=policy, seed=0, verbose=1,
        )  # fmt: skip
        model.learn(n_steps).save(path)
    env.close()
    return agent_from_model(PPO.load(path), VecFrameStack(make_vec_env(make_pixel_env), n_stack=2))


class Noise:
    """Measures the noise in both ways, and sets its unit so that ``sigma=level`` is that much in one of them."""

    def __init__(self, measure: str, level: float):
        self.measure, self.level = measure, level
        self.change, self.share = level, float("nan")

    def __call__(self, policy: Any, parameters: Any, observations: Any) -> np.ndarray:
        scale, theta = noise_scale(policy, parameters, observations), parameters.get_theta()
        if not isinstance(policy.action_space, gym.spaces.Discrete):
            return scale
        batch, _ = policy.obs_to_tensor(observations)
        draws = np.random.default_rng(0).standard_normal((8, theta.size), dtype=np.float32)

        def share(change: float) -> float:
            """Of the observations, in which noise of that size leads to another action."""
            actions = []
            with th.no_grad():
                for noise in (np.zeros_like(theta), *(np.float32(change) * scale * draw for draw in draws)):
                    parameters.set_theta(theta + noise)
                    actions.append(action_scores(policy, batch).argmax(dim=1).cpu().numpy())
            parameters.set_theta(theta)
            return float(np.mean(np.stack(actions[1:]) != actions[0]))

        if self.measure == "share of other actions":
            self.change = _bisect(share, self.level)
        self.share = share(self.change)
        return scale * np.float32(self.change / self.level)


def _bisect(share: Callable[[float], float], level: float) -> float:
    low, high = 1e-6, 10.0
    for _ in range(40):
        middle = np.sqrt(low * high)
        low, high = (middle, high) if share(middle) < level else (low, middle)
    return float(low)


def run(
    agent: str,
    measure: str,
    level: float,
    seed: int,
    budget: int,
    episodes_per_candidate: int,
    test_episodes: int,
    options: Any,
) -> dict[str, Any]:
    """One search and its verdict."""
    is_pixels = agent == PIXELS
    loaded = (
        pixel_agent(options.pixels, options.pixel_steps) if is_pixels else load_agent(*agent.split(), options.agents)
    )
    refiner = Refiner(
        loaded,
        optimizer="cma-es",
        parameters="head",
        sigma=level,
        seed=seed,
        episodes_per_candidate=episodes_per_candidate,
        n_eval_episodes=test_episodes,
    )
    calibration.noise_scale = noise = Noise(measure, level)
    row = search_and_test(refiner, budget // refiner.episodes_per_update)
    return {**row, "n_parameters": refiner.parameters.size, "change": noise.change, "share": noise.share}


def table(results: list[dict[str, Any]]) -> None:
    """One row for each noise."""
    rows = []
    for agent, measure, level in ROWS:
        own = [row for row in results if (row["agent"], row["measure"], row["level"]) == (agent, measure, level)]
        if own:
            noise = f"{level:g} {measure}"
            rows.append(
                [agent, noise, f"{own[0]['change']:.2g}", f"{own[0]['share']:.2g}", before(own), described(own)]
            )
    show(
        "mean return on held-out seeds",
        ["agent", "noise", "change of actions or values", "share of other actions", "original", "CMA-ES on the head"],
        rows,
    )


def main() -> None:
    options_parser = parser("CMA-ES on the last layer.")
    options_parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options_parser.add_argument("--only", nargs="+", metavar="'ALGO ENV'", default=[agent for agent, *_ in ROWS])
    options_parser.add_argument("--rollouts", type=int, default=2560, help="of a search")
    options_parser.add_argument("--episodes-per-candidate", type=int, default=4)
    options_parser.add_argument("--episodes", type=int, default=100, help="test episodes")
    options_parser.add_argument("--pixels", type=Path, default=Path("pixels.zip"), help="the agent that sees pixels")
    options_parser.add_argument("--pixel-steps", type=int, default=100_000, help="of its training")
    options_parser.add_argument("--pixel-rollouts", type=int, default=640, help="of its search")
    options_parser.add_argument("--pixel-episodes", type=int, default=1, help="of a candidate")
    options = options_parser.parse_args()
    logging.getLogger("sb3_refine").setLevel(logging.ERROR)
    keys = [
        {
            "agent": agent,
            "measure": measure,
            "level": level,
            "seed": seed,
            "budget": options.pixel_rollouts if agent == PIXELS else options.rollouts,
            "episodes_per_candidate": options.pixel_episodes if agent == PIXELS else options.episodes_per_candidate,
            "test_episodes": options.episodes,
        }
        for seed in options.seeds
        for agent, measure, level in ROWS
        if agent in options.only
    ]
    table(run_missing(keys, partial(run, options=options), options.json))


if __name__ == "__main__":
    main()
