"""The policy and the value of an agent, as a tree search needs them."""

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecNormalize

from sb3_refine.agents.agent import Agent
from sb3_refine.agents.copies import with_own_policy
from sb3_refine.envs.observations import stacked
from sb3_refine.errors import RefineError
from sb3_refine.policies.general import as_vec_env_would, is_stateful
from sb3_refine.policies.parameters import FlatParameters, PolicyParameters, action_scores

ALGOS = ("a2c", "dqn", "ppo", "ppo_mask", "qrdqn", "trpo")
"""With a policy or values over discrete actions."""

_N_AT_ONCE = 1024  # observations
_OF_TRAINING = ("q_net_target.", "quantile_net_target.")  # parameters that neither policy nor value depends on


class Network:
    """
    Policy and value of an agent: of actor-critic agents, their own; of value-based ones, a softmax of the values of the
    actions, and the highest of these.

    :param policy: of a Stable-Baselines3 model; a copy of it when this object is sent to another process
    :param statistics: to normalise observations with, or None
    :param space: of the observations of the environment
    :param value_scale: of the values, in units of the rewards
    :param temperature: of the softmax, in units of the values of a value-based agent
    """

    def __init__(
        self,
        policy: Any,
        statistics: VecNormalize | None,
        space: spaces.Space,
        value_scale: float = 1.0,
        temperature: float = 1.0,
    ):
        self.policy, self._statistics, self._space = policy, statistics, space
        self.value_scale, self.temperature = value_scale, temperature
        self.uses_masks = "action_masks" in inspect.signature(policy.predict).parameters
        """Whether the policy takes a mask of the valid actions."""
        self.parameters = parameters_of(policy)

    @property
    def is_value_based(self) -> bool:
        """Whether the policy is a softmax of values."""
        return hasattr(self.policy, "q_net") or hasattr(self.policy, "quantile_net")

    def evaluate(self, observation: Any, mask: np.ndarray | None) -> tuple[np.ndarray, float]:
        """See :class:`~sb3_refine.planning.tree.PriorAndValue`."""
        with th.no_grad():
            log_probs, values = self.forward(self.batch([observation]), None if mask is None else mask[np.newaxis])
        logits = log_probs[0].numpy().astype(np.float64)
        if mask is not None:
            logits[~mask] = -np.inf
        powers = np.exp(logits - logits.max())
        return powers / powers.sum(), float(values[0]) * self.value_scale

    def batch(self, observations: Sequence[Any]) -> Any:
        """
        :param observations: raw
        :return: the same, as the policy takes them
        """
        batch = stacked([as_vec_env_would(each, self._space) for each in observations])
        if self._statistics is not None and self._statistics.norm_obs:
            batch = self._statistics.normalize_obs(batch)
        return self.policy.obs_to_tensor(batch)[0]

    def values(self, observations: Sequence[Any]) -> np.ndarray:
        """
        :param observations: raw
        :return: the value of each, in units of the rewards
        """
        parts = [observations[first : first + _N_AT_ONCE] for first in range(0, len(observations), _N_AT_ONCE)]
        with th.no_grad():
            return np.concatenate([self.forward(self.batch(part))[1].numpy() for part in parts]) * self.value_scale

    def forward(self, batch: Any, masks: np.ndarray | None = None) -> tuple[th.Tensor, th.Tensor]:
        """
        :param batch: of :meth:`batch`
        :param masks: which actions are valid, shape ``(n_observations, n_actions)``; None for all
        :return: log-probabilities of the actions, and values in units of the agent's training
        """
        if self.is_value_based:
            values = action_scores(self.policy, batch)
            return th.log_softmax(values / self.temperature, dim=1), values.max(dim=1).values
        masked = {} if masks is None else {"action_masks": masks}
        distribution = self.policy.get_distribution(batch, **masked).distribution
        return distribution.logits, self.policy.predict_values(batch).flatten()


def parameters_of(policy: Any) -> FlatParameters:
    """
    :param policy: of a Stable-Baselines3 model
    :return: all parameters that policy and value depend on
    """
    named = policy.named_parameters()
    return FlatParameters({name: each for name, each in named if not name.startswith(_OF_TRAINING)})


def network_of(agent: Agent, observations: Sequence[Any], temperature: float = 1.0) -> Network:
    """
    :param agent: that :func:`check_agent` lets pass
    :param observations: of the agent's own episodes, raw
    :param temperature: of a value-based agent's softmax, in units of the standard deviation of the values over the
        actions, averaged over the observations
    :return: with a policy of its own, on the CPU
    """
    policy: Any = with_own_policy(agent).model.policy
    policy.set_training_mode(False)
    scale, statistics = 1.0, agent.vec_normalize
    if statistics is not None and statistics.norm_reward:
        scale = float(np.sqrt(statistics.ret_rms.var + statistics.epsilon))
    network = Network(policy.to("cpu"), agent.statistics, agent.observation_space, scale)
    if network.is_value_based:
        with th.no_grad():
            values = action_scores(network.policy, network.batch(observations))
        spread = float(values.std(dim=1, correction=0).mean())
        network.temperature = temperature * (spread if spread > 0 else 1.0)
    return network


def trained_names(policy: Any, scope: str) -> list[str]:
    """
    :param policy: of a Stable-Baselines3 model
    :param scope: of the parameters behind the action, see :class:`~sb3_refine.policies.parameters.PolicyParameters`
    :return: names of these parameters, and of those behind the value alone; with ``"head"``, of its last layer
    """
    behind_action = set(PolicyParameters(policy).names)
    chosen = set(PolicyParameters(policy, scope).names)
    of_value = [name for name in parameters_of(policy).names if name not in behind_action and name != "log_std"]
    if scope != "actor":
        of_value = [name for name in of_value if name.startswith("value_net.")]
    return [name for name in parameters_of(policy).names if name in chosen or name in of_value]


def check_agent(agent: Agent) -> None:
    """
    :param agent: any
    :raises RefineError: when a tree search cannot be led by this agent
    """
    space = agent.model.action_space
    if not isinstance(space, spaces.Discrete):
        raise RefineError(f"env: a tree search needs discrete actions, and this agent has {space}; use another method")
    if is_stateful(agent.model.policy):
        raise RefineError("model: a tree search needs a policy without a memory of earlier steps; use another method")
    if agent.algo not in ALGOS:
        known = ", ".join(ALGOS)
        raise RefineError(f"algo: a tree search needs an agent of {known}, not {agent.algo}; use another method")
