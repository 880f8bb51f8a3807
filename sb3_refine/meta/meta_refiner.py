"""``meta-es``: search a distribution of actors and critics from which a few episodes suffice to adapt to a new task."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv
from tqdm import tqdm
from typing_extensions import Self

from sb3_refine.agents.agent import Agent, environment_of, save_agent
from sb3_refine.agents.from_model import agent_from_model
from sb3_refine.agents.tasks import Tasks, with_tasks, write_tasks
from sb3_refine.agents.zoo import new_run_folder
from sb3_refine.errors import RefineError, check_count, check_seconds
from sb3_refine.evaluation.acceptance import ORIGINAL
from sb3_refine.evaluation.baseline import evaluate_baseline
from sb3_refine.evaluation.judge import AUTO, JudgeSettings
from sb3_refine.evaluation.selection import Candidate
from sb3_refine.evaluation.target import EvaluationTarget, rollout_task
from sb3_refine.evaluators import EVALUATORS, Backend, Evaluator, RolloutTask, backend_options
from sb3_refine.files import sha256
from sb3_refine.meta.adaptation import (
    CRITIC_ERROR,
    AdaptationSettings,
    AdaptingPolicy,
    adapted_episode,
    learner_of,
    shape_of,
)
from sb3_refine.meta.exploration import START_STD, Exploration, MetaParameters, find_exploration, first_exploration
from sb3_refine.meta.optimizer import MetaES
from sb3_refine.objectives.episode_return import Return
from sb3_refine.reporting.record import read_record, record_of, write_record
from sb3_refine.reporting.report import write_report
from sb3_refine.rollouts.episode import Episode
from sb3_refine.search.checkpoint import Checkpoint
from sb3_refine.search.clock import Clock
from sb3_refine.search.log import PROGRESS, log_update, log_verdict, make_logger, tensorboard_folder, write_progress
from sb3_refine.search.result import Result, interrupted_result, tested_result
from sb3_refine.search.state import N_ITERATES, SearchState
from sb3_refine.seeding import EpisodeSeeds, derived_seed

logger = logging.getLogger(__name__)

METHOD = "meta-es"


class MetaRefiner:
    """
    Meta-learning by evolution strategies (https://arxiv.org/abs/1812.11314, Algorithm 1): search means and standard
    deviations of the parameters of an actor and a critic. In each task of an update, each draw from the distribution
    adapts: its actors explore, and from their mean, gradient steps of DDPG or TD3 follow. The return after that is
    what is maximised, and for the critics the negative squared error.

    The verdict compares the returns after adaptation on tasks that the search has not seen.

    :param model: a DDPG or TD3 model, or an :class:`~sb3_refine.agents.agent.Agent` of one; the start of the means
    :param env: see :class:`~sb3_refine.refiner.Refiner`
    :param tasks: see :func:`~sb3_refine.agents.tasks.with_tasks`
    :param adaptation: how to adapt
    :param n_draws: draws in each update, the paper's M workers
    :param tasks_per_update: tasks in each update; all draws adapt to each
    :param learning_rate: of the means, see :class:`~sb3_refine.meta.optimizer.MetaES`
    :param std_learning_rate: of the standard deviations; 0 for fixed ones
    :param start_std: standard deviation of the actors at the start, by how much it changes the actions, see
        :func:`~sb3_refine.policies.noise_scale.noise_scale`; not used where the agent comes with an exploration
    :param seed: of everything random
    :param n_eval_episodes: test tasks, see :class:`~sb3_refine.evaluation.judge.JudgeSettings`
    :param alpha: level of significance
    :param n_workers: adaptations at a time; None for the number of processors
    :param backend: see :class:`~sb3_refine.refiner.Refiner`
    :param accelerator: see :class:`~sb3_refine.refiner.Refiner`
    :param episode_timeout: seconds after which an adaptation counts as hanging
    :param tensorboard_log: see :class:`~sb3_refine.refiner.Refiner`
    :param verbose: see :class:`~sb3_refine.refiner.Refiner`
    :raises RefineError: when an argument is wrong, or the agent cannot adapt so
    """

    def __init__(
        self,
        model: BaseAlgorithm | Agent,
        env: str | Callable[[], gym.Env] | VecEnv | gym.Env | None = None,
        tasks: Tasks | None = None,
        adaptation: AdaptationSettings | None = None,
        n_draws: int = 16,
        tasks_per_update: int = 2,
        learning_rate: float = 0.1,
        std_learning_rate: float = 0.02,
        start_std: float = START_STD,
        seed: int = 0,
        n_eval_episodes: int | str = AUTO,
        alpha: float = 0.05,
        n_workers: int | None = None,
        backend: Backend = "process",
        accelerator: bool = True,
        episode_timeout: float = 600.0,
        tensorboard_log: str | None = None,
        verbose: int = 0,
    ):
        self.backend, self._backend_kwargs = backend_options("backend", backend, n_workers)
        check_count("seed", seed, 0)
        check_count("tasks_per_update", tasks_per_update, 1)
        check_seconds("episode_timeout", episode_timeout)
        if not isinstance(start_std, (int, float)) or not 0 < start_std < np.inf:
            raise RefineError(f"start_std: expected a positive number, got {start_std!r}")
        self.agent = with_tasks(model if isinstance(model, Agent) else agent_from_model(model, env), tasks)
        if self.agent.recipe.tasks is None:
            raise RefineError("tasks: meta-es learns to adapt to the tasks of a family; name one with `tasks`")
        self.adaptation = adaptation or AdaptationSettings()
        self.n_draws, self.tasks_per_update = n_draws, tasks_per_update
        self._options: dict[str, Any] = {
            "n_draws": n_draws,
            "learning_rate": learning_rate,
            "std_learning_rate": std_learning_rate,
        }
        self.start_std, self.seed, self.run_seed, self.seeds = float(start_std), seed, seed, EpisodeSeeds(seed)
        self._n_learned = 0
        self.judging = JudgeSettings(Return(), "return", n_eval_episodes, alpha)
        self.accelerator, self.episode_timeout = accelerator, episode_timeout
        self.tensorboard_log, self.verbose = tensorboard_folder(tensorboard_log, model), verbose
        self.learner = learner_of(self.agent)
        self.shape = shape_of(self.learner, self.adaptation)
        self._base_task = rollout_task(self.agent, None, accelerator, episode_timeout=episode_timeout)
        given = find_exploration(self.agent)
        seeds = self.seeds.take("search", Exploration.n_episodes) if given is None else []
        self.n_search_seeds = len(seeds)
        self.n_first_steps = 0
        if given is None:
            given, self.n_first_steps = first_exploration(
                self.agent, self._base_task, self.learner, self.start_std, seeds
            )
        self.parameters = MetaParameters(self.model, given)
        self.result: Result | None = None
        self.search: SearchState | None = None
        self._original = self.parameters.get_theta()
        self._logger: Logger | None = None
        self._optimizer(1)  # wrong options fail here

    @property
    def model(self) -> BaseAlgorithm:
        """The plain model, of the means: after ``learn()`` the accepted one, or the original."""
        return self.agent.model

    @property
    def exploration(self) -> Exploration:
        """The standard deviations of the distribution whose means are in :attr:`model`."""
        return self.parameters.exploration

    @property
    def episodes_per_update(self) -> int:
        """Adaptations in an update."""
        return self.n_draws * self.tasks_per_update

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting that the result depends on."""
        return {
            **environment_of(self.agent),
            "seed": self.seed,
            "optimizer": METHOD,
            **self._options,
            **asdict(self.adaptation),
            "tasks_per_update": self.tasks_per_update,
            "start_std": self.start_std,
            "objective": "return",
            "parameters": "actor and critic",
            "n_parameters": self.parameters.size,
            "n_eval_episodes": self.judging.n_eval_episodes,
            "alpha": self.judging.alpha,
            "min_effect": None,
            "max_return_loss": self.judging.max_return_loss,
            "acceptance": True,
            "selection": True,
        }

    def make_task(self) -> RolloutTask:
        """:return: what workers do: adaptations"""
        policy = AdaptingPolicy(self._base_task.policy, self.learner, self.adaptation, self.seed, self.agent.statistics)
        return replace(self._base_task, policy=policy, rollout=adapted_episode)

    def set_logger(self, logger: Logger) -> None:
        """
        Log elsewhere than ``verbose`` and ``tensorboard_log`` say.

        :param logger: a Stable-Baselines3 logger
        """
        self._logger = logger

    def learn(
        self,
        n_updates: int = 100,
        log_interval: int = 1,
        tb_log_name: str = METHOD,
        progress_bar: bool = False,
        time_limit: float | None = None,
        checkpoint_folder: str | Path | None = None,
        checkpoint_interval: int = 5,
        resume: bool = False,
    ) -> Self:
        """
        Search, test the result on held-out tasks, and leave the better distribution: its means in ``model``, its
        standard deviations in :attr:`exploration`.

        Ctrl-C leaves the last iterate, marked ``"unchecked"`` in ``result``, and raises ``KeyboardInterrupt``.

        :param n_updates: number of updates
        :param log_interval: updates between two log entries
        :param tb_log_name: name of the run in TensorBoard
        :param progress_bar: show a progress bar over all adaptations
        :param time_limit: seconds after which the search ends, with time for the test set aside
        :param checkpoint_folder: where to keep the state of the search, or None
        :param checkpoint_interval: updates between two checkpoints
        :param resume: go on from the checkpoint
        :return: self
        :raises RefineError: when the settings are not those of the search to resume
        :raises EpisodeError: when an episode fails, or too many return NaN
        """
        clock = Clock(time_limit)
        check_count("log_interval", log_interval, 1)
        checkpoint = Checkpoint(checkpoint_folder, {**self.settings, "n_updates": n_updates}, checkpoint_interval)
        search = self.search = self._begin(n_updates, checkpoint, resume)
        log = self._logger or make_logger(self.verbose, self.tensorboard_log, tb_log_name, progress_bar)
        settings = self.judging if time_limit is None else self.judging.for_limited_time()
        with (
            self._evaluator() as evaluator,
            self._progress(search, evaluator, progress_bar),
            self._concluding(search, checkpoint),
        ):
            clock.start_episodes(search.n_episodes)
            original = self._evaluate_baseline(search, evaluator, settings)
            n_held_out = settings.n_episodes(N_ITERATES, has_baseline=True)
            while search.n_updates_done < n_updates and not clock.is_late(
                search.n_episodes, self.episodes_per_update + n_held_out
            ):
                episodes = self._update(search, evaluator)
                checkpoint.take(search)
                if search.n_updates_done % log_interval == 0 or search.n_updates_done == n_updates:
                    n_left = (n_updates - search.n_updates_done) * self.episodes_per_update + n_held_out
                    log_update(log, search, episodes, self.model.num_timesteps + search.n_env_steps, n_left)
            if search.n_updates_done < n_updates:
                done = f"{search.n_updates_done} of {n_updates} updates"
                logger.warning("the search ended after %s: the time is up", done)
            result, chosen = tested_result(search, original, evaluator, settings, self.seeds)
            self.parameters.set_theta(search.start_theta if result.decision == ORIGINAL else chosen)
            self.result = result
            log_verdict(log, result, self.model.num_timesteps + search.n_env_steps)
        return self

    def _evaluate_baseline(self, search: SearchState, evaluator: Evaluator, settings: JudgeSettings) -> Candidate:
        original = Candidate("original", EvaluationTarget(evaluator, search.start_theta), update=0)
        original.episodes = list(search.baseline.episodes if search.baseline else [])
        validation = self.seeds.take("validation", settings.n_validation_episodes)
        search.baseline = evaluate_baseline(original, validation, settings.objective, settings.name)
        search.count(evaluator)
        return original

    def _update(self, search: SearchState, evaluator: Evaluator) -> list[list[Episode]]:
        """All draws adapt to the same new tasks."""
        optimizer = search.optimizer
        assert isinstance(optimizer, MetaES)
        theta, population = optimizer.theta.copy(), optimizer.ask()
        seeds = search.take_seeds(self.seeds, population.groups, self.tasks_per_update)
        episodes = evaluator.evaluate(population, seeds)
        returns = np.array([[episode.episode_return for episode in own] for own in episodes])
        errors = np.array([[episode.metrics.get(CRITIC_ERROR, np.nan) for episode in own] for own in episodes])
        optimizer.tell_both(returns, -errors)
        search.count(evaluator)
        search.record(theta, episodes, returns.mean(axis=1))
        return episodes

    def _optimizer(self, n_updates: int) -> MetaES:
        options = {**self._options, "noise_seed": self.seed}
        return MetaES(self.parameters.get_theta(), self.run_seed, n_updates, self.shape, **options)

    def _begin(self, n_updates: int, checkpoint: Checkpoint, resume: bool) -> SearchState:
        check_count("n_updates", n_updates, 1)
        state = checkpoint.read() if resume else None
        run_number = int(state["run_number"]) if state else self._n_learned
        self.run_seed = derived_seed(self.seed, run_number) if run_number else self.seed
        self.seeds = EpisodeSeeds(self.run_seed)
        self.result = None
        self._original = self.parameters.get_theta()
        search = SearchState(self._optimizer(n_updates), self._original.copy(), run_number=run_number)
        if not run_number:  # of the episodes that the standard deviations were measured on
            search.n_search_seeds = search.n_episodes = self.n_search_seeds
            search.n_env_steps = self.n_first_steps
        if state:
            checkpoint.restore(search, state)
        return search

    @contextmanager
    def _evaluator(self) -> Iterator[Evaluator]:
        cls = EVALUATORS[self.backend]
        with cls(self.make_task(), episode_timeout=self.episode_timeout, **self._backend_kwargs) as evaluator:
            yield evaluator

    @contextmanager
    def _progress(self, search: SearchState, evaluator: Evaluator, visible: bool) -> Iterator[None]:
        evaluator.n_episodes, evaluator.n_env_steps = search.n_episodes, search.n_env_steps
        total = search.optimizer.n_updates * self.episodes_per_update + self.judging.n_episodes(N_ITERATES)
        with tqdm(total=total, initial=search.n_episodes, disable=not visible, unit="adaptation") as bar:
            evaluator.on_episode = bar.update
            yield

    @contextmanager
    def _concluding(self, search: SearchState, checkpoint: Checkpoint) -> Iterator[None]:
        """However the search ends, leave the model in a state that ``result`` describes, or as it was."""
        try:
            yield
        except KeyboardInterrupt:
            if self.result is None:
                self._take_last(search)
                self.parameters.set_theta(search.best[1])
                self.result = interrupted_result(search)
            raise
        finally:
            self._n_learned = max(self._n_learned, search.run_number + (search.n_updates_done > 0))
            checkpoint.write()

    def _take_last(self, search: SearchState) -> None:
        """Each update has other tasks, so the returns of updates do not say which iterate is the best."""
        if search.milestones:
            fitness = search.history[-1].mean_fitness
            search.milestones = {0: (fitness, search.n_updates_done, search.optimizer.theta.copy())}

    def save(self, folder: str | Path = "refined-agents", run_folder: str | Path | None = None) -> Path:
        """
        Save the model of the means in the Zoo's layout, and beside it the standard deviations (``exploration.npz``),
        ``refinement.json`` and ``progress.csv``; the original in ``state/``.

        :param folder: output folder; the agent goes to ``folder/ALGO/ENV_K``, K the next free number
        :param run_folder: a folder made by :func:`~sb3_refine.agents.zoo.new_run_folder`, instead
        :return: the run's folder
        :raises RefineError: before ``learn()``, and when the folder cannot be written
        """
        if self.result is None or self.search is None:
            raise RefineError("save: there is nothing to save yet; call learn() first")
        run_folder = Path(run_folder or new_run_folder(folder, self.agent.algo, self.agent.env_name))
        if not any((run_folder / "state").glob("*.zip")):
            self.save_original(run_folder)
        if not (run_folder / PROGRESS).exists():
            write_progress(run_folder / PROGRESS, self.result.learning_curve, self.model.num_timesteps)
        zip_path = save_agent(self.agent, run_folder)
        self.exploration.save(run_folder, self.adaptation)
        write_tasks(run_folder, self.agent)
        seeds = {
            "seed": self.run_seed,
            "validation": self.seeds.take("validation", self.judging.n_validation_episodes),
            "test": list(self.result.baseline.seeds) if self.result.baseline else None,
        }
        settings = {
            **self.settings,
            "n_updates": self.result.n_updates,
            "n_updates_done": self.result.n_updates_done,
            "gym_packages": list(self.agent.recipe.gym_packages),
            "backend": self.backend,
        }
        record = record_of(
            *(self.result, self.judging.objective, settings, seeds, self.agent.source, sha256(zip_path), METHOD),
            tasks=self.agent.recipe.tasks,
        )
        write_record(run_folder, record)
        return run_folder

    def save_original(self, run_folder: Path) -> None:
        """
        Save the distribution as it was, to resume from and to compare with.

        :param run_folder: its folder ``state`` is written
        :raises RefineError: when it cannot be written
        """
        theta = self.parameters.get_theta()
        self.parameters.set_theta(self._original)
        try:
            save_agent(self.agent, run_folder / "state")
            self.exploration.save(run_folder / "state", self.adaptation)
        finally:
            self.parameters.set_theta(theta)

    def report(self, run_folder: str | Path) -> Path:
        """
        Write ``report.md`` and its plots.

        :param run_folder: where :meth:`save` has saved
        :return: path of ``report.md``
        :raises RefineError: when nothing was saved there
        """
        return write_report(Path(run_folder), read_record(Path(run_folder)))
