"""Adaptation to one task: actors explore, their mean learns from what they saw. One job of a worker."""

import copy
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import TD3
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecNormalize

from sb3_refine.agents.agent import Agent
from sb3_refine.agents.copies import with_own_policy
from sb3_refine.envs.task_env import same_task
from sb3_refine.errors import RefineError, check_count
from sb3_refine.evaluators.worker import NextEnv
from sb3_refine.meta.distribution import Shape
from sb3_refine.policies.base import DeterministicPolicy
from sb3_refine.policies.parameters import FlatParameters, PolicyParameters
from sb3_refine.rollouts.episode import N_ENV_STEPS, Episode
from sb3_refine.rollouts.metrics import Metric
from sb3_refine.rollouts.rollout import rollout, rollout_with_metrics
from sb3_refine.seeding import derived_seed, seed_globals

ALGOS = ("ddpg", "td3")

_PROGRESS_REMAINING = 0.1  # of a learning-rate schedule: at its end, many are 0; as in training on

CRITIC_ERROR, BEFORE = "critic_error", "return_before"
"""Metrics of an adaptation: mean squared error of the critic's values, and the return before the gradient steps."""


@dataclass(frozen=True)
class AdaptationSettings:
    """
    How an agent adapts to a task.

    :param adapt_episodes: episodes that explore the task, each by another actor, the paper's K
    :param adapt_steps: gradient steps of Stable-Baselines3's own ``train``
    :param batch_size: transitions of each gradient step
    :param adapt_learning_rate: of actor and critic; None for that of the agent, of a schedule where a tenth of the
        training was left
    :raises RefineError: when a setting is out of range
    """

    adapt_episodes: int = 20
    adapt_steps: int = 40
    batch_size: int = 100
    adapt_learning_rate: float | None = None

    def __post_init__(self) -> None:
        check_count("adapt_episodes", self.adapt_episodes, 1)
        check_count("adapt_steps", self.adapt_steps, 0)
        check_count("batch_size", self.batch_size, 1)
        rate = self.adapt_learning_rate
        if rate is not None and not (isinstance(rate, (int, float)) and 0 < rate < math.inf):
            raise RefineError(f"adapt_learning_rate: expected a positive number, got {rate!r}")


def learner_of(agent: Agent) -> TD3:
    """
    :param agent: of DDPG or TD3
    :return: a copy of the model that can be sent to workers: without replay buffer and environment
    :raises RefineError: for other algorithms
    """
    if agent.algo not in ALGOS:
        needed = " or ".join(ALGOS)
        raise RefineError(f"algo: meta-es needs an agent of {needed}, whose updates adapt it; got {agent.algo}")
    space = agent.observation_space
    if not isinstance(space, spaces.Box) or len(space.shape) != 1 or agent.recipe.vec_wrappers:
        raise RefineError(f"env: meta-es needs observations that are vectors, without stacks of frames; got {space}")
    model: Any = copy.copy(with_own_policy(agent).model)
    model.policy = model.policy.to("cpu")
    model.device = th.device("cpu")
    model._create_aliases()
    model._current_progress_remaining = max(model._current_progress_remaining, _PROGRESS_REMAINING)
    model.replay_buffer = model.env = model._vec_normalize_env = model.ep_info_buffer = model.ep_success_buffer = None
    model.action_noise = None
    model._logger = Logger(None, [])
    return model


class AdaptingPolicy(DeterministicPolicy):
    """
    A policy whose parameters are a distribution, or a draw from one, and whose episode is an adaptation: explorers run
    one episode each, gradient steps follow, then the adapted actor runs the episode that counts.

    :param policy: runs the actor in an environment
    :param learner: see :func:`learner_of`
    :param settings: how to adapt
    :param noise_seed: of the noise table
    :param statistics: of the agent, frozen, or None
    """

    def __init__(
        self,
        policy: DeterministicPolicy,
        learner: TD3,
        settings: AdaptationSettings,
        noise_seed: int,
        statistics: VecNormalize | None,
    ):
        self.policy, self.learner, self.settings, self.noise_seed = policy, learner, settings, noise_seed
        self._statistics = statistics
        self.normalisation = policy.normalisation
        self.shape = shape_of(learner, settings)
        if self.shape.drawn_size == 2 * self.shape.size:
            n = settings.adapt_episodes
            raise RefineError(f"adapt_episodes: {n} actors and a critic are as long as a distribution; choose {n + 1}")
        self._theta = np.empty(0, dtype=np.float32)

    def __call__(self, observation: Any) -> Any:
        """:return: the action of the actor that acts now"""
        return self.policy(observation)

    def set_theta(self, theta: np.ndarray) -> None:
        """:param theta: means and standard deviations; or the explorers and the critic of a draw"""
        self._theta = theta

    def begin_episode(self, env: gym.Env) -> None:
        """See :meth:`DeterministicPolicy.begin_episode`."""
        self.policy.begin_episode(env)

    def transitions(self) -> "Transitions":
        """:return: a store for transitions, empty"""
        return Transitions(self._statistics)

    def draw(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """
        :param seed: of the episode, which decides the draw where the parameters are a distribution
        :return: the explorers and the critic
        """
        shape = self.shape
        if self._theta.size == 2 * shape.size:
            return shape.draw(self._theta, shape.keys(seed), self.noise_seed)
        if self._theta.size != shape.drawn_size:
            raise ValueError(f"theta: expected {2 * shape.size} or {shape.drawn_size} numbers, got {self._theta.size}")
        n = shape.n_explorers * shape.n_actor
        return self._theta[:n].reshape(shape.n_explorers, shape.n_actor), self._theta[n:]


def shape_of(learner: TD3, settings: AdaptationSettings) -> Shape:
    """
    :param learner: of an agent
    :param settings: how it adapts
    :return: the sizes of a draw
    """
    actor, critic = PolicyParameters(learner.policy), critic_parameters(learner)
    return Shape(actor.size, critic.size, settings.adapt_episodes)


def critic_parameters(model: Any) -> FlatParameters:
    """
    :param model: of DDPG or TD3
    :return: the parameters of its critics
    """
    return FlatParameters(dict(model.critic.named_parameters()))


def adapted_episode(
    policy: DeterministicPolicy, next_env: NextEnv, seed: int, metrics: Mapping[str, Metric]
) -> Episode:
    """
    Adapt to the task of a seed, and run the seed's episode with the adapted actor. All random numbers, those of torch
    and of the replay buffer too, come from the seed.

    :param policy: an :class:`AdaptingPolicy`
    :param next_env: gives the environment of each episode
    :param seed: of the episode and of everything random
    :param metrics: of the last episode
    :return: the last episode, with :data:`CRITIC_ERROR`, :data:`BEFORE` and the environment steps of all episodes
        beside the metrics asked for
    """
    assert isinstance(policy, AdaptingPolicy)
    actors, critic = policy.draw(seed)
    transitions, last = policy.transitions(), policy.transitions()
    explored = explore(policy, actors, transitions, next_env, seed)
    if any(math.isnan(each.episode_return) for each in explored):
        return explored[-1]._replace(episode_return=math.nan)
    start = actors.mean(axis=0)
    policy.policy.set_theta(start)
    env = next_env(seed)
    with same_task(env, seed):
        before = rollout(policy.policy, env, seed)
    adapted = gradient_steps(policy.learner, start, critic, transitions, policy.settings, seed)
    policy.policy.set_theta(adapted)
    env = next_env(seed)
    with same_task(env, seed):
        episode = rollout_with_metrics(policy.policy, Watched(env, last), seed, metrics)
    found = {
        CRITIC_ERROR: critic_error(policy.learner, last),
        BEFORE: before.episode_return,
        N_ENV_STEPS: sum(each.length for each in (*explored, before, episode)),
    }
    return episode._replace(metrics={**episode.metrics, **found})


def explore(
    policy: "AdaptingPolicy", actors: np.ndarray, transitions: "Transitions", next_env: NextEnv, seed: int
) -> list[Episode]:
    """
    :param policy: runs the actors
    :param actors: one for each episode, shape ``(n_explorers, n_actor)``
    :param transitions: keeps what they see
    :param next_env: gives the environment of each episode
    :param seed: whose task all episodes have, and that their own seeds come from
    :return: the episodes; the last may be one with NaN
    """
    episodes: list[Episode] = []
    for number, theta in enumerate(actors):
        policy.policy.set_theta(theta)
        own = derived_seed(seed, number)
        env = next_env(own)
        with same_task(env, seed):
            episodes.append(rollout(policy.policy, Watched(env, transitions), own))
        if math.isnan(episodes[-1].episode_return):
            break
    return episodes


@contextmanager
def _gradients() -> Iterator[None]:
    """Workers run episodes in inference mode, in which nothing can learn."""
    with th.inference_mode(False), th.enable_grad():
        yield


def gradient_steps(
    model: Any,
    actor: np.ndarray,
    critic: np.ndarray,
    transitions: "Transitions",
    settings: AdaptationSettings,
    seed: int,
) -> np.ndarray:
    """
    Train from given parameters, with new optimizers and ``train`` of Stable-Baselines3.

    :param model: see :func:`learner_of`; its parameters are overwritten
    :param actor: start of the actor
    :param critic: start of the critics
    :param transitions: what to learn from
    :param settings: how many steps, and of which size
    :param seed: of the batches, and of the noise of TD3's targets
    :return: the adapted actor
    """
    seed_globals(seed)
    with _gradients():
        parameters = PolicyParameters(model.policy)
        parameters.set_theta(actor)
        critic_parameters(model).set_theta(critic)
        model.actor_target.load_state_dict(model.actor.state_dict())
        model.critic_target.load_state_dict(model.critic.state_dict())
        for part in (model.actor, model.critic):
            part.optimizer.state = defaultdict(dict)
        if settings.adapt_learning_rate is not None:
            rate = settings.adapt_learning_rate
            model.lr_schedule = lambda _: rate
        model._n_updates = 0
        model.replay_buffer = transitions.buffer(model)
        if settings.adapt_steps:
            model.train(settings.adapt_steps, settings.batch_size)
        model.replay_buffer = None
        model.policy.set_training_mode(False)
        return parameters.get_theta()


def critic_error(model: Any, transitions: "Transitions") -> float:
    """
    :param model: adapted
    :param transitions: of one episode of the adapted actor
    :return: mean squared difference between the first critic's values and the discounted returns; an episode that was
        cut off goes on with the critic's value of its last observation
    """
    data = transitions.arrays()
    observations, following, actions = (th.as_tensor(data[name]) for name in ("observations", "next", "actions"))
    with th.inference_mode(False), th.no_grad():
        values = model.critic.q1_forward(observations, _scaled(model, actions)).flatten().numpy()
        last = following[-1:]
        goes_on = float(model.critic.q1_forward(last, model.actor(last)))
    value = 0.0 if data["dones"][-1] else goes_on
    returns = np.empty(len(values))
    for place in range(len(values) - 1, -1, -1):
        value = data["rewards"][place] + model.gamma * value
        returns[place] = value
    return float(np.square(values - returns).mean())


def _scaled(model: Any, actions: th.Tensor) -> th.Tensor:
    return th.as_tensor(model.policy.scale_action(actions.numpy()))


class Transitions:
    """
    The transitions of episodes, as a learner sees them.

    :param statistics: that normalise observations and, where they did in training, rewards; or None
    """

    def __init__(self, statistics: VecNormalize | None):
        self._statistics = statistics
        self._rows: list[tuple[Any, Any, Any, float, bool]] = []

    def add(self, observation: Any, following: Any, action: Any, reward: float, terminated: bool) -> None:
        """
        :param observation: raw
        :param following: the next one, raw
        :param action: that the environment got
        :param reward: raw
        :param terminated: whether the episode ended, other than by its time limit
        """
        self._rows.append((observation, following, action, reward, terminated))

    def arrays(self) -> dict[str, np.ndarray]:
        """:return: ``observations``, ``next``, ``actions``, ``rewards`` and ``dones``, one row a transition"""
        names = ("observations", "next", "actions", "rewards", "dones")
        columns: dict[str, Any] = {
            name: np.array(column) for name, column in zip(names, zip(*self._rows, strict=True), strict=True)
        }
        if self._statistics is not None:
            for name in ("observations", "next"):
                columns[name] = self._statistics.normalize_obs(columns[name])
            columns["rewards"] = self._statistics.normalize_reward(columns["rewards"])
        return {name: column.astype(np.float32) for name, column in columns.items()}

    def buffer(self, model: Any) -> ReplayBuffer:
        """
        :param model: of DDPG or TD3
        :return: a replay buffer with all transitions
        """
        data, n = self.arrays(), len(self._rows)
        buffer = ReplayBuffer(n, model.observation_space, model.action_space, device="cpu")
        buffer.observations[:, 0] = data["observations"]
        buffer.next_observations[:, 0] = data["next"]
        buffer.actions[:, 0] = model.policy.scale_action(data["actions"]).reshape(n, -1)
        buffer.rewards[:, 0], buffer.dones[:, 0] = data["rewards"], data["dones"]
        buffer.pos, buffer.full = 0, True
        return buffer


class Watched(gym.Wrapper):
    """
    An environment whose transitions are kept.

    :param env: the environment
    :param transitions: keeps them
    """

    def __init__(self, env: gym.Env, transitions: Transitions):
        super().__init__(env)
        self._transitions = transitions

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """:return: the observation and info"""
        observation, info = self.env.reset(**kwargs)
        self._last = np.array(observation)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """:return: the result of the step"""
        observation, reward, terminated, truncated, info = self.env.step(action)
        following = np.array(observation)
        self._transitions.add(self._last, following, np.array(action), float(reward), bool(terminated))
        self._last = following
        return observation, reward, terminated, truncated, info
