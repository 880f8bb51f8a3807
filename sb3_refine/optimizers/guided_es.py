"""Guided evolution strategies: half of the noise is in a subspace that is likely to have the gradient in it."""

import math
from collections import deque
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from sb3_refine.errors import RefineError, check_count
from sb3_refine.optimizers.base import Optimizer, check_schedule, linear_schedule
from sb3_refine.optimizers.noise_table import direction, noise_keys
from sb3_refine.optimizers.population import Population, pair_weights


class GuidedES(Optimizer):
    r"""
    Guided evolution strategies (Maheswaranathan et al., 2019, https://arxiv.org/abs/1806.10230). The subspace has the
    last updates in it and, for agents whose critic rates actions, :math:`\nabla_\theta Q(s, \pi_\theta(s))` at the
    start. With its orthonormal basis U, directions of the paper's distribution, scaled to the length of normal noise on
    n parameters, and the step are

    .. math::
        \epsilon_i = \sqrt{a} \, z_i + \sqrt{(1 - a) \frac{n}{k}} \, U w_i, \qquad
        z_i \sim N(0, I_n), \; w_i \sim N(0, I_k), \qquad
        \theta \leftarrow \theta + \frac{\alpha \sigma}{N} \sum_{i=1}^{N} \frac{R_i^+ - R_i^-}{\sigma_R} \epsilon_i

    with the root mean square :math:`\sigma_R` of the differences.

    :param theta: start point, shape ``(n_parameters,)``
    :param seed: seed of every direction drawn
    :param n_updates: length of the search, for the schedule
    :param n_delta: number N of directions an update; each costs two episodes
    :param n_guides: number of last updates in the subspace; 0 for the critic's gradient alone
    :param noise_share: a, from 0 to 1: share of the variance of the noise that is not in the subspace
    :param learning_rate: step size :math:`\alpha`, in units of the noise, or its start and end over the search
    :param delta_std: :math:`\sigma`, the change of the actions by the noise, see
        :func:`~sb3_refine.policies.noise_scale.noise_scale`, or its start and end over the search
    :raises RefineError: when an argument is out of range
    """

    in_action_units: ClassVar = True
    uses_critic_gradient: ClassVar = True
    presets: ClassVar = {"default": {"n_updates": 80}}

    def __init__(
        self,
        theta: np.ndarray,
        seed: int,
        n_updates: int,
        n_delta: int = 16,
        n_guides: int = 8,
        noise_share: float = 0.5,
        learning_rate: float | tuple[float, float] = (0.8, 0.2),
        delta_std: float | tuple[float, float] = (0.2, 0.1),
    ):
        super().__init__(theta, seed, n_updates)
        check_count("n_delta", n_delta, 1, at_most=10**6)
        check_count("n_guides", n_guides, 0, at_most=1000)
        if not 0 <= noise_share <= 1:
            raise RefineError(f"noise_share: expected a number from 0 to 1, got {noise_share}")
        check_schedule("learning_rate", learning_rate)
        check_schedule("delta_std", delta_std)
        self.n_delta, self.n_guides, self.noise_share = n_delta, n_guides, noise_share
        self.learning_rate, self.delta_std = learning_rate, delta_std
        self._updates: deque[np.ndarray] = deque(maxlen=n_guides)

    @property
    def population_size(self) -> int:
        return 2 * self.n_delta

    def _ask(self) -> Population:
        std = linear_schedule(self.delta_std, self.n_updates_done / self.n_updates)
        keys = noise_keys(self.seed, self.n_updates_done, self.n_delta)
        return GuidedPopulation(self.theta, std, keys, self._basis(), self.noise_share, self.seed)

    def _tell(self, population: Population, fitness: np.ndarray) -> None:
        assert isinstance(population, GuidedPopulation)
        weights = pair_weights(fitness)
        if not weights.any():
            return
        step = np.zeros_like(self.theta)
        for number, weight in enumerate(weights):
            step += np.float32(weight) * population.direction(number)
        learning_rate = linear_schedule(self.learning_rate, self.n_updates_done / self.n_updates)
        with np.errstate(over="ignore", invalid="ignore"):  # the search checks its iterates
            step *= np.float32(learning_rate * population.std)
            self.theta = self.theta + step
        self._updates.append(step)

    def _basis(self) -> np.ndarray:
        """Orthonormal, shape ``(k, n_parameters)``; k is 0 while there is nothing to be guided by."""
        guides = [each / np.linalg.norm(each) for each in (*self._updates, self.critic_gradient) if each.any()]
        columns = np.array(guides, dtype=np.float64).reshape(len(guides), self.theta.size).T
        return np.ascontiguousarray(np.linalg.qr(columns)[0].T, dtype=np.float32)

    def state_dict(self) -> dict[str, Any]:
        """:return: see :meth:`Optimizer.state_dict`"""
        updates = [each.copy() for each in self._updates]
        return {**super().state_dict(), "updates": updates, "critic_gradient": self.critic_gradient.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """:param state: see :meth:`Optimizer.load_state_dict`"""
        super().load_state_dict(state)
        self._updates = deque((each.copy() for each in state["updates"]), maxlen=self.n_guides)
        self.critic_gradient = state["critic_gradient"].copy()


class GuidedPopulation(Population):
    """
    Pairs of candidates, plus and minus directions that are partly in a subspace.

    :param theta: the point to perturb, float32 of shape ``(n_parameters,)``
    :param std: of the perturbation
    :param keys: of each direction, see :func:`~sb3_refine.optimizers.noise_table.noise_key`
    :param basis: of the subspace, orthonormal, float32 of shape ``(k, n_parameters)``
    :param noise_share: share of the variance that is not in the subspace
    :param seed: seed of the noise table
    """

    def __init__(
        self, theta: np.ndarray, std: float, keys: Sequence[int], basis: np.ndarray, noise_share: float, seed: int
    ):
        self.center, self.std, self.keys, self.basis = theta.copy(), std, list(keys), basis
        self.noise_share, self.seed = noise_share, seed
        self.groups = [number for number in range(len(keys)) for _ in range(2)]

    def theta(self, index: int) -> np.ndarray:
        sign = -1.0 if index % 2 else 1.0
        return self.center + np.float32(sign * self.std) * self.direction(index // 2)

    def direction(self, number: int) -> np.ndarray:
        """
        :param number: of a direction
        :return: float32 of shape ``(n_parameters,)``, with the mean square of normal noise
        """
        k, n = self.basis.shape
        noise = direction(self.seed, self.keys[number], n)
        if k == 0:
            return noise
        weights = np.random.default_rng([self.seed, self.keys[number]]).standard_normal((k, 1), dtype=np.float32)
        guided = np.float32(math.sqrt((1 - self.noise_share) * n / k)) * (weights * self.basis).sum(axis=0)
        return np.float32(math.sqrt(self.noise_share)) * noise + guided

    def describe(self, index: int) -> str:
        sign = "-" if index % 2 else "+"
        return f"candidate {index}, the policy perturbed by {sign}{self.std:g} times direction {index // 2}"
