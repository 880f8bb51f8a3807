"""A policy that acts by tree search."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from sb3_refine.envs.observations import copied
from sb3_refine.envs.wrappers import Noisy, action_masks_of
from sb3_refine.evaluators.worker import NextEnv
from sb3_refine.planning.network import Network
from sb3_refine.planning.tree import Plan, SearchSettings, TreeSearch
from sb3_refine.policies.base import DeterministicPolicy
from sb3_refine.rollouts.episode import N_ENV_STEPS, Episode
from sb3_refine.rollouts.metrics import Metric
from sb3_refine.rollouts.recording import Recording
from sb3_refine.rollouts.rollout import rollout_with_metrics

PLANS = "plans"
"""Metric of an episode: a :class:`Planned` for each step."""

_LAMBDA = 0.95  # of the lambda-returns; as Stable-Baselines3's gae_lambda


class Planned(NamedTuple):
    """
    A step with what a search has found for it.

    :param observation: raw
    :param visits: see :class:`~sb3_refine.planning.tree.Plan`
    :param value: the discounted return from there on, in units of the rewards
    :param mask: which actions were valid; None for all
    """

    observation: Any
    visits: np.ndarray
    value: float
    mask: np.ndarray | None


class _Reward(NamedTuple):
    """
    :param reward: of a step
    :param is_last: whether the episode has ended there, for the policy
    :param goes_on: the observation after it, if the time was up
    """

    reward: float
    is_last: bool
    goes_on: Any


class PlanningPolicy(DeterministicPolicy):
    """
    Acts by tree search in the environment that it acts in, or only searches, and acts as the network alone would.

    The parameters are those of the network, a number that says who acts (1 for the search, 0 for the network), and the
    ``least_range`` of :class:`~sb3_refine.planning.tree.SearchSettings`.

    :param network: leads the search
    :param settings: of the search
    :param is_random: whether the environment is, see :func:`~sb3_refine.envs.states.check_states`
    :param keeps_plans: whether the plans of an episode are kept
    """

    def __init__(self, network: Network, settings: SearchSettings, is_random: bool, keeps_plans: bool = False):
        self.network, self.settings, self.is_random, self.keeps_plans = network, settings, is_random, keeps_plans
        self.plans: list[Planned] = []
        self.n_simulated = 0
        """Environment steps of the searches of the episode."""
        self._acts_by_search, self._rng = True, np.random.default_rng(0)
        self._search: TreeSearch | None = None

    def set_theta(self, theta: np.ndarray) -> None:
        """:param theta: of the network, who acts, and the least range"""
        self.network.parameters.set_theta(theta[:-2])
        self._acts_by_search = bool(theta[-2])
        self.settings = replace(self.settings, least_range=float(theta[-1]))

    def seed(self, seed: int) -> None:
        """:param seed: of the episode to come, for all that is random in its searches"""
        self._rng = np.random.default_rng(seed)
        self.plans, self.n_simulated = [], 0

    def begin_episode(self, env: gym.Env) -> None:
        """See :meth:`DeterministicPolicy.begin_episode`."""
        while isinstance(env, (Recording, Noisy, _Rewarded)):  # the search is not part of the episode
            env = env.env
        self._masks = action_masks_of(env) if self.network.uses_masks else None
        self._search = TreeSearch(env, self.network, self.settings, self.is_random)

    def with_returns(self, rewards: Sequence["_Reward"]) -> list[Planned]:
        """
        :param rewards: of the steps of the episode
        :return: the plans, with the lambda-returns of the episode (Sutton and Barto 2018, section 12.1) instead of
            the values that the searches have found, and that the returns are made of; an episode whose time was up goes
            on with the value of the network
        """
        found: list[Planned] = []
        discount, value, target = self.settings.discount, 0.0, 0.0
        for plan, step in zip(reversed(self.plans), reversed(rewards), strict=True):
            if step.is_last:
                value = target = 0.0 if step.goes_on is None else self.network.evaluate(step.goes_on, None)[1]
            target = step.reward + discount * ((1 - _LAMBDA) * value + _LAMBDA * target)
            value = plan.value
            found.append(plan._replace(value=target))
        return found[::-1]

    def __call__(self, observation: Any) -> Any:
        """:return: the action"""
        assert self._search is not None
        before = self._search.n_env_steps
        seen, mask = copied(observation), None if self._masks is None else np.array(self._masks(), dtype=bool)
        plan: Plan = self._search.plan(seen, self._rng)
        self.n_simulated += self._search.n_env_steps - before
        if self.keeps_plans:
            self.plans.append(Planned(seen, plan.visits, plan.value, mask))
        action = plan.action if self._acts_by_search else int(self.network.evaluate(seen, mask)[0].argmax())
        return np.int64(action)


def planned_episode(
    policy: DeterministicPolicy, next_env: NextEnv, seed: int, metrics: Mapping[str, Metric]
) -> Episode:
    """
    Run an episode of a :class:`PlanningPolicy`. All that is random in its searches comes from the seed.

    :param policy: the policy
    :param next_env: gives the environment
    :param seed: of the episode
    :param metrics: of the episode
    :return: the episode, with the environment steps of its searches, and with :data:`PLANS` if the policy keeps them
    """
    assert isinstance(policy, PlanningPolicy)
    policy.seed(seed)
    env = _Rewarded(next_env(seed))
    episode = rollout_with_metrics(policy, env, seed, metrics)
    found: dict[str, Any] = {N_ENV_STEPS: episode.length + policy.n_simulated}
    if policy.keeps_plans and np.isfinite(episode.episode_return):
        found[PLANS] = policy.with_returns(env.steps)
    return episode._replace(metrics={**episode.metrics, **found})


class _Rewarded(gym.Wrapper):
    """Keeps the reward of each step, and the last observation if the time was up."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.steps: list[_Reward] = []

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """:return: the result of the step"""
        observation, reward, terminated, truncated, info = self.env.step(action)
        goes_on = copied(info.get("terminal_observation", observation)) if truncated and not terminated else None
        self.steps.append(_Reward(float(reward), bool(terminated or truncated), goes_on))
        return observation, reward, terminated, truncated, info
