"""Training on, and then search, in one budget."""

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gymnasium as gym
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecEnv
from tqdm import tqdm

from sb3_refine.agents.agent import Agent
from sb3_refine.agents.candidates import NamedAgent
from sb3_refine.agents.decoding.schema import (
    number,
    one_of,
    optional,
    plain,
    record,
    text,
    whole,
)
from sb3_refine.agents.from_model import agent_from_model
from sb3_refine.auto.arms import N_RECENT, Arm, SearchArm, TrainArm
from sb3_refine.auto.comparison import Comparison
from sb3_refine.auto.schedule import SECONDS, STEPS, Budget, Schedule
from sb3_refine.errors import RefineError, check_count, check_seconds
from sb3_refine.evaluation.baseline import warn_if_unexpected
from sb3_refine.files import atomic_path
from sb3_refine.judging import Judge, Judgement, Origin
from sb3_refine.optimizers import default_n_updates
from sb3_refine.refiner import Refiner
from sb3_refine.search.log import log_verdict, make_logger, tensorboard_folder
from sb3_refine.stopwatch import Stopwatch
from sb3_refine.training.callbacks import TrainingCallback
from sb3_refine.training.checkpoints import check_same_settings, read_state
from sb3_refine.training.continuation import TrainSettings

SETTINGS = "settings.json"
PLANNED = "planned.json"

_PLANNED = 0.9  # of a search's share of the budget: the length of its schedules, as some candidates take longer
_N_CANDIDATES = N_RECENT + 1 + SearchArm.most_candidates
_N_COMPARED = 64  # episodes: a guess of what the comparisons take, where time is limited


class AutoRefiner:
    """
    Improve an agent by training on, as long as that pays, and then by search, see
    :class:`~sb3_refine.auto.schedule.Schedule`. All that was found is judged together: the best candidate on validation
    seeds is tested once against the original on held-out seeds.

    :param model: a Stable-Baselines3 model, or an :class:`~sb3_refine.agents.agent.Agent` from ``load_agent``; it is
        left as it is
    :param env: see :class:`~sb3_refine.refiner.Refiner`
    :param seed: seed of everything random
    :param settings: how to train, see :class:`~sb3_refine.training.continuation.TrainSettings`
    :param replay_buffer: see :class:`~sb3_refine.training.trainer.Trainer`
    :param trust_remote_code: see :class:`~sb3_refine.training.trainer.Trainer`
    :param tensorboard_log: folder for TensorBoard; None for that of a model in memory, if it has one; ``""`` for none
    :param verbose: 0: silent, 1: a line for each entry of the log, 2: Stable-Baselines3's tables
    :param search: arguments of :class:`~sb3_refine.refiner.Refiner` that are of the search alone
    :param kwargs: any other argument of :class:`~sb3_refine.judging.Judge`
    :raises RefineError: when an argument is wrong, or the environment does not fit the model
    """

    def __init__(
        self,
        model: BaseAlgorithm | Agent,
        env: str | Callable[[], gym.Env] | VecEnv | gym.Env | None = None,
        seed: int = 0,
        settings: TrainSettings | None = None,
        replay_buffer: str | Path | None = None,
        trust_remote_code: bool = False,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        search: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        self.agent = model if isinstance(model, Agent) else agent_from_model(model, env)
        self.seed, self.settings = seed, settings or TrainSettings()
        self.tensorboard_log, self.verbose = tensorboard_folder(tensorboard_log, model), verbose
        self.judge = Judge(self.agent, seed=seed, **kwargs)
        self.judgement: Judgement | None = None
        self._trust = trust_remote_code or not isinstance(model, Agent)
        self._buffer = None if replay_buffer is None else Path(replay_buffer)
        of_both = ("objective", "n_workers", "backend", "accelerator", "episode_timeout")
        self._search = {"seed": seed, **(search or {}), **{name: kwargs[name] for name in of_both if name in kwargs}}
        self._refiner = Refiner(self.agent, acceptance=False, **self._search)  # wrong arguments fail here
        self._logger: Logger | None = None
        self._comparison: Comparison | None = None

    def learn(
        self,
        budget: int | None = None,
        callback: MaybeCallback = None,
        tb_log_name: str = "auto",
        progress_bar: bool = False,
        time_limit: float | None = None,
        checkpoint_folder: str | Path | None = None,
        resume: bool = False,
    ) -> Judgement:
        """
        Search and train, and judge what was found.

        Ctrl-C leaves the last candidate in :attr:`judgement`, marked ``"unchecked"``, and raises ``KeyboardInterrupt``.

        :param budget: rollouts, counted in environment steps: the original's mean episode length times this number, for
            search and training together. None for as much time as the default search is expected to take
        :param callback: Stable-Baselines3 callback(s), for the search and for the training
        :param tb_log_name: name of the run in TensorBoard
        :param progress_bar: show a progress bar over the episodes of the verdict
        :param time_limit: seconds for everything, instead of a budget; where a run is resumed, seconds from now on
        :param checkpoint_folder: where to keep the state, or None for a folder that is removed at the end
        :param resume: go on with the state in ``checkpoint_folder`` until its budget is used up; with a ``time_limit``
            of 0, judge what there is
        :return: the verdict
        :raises RefineError: when an argument is wrong
        :raises EpisodeError: when an episode fails
        """
        if budget is not None and time_limit is not None and not resume:
            raise RefineError("budget: there is a time_limit, too; leave one of them out")
        check_count("budget", 1 if budget is None else budget, 1)
        if time_limit is not None:
            check_seconds("time_limit", time_limit, allow_zero=resume)
        started = time.perf_counter()
        log = self._logger or make_logger(self.verbose, self.tensorboard_log, tb_log_name, progress_bar)
        with tempfile.TemporaryDirectory() if checkpoint_folder is None else nullcontext(checkpoint_folder) as name:
            budget_and_updates = self._stored(Path(name), budget, time_limit, resume)
            deadline = None
            if resume and time_limit is not None:
                deadline = started + time_limit - self._seconds_of_verdict(_N_COMPARED)
            hooks = TrainingCallback(callback, tqdm(disable=True), deadline)
            time_left = None if time_limit is None or resume else self._time_left(started + time_limit)
            keep_buffer = checkpoint_folder is not None
            schedule = self._plan(budget_and_updates, Path(name), log, hooks, keep_buffer, time_left)
            if resume:
                self.judge.stopwatch = Stopwatch(*(_sum(schedule.arms, unit) for unit in (SECONDS, "cpu_time_s")))
            try:
                schedule.run(lambda: hooks.is_over, time_left)
                hooks.end()
            except KeyboardInterrupt:
                self.judgement = self._interrupted(schedule)
                raise
            candidates = self._candidates(schedule)
            if not candidates:
                raise RefineError("time_limit: too short to search, to train and to judge the result")
            is_time_limited = time_limit is not None
            self.judgement = self.judge.judge(
                candidates, progress_bar, self._origin(schedule), is_time_limited=is_time_limited
            )
        n_env_steps = int(_sum(schedule.arms, STEPS))
        log_verdict(log, self.judgement.result, self.agent.model.num_timesteps + n_env_steps)
        return self.judgement

    def set_logger(self, logger: Logger) -> None:
        """
        Log elsewhere than ``verbose`` and ``tensorboard_log`` say.

        :param logger: a Stable-Baselines3 logger
        """
        self._logger = logger

    def _stored(
        self, folder: Path, n_rollouts: int | None, time_limit: float | None, resume: bool
    ) -> tuple[Budget, int]:
        """The budget, with the settings in a file; of a run that is resumed, that of the file."""
        settings = {"n_rollouts": n_rollouts, **self._recorded}
        if resume:
            stored = read_settings(folder)
            check_same_settings(settings, stored)
            self.judge.evaluate_original()
            return Budget(stored["total"], stored["unit"]), stored["n_updates"]
        budget, n_updates = self._budget(n_rollouts, time_limit)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(folder / SETTINGS) as path:
            content = {**settings, "total": budget.total, "unit": budget.unit, "n_updates": n_updates}
            path.write_text(json.dumps(content))
        return budget, n_updates

    @property
    def _recorded(self) -> dict[str, Any]:
        """Settings that the result depends on, as JSON has them."""
        search = {name: value for name, value in self._search.items() if name in self._refiner.settings}
        settings = {**asdict(self.settings), **search, **self.judge.recorded, "algo": self.agent.algo}
        return json.loads(json.dumps(settings))

    def _budget(self, n_rollouts: int | None, time_limit: float | None) -> tuple[Budget, int]:
        """What search and training share, and the updates of a search that would fit in."""
        baseline = self.judge.evaluate_original()
        if self.agent.recipe.end_at_success:
            warn_if_unexpected(self.agent, baseline)
        pace, per_update = self.judge.seconds_per_episode, self._refiner.episodes_per_update
        if n_rollouts is not None:
            budget, n_episodes = Budget(n_rollouts * float(baseline.lengths.mean()), STEPS), float(n_rollouts)
        elif time_limit is not None:
            seconds = max(0.0, time_limit - self._seconds_of_verdict(_N_COMPARED) - pace * len(baseline.episodes))
            budget, n_episodes = Budget(seconds, SECONDS), seconds / pace
        else:
            n_episodes = float(default_n_updates(self._refiner.optimizer_name) * per_update)
            budget = Budget(n_episodes * pace, SECONDS)
        return budget, max(1, round(n_episodes / per_update))

    def _seconds_of_verdict(self, n_compared: int = 0) -> float:
        """With ``n_compared`` episodes before the verdict; at the pace of the original, or of the last comparison."""
        n_episodes = self.judge.n_episodes(_N_CANDIDATES) + n_compared
        pace = 0.0 if self._comparison is None else self._comparison.seconds_per_episode
        return max(self.judge.seconds_per_episode, pace) * n_episodes

    def _time_left(self, deadline: float) -> Callable[[], float]:
        """How many seconds are left until what the arms found has to be judged."""

        def time_left() -> float:
            return deadline - self._seconds_of_verdict() - time.perf_counter()

        return time_left

    def _plan(
        self,
        budget: tuple[Budget, int],
        folder: Path,
        log: Logger,
        hooks: TrainingCallback,
        keep_buffer: bool,
        time_left: Callable[[], float] | None,
    ) -> Schedule:
        total, n_updates = budget
        training = TrainArm(
            *("training", self.agent, self.settings, self.seed, folder / "training", log, hooks),
            *(int(self.judge.evaluate_original().lengths.max()), self._buffer, self._trust, keep_buffer),
        )
        comparison = self._comparison = Comparison(self.judge, folder, self._trust)

        def search(share: float, start: int | None) -> Arm:
            if time_left is not None:  # comparisons may have taken more or less than was guessed
                share = max(0.0, time_left()) / total.total if total.total > 0 else 0.0
            n_planned = _kept(folder / PLANNED, max(1, round(_PLANNED * share * n_updates)))
            name = "search" if start is None else "search from training"
            start_at = comparison.agent(start)
            return SearchArm(name, start_at, n_planned, folder / "search", log, hooks, **self._search)

        return Schedule(training, total, lambda best: comparison.of(training, best), comparison.keep, search, folder)

    def _interrupted(self, schedule: Schedule) -> Judgement | None:
        """The last candidate of the arm that began last, if there is one."""
        candidates = [each for arm in schedule.arms for each in arm.recent_candidates()[-1:]]
        if not candidates:
            return None
        reason = f"interrupted: this is {candidates[-1].name}, not tested on held-out seeds"
        return self.judge.unchecked(candidates[-1], reason, self._origin(schedule))

    def _candidates(self, schedule: Schedule) -> list[NamedAgent]:
        """What is judged: what the search has found, the best of the training, and its last checkpoints."""
        training, *searches = schedule.arms
        found = [each for search in searches for each in search.candidates()]
        if schedule.best is not None and self._comparison is not None:
            found.append(NamedAgent(f"{training.name}: the best of before", self._comparison.agent(schedule.best)))
        return found + training.recent_candidates()

    def _origin(self, schedule: Schedule) -> Origin:
        settings = {
            "rounds": [decision["text"] for decision in schedule.decisions],
            "arms": {arm.name: [arm.n_episodes, arm.n_env_steps, round(arm.seconds, 1)] for arm in schedule.arms},
        }
        return Origin("auto", settings, int(_sum(schedule.arms, "n_episodes")), int(_sum(schedule.arms, STEPS)))


def _kept(path: Path, n_updates: int) -> int:
    """The length of a search, written down: where a run is resumed, the one that was planned then."""
    if path.exists():
        return read_state(path, whole(1, 10**9))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(n_updates))
    return n_updates


def _sum(arms: Sequence[Arm], unit: str) -> float:
    return sum(getattr(arm, unit) for arm in arms)


def read_settings(folder: Path) -> dict[str, Any]:
    """
    :param folder: with the state of an interrupted run
    :return: its settings
    :raises RefineError: when they cannot be read
    """
    return read_state(folder / SETTINGS, _SETTINGS)


_SETTINGS = record(
    {
        "n_rollouts": optional(whole(1)),
        "total": number(0, 1e15),
        "unit": one_of(SECONDS, STEPS),
        "n_updates": whole(1, 10**9),
        "objective": text(),
    },
    others=plain,
)
