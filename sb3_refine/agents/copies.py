"""Copies of agents, with parameters of their own."""

import copy
from dataclasses import replace
from typing import Any

import cloudpickle
import numpy as np

from sb3_refine.agents.agent import Agent
from sb3_refine.agents.sb3_models import sync_copies
from sb3_refine.policies.parameters import PolicyParameters


def with_own_policy(agent: Agent) -> Agent:
    """
    :param agent: any
    :return: an agent with a policy of its own; it shares all that further training does not change in place
    """
    model: Any = copy.copy(agent.model)
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
