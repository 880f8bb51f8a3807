"""Policy gradients with parameter-based exploration: a standard deviation for each parameter."""

import math
from typing import Any, ClassVar

import numpy as np

from sb3_refine.errors import RefineError, check_count
from sb3_refine.optimizers.base import Optimizer
from sb3_refine.optimizers.noise_table import direction, noise_keys, weighted_sum
from sb3_refine.optimizers.openai_es import utilities_of_pairs
from sb3_refine.optimizers.population import Population, antithetic


class PGPE(Optimizer):
    r"""
    PGPE with symmetric sampling and ClipUp (Sehnke et al., 2010, "Parameter-exploring policy gradients"; Toklu et al.,
    2020, "ClipUp", https://arxiv.org/abs/2008.02387), with centred ranks u as fitness:

    .. math::
        g = \frac{1}{n} \sum_{i=1}^{n} \frac{u_i^+ - u_i^-}{2} \, \sigma \odot \delta_i, \qquad
        s = \frac{1}{n} \sum_{i=1}^{n} \frac{u_i^+ + u_i^-}{2} \, \sigma \odot (\delta_i^2 - 1)

    The velocity :math:`v \leftarrow m v + \alpha g / \lVert g \rVert` is clipped to a maximum norm and added to
    :math:`\theta`; :math:`\sigma` moves by :math:`s` times its own learning rate.

    :param theta: start point, shape ``(n_parameters,)``
    :param seed: seed of every direction drawn
    :param n_updates: length of the search
    :param n_delta: number of directions an update; each costs two episodes
    :param stdev_init: standard deviation :math:`\sigma` of all parameters at the start, by how much it changes the
        actions, see :func:`~sb3_refine.policies.noise_scale.noise_scale`
    :param max_speed: maximum norm of a step, in units of the norm of the noise at the start
    :param momentum: m, from 0 to below 1
    :param stdev_learning_rate: of :math:`\sigma`
    :param stdev_max_change: most that :math:`\sigma` changes in an update, as a share of it
    :raises RefineError: when an argument is out of range
    """

    in_action_units: ClassVar = True
    presets: ClassVar = {"default": {"n_updates": 80}}

    def __init__(
        self,
        theta: np.ndarray,
        seed: int,
        n_updates: int,
        n_delta: int = 16,
        stdev_init: float = 0.2,
        max_speed: float = 1 / 15,
        momentum: float = 0.9,
        stdev_learning_rate: float = 0.1,
        stdev_max_change: float = 0.2,
    ):
        super().__init__(theta, seed, n_updates)
        check_count("n_delta", n_delta, 1, at_most=10**6)
        for name, value in (("stdev_init", stdev_init), ("max_speed", max_speed)):
            if not value > 0:
                raise RefineError(f"{name}: expected a positive number, got {value}")
        if not 0 <= momentum < 1:
            raise RefineError(f"momentum: expected a number from 0 to below 1, got {momentum}")
        for name, value in (("stdev_learning_rate", stdev_learning_rate), ("stdev_max_change", stdev_max_change)):
            if not 0 <= value <= 1:
                raise RefineError(f"{name}: expected a number from 0 to 1, got {value}")
        self.n_delta, self.stdev_init, self.max_speed, self.momentum = n_delta, stdev_init, max_speed, momentum
        self.stdev_learning_rate, self.stdev_max_change = stdev_learning_rate, stdev_max_change
        self._std: np.ndarray = np.full_like(self.theta, stdev_init)
        self._velocity: np.ndarray = np.zeros_like(self.theta)

    @property
    def population_size(self) -> int:
        return 2 * self.n_delta

    def _ask(self) -> Population:
        return antithetic(self.theta, self._std, self.seed, self.n_updates_done, self.n_delta)

    def _tell(self, population: Population, fitness: np.ndarray) -> None:
        plus, minus = (each.astype(np.float32) for each in utilities_of_pairs(fitness))
        keys = noise_keys(self.seed, self.n_updates_done, self.n_delta)
        gradient = weighted_sum(self.seed, keys, (plus - minus) / 2, self.theta.size)
        of_std = np.zeros_like(self.theta)
        for key, weight in zip(keys, (plus + minus) / 2, strict=True):
            of_std += weight * (direction(self.seed, key, self.theta.size) ** 2 - 1)
        self._clip_up(gradient * self._std)
        change = self.stdev_learning_rate * of_std
        self._std = self._std * (1 + np.clip(change, -self.stdev_max_change, self.stdev_max_change))

    def _clip_up(self, gradient: np.ndarray) -> None:
        """With half of the maximum speed as the learning rate, as EvoTorch has it by default."""
        max_speed = self.max_speed * self.stdev_init * math.sqrt(self.theta.size)
        norm = float(np.linalg.norm(gradient))
        if norm > 0:
            velocity = np.float32(self.momentum) * self._velocity + np.float32(max_speed / 2 / norm) * gradient
            speed = float(np.linalg.norm(velocity))
            self._velocity = velocity * np.float32(min(1.0, max_speed / speed) if speed > 0 else 1.0)
            self.theta = self.theta + self._velocity

    def state_dict(self) -> dict[str, Any]:
        """:return: see :meth:`Optimizer.state_dict`"""
        return {**super().state_dict(), "std": self._std.copy(), "velocity": self._velocity.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """:param state: see :meth:`Optimizer.load_state_dict`"""
        super().load_state_dict(state)
        self._std, self._velocity = state["std"].copy(), state["velocity"].copy()
