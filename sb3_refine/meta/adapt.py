"""Adapt an agent to one task, and test whether that paid."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.logger import Logger

from sb3_refine.agents.agent import Agent
from sb3_refine.agents.candidates import NamedAgent
from sb3_refine.agents.copies import with_own_policy
from sb3_refine.agents.from_model import agent_from_model
from sb3_refine.agents.tasks import with_tasks
from sb3_refine.errors import EpisodeError, RefineError, reraise_as_episode_error
from sb3_refine.evaluation.target import rollout_task
from sb3_refine.judging import Judge, Judgement, Origin
from sb3_refine.meta.adaptation import (
    AdaptationSettings,
    AdaptingPolicy,
    critic_parameters,
    explore,
    gradient_steps,
    learner_of,
)
from sb3_refine.meta.exploration import (
    START_STD,
    Exploration,
    MetaParameters,
    exploration_path,
    first_exploration,
    read_exploration,
)
from sb3_refine.policies.base import one_thread
from sb3_refine.rollouts.reproducibility import Episodes
from sb3_refine.seeding import EpisodeSeeds, derived_seed, globals_restored
from sb3_refine.tasks.family import FixedTask, Task, TaskFamily
from sb3_refine.training.continuation import Continuation, TrainSettings

ADAPTED, TRAINED = "adapted", "trained on"
"""Names of the two candidates."""


def task_with(family: TaskFamily, values: Mapping[str, Any]) -> FixedTask:
    """
    One task of a family.

    >>> from sb3_refine.tasks.family import TaskDistribution
    >>> family = TaskDistribution({"physics": {"mass": {"uniform": [1, 2]}, "gravity": -9.8}})
    >>> task_with(family, {"mass": 1.5}).task(0).parameters
    {'mass': 1.5, 'gravity': -9.8}

    :param family: says which parameters there are
    :param values: by parameter; those that do not differ in the family may be left out
    :return: the task in every episode
    :raises RefineError: for unknown parameters, and where values are missing
    """
    one, other = family.task(0), family.task(1)
    known = one.parameters
    unknown = [name for name in values if name not in known]
    if unknown:
        raise RefineError(f"task: the family has no {unknown[0]!r}; choose from {', '.join(known)}")
    missing = [name for name in known if name not in values and known[name] != other.parameters[name]]
    if missing:
        raise RefineError(f"task: a value is missing for {', '.join(missing)}; name it as {missing[0]}:VALUE")
    return FixedTask(
        Task(
            **{name: _with_values(getattr(one, name), values) for name in ("env_kwargs", "physics", "goal")},
            env_wrapper={
                wrapper: _with_values(kwargs, values, f"{wrapper.rpartition('.')[2]}.")
                for wrapper, kwargs in one.env_wrapper.items()
            },
        )
    )


def _with_values(section: Mapping[str, Any], values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    return {name: values.get(f"{prefix}{name}", value) for name, value in section.items()}


def adapt(
    agent: Agent | BaseAlgorithm,
    task: TaskFamily | Mapping[str, Any] | None = None,
    n_episodes: int | None = None,
    seed: int = 0,
    adaptation: Mapping[str, Any] | None = None,
    compare_training: bool = True,
    progress_bar: bool = False,
    **kwargs: Any,
) -> Judgement:
    """
    Adapt an agent to one task in a few episodes, and test the result against the agent as it is. The episodes explore
    with actors from the distribution that ``meta-es`` has found, or, for another agent of DDPG or TD3, from one with
    standard deviations that are measured anew.

    :param agent: of DDPG or TD3; a model with its environment, or an agent
    :param task: the values of the parameters in which the tasks of the agent's family differ, such as
        ``{"velocity": 1.5}``; or a task as :func:`task_with` makes it; None for an agent without tasks
    :param n_episodes: that explore; None for as many as in the meta-learning
    :param seed: of everything random
    :param adaptation: further settings of :class:`~sb3_refine.meta.adaptation.AdaptationSettings` that differ from
        those of the meta-learning
    :param compare_training: whether training on with plain Stable-Baselines3 for as many environment steps is a
        candidate, too
    :param progress_bar: show a progress bar over the episodes of the verdict
    :param kwargs: of :class:`~sb3_refine.judging.Judge`
    :return: the verdict on the better candidate on validation seeds, which can be saved
    :raises RefineError: when an argument is wrong, or the agent cannot adapt so
    :raises EpisodeError: when an episode fails
    """
    agent = _in_task(agent if isinstance(agent, Agent) else agent_from_model(agent), task)
    exploration, settings = _exploration_of(agent)
    changes = {**(adaptation or {}), **({} if n_episodes is None else {"adapt_episodes": n_episodes})}
    settings = replace(settings, **changes)
    judge = Judge(agent, seed=seed, **kwargs)
    workers = {name: kwargs[name] for name in ("accelerator", "episode_timeout") if name in kwargs}
    adapted, n_steps, n_run = adapted_agent(agent, settings, exploration, seed, **workers)
    named = [NamedAgent(ADAPTED, adapted)]
    if compare_training:
        named.append(NamedAgent(TRAINED, trained_agent(agent, n_steps, n_steps // n_run, seed)))
    origin = Origin(
        method="adapt",
        settings=asdict(settings),
        n_episodes=n_run * len(named),
        n_env_steps=n_steps * len(named),
    )
    return judge.judge(named, progress_bar, origin=origin)


def _in_task(agent: Agent, task: TaskFamily | Mapping[str, Any] | None) -> Agent:
    family = agent.recipe.tasks
    if isinstance(task, Mapping):
        if family is None:
            raise RefineError("task: the agent has no family of tasks; load it with `tasks`")
        task = task_with(family, task)
    if task is None and family is not None and not isinstance(family, FixedTask):
        raise RefineError("task: an agent adapts to one task of its family: name the task")
    return agent if task is None else with_tasks(agent, task)


def _exploration_of(agent: Agent) -> tuple[Exploration | None, AdaptationSettings]:
    path = exploration_path(agent)
    return (None, AdaptationSettings()) if path is None else read_exploration(path)


def adapted_agent(
    agent: Agent,
    settings: AdaptationSettings,
    exploration: Exploration | None = None,
    seed: int = 0,
    accelerator: bool = True,
    episode_timeout: float = 600.0,
) -> tuple[Agent, int, int]:
    """
    :param agent: in the task
    :param settings: how to adapt
    :param exploration: standard deviations; None to measure some
    :param seed: of everything random
    :param accelerator: see :class:`~sb3_refine.refiner.Refiner`
    :param episode_timeout: seconds after which an episode of the probe counts as hanging
    :return: the adapted agent, the environment steps and the number of all episodes that it took
    """
    learner, seeds = learner_of(agent), EpisodeSeeds(seed)
    task = rollout_task(agent, None, accelerator, episode_timeout=episode_timeout)
    n_steps = n_episodes = 0
    if exploration is None:
        measured = seeds.take("search", Exploration.n_episodes)
        exploration, n_steps = first_exploration(agent, task, learner, START_STD, measured)
        n_episodes = len(measured)
    policy = AdaptingPolicy(task.policy, learner, settings, seed, agent.statistics)
    policy.set_theta(MetaParameters(learner, exploration).get_theta())
    (first,) = seeds.take("search", 1, start=Exploration.n_episodes)
    actors, critic = policy.draw(first)
    episodes, transitions = Episodes(task.recipe), policy.transitions()
    with one_thread(), globals_restored(), reraise_as_episode_error("an episode of the adaptation"):
        try:
            with th.inference_mode():
                explored = explore(policy, actors, transitions, episodes.next_env, first)
        finally:
            episodes.close()
        if any(np.isnan(each.episode_return) for each in explored):
            raise EpisodeError("an episode of the adaptation had NaN or infinite rewards; fix the environment")
        actor = gradient_steps(learner, actors.mean(axis=0), critic, transitions, settings, first)
    found = with_own_policy(agent)
    after = [actor, critic_parameters(learner).get_theta(), exploration.actor, exploration.critic]
    MetaParameters(found.model, exploration).set_theta(np.concatenate(after))
    return found, n_steps + sum(each.length for each in explored), n_episodes + len(explored)


def trained_agent(agent: Agent, n_steps: int, n_warm_up: int, seed: int = 0) -> Agent:
    """
    :param agent: in the task
    :param n_steps: environment steps of training
    :param n_warm_up: steps before the first gradient step
    :param seed: of everything random
    :return: the agent after training on with plain Stable-Baselines3
    """
    settings = TrainSettings(n_warm_up=n_warm_up)
    continuation = Continuation(agent, settings, derived_seed(seed, 1), Logger(None, []))
    continuation.advance(n_steps, CallbackList([]))
    return continuation.agent
