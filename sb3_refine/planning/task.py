"""What workers need to plan."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from sb3_refine.agents.agent import Agent
from sb3_refine.envs.states import check_states
from sb3_refine.evaluation.demonstrations import demonstrate
from sb3_refine.evaluation.target import EvaluationTarget, rollout_task
from sb3_refine.evaluators import EVALUATORS, RolloutTask
from sb3_refine.planning.network import Network, check_agent, network_of
from sb3_refine.planning.policy import PlanningPolicy, planned_episode
from sb3_refine.planning.tree import SearchSettings

EXPLORATION, TEMPERATURE = 1.25, 1.0


class Planning:
    """
    Tree searches of an agent, on workers.

    :param agent: with discrete actions, for an environment whose state can be saved
    :param n_simulations: of each search
    :param exploration: see :class:`~sb3_refine.planning.tree.SearchSettings`, as for the next
    :param root_noise: share of noise in the prior
    :param temperature: see :func:`~sb3_refine.planning.network.network_of`
    :param keeps_plans: whether the plans of the episodes are kept
    :param seed: of an episode to test the environment with
    :param episode_timeout: seconds after which an episode without searches counts as hanging
    :raises RefineError: when the agent has no policy or values over discrete actions, or the state of its environment
        cannot be saved
    """

    def __init__(
        self,
        agent: Agent,
        n_simulations: int = 64,
        exploration: float = EXPLORATION,
        root_noise: float = 0.0,
        temperature: float = TEMPERATURE,
        keeps_plans: bool = False,
        seed: int = 0,
        episode_timeout: float = 600.0,
    ):
        model: Any = agent.model
        check_agent(agent)
        settings = SearchSettings(n_simulations, float(model.gamma), exploration, root_noise)  # wrong ones fail here
        env = agent.recipe.build()
        try:
            found = check_states(env, seed)
        finally:
            env.close()
        base = rollout_task(agent, accelerator=False, episode_timeout=episode_timeout)
        (own,) = demonstrate(base, agent.observation_space, [seed])
        self.network: Network = network_of(agent, own.observations, temperature)
        self.n_episodes, self.n_env_steps = 1, found.n_env_steps + len(own)
        """What it took to find out about the environment and the agent."""
        self.episode_timeout = episode_timeout * (n_simulations + 1)
        """Seconds after which an episode with searches counts as hanging."""
        self._observations = own.observations
        policy = PlanningPolicy(self.network, settings, found.is_random, keeps_plans)
        self.task: RolloutTask = replace(base, policy=policy, rollout=planned_episode)

    def theta(self, acts_by_search: bool = True) -> np.ndarray:
        """
        :param acts_by_search: or as the network alone would
        :return: for workers: the present parameters of the network, who acts, and the range of the network's values in
            an episode of the agent's own
        """
        least_range = np.ptp(self.network.values(self._observations))
        others = np.array([acts_by_search, least_range], dtype=np.float32)
        return np.concatenate([self.network.parameters.get_theta(), others])


@contextmanager
def open_planning_targets(
    agents: Sequence[Agent],
    n_simulations: int,
    backend: str = "process",
    n_workers: int | None = None,
    episode_timeout: float = 600.0,
    **backend_kwargs: Any,
) -> Iterator[list[EvaluationTarget]]:
    """
    :param agents: that act by tree search
    :param n_simulations: of each search
    :param backend: see :class:`~sb3_refine.refiner.Refiner`, as for the next
    :param n_workers: episodes at a time
    :param episode_timeout: seconds after which an episode counts as hanging
    :param backend_kwargs: options of the backend
    :return: the agents, fit to be evaluated
    """
    with ExitStack() as stack:
        targets = []
        for agent in agents:
            planning = Planning(agent, n_simulations, episode_timeout=episode_timeout)
            evaluator = EVALUATORS[backend](planning.task, n_workers, planning.episode_timeout, **backend_kwargs)
            targets.append(EvaluationTarget(stack.enter_context(evaluator), planning.theta()))
        yield targets
