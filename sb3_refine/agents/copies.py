"""Copies of agents, with parameters of their own."""

import copy
from dataclasses import replace
from typing import Any

import cloudpickle
import numpy as np
import torch as th
from stable_baselines3.common.policies import BasePolicy

from sb3_refine.agents.agent import Agent
from sb3_refine.agents.sb3_models import sync_copies
from sb3_refine.policies.parameters import PolicyParameters
from sb3_refine.policies.rounding import Rounding


def with_own_policy(agent: Agent) -> Agent:
    """
    :param agent: any
    :return: an agent with a policy, optimizers and an entropy coefficient of its own; its buffers are the agent's
    """
    model: Any = copy.copy(agent.model)
    own = {name: value for name, value in vars(model).items() if isinstance(value, (th.Tensor, th.optim.Optimizer))}
    vars(model).update(copy.deepcopy(own))  # together: the optimizer is that of the tensor
    # not deepcopy: the policy's distribution may hold tensors of the last gradient step, which that refuses
    model.policy = cloudpickle.loads(cloudpickle.dumps(agent.model.policy))
    if hasattr(model, "_create_aliases"):  # of off-policy algorithms, such as model.actor
        model._create_aliases()
    return replace(agent, model=model)


def round_parameters(policy: BasePolicy, name: str) -> None:
    """
    Round the parameters behind the action, in place.

    :param policy: of a Stable-Baselines3 model
    :param name: of a format, see :data:`~sb3_refine.policies.rounding.ROUNDINGS`
    """
    parameters = PolicyParameters(policy)
    parameters.set_theta(Rounding(name, policy, parameters)(parameters.get_theta()))


def with_rounding(agent: Agent, name: str | None) -> Agent:
    """
    :param agent: any
    :param name: of a format, see :data:`~sb3_refine.policies.rounding.ROUNDINGS`; None for the agent itself
    :return: an agent whose parameters behind the action are rounded, and a policy of its own
    """
    if name is None:
        return agent
    changed = with_own_policy(agent)
    round_parameters(changed.model.policy, name)
    sync_copies(changed.model)
    return changed


def with_theta(agent: Agent, theta: np.ndarray, scope: str = "actor") -> Agent:
    """
    :param agent: any
    :param theta: parameters of its policy
    :param scope: which, see :class:`~sb3_refine.policies.parameters.PolicyParameters`
    :return: an agent with these parameters and a policy of its own
    """
    changed = with_own_policy(agent)
    PolicyParameters(changed.model.policy, scope).set_theta(theta)
    sync_copies(changed.model)
    return changed
