"""Deterministic policies for rollouts, whose searched parameters can be overwritten at the cost of a copy."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th

from sb3_refine.envs.observations import Normalisation


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
    """Flat float32 views of the searched tensors, and the place of each in the vector."""

    normalisation: Normalisation | None = None
    """Of the observations, for trajectories."""

    rounding: Callable[[np.ndarray], np.ndarray] | None = None
    """Of parameters before they are written, see :class:`~sb3_refine.policies.rounding.Rounding`; or None."""

    @property
    def extras(self) -> dict[str, Any]:
        """What a copy in another process needs beside the arguments of the constructor."""
        return {"normalisation": self.normalisation, "rounding": self.rounding}

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

    def begin_episode(self, env: gym.Env) -> None:  # noqa: B027
        """
        Called after each reset of the environment. Recurrent policies reset their state.

        :param env: the raw environment
        """

    def note_action(self, action: Any) -> None:  # noqa: B027
        """
        Called after a step in which another action than that of this policy was taken. Policies that see earlier
        actions note it.

        :param action: that the environment got
        """

    def set_theta(self, theta: np.ndarray) -> None:
        """
        Write parameters into the policy, in place.

        :param theta: float32 vector of the searched parameters
        """
        if self.rounding is not None:
            theta = self.rounding(theta)
        for target, where in self._targets:
            target[:] = theta[where]
