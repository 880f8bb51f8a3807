"""An agent that is trained on, slice by slice."""

import copy
import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sb3_contrib import ARS
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_refine.agents.agent import Agent, with_statistics
from sb3_refine.agents.decoding.model_zip import read_model
from sb3_refine.agents.decoding.statistics import read_vec_normalize
from sb3_refine.agents.sb3_models import load_model, sync_copies
from sb3_refine.errors import RefineError, check_count, one_line
from sb3_refine.files import atomic_path, reraise_write_errors, sha256
from sb3_refine.parts import check_choice
from sb3_refine.policies.base import one_thread
from sb3_refine.policies.transformer import TransformerPolicy
from sb3_refine.seeding import derived_seed, globals_restored
from sb3_refine.training.buffer_file import load_buffer, save_buffer
from sb3_refine.training.environment import VEC_ENVS, training_env
from sb3_refine.training.schedules import attributes, schedules_held

NORMALISATIONS = ("live", "frozen")
"""What happens to the statistics of observations and rewards: they go on changing, or not."""

_MIN_WARM_UP = 10_000  # steps
_EPISODES_PER_SLICE = (
    3  # of each environment, at least: shorter slices would train on early parts of episodes too often
)


@dataclass(frozen=True)
class TrainSettings:
    """
    How an agent is trained on. All hyperparameters are the agent's own.

    :param progress_remaining: share of the original training at which schedules are held, from 1, its beginning, to 0,
        its end, where a schedule that is linear to 0 would change nothing any more
    :param n_warm_up: environment steps that an off-policy agent without a replay buffer collects with its own policy
        before the first gradient step; None for its ``learning_starts``, but at least 10,000
    :param normalisation: one of :data:`NORMALISATIONS`
    :param vec_env: one of :data:`~sb3_refine.training.environment.VEC_ENVS`
    :raises RefineError: when a setting is out of range
    """

    progress_remaining: float = 0.1
    n_warm_up: int | None = None
    normalisation: str = "live"
    vec_env: str = "dummy"

    def __post_init__(self) -> None:
        if not 0 <= self.progress_remaining <= 1:
            raise RefineError(f"progress_remaining: expected a share from 0 to 1, got {self.progress_remaining}")
        check_count("n_warm_up", 0 if self.n_warm_up is None else self.n_warm_up, 0)
        check_choice("normalisation", self.normalisation, NORMALISATIONS)
        check_choice("vec_env", self.vec_env, VEC_ENVS)


class Continuation:
    """
    An agent that is trained on with plain Stable-Baselines3, slice by slice. Each slice begins with new environments
    and seeds of its own, so training that is interrupted can go on to the same bits. Training runs on one thread.

    :param agent: is left as it is
    :param settings: how to train
    :param seed: of everything random
    :param logger: of Stable-Baselines3
    """

    def __init__(self, agent: Agent, settings: TrainSettings, seed: int, logger: Logger | None = None):
        if isinstance(agent.model.policy, TransformerPolicy):
            raise RefineError("method: PPO cannot train a transformer; use `method='search'`")
        self._settings, self._seed, self._logger = settings, seed, logger
        self.n_slices = 0
        self.n_episodes = 0
        self._agent = agent
        self._first_timestep = agent.model.num_timesteps
        self._model: BaseAlgorithm | None = None
        self.n_warm_up_left: int | None = None  # not known before the first slice
        self._buffer_path: Path | None = None

    @property
    def agent(self) -> Agent:
        """The agent as it is now; its model is the one that is trained on."""
        return self._agent if self._model is None else replace(self._agent, model=self._model)

    @property
    def num_timesteps(self) -> int:
        """Of the model, those before :attr:`n_env_steps` included."""
        return (self._model or self._agent.model).num_timesteps

    @property
    def n_env_steps(self) -> int:
        """Environment steps so far."""
        return self.num_timesteps - self._first_timestep

    def slice_length(self, longest_episode: int, at_least: float = 1) -> int:
        """
        :param longest_episode: of the agent, in steps
        :param at_least: environment steps
        :return: a good length of a slice: several episodes of each environment, and a multiple of the algorithm's own
            rollouts. For ARS, which always runs whole episodes, one update
        """
        model: Any = self._agent.model
        if isinstance(model, ARS):
            return 1
        n_of_rollout = model.n_steps * model.n_envs if isinstance(model, OnPolicyAlgorithm) else 1
        n_steps = max(at_least, _EPISODES_PER_SLICE * longest_episode * model.n_envs)
        return math.ceil(n_steps / n_of_rollout) * n_of_rollout

    def advance(self, n_timesteps: int, callback: BaseCallback) -> None:
        """
        Train for one slice.

        :param n_timesteps: length of the slice
        :param callback: of Stable-Baselines3; one that returns False ends the slice
        """
        seed = derived_seed(self._seed, self.n_slices)
        with globals_restored(), one_thread(), self._env(seed) as env:
            model = self._prepared(env, seed)
            before = model.num_timesteps
            if self.n_warm_up_left is None:
                self.n_warm_up_left = self._n_warm_up(model)
            n_warm_up = min(self.n_warm_up_left, n_timesteps)
            try:
                with schedules_held(model, self._settings.progress_remaining):
                    if n_warm_up:
                        with attributes(model, {"gradient_steps": 0, "learning_starts": 0}):
                            model.learn(n_warm_up, callback, reset_num_timesteps=False)
                    if n_warm_up < n_timesteps and model.num_timesteps - before >= n_warm_up:
                        model.learn(n_timesteps - n_warm_up, callback, reset_num_timesteps=False)
            finally:
                self.n_warm_up_left -= min(n_warm_up, model.num_timesteps - before)
            self.n_slices += 1
            self.n_episodes += sum(map(len, env.env_method("get_episode_rewards")))
            self._agent = with_statistics(self._agent, unwrap_vec_normalize(env))
            _end_last_episodes(model)

    def save(self, zip_path: Path, statistics_path: Path) -> None:
        """
        Save the agent as it is now: a checkpoint that plain Stable-Baselines3 trains further.

        :param zip_path: of the model
        :param statistics_path: of its statistics, if it has any
        :raises RefineError: when it cannot be written
        """
        with reraise_write_errors("the checkpoint", zip_path.parent):
            if self._agent.vec_normalize is not None:
                with atomic_path(statistics_path) as path:
                    self._agent.vec_normalize.save(str(path))
            with atomic_path(zip_path) as path:
                (self._model or self._agent.model).save(path)

    def load(self, zip_path: Path, statistics_path: Path, trust: bool = False) -> None:
        """
        Go on from a checkpoint.

        :param zip_path: of the model
        :param statistics_path: of its statistics
        :param trust: see :func:`~sb3_refine.agents.decoding.model_zip.read_model`
        :raises RefineError: when a file is damaged
        """
        self._agent, self._model = agent_at(self._agent, zip_path, statistics_path, trust), None

    def use_buffer(self, path: Path) -> None:
        """
        Go on with earlier experience. Without a checkpoint, there is no warm-up then.

        :param path: what :meth:`save_buffer` wrote; or what ``save_replay_buffer`` of Stable-Baselines3 wrote, a pickle
            that can run any code
        """
        self._buffer_path = path

    def save_buffer(self, path: Path) -> None:
        """
        Save the replay buffer, if there is one.

        :param path: where to, ``.npz``
        """
        if self._model is not None and isinstance(self._agent.model, OffPolicyAlgorithm):
            save_buffer(vars(self._model)["replay_buffer"], path)

    @contextmanager
    def _env(self, seed: int) -> Iterator[VecEnv]:
        is_frozen = self._settings.normalisation == "frozen"
        env = training_env(self._agent, seed, self._settings.vec_env, is_frozen)
        try:
            yield env
        finally:
            env.close()

    def _prepared(self, env: VecEnv, seed: int) -> Any:
        """The model in new environments."""
        if self._model is None:
            file = io.BytesIO()
            self._agent.model.save(file)
            file.seek(0)
            self._model = type(self._agent.model).load(file, env=env, device="cpu")
            sync_copies(self._model)
            self._model.verbose, self._model.tensorboard_log = 0, None
            self._load_buffer(self._model)
        model: Any = self._model
        model.set_env(env)
        if isinstance(vars(model).get("replay_buffer"), HerReplayBuffer):
            model.replay_buffer.env = env
        if self._logger is not None:
            model.set_logger(self._logger)
        model.set_random_seed(seed)
        return model

    def _load_buffer(self, model: Any) -> None:
        if self._buffer_path is None:
            if self._has_experience:
                model.replay_buffer = copy.deepcopy(vars(self._agent.model)["replay_buffer"])
                _end_last_episodes(model)
            return
        if self._buffer_path.suffix == ".npz":
            load_buffer(model.replay_buffer, self._buffer_path)
            return
        try:
            model.load_replay_buffer(self._buffer_path)
        except Exception as error:  # of whatever the pickle holds
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise RefineError(f"replay_buffer: {self._buffer_path} cannot be used ({reason})") from error
        n_envs = model.replay_buffer.n_envs
        if n_envs != model.n_envs:
            raise RefineError(
                f"replay_buffer: {self._buffer_path} is of {n_envs} environments, the agent of {model.n_envs}"
            )

    @property
    def _has_experience(self) -> bool:
        """Whether the agent is a model in memory whose replay buffer is not empty."""
        buffer = vars(self._agent.model).get("replay_buffer")
        return buffer is not None and buffer.size() > 0

    def _n_warm_up(self, model: Any) -> int:
        if not isinstance(model, OffPolicyAlgorithm) or self._buffer_path is not None or self._has_experience:
            return 0
        n = self._settings.n_warm_up
        return max(vars(model)["learning_starts"], _MIN_WARM_UP) if n is None else n


def agent_at(agent: Agent, zip_path: Path, statistics_path: Path, trust: bool = False) -> Agent:
    """
    :param agent: before training
    :param zip_path: of a checkpoint of its training
    :param statistics_path: of the checkpoint's statistics
    :param trust: see :func:`~sb3_refine.agents.decoding.model_zip.read_model`
    :return: the agent as it was then
    :raises RefineError: when a file is damaged
    """
    model = load_model(read_model(zip_path, trust), agent.config, agent.observation_space)
    statistics = None if agent.vec_normalize is None else read_vec_normalize(statistics_path, trust)
    source = {"path": str(zip_path), "sha256": sha256(zip_path)}
    return replace(with_statistics(agent, statistics), model=model, source=source, expected_return=None)


def _end_last_episodes(model: Any) -> None:
    """The next slice begins with new episodes: mark the unfinished ones in the replay buffer as cut off."""
    buffer = vars(model).get("replay_buffer")
    if isinstance(buffer, HerReplayBuffer):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The last trajectory in the replay buffer", UserWarning)
            buffer.truncate_last_trajectory()
    elif isinstance(buffer, NStepReplayBuffer):
        buffer.timeouts[buffer.pos - 1] = ~buffer.dones[buffer.pos - 1].astype(bool)
    elif buffer is not None and buffer.optimize_memory_usage:
        buffer.dones[buffer.pos - 1] = True
