"""The standard deviations of a distribution of actors and critics: measured at the start, saved beside an agent."""

import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from sb3_refine.agents.agent import Agent
from sb3_refine.agents.decoding.pickle_tree import BROKEN
from sb3_refine.agents.decoding.schema import SchemaError, number, optional, record, whole
from sb3_refine.errors import RefineError, one_line
from sb3_refine.evaluation.calibration import observed_batch
from sb3_refine.evaluators import RolloutTask
from sb3_refine.files import atomic_path, reraise_write_errors
from sb3_refine.meta.adaptation import AdaptationSettings, critic_parameters
from sb3_refine.policies.noise_scale import noise_scale
from sb3_refine.policies.parameters import FlatParameters, PolicyParameters
from sb3_refine.seeding import globals_restored, seed_globals

FILE_NAME = "exploration.npz"

START_STD = 0.2
"""Of the actors, in units of the action."""

_CRITIC_STD = 0.02  # at the start, as a share of the root mean square of each tensor of the critic
_LEAST = 1e-3  # of the share above: biases may be 0
_MAX_BYTES = 2**28  # of 64 million parameters


@dataclass(frozen=True)
class Exploration:
    """
    Standard deviations of the parameters of actors and critics.

    :param actor: shape ``(n_actor,)``
    :param critic: shape ``(n_critic,)``
    """

    n_episodes: ClassVar[int] = 3
    """Of the agent, whose observations the first standard deviations are measured on."""

    actor: np.ndarray
    critic: np.ndarray

    def save(self, folder: Path, adaptation: AdaptationSettings) -> None:
        """
        :param folder: of an agent
        :param adaptation: how it adapts
        :raises RefineError: when the file cannot be written
        """
        with reraise_write_errors(FILE_NAME, folder), atomic_path(folder / FILE_NAME) as path, path.open("wb") as file:
            np.savez(file, actor=self.actor, critic=self.critic, adaptation=json.dumps(asdict(adaptation)))


def read_exploration(path: Path) -> tuple[Exploration, AdaptationSettings]:
    """
    :param path: of ``exploration.npz``; nothing in it is run
    :return: the standard deviations, and how the agent adapts
    :raises RefineError: when the file is damaged
    """
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {each.filename: each.file_size for each in archive.infolist()}
        if sizes.keys() != {"actor.npy", "critic.npy", "adaptation.npy"} or sum(sizes.values()) > _MAX_BYTES:
            raise ValueError("other entries than it should have, or larger ones")
        with np.load(path, allow_pickle=False) as file:
            parts = {name: np.asarray(file[name]) for name in ("actor", "critic")}
            settings = json.loads(str(file["adaptation"]))
        for name, values in parts.items():
            if values.dtype != np.float32 or values.ndim != 1 or not (np.isfinite(values) & (values >= 0)).all():
                raise ValueError(f"{name}: expected a vector of standard deviations")
        _SETTINGS(settings)
        return Exploration(**parts), AdaptationSettings(**settings)
    except (OSError, KeyError, EOFError, SchemaError, zipfile.BadZipFile, zlib.error, *BROKEN) as error:
        raise RefineError(f"{path}: cannot be read ({one_line(error)}); run sb3-refine meta again") from None


_SETTINGS = record(
    {
        "adapt_episodes": whole(1, 10**4),
        "adapt_steps": whole(0, 10**6),
        "batch_size": whole(1, 10**5),
        "adapt_learning_rate": optional(number(0, 1e6)),
    }
)


def find_exploration(agent: Agent) -> Exploration | None:
    """
    :param agent: from a file, or from memory
    :return: the standard deviations that were saved beside it; None where there are none
    :raises RefineError: when they are damaged, or of another agent
    """
    path = exploration_path(agent)
    if path is None:
        return None
    found, _ = read_exploration(path)
    sizes = (PolicyParameters(agent.model.policy).size, critic_parameters(agent.model).size)
    if (found.actor.size, found.critic.size) != sizes:
        raise RefineError(
            f"{path}: of an agent with {found.actor.size} and {found.critic.size} parameters, not {sizes}"
        )
    return found


def exploration_path(agent: Agent) -> Path | None:
    """
    :param agent: any
    :return: of the file with its standard deviations; None where there is none
    """
    beside = Path(str(agent.source.get("path", ""))).parent / FILE_NAME
    return beside if agent.source.get("path") and beside.is_file() else None


def forget_parameters(agent: Agent, seed: int) -> None:
    """
    Start from scratch: draw the parameters anew, as the layers of PyTorch do.

    :param agent: its actor and critics are overwritten
    :param seed: of the parameters
    """
    with globals_restored():
        seed_globals(seed)
        layers: list[Any] = [each for each in agent.model.policy.modules() if hasattr(each, "reset_parameters")]
        for layer in layers:
            layer.reset_parameters()
    agent.source = {**agent.source, "path": ""}  # an exploration beside it is of the old parameters


def first_exploration(
    agent: Agent, task: RolloutTask, learner: Any, std: float, seeds: Sequence[int]
) -> tuple[Exploration, int]:
    """
    Measure standard deviations for an agent that has none: of the actor, by how much they change the actions; of the
    critic, as a share of its weights.

    :param agent: any
    :param task: its rollouts
    :param learner: its model
    :param std: of the actor, in units of the action
    :param seeds: of episodes to measure on
    :return: the standard deviations, and the environment steps that it took to measure them
    """
    parameters = PolicyParameters(learner.policy)
    batch, n_steps = observed_batch(agent, parameters.get_theta(), task, seeds)
    actor = np.float32(std) * noise_scale(learner.policy, parameters, batch)
    critic = critic_parameters(learner)
    return Exploration(actor.astype(np.float32), _share_of_tensors(critic)), n_steps


def _share_of_tensors(parameters: FlatParameters) -> np.ndarray:
    theta = parameters.get_theta()
    std = np.empty_like(theta)
    for where in parameters.slices().values():
        std[where] = max(_CRITIC_STD * np.sqrt(np.square(theta[where]).mean()), _CRITIC_STD * _LEAST)
    return std


class MetaParameters:
    """
    A distribution as one vector: the means, which are those of a model, then the standard deviations.

    :param model: of DDPG or TD3; read and written in place, its target networks too
    :param exploration: the standard deviations
    """

    def __init__(self, model: Any, exploration: Exploration):
        self._model = model
        self._actor, self._critic = PolicyParameters(model.policy), critic_parameters(model)
        self.exploration = exploration

    @property
    def size(self) -> int:
        """Length of the vector."""
        return 2 * (self._actor.size + self._critic.size)

    def get_theta(self) -> np.ndarray:
        """:return: the vector, float32"""
        stds = (self.exploration.actor, self.exploration.critic)
        return np.concatenate([self._actor.get_theta(), self._critic.get_theta(), *stds], dtype=np.float32)

    def set_theta(self, theta: np.ndarray) -> None:
        """:param theta: the vector"""
        n_actor, n_critic = self._actor.size, self._critic.size
        actor, critic, *stds = np.split(theta, np.cumsum([n_actor, n_critic, n_actor]))
        self._actor.set_theta(actor)
        self._critic.set_theta(critic)
        self._model.actor_target.load_state_dict(self._model.actor.state_dict())
        self._model.critic_target.load_state_dict(self._model.critic.state_dict())
        self.exploration = Exploration(*(std.copy() for std in stds))
