"""An agent learns what tree searches have found: the policy their visits, the value their returns."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch as th
from torch.optim.lr_scheduler import LambdaLR

from sb3_refine.errors import RefineError, check_count
from sb3_refine.planning.network import Network, trained_names
from sb3_refine.planning.policy import Planned

_MAX_GRAD_NORM = 1.0
_N_AT_ONCE = 1024  # plans, where no gradient is needed


@dataclass(frozen=True)
class LearningSettings:
    """
    How an agent learns in each round.

    :param n_gradient_steps: of Adam
    :param batch_size: steps of episodes in each
    :param learning_rate: at the beginning of a round; falls to 0 along a half cosine
    :param value_coef: weight of the squared error of the value, in units of the variance of the returns, beside the
        cross-entropy of the policy
    :param parameters: ``"actor"`` for the whole network, ``"head"`` for the last layers of policy and value, or a
        regular expression, see :class:`~sb3_refine.policies.parameters.PolicyParameters`
    :raises RefineError: when a setting is out of range
    """

    n_gradient_steps: int = 500
    batch_size: int = 64
    learning_rate: float = 1e-3
    value_coef: float = 0.5
    parameters: str = "actor"

    def __post_init__(self) -> None:
        check_count("n_gradient_steps", self.n_gradient_steps, 1)
        check_count("batch_size", self.batch_size, 1)
        if not 0 < self.learning_rate < math.inf:
            raise RefineError(f"learning_rate: expected a number above 0, got {self.learning_rate}")
        if not 0 <= self.value_coef < math.inf:
            raise RefineError(f"value_coef: expected a number of at least 0, got {self.value_coef}")


class PlanLearning:
    """
    Trains a network on plans: cross-entropy between the visits of a search and the policy, and the squared error of the
    value (Silver et al. 2017, "Mastering the game of Go without human knowledge", equation 1).

    :param network: whose policy is changed in place
    :param settings: how
    :param seed: of the order of the examples
    """

    def __init__(self, network: Network, settings: LearningSettings, seed: int):
        self._network, self.settings, self._rng = network, settings, np.random.default_rng(seed)
        named = dict(network.policy.named_parameters())
        self._parameters = [named[name] for name in trained_names(network.policy, settings.parameters)]

    def fit(self, plans: Sequence[Planned]) -> tuple[float, float]:
        """
        Take the gradient steps of a round.

        :param plans: to learn from
        :return: the cross-entropy and the squared error after it, means over all plans
        """
        examples = _Examples(self._network, plans)
        n_steps = self.settings.n_gradient_steps
        optimizer = th.optim.Adam(self._parameters, lr=self.settings.learning_rate)
        schedule = LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / n_steps)))
        for _ in range(n_steps):  # without dropout, and with the statistics of batch normalisation as they are
            chosen = self._rng.integers(len(plans), size=self.settings.batch_size)
            cross_entropy, error = _losses(examples, chosen)
            optimizer.zero_grad()
            (cross_entropy.mean() + self.settings.value_coef * error.mean()).backward()
            th.nn.utils.clip_grad_norm_(self._parameters, _MAX_GRAD_NORM)
            optimizer.step()
            schedule.step()
        with th.no_grad():
            parts = np.array_split(np.arange(len(plans)), -(-len(plans) // _N_AT_ONCE))
            losses = [_losses(examples, part) for part in parts]
        of_policy, of_value = (float(th.cat(column).mean()) for column in zip(*losses, strict=True))
        return of_policy, of_value


class _Examples:
    """
    Plans as batches: observations are converted when they are needed, as all of them may be large.

    :param network: that learns
    :param plans: at least one
    """

    def __init__(self, network: Network, plans: Sequence[Planned]):
        self._network, self._plans = network, plans
        self._masks = None if plans[0].mask is None else np.array([each.mask for each in plans])
        self._visits = th.as_tensor(np.array([each.visits for each in plans], dtype=np.float32))
        values = np.array([each.value for each in plans]) / network.value_scale
        self._values = th.as_tensor(values, dtype=th.float32)
        self._variance = max(float(values.var()), 1e-8)

    def losses(self, chosen: np.ndarray) -> tuple[th.Tensor, th.Tensor]:
        """The cross-entropy and the squared error of some plans."""
        index, masks = th.as_tensor(chosen), None if self._masks is None else self._masks[chosen]
        batch = self._network.batch([self._plans[place].observation for place in chosen.tolist()])
        log_probs, values = self._network.forward(batch, masks)
        visits = self._visits[index]
        products = th.where(visits > 0, visits * log_probs, 0.0)  # of actions that are not valid: 0 times -infinity
        return -products.sum(dim=1), (values - self._values[index]).square() / self._variance


def _losses(examples: _Examples, chosen: np.ndarray) -> tuple[th.Tensor, th.Tensor]:
    """Of some examples. The distributions of Stable-Baselines3 refuse NaN with a ``ValueError``."""
    try:
        cross_entropy, error = examples.losses(chosen)
    except ValueError:
        cross_entropy = error = th.tensor([math.nan])
    if not bool(th.isfinite(cross_entropy).all() and th.isfinite(error).all()):
        raise RefineError("learning_rate: the network has NaN or infinite outputs when it learns; choose a smaller one")
    return cross_entropy, error
