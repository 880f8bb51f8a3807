"""
A normal distribution over the parameters of an actor and a critic, and its gradients by evolution strategies.

Equations are those of Shen et al., "Meta Reinforcement Learning with Distribution of Exploration Parameters Learned by
Evolution Strategies" (https://arxiv.org/abs/1812.11314).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sb3_refine.optimizers.noise_table import direction, noise_keys
from sb3_refine.optimizers.population import Population


@dataclass(frozen=True)
class Shape:
    """
    What is drawn from a distribution for one adaptation.

    :param n_actor: parameters of the actor
    :param n_critic: parameters of the critic
    :param n_explorers: actors that explore a task, the paper's K
    """

    n_actor: int
    n_critic: int
    n_explorers: int

    @property
    def size(self) -> int:
        """Parameters of an actor and a critic."""
        return self.n_actor + self.n_critic

    @property
    def drawn_size(self) -> int:
        """Numbers of a draw: the explorers and a critic."""
        return self.n_explorers * self.n_actor + self.n_critic

    def split(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        :param theta: a distribution, shape ``(2 * size,)``
        :return: the means and the standard deviations, those of the actor first, shape ``(size,)`` each
        """
        return theta[: self.size], theta[self.size :]

    def draw(self, theta: np.ndarray, keys: Sequence[int], seed: int) -> tuple[np.ndarray, np.ndarray]:
        """
        :param theta: a distribution
        :param keys: of the explorers and, last, of the critic, see
            :func:`~sb3_refine.optimizers.noise_table.noise_key`
        :param seed: of the noise table
        :return: the explorers, shape ``(n_explorers, n_actor)``, and the critic, shape ``(n_critic,)``
        """
        mean, std = self.split(theta)
        actors = np.stack([self.noise(seed, key)[: self.n_actor] for key in keys[:-1]])
        actors = mean[: self.n_actor] + std[: self.n_actor] * actors
        critic = mean[self.n_actor :] + std[self.n_actor :] * self.noise(seed, keys[-1])[: self.n_critic]
        return actors, critic

    def noise(self, seed: int, key: int) -> np.ndarray:
        """
        :param seed: of the noise table
        :param key: of a slice
        :return: noise for an actor or a critic: of the longer of both, as each length has a table of its own
        """
        return direction(seed, key, max(self.n_actor, self.n_critic))

    def keys(self, seed: int, number: int = 0) -> list[int]:
        """
        :param seed: of the search, or of an episode
        :param number: of the draw
        :return: keys for :meth:`draw`
        """
        return noise_keys(seed, number, self.n_explorers + 1)


class MetaPopulation(Population):
    """
    Draws from a distribution: all adapt to the same tasks.

    :param shape: of a draw
    :param theta: the distribution
    :param keys: of each draw
    :param seed: of the noise table
    """

    def __init__(self, shape: Shape, theta: np.ndarray, keys: Sequence[Sequence[int]], seed: int):
        self.shape, self.distribution, self.keys, self.seed = shape, theta.copy(), [list(own) for own in keys], seed
        self.groups = [0] * len(self.keys)

    def theta(self, index: int) -> np.ndarray:
        """:return: the explorers, one after the other, then the critic"""
        actors, critic = self.shape.draw(self.distribution, self.keys[index], self.seed)
        return np.concatenate([actors.ravel(), critic])

    def describe(self, index: int) -> str:
        """:return: what error messages call the draw"""
        return f"draw {index} from the distribution"


def gradients(
    shape: Shape, population: MetaPopulation, actor_fitness: np.ndarray, critic_fitness: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    r"""
    The gradients of the expected fitness (Eq. 10), of the actor's part by the actor's fitness, of the critic's part by
    the critic's. With :math:`\theta = \mu + \sigma \varepsilon`, :math:`(\theta - \mu) / \sigma^2` is
    :math:`\varepsilon / \sigma`, and :math:`((\theta - \mu)^2 - \sigma^2) / \sigma^3` is
    :math:`(\varepsilon^2 - 1) / \sigma`.

    :param shape: of a draw
    :param population: the draws
    :param actor_fitness: of each draw; NaN counts nothing
    :param critic_fitness: of each draw; NaN counts nothing
    :return: with respect to the means and to the standard deviations, float32 of shape ``(size,)`` each
    """
    n, sums = shape.n_actor, np.zeros((2, shape.size), dtype=np.float32)
    for keys, of_actor, of_critic in zip(
        population.keys, np.nan_to_num(actor_fitness), np.nan_to_num(critic_fitness), strict=True
    ):
        for key in keys[:-1]:
            _add(sums[:, :n], shape.noise(population.seed, key)[:n], of_actor)
        _add(sums[:, n:], shape.noise(population.seed, keys[-1])[: shape.n_critic], of_critic)
    _, std = shape.split(population.distribution)
    of_mean, of_std = np.divide(sums, len(population) * std, out=np.zeros_like(sums), where=std > 0)
    return of_mean, of_std


def _add(sums: np.ndarray, noise: np.ndarray, weight: float) -> None:
    sums[0] += np.float32(weight) * noise
    sums[1] += np.float32(weight) * (np.square(noise) - 1)
