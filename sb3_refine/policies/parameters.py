"""Which numbers of a policy the search may move, as one flat vector."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from gymnasium.vector.utils import create_empty_array
from stable_baselines3.common.policies import BasePolicy
from torch import nn

from sb3_refine.errors import RefineError
from sb3_refine.policies.transformer import TransformerPolicy

SCOPES = ("actor", "head")


class FlatParameters:
    """
    Tensors as one flat float32 vector.

    :param parameters: by name; read and written in place
    """

    def __init__(self, parameters: dict[str, nn.Parameter]):
        self._parameters = parameters

    @property
    def names(self) -> list[str]:
        """Names of the parameters, as in ``policy.named_parameters()``, in the order of the vector."""
        return list(self._parameters)

    @property
    def size(self) -> int:
        """Length of the vector."""
        return sum(p.numel() for p in self._parameters.values())

    def slices(self) -> dict[str, slice]:
        """:return: the place of each parameter in the vector, by name"""
        slices, start = {}, 0
        for name, parameter in self._parameters.items():
            slices[name] = slice(start, start + parameter.numel())
            start += parameter.numel()
        return slices

    def get_theta(self) -> np.ndarray:
        """:return: a copy of the parameters, float32 of shape ``(size,)``"""
        return np.concatenate([p.detach().cpu().numpy().ravel() for p in self._parameters.values()], dtype=np.float32)

    def set_theta(self, theta: np.ndarray) -> None:
        """
        Write the parameters into the policy. The tensors keep their identity, so optimizers stay valid.

        :param theta: shape ``(size,)``
        :raises RefineError: when the shape differs
        """
        if theta.shape != (self.size,):
            raise RefineError(f"theta: expected shape ({self.size},), got {theta.shape}")
        with th.no_grad():
            for name, where in self.slices().items():
                parameter = self._parameters[name]
                values = np.ascontiguousarray(theta[where], dtype=np.float32)
                parameter.copy_(th.from_numpy(values).view_as(parameter))


class PolicyParameters(FlatParameters):
    """
    The parameters behind the deterministic action, as one flat float32 vector.

    Which ones they are is read off the computation itself: a parameter belongs if the deterministic action has a
    gradient path to it. So the value net, the critics and ``log_std`` are never part, and a features extractor
    that the actor shares with the critic is.

    :param policy: policy of a Stable-Baselines3 model; its parameters are read and written in place
    :param scope: ``"actor"``: all of them; ``"head"``: the last linear layer alone, the encoder frozen;
        anything else is a regular expression searched in the parameters' names
    :raises RefineError: when nothing matches the scope
    """

    def __init__(self, policy: BasePolicy, scope: str = "actor"):
        if not scope:
            raise RefineError(f"parameters: expected one of {SCOPES} or a regular expression, got an empty text")
        influential = _influential_parameters(policy)
        if scope == "actor":
            chosen = influential
        elif scope == "head":
            head = _last_linear(policy, influential)
            chosen = {name: p for name, p in influential.items() if name.startswith(f"{head}.")}
        else:
            chosen = {name: p for name, p in influential.items() if _matches(scope, name)}
        if not chosen:
            raise RefineError(
                f"parameters: {scope!r} matches none of the parameters behind the action; "
                f"use {', '.join(map(repr, SCOPES))}, or a regular expression over: {', '.join(influential)}"
            )
        super().__init__(chosen)
        self.scope = scope


def action_scores(
    policy: Any, observation: th.Tensor | dict[str, th.Tensor], previous_actions: th.Tensor | None = None
) -> th.Tensor:
    """
    The differentiable quantity that the deterministic action is made from.

    :param policy: policy of a Stable-Baselines3 model
    :param observation: batch of observations as the policy's ``obs_to_tensor`` makes them; for a recurrent policy or a
        transformer, those of one episode
    :param previous_actions: of a transformer, see
        :meth:`~sb3_refine.policies.transformer.TransformerPolicy.previous_actions`; None for those that it would take
    :return: the action itself for ``Box`` action spaces, before it is rescaled or clipped to the space; for discrete
        ones, the values or logits of all actions, one part of the action after the other
    """
    if hasattr(policy, "lstm_actor") or isinstance(policy, TransformerPolicy):
        return _scores(_distribution_in_episode(policy, observation, previous_actions), policy.action_space)
    if isinstance(policy.action_space, spaces.Box):
        return policy._predict(observation, deterministic=True)
    if hasattr(policy, "q_net"):
        return policy.q_net(observation)
    if hasattr(policy, "quantile_net"):
        return policy.quantile_net(observation).mean(dim=1)
    if isinstance(getattr(policy, "action_net", None), nn.Sequential):  # sb3-contrib's ARS
        return policy.action_net(policy.extract_features(observation, policy.features_extractor))
    return _scores(policy.get_distribution(observation), policy.action_space)


def _distribution_in_episode(policy: Any, observation: Any, previous_actions: th.Tensor | None) -> Any:
    """Of a policy with a state, for the observations of an episode."""
    if isinstance(policy, TransformerPolicy):
        return policy.get_distribution(observation, previous_actions)
    zeros = th.zeros(policy.lstm_hidden_state_shape, device=policy.device)
    n_observations = len(next(iter(observation.values())) if isinstance(observation, dict) else observation)
    starts = th.zeros(n_observations, device=policy.device)
    starts[0] = 1
    return policy.get_distribution(observation, (zeros, zeros), starts)[0]


def _scores(distribution: Any, action_space: spaces.Space) -> th.Tensor:
    if isinstance(action_space, spaces.Box):
        return distribution.get_actions(deterministic=True)
    inner = distribution.distribution if hasattr(distribution, "distribution") else distribution.distributions
    return th.cat([part.logits for part in (inner if isinstance(inner, list) else [inner])], dim=-1)


@contextmanager
def differentiable(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """
    Allow gradients with respect to parameters, also to those that the agent has frozen.

    :param parameters: left as they were
    """
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        with th.enable_grad():
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _influential_parameters(policy: BasePolicy) -> dict[str, nn.Parameter]:
    """Parameters that the deterministic action has a gradient path to, in registration order."""
    named = dict(policy.named_parameters())
    policy.set_training_mode(False)
    zeros: Any = create_empty_array(policy.observation_space, n=2, fn=np.zeros)  # of two: the second has a past
    observation, _ = policy.obs_to_tensor(zeros)
    with differentiable(named.values()):
        score = action_scores(policy, observation).sum()
        gradients = th.autograd.grad(score, list(named.values()), allow_unused=True)
    return {name: p for (name, p), gradient in zip(named.items(), gradients, strict=True) if gradient is not None}


def _last_linear(policy: BasePolicy, influential: dict[str, nn.Parameter]) -> str:
    """Name of the last linear layer behind the action: the action-selection layer."""
    owners = [
        name
        for name, module in policy.named_modules()
        if isinstance(module, nn.Linear) and f"{name}.weight" in influential
    ]
    if not owners:
        raise RefineError("parameters: this policy has no linear layer before the action; use parameters='actor'")
    return owners[-1]


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.search(pattern, name) is not None
    except re.error as error:
        raise RefineError(f"parameters: {pattern!r} is no valid regular expression ({error})") from error
