"""Behaviour cloning: a policy learns a teacher's actions by gradient descent."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.vec_env import VecNormalize
from torch.optim.lr_scheduler import LambdaLR

from sb3_refine.envs.observations import stacked
from sb3_refine.evaluation.demonstrations import Demonstration
from sb3_refine.policies.parameters import PolicyParameters
from sb3_refine.policies.transformer import TransformerPolicy
from sb3_refine.students.architectures import Student

_MAX_GRAD_NORM = 1.0
_N_AT_ONCE = 4096  # single steps, where no gradient is needed
_LONGEST = 1000  # steps of a sequence, where no gradient is needed


class Cloning:
    """
    Trains a policy on demonstrations.

    For ``Box`` actions, the loss is the mean squared difference to the label in units of half the range; where the
    label is at a bound, an output beyond that bound has none, as actions are clipped. For all other actions, the loss
    is the mean negative log-likelihood of the label.

    :param policy: of a student; changed in place
    :param student: how it is trained
    :param statistics: to normalise observations with, or None
    :param seed: of the order of the examples
    :param n_gradient_steps: of a round; None for the student's own number
    :param learning_rate: of Adam at the beginning of a round; None for the student's own. Falls to 0 along a half
        cosine
    """

    def __init__(
        self,
        policy: Any,
        student: Student,
        statistics: VecNormalize | None,
        seed: int,
        n_gradient_steps: int | None = None,
        learning_rate: float | None = None,
    ):
        self._policy, self._student, self._statistics = policy, student, statistics
        self._n_gradient_steps = n_gradient_steps or student.n_gradient_steps
        self._learning_rate = learning_rate or student.learning_rate
        self._seed, self._rng = seed, np.random.default_rng(seed)
        names = set(PolicyParameters(policy, "actor").names)
        self._parameters = [parameter for name, parameter in policy.named_parameters() if name in names]

    @property
    def settings(self) -> dict[str, Any]:
        """How it trains."""
        return {"n_gradient_steps": self._n_gradient_steps, "learning_rate": self._learning_rate, "seed": self._seed}

    def start_at_mean(self, examples: "Examples") -> None:
        """
        Let a new policy begin with the mean action, as ``Box`` actions may be far from 0.

        :param examples: of :meth:`examples`
        """
        if isinstance(self._policy.action_space, spaces.Box):
            mean = th.as_tensor(examples.labels.mean(axis=0), dtype=th.float32).flatten()
            with th.no_grad():
                self._policy.action_net.bias.copy_(mean)

    def fit(self, examples: "Examples") -> None:
        """
        Take the gradient steps of a round.

        :param examples: of :meth:`examples`, to learn from
        """
        n_steps = self._n_gradient_steps
        optimizer = th.optim.Adam(self._parameters, lr=self._learning_rate)
        schedule = LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / n_steps)))
        self._policy.set_training_mode(True)
        for _ in range(n_steps):
            loss = self._losses(examples, examples.draw(self._rng, self._student.batch_size)).mean()
            optimizer.zero_grad()
            loss.backward()
            th.nn.utils.clip_grad_norm_(self._parameters, _MAX_GRAD_NORM)
            optimizer.step()
            schedule.step()
        self._policy.set_training_mode(False)

    def loss(self, examples: "Examples") -> float:
        """
        :param examples: of :meth:`examples`, such as those that were held out
        :return: the mean loss of their steps
        """
        self._policy.set_training_mode(False)
        with th.no_grad():
            return float(th.cat([self._losses(examples, part) for part in examples.parts()]).mean())

    def examples(self, demonstrations: Sequence[Demonstration]) -> "Examples":
        """
        :param demonstrations: at least one
        :return: the same, as the policy sees them
        """
        observations = stacked([each for one in demonstrations for each in one.observations])
        if self._statistics is not None:
            observations = self._statistics.normalize_obs(observations)
        batch, _ = self._policy.obs_to_tensor(observations)
        return Examples(demonstrations, batch, self._student.sequence_length or 1)

    def _losses(self, examples: "Examples", steps: list[np.ndarray]) -> th.Tensor:
        """The loss of each step of some sequences."""
        space, chosen = self._policy.action_space, np.concatenate(steps)
        distribution = self._distribution(examples, steps)
        labels = th.as_tensor(examples.labels[chosen])
        if isinstance(space, (spaces.Box, spaces.MultiBinary)):
            labels = labels.float()
        if not isinstance(space, spaces.Box):
            return -distribution.log_prob(labels)
        low, high = (th.as_tensor(bound, dtype=th.float32) for bound in (space.low, space.high))
        half_range = th.where(high > low, high / 2 - low / 2, 1.0)
        output = distribution.mode().reshape(labels.shape)
        is_beyond = ((labels >= high) & (output > high)) | ((labels <= low) & (output < low))
        difference = ((output - labels) / half_range).masked_fill(is_beyond, 0.0)
        return difference.square().flatten(1).mean(dim=1)

    def _distribution(self, examples: "Examples", steps: list[np.ndarray]) -> Distribution:
        """Of the steps of some sequences, one after the other."""
        if not isinstance(self._policy, TransformerPolicy):
            return self._policy.get_distribution(examples.observations(np.concatenate(steps)))
        longest = max(map(len, steps))
        # padded by repeating the last step, which no earlier step sees
        padded = np.array([np.pad(each, (0, longest - len(each)), mode="edge") for each in steps])
        is_real = th.as_tensor(np.arange(longest) < np.array([len(each) for each in steps])[:, None])
        return self._policy.distribution_of_sequences(
            examples.observations(padded.ravel()),
            th.as_tensor(examples.previous_actions[padded]),
            th.as_tensor(examples.begins[padded[:, 0]]),
            is_real,
        )


class Examples:
    """
    Steps of all episodes, one after the other.

    :param demonstrations: the episodes
    :param batch: their observations, as the policy's ``obs_to_tensor`` makes them
    :param length: of the sequences that they are cut into
    """

    def __init__(self, demonstrations: Sequence[Demonstration], batch: th.Tensor | dict[str, th.Tensor], length: int):
        self._batch, self._length = batch, length
        self.labels = np.concatenate([each.labels for each in demonstrations])
        self.previous_actions = np.concatenate(
            [np.concatenate([np.zeros_like(each.actions[:1]), each.actions[:-1]]) for each in demonstrations]
        )
        """Zeros before the first action of an episode."""
        self.begins = np.concatenate([np.arange(len(each)) == 0 for each in demonstrations])
        self._ends = np.cumsum([len(each) for each in demonstrations])
        self._starts = self._ends - [len(each) for each in demonstrations]

    def observations(self, steps: np.ndarray) -> Any:
        """:return: the observations of some steps"""
        index = th.as_tensor(steps)
        if isinstance(self._batch, dict):
            return {key: values[index] for key, values in self._batch.items()}
        return self._batch[index]

    def draw(self, rng: np.random.Generator, n: int) -> list[np.ndarray]:
        """:return: random sequences of consecutive steps; each step of an episode is in one with about equal chance"""
        if self._length == 1:
            return [rng.integers(self._ends[-1], size=n)]
        middle = rng.integers(self._ends[-1], size=n)
        episodes = np.searchsorted(self._ends, middle, side="right")
        found = []
        for at, start, end in zip(middle, self._starts[episodes], self._ends[episodes], strict=True):
            first = np.clip(at - self._length // 2, start, max(start, end - self._length))
            found.append(np.arange(first, min(first + self._length, end)))
        return found

    def parts(self) -> Iterator[list[np.ndarray]]:
        """:return: all steps, in batches of sequences"""
        if self._length == 1:
            sequences = np.array_split(np.arange(self._ends[-1]), -(-self._ends[-1] // _N_AT_ONCE))
            yield from ([each] for each in sequences)
            return
        for start, end in zip(self._starts, self._ends, strict=True):  # whole episodes, as far as they fit
            yield from ([np.arange(first, min(first + _LONGEST, end))] for first in range(start, end, _LONGEST))
