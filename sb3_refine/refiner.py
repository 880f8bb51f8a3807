"""The refiner: a trained agent in, a better one of the same kind out."""

import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecEnv
from tqdm import tqdm
from typing_extensions import Self

from sb3_refine.agents.agent import Agent, environment_of, save_agent, teacher_of
from sb3_refine.agents.copies import round_parameters
from sb3_refine.agents.from_model import agent_from_model
from sb3_refine.agents.sb3_models import sync_copies
from sb3_refine.agents.tasks import Tasks, with_tasks, write_tasks
from sb3_refine.agents.zoo import new_run_folder
from sb3_refine.envs.observations import n_observed
from sb3_refine.errors import RefineError, check_count, check_seconds
from sb3_refine.evaluation.acceptance import ORIGINAL
from sb3_refine.evaluation.baseline import evaluate_baseline, recheck_reproducibility, warn_if_unexpected
from sb3_refine.evaluation.calibration import N_CALIBRATION_EPISODES, calibrate
from sb3_refine.evaluation.judge import AUTO, JudgeSettings
from sb3_refine.evaluation.robustness import check_entries
from sb3_refine.evaluation.selection import Candidate
from sb3_refine.evaluation.target import EvaluationTarget, rollout_task
from sb3_refine.evaluators import EVALUATORS, Backend, Evaluator, RolloutTask, SerialEvaluator, backend_options
from sb3_refine.files import sha256
from sb3_refine.objectives import OBJECTIVES, Objective, make_objective
from sb3_refine.optimizers import (
    OPTIMIZERS,
    ExplicitPopulation,
    Optimizer,
    ScaledOptimizer,
    default_n_updates,
    optimizer_options,
)
from sb3_refine.parts import check_choice
from sb3_refine.policies.parameters import PolicyParameters
from sb3_refine.policies.rounding import check_rounding
from sb3_refine.reporting.record import FILE_NAME, read_record, record_of, write_record
from sb3_refine.reporting.report import report_on, write_report
from sb3_refine.rollouts.episode import Episode, Trajectory
from sb3_refine.search.callbacks import callback_context, episodes_as_steps
from sb3_refine.search.checkpoint import Checkpoint
from sb3_refine.search.clock import Clock
from sb3_refine.search.log import PROGRESS, log_update, log_verdict, make_logger, tensorboard_folder, write_progress
from sb3_refine.search.result import Result, interrupted_result, tested_result, untested_result
from sb3_refine.search.state import N_ITERATES, SearchState
from sb3_refine.seeding import EpisodeSeeds, derived_seed

logger = logging.getLogger(__name__)


class Refiner:
    """
    Refine a trained policy by direct search in the space of its parameters: perturb them, roll out deterministically,
    keep the agent's own observation normalisation, step along the better directions
    (https://arxiv.org/abs/2109.05604).

    As a context manager, a refiner keeps its workers for everything within the ``with`` block; without, ``learn()`` and
    ``report()`` each start their own.

    >>> from stable_baselines3 import PPO
    >>> model = PPO("MlpPolicy", "Pendulum-v1", seed=0, device="cpu")
    >>> refiner = Refiner(model, n_delta=4, n_eval_episodes=10, backend="serial").learn(n_updates=2)
    >>> refiner.result.decision in ("refined", "original")
    True
    >>> refiner.model is model
    True

    :param model: a Stable-Baselines3 model, or an :class:`~sb3_refine.agents.agent.Agent` from ``load_agent``. Like
        SB3's ``learn``, the refiner changes the model in place: the parameters behind the action, nothing else
    :param env: id of the environment, a callable that makes it with its wrappers, a ``VecEnv`` (its ``VecNormalize``
        statistics are kept, frozen), or None for the model's own
    :param optimizer: search method, one of ``sb3_refine.optimizers.OPTIMIZERS``, with options as in ``"ars:n_delta=8"``
    :param objective: what is maximised: ``"return"``, the undiscounted sum of the true rewards, or another of
        ``sb3_refine.objectives.OBJECTIVES``, with options as in ``"smooth:weight=1"``; or a function of a
        :class:`~sb3_refine.rollouts.episode.Trajectory`, also as ``"module:function"``
    :param parameters: what is searched: ``"actor"``, ``"head"``, or a regular expression over parameter names
    :param n_workers: episodes run at a time; None for as many as there are processors, or as the backend has it
    :param backend: who runs the episodes: one of ``sb3_refine.evaluators.EVALUATORS``, with options as for the
        optimizer, or an executor as for :class:`~sb3_refine.evaluators.ExecutorEvaluator`; the results are the same
    :param seed: seed of everything random
    :param episodes_per_candidate: episodes that a candidate's fitness is the mean of; None for the optimizer's choice
    :param n_eval_episodes: see :class:`~sb3_refine.evaluation.judge.JudgeSettings`, as for the next four
    :param alpha: the refined agent is accepted if it is better at this level of significance
    :param min_effect: the difference to resolve with ``n_eval_episodes="auto"``
    :param max_return_loss: share of the original's mean return that another objective may cost
    :param selection: whether to choose among the last iterate, the running average and the best iterates, on validation
        seeds; without, the last iterate is tested
    :param acceptance: whether to test at all; without, ``learn()`` leaves the last iterate, unchecked
    :param accelerator: whether to use a faster, bit-identical ``step`` where there is one for the environment
    :param episode_timeout: seconds after which an episode counts as hanging
    :param quantize: ``"float16"``, ``"int8"`` or ``"int4"``: in all episodes, those of the original included, the
        weights are rounded so, see :func:`~sb3_refine.policies.rounding.rounded`; an accepted agent has rounded weights
    :param tasks: a family of tasks, each episode one of them, see :func:`~sb3_refine.agents.tasks.with_tasks`; None for
        the environment as it is
    :param tensorboard_log: folder for TensorBoard; None for that of a model in memory, if it has one; ``""`` for none
    :param verbose: 0: silent, 1: a line for each entry of the log, 2: Stable-Baselines3's tables
    :param optimizer_kwargs: options of the search method, such as ``n_delta``, ``learning_rate`` and ``delta_std``
    :raises RefineError: when an argument is wrong, or the environment does not fit the model
    """

    def __init__(
        self,
        model: BaseAlgorithm | Agent,
        env: str | Callable[[], gym.Env] | VecEnv | gym.Env | None = None,
        optimizer: str = "backtracking-ars",
        objective: str | Objective | Callable[[Trajectory], float] = "return",
        parameters: str = "actor",
        n_workers: int | None = None,
        backend: Backend = "process",
        seed: int = 0,
        episodes_per_candidate: int | None = None,
        n_eval_episodes: int | str = AUTO,
        alpha: float = 0.05,
        min_effect: float | None = None,
        max_return_loss: float = 0.05,
        selection: bool = True,
        acceptance: bool = True,
        accelerator: bool = True,
        episode_timeout: float = 600.0,
        quantize: str | None = None,
        tasks: Tasks | None = None,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        **optimizer_kwargs: Any,
    ):
        self.optimizer_name, self.optimizer_kwargs = optimizer_options(optimizer, optimizer_kwargs)
        self.backend, self._backend_kwargs = backend_options("backend", backend, n_workers)
        check_count("episodes_per_candidate", 1 if episodes_per_candidate is None else episodes_per_candidate, 1)
        check_count("seed", seed, 0)
        check_seconds("episode_timeout", episode_timeout)
        check_rounding("quantize", quantize)
        if isinstance(model, Agent) and env is not None:
            raise RefineError("env: an Agent brings its own environment; leave env out, or pass agent.model")
        self.objective = make_objective(objective)
        name = objective if isinstance(objective, str) else self.objective.name
        self.judging = JudgeSettings(
            self.objective, name, n_eval_episodes, alpha, min_effect, max_return_loss, selection
        )
        self.agent = with_tasks(model if isinstance(model, Agent) else agent_from_model(model, env), tasks)
        self.parameters = PolicyParameters(self.model.policy, parameters)
        self.n_workers = self._backend_kwargs["n_workers"] or EVALUATORS[self.backend].default_n_workers()
        self.acceptance, self.accelerator, self.episode_timeout = acceptance, accelerator, episode_timeout
        self.quantize = quantize
        self.tensorboard_log, self.verbose = tensorboard_folder(tensorboard_log, model), verbose
        self.seed, self.run_seed, self.seeds = seed, seed, EpisodeSeeds(seed)
        self.is_part = False
        """Whether a search is part of a larger run, which has a verdict of its own."""
        self.result: Result | None = None
        self.tested: tuple[np.ndarray, np.ndarray] | None = None
        self._saved_in: set[Path] = set()  # run folders that hold the result
        self._written: dict[Path, SearchState] = {}  # of run folders whose original and log are from here
        self.search: SearchState | None = None
        self._original = np.empty(0, dtype=np.float32)  # the actor before the last search
        self._n_learned = 0
        self._logger: Logger | None = None
        self._task: RolloutTask | None = None
        self._evaluator: Evaluator | None = None
        self._stack: ExitStack | None = None
        first = self.make_optimizer(n_updates=1)  # wrong options fail here, not in learn()
        self.episodes_per_candidate = episodes_per_candidate or first.episodes_per_candidate
        self.episodes_per_update = first.population_size * self.episodes_per_candidate

    @property
    def model(self) -> BaseAlgorithm:
        """The plain Stable-Baselines3 model: after ``learn()`` the accepted one, or the original."""
        return self.agent.model

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        return self

    def __exit__(self, *error: object) -> None:
        assert self._stack is not None
        stack, self._stack, self._evaluator = self._stack, None, None
        stack.close()

    @contextmanager
    def evaluator(self) -> Iterator[Evaluator]:
        """
        :return: the workers: those of the ``with`` block that the refiner is in, else new ones
        """
        if self._stack is None:
            with self, self.evaluator() as evaluator:
                yield evaluator
            return
        if self._evaluator is None:
            cls, options = EVALUATORS[self.backend], self._backend_kwargs
            evaluator = cls(self.make_task(), episode_timeout=self.episode_timeout, **options)
            self._evaluator = self._stack.enter_context(evaluator)
        yield self._evaluator

    def learn(
        self,
        n_updates: int | None = None,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "refine",
        progress_bar: bool = False,
        time_limit: float | None = None,
        checkpoint_folder: str | Path | None = None,
        checkpoint_interval: int = 5,
        resume: bool = False,
        may_change: Collection[str] = (),
        budget: int | None = None,
    ) -> Self:
        """
        Search from the model's parameters, test the result on held-out seeds, and leave the better of the two in
        ``model``.

        Ctrl-C leaves the best iterate so far in ``model``, marked ``"unchecked"`` in ``result``, and raises
        ``KeyboardInterrupt``.

        :param n_updates: number of updates; None for that of the optimizer's default preset, or for ``budget``
        :param callback: Stable-Baselines3 callback(s), called once an update; the current iterate is in ``model``
        :param log_interval: updates between two log entries
        :param tb_log_name: name of the run in TensorBoard
        :param progress_bar: show a progress bar over all episodes, the held-out ones included
        :param time_limit: seconds after which the search ends, with time for the held-out episodes set aside
        :param checkpoint_folder: where to keep the state of the search, or None
        :param checkpoint_interval: updates between two checkpoints: the most that a kill can lose
        :param resume: go on from the checkpoint, to the bits that the uninterrupted search would have given
        :param may_change: options of the optimizer that may be other ones than those of the search to resume, such as
            ``["learning_rate"]``
        :param budget: episodes of the search, instead of ``n_updates``
        :return: self
        :raises RefineError: when the settings are not those of the search to resume
        :raises EpisodeError: when an episode fails, or too many return NaN
        """
        clock = Clock(time_limit)
        check_count("log_interval", log_interval, 1)
        n_updates = self._length(n_updates, budget)
        for name in may_change:
            check_choice("may_change", name, OPTIMIZERS[self.optimizer_name].options())
        checkpoint = Checkpoint(
            checkpoint_folder, {**self.settings, "n_updates": n_updates}, checkpoint_interval, may_change
        )
        search = self._begin(n_updates, checkpoint, resume)
        log = self._logger or make_logger(self.verbose, self.tensorboard_log, tb_log_name, progress_bar)
        with (
            callback_context(self.agent, log, callback) as hooks,
            self.evaluator() as evaluator,
            self._progress(search, evaluator, progress_bar) as progress,
            self._concluding(search, checkpoint),
        ):
            clock.start_episodes(search.n_episodes)
            original = self._evaluate_baseline(search, evaluator)
            self._calibrate(search, evaluator)
            optimizer, num_timesteps = search.optimizer, self.model.num_timesteps
            total_timesteps = num_timesteps + n_updates  # SB3's progress bar counts one a call
            self.model.num_timesteps = num_timesteps + search.n_env_steps  # where a resumed search had got to
            hooks.on_training_start(locals(), globals())
            is_stopped = False
            while search.n_updates_done < n_updates and not is_stopped and not self._is_late(search, clock):
                hooks.on_rollout_start()
                theta, population = optimizer.theta.copy(), optimizer.ask()
                seeds = search.take_seeds(self.seeds, population.groups, self.episodes_per_candidate)
                episodes = evaluator.evaluate(population, seeds, self.objective.metrics)
                fitness = self.objective.of_population(episodes)
                optimizer.tell(fitness)
                search.count(evaluator)
                search.record(theta, episodes, fitness)
                progress.set_postfix_str(f"best {search.best_fitness:.4g}", refresh=False)
                self._set_theta(optimizer.theta)
                self.model.num_timesteps = num_timesteps + search.n_env_steps
                checkpoint.take(search)
                hooks.update_locals({**locals(), **episodes_as_steps(episodes, search.stopwatch.wall_time_s)})
                is_stopped = not hooks.on_step()
                hooks.on_rollout_end()
                if is_stopped or search.n_updates_done % log_interval == 0 or search.n_updates_done == n_updates:
                    n_left = (n_updates - search.n_updates_done) * self.episodes_per_update + self._n_held_out(True)
                    log_update(log, search, episodes, self.model.num_timesteps, n_left)
            hooks.on_training_end()
            if search.n_updates_done < n_updates and not self.is_part:
                reason = "a callback stopped it" if is_stopped else "the time is up"
                logger.warning("the search ended after %d of %d updates: %s", search.n_updates_done, n_updates, reason)
            settings = self.judging if time_limit is None else self.judging.for_limited_time()
            self._conclude(search, original, evaluator, settings)
            assert self.result is not None
            if not self.is_part:
                log_verdict(log, self.result, self.model.num_timesteps)
        return self

    def save(self, folder: str | Path = "refined-agents", run_folder: str | Path | None = None) -> Path:
        """
        Save the model in the Zoo's layout; beside it ``refinement.json``, ``progress.csv``, and the original in
        ``state/``. :meth:`report` adds a report.

        :param folder: output folder; the agent goes to ``folder/ALGO/ENV_K``, K the next free number
        :param run_folder: a folder made by :func:`~sb3_refine.agents.zoo.new_run_folder`, instead
        :return: the run's folder
        :raises RefineError: before ``learn()``, and when the folder cannot be written
        """
        if self.result is None:
            raise RefineError("save: there is nothing to save yet; call learn() first")
        run_folder = Path(run_folder or new_run_folder(folder, self.agent.algo, self.agent.env_name))
        self._save_original_and_log(run_folder)
        zip_path = save_agent(self.agent, run_folder)
        seeds = {
            "seed": self.run_seed,
            "validation": self.validation_seeds if self.result.candidates else None,
            "test": list(self.result.baseline.seeds) if self.result.baseline else None,
        }
        settings = {
            **self.settings,
            "n_updates": self.result.n_updates,
            "n_updates_done": self.result.n_updates_done,
            "gym_packages": list(self.agent.recipe.gym_packages),
            "backend": self.backend,
            "n_workers": self.n_workers,
            **teacher_of(self.agent),
        }
        record = record_of(
            self.result,
            self.objective,
            settings,
            seeds,
            self.agent.source,
            sha256(zip_path),
            tasks=self.agent.recipe.tasks,
        )
        write_record(run_folder, record)
        write_tasks(run_folder, self.agent)
        self._saved_in.add(run_folder.resolve())
        return run_folder

    def _save_original_and_log(self, run_folder: Path) -> None:
        """The original to compare with, and ``progress.csv``; unless the caller has put them there."""
        assert self.search is not None and self.result is not None
        is_earlier = self._written.get(run_folder.resolve(), self.search) is not self.search
        self._written[run_folder.resolve()] = self.search
        if is_earlier or not any((run_folder / "state").glob("*.zip")):
            actor = PolicyParameters(self.model.policy)  # all of it: rounding changes what is not searched, too
            theta = actor.get_theta()
            actor.set_theta(self._original)
            sync_copies(self.model)
            try:
                save_agent(self.agent, run_folder / "state")
            finally:
                actor.set_theta(theta)
                sync_copies(self.model)
        if is_earlier or not (run_folder / PROGRESS).exists():
            write_progress(run_folder / PROGRESS, self.result.learning_curve, self.model.num_timesteps)

    def report(
        self, run_folder: str | Path, video: bool = False, phase_portrait: tuple[int, int] | None = None
    ) -> Path:
        """
        Write ``report.md`` and its plots. Where the folder holds the result of the last search, some episodes of both
        agents are run under noise.

        :param run_folder: where :meth:`save` has saved
        :param video: whether to record an episode of both, side by side
        :param phase_portrait: two observations, by index, to draw against each other; by default the two that move most
        :return: path of ``report.md``
        :raises RefineError: when nothing was saved there, there are no such observations, or no video can be made
        :raises EpisodeError: when an episode fails; the report is written without it
        """
        run_folder = Path(run_folder)
        if not (run_folder / FILE_NAME).is_file():
            raise RefineError(f"report: no {FILE_NAME} in {run_folder}; name the folder that save() returned")
        if phase_portrait is not None:
            check_entries(phase_portrait, n_observed(self.model.observation_space))
        if self.tested and self.result and self.result.candidate and run_folder.resolve() in self._saved_in:
            with self.evaluator() as evaluator:
                original, refined = (EvaluationTarget(evaluator, theta) for theta in self.tested)
                return report_on(original, refined, self.result.candidate.seeds, run_folder, video, phase_portrait)
        return write_report(run_folder, read_record(run_folder))

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting that the result depends on."""
        cls = OPTIMIZERS[self.optimizer_name]
        optimizer = cls(np.zeros(self.parameters.size), self.run_seed, n_updates=1, **self.optimizer_kwargs)
        return {
            **environment_of(self.agent),
            "seed": self.seed,
            "optimizer": self.optimizer_name,
            **{name: getattr(optimizer, name) for name in optimizer.options()},
            "episodes_per_candidate": self.episodes_per_candidate,
            "objective": self.judging.name,
            "parameters": self.parameters.scope,
            "n_parameters": self.parameters.size,
            "n_eval_episodes": self.judging.n_eval_episodes,
            "alpha": self.judging.alpha,
            "min_effect": self.judging.min_effect,
            "max_return_loss": self.judging.max_return_loss,
            "acceptance": self.acceptance,
            "selection": self.judging.selection,
            **({"quantize": self.quantize} if self.quantize else {}),
        }

    @property
    def is_seeded(self) -> bool:
        """Whether the seed decides the episode, as far as is known; if not, seeds cannot be paired."""
        return self._task is None or self._task.is_seeded

    @property
    def n_calibration_episodes(self) -> int:
        """Episodes that measure the units of the noise, before the first update."""
        return N_CALIBRATION_EPISODES if OPTIMIZERS[self.optimizer_name].in_action_units else 0

    @property
    def n_held_out(self) -> int:
        """Episodes on validation and test seeds, at most, as far as is known before the search."""
        return self._n_held_out(has_baseline=False)

    @property
    def validation_seeds(self) -> list[int]:
        """Episode seeds that the choice among iterates is made on."""
        return self.seeds.take("validation", self.judging.n_validation_episodes)

    def make_optimizer(self, n_updates: int) -> Optimizer:
        """
        :param n_updates: length of the search
        :return: the search method, at the model's parameters
        """
        cls, theta = OPTIMIZERS[self.optimizer_name], self.parameters.get_theta()
        start = np.zeros_like(theta) if cls.in_action_units else theta
        optimizer = cls(start, self.run_seed, n_updates, **self.optimizer_kwargs)
        return ScaledOptimizer(optimizer, theta, np.ones_like(theta)) if cls.in_action_units else optimizer

    def make_task(self) -> RolloutTask:
        """:return: what workers roll out: the environment in the form that the probe finds to be reproducible"""
        self._task = rollout_task(
            self.agent, self.parameters, self.accelerator, self.objective, self.episode_timeout, self.quantize
        )
        return self._task

    def set_logger(self, logger: Logger) -> None:
        """
        Log elsewhere than ``verbose`` and ``tensorboard_log`` say.

        :param logger: a Stable-Baselines3 logger
        """
        self._logger = logger

    def try_episodes(self) -> tuple[list[Episode], float]:
        """
        Run two episodes of the original in this process, to see that everything fits and how long it takes.

        :return: the episodes, and the seconds that they took
        """
        original = ExplicitPopulation([self.parameters.get_theta()], names=["the unperturbed policy"])
        with SerialEvaluator(self.make_task()) as evaluator:
            clock = Clock(None)
            (episodes,) = evaluator.evaluate(original, [self.seeds.take("search", 2)], self.objective.metrics)
            return episodes, clock.elapsed

    def n_updates_within(self, budget: int) -> int:
        """
        :param budget: episodes of a search, its calibration included
        :return: the number of updates that they allow
        :raises RefineError: when they allow none
        """
        check_count("budget", budget, 1)
        n_updates = (budget - self.n_calibration_episodes) // self.episodes_per_update
        if n_updates < 1:
            least = self.n_calibration_episodes + self.episodes_per_update
            raise RefineError(f"budget: the shortest search takes {least} rollouts, got {budget}")
        return n_updates

    def _length(self, n_updates: int | None, budget: int | None) -> int:
        if n_updates is not None and budget is not None:
            raise RefineError("budget: there is n_updates, too; leave one of them out")
        if budget is not None:
            return self.n_updates_within(budget)
        return default_n_updates(self.optimizer_name) if n_updates is None else n_updates

    def _begin(self, n_updates: int, checkpoint: Checkpoint, resume: bool) -> SearchState:
        """A new search, or the one of the checkpoint. A further one uses other seeds, also for its test."""
        state = checkpoint.read() if resume else None
        run_number = int(state["run_number"]) if state else self._n_learned
        self.result = self.tested = None
        self._saved_in = set()
        self.run_seed = derived_seed(self.seed, run_number) if run_number else self.seed
        self.seeds = EpisodeSeeds(self.run_seed)
        self._original = PolicyParameters(self.model.policy).get_theta()
        search = SearchState(self.make_optimizer(n_updates), self.parameters.get_theta(), run_number=run_number)
        self.search = search
        if state:
            checkpoint.restore(search, state)
            if type(self.objective) not in OBJECTIVES.values():  # two functions may have one name
                logger.warning(
                    "resume: other objectives may have the name %s too: make sure that this is the objective of the "
                    "interrupted search",
                    self.judging.name,
                )
        return search

    @contextmanager
    def _progress(self, search: SearchState, evaluator: Evaluator, visible: bool) -> Iterator[tqdm]:
        """Count all episodes; in a bar, the remaining time includes the held-out ones."""
        evaluator.n_episodes, evaluator.n_env_steps = search.n_episodes, search.n_env_steps
        n_updates, has_baseline = search.optimizer.n_updates, search.baseline is not None
        total = n_updates * self.episodes_per_update + self.n_calibration_episodes + self._n_held_out(has_baseline)
        bar = {"total": total, "initial": search.n_episodes, "disable": not visible}
        with tqdm(unit="episode", dynamic_ncols=True, **bar) as progress:
            evaluator.on_episode = progress.update
            try:
                yield progress
                progress.total = progress.n  # fewer iterates to choose from than there might have been
            finally:
                evaluator.on_episode = lambda: None

    @contextmanager
    def _concluding(self, search: SearchState, checkpoint: Checkpoint) -> Iterator[None]:
        """However the search ends, leave the model in a state that ``result`` describes, or as it was."""
        try:
            self.parameters.set_theta(search.optimizer.theta)  # where a resumed search had got to
            yield
        except BaseException as error:
            if self.result is None:  # before the verdict; after the verdict, the model is what the result says
                if isinstance(error, KeyboardInterrupt):
                    self._take_over(search.best[1])
                    self.result = interrupted_result(search)
                else:
                    self.parameters.set_theta(search.start_theta)
            raise
        finally:
            self._n_learned = max(self._n_learned, search.run_number + (search.n_updates_done > 0))
            sync_copies(self.model)
            checkpoint.write()

    def _set_theta(self, theta: np.ndarray) -> None:
        self.parameters.set_theta(theta)
        sync_copies(self.model)

    def _take_over(self, theta: np.ndarray) -> None:
        """Write what was found into the model, as it was in its episodes."""
        self.parameters.set_theta(theta)
        if self.quantize is not None:
            round_parameters(self.model.policy, self.quantize)

    def _n_held_out(self, has_baseline: bool) -> int:
        return self.judging.n_episodes(N_ITERATES, has_baseline, self.is_seeded) if self.acceptance else 0

    def _is_late(self, search: SearchState, clock: Clock) -> bool:
        """Whether the time left is too short for an update and the held-out episodes."""
        n_held_out = self._n_held_out(has_baseline=search.baseline is not None)
        return clock.is_late(search.n_episodes, self.episodes_per_update + n_held_out)

    def _evaluate_baseline(self, search: SearchState, evaluator: Evaluator) -> Candidate:
        """Run the original on validation seeds: for the choice, the objective, and a check of its own returns."""
        original = Candidate("original", EvaluationTarget(evaluator, search.start_theta), update=0)
        if search.baseline is None and not (self.acceptance or self.objective.needs_baseline):
            return original
        is_new, original.episodes = search.baseline is None, list(search.baseline.episodes if search.baseline else [])
        search.baseline = evaluate_baseline(original, self.validation_seeds, self.objective, self.judging.name)
        search.count(evaluator)
        if is_new and search.run_number == 0 and self.agent.recipe.end_at_success:
            warn_if_unexpected(self.agent, search.baseline)
        return original

    def _calibrate(self, search: SearchState, evaluator: Evaluator) -> None:
        """Tell the optimizer what it has to know about the agent, unless a resumed search has that."""
        optimizer, n = search.optimizer, self.episodes_per_candidate
        if optimizer.n_updates_done > 0:
            return
        if search.baseline is not None:
            episodes = search.baseline.episodes
            optimizer.tell_start(
                self.objective.of_population([episodes[i : i + n] for i in range(0, len(episodes) - n + 1, n)])
            )
        if isinstance(optimizer, ScaledOptimizer):
            (seeds,) = search.take_seeds(self.seeds, [0], self.n_calibration_episodes)
            calibrate(optimizer, self.agent, self.parameters, evaluator, seeds)
            search.count(evaluator)

    def _conclude(
        self, search: SearchState, original: Candidate, evaluator: Evaluator, settings: JudgeSettings
    ) -> None:
        """Choose, test, and leave the better of the two in the model."""
        if self.acceptance:
            result, chosen = tested_result(search, original, evaluator, settings, self.seeds)
            self.tested = (search.start_theta, chosen)
            if result.decision == ORIGINAL:
                self.parameters.set_theta(search.start_theta)
            else:
                self._take_over(chosen)
        else:
            result = untested_result(search)
            self._take_over(search.optimizer.theta)
        self.result = result  # last: the model is what the result says
        if search.baseline is not None and self.is_seeded:
            evaluator.on_episode = lambda: None  # these belong neither to the search nor to its test
            recheck_reproducibility(original.target, search.baseline)


def refine(
    model: BaseAlgorithm | Agent,
    env: str | Callable[[], gym.Env] | VecEnv | gym.Env | None = None,
    n_updates: int | None = None,
    progress_bar: bool = False,
    **kwargs: Any,
) -> Refiner:
    """
    Refine a model in one call.

    >>> from stable_baselines3 import DQN
    >>> model = DQN("MlpPolicy", "CartPole-v1", seed=0, device="cpu")
    >>> result = refine(model, n_updates=2, n_delta=4, n_eval_episodes=10, backend="serial").result
    >>> print(result.n_updates_done, "updates,", len(result.to_dataframe()), "test seeds")
    2 updates, 10 test seeds

    :param model: see :class:`Refiner`
    :param env: see :class:`Refiner`
    :param n_updates: see :meth:`Refiner.learn`
    :param progress_bar: show a progress bar
    :param kwargs: any other argument of :class:`Refiner`
    :return: the refiner, with ``result`` and ``model``
    """
    return Refiner(model, env, **kwargs).learn(n_updates, progress_bar=progress_bar)
