"""Architectures of students. A new one is a class here and a line in the registry."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from torch import nn

from sb3_refine.errors import RefineError, did_you_mean
from sb3_refine.parts import check_options, options_of, parse_part
from sb3_refine.policies.transformer import TransformerPolicy, check_sizes

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "elu": nn.ELU}


class Student(ABC):
    """A policy of ``PPO``, and how it is trained."""

    learning_rate: ClassVar[float] = 1e-3
    """Of Adam, unless the user says otherwise."""
    n_gradient_steps: ClassVar[int] = 10_000
    """Of a round, unless the user says otherwise."""
    sequence_length: ClassVar[int | None] = None
    """Steps of an example; None for single steps, in any order."""
    batch_size: ClassVar[int] = 256
    """Examples of a gradient step."""

    @abstractmethod
    def policy(self, observation_space: spaces.Space) -> tuple[str | type[ActorCriticPolicy], dict[str, Any]]:
        """
        :param observation_space: of the raw environment
        :return: ``policy`` and ``policy_kwargs`` for ``PPO``
        """


class MLP(Student):
    """
    A multilayer perceptron.

    :param net_arch: numbers of hidden units, from the input to the output
    :param activation_fn: ``"relu"``, ``"tanh"`` or ``"elu"``
    """

    def __init__(self, net_arch: tuple | list = (64, 64), activation_fn: str = "relu"):
        if not isinstance(net_arch, (tuple, list)) or not all(isinstance(size, int) and size > 0 for size in net_arch):
            raise RefineError(f"student: net_arch: expected a list of whole numbers, such as [16,16], got {net_arch!r}")
        if activation_fn not in _ACTIVATIONS:
            raise RefineError(
                f"student: activation_fn: unknown {activation_fn!r}{did_you_mean(str(activation_fn), _ACTIVATIONS)}; "
                f"choose from {', '.join(_ACTIVATIONS)}"
            )
        self.net_arch, self.activation_fn = list(net_arch), _ACTIVATIONS[activation_fn]

    def policy(self, observation_space: spaces.Space) -> tuple[str, dict[str, Any]]:
        """See :meth:`Student.policy`."""
        kind = "CnnPolicy" if is_image_space(observation_space) else "MlpPolicy"
        if isinstance(observation_space, spaces.Dict):
            kind = "MultiInputPolicy"
        net_arch = {"pi": self.net_arch, "vf": []}
        return kind, {"net_arch": net_arch, "activation_fn": self.activation_fn}


class Linear(MLP):
    """A linear policy: one layer, of images after a convolutional network."""

    def __init__(self) -> None:
        super().__init__([])


class Transformer(Student):
    """
    A causal transformer, see :class:`~sb3_refine.policies.transformer.TransformerPolicy`.

    :param context: steps that a layer sees
    :param n_layers: of the transformer
    :param n_heads: of the attention
    :param embed_dim: numbers of a token, a multiple of ``n_heads``
    """

    learning_rate = 5e-4
    n_gradient_steps = 1000
    batch_size = 16

    def __init__(self, context: int = 20, n_layers: int = 3, n_heads: int = 1, embed_dim: int = 128):
        sizes = {"context": context, "n_layers": n_layers, "n_heads": n_heads, "embed_dim": embed_dim}
        check_sizes(**sizes)
        self.policy_kwargs = sizes

    @property
    def sequence_length(self) -> int:  # type: ignore[override]
        """As far as the last layer sees."""
        return self.policy_kwargs["n_layers"] * (self.policy_kwargs["context"] - 1) + 1

    def policy(self, observation_space: spaces.Space) -> tuple[type[ActorCriticPolicy], dict[str, Any]]:
        """See :meth:`Student.policy`."""
        return TransformerPolicy, self.policy_kwargs


STUDENTS: dict[str, type[Student]] = {"linear": Linear, "mlp": MLP, "transformer": Transformer}
"""Students by name. To add one of your own, write ``STUDENTS["my-student"] = MyStudent``."""


def student_options(student: str, kwargs: Mapping[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
    """
    :param student: ``name`` or ``name:option=value,option=value``
    :param kwargs: further options
    :return: the name, and the options that are given
    :raises RefineError: for an unknown name, or a wrong option
    """
    name, given = parse_part("student", student, STUDENTS)
    given = {**given, **(kwargs or {})}
    check_options("student", name, given, options_of(STUDENTS[name]))
    STUDENTS[name](**given)  # checks the values
    return name, given
