"""From a batch of raw observations to the actions that the environment gets, as one torch module."""

import math
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_refine.agents.agent import Agent
from sb3_refine.envs.observations import Normalisation, normalisation_of_entry
from sb3_refine.errors import RefineError
from sb3_refine.policies.exact import GreedyAction, network_of, plain_keys
from sb3_refine.policies.rounding import as_integers
from sb3_refine.policies.transformer import TransformerPolicy


@dataclass(frozen=True)
class Entry:
    """
    An entry of the input, one after the other.

    :param key: of a ``Dict`` observation; None for a plain one
    :param size: numbers
    """

    key: str | None
    size: int


class RoundedLinear(nn.Module):
    """
    A linear layer whose weights are stored with fewer bits.

    :param layer: of an agent
    :param quantize: ``"float16"`` or ``"int8"``, see :func:`~sb3_refine.policies.rounding.rounded`
    """

    weight: th.Tensor
    scale: th.Tensor | None
    bias: th.Tensor

    def __init__(self, layer: nn.Linear, quantize: str):
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        weight = layer.weight.detach().cpu().numpy()
        bias = np.zeros(layer.out_features, np.float32) if layer.bias is None else layer.bias.detach().cpu().numpy()
        stored: dict[str, np.ndarray | None] = {"scale": None, "bias": bias}
        if quantize == "float16":
            stored.update(weight=weight.astype(np.float16), bias=bias.astype(np.float16))
        else:
            stored["weight"], stored["scale"] = as_integers(weight, quantize)
        for name, array in stored.items():
            self.register_buffer(name, None if array is None else th.from_numpy(array.copy()))

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: shape ``(n, in_features)``
        :return: shape ``(n, out_features)``
        """
        weight = self.weight.float()
        return nn.functional.linear(x, weight if self.scale is None else weight * self.scale, self.bias.float())


class StateEntry(NamedTuple):
    """
    What a policy has to be given back in the next step of an episode; zeros at the beginning.

    :param name: of the input; the output is called ``next_`` and the name
    :param shape: None stands for the batch
    :param dtype: ``"float32"`` or ``"int64"``
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str

    def zeros(self, n: int) -> np.ndarray:
        """
        :param n: size of the batch
        :return: the state at the beginning of an episode
        """
        return np.zeros([n if size is None else size for size in self.shape], dtype=self.dtype)


class DeployedPolicy(nn.Module):
    """
    A deterministic policy with everything around the network: normalisation of the observations, the squashing,
    scaling and clipping of actions, the choice of the best action. This is what ``VecNormalize`` and ``model.predict``
    do together, for a batch. (Observations in float64 are rounded to float32 first.)

    :param entries: of the input
    :param normalisation: or None
    :param action_space: ``Box`` or ``Discrete``
    :param is_squashed: whether the output, in [-1, 1], is scaled to the bounds of the space; if not, it is clipped
    :param kind: for ``Discrete``, what the network gives: ``"values"``, ``"quantiles"`` or ``"logits"``
    """

    mean: th.Tensor
    std: th.Tensor
    clip: th.Tensor
    low: th.Tensor
    high: th.Tensor

    state: tuple[StateEntry, ...] = ()
    """Further inputs and outputs."""

    def __init__(
        self,
        entries: list[Entry],
        normalisation: Normalisation | None,
        action_space: spaces.Space,
        is_squashed: bool,
        kind: str,
    ):
        super().__init__()
        self.entries, self.normalisation = entries, normalisation
        self.is_squashed, self.kind = is_squashed, kind
        self.is_continuous = isinstance(action_space, spaces.Box)
        """Whether actions are numbers, not the number of an action."""
        self.action_shape = tuple(action_space.shape or ())
        self.n_actions = (
            int(action_space.n) if isinstance(action_space, spaces.Discrete) else math.prod(self.action_shape)
        )
        """How many numbers an action has, or how many actions there are."""
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

    @property
    def is_rounded(self) -> bool:
        """Whether the weights are stored with fewer bits than those of float32."""
        return any(isinstance(module, RoundedLinear) for module in self.modules())

    def normalised(self, observation: th.Tensor) -> th.Tensor:
        """
        :param observation: raw, float32 of shape ``(n, n_inputs)``
        :return: as the network sees it
        """
        if self.normalisation is None:
            return observation
        scaled = (observation.double() - self.mean) / self.std
        return th.minimum(th.maximum(scaled, -self.clip), self.clip).float()

    def action_of(self, output: th.Tensor) -> th.Tensor:
        """
        :param output: of the network
        :return: actions: float32 of shape ``(n, *action_shape)``, or int64 of shape ``(n,)``
        """
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


class DeployedMLP(DeployedPolicy):
    """
    An MLP.

    :param layers: linear layers and activations, from the input to the output
    :param kwargs: see :class:`DeployedPolicy`
    """

    def __init__(self, layers: list[nn.Module], **kwargs: Any):
        super().__init__(**kwargs)
        self.layers = layers
        self.network = nn.Sequential(*layers)

    def forward(self, observation: th.Tensor) -> th.Tensor:
        """
        :param observation: raw, float32 of shape ``(n, n_inputs)``
        :return: actions: float32 of shape ``(n, *action_shape)``, or int64 of shape ``(n,)``
        """
        return self.action_of(self.network(self.normalised(observation)))


class DeployedTransformer(DeployedPolicy):
    """
    A transformer, for one step of several episodes at a time.

    :param policy: of an agent
    :param transformer: its network
    :param action_net: what makes the actions of the network's output
    :param kwargs: see :class:`DeployedPolicy`
    """

    first_memory: th.Tensor
    half_range: th.Tensor
    middle: th.Tensor

    def __init__(self, policy: TransformerPolicy, transformer: nn.Module, action_net: nn.Module, **kwargs: Any):
        super().__init__(**kwargs)
        self.transformer: Any = transformer
        self.action_net = action_net
        with th.no_grad():
            memory = transformer.first_memory(th.full((1,), policy.target_return))  # type: ignore[operator]
        self.register_buffer("first_memory", memory)
        if self.is_continuous:
            self.register_buffer("middle", policy.action_middle.flatten())
            self.register_buffer("half_range", policy.action_half_range.flatten())
        n_layers, n_kinds, _, context, embed_dim = memory.shape
        self.state = (
            StateEntry("memory", (n_layers, n_kinds, None, context, embed_dim), "float32"),
            StateEntry("last_action", (None, *self.action_shape), "float32" if self.is_continuous else "int64"),
            StateEntry("n_steps", (None,), "int64"),
        )

    def forward(
        self, observation: th.Tensor, memory: th.Tensor, last_action: th.Tensor, n_steps: th.Tensor
    ) -> tuple[th.Tensor, ...]:
        """
        :param observation: raw, float32 of shape ``(n, n_inputs)``
        :param memory: see :attr:`state`, as for the next two
        :param last_action: of each episode
        :param n_steps: of each episode so far; where this is 0, an episode begins, whatever the other two are
        :return: the actions, and the state for the next step
        """
        begins = n_steps == 0
        memory = th.where(begins[:, None, None], self.first_memory, memory)
        if self.is_continuous:
            acted = (last_action.flatten(1) - self.middle) / self.half_range
        else:
            acted = nn.functional.one_hot(last_action, self.n_actions).float()
        acted = acted.masked_fill(begins[:, None], 0.0)
        latent, memory = self.transformer.step(self.normalised(observation), acted, memory, n_steps)
        action = self.action_of(self.action_net(latent))
        return action, memory, action.clone(), n_steps + 1


def deployed_policy(agent: Agent, quantize: str | None = None) -> DeployedPolicy:
    """
    :param agent: any
    :param quantize: how its weights are stored, see :class:`RoundedLinear`; None for float32
    :return: its policy, with copies of its parameters
    :raises RefineError: when the policy is neither a plain MLP nor a transformer, with ``Box`` or ``Discrete`` actions
    """
    policy: Any = agent.model.policy
    if agent.recipe.vec_wrappers:
        raise RefineError(
            "export: a frame stack or another vec_env_wrapper changes the observations before the policy gets them"
        )
    action_space, is_transformer = policy.action_space, isinstance(policy, TransformerPolicy)
    layers: list[nn.Module] = []
    keys, kind = None, "logits"
    try:
        if is_transformer and isinstance(action_space, (spaces.Box, spaces.Discrete)):
            keys, layers = plain_keys(policy.pi_features_extractor, policy.observation_space), [policy.action_net]
        elif not is_transformer:
            network = network_of(policy)
            if network is not None:
                keys, layers = network.keys, network.layers
                kind = network.to_action.kind if isinstance(network.to_action, GreedyAction) else ""
    except (AttributeError, TypeError, ValueError):  # a class of the user's own may be built otherwise
        keys = None
    if keys is None:
        raise RefineError(
            f"export: the policy of this {type(agent.model).__name__} is no plain MLP or transformer from Box "
            "observations, or a Dict of them, to Box or Discrete actions (images, discrete observations, LSTMs, masks "
            "and batch normalisation are not exported)"
        )
    entries = [Entry(key, _size(agent.observation_space, key)) for key in keys]
    kwargs = {
        "entries": entries,
        "normalisation": _normalisation(agent, entries),
        "action_space": action_space,
        "is_squashed": isinstance(action_space, spaces.Box) and bool(policy.squash_output),
        "kind": kind,
    }
    layers = [_stored(layer, quantize) for layer in layers]
    if is_transformer:
        return DeployedTransformer(policy, _stored(policy.transformer, quantize), *layers, **kwargs)
    return DeployedMLP(layers, **kwargs)


def _stored(module: nn.Module, quantize: str | None) -> nn.Module:
    """A copy whose linear layers are as they are to be stored."""
    if quantize is not None and isinstance(module, nn.Linear):
        return RoundedLinear(module, quantize)
    copy = deepcopy(module).cpu()
    if quantize is not None:
        for name, child in module.named_children():
            setattr(copy, name, _stored(child, quantize))
    return copy


def _size(space: spaces.Space, key: str | None) -> int:
    entry = space[key] if isinstance(space, spaces.Dict) and key is not None else space
    return math.prod(entry.shape or ())


def _normalisation(agent: Agent, entries: list[Entry]) -> Normalisation | None:
    statistics: Any = agent.statistics
    if statistics is None or not statistics.norm_obs:
        return None
    parts = [normalisation_of_entry(statistics, agent.observation_space, entry.key) for entry in entries]
    return Normalisation(*(np.concatenate(column) for column in zip(*parts, strict=True)))
