"""Evolution strategies as OpenAI uses them."""

from typing import Any, ClassVar

import numpy as np

from sb3_refine.errors import RefineError, check_count
from sb3_refine.optimizers.base import Optimizer, check_schedule, linear_schedule
from sb3_refine.optimizers.noise_table import noise_keys, weighted_sum
from sb3_refine.optimizers.population import Population, antithetic


class OpenAIES(Optimizer):
    r"""
    Evolution strategies with mirrored sampling, centred ranks and Adam (https://arxiv.org/abs/1703.03864, Algorithm 1
    and section 2.1; Adam: https://arxiv.org/abs/1412.6980, Algorithm 1):

    .. math:: g = \frac{1}{2 n \sigma} \sum_{i=1}^{n} (u_i^+ - u_i^-) \, \delta_i, \qquad
        \theta \leftarrow \theta - \lambda (\theta - \theta_0) + \mathrm{Adam}(g)

    where the utilities u are the ranks of the fitness among all candidates, from -0.5 to 0.5. The weight decay is
    decoupled from Adam (https://arxiv.org/abs/1711.05101), and pulls towards the original parameters, not towards zero.

    :param theta: start point :math:`\theta_0`, shape ``(n_parameters,)``
    :param seed: seed of every direction drawn
    :param n_updates: length of the search, for the schedules
    :param n_delta: number of directions an update; each costs two episodes
    :param learning_rate: step size of Adam, in the unit of ``delta_std``, or its start and end over the search
    :param delta_std: standard deviation :math:`\sigma` of the noise, by how much it changes the actions, see
        :func:`~sb3_refine.policies.noise_scale.noise_scale`, or its start and end over the search
    :param betas: decay rates of Adam's averages of the gradient and of its square
    :param weight_decay: :math:`\lambda`, from 0 to 1
    :raises RefineError: when an argument is out of range
    """

    in_action_units: ClassVar = True
    decays_to_zero: ClassVar = False
    presets: ClassVar = {"default": {"n_updates": 80}}

    def __init__(
        self,
        theta: np.ndarray,
        seed: int,
        n_updates: int,
        n_delta: int = 16,
        learning_rate: float | tuple[float, float] = (0.03, 0.003),
        delta_std: float | tuple[float, float] = (0.2, 0.02),
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
    ):
        super().__init__(theta, seed, n_updates)
        check_count("n_delta", n_delta, 1, at_most=10**6)
        check_schedule("learning_rate", learning_rate)
        check_schedule("delta_std", delta_std)
        if linear_schedule(delta_std, 0.0) == 0:
            raise RefineError(f"delta_std: expected a positive start, got {delta_std}")
        if np.shape(betas) != (2,) or not all(0 <= beta < 1 for beta in betas):
            raise RefineError(f"betas: expected two numbers from 0 to below 1, got {betas}")
        if not 0 <= weight_decay <= 1:
            raise RefineError(f"weight_decay: expected a number from 0 to 1, got {weight_decay}")
        self.n_delta, self.learning_rate, self.delta_std = n_delta, learning_rate, delta_std
        self.betas, self.weight_decay = betas, weight_decay
        self._decay_to = np.zeros_like(self.theta) if self.decays_to_zero else self.theta.copy()
        self._mean: np.ndarray = np.zeros_like(self.theta)
        self._square: np.ndarray = np.zeros_like(self.theta)
        self._n_steps = 0

    @property
    def population_size(self) -> int:
        return 2 * self.n_delta

    @property
    def _progress(self) -> float:
        return self.n_updates_done / self.n_updates

    def _ask(self) -> Population:
        std = linear_schedule(self.delta_std, self._progress)
        return antithetic(self.theta, std, self.seed, self.n_updates_done, self.n_delta)

    def _tell(self, population: Population, fitness: np.ndarray) -> None:
        plus, minus = utilities_of_pairs(fitness)
        if not (plus.any() or minus.any()):
            return
        weights = (plus - minus) / (2 * linear_schedule(self.delta_std, self._progress))
        keys = noise_keys(self.seed, self.n_updates_done, self.n_delta)
        gradient = weighted_sum(self.seed, keys, weights, self.theta.size)
        if self.weight_decay:
            self.theta = self.theta - np.float32(self.weight_decay) * (self.theta - self._decay_to)
        self._adam(gradient)

    def _adam(self, gradient: np.ndarray) -> None:
        self._n_steps += 1
        first, second = (np.float32(beta) for beta in self.betas)
        self._mean = first * self._mean + (1 - first) * gradient
        self._square = second * self._square + (1 - second) * gradient**2
        mean, square = self._mean / (1 - first**self._n_steps), self._square / (1 - second**self._n_steps)
        step = np.float32(linear_schedule(self.learning_rate, self._progress))
        with np.errstate(over="ignore", invalid="ignore"):  # the search checks its iterates
            self.theta = self.theta + step * mean / (np.sqrt(square) + np.float32(1e-8))

    def state_dict(self) -> dict[str, Any]:
        """:return: see :meth:`Optimizer.state_dict`"""
        arrays = {"decay_to": self._decay_to, "mean": self._mean, "square": self._square}
        copies = {name: array.copy() for name, array in arrays.items()}
        return {**super().state_dict(), **copies, "n_steps": self._n_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """:param state: see :meth:`Optimizer.load_state_dict`"""
        super().load_state_dict(state)
        self._decay_to, self._mean, self._square = (state[name].copy() for name in ("decay_to", "mean", "square"))
        self._n_steps = state["n_steps"]


class PlainOpenAIES(OpenAIES):
    r"""
    :class:`OpenAIES` with noise and steps in units of the parameters, and weight decay towards zero. The preset
    ``es-transformers`` has the settings with which Lorenc (https://arxiv.org/abs/2501.13883v1, section III-C) refines a
    pretrained Decision Transformer: noise and step size 0.01, half of what they are without pretraining or less, weight
    decay by 0.995, division by the noise. Different here: Adam, for the authors' SGD with momentum, and the number of
    candidates: they use 20,000 in each update, four times as many as for a small network; 128 are four times as many
    as those of our default.

    See :class:`OpenAIES` for the arguments; ``learning_rate`` and ``delta_std`` are 0.01 in all presets.
    """

    in_action_units: ClassVar = False
    decays_to_zero: ClassVar = True
    presets: ClassVar = {
        "default": {"n_updates": 80, "learning_rate": 0.01, "delta_std": 0.01},
        "es-transformers": {
            "n_updates": 40, "n_delta": 64, "learning_rate": 0.01, "delta_std": 0.01, "weight_decay": 0.005,
        },
    }  # fmt: skip


def centred_ranks(values: np.ndarray) -> np.ndarray:
    """
    :param values: finite, at least two
    :return: their ranks, scaled to -0.5 (lowest) to 0.5 (highest); equal values share the mean of their ranks
    """
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = counts.cumsum() - (counts + 1) / 2  # of the distinct values, from 0
    return ranks[places] / (values.size - 1) - 0.5


def utilities_of_pairs(fitness: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    :param fitness: of the candidates of antithetic pairs; a pair with NaN is dropped
    :return: centred ranks of the first and of the second candidate of each pair, divided by the number of pairs that
        are left; zero for those that are dropped, and everywhere if all fitness is equal
    """
    whole = np.isfinite(fitness[0::2] + fitness[1::2])
    of_whole = np.repeat(whole, 2)
    utilities = np.zeros_like(fitness)
    if whole.any():
        utilities[of_whole] = centred_ranks(fitness[of_whole]) / whole.sum()
    return utilities[0::2], utilities[1::2]
