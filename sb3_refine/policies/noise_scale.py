"""How large the noise on each parameter may be, measured by what the noise does to the actions."""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy

from sb3_refine.errors import NoEffectError
from sb3_refine.policies.base import one_thread
from sb3_refine.policies.parameters import PolicyParameters, action_scores
from sb3_refine.policies.transformer import TransformerPolicy

_N_DRAWS = 8  # of noise, over which a change is averaged
_SIZES = (0.01, 0.1, 1.0)  # of noise: small, so that scores change about linearly, unless smaller noise changes nothing
_LEAST = 1e-4  # change of the actions by noise of 1 on a tensor, below which the tensor counts as having no influence
_REFERENCE = 0.1  # change at which the scale is measured
_N_CORRECTIONS = 8


def noise_scale(
    policy: BasePolicy, parameters: PolicyParameters, observations: Any, balance: float = 0.25
) -> np.ndarray:
    """
    The standard deviation of normal noise on each parameter that changes the actions by one unit, extrapolated from a
    tenth of a unit (parameter noise by its effect on the actions: https://arxiv.org/abs/1706.01905, section 3).

    For continuous actions, the change is the root mean square over observations and dimensions, before actions are
    clipped to their range, and a unit is half the range. For discrete ones, the change is that of the values or logits,
    and a unit is the root mean square of their differences from the mean over the actions: how often another action is
    taken says less, as the best two actions are often about equal. ``MultiDiscrete`` has a unit for each of its parts;
    for ``MultiBinary``, a unit is the root mean square of the logits. A recurrent policy and a transformer see the
    observations as one episode; a transformer, with the actions before the noise.

    Each tensor of parameters has a standard deviation of its own, as layers differ in how sensitive the actions are to
    them (https://arxiv.org/abs/1712.06563): a power of the one with which the tensor alone changes the actions by one
    unit. In our runs, the fourth root did well on more agents than the square root and than either end of ``balance``.

    :param policy: policy of a Stable-Baselines3 model; its parameters are the same afterwards
    :param parameters: those of the policy that get noise
    :param observations: a batch of observations, as the policy sees them
    :param balance: the power: 0 for one standard deviation for all tensors, 1 for tensors that each change the actions
        as much as every other does
    :return: standard deviations, float32 of shape ``(n_parameters,)``; 0 where a tensor does not change the actions
    :raises NoEffectError: when none does
    """
    theta, scale = parameters.get_theta(), np.zeros(parameters.size, dtype=np.float32)
    policy.set_training_mode(False)
    try:
        with th.no_grad(), one_thread():
            change = _Change(policy, parameters, observations)
            for where in parameters.slices().values():
                scale[where] = change.std_for_one_unit(where)
            if not scale.any():
                raise NoEffectError(
                    "optimizer: no noise on the parameters changes the actions in the agent's own episodes; use "
                    "`optimizer='ars'`, whose noise is in units of the parameters, or other `parameters`"
                )
            scale[scale > 0] = scale[scale > 0] ** balance * scale[scale > 0].min() ** (1 - balance)
            for _ in range(_N_CORRECTIONS):  # noise on all tensors, and larger noise, add up in no simple way
                found = change.by(scale * np.float32(_REFERENCE))
                scale *= np.float32(np.clip(_REFERENCE / max(found, 1e-9), 0.25, 4.0))
    finally:
        parameters.set_theta(theta)
    return scale


class _Change:
    """Measures how noise on the parameters changes what the actions are made from, on a batch of observations."""

    def __init__(self, policy: Any, parameters: PolicyParameters, observations: Any):
        self._policy, self._parameters = policy, parameters
        self._batch, _ = policy.obs_to_tensor(observations)
        self._theta = parameters.get_theta()
        self._draws = np.random.default_rng(0).standard_normal((_N_DRAWS, self._theta.size), dtype=np.float32)
        is_transformer = isinstance(policy, TransformerPolicy)
        self._previous_actions = policy.previous_actions(self._batch) if is_transformer else None
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

    def std_for_one_unit(self, where: slice) -> float:
        """
        :param where: a tensor's place among the parameters
        :return: noise on this tensor alone that changes the actions by one unit, to first order; 0 if none does
        """
        for size in _SIZES:
            std = np.zeros_like(self._theta)
            std[where] = size
            found = self.by(std)
            if found > _LEAST * size:
                return size / found
        return 0.0

    def _scores(self) -> np.ndarray:
        scores = action_scores(self._policy, self._batch, self._previous_actions).cpu().numpy()
        scores = scores.reshape(len(scores), -1)
        if isinstance(self._policy.action_space, (spaces.Box, spaces.MultiBinary)):
            return scores
        parts = np.split(scores, self._starts_of_parts(), axis=1)
        # adding one number to all scores of a part changes no action
        return np.concatenate([part - part.mean(axis=1, keepdims=True) for part in parts], axis=1)

    def _unit_of(self, scores: np.ndarray) -> np.ndarray:
        space = self._policy.action_space
        if not isinstance(space, spaces.Box):
            parts = np.split(scores, self._starts_of_parts(), axis=1)
            units = [np.sqrt(np.square(part).mean()) or 1.0 for part in parts]
            return np.repeat(units, [part.shape[1] for part in parts]).astype(np.float32)
        if self._policy.squash_output:  # to [-1, 1]
            return np.ones(scores.shape[1], np.float32)
        half_range = (space.high - space.low).ravel() / 2
        return np.where(np.isfinite(half_range) & (half_range > 0), half_range, 1.0)

    def _starts_of_parts(self) -> np.ndarray:
        """Where, among the scores, those of the second and further parts of a ``MultiDiscrete`` action begin."""
        space = self._policy.action_space
        return np.cumsum(space.nvec.ravel())[:-1] if isinstance(space, spaces.MultiDiscrete) else np.empty(0, int)
