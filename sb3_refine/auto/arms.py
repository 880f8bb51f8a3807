"""The ways to improve an agent that compete for the budget. Each advances a little at a time, and can be resumed."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.logger import Logger

from sb3_refine.agents.agent import Agent
from sb3_refine.agents.candidates import NamedAgent
from sb3_refine.agents.copies import with_own_policy, with_theta
from sb3_refine.errors import NoEffectError
from sb3_refine.refiner import Refiner
from sb3_refine.search.callbacks import as_callback
from sb3_refine.search.checkpoint import FILE_NAME as SEARCH_STATE
from sb3_refine.search.state import N_ITERATES
from sb3_refine.stopwatch import Stopwatch
from sb3_refine.training.callbacks import EndsAtRollout
from sb3_refine.training.checkpoints import FILE_NAME as TRAINING_STATE
from sb3_refine.training.checkpoints import Checkpoints
from sb3_refine.training.continuation import Continuation, TrainSettings

logger = logging.getLogger(__name__)

N_RECENT = 2
"""Candidates of an arm that a comparison looks at."""

_N_CHECKPOINTS = 8


class Arm(ABC):
    """
    One way to improve an agent.

    :param name: in tables and texts
    """

    seconds = 0.0
    """Time used so far."""
    cpu_time_s = 0.0
    """CPU time used so far, in seconds."""
    n_episodes = 0
    n_env_steps = 0
    is_done = False
    """Whether there is nothing left to do."""
    most_candidates: ClassVar[int]
    """How many candidates there may be in the end."""

    def __init__(self, name: str):
        self.name = name

    @abstractmethod
    def advance(self, is_over: Callable[[], bool]) -> None:
        """:param is_over: asked after each update of a search, before each rollout of a training"""

    @abstractmethod
    def candidates(self) -> list[NamedAgent]:
        """:return: what was found so far"""

    @abstractmethod
    def recent_candidates(self) -> list[NamedAgent]:
        """:return: the few that stand for the arm where arms are compared"""


class SearchArm(Arm):
    """
    A direct random search.

    :param name: in tables and texts
    :param start: agent to search from; it is left as it is
    :param n_updates: length of the search
    :param folder: keeps the state
    :param logger: of Stable-Baselines3
    :param callback: of Stable-Baselines3
    :param kwargs: arguments of :class:`~sb3_refine.refiner.Refiner`
    """

    most_candidates = N_ITERATES

    def __init__(
        self,
        name: str,
        start: Agent,
        n_updates: int,
        folder: Path,
        logger: Logger,
        callback: BaseCallback,
        **kwargs: Any,
    ):
        super().__init__(name)
        self._callback = callback
        self._start, self._n_updates, self._folder = start, n_updates, folder
        self._refiner = Refiner(with_own_policy(start), acceptance=False, **kwargs)
        self._refiner.set_logger(logger)
        self._refiner.is_part = True
        if (folder / SEARCH_STATE).exists():
            self._learn(None, time_limit=0)

    def advance(self, is_over: Callable[[], bool]) -> None:
        """See :meth:`Arm.advance`."""

        def go_on(*_: Any) -> bool:
            self._note()
            return not is_over()

        self._learn([self._callback, as_callback(go_on)])

    def _learn(self, callback: Any, **kwargs: Any) -> None:
        resume = (self._folder / SEARCH_STATE).exists()
        try:
            self._refiner.learn(self._n_updates, callback, checkpoint_folder=self._folder, resume=resume, **kwargs)
        except NoEffectError as error:  # training on may still do something
            logger.warning("%s: ends at once: %s", self.name, error)
            self._note()
            self.is_done = True
        else:
            self._note()

    def _note(self) -> None:
        search = self._refiner.search
        assert search is not None
        self.seconds, self.cpu_time_s = search.stopwatch.wall_time_s, search.stopwatch.cpu_time_s
        self.n_episodes, self.n_env_steps = search.n_episodes, search.n_env_steps
        self.is_done = search.n_updates_done == self._n_updates

    def candidates(self) -> list[NamedAgent]:
        """See :meth:`Arm.candidates`."""
        search = self._refiner.search
        if search is None or not search.n_updates_done:
            return []
        scope = self._refiner.parameters.scope
        return [
            NamedAgent(f"{self.name}: {one.name}", with_theta(self._start, one.theta, scope)) for one in search.iterates
        ]

    def recent_candidates(self) -> list[NamedAgent]:
        """The last iterate and the running average."""
        return self.candidates()[:N_RECENT]


class TrainArm(Arm):
    """
    Training on.

    :param name: in tables and texts
    :param start: agent to train on; it is left as it is
    :param settings: how to train
    :param seed: of everything random
    :param folder: keeps the checkpoints
    :param logger: of Stable-Baselines3
    :param callback: of Stable-Baselines3
    :param longest_episode: of the agent, in steps
    :param replay_buffer: see :class:`~sb3_refine.training.trainer.Trainer`
    :param trust: see :func:`~sb3_refine.agents.decoding.model_zip.read_model`
    :param keep_buffer: see :class:`~sb3_refine.training.checkpoints.Checkpoints`
    """

    most_candidates = _N_CHECKPOINTS

    def __init__(
        self,
        name: str,
        start: Agent,
        settings: TrainSettings,
        seed: int,
        folder: Path,
        logger: Logger,
        callback: BaseCallback,
        longest_episode: int,
        replay_buffer: Path | None = None,
        trust: bool = False,
        keep_buffer: bool = True,
    ):
        super().__init__(name)
        self._callback = callback
        self._training = Continuation(start, settings, seed, logger)
        if replay_buffer is not None:
            self._training.use_buffer(replay_buffer)
        self._checkpoints = Checkpoints(folder, start, {"objective": ""}, _N_CHECKPOINTS, trust, keep_buffer)
        self._slice_length = self._training.slice_length(longest_episode)
        if (folder / TRAINING_STATE).exists():
            self._note(self._checkpoints.restore(self._training))

    def advance(self, is_over: Callable[[], bool]) -> None:
        """See :meth:`Arm.advance`."""
        stopwatch = Stopwatch(self.seconds, self.cpu_time_s)

        def is_over_now() -> bool:
            self._note(stopwatch)
            return is_over()

        callback = CallbackList([self._callback, EndsAtRollout(is_over_now)])
        while not is_over_now():
            self._training.advance(self._slice_length, callback)
            self._checkpoints.take(self._training, stopwatch)

    def _note(self, stopwatch: Stopwatch) -> None:
        self.seconds, self.cpu_time_s = stopwatch.wall_time_s, stopwatch.cpu_time_s
        self.n_episodes, self.n_env_steps = self._training.n_episodes, self._training.n_env_steps

    def candidates(self) -> list[NamedAgent]:
        """See :meth:`Arm.candidates`."""
        return self._named()

    def _named(self, n_last: int | None = None) -> list[NamedAgent]:
        return [NamedAgent(f"{self.name}: {each.name}", each.agent) for each in self._checkpoints.agents(n_last)]

    def recent_candidates(self) -> list[NamedAgent]:
        """The last checkpoints."""
        return self._named(N_RECENT)
