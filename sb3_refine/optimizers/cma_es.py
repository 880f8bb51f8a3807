"""CMA-ES: a normal distribution of policies whose shape follows the better ones."""

from copy import deepcopy
from typing import Any, ClassVar

import cmaes
import numpy as np

from sb3_refine.errors import RefineError, check_count
from sb3_refine.optimizers.base import Optimizer
from sb3_refine.optimizers.noise_table import noise_key
from sb3_refine.optimizers.population import ExplicitPopulation, Population

N_FULL = 1000
"""Most parameters for which the full covariance is the default. Its decomposition takes about a second there."""

N_FULL_LIMIT = 20_000
_N_MATRICES = 3  # that the library holds: covariance, eigenvectors, and what a decomposition needs


class CMAES(Optimizer):
    r"""
    Covariance matrix adaptation (Hansen and Ostermeier, 2001, "Completely derandomized self-adaptation in evolution
    strategies"), by the library ``cmaes`` (https://github.com/CyberAgentAILab/cmaes). With the parameters ``"head"``,
    this is the second phase of de Bruin et al., 2020, "Fine-tuning deep RL with gradient-free optimization": the
    encoder stays as it was trained, and the noise at the start is chosen by how much it changes the actions.

    The covariance has :math:`n^2` numbers for n parameters. Above :data:`N_FULL` parameters, the default is the
    separable variant, with a variance for each parameter and no covariances (Ros and Hansen, 2008, "A simple
    modification in CMA-ES achieving linear time and space complexity").

    :param theta: start point, shape ``(n_parameters,)``
    :param seed: seed of every candidate drawn
    :param n_updates: length of the search
    :param popsize: candidates of an update, at least 2; None for :math:`4 + \lfloor 3 \ln n \rfloor`
    :param sigma: standard deviation at the start, by how much it changes the actions, see
        :func:`~sb3_refine.policies.noise_scale.noise_scale`
    :param separable: whether to do without covariances; None for whether there are more than :data:`N_FULL` parameters
    :param lr_adapt: whether steps shorten where fitness is noisy (https://arxiv.org/abs/2401.15876); only with the full
        covariance
    :raises RefineError: when an argument is out of range, or when the covariance would not fit into memory
    """

    in_action_units: ClassVar = True
    presets: ClassVar = {"default": {"n_updates": 100}}

    def __init__(
        self,
        theta: np.ndarray,
        seed: int,
        n_updates: int,
        popsize: int | None = None,
        sigma: float = 0.25,
        separable: bool | None = None,
        lr_adapt: bool = True,
    ):
        super().__init__(theta, seed, n_updates)
        n = self.theta.size
        if popsize is not None:
            check_count("popsize", popsize, 2, at_most=10**6)
        if not 0 < sigma < np.inf:
            raise RefineError(f"sigma: expected a positive number, got {sigma}")
        if separable is False and n > N_FULL_LIMIT:
            needed = _N_MATRICES * 8 * n**2 / 1e9
            raise RefineError(
                f"separable: the covariance of {n} parameters takes {needed:,.0f} GB; leave `separable` out, or search "
                "fewer `parameters`, such as 'head'"
            )
        if n < 2:
            raise RefineError("cma-es: needs at least 2 parameters, got 1")
        self.popsize, self.sigma, self.separable, self.lr_adapt = popsize, sigma, separable, lr_adapt
        mean = self.theta.astype(np.float64)
        if n > N_FULL if separable is None else separable:
            self._cma: cmaes.CMA | cmaes.SepCMA = cmaes.SepCMA(mean, sigma, population_size=popsize)
        else:
            self._cma = cmaes.CMA(mean, sigma, population_size=popsize, lr_adapt=lr_adapt)

    @property
    def population_size(self) -> int:
        return int(self._cma.population_size)

    def _ask(self) -> Population:
        self._cma.reseed_rng(noise_key(self.seed, self.n_updates_done))  # so the state needs no generator
        return ExplicitPopulation([self._cma.ask() for _ in range(self.population_size)])

    def _tell(self, population: Population, fitness: np.ndarray) -> None:
        if np.isnan(fitness).all():
            return
        losses = -np.where(np.isnan(fitness), np.nanmin(fitness), fitness)
        thetas = [population.theta(index).astype(np.float64) for index in range(len(population))]
        self._cma.tell(list(zip(thetas, losses.tolist(), strict=True)))
        self.theta = self._cma.mean.astype(np.float32)

    def state_dict(self) -> dict[str, Any]:
        """:return: see :meth:`Optimizer.state_dict`"""
        state = {name: value for name, value in self._cma.__getstate__().items() if value is not None}
        return {**super().state_dict(), "cma": deepcopy(state)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """:param state: see :meth:`Optimizer.load_state_dict`"""
        super().load_state_dict(state)
        everything = dict.fromkeys(self._cma.__getstate__())
        self._cma.__setstate__({**everything, **deepcopy(state["cma"])})
