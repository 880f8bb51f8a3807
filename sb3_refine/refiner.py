"""The refiner: a trained agent in, a better one of the same kind out."""

import inspect
import json
import logging
import numbers
import reprlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import configure_logger, safe_mean
from stable_baselines3.common.vec_env import VecEnv
from tqdm import tqdm
from typing_extensions import Self

from sb3_refine.agents.agent import Agent, save_agent
from sb3_refine.agents.from_model import agent_from_model
from sb3_refine.agents.sb3_models import sync_copies
from sb3_refine.agents.zoo import new_run_folder
from sb3_refine.envs.observations import n_observed
from sb3_refine.errors import EpisodeError, RefineError, check_count, check_seconds, did_you_mean
from sb3_refine.evaluation.acceptance import ORIGINAL, Decision, unchecked
from sb3_refine.evaluation.comparison import Contestant, check_valid, contestant
from sb3_refine.evaluation.evaluation import Evaluation, PairedDifference
from sb3_refine.evaluation.judge import AUTO, HeldOut, Run
from sb3_refine.evaluation.robustness import BOTH, check_entries, examine
from sb3_refine.evaluators import EVALUATORS, Evaluator, RolloutTask, SerialEvaluator, n_processors
from sb3_refine.objectives import MEASURE, OBJECTIVES, Objective, make_objective
from sb3_refine.optimizers import OPTIMIZERS, Optimizer
from sb3_refine.optimizers.candidates import Candidate
from sb3_refine.policies.parameters import PolicyParameters
from sb3_refine.reporting.record import content_of, write_refinement
from sb3_refine.reporting.report import write_report
from sb3_refine.reporting.video import record_video
from sb3_refine.rollouts.episode import Episode, Trajectory
from sb3_refine.search.callbacks import as_callback, lent
from sb3_refine.search.checkpoint import Checkpoint
from sb3_refine.search.state import SearchState, Update
from sb3_refine.seeding import EpisodeSeeds

logger = logging.getLogger(__name__)

PRESETS: dict[str, dict[str, Any]] = {
    "default": {"n_updates": 80, "n_delta": 16, "learning_rate": (0.02, 0.002), "delta_std": (0.025, 0.0025)},
    # "Direct Random Search for Fine Tuning of Deep RL Policies", section II-B: one setting for every result
    "paper": {
        "n_updates": 200,
        "n_delta": 64,
        "learning_rate": (0.02, 0.002),
        "delta_std": (0.025, 0.0025),
        "selection": False,
    },
}

_N_LOOKED_BACK = 2  # episodes that are run again at the end
_MARGIN = 0.05  # tolerated beyond the range in evaluations.npz, as a share of its width


@dataclass(frozen=True)
class Result:
    """
    What a refinement came to.

    :param decision: ``"refined"``, ``"original"`` or ``"unchecked"``
    :param reason: why, in plain words
    :param baseline: the agent as it came in, on held-out seeds; None where it was not evaluated
    :param refined: the result of the search on the same seeds; None where it was not evaluated
    :param paired_difference: return of refined minus that of baseline; None where either is missing
    :param objective_difference: the same of what is maximised
    :param candidates: what was put to the choice on validation seeds: the original, then the iterates
    :param history: what each update came to
    :param rollouts: episodes run, held-out ones included
    :param env_steps: environment steps of those episodes
    :param n_invalid: episodes of the search that were dropped for a NaN or an infinity
    :param wall_time_s: seconds from the start of ``learn()`` to its end
    :param n_updates: updates asked for
    :param n_updates_done: updates done
    """

    decision: str
    reason: str
    baseline: Evaluation | None
    refined: Evaluation | None
    paired_difference: PairedDifference | None
    objective_difference: PairedDifference | None
    candidates: tuple[dict[str, Any], ...]
    history: tuple[Update, ...]
    rollouts: int
    env_steps: int
    n_invalid: int
    wall_time_s: float
    n_updates: int
    n_updates_done: int


class Refiner:
    """
    Refine a trained policy by direct search in the space of its parameters: perturb them, roll out deterministically,
    keep the agent's own observation normalisation, step along the better directions
    (https://arxiv.org/abs/2109.04604).

    :param model: a Stable-Baselines3 model, or an :class:`~sb3_refine.agents.agent.Agent` from ``load_agent``. Like
        SB3's ``learn``, the refiner changes the model in place: the parameters behind the action, nothing else
    :param env: id of the environment, a callable that makes the raw environment, a ``VecEnv`` (its ``VecNormalize``
        statistics are kept, frozen), or None for the model's own
    :param optimizer: name of the search method, see ``sb3_refine.optimizers.OPTIMIZERS``
    :param objective: what is maximised: ``"return"``, the undiscounted sum of the true rewards, or another of
        ``sb3_refine.objectives.OBJECTIVES``, with options as in ``"smooth:weight=1"``; or a function of a
        :class:`~sb3_refine.rollouts.episode.Trajectory`, also as ``"module:function"``
    :param parameters: what is searched: ``"actor"``, ``"head"``, or a regular expression over parameter names
    :param n_workers: episodes run at a time; None for as many as there are processors
    :param backend: who runs them: ``"process"`` or ``"serial"``; the results are the same
    :param seed: seed of everything random
    :param n_eval_episodes: held-out episodes that the refined agent is judged on; ``"auto"`` for as many as it takes to
        resolve ``min_effect``, within :data:`~sb3_refine.evaluation.judge.AUTO_EPISODES`
    :param alpha: the refined agent is accepted if it is better at this level of significance
    :param min_effect: a difference worth knowing of, in units of the objective; None for a hundredth of the original's
    :param max_return_loss: share of the original's mean return that may be lost where the objective is another; from 0
        to 1, or infinity for no limit
    :param acceptance: whether to judge at all; without, ``learn()`` leaves the last iterate, untested
    :param selection: whether to choose among the last iterate, the running average and the best iterates, on validation
        seeds; without, it is the last iterate that is judged
    :param accelerator: whether to use a faster, bit-identical ``step`` where there is one for the environment
    :param episode_timeout: seconds after which an episode is given up as hanging
    :param tensorboard_log: folder for TensorBoard, or None
    :param verbose: 0: silent, 1: a table every ``log_interval`` updates
    :param optimizer_kwargs: arguments of the search method, such as ``n_delta``, ``n_top``, ``learning_rate``,
        ``delta_std`` of ``"ars"``; those not given are the default preset's
    :raises RefineError: when an argument is wrong, or the environment does not fit the model
    """

    def __init__(
        self,
        model: BaseAlgorithm | Agent,
        env: str | Callable[[], gym.Env] | VecEnv | gym.Env | None = None,
        optimizer: str = "ars",
        objective: str | Objective | Callable[[Trajectory], float] = "return",
        parameters: str = "actor",
        n_workers: int | None = None,
        backend: str = "process",
        seed: int = 0,
        n_eval_episodes: int | str = 100,
        alpha: float = 0.05,
        min_effect: float | None = None,
        max_return_loss: float = 0.05,
        acceptance: bool = True,
        selection: bool = True,
        accelerator: bool = True,
        episode_timeout: float = 600.0,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        **optimizer_kwargs: Any,
    ):
        _check_choice("optimizer", optimizer, OPTIMIZERS)
        _check_choice("backend", backend, EVALUATORS)
        if isinstance(n_eval_episodes, str):
            _check_choice("n_eval_episodes", n_eval_episodes, (AUTO,))
        else:
            check_count("n_eval_episodes", n_eval_episodes, 2, at_most=10**6)
        check_count("n_workers", 1 if n_workers is None else n_workers, 1)
        check_count("seed", seed, 0)
        check_seconds("episode_timeout", episode_timeout)
        if not 0 < alpha < 1:
            raise RefineError(f"alpha: expected a number between 0 and 1, got {alpha}")
        if min_effect is not None and not min_effect > 0:
            raise RefineError(f"min_effect: expected a positive number, got {min_effect}")
        if min_effect is not None and n_eval_episodes != AUTO:
            raise RefineError("min_effect: it is what n_eval_episodes='auto' goes by; ask for that, or leave it out")
        if not _is_number(max_return_loss) or not (0 <= max_return_loss <= 1 or max_return_loss == np.inf):
            raise RefineError(f"max_return_loss: expected a share from 0 to 1, or inf for any, got {max_return_loss!r}")
        if isinstance(model, Agent) and env is not None:
            raise RefineError("env: an Agent brings its own environment; leave env out, or pass agent.model")
        self.agent = model if isinstance(model, Agent) else agent_from_model(model, env)
        self.parameters = PolicyParameters(self.model.policy, parameters)
        self.seed = seed
        self._n_learned = 0
        self._use_seed(seed)
        self.optimizer_name = optimizer
        self.optimizer_kwargs = optimizer_kwargs
        self.objective = make_objective(objective)
        self.objective_name = objective if isinstance(objective, str) else self.objective.name
        self.backend = backend
        self.n_workers = n_processors() if n_workers is None else n_workers
        self.n_eval_episodes = n_eval_episodes if isinstance(n_eval_episodes, str) else int(n_eval_episodes)
        self.alpha = alpha
        self.min_effect = min_effect
        self.max_return_loss = max_return_loss
        self.acceptance = acceptance
        self.selection = selection
        self.accelerator = accelerator
        self.episode_timeout = episode_timeout
        self._contestant: Contestant | None = None
        self.tensorboard_log = tensorboard_log
        self.verbose = verbose
        self.result: Result | None = None
        self.tested: tuple[np.ndarray, np.ndarray] | None = None
        self._logger: Logger | None = None
        self._make_optimizer(self.parameters.get_vector(), n_updates=1)  # wrong arguments fail here, not in learn()

    @property
    def model(self) -> BaseAlgorithm:
        """The plain Stable-Baselines3 model: after ``learn()`` the accepted one, or the original."""
        return self.agent.model

    @property
    def population_size(self) -> int:
        """Episodes an update."""
        return self._make_optimizer(np.zeros(1), n_updates=1).population_size

    def try_pair(self) -> tuple[list[Episode], float]:
        """
        Run one antithetic pair in this process, to see that everything fits and how long it takes.

        :return: the two episodes, and the seconds they took
        """
        theta = self.parameters.get_vector()
        candidates = self._make_optimizer(theta, n_updates=1).ask()[:2]
        with SerialEvaluator(self._make_task()) as evaluator:
            start = time.perf_counter()
            episodes = evaluator.evaluate(theta, candidates, self._search_seeds(candidates), self._measures)
            return episodes, time.perf_counter() - start

    def set_logger(self, logger: Logger) -> None:
        """
        Log elsewhere than ``verbose`` and ``tensorboard_log`` say.

        :param logger: a Stable-Baselines3 logger
        """
        self._logger = logger

    def learn(
        self,
        n_updates: int = PRESETS["default"]["n_updates"],
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "refine",
        progress_bar: bool = False,
        time_limit: float | None = None,
        checkpoint_folder: str | Path | None = None,
        checkpoint_interval: int = 5,
        resume: bool = False,
    ) -> Self:
        """
        Search from the model's parameters, judge the result on held-out seeds, and leave the better of the two in
        ``model``.

        Ctrl-C leaves the best iterate so far in ``model``, marked ``"unchecked"`` in ``result``, and goes on upwards.

        :param n_updates: number of updates
        :param callback: Stable-Baselines3 callback(s), called once an update; the current iterate is in ``model``
        :param log_interval: updates between two log entries
        :param tb_log_name: name of the run in TensorBoard
        :param progress_bar: show a progress bar over all episodes, the held-out ones included
        :param time_limit: seconds after which the search ends, with time for the held-out episodes set aside
        :param checkpoint_folder: where to keep the state of the search, or None
        :param checkpoint_interval: updates between two checkpoints: the most that a kill can lose
        :param resume: go on from the checkpoint, to the bits that the uninterrupted search would have given
        :return: self
        :raises RefineError: when the settings are not those of the search to resume
        :raises EpisodeError: when an episode fails, or too many return NaN
        """
        started = time.perf_counter()
        check_count("log_interval", log_interval, 1)
        if time_limit is not None:
            check_seconds("time_limit", time_limit, allow_zero=True)
        self.result = self.tested = None
        checkpoint = Checkpoint(checkpoint_folder, {**self.settings, "n_updates": n_updates}, checkpoint_interval)
        run_number = checkpoint.run_number() if resume else self._n_learned
        self._use_seed(self.seed if run_number == 0 else _derived_seed(self.seed, run_number))
        theta = self.parameters.get_vector()
        search = SearchState(self._make_optimizer(theta, n_updates), start=theta, run_number=run_number)
        if resume:
            checkpoint.load(search)
            self._warn_if_unnamed_objective()
        logger = self._logger or configure_logger(self.verbose, self.tensorboard_log, tb_log_name, True)
        with (
            lent(self.agent, logger, with_env=bool(callback)),
            self._make_evaluator(search) as evaluator,
            self._progress(search, progress_bar) as progress,
        ):
            run = partial(self._run, search, evaluator, progress)
            clock = _Clock(started, time_limit, search.n_episodes)
            try:
                self.parameters.set_vector(search.optimizer.mean)  # where a resumed search had got to
                self._meet_the_original(search, run)
                for episodes in self._search(search, evaluator, as_callback(callback), clock):
                    progress.update(len(episodes))
                    checkpoint.take(search)
                    if search.n_updates % log_interval == 0 or search.n_updates == n_updates:
                        self._log(logger, search, episodes)
                _warn_if_short(search)
                self._conclude(search, run)
                self._look_back(search, evaluator)
            except KeyboardInterrupt:
                self._conclude_early(search)
                raise
            except BaseException:
                self.parameters.set_vector(search.start)
                raise
            finally:
                self._n_learned = max(self._n_learned, run_number + (search.n_updates > 0))
                sync_copies(self.model)
                checkpoint.write()
            progress.total = progress.n  # fewer iterates to choose from than there might have been
        return self

    def save(self, folder: str | Path = "refined-agents", run_folder: str | Path | None = None) -> Path:
        """
        Save the model in the Zoo's layout, with ``refinement.json`` beside it. :meth:`report` adds a report.

        :param folder: output folder; the agent goes to ``folder/ALGO/ENV_K``, K the next free number
        :param run_folder: a folder made by :func:`~sb3_refine.agents.zoo.new_run_folder`, instead
        :return: the run's folder
        :raises RefineError: before ``learn()``, and when the folder cannot be written
        """
        if self.result is None:
            raise RefineError("save: there is nothing to save yet; call learn() first")
        run_folder = Path(run_folder or new_run_folder(folder, self.agent.algo, self.agent.env_name))
        zip_path = save_agent(self.agent, run_folder)
        write_refinement(run_folder, content_of(self, zip_path))
        return run_folder

    def report(
        self, run_folder: str | Path, video: bool = False, phase_portrait: tuple[int, int] | None = None
    ) -> Path:
        """
        Write ``report.md`` and its plots, for which some episodes of both agents are run under noise.

        :param run_folder: where :meth:`save` has saved
        :param video: whether to record an episode of both, side by side
        :param phase_portrait: two observations, by index, to draw against each other; by default the two that move most
        :return: path of ``report.md``
        :raises RefineError: when nothing was saved there, there are no such observations, or no video can be made
        :raises EpisodeError: when an episode fails; the report is written without it
        """
        run_folder = Path(run_folder)
        if not (run_folder / "refinement.json").is_file():
            raise RefineError(f"report: no refinement.json in {run_folder}; name the folder that save() returned")
        if phase_portrait is not None:
            check_entries(phase_portrait, n_observed(self.model.observation_space))
        content = json.loads((run_folder / "refinement.json").read_text())
        contestants = self.contestants
        try:
            if contestants is not None and self.result is not None and self.result.refined is not None:
                seeds = self.result.refined.seeds
                examination = examine(*contestants, seeds, self.n_workers, self.backend, entries=phase_portrait)
                content["examination"] = asdict(examination)
                write_refinement(run_folder, content)
                if video:
                    seed = examination.traces["seed"]
                    path = run_folder / "videos" / f"{self.agent.env_name}-seed-{seed}.mp4"
                    record_video(dict(zip(BOTH, contestants, strict=True)), seed, path)
        finally:  # also of what is known where noise or film is more than the environment can bear
            report = write_report(run_folder, content)
        return report

    @property
    def contestants(self) -> tuple[Contestant, Contestant] | None:
        """The original and what was tested against it, fit to be run; None where nothing was."""
        if self.tested is None or self._contestant is None:
            return None
        before, after = (replace(self._contestant, vector=vector) for vector in self.tested)
        return before, after

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting that the result depends on."""
        optimizer = self._make_optimizer(np.zeros(1), n_updates=1)
        return {
            "algo": self.agent.algo,
            "env": self.agent.recipe.env_id or self.agent.env_name,
            "env_kwargs": self.agent.recipe.env_kwargs,
            "end_at_success": self.agent.recipe.end_at_success,
            "seed": self.seed,
            "optimizer": self.optimizer_name,
            **{name: getattr(optimizer, name) for name in _own_arguments(type(optimizer))},
            "objective": self.objective_name,
            "parameters": self.parameters.scope,
            "n_parameters": self.parameters.size,
            "n_eval_episodes": self.n_eval_episodes,
            "alpha": self.alpha,
            "min_effect": self.min_effect,
            "max_return_loss": self.max_return_loss,
            "acceptance": self.acceptance,
            "selection": self.selection,
        }

    def _use_seed(self, seed: int) -> None:
        """A further ``learn()`` neither repeats the search before it nor is judged on seeds that chose its start."""
        self.run_seed = seed
        self.seeds = EpisodeSeeds(seed)

    def _make_optimizer(self, theta: np.ndarray, n_updates: int) -> Optimizer:
        cls = OPTIMIZERS[self.optimizer_name]
        known = _own_arguments(cls)
        for name in self.optimizer_kwargs:
            if name not in known:
                raise RefineError(
                    f"{name}: neither an argument of Refiner nor of the optimizer "
                    f"{self.optimizer_name!r}{did_you_mean(name, known)}; the latter takes {', '.join(known)}"
                )
        return cls(theta, seed=self.run_seed, n_updates=n_updates, **self.optimizer_kwargs)

    def _make_task(self) -> RolloutTask:
        """What workers roll out: the environment in the form that the probe found to be reproducible."""
        measures = {MEASURE: self.objective.checked_measure} if self.objective.needs_trajectory else {}
        self._contestant = contestant(
            self.agent, self.parameters, self.run_seed, self.accelerator, measures, self.episode_timeout
        )
        return self._contestant.task

    @property
    def is_seeded(self) -> bool:
        """Whether the seed decides the episode, as far as is known; if not, seeds cannot be paired."""
        return self._contestant is None or self._contestant.is_seeded

    def _make_evaluator(self, search: SearchState) -> Evaluator:
        evaluator = EVALUATORS[self.backend](self._make_task(), self.n_workers, self.episode_timeout)
        evaluator.n_episodes, evaluator.n_env_steps = search.n_episodes, search.n_env_steps
        return evaluator

    def _progress(self, search: SearchState, visible: bool) -> tqdm:
        """A bar over all episodes to come: its remaining time includes the held-out ones."""
        n_held_out = self._held_out().n_to_come(search, self.is_seeded) if self.acceptance else 0
        total = search.optimizer.n_updates * search.optimizer.population_size + n_held_out
        return tqdm(total=total, initial=search.n_episodes, disable=not visible, unit="episode", dynamic_ncols=True)

    def _search(
        self, search: SearchState, evaluator: Evaluator, callback: BaseCallback, clock: "_Clock"
    ) -> Iterator[list[Episode]]:
        """The search itself: yields the episodes of each update."""
        optimizer = search.optimizer
        callback.init_callback(self.model)
        n_env_steps = self.model.num_timesteps
        total_timesteps = n_env_steps + optimizer.n_updates  # SB3's progress bar counts one a call
        callback.on_training_start(locals(), globals())
        while search.n_updates < optimizer.n_updates and not self._is_late(search, clock):
            callback.on_rollout_start()
            mean, candidates = optimizer.mean.copy(), optimizer.ask()
            episodes = evaluator.evaluate(mean, candidates, self._search_seeds(candidates), self._measures)
            fitness = self.objective.of_population(episodes)
            optimizer.tell(fitness)
            if not np.isfinite(optimizer.mean).all():
                raise EpisodeError(
                    f"the search left the finite numbers in update {search.n_updates}; lower its step (learning_rate)"
                )
            search.count(evaluator)
            search.record(mean, episodes, fitness)
            self.parameters.set_vector(optimizer.mean)
            sync_copies(self.model)
            self.model.num_timesteps = n_env_steps + search.n_env_steps
            yield episodes
            callback.update_locals(locals())
            callback.on_rollout_end()
            if not callback.on_step():
                break
        callback.on_training_end()

    @property
    def _measures(self) -> tuple[str, ...]:
        """What the objective wants to know of an episode."""
        return (MEASURE,) if self.objective.needs_trajectory else ()

    def _search_seeds(self, candidates: list[Candidate]) -> list[int]:
        """One episode seed a direction: the candidates of an antithetic pair share it."""
        n_directions = 1 + max(candidate.pair for candidate in candidates)
        seeds = self.seeds.take("search", n_directions, start=candidates[0].update * n_directions)
        return [seeds[candidate.pair] for candidate in candidates]

    def _run(
        self,
        search: SearchState,
        evaluator: Evaluator,
        progress: tqdm,
        theta: np.ndarray,
        seeds: Sequence[int],
        measures: Sequence[str] = (),
    ) -> list[Episode]:
        """Episodes of one policy, counted."""
        episodes = evaluator.evaluate_mean(theta, seeds, (*self._measures, *measures))
        search.count(evaluator)
        progress.update(len(episodes))
        return episodes

    @property
    def validation_seeds(self) -> list[int]:
        """Episode seeds that the choice among iterates was made on."""
        return self._held_out().validation_seeds

    @property
    def n_held_out(self) -> int:
        """Episodes on validation and test seeds, at most; as far as is known before the search."""
        search = SearchState(self._make_optimizer(np.zeros(1), n_updates=1), start=np.zeros(1))
        return self._held_out().n_to_come(search, self.is_seeded) if self.acceptance else 0

    def _held_out(self) -> HeldOut:
        return HeldOut(
            self.seeds,
            self.objective,
            self.objective_name,
            self.n_eval_episodes,
            self.alpha,
            self.min_effect,
            self.max_return_loss,
            self.selection,
        )

    def _is_late(self, search: SearchState, clock: "_Clock") -> bool:
        """Whether the time left is needed for the held-out episodes."""
        n_to_come = self._held_out().n_to_come(search, self.is_seeded) if self.acceptance else 0
        return clock.is_late(search.n_episodes, n_to_come)

    def _meet_the_original(self, search: SearchState, run: Run) -> None:
        """Run the original on validation seeds: is it what it was, and what does the objective make of it?"""
        if search.baseline is None and (self.acceptance or self.objective.needs_baseline):
            seeds = self._held_out().validation_seeds
            search.baseline = Evaluation(tuple(seeds), tuple(run(search.start, seeds)))
            check_valid(search.baseline, "the original")
            if search.run_number == 0 and self.agent.recipe.end_at_success:
                _warn_if_unexpected(self.agent, search.baseline)
        if search.baseline is not None:
            self.objective.calibrate(search.baseline.episodes)
            for fitness in map(self.objective.fitness, search.baseline.episodes):
                if not _is_number(fitness):
                    what = f"the fitness of {self.objective_name} is {reprlib.repr(fitness)}"
                    raise RefineError(f"objective: {what}; it must be a number")
            if not np.isfinite(self.objective.of_episodes(search.baseline.episodes)):
                raise RefineError(f"objective: {self.objective_name} gave NaN or infinity for the original; fix it")

    def _warn_if_unnamed_objective(self) -> None:
        """Two functions may have one name, all lambdas of a module for one."""
        if type(self.objective) not in OBJECTIVES.values():
            logger.warning(
                "resume: %s is told from other objectives by this name alone: see that it is that of the interrupted "
                "search",
                self.objective_name,
            )

    def _log(self, logger: Logger, search: SearchState, episodes: list[Episode]) -> None:
        returns = np.array([episode.episode_return for episode in episodes])
        logger.record("rollout/ep_rew_mean", float(np.nanmean(returns)))
        logger.record("rollout/ep_len_mean", safe_mean([episode.length for episode in episodes]))
        logger.record("refine/ep_rew_std", float(np.nanstd(returns)))
        logger.record("refine/ep_rew_max", float(np.nanmax(returns)))
        logger.record("refine/fitness_mean", search.history[-1].mean_fitness)
        logger.record("refine/failure_rate", safe_mean([episode.failed for episode in episodes]))
        logger.record("refine/n_updates", search.n_updates, exclude="tensorboard")
        logger.record("refine/rollouts", search.n_episodes, exclude="tensorboard")
        logger.record("refine/invalid_episodes", search.n_invalid, exclude="tensorboard")
        logger.record("time/fps", int(search.n_env_steps / search.elapsed))
        logger.record("time/time_elapsed", int(search.elapsed), exclude="tensorboard")
        logger.record("time/total_timesteps", search.n_env_steps, exclude="tensorboard")
        logger.dump(step=search.n_env_steps)

    def _conclude(self, search: SearchState, run: Run) -> None:
        """Choose, judge, and leave the better of the two in the model."""
        if not self.acceptance:
            decision = unchecked("the last iterate, not tested on held-out seeds (acceptance was switched off)")
            self.parameters.set_vector(search.optimizer.mean)
            self.result = _result(search, decision)
            return
        verdict = self._held_out().judge(search, run, self.is_seeded)
        self.tested = (search.start, verdict.chosen.vector)
        self.parameters.set_vector(self.tested[verdict.decision.decision != ORIGINAL])
        self.result = replace(
            _result(search, verdict.decision),
            baseline=verdict.baseline,
            refined=verdict.refined,
            paired_difference=verdict.paired_difference,
            objective_difference=verdict.decision.difference,
            candidates=verdict.candidates,
        )

    def _look_back(self, search: SearchState, evaluator: Evaluator) -> None:
        """Does the original still do what it did at the start? A history that shows late escapes the probe."""
        if search.baseline is None or not self.is_seeded:
            return
        seeds = search.baseline.seeds[:_N_LOOKED_BACK]
        try:
            found = [episode.episode_return for episode in evaluator.evaluate_mean(search.start, seeds)]
        except EpisodeError as error:  # the verdict stands
            logger.warning("the original could not be run again at the end: %s", str(error).partition("\n")[0])
            return
        expected = search.baseline.returns[: len(seeds)].tolist()
        if found != expected:
            logger.warning(
                "THE ENVIRONMENT HAS A HISTORY: the original's returns for the seeds %s were %s before the search, and "
                "are %s after it: so the result depends on the order of the episodes, and on the number of workers",
                *(", ".join(f"{value:.6g}" for value in values) for values in (seeds, expected, found)),
            )

    def _conclude_early(self, search: SearchState) -> None:
        """Interrupted: leave the best so far."""
        if self.result is not None:  # after the verdict
            return
        update, kept = search.best
        which = f"this is the best iterate so far, that after update {update}"
        self.parameters.set_vector(kept)
        after = f"interrupted after {search.n_updates} of {search.optimizer.n_updates} updates"
        if np.array_equal(kept, search.start):
            decision = Decision(ORIGINAL, f"{after}: nothing better yet, this is the original")
        else:
            decision = unchecked(f"{after}: {which}, not tested on held-out seeds")
        if search.n_updates:
            self.result = _result(search, decision)


@dataclass(frozen=True)
class _Clock:
    """
    When to end a search, at the pace of the episodes so far.

    :param started: when ``learn()`` was called
    :param limit: seconds from then on, or None
    :param n_before: episodes of the search before it was resumed
    """

    started: float
    limit: float | None
    n_before: int
    first_episode: float = field(default_factory=time.perf_counter)

    def is_late(self, n_episodes: int, n_to_come: int) -> bool:
        """
        :param n_episodes: so far
        :param n_to_come: after the search
        :return: whether the time left is needed for those
        """
        now = time.perf_counter()
        pace = (now - self.first_episode) / max(1, n_episodes - self.n_before)
        return self.limit is not None and now - self.started + pace * n_to_come >= self.limit


def _warn_if_unexpected(agent: Agent, baseline: Evaluation) -> None:
    """An environment that is no longer the one the agent knew would make any search one for a new agent."""
    expected = agent.expected_return
    if expected is None:
        return
    standard_error = baseline.returns.std() / np.sqrt(len(baseline.returns))
    margin = max(2 * standard_error, _MARGIN * (expected.high - expected.low))
    if expected.low - margin <= baseline.returns.mean() <= expected.high + margin:
        return
    logger.warning(
        "THE AGENT DOES NOT DO WHAT IT DID: its mean return is %.4g, whereas its own evaluations.npz says %.4g "
        "(%.4g to %.4g around its end): is %s, with these wrappers and arguments, still the environment it knew?",
        *(baseline.returns.mean(), expected.last, expected.low, expected.high, agent.env_name),
    )


def _warn_if_short(search: SearchState) -> None:
    n_done, n_updates = search.n_updates, search.optimizer.n_updates
    if n_done < n_updates:
        logger.warning("the search ended after %d of %d updates: out of time, or by a callback", n_done, n_updates)


def _result(search: SearchState, decision: Decision) -> Result:
    """What is known before the held-out episodes."""
    return Result(
        decision=decision.decision,
        reason=decision.reason,
        baseline=None,
        refined=None,
        paired_difference=None,
        objective_difference=None,
        candidates=(),
        history=tuple(search.history),
        rollouts=search.n_episodes,
        env_steps=search.n_env_steps,
        n_invalid=search.n_invalid,
        wall_time_s=search.elapsed,
        n_updates=search.optimizer.n_updates,
        n_updates_done=search.n_updates,
    )


def refine(
    model: BaseAlgorithm | Agent,
    env: str | Callable[[], gym.Env] | VecEnv | gym.Env | None = None,
    n_updates: int = PRESETS["default"]["n_updates"],
    progress_bar: bool = False,
    **kwargs: Any,
) -> Refiner:
    """
    Refine a model in one call.

    :param model: see :class:`Refiner`
    :param env: see :class:`Refiner`
    :param n_updates: number of updates
    :param progress_bar: show a progress bar
    :param kwargs: any other argument of :class:`Refiner`
    :return: the refiner, with ``result`` and ``model``
    """
    return Refiner(model, env, **kwargs).learn(n_updates, progress_bar=progress_bar)


def _own_arguments(cls: type[Optimizer]) -> list[str]:
    """Names of the arguments that are an optimizer's own."""
    return [name for name in inspect.signature(cls).parameters if name not in ("mean", "seed", "n_updates")]


def _check_choice(argument: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise RefineError(f"{argument}: unknown {value!r}{did_you_mean(value, known)}; choose from {', '.join(known)}")


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, (bool, np.bool_))


def _derived_seed(seed: int, n: int) -> int:
    return int(np.random.SeedSequence(seed, spawn_key=(n,)).generate_state(1)[0])
