"""A policy on a pool of workers: what comparisons, selection and the test evaluate."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from sb3_refine.agents.agent import Agent
from sb3_refine.agents.copies import with_rounding
from sb3_refine.envs.spec import EnvRecipe
from sb3_refine.envs.wrappers import Noise
from sb3_refine.errors import EpisodeError
from sb3_refine.evaluation.evaluation import Evaluation
from sb3_refine.evaluators import EVALUATORS, Evaluator, RolloutTask
from sb3_refine.objectives import Objective
from sb3_refine.optimizers.population import ExplicitPopulation
from sb3_refine.policies.choice import rollout_policy
from sb3_refine.policies.parameters import PolicyParameters
from sb3_refine.policies.policy_set import PolicySet
from sb3_refine.policies.rounding import Rounding
from sb3_refine.rollouts.reproducibility import probe


class Target(Protocol):
    """What is evaluated: a policy with its network, its environment and somebody who runs its episodes."""

    @property
    def task(self) -> RolloutTask:
        """The policy's network and environment."""

    @property
    def theta(self) -> np.ndarray:
        """The policy's parameters."""

    @property
    def is_seeded(self) -> bool:
        """Whether the seed decides the episode; if not, episodes cannot be paired by their seeds."""

    @property
    def processors(self) -> set[str]:
        """Models of the processors that have run episodes on its workers."""

    def run(self, seeds: Sequence[int], metrics: Sequence[str] = (), noise: Noise | None = None) -> Evaluation:
        """
        :param seeds: one for each episode
        :param metrics: names of the metrics of each episode, see :mod:`sb3_refine.rollouts.metrics`
        :param noise: on actions and observations, or None
        :return: the episodes
        """


@dataclass(frozen=True)
class EvaluationTarget:
    """
    A policy on workers that are there already: one of many for the same network and environment.

    :param evaluator: an open pool of workers, with the policy's network and environment
    :param theta: the policy's parameters
    """

    evaluator: Evaluator
    theta: np.ndarray

    @property
    def task(self) -> RolloutTask:
        """The policy's network and environment."""
        return self.evaluator.task

    @property
    def is_seeded(self) -> bool:
        """Whether the seed decides the episode; if not, episodes cannot be paired by their seeds."""
        return self.task.is_seeded

    @property
    def processors(self) -> set[str]:
        """Models of the processors that have run episodes on its workers."""
        return self.evaluator.processors

    def run(self, seeds: Sequence[int], metrics: Sequence[str] = (), noise: Noise | None = None) -> Evaluation:
        """See :meth:`Target.run`."""
        population = ExplicitPopulation([self.theta], names=["the unperturbed policy"])
        (episodes,) = self.evaluator.evaluate(population, [seeds], metrics, noise)
        return Evaluation(tuple(seeds), tuple(episodes))


def rollout_task(
    agent: Agent,
    parameters: PolicyParameters | None = None,
    accelerator: bool = True,
    objective: Objective | None = None,
    episode_timeout: float = 600.0,
    quantize: str | None = None,
) -> RolloutTask:
    """
    What workers need to run an agent: the environment in the form that the probe finds to be reproducible.

    :param agent: the agent
    :param parameters: the parameters that are set for each candidate; by default all that the action depends on
    :param accelerator: whether to use a faster, bit-identical ``step`` where there is one
    :param objective: what is maximised, where workers have to compute a metric for it
    :param episode_timeout: seconds after which an episode of the probe counts as hanging
    :param quantize: how the weights are rounded, see :data:`~sb3_refine.policies.rounding.ROUNDINGS`; None for not
    :return: the task
    """
    parameters = parameters or PolicyParameters(agent.model.policy, "actor")
    model = with_rounding(agent, quantize).model  # all parameters, those that are not set too
    policy = rollout_policy(model, parameters, agent.statistics, agent.observation_space)
    if quantize is not None:
        policy.rounding = Rounding(quantize, model.policy, parameters)
    theta = parameters.get_theta()
    found = probe(agent.recipe, policy, theta, accelerator, episode_timeout)
    policy.set_theta(theta)  # the probe perturbs it
    metrics = {} if objective is None else dict.fromkeys(objective.metrics, objective.checked_measure)
    return RolloutTask(found.recipe, policy, metrics, found.seeded, found.replays)


@contextmanager
def open_targets(
    agents: Sequence[Agent],
    backend: str = "process",
    n_workers: int | None = 1,
    accelerator: bool = True,
    objective: Objective | None = None,
    episode_timeout: float = 600.0,
    on_episode: Callable[[], object] = lambda: None,
    **backend_kwargs: Any,
) -> Iterator[list[EvaluationTarget]]:
    """
    Start workers for agents as they are. Agents with equal environments share their workers.

    :param agents: at least one
    :param backend: who runs the episodes, see :data:`~sb3_refine.evaluators.EVALUATORS`
    :param n_workers: episodes run at a time
    :param accelerator: whether to use a faster, bit-identical ``step`` where there is one
    :param objective: what is maximised, where workers have to compute a metric for it
    :param episode_timeout: seconds after which an episode counts as hanging
    :param on_episode: called after each episode
    :param backend_kwargs: options of the backend
    :return: the agents, fit to be evaluated
    """
    recipes: list[EnvRecipe] = []
    groups: list[list[Agent]] = []
    for agent in agents:
        if agent.recipe not in recipes:
            recipes.append(agent.recipe)
            groups.append([])
        groups[recipes.index(agent.recipe)].append(agent)
    targets = {}
    with ExitStack() as stack:
        for group in groups:
            task = _joint_task(group, accelerator, objective, episode_timeout)
            evaluator = EVALUATORS[backend](task, n_workers, episode_timeout, **backend_kwargs)
            evaluator.on_episode = on_episode
            stack.enter_context(evaluator)
            for number, agent in enumerate(group):
                targets[id(agent)] = EvaluationTarget(evaluator, np.array([number], dtype=np.float32))
        yield [targets[id(agent)] for agent in agents]


def _joint_task(
    agents: Sequence[Agent], accelerator: bool, objective: Objective | None, episode_timeout: float
) -> RolloutTask:
    """The task of agents with equal environments: the parameter is the number of the agent that acts."""
    task = rollout_task(agents[0], None, accelerator, objective, episode_timeout)
    policies = [task.policy]
    for agent in agents[1:]:
        parameters = PolicyParameters(agent.model.policy, "actor")
        policies.append(rollout_policy(agent.model, parameters, agent.statistics, agent.observation_space))
    return replace(task, policy=PolicySet(policies))


def check_valid(evaluation: Evaluation, whose: str) -> None:
    """
    :param evaluation: of some episodes
    :param whose: what they are called in the message
    :raises EpisodeError: when any had NaN or infinite rewards or observations, naming their seeds
    """
    seeds = [seed for seed, value in zip(evaluation.seeds, evaluation.returns, strict=True) if np.isnan(value)]
    if seeds:
        shown = ", ".join(map(str, seeds[:3])) + (" and others" if len(seeds) > 3 else "")
        raise EpisodeError(
            f"{len(seeds)} of the {len(evaluation.seeds)} episodes of {whose} had NaN or infinite rewards or "
            f"observations, those with seed {shown}: there is nothing to compare; fix the environment"
        )
