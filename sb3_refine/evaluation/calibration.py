"""Measures what an optimizer has to know about an agent, on observations of the agent's own episodes."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_refine.agents.agent import Agent
from sb3_refine.evaluators import Evaluator, RolloutTask, SerialEvaluator
from sb3_refine.optimizers import ExplicitPopulation, ScaledOptimizer
from sb3_refine.policies.base import DeterministicPolicy
from sb3_refine.policies.critic_gradient import critic_gradient
from sb3_refine.policies.general import is_stateful
from sb3_refine.policies.noise_scale import noise_scale
from sb3_refine.policies.parameters import PolicyParameters

N_CALIBRATION_EPISODES = 3
_N_OBSERVATIONS = 100


def calibrate(
    optimizer: ScaledOptimizer,
    agent: Agent,
    parameters: PolicyParameters,
    evaluator: Evaluator,
    seeds: Sequence[int],
) -> None:
    """
    Run some episodes of the agent in this process, and measure on their observations what noise does to the actions,
    and, for an optimizer that asks for it, the gradient of the agent's critic.

    :param optimizer: before its first update; gets the units of its noise and the gradient
    :param agent: with the parameters that the search starts from
    :param parameters: those that the search moves
    :param evaluator: has the task; counts the episodes
    :param seeds: of the episodes
    :raises EpisodeError: when an episode fails
    """
    batch, n_steps = observed_batch(agent, parameters.get_theta(), evaluator.task, seeds, evaluator.on_episode)
    evaluator.n_episodes += len(seeds)
    evaluator.n_env_steps += n_steps
    optimizer.scale = noise_scale(agent.model.policy, parameters, batch)
    if optimizer.optimizer.uses_critic_gradient:
        gradient = critic_gradient(agent.model.policy, parameters, batch)
        if gradient is not None:
            optimizer.optimizer.critic_gradient = optimizer.scale * gradient  # by the chain rule


def observed_batch(
    agent: Agent,
    theta: np.ndarray,
    task: RolloutTask,
    seeds: Sequence[int],
    on_episode: Callable[[], object] = lambda: None,
) -> tuple[Any, int]:
    """
    Run some episodes in this process.

    :param agent: whose
    :param theta: its parameters
    :param task: its rollouts
    :param seeds: of the episodes
    :param on_episode: called after each episode
    :return: observations from the episodes, as the policy sees them (the first ones, for a policy whose state runs
        through the episode), and the environment steps
    :raises EpisodeError: when an episode fails
    """
    policy = _Observing(task.policy, in_order=is_stateful(agent.model.policy))
    with SerialEvaluator(replace(task, policy=policy)) as observed:
        observed.on_episode = on_episode
        observed.evaluate(ExplicitPopulation([theta], names=["the unperturbed policy"]), [seeds])
    batch = _batch(policy.observations, agent.observation_space)
    seen = batch if agent.statistics is None else agent.statistics.normalize_obs(batch)
    return seen, observed.n_env_steps


class _Observing(DeterministicPolicy):
    """
    Keeps some of the observations that a policy acts on.

    :param policy: acts
    :param in_order: whether to keep the first ones, as a policy whose state runs through the episode needs them; if
        not, each observation is kept with the same probability
    """

    def __init__(self, policy: DeterministicPolicy, in_order: bool = False):
        self._policy, self._in_order = policy, in_order
        self._rng = np.random.default_rng(0)
        self._n_seen = 0
        self.observations: list[Any] = []

    def __call__(self, observation: Any) -> Any:
        """Reservoir sampling: all observations of an episode of images would take gigabytes."""
        self._n_seen += 1
        place = int(self._rng.integers(self._n_seen))
        if len(self.observations) < _N_OBSERVATIONS:
            self.observations.append(deepcopy(observation))  # environments may reuse their arrays
        elif place < _N_OBSERVATIONS and not self._in_order:
            self.observations[place] = deepcopy(observation)
        return self._policy(observation)

    def set_theta(self, theta: np.ndarray) -> None:
        self._policy.set_theta(theta)

    def begin_episode(self, env: gym.Env) -> None:
        self._policy.begin_episode(env)


def _batch(observations: Sequence[Any], space: spaces.Space) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: _batch([each[key] for each in observations], part) for key, part in space.spaces.items()}
    return np.asarray(observations, dtype=space.dtype)
