"""Deterministic policies for rollouts, whose searched parameters can be overwritten at the cost of a copy."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
from gymnasium import spaces
from torch import nn

if TYPE_CHECKING:  # workers that run the exact policy need not import Stable-Baselines3
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.policies import BasePolicy
    from stable_baselines3.common.vec_env import VecNormalize

    from sb3_refine.parameters import PolicyParameters

logger = logging.getLogger(__name__)

_ALIGNMENT = 4  # floats: MKL's gemv gives other bits when a weight matrix is not aligned to 16 bytes


@contextmanager
def one_thread() -> Iterator[None]:
    """
    Run torch on one thread, as every worker does: on more, the bits of a larger layer depend on how many there are.
    """
    n_threads = th.get_num_threads()
    th.set_num_threads(1)
    try:
        yield
    finally:
        th.set_num_threads(n_threads)


class DeterministicPolicy(ABC):
    """
    Maps a raw observation to the deterministic action, under parameters that a search overwrites.

    The action has the bits of ``model.predict`` for that single observation with torch on one thread.
    """

    _targets: list[tuple[np.ndarray, slice]]
    """Flat float32 views of the searched tensors, and where in the vector each lies."""

    @property
    def n_parameters(self) -> int:
        """Length of the vector."""
        return sum(target.size for target, _ in self._targets)

    @abstractmethod
    def __call__(self, observation: Any) -> Any:
        """
        :param observation: one observation of the raw environment
        :return: the maximum-likelihood action, as ``model.predict(..., deterministic=True)`` gives it for the
            normalised observation
        """

    def set_parameters(self, mean: np.ndarray, direction: np.ndarray | None = None, scale: float = 0.0) -> None:
        """
        Write ``mean + scale * direction`` into the policy, in place.

        :param mean: float32 vector of the searched parameters
        :param direction: vector of the same shape, or None for the mean itself
        :param scale: signed standard deviation
        """
        for target, where in self._targets:
            if direction is None:
                target[:] = mean[where]
            else:
                np.multiply(direction[where], np.float32(scale), out=target)
                np.add(target, mean[where], out=target)


class Normalizer:
    """
    Frozen observation normalisation, bit-equal to ``VecNormalize.normalize_obs``.

    :param vec_normalize: the statistics; copied, so later training does not reach them
    """

    def __init__(self, vec_normalize: "VecNormalize"):
        statistics: Any = vec_normalize.obs_rms
        self._mean = np.array(statistics.mean)
        self._std = np.sqrt(statistics.var + vec_normalize.epsilon)
        self._clip = float(vec_normalize.clip_obs)
        self._work = np.empty_like(self._mean)

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        """
        :param observation: raw observation
        :return: the normalised observation in float64, in a buffer that the next call overwrites
        """
        work = self._work
        np.subtract(observation, self._mean, out=work)
        np.divide(work, self._std, out=work)
        np.maximum(work, -self._clip, out=work)
        return np.minimum(work, self._clip, out=work)


class ActionBounds:
    """
    The last step of ``predict`` for ``Box`` action spaces: unscale a squashed action, clip any other.

    :param policy: the policy whose ``action_space`` and ``squash_output`` decide
    """

    def __init__(self, policy: "BasePolicy"):
        assert isinstance(policy.action_space, spaces.Box)
        self.low, self.high = policy.action_space.low.ravel(), policy.action_space.high.ravel()
        self.shape = policy.action_space.shape
        self.squashed = policy.squash_output

    def __call__(self, action: np.ndarray) -> np.ndarray:
        """
        :param action: the network's output
        :return: a new array within the action space
        """
        if self.squashed:
            bounded = self.low + (0.5 * (action + 1.0) * (self.high - self.low))
        else:
            bounded = np.minimum(np.maximum(action, self.low), self.high)
        return bounded if bounded.ndim == len(self.shape) else bounded.reshape(self.shape)


class ExactPolicy(DeterministicPolicy):
    """
    An MLP actor as ``torch.addmv`` on views of one flat, padded buffer: the bits of ``predict`` at a tenth of its cost.

    :param layers: linear layers (their weights are copied) and elementwise activations, in order
    :param slices: for each linear layer, where its weight and bias lie in the vector (None: not searched)
    :param normalizer: frozen normalisation, or None
    :param bounds: the step from the network's output to the action
    :param dtype: dtype that a ``VecEnv`` would cast the raw observation to
    """

    def __init__(
        self,
        layers: list[nn.Module],
        slices: list[tuple[slice | None, slice | None]],
        normalizer: Normalizer | None,
        bounds: ActionBounds,
        dtype: np.dtype,
    ):
        self._arguments = (layers, slices, normalizer, bounds, dtype)
        linears = [layer for layer in layers if isinstance(layer, nn.Linear)]
        self._buffer = th.zeros(sum(map(_padded_size, linears)))
        self._input = th.zeros(linears[0].in_features)
        self._input_array = self._input.numpy()
        self._normalizer, self._bounds, self._dtype = normalizer, bounds, dtype
        self._targets = []
        self._steps = []
        start = 0
        for layer in layers:
            if isinstance(layer, nn.Linear):
                where = slices[linears.index(layer)]
                self._steps.append(self._place_linear(layer, start, where))
                start += _padded_size(layer)
            else:
                self._steps.append(_IN_PLACE.get(type(layer), layer.forward))

    def _place_linear(self, layer: nn.Linear, start: int, where: tuple[slice | None, slice | None]) -> Any:
        """Copy a layer into the buffer and return the call that evaluates it."""
        tensors = []
        for values, searched in zip((layer.weight, layer.bias), where, strict=True):
            view = self._buffer[start : start + values.numel()]
            view.copy_(values.detach().ravel())
            if searched is not None:
                self._targets.append((view.numpy(), searched))
            tensors.append(view.view_as(values))
            start += _pad(values.numel())
        weight, bias = tensors
        return partial(th.addmv, bias, weight, out=th.empty(layer.out_features))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        observation = np.asarray(observation, dtype=self._dtype).reshape(-1)
        self._input_array[:] = observation if self._normalizer is None else self._normalizer(observation)
        x = self._input
        for step in self._steps:
            x = step(x)
        return self._bounds(x.numpy())


class GeneralPolicy(DeterministicPolicy):
    """
    Any Stable-Baselines3 policy, through its own ``predict``.

    :param policy: the policy; a copy of it when this object is sent to another process
    :param slices: where in the vector each searched parameter lies, by name
    :param vec_normalize: frozen normalisation without its environment, or None
    :param dtype: dtype that a ``VecEnv`` would cast the raw observation to
    """

    def __init__(
        self,
        policy: "BasePolicy",
        slices: dict[str, slice],
        vec_normalize: "VecNormalize | None",
        dtype: np.dtype,
    ):
        self._arguments = (policy, slices, vec_normalize, dtype)
        self._policy, self._vec_normalize, self._dtype = policy, vec_normalize, dtype
        named = dict(policy.named_parameters())
        self._targets = [(named[name].detach().view(-1).numpy(), where) for name, where in slices.items()]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        observation = np.asarray(observation, dtype=self._dtype)
        if self._vec_normalize is not None:
            observation = self._vec_normalize.normalize_obs(observation)  # type: ignore[assignment]
        return self._policy.predict(observation, deterministic=True)[0]


def rollout_policy(
    model: "BaseAlgorithm",
    parameters: "PolicyParameters",
    vec_normalize: "VecNormalize | None",
    observation_space: spaces.Space,
) -> DeterministicPolicy:
    """
    The policy to roll out with: the exact one where it reproduces ``predict`` bit for bit, else the general one.

    :param model: the agent's model
    :param parameters: its searched parameters
    :param vec_normalize: its observation normalisation, or None
    :param observation_space: observation space of the raw environment
    :return: a policy that can be pickled
    """
    if vec_normalize is not None and not vec_normalize.norm_obs:
        vec_normalize = None
    assert observation_space.dtype is not None
    general = GeneralPolicy(model.policy, parameters.slices(), vec_normalize, observation_space.dtype)
    layers = _actor_layers(model.policy)
    if layers is None:
        logger.info("general policy: the actor is not a plain MLP")
        return general
    named = {id(p): name for name, p in model.policy.named_parameters()}
    slices = parameters.slices()
    linears = [layer for layer in layers if isinstance(layer, nn.Linear)]
    exact = ExactPolicy(
        layers=layers,
        slices=[(slices.get(named[id(x.weight)]), slices.get(named[id(x.bias)])) for x in linears],
        normalizer=None if vec_normalize is None else Normalizer(vec_normalize),
        bounds=ActionBounds(model.policy),
        dtype=observation_space.dtype,
    )
    if not _same_actions(exact, general, observation_space):
        logger.warning("general policy: the exact one differs from model.predict on this machine")
        return general
    return exact


_IN_PLACE = {nn.ReLU: th.relu_, nn.Tanh: th.tanh_}


def _actor_layers(policy: "BasePolicy") -> list[nn.Module] | None:
    """The layers from observation to action of an MLP actor, or None where it is anything else."""
    from stable_baselines3.common.policies import ActorCriticPolicy
    from stable_baselines3.common.torch_layers import FlattenExtractor

    if isinstance(policy, ActorCriticPolicy):
        extractor = policy.pi_features_extractor
        layers = [*policy.mlp_extractor.policy_net, policy.action_net]
        squashed = policy.squash_output
    else:
        actor = getattr(policy, "actor", None)
        if actor is None:
            return None
        extractor = actor.features_extractor
        layers = [*getattr(actor, "latent_pi", ()), *(actor.mu if isinstance(actor.mu, nn.Sequential) else [actor.mu])]
        squashed = hasattr(actor, "latent_pi")  # TD3's mu ends with its own Tanh
    if squashed:
        layers.append(nn.Tanh())
    plain = all(
        (isinstance(x, nn.Linear) and x.bias is not None) or type(x).__module__ == nn.ReLU.__module__ for x in layers
    )
    return layers if plain and type(extractor) is FlattenExtractor else None


def _same_actions(exact: ExactPolicy, general: GeneralPolicy, space: spaces.Space, n_observations: int = 64) -> bool:
    """Whether two policies give the same bits on random observations, from tiny ones to some far outside the usual."""
    assert isinstance(space, spaces.Box)
    rng = np.random.default_rng(0)
    magnitudes = np.geomspace(1e-2, 1e2, n_observations)
    observations = [(x * rng.standard_normal(space.shape)).astype(space.dtype) for x in magnitudes]
    with one_thread():
        return all(np.array_equal(exact(x), general(x)) for x in observations)


def _pad(n_floats: int) -> int:
    return -(-n_floats // _ALIGNMENT) * _ALIGNMENT


def _padded_size(layer: nn.Linear) -> int:
    return _pad(layer.weight.numel()) + _pad(layer.bias.numel())
