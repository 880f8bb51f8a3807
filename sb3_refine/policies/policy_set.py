"""Several policies on the same workers."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from sb3_refine.policies.base import DeterministicPolicy


class PolicySet(DeterministicPolicy):
    """
    Policies for the same environment, with networks and statistics of their own. The parameter vector has one entry:
    the number of the policy that acts.

    :param policies: at least one
    """

    def __init__(self, policies: Sequence[DeterministicPolicy]):
        self._targets = []
        self._policies = tuple(policies)
        self._acting = self._policies[0]

    @property
    def n_parameters(self) -> int:
        return 1

    def __call__(self, observation: Any) -> Any:
        return self._acting(observation)

    def begin_episode(self, env: gym.Env) -> None:
        self._acting.begin_episode(env)

    def set_theta(self, theta: np.ndarray) -> None:
        self._acting = self._policies[int(theta[0])]
        self.normalisation = self._acting.normalisation
