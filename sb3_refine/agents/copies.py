"""Copies of agents, with parameters of their own."""

import copy
from dataclasses import replace
from typing import Any

import cloudpickle
import numpy as np
import torch as th

from sb3_refine.agents.agent import Agent
from sb3_refine.agents.sb3_models import sync_copies
from sb3_refine.policies.parameters import PolicyParameters


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
