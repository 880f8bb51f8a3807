"""The trainer: a trained agent in, the best of its further training out, if it is better."""

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gymnasium as gym
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecEnv
from tqdm import tqdm

from sb3_refine.agents.agent import Agent
from sb3_refine.agents.from_model import agent_from_model
from sb3_refine.errors import RefineError, check_count
from sb3_refine.evaluation.baseline import warn_if_unexpected
from sb3_refine.judging import Judge, Judgement, Origin
from sb3_refine.search.clock import Clock
from sb3_refine.search.log import log_verdict, make_logger, tensorboard_folder
from sb3_refine.training.callbacks import TrainingCallback
from sb3_refine.training.checkpoints import Checkpoints
from sb3_refine.training.continuation import Continuation, TrainSettings

logger = logging.getLogger(__name__)

_N_SLICES = 100  # of the whole training: the finest spacing of checkpoints


class Trainer:
    """
    Train an agent on with plain Stable-Baselines3 and its own hyperparameters, and judge the checkpoints: the best one
    on validation seeds is tested once against the original on held-out seeds.

    What is saved is a real continuation: the state of the optimizers, the statistics of the observations and the number
    of time steps are those of the checkpoint.

    >>> from stable_baselines3 import PPO
    >>> model = PPO("MlpPolicy", "Pendulum-v1", n_steps=200, batch_size=50, seed=0, device="cpu")
    >>> judgement = Trainer(model, n_eval_episodes=10, backend="serial").learn(1_000)
    >>> judgement.result.decision in ("refined", "original")
    True

    :param model: a Stable-Baselines3 model, or an :class:`~sb3_refine.agents.agent.Agent` from ``load_agent``; it is
        left as it is
    :param env: see :class:`~sb3_refine.refiner.Refiner`
    :param seed: seed of everything random
    :param replay_buffer: what ``save_replay_buffer`` wrote, for an off-policy agent; reading it runs the code in it
    :param n_checkpoints: checkpoints kept on disk beside the last one, evenly spaced
    :param n_average: see :meth:`~sb3_refine.judging.Judge.judge`
    :param trust_remote_code: see :func:`~sb3_refine.agents.load.load_agent`; for a model in memory always True
    :param tensorboard_log: folder for TensorBoard; None for that of a model in memory, if it has one; ``""`` for none
    :param verbose: 0: silent, 1: a line for each entry of the log, 2: Stable-Baselines3's tables
    :param progress_remaining: see :class:`~sb3_refine.training.continuation.TrainSettings`, as for the next three
    :param n_warm_up: steps before the first gradient step
    :param normalisation: ``"live"`` or ``"frozen"``
    :param vec_env: ``"dummy"`` or ``"subproc"``
    :param kwargs: any other argument of :class:`~sb3_refine.judging.Judge`
    :raises RefineError: when an argument is wrong, or the environment does not fit the model
    """

    def __init__(
        self,
        model: BaseAlgorithm | Agent,
        env: str | Callable[[], gym.Env] | VecEnv | gym.Env | None = None,
        seed: int = 0,
        replay_buffer: str | Path | None = None,
        n_checkpoints: int = 20,
        n_average: int = 0,
        trust_remote_code: bool = False,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        progress_remaining: float = 0.1,
        n_warm_up: int | None = None,
        normalisation: str = "live",
        vec_env: str = "dummy",
        **kwargs: Any,
    ):
        self.settings = TrainSettings(progress_remaining, n_warm_up, normalisation, vec_env)
        check_count("n_checkpoints", n_checkpoints, 1)
        check_count("n_average", n_average, 0)
        self.agent = model if isinstance(model, Agent) else agent_from_model(model, env)
        self._trust = trust_remote_code or not isinstance(model, Agent)
        self._buffer = None if replay_buffer is None else Path(replay_buffer)
        self._check_buffer()
        self.seed, self.n_checkpoints, self.n_average = seed, n_checkpoints, n_average
        self.tensorboard_log, self.verbose = tensorboard_folder(tensorboard_log, model), verbose
        self.judge = Judge(self.agent, seed=seed, **kwargs)
        self.judgement: Judgement | None = None
        self._logger: Logger | None = None

    @property
    def default_n_timesteps(self) -> int:
        """
        Time steps of the original training, as the agent's ``config.yml`` has them.

        :raises RefineError: when it does not say
        """
        found = self.agent.config.get("n_timesteps")
        if not isinstance(found, (int, float)) or not found >= 1:
            raise RefineError("n_timesteps: config.yml does not say how long the agent was trained; pass a number")
        return int(found)

    def learn(
        self,
        n_timesteps: int | None = None,
        callback: MaybeCallback = None,
        tb_log_name: str = "train",
        progress_bar: bool = False,
        time_limit: float | None = None,
        checkpoint_folder: str | Path | None = None,
        resume: bool = False,
    ) -> Judgement:
        """
        Train, and judge the checkpoints.

        Ctrl-C leaves the last checkpoint in :attr:`judgement`, marked ``"unchecked"``, and raises
        ``KeyboardInterrupt``.

        :param n_timesteps: environment steps to train for; None for those of the original training
        :param callback: Stable-Baselines3 callback(s), for all of the training
        :param tb_log_name: name of the run in TensorBoard
        :param progress_bar: show a progress bar over the environment steps, then over the episodes of the verdict
        :param time_limit: seconds after which training ends, with time for the verdict set aside
        :param checkpoint_folder: where to keep the checkpoints, or None for a folder that is removed at the end
        :param resume: go on from the last checkpoint there, to the bits that uninterrupted training would have given
        :return: the verdict
        :raises RefineError: when the settings are not those of the training to resume
        :raises EpisodeError: when an episode of the verdict fails
        """
        n_timesteps = self.default_n_timesteps if n_timesteps is None else n_timesteps
        check_count("n_timesteps", n_timesteps, 1)
        clock = Clock(time_limit)
        log = self._logger or make_logger(self.verbose, self.tensorboard_log, tb_log_name, progress_bar)
        training = Continuation(self.agent, self.settings, self.seed, log)
        if self._buffer is not None:
            training.use_buffer(self._buffer)
        with self._checkpoints(checkpoint_folder, n_timesteps) as checkpoints:
            if resume:
                self.judge.stopwatch = checkpoints.restore(training)
            bar = {"total": n_timesteps, "initial": training.n_env_steps, "disable": not progress_bar}
            try:
                deadline = self._deadline(clock)
                with tqdm(unit="step", dynamic_ncols=True, **bar) as progress:
                    hooks = TrainingCallback(callback, progress, deadline)
                    self._train(training, n_timesteps, hooks, lambda: checkpoints.take(training, self.judge.stopwatch))
            except KeyboardInterrupt:
                self.judgement = self._interrupted(training, checkpoints, n_timesteps)
                raise
            if not checkpoints:
                raise RefineError(f"time_limit: {time_limit:g} s are too short to train and to judge the result")
            self.judgement = self.judge.judge(
                *(checkpoints.agents(), progress_bar, self._origin(training, n_timesteps), self.n_average),
                is_time_limited=time_limit is not None,
            )
            checkpoints.end()
        log_verdict(log, self.judgement.result, self.agent.model.num_timesteps + training.n_env_steps)
        return self.judgement

    def set_logger(self, logger: Logger) -> None:
        """
        Log elsewhere than ``verbose`` and ``tensorboard_log`` say.

        :param logger: a Stable-Baselines3 logger
        """
        self._logger = logger

    def _train(
        self, training: Continuation, n_timesteps: int, hooks: TrainingCallback, on_slice: Callable[[], None]
    ) -> None:
        """Slice by slice."""
        longest_episode = int(self.judge.evaluate_original().lengths.max())
        slice_length = training.slice_length(longest_episode, n_timesteps / _N_SLICES)
        while training.n_env_steps < n_timesteps and not hooks.is_over:
            training.advance(min(slice_length, n_timesteps - training.n_env_steps), hooks)
            on_slice()
        hooks.end()

    def _deadline(self, clock: Clock) -> float | None:
        """When training has to end, at the pace of the original's validation episodes."""
        baseline = self.judge.evaluate_original()
        if self.agent.recipe.end_at_success:
            warn_if_unexpected(self.agent, baseline)
        if clock.limit is None:
            return None
        n_held_out = self.judge.n_episodes(self.n_checkpoints + 1, self.n_average)
        return clock.started + clock.limit - self.judge.seconds_per_episode * n_held_out

    def _interrupted(self, training: Continuation, checkpoints: Checkpoints, n_timesteps: int) -> Judgement | None:
        """The last checkpoint, if there is one."""
        if not checkpoints:
            return None
        last = checkpoints.agents()[-1]
        reason = f"interrupted: this is the last checkpoint, that after {last.name}, not tested on held-out seeds"
        return self.judge.unchecked(last, reason, self._origin(training, n_timesteps))

    def _origin(self, training: Continuation, n_timesteps: int) -> Origin:
        settings = {
            **self._recorded(n_timesteps),
            "n_timesteps_done": training.n_env_steps,
            "n_slices": training.n_slices,
        }
        return Origin("train", settings, training.n_episodes, training.n_env_steps)

    def _recorded(self, n_timesteps: int) -> dict[str, Any]:
        """Settings that the course of the training depends on."""
        return {
            **asdict(self.settings),
            "n_timesteps": n_timesteps,
            "n_checkpoints": self.n_checkpoints,
            "n_average": self.n_average,
        }

    @contextmanager
    def _checkpoints(self, folder: str | Path | None, n_timesteps: int) -> Iterator[Checkpoints]:
        settings = {**self._recorded(n_timesteps), **self.judge.recorded, "algo": self.agent.algo}
        with tempfile.TemporaryDirectory() if folder is None else nullcontext(folder) as name:
            keep_buffer = folder is not None
            yield Checkpoints(Path(name), self.agent, settings, self.n_checkpoints, self._trust, keep_buffer)

    def _check_buffer(self) -> None:
        if self._buffer is None:
            return
        if not isinstance(self.agent.model, OffPolicyAlgorithm):
            raise RefineError(f"replay_buffer: {self.agent.algo} has none; leave it out")
        if not self._trust:
            raise RefineError(
                "replay_buffer: reading it runs the code in it; add `trust_remote_code=True` if it is yours"
            )
        if not self._buffer.is_file():
            raise RefineError(f"replay_buffer: there is no file {self._buffer}")
