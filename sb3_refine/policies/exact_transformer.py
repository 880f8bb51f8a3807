"""Transformers with the bits of ``predict`` at two fifths of its cost."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import gymnasium as gym
import torch as th
from gymnasium import spaces
from torch import nn
from torch.nn import functional as F

from sb3_refine.policies.exact import _ALIGNMENT, BoxAction, GreedyAction, inputs_of, plain_keys
from sb3_refine.policies.general import StatefulPolicy

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecNormalize

    from sb3_refine.policies.transformer import TransformerPolicy

_N_STEPS = 256  # that fit into the memory before it is moved back to the beginning


class ExactTransformer(StatefulPolicy):
    """
    One environment, one step at a time: keys and values stay where they are, in a memory that is longer than the
    context and through which the context moves. What is computed, and in which order, is what
    :meth:`~sb3_refine.policies.transformer.CausalTransformer.step` does.

    :param policy: a transformer that :func:`is_exact` is true for
    :param slices: the place of each searched parameter in the vector, by name
    :param vec_normalize: frozen normalisation without its environment, or None
    :param space: observation space of the raw environment
    """

    _policy: "TransformerPolicy"

    def __init__(
        self,
        policy: "TransformerPolicy",
        slices: dict[str, slice],
        vec_normalize: "VecNormalize | None",
        space: spaces.Space,
    ):
        super().__init__(policy, slices, vec_normalize, space)
        transformer, action_space = policy.transformer, policy.action_space
        action_net: Any = policy.action_net
        keys = plain_keys(policy.pi_features_extractor, policy.observation_space)
        assert keys is not None
        inputs = inputs_of(keys, space, vec_normalize)
        self._observation = th.zeros(sum(entry.size for entry in inputs))
        parts = self._observation.split([entry.size for entry in inputs])
        self._writes = [entry.into(part.numpy()) for entry, part in zip(inputs, parts, strict=True)]
        self._embed_dim, self._context = transformer.embed_dim, transformer.context
        n_slots = 1 + self._context + _N_STEPS
        self._memory = th.zeros(len(transformer.blocks), 2, n_slots, self._embed_dim)
        self._memories = [tuple(each) for each in self._memory]
        self._n_heads = transformer.blocks[0].n_heads
        self._embed = (
            _linear(transformer.embed_observation),
            _linear(transformer.embed_action),
            _norm(transformer.embed_norm),
        )
        self._blocks = [_Functions.of(block) for block in transformer.blocks]
        self._head = _norm(transformer.norm), _linear(action_net)
        self._output = th.zeros(action_net.out_features)
        self._acted = th.zeros(transformer.embed_action.in_features)
        is_box = isinstance(action_space, spaces.Box)
        to_action = BoxAction(policy) if is_box else GreedyAction("logits", self._output.numel())
        self._action, self._is_box = to_action.of(self._output), is_box
        if is_box:
            self._middle, self._half_range = policy.action_middle.flatten(), policy.action_half_range.flatten()

    def begin_episode(self, env: gym.Env) -> None:
        transformer = self._policy.transformer
        with th.no_grad():
            self._first = transformer.first_memory(self._policy._target())[:, :, 0, :1]
            ages = th.arange(self._context, -1, -1)
            is_hidden = ages > th.arange(self._context)[:, None]
            is_hidden[:, 0] = False  # the target return
            bias = F.pad(transformer.age_bias.flip(2), (1, 0))[None, :, None, :, None]
            self._biases = bias.masked_fill(is_hidden[:, None, None, None, None], -th.inf)
            self._memory.zero_()
            self._memory[:, :, :1] = self._first
            self._acted.zero_()
        self._start = self._n_steps = 0

    def __call__(self, observation: Any) -> Any:
        with th.no_grad():
            for write in self._writes:
                write(observation)
            self._compute()
            action = self._action()
            self.note_action(action)
            self._advance()
        return action

    def note_action(self, action: Any) -> None:
        if self._is_box:
            taken = th.as_tensor(action, dtype=th.float32).flatten()
            th.div(taken - self._middle, self._half_range, out=self._acted)
        else:
            self._acted.zero_()
            self._acted[int(action)] = 1.0

    def _compute(self) -> None:
        """From the observation and the last action to the output."""
        observe, act, norm = self._embed
        token = norm(observe(self._observation).add_(act(self._acted)))
        biases = self._biases[min(self._n_steps, self._context - 1)]
        first, new = self._start, self._start + self._context
        size, n_heads = self._embed_dim, self._n_heads
        shape = (1, n_heads, 1 + self._context, size // n_heads)
        strides = (0, size // n_heads, size, 1)
        for block, (keys, values), bias in zip(self._blocks, self._memories, biases, strict=True):
            projected = block.query_key_value(block.attention_norm(token))
            query, keys[new], values[new] = projected.split(size)
            offset = first * size
            attended = F.scaled_dot_product_attention(
                query.view(1, n_heads, 1, -1),
                keys.as_strided(shape, strides, keys.storage_offset() + offset),
                values.as_strided(shape, strides, values.storage_offset() + offset),
                attn_mask=bias,
            )
            token = token + block.projection(attended.view(size))
            token = token + block.last(block.first(block.feed_forward_norm(token)).relu_())
        norm, head = self._head
        self._output.copy_(head(norm(token)))

    def _advance(self) -> None:
        """Move the context by a step; its first token is the target return, always."""
        self._n_steps, self._start = self._n_steps + 1, self._start + 1
        if self._start == _N_STEPS:
            self._memory[:, :, : self._context] = self._memory[:, :, self._start : self._start + self._context].clone()
            self._start = 0
        self._memory[:, :, self._start : self._start + 1] = self._first


Function = Callable[[th.Tensor], th.Tensor]


class _Functions(NamedTuple):
    """The layers of a block, without the cost of calling a module."""

    attention_norm: Function
    query_key_value: Function
    projection: Function
    feed_forward_norm: Function
    first: Function
    last: Function

    @classmethod
    def of(cls, block: Any) -> "_Functions":
        first, _, last = block.feed_forward
        return cls(
            _norm(block.attention_norm),
            _linear(block.query_key_value),
            _linear(block.projection),
            _norm(block.feed_forward_norm),
            _linear(first),
            _linear(last),
        )


def _linear(layer: Any) -> Function:
    weight = layer.weight.detach()
    return partial(th.mv, weight) if layer.bias is None else partial(th.addmv, layer.bias.detach(), weight)


def _norm(layer: nn.LayerNorm) -> Function:
    shape, weight, bias, eps = list(layer.normalized_shape), layer.weight.detach(), layer.bias.detach(), layer.eps
    return lambda token: th.layer_norm(token, shape, weight, bias, eps)


def is_exact(policy: "TransformerPolicy") -> bool:
    """
    :param policy: a transformer
    :return: whether there is an exact policy for its observations and actions
    """
    is_known = isinstance(policy.action_space, (spaces.Box, spaces.Discrete))
    head_size = policy.transformer.embed_dim // policy.transformer.blocks[0].n_heads
    if head_size % _ALIGNMENT:  # MKL gives other bits where a row is not aligned
        return False
    return is_known and plain_keys(policy.pi_features_extractor, policy.observation_space) is not None
