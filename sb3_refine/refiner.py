"""The refiner: a trained agent in, a better one of the same kind out."""

import inspect
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import configure_logger, safe_mean
from stable_baselines3.common.vec_env import VecEnv
from tqdm import tqdm
from typing_extensions import Self

from sb3_refine.acceptance import ORIGINAL, Decision, decide, unchecked
from sb3_refine.agents import Agent, agent_from_model, new_run_folder, save_agent
from sb3_refine.candidates import Candidate
from sb3_refine.errors import RefineError, did_you_mean
from sb3_refine.evaluation import Evaluation, PairedDifference, paired_difference
from sb3_refine.evaluators import EVALUATORS, Evaluator, RolloutTask, SerialEvaluator
from sb3_refine.optimizers import OPTIMIZERS, Optimizer
from sb3_refine.parameters import PolicyParameters
from sb3_refine.policies import rollout_policy
from sb3_refine.refinement import write_refinement
from sb3_refine.rollout import Episode
from sb3_refine.seeding import EpisodeSeeds

PRESETS: dict[str, dict[str, Any]] = {
    "default": {"n_updates": 80, "n_delta": 16, "learning_rate": (0.02, 0.002), "delta_std": (0.025, 0.0025)},
    # "Direct Random Search for Fine Tuning of Deep RL Policies", section II-B: one setting for every result
    "paper": {"n_updates": 200, "n_delta": 64, "learning_rate": (0.02, 0.002), "delta_std": (0.025, 0.0025)},
}


@dataclass(frozen=True)
class Result:
    """
    What a refinement came to.

    :param decision: ``"refined"``, ``"original"`` or ``"unchecked"``
    :param reason: why, in plain words
    :param baseline: the agent as it came in, on held-out seeds; None where it was not evaluated
    :param refined: the result of the search on the same seeds; None where it was not evaluated
    :param paired_difference: refined minus baseline; None where either is missing
    :param rollouts: episodes run, held-out ones included
    :param env_steps: environment steps of those episodes
    :param wall_time_s: seconds from the start of ``learn()`` to its end
    :param n_updates: updates done
    """

    decision: str
    reason: str
    baseline: Evaluation | None
    refined: Evaluation | None
    paired_difference: PairedDifference | None
    rollouts: int
    env_steps: int
    wall_time_s: float
    n_updates: int


class Refiner:
    """
    Refine a trained policy by direct search in the space of its parameters: perturb them, roll out deterministically,
    keep the agent's own observation normalisation, step along the better directions
    (https://arxiv.org/abs/2109.04604).

    :param model: a Stable-Baselines3 model, or an :class:`~sb3_refine.agents.Agent` from ``load_agent``. Like SB3's
        ``learn``, the refiner changes the model in place: the parameters behind the action, nothing else
    :param env: id of the environment, a callable that makes the raw environment, a ``VecEnv`` (its ``VecNormalize``
        statistics are kept, frozen), or None for the model's own
    :param optimizer: name of the search method, see ``sb3_refine.optimizers.OPTIMIZERS``
    :param parameters: what is searched: ``"actor"``, ``"head"``, or a regular expression over parameter names
    :param n_workers: episodes run at a time; None for as many as there are processors
    :param backend: who runs them: ``"process"`` or ``"serial"``; the results are the same
    :param seed: seed of everything random
    :param n_eval_episodes: held-out episodes that the refined agent is judged on
    :param alpha: the refined agent is accepted if it is better at this level of significance
    :param acceptance: whether to judge at all; without, ``learn()`` leaves the last iterate, untested
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
        parameters: str = "actor",
        n_workers: int | None = None,
        backend: str = "process",
        seed: int = 0,
        n_eval_episodes: int = 100,
        alpha: float = 0.05,
        acceptance: bool = True,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        **optimizer_kwargs: Any,
    ):
        _check_choice("optimizer", optimizer, OPTIMIZERS)
        _check_choice("backend", backend, EVALUATORS)
        if n_eval_episodes < 2:
            raise RefineError(f"n_eval_episodes: expected at least 2, got {n_eval_episodes}")
        if n_workers is not None and n_workers < 1:
            raise RefineError(f"n_workers: expected at least 1, got {n_workers}")
        if not 0 < alpha < 1:
            raise RefineError(f"alpha: expected a number between 0 and 1, got {alpha}")
        if seed < 0:
            raise RefineError(f"seed: expected a non-negative integer, got {seed}")
        if isinstance(model, Agent) and env is not None:
            raise RefineError("env: an Agent brings its own environment; leave env out, or pass agent.model")
        self.agent = model if isinstance(model, Agent) else agent_from_model(model, env)
        self.parameters = PolicyParameters(self.model.policy, parameters)
        self.seeds = EpisodeSeeds(seed)
        self.seed = seed
        self.optimizer_name = optimizer
        self.optimizer_kwargs = optimizer_kwargs
        self.backend = backend
        self.n_workers = _n_processors() if n_workers is None else n_workers
        self.n_eval_episodes = n_eval_episodes
        self.alpha = alpha
        self.acceptance = acceptance
        self.tensorboard_log = tensorboard_log
        self.verbose = verbose
        self.result: Result | None = None
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

    def try_pair(self) -> list[Episode]:
        """
        Run one antithetic pair in this process, to see that everything fits and how long it takes.

        :return: the two episodes
        """
        theta = self.parameters.get_vector()
        candidates = self._make_optimizer(theta, n_updates=1).ask()[:2]
        with SerialEvaluator(self._make_task()) as evaluator:
            return evaluator.evaluate(theta, candidates, self._search_seeds(candidates))

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
    ) -> Self:
        """
        Search from the model's parameters, judge the result on held-out seeds, and leave the better of the two in
        ``model``.

        Ctrl-C leaves the best iterate so far in ``model``, marked ``"unchecked"`` in ``result``, and goes on upwards.

        :param n_updates: number of updates
        :param callback: Stable-Baselines3 callback(s), called once an update; the current iterate is in ``model``
        :param log_interval: updates between two log entries
        :param tb_log_name: name of the run in TensorBoard
        :param progress_bar: show a progress bar
        :return: self
        """
        start = time.perf_counter()
        theta = self.parameters.get_vector()
        optimizer = self._make_optimizer(theta, n_updates)
        self._run = _Run(start, best=theta)
        logger = self._logger or configure_logger(self.verbose, self.tensorboard_log, tb_log_name, True)
        callback = self._init_callback(callback, logger)
        with self._make_evaluator() as evaluator:
            try:
                baseline = self._evaluate(evaluator, theta)
                callback.on_training_start(locals(), globals())
                for _ in tqdm(range(n_updates), disable=not progress_bar, unit="update"):
                    candidates = optimizer.ask()
                    episodes = evaluator.evaluate(optimizer.mean, candidates, self._search_seeds(candidates))
                    self._run.record(optimizer.mean, episodes)
                    optimizer.tell(np.array([episode.episode_return for episode in episodes]))
                    self.parameters.set_vector(optimizer.mean)
                    if optimizer.n_updates_done % log_interval == 0:
                        self._log(logger, episodes, evaluator)
                    if not callback.on_step():
                        break
                callback.on_training_end()
                refined = self._evaluate(evaluator, optimizer.mean)
                self._conclude(evaluator, theta, baseline, refined)
            except KeyboardInterrupt:
                self._conclude_early(evaluator)
                raise
            except BaseException:
                self.parameters.set_vector(theta)
                raise
        return self

    def save(self, folder: str | Path = "refined-agents", run_folder: str | Path | None = None) -> Path:
        """
        Save the model in the Zoo's layout, with ``refinement.json`` beside it.

        :param folder: output folder; the agent goes to ``folder/ALGO/ENV_K``, K the next free number
        :param run_folder: a folder made by :func:`~sb3_refine.agents.new_run_folder`, instead
        :return: the run's folder
        :raises RefineError: before ``learn()``, and when the folder cannot be written
        """
        if self.result is None:
            raise RefineError("save: there is nothing to save yet; call learn() first")
        run_folder = Path(run_folder or new_run_folder(folder, self.agent.algo, self.agent.env_name))
        zip_path = save_agent(self.agent, run_folder)
        write_refinement(self, run_folder, zip_path)
        return run_folder

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting that the search depends on."""
        optimizer = self._make_optimizer(np.zeros(1), n_updates=1)
        return {
            "optimizer": self.optimizer_name,
            **{name: getattr(optimizer, name) for name in _own_arguments(type(optimizer))},
            "objective": "return",
            "parameters": self.parameters.scope,
            "n_parameters": self.parameters.size,
            "backend": self.backend,
            "n_workers": self.n_workers,
            "n_eval_episodes": self.n_eval_episodes,
            "alpha": self.alpha,
            "acceptance": self.acceptance,
        }

    def _make_optimizer(self, theta: np.ndarray, n_updates: int) -> Optimizer:
        cls = OPTIMIZERS[self.optimizer_name]
        known = _own_arguments(cls)
        for name in self.optimizer_kwargs:
            if name not in known:
                raise RefineError(
                    f"{name}: neither an argument of Refiner nor of the optimizer "
                    f"{self.optimizer_name!r}{did_you_mean(name, known)}; the latter takes {', '.join(known)}"
                )
        return cls(theta, seed=self.seed, n_updates=n_updates, **self.optimizer_kwargs)

    def _make_task(self) -> RolloutTask:
        agent = self.agent
        policy = rollout_policy(self.model, self.parameters, agent.vec_normalize, agent.observation_space)
        return RolloutTask(agent.recipe, policy, self.seed)

    def _make_evaluator(self) -> Evaluator:
        return EVALUATORS[self.backend](self._make_task(), self.n_workers)

    def _init_callback(self, callback: MaybeCallback, logger: Logger) -> BaseCallback:
        if isinstance(callback, list) or callback is None:
            callback = CallbackList(callback or [])
        elif not isinstance(callback, BaseCallback):
            callback = ConvertCallback(callback)
        self.model.set_logger(logger)
        callback.init_callback(self.model)
        return callback

    def _search_seeds(self, candidates: list[Candidate]) -> list[int]:
        """One episode seed a direction: the candidates of an antithetic pair share it."""
        n_directions = 1 + max(candidate.pair for candidate in candidates)
        seeds = self.seeds.take("search", n_directions, start=candidates[0].update * n_directions)
        return [seeds[candidate.pair] for candidate in candidates]

    def _evaluate(self, evaluator: Evaluator, theta: np.ndarray) -> Evaluation | None:
        if not self.acceptance:
            return None
        seeds = self.seeds.take("test", self.n_eval_episodes)
        return Evaluation(tuple(seeds), tuple(evaluator.evaluate_mean(theta, seeds)))

    def _log(self, logger: Logger, episodes: list[Episode], evaluator: Evaluator) -> None:
        returns = [episode.episode_return for episode in episodes]
        elapsed = time.perf_counter() - self._run.start
        logger.record("rollout/ep_rew_mean", safe_mean(returns))
        logger.record("rollout/ep_len_mean", safe_mean([episode.length for episode in episodes]))
        logger.record("refine/ep_rew_std", float(np.std(returns)))
        logger.record("refine/ep_rew_max", max(returns))
        logger.record("refine/failure_rate", safe_mean([episode.terminated for episode in episodes]))
        logger.record("refine/n_updates", self._run.n_updates, exclude="tensorboard")
        logger.record("refine/rollouts", evaluator.n_episodes, exclude="tensorboard")
        logger.record("time/fps", int(evaluator.n_env_steps / elapsed))
        logger.record("time/time_elapsed", int(elapsed), exclude="tensorboard")
        logger.record("time/total_timesteps", evaluator.n_env_steps, exclude="tensorboard")
        logger.dump(step=evaluator.n_env_steps)

    def _conclude(
        self,
        evaluator: Evaluator,
        theta: np.ndarray,
        baseline: Evaluation | None,
        refined: Evaluation | None,
    ) -> None:
        """Judge, and leave the better of the two in the model."""
        difference = None
        if baseline is None or refined is None:
            decision = unchecked("the last iterate, not tested on held-out seeds (acceptance was switched off)")
        else:
            difference = paired_difference(baseline, refined, self.alpha)
            decision = decide(difference)
            if decision.decision == ORIGINAL:
                self.parameters.set_vector(theta)
        self.result = self._run.result(decision, evaluator, baseline, refined, difference)

    def _conclude_early(self, evaluator: Evaluator) -> None:
        """Interrupted: leave the best iterate so far."""
        self.parameters.set_vector(self._run.best)
        if self._run.n_updates:
            decision = unchecked(
                f"interrupted after {self._run.n_updates} updates; this is the best iterate so far "
                f"(from before update {self._run.best_update + 1}), not tested on held-out seeds"
            )
            self.result = self._run.result(decision, evaluator)


class _Run:
    """Counts and the best iterate of one ``learn()``."""

    def __init__(self, start: float, best: np.ndarray):
        self.start = start
        self.n_updates = 0
        self.best = best
        self.best_update = 0
        self._best_return = -np.inf

    def record(self, mean: np.ndarray, episodes: list[Episode]) -> None:
        """The mean return of the population around an iterate says, without further episodes, how good it is."""
        mean_return = float(np.mean([episode.episode_return for episode in episodes]))
        if mean_return > self._best_return:
            self.best, self.best_update, self._best_return = mean.copy(), self.n_updates, mean_return
        self.n_updates += 1

    def result(
        self,
        decision: Decision,
        evaluator: Evaluator,
        baseline: Evaluation | None = None,
        refined: Evaluation | None = None,
        difference: PairedDifference | None = None,
    ) -> Result:
        return Result(
            decision=decision.decision,
            reason=decision.reason,
            baseline=baseline,
            refined=refined,
            paired_difference=difference,
            rollouts=evaluator.n_episodes,
            env_steps=evaluator.n_env_steps,
            wall_time_s=time.perf_counter() - self.start,
            n_updates=self.n_updates,
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


def _check_choice(argument: str, value: str, known: Mapping[str, Any]) -> None:
    if value not in known:
        raise RefineError(f"{argument}: unknown {value!r}{did_you_mean(value, known)}; choose from {', '.join(known)}")


def _n_processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
