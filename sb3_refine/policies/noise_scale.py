"""How large the noise on each parameter may be, measured by what the noise does to the actions."""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy

from sb3_refine.policies.base import one_thread
from sb3_refine.policies.parameters import PolicyParameters, action_scores

_N_DRAWS = 8  # of noise, over which a change is averaged
_SMALL = 0.01  # noise under which scores change about linearly
_REFERENCE = 0.1  # change at which the scale is measured
_N_CORRECTIONS = 8


def noise_scale(policy: BasePolicy, parameters: PolicyParameters, observations: Any) -> np.ndarray:
    """
    The standard deviation of normal noise on each parameter that changes the actions by one unit, extrapolated from a
    tenth of a unit (parameter noise by its effect on the actions: https://arxiv.org/abs/1706.01905, section 3).

    For continuous actions, the change is the root mean square over observations and dimensions, and a unit is half the
    range of the action. For discrete ones, the change is that of the values or logits, and a unit is the root mean
    square of their differences from the mean over the actions: how often another action is taken says less, as the best
    two actions are often about equal.

    Each tensor of parameters has a standard deviation of its own, with which it changes the actions as much as every
    other tensor does: layers differ in how sensitive the actions are to them (https://arxiv.org/abs/1712.06563).

    :param policy: policy of a Stable-Baselines3 model; its parameters are the same afterwards
    :param parameters: those of the policy that get noise
    :param observations: a batch of observations, as the policy sees them
    :return: standard deviations, float32 of shape ``(n_parameters,)``; 0 where a tensor does not change the actions
    """
    theta, scale = parameters.get_theta(), np.zeros(parameters.size, dtype=np.float32)
    policy.set_training_mode(False)
    try:
        with th.no_grad(), one_thread():
            change = _Change(policy, parameters, observations)
            for where in parameters.slices().values():
                small = np.zeros_like(theta)
                small[where] = _SMALL
                found = change.by(small)
                scale[where] = _SMALL / found if found > 0 else 0.0
            for _ in range(_N_CORRECTIONS):  # noise on all tensors, and larger noise, add up in no simple way
                found = change.by(scale * np.float32(_REFERENCE))
                scale *= np.float32(np.clip(_REFERENCE / max(found, 1e-9), 0.25, 4.0))
    finally:
        parameters.set_theta(theta)
    return scale


class _Change:
    """Measures how noise on the parameters changes what the actions are made from, on a batch of observations."""

    def __init__(self, policy: BasePolicy, parameters: PolicyParameters, observations: Any):
        self._policy, self._parameters = policy, parameters
        self._batch, _ = policy.obs_to_tensor(observations)
        self._theta = parameters.get_theta()
        self._draws = np.random.default_rng(0).standard_normal((_N_DRAWS, self._theta.size), dtype=np.float32)
        self._before = self._scores()
        self._unit = self._unit_of(self._before)

    def by(self, std: np.ndarray) -> float:
        """
        :param std: of normal noise on each parameter
        :return: root mean square of the change, in units of the action
        """
        changes = []
        for draw in self._draws:
            self._parameters.set_theta(self._theta + std * draw)
            changes.append(np.square((self._scores() - self._before) / self._unit).mean())
        return float(np.sqrt(np.mean(changes)))

    def _scores(self) -> np.ndarray:
        scores = action_scores(self._policy, self._batch).cpu().numpy()
        if isinstance(self._policy.action_space, spaces.Box):
            return scores
        return scores - scores.mean(axis=1, keepdims=True)  # adding one number to all scores changes no action

    def _unit_of(self, scores: np.ndarray) -> np.ndarray | float:
        space = self._policy.action_space
        if not isinstance(space, spaces.Box):
            return float(np.sqrt(np.square(scores).mean())) or 1.0
        if self._policy.squash_output:  # to [-1, 1]
            return 1.0
        half_range = (space.high - space.low) / 2
        return np.where(np.isfinite(half_range) & (half_range > 0), half_range, 1.0)
