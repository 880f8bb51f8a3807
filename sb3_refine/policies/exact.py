"""Plain MLP actors with the bits of ``predict`` at a tenth of its cost."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_refine.policies.base import DeterministicPolicy

if TYPE_CHECKING:
    from stable_baselines3.common.policies import BasePolicy
    from stable_baselines3.common.vec_env import VecNormalize

    from sb3_refine.policies.parameters import PolicyParameters


# what ``np.clip`` calls in the end, at a fifth of its cost
_clip: np.ufunc = import_module("numpy.core.umath" if np.__version__ < "2" else "numpy._core.umath").clip
_ALIGNMENT = 4  # floats: MKL's gemv gives other bits when a weight matrix is not aligned to 16 bytes


class Input:
    """
    Writes one entry of an observation into the network's input: the VecEnv's cast, the frozen normalisation with the
    bits of ``VecNormalize.normalize_obs``, the cast to float32.

    :param key: entry of a ``Dict`` observation, or None for a plain one
    :param space: its space in the raw environment
    :param obs_rms: its statistics, copied, so that later training does not reach them; or None
    :param vec_normalize: has ``epsilon`` and ``clip_obs``
    """

    def __init__(self, key: str | None, space: spaces.Space, obs_rms: Any, vec_normalize: "VecNormalize | None"):
        assert isinstance(space, spaces.Box)
        self._key, self._dtype, self._is_flat = key, space.dtype, len(space.shape) == 1
        self.size = int(np.prod(space.shape))
        self._statistics: tuple[np.ndarray, np.ndarray, float] | None = None
        if vec_normalize is not None and obs_rms is not None:
            std = np.sqrt(obs_rms.var + vec_normalize.epsilon).ravel()
            self._statistics = np.array(obs_rms.mean).ravel(), std, vec_normalize.clip_obs

    def into(self, target: np.ndarray) -> Callable[[Any], None]:
        """
        :param target: float32 view of the network's input
        :return: a function of the whole observation that overwrites it
        """
        as_array = self._as_array()
        if self._statistics is None:

            def write(observation: Any) -> None:
                target[...] = as_array(observation)

            return write

        mean, std, clip = self._statistics
        high, work = np.full_like(std, clip), np.empty_like(mean)
        low, subtract, divide = -high, np.subtract, np.divide

        def write_normalised(observation: Any) -> None:
            subtract(as_array(observation), mean, work)
            divide(work, std, work)
            target[...] = _clip(work, low, high, work)

        return write_normalised

    def _as_array(self) -> Callable[[Any], np.ndarray]:
        """The entry as a flat array of the space's dtype."""
        key, as_array = self._key, partial(np.asarray, dtype=self._dtype)
        if key is None:
            return as_array if self._is_flat else lambda observation: as_array(observation).ravel()
        return lambda observation: as_array(observation[key]).ravel()


class BoxAction:
    """
    The last step of ``predict`` for ``Box`` action spaces: unscale a squashed action, clip any other.

    :param policy: the policy whose ``action_space`` and ``squash_output`` decide
    """

    def __init__(self, policy: "BasePolicy"):
        assert isinstance(policy.action_space, spaces.Box)
        self._low, self._high = policy.action_space.low.ravel(), policy.action_space.high.ravel()
        self._shape = policy.action_space.shape
        self._squashed = policy.squash_output

    def of(self, output: th.Tensor) -> Callable[[], np.ndarray]:
        """
        :param output: the network's output, overwritten from step to step
        :return: a function that makes a new array of it, within the action space
        """
        network, low, high = output.numpy(), self._low, self._high
        add, multiply = np.add, np.multiply
        one, half, span = np.ones_like(network), np.full_like(network, 0.5), high - low

        def unscaled() -> np.ndarray:  # low + (0.5 * (network + 1.0) * span)
            action = add(network, one)
            scaled = multiply(multiply(half, action, action), span)  # in double precision if the bounds are
            return add(low, scaled, scaled)

        action = unscaled if self._squashed else partial(_clip, network, low, high)
        return action if len(self._shape) == 1 else lambda: action().reshape(self._shape)


class GreedyAction:
    """
    The last step of ``predict`` for ``Discrete`` action spaces: the best of values, quantiles' means or probabilities.

    :param kind: what the network gives: ``"values"``, ``"quantiles"`` or ``"logits"``
    :param n_actions: size of the action space
    """

    def __init__(self, kind: str, n_actions: int):
        self.kind, self._n_actions = kind, n_actions

    def of(self, output: th.Tensor) -> Callable[[], np.int64]:
        """
        :param output: the network's output, overwritten from step to step
        :return: a function that makes the action of it
        """
        if self.kind == "quantiles":
            quantiles = output.view(-1, self._n_actions)
            return lambda: quantiles.mean(dim=0).numpy().argmax()
        if self.kind == "logits":  # Categorical normalises them, and takes the most probable
            return lambda: th.softmax(output - output.logsumexp(dim=-1, keepdim=True), dim=-1).numpy().argmax()
        return output.numpy().argmax


class ExactPolicy(DeterministicPolicy):
    """
    An MLP actor as ``torch.addmv`` on views of one flat, padded buffer: the bits of ``predict`` at a tenth of its cost.

    Every tensor from the input to the output is allocated once, so that a step consists of calls without arguments.

    :param inputs: entries of the observation, in the order in which they are concatenated
    :param layers: linear layers (their weights are copied) and elementwise activations, in order
    :param slices: for each linear layer, the places of its weight and bias in the vector (None: not searched)
    :param to_action: the step from the network's output to the action
    """

    def __init__(
        self,
        inputs: list[Input],
        layers: list[nn.Module],
        slices: list[tuple[slice | None, slice | None]],
        to_action: BoxAction | GreedyAction,
    ):
        self._arguments = (inputs, layers, slices, to_action)
        linears = [layer for layer in layers if isinstance(layer, nn.Linear)]
        self._buffer = th.zeros(sum(map(_padded_size, linears)))
        x = th.zeros(linears[0].in_features)
        ends = np.cumsum([entry.size for entry in inputs])
        self._writes = [e.into(x.numpy()[end - e.size : end]) for e, end in zip(inputs, ends, strict=True)]
        self._targets = []
        self._steps: list[Callable[[], Any]] = []
        start = 0
        for layer in layers:
            if isinstance(layer, nn.Linear):
                step, x = self._place_linear(layer, start, slices[linears.index(layer)], x)
                start += _padded_size(layer)
            else:
                step = _in_place(layer, x)
            self._steps.append(step)
        self._action = to_action.of(x)

    def _place_linear(
        self, layer: nn.Linear, start: int, where: tuple[slice | None, slice | None], x: th.Tensor
    ) -> tuple[Callable[[], Any], th.Tensor]:
        """Copy a layer into the buffer; return the call that evaluates it on ``x``, and its output."""
        tensors = []
        for values, searched in zip((layer.weight, layer.bias), where, strict=True):
            if values is None:
                continue
            view = self._buffer[start : start + values.numel()]
            view.copy_(values.detach().ravel())
            if searched is not None:
                self._targets.append((view.numpy(), searched))
            tensors.append(view.view_as(values))
            start += _pad(values.numel())
        output = th.empty(layer.out_features)
        if layer.bias is None:
            return partial(th.mv, tensors[0], x, out=output), output
        return partial(th.addmv, tensors[1], tensors[0], x, out=output), output

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments, self.extras

    def __call__(self, observation: Any) -> Any:
        for write in self._writes:
            write(observation)
        for step in self._steps:
            step()
        return self._action()


def _exact_policy(
    policy: "BasePolicy",
    parameters: "PolicyParameters",
    vec_normalize: "VecNormalize | None",
    observation_space: spaces.Space,
) -> ExactPolicy | None:
    """The exact policy, not checked against ``predict``; None for anything but a plain MLP."""
    network = network_of(policy)
    if network is None:
        return None
    named = {id(p): name for name, p in policy.named_parameters()}
    slices = parameters.slices()

    def where(parameter: th.Tensor | None) -> slice | None:
        return slices.get(named.get(id(parameter), ""))

    return ExactPolicy(
        inputs=inputs_of(network.keys, observation_space, vec_normalize),
        layers=network.layers,
        slices=[(where(x.weight), where(x.bias)) for x in network.layers if isinstance(x, nn.Linear)],
        to_action=network.to_action,
    )


class _Network(NamedTuple):
    keys: list[str | None]
    layers: list[nn.Module]
    to_action: BoxAction | GreedyAction


def network_of(policy: Any) -> _Network | None:
    """The layers from observation to action, and what makes the action of them; None for anything but a plain MLP."""
    from stable_baselines3.common.policies import ActorCriticPolicy

    kind = "values"
    if hasattr(policy, "q_net"):
        extractor, layers = policy.q_net.features_extractor, [*policy.q_net.q_net]
    elif hasattr(policy, "quantile_net"):
        extractor, layers, kind = (
            policy.quantile_net.features_extractor,
            [*policy.quantile_net.quantile_net],
            "quantiles",
        )
    elif hasattr(policy, "actor"):
        extractor, layers = policy.actor.features_extractor, _actor_layers(policy.actor)
    elif isinstance(policy, ActorCriticPolicy) and not hasattr(policy, "lstm_actor"):
        extractor, kind = policy.pi_features_extractor, "logits"
        layers = [*policy.mlp_extractor.policy_net, policy.action_net]
        layers += [nn.Tanh()] if policy.squash_output else []
    elif isinstance(getattr(policy, "action_net", None), nn.Sequential):  # sb3-contrib's ARS
        extractor, layers = policy.features_extractor, [*policy.action_net]
    else:
        return None
    keys = plain_keys(extractor, policy.observation_space)
    if keys is None or not all(map(_is_mlp_layer, layers)):
        return None
    if isinstance(policy.action_space, spaces.Discrete):
        return _Network(keys, layers, GreedyAction(kind, int(policy.action_space.n)))
    return _Network(keys, layers, BoxAction(policy)) if isinstance(policy.action_space, spaces.Box) else None


def _actor_layers(actor: Any) -> list[nn.Module]:
    if hasattr(actor, "latent_pi"):  # SAC, TQC and CrossQ squash the mean
        return [*actor.latent_pi, *(actor.mu if isinstance(actor.mu, nn.Sequential) else [actor.mu]), nn.Tanh()]
    return [*actor.mu]  # TD3's ends with its own Tanh


def _is_mlp_layer(layer: nn.Module) -> bool:
    activation = type(layer).__module__ == nn.ReLU.__module__ and not list(layer.parameters())
    return type(layer) is nn.Linear or activation


def plain_keys(extractor: nn.Module, space: spaces.Space) -> list[str | None] | None:
    """
    :param extractor: of features
    :param space: of observations
    :return: the entries of the observation in the order in which they are concatenated; None if more is done to them
    """
    from stable_baselines3.common.preprocessing import is_image_space
    from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor

    if any(is_image_space(part) for part in (space.values() if isinstance(space, spaces.Dict) else [space])):
        return None
    if type(extractor) is FlattenExtractor and isinstance(space, spaces.Box):
        return [None]
    if type(extractor) is CombinedExtractor and isinstance(space, spaces.Dict):
        flat = all(type(part) is nn.Flatten for part in extractor.extractors.values())
        if flat and all(isinstance(part, spaces.Box) for part in space.spaces.values()):
            return list(extractor.extractors)
    return None


def inputs_of(
    keys: list[str | None], observation_space: spaces.Space, vec_normalize: "VecNormalize | None"
) -> list[Input]:
    """
    :param keys: of the entries of the observation, in order
    :param observation_space: of the raw environment
    :param vec_normalize: frozen statistics, or None
    :return: what writes each entry
    """
    return [_input(key, observation_space, vec_normalize) for key in keys]


def _input(key: str | None, space: spaces.Space, vec_normalize: "VecNormalize | None") -> Input:
    statistics: Any = None if vec_normalize is None else vec_normalize.obs_rms
    if isinstance(space, spaces.Dict):
        assert key is not None
        return Input(key, space[key], (statistics or {}).get(key), vec_normalize)
    return Input(None, space, statistics, vec_normalize)


def _in_place(activation: nn.Module, x: th.Tensor) -> Callable[[], Any]:
    if type(activation) in (nn.ReLU, nn.Tanh):
        return partial(th.relu_ if type(activation) is nn.ReLU else th.tanh_, x)
    return lambda: x.copy_(activation(x))


def _pad(n_floats: int) -> int:
    return -(-n_floats // _ALIGNMENT) * _ALIGNMENT


def _padded_size(layer: nn.Linear) -> int:
    return sum(_pad(p.numel()) for p in layer.parameters())
