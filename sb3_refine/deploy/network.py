"""From a batch of raw observations to the actions that the environment gets, as one torch module."""

import math
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_refine.agents.agent import Agent
from sb3_refine.envs.observations import Normalisation, normalisation_of_entry
from sb3_refine.errors import RefineError
from sb3_refine.policies.exact import GreedyAction, network_of


@dataclass(frozen=True)
class Entry:
    """
    An entry of the input, one after the other.

    :param key: of a ``Dict`` observation; None for a plain one
    :param size: numbers
    """

    key: str | None
    size: int


class DeployedPolicy(nn.Module):
    """
    A deterministic MLP policy with everything around the network: normalisation of the observations, the squashing,
    scaling and clipping of actions, the choice of the best action. This is what ``VecNormalize`` and ``model.predict``
    do together, for a batch. (Observations in float64 are rounded to float32 first.)

    :param entries: of the input
    :param normalisation: or None
    :param layers: linear layers and activations, from the input to the output
    :param action_space: ``Box`` or ``Discrete``
    :param is_squashed: whether the output, in [-1, 1], is scaled to the bounds of the space; if not, it is clipped
    :param kind: for ``Discrete``, what the network gives: ``"values"``, ``"quantiles"`` or ``"logits"``
    """

    mean: th.Tensor
    std: th.Tensor
    clip: th.Tensor
    low: th.Tensor
    high: th.Tensor

    def __init__(
        self,
        entries: list[Entry],
        normalisation: Normalisation | None,
        layers: list[nn.Module],
        action_space: spaces.Space,
        is_squashed: bool,
        kind: str,
    ):
        super().__init__()
        self.entries, self.normalisation, self.layers = entries, normalisation, layers
        self.is_squashed, self.kind = is_squashed, kind
        self.is_continuous = isinstance(action_space, spaces.Box)
        """Whether actions are numbers, not the number of an action."""
        self.action_shape = tuple(action_space.shape or ())
        self.n_actions = (
            int(action_space.n) if isinstance(action_space, spaces.Discrete) else math.prod(self.action_shape)
        )
        """How many numbers an action has, or how many actions there are."""
        self.network = nn.Sequential(*layers)
        if normalisation is not None:
            for name in ("mean", "std", "clip"):
                self.register_buffer(name, th.as_tensor(getattr(normalisation, name), dtype=th.float64))
        if isinstance(action_space, spaces.Box):
            for name in ("low", "high"):
                self.register_buffer(name, th.as_tensor(getattr(action_space, name).ravel(), dtype=th.float32))

    @property
    def n_inputs(self) -> int:
        """Numbers of one observation."""
        return sum(entry.size for entry in self.entries)

    def forward(self, observation: th.Tensor) -> th.Tensor:
        """
        :param observation: raw, float32 of shape ``(n, n_inputs)``
        :return: actions: float32 of shape ``(n, *action_shape)``, or int64 of shape ``(n,)``
        """
        if self.normalisation is not None:
            scaled = (observation.double() - self.mean) / self.std
            observation = th.minimum(th.maximum(scaled, -self.clip), self.clip).float()
        output = self.network(observation)
        if not self.is_continuous:
            if self.kind == "quantiles":
                output = output.reshape(-1, output.shape[1] // self.n_actions, self.n_actions).mean(dim=1)
            return output.argmax(dim=1)
        if self.is_squashed:
            action = self.low + 0.5 * (output + 1.0) * (self.high - self.low)
        else:
            action = th.minimum(th.maximum(output, self.low), self.high)
        return action.reshape(-1, *self.action_shape)

    def as_input(self, observation: Any) -> np.ndarray:
        """
        :param observation: one raw observation of the environment
        :return: one row of the input, float32 of shape ``(n_inputs,)``
        """
        parts = [observation if entry.key is None else observation[entry.key] for entry in self.entries]
        return np.concatenate([np.asarray(part, dtype=np.float32).ravel() for part in parts])


def deployed_policy(agent: Agent) -> DeployedPolicy:
    """
    :param agent: any
    :return: its policy, with copies of its parameters
    :raises RefineError: when the policy is no plain MLP with ``Box`` or ``Discrete`` actions
    """
    policy: Any = agent.model.policy
    if agent.recipe.vec_wrappers:
        raise RefineError(
            "export: a frame stack or another vec_env_wrapper changes the observations before the policy gets them"
        )
    try:
        network = network_of(policy)
    except (AttributeError, TypeError, ValueError):  # a class of the user's own may be built otherwise
        network = None
    if network is None:
        raise RefineError(
            f"export: the policy of this {type(agent.model).__name__} is no plain MLP from Box observations, or a Dict "
            "of them, to Box or Discrete actions (images, discrete observations, LSTMs, masks and batch normalisation "
            "are not exported)"
        )
    space, action_space = agent.observation_space, policy.action_space
    entries = [Entry(key, _size(space, key)) for key in network.keys]
    layers = [deepcopy(layer).cpu() for layer in network.layers]
    is_box = isinstance(action_space, spaces.Box)
    kind = network.to_action.kind if isinstance(network.to_action, GreedyAction) else ""
    is_squashed = is_box and bool(policy.squash_output)
    return DeployedPolicy(entries, _normalisation(agent, entries), layers, action_space, is_squashed, kind)


def _size(space: spaces.Space, key: str | None) -> int:
    entry = space[key] if isinstance(space, spaces.Dict) and key is not None else space
    return math.prod(entry.shape or ())


def _normalisation(agent: Agent, entries: list[Entry]) -> Normalisation | None:
    statistics: Any = agent.statistics
    if statistics is None or not statistics.norm_obs:
        return None
    parts = [normalisation_of_entry(statistics, agent.observation_space, entry.key) for entry in entries]
    return Normalisation(*(np.concatenate(column) for column in zip(*parts, strict=True)))
