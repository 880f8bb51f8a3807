"""Augmented Random Search."""

from typing import ClassVar

import numpy as np

from sb3_refine.errors import RefineError, check_count
from sb3_refine.optimizers.base import Optimizer, check_schedule, linear_schedule
from sb3_refine.optimizers.noise_table import direction, noise_key
from sb3_refine.optimizers.population import Population, antithetic


class ARS(Optimizer):
    r"""
    Augmented Random Search as "Direct Random Search for Fine Tuning of Deep RL Policies" uses it
    (https://arxiv.org/abs/2109.05604, Algorithm 1, after https://arxiv.org/abs/1803.07055, V1):

    .. math:: \theta \leftarrow \theta + \frac{\alpha}{n \sigma_R} \sum_{i=1}^{n} (R_i^+ - R_i^-) \, \delta_i

    with unit-normal directions and candidates :math:`\theta \pm \sigma \delta_i`. The two candidates of a pair share
    their episode seed. (The paper prints the difference the other way round; its code has it as here.)

    :param theta: start point, shape ``(n_parameters,)``
    :param seed: seed of every direction drawn
    :param n_updates: length of the search, for the schedules
    :param n_delta: number of directions an update; each costs two episodes
    :param n_top: how many directions, by ``max(R+, R-)``, enter the update; None for all. The divisor stays ``n_delta``
    :param learning_rate: step size, or its start and end over the search
    :param delta_std: standard deviation of the perturbation, or its start and end over the search
    :raises RefineError: when an argument is out of range
    """

    presets: ClassVar = {
        "default": {"n_updates": 80},
        "paper": {"n_updates": 200, "n_delta": 64, "selection": False},  # section II-B: one setting for every result
    }

    def __init__(
        self,
        theta: np.ndarray,
        seed: int,
        n_updates: int,
        n_delta: int = 16,
        n_top: int | None = None,
        learning_rate: float | tuple[float, float] = (0.02, 0.002),
        delta_std: float | tuple[float, float] = (0.025, 0.0025),
    ):
        super().__init__(theta, seed, n_updates)
        check_count("n_delta", n_delta, 1, at_most=10**6)
        check_count("n_top", 1 if n_top is None else n_top, 1)
        if n_top is not None and n_top > n_delta:
            raise RefineError(f"n_top: expected 1 to n_delta={n_delta}, got {n_top}")
        check_schedule("learning_rate", learning_rate)
        check_schedule("delta_std", delta_std)
        self.n_delta = n_delta
        self.n_top = n_top
        self.learning_rate = learning_rate
        self.delta_std = delta_std

    @property
    def population_size(self) -> int:
        return 2 * self.n_delta

    def _ask(self) -> Population:
        std = linear_schedule(self.delta_std, self.n_updates_done / self.n_updates)
        return antithetic(self.theta, std, self.seed, self.n_updates_done, self.n_delta)

    def _tell(self, population: Population, fitness: np.ndarray) -> None:
        step = linear_schedule(self.learning_rate, self.n_updates_done / self.n_updates)
        plus, minus = fitness[0::2], fitness[1::2]
        whole = np.isfinite(plus + minus)  # a pair that lost a candidate is dropped
        if not whole.any():
            return
        sigma = np.concatenate([plus[whole], minus[whole]]).std()
        top = np.argsort(np.where(whole, -np.maximum(plus, minus), np.inf), kind="stable")[: self.n_top or self.n_delta]
        # Algorithm 1's alpha / (n sigma_R); the code's 1e-6 keeps it finite when all returns are equal
        weights = step / (self.n_delta * sigma + 1e-6) * np.where(whole, plus - minus, 0.0)
        with np.errstate(over="ignore", invalid="ignore"):  # the search checks its iterates
            for number in sorted(top):
                key = noise_key(self.seed, self.n_updates_done, int(number))
                self.theta += np.float32(weights[number]) * direction(self.seed, key, self.theta.size)
