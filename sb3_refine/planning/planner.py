"""The planner: a trained agent in, the best of what it has learned from tree searches out, if it is better."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv
from tqdm import tqdm

from sb3_refine.agents.agent import Agent
from sb3_refine.agents.candidates import NamedAgent
from sb3_refine.agents.copies import with_own_policy
from sb3_refine.agents.from_model import agent_from_model
from sb3_refine.errors import EpisodeError, RefineError, check_count
from sb3_refine.evaluators import EVALUATORS, Evaluator, backend_options
from sb3_refine.formatting import plural
from sb3_refine.judging import Judge, Judgement, Origin
from sb3_refine.optimizers import ExplicitPopulation
from sb3_refine.planning.learning import LearningSettings, PlanLearning
from sb3_refine.planning.network import Network, parameters_of, trained_names
from sb3_refine.planning.policy import PLANS, Planned
from sb3_refine.planning.task import EXPLORATION, TEMPERATURE, Planning
from sb3_refine.policies.base import one_thread
from sb3_refine.rollouts.episode import Episode
from sb3_refine.search.clock import Clock
from sb3_refine.search.log import log_verdict, make_logger, tensorboard_folder
from sb3_refine.seeding import derived_seed

logger = logging.getLogger(__name__)

_ROOT_NOISE = 0.25
_N_PLANS = 50_000  # the last ones are kept


@dataclass(frozen=True)
class Round:
    """
    What a round has led to.

    :param number: from 1
    :param n_episodes: with searches, in this round
    :param n_env_steps: of these, those of the searches included
    :param n_plans: steps with a search, so far
    :param search_return: mean return of the episodes in which the search acted
    :param agent_return: mean return of those in which the agent acted; None where there were none
    :param cross_entropy: of the policy, mean over all plans, after learning
    :param value_error: squared, in units of the variance of the values, after learning
    """

    number: int
    n_episodes: int
    n_env_steps: int
    n_plans: int
    search_return: float
    agent_return: float | None
    cross_entropy: float
    value_error: float

    def __str__(self) -> str:
        """A sentence for the report."""
        by_agent = "" if self.agent_return is None else f", {self.agent_return:.5g} by the agent"
        return (
            f"round {self.number}: mean return {self.search_return:.5g} by the search{by_agent}, in "
            f"{plural(self.n_episodes, 'episode')} with {plural(self.n_env_steps, 'step')}; then, after learning, "
            f"cross-entropy {self.cross_entropy:.3g}, error of the value {self.value_error:.3g}"
        )


class Planner:
    """
    Expert iteration (https://arxiv.org/abs/1705.08439): in each round, tree searches that are led by the agent's policy
    and value plan what to do in the states of some episodes; then the agent learns the visits and values that the
    searches have found. Half of the episodes are played by the search, the others by the agent. The best agent of all
    rounds is tested once against the original on held-out seeds.

    For agents of A2C, DQN, PPO, MaskablePPO, QR-DQN and TRPO with discrete actions, in environments whose state can be
    saved and restored. What is saved is a plain agent that needs no search.

    >>> from stable_baselines3 import PPO
    >>> model = PPO("MlpPolicy", "CartPole-v1", seed=0, device="cpu")
    >>> planner = Planner(model, n_simulations=8, n_rounds=1, n_episodes=2, n_eval_episodes=10, backend="serial")
    >>> planner.learn().result.decision in ("refined", "original")
    True

    :param model: a Stable-Baselines3 model, or an :class:`~sb3_refine.agents.agent.Agent` from ``load_agent``; it is
        left as it is
    :param env: see :class:`~sb3_refine.refiner.Refiner`
    :param n_simulations: of each search
    :param n_rounds: of planning and learning
    :param n_episodes: with searches in each round
    :param exploration: see :class:`~sb3_refine.planning.tree.SearchSettings`, as for the next
    :param root_noise: share of noise in the prior
    :param temperature: see :func:`~sb3_refine.planning.network.network_of`
    :param n_gradient_steps: see :class:`~sb3_refine.planning.learning.LearningSettings`, as for the next four
    :param batch_size: of each gradient step
    :param learning_rate: of Adam
    :param value_coef: weight of the error of the value
    :param parameters: that learn
    :param seed: seed of everything random
    :param tensorboard_log: see :class:`~sb3_refine.refiner.Refiner`
    :param verbose: see :class:`~sb3_refine.refiner.Refiner`
    :param kwargs: any other argument of :class:`~sb3_refine.judging.Judge`
    :raises RefineError: when an argument is wrong, the agent cannot lead a search, or the state of its environment
        cannot be saved and restored
    """

    def __init__(
        self,
        model: BaseAlgorithm | Agent,
        env: str | Callable[[], gym.Env] | VecEnv | gym.Env | None = None,
        n_simulations: int = 64,
        n_rounds: int = 5,
        n_episodes: int = 8,
        exploration: float = EXPLORATION,
        root_noise: float = _ROOT_NOISE,
        temperature: float = TEMPERATURE,
        n_gradient_steps: int = 500,
        batch_size: int = 64,
        learning_rate: float = 1e-3,
        value_coef: float = 0.5,
        parameters: str = "actor",
        seed: int = 0,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        **kwargs: Any,
    ):
        check_count("n_rounds", n_rounds, 1)
        check_count("n_episodes", n_episodes, 1)
        if not 0 < temperature < np.inf:
            raise RefineError(f"temperature: expected a number above 0, got {temperature}")
        self.learning = LearningSettings(n_gradient_steps, batch_size, learning_rate, value_coef, parameters)
        self.agent = model if isinstance(model, Agent) else agent_from_model(model, env)
        self.n_rounds, self.n_episodes, self.seed = n_rounds, n_episodes, seed
        self.judge = Judge(self.agent, seed=seed, **kwargs)
        self.tensorboard_log, self.verbose = tensorboard_folder(tensorboard_log, model), verbose
        self._backend = backend_options("backend", kwargs.get("backend", "process"), kwargs.get("n_workers"))
        self._of_search: dict[str, Any] = {
            "n_simulations": n_simulations,
            "exploration": exploration,
            "root_noise": root_noise,
            "temperature": temperature,
        }
        first, timeout = self.judge.seeds.take("search", 1)[0], kwargs.get("episode_timeout", 600.0)
        self.planning = Planning(self.agent, **self._of_search, keeps_plans=True, seed=first, episode_timeout=timeout)
        trained_names(self.planning.network.policy, parameters)  # an unknown scope fails here
        self._first_theta = self.planning.network.parameters.get_theta()
        self.rounds: list[Round] = []
        self.judgement: Judgement | None = None
        self._logger: Logger | None = None

    def learn(
        self,
        n_timesteps: int | None = None,
        tb_log_name: str = "plan",
        progress_bar: bool = False,
        time_limit: float | None = None,
        on_round: Callable[[Round], object] = lambda found: None,
    ) -> Judgement:
        """
        Plan and learn, and judge the agents of all rounds.

        Ctrl-C, or an error, leaves the agent of the last round in :attr:`judgement`, marked ``"unchecked"``, and is
        raised. A further call begins with the original again.

        :param n_timesteps: environment steps after which no further round begins, those of the searches included; None
            for no limit
        :param tb_log_name: name of the run in TensorBoard
        :param progress_bar: show a progress bar over the episodes with searches, then over those of the verdict
        :param time_limit: seconds after which no further episodes begin, with time for the verdict set aside
        :param on_round: called after each round
        :return: the verdict
        :raises RefineError: when the time is too short for one round
        :raises EpisodeError: when an episode fails
        """
        check_count("n_timesteps", 1 if n_timesteps is None else n_timesteps, 1)
        clock = Clock(time_limit)
        log = self._logger or make_logger(self.verbose, self.tensorboard_log, tb_log_name, progress_bar)
        self.rounds, candidates = [], []
        self.planning.network.parameters.set_theta(self._first_theta)
        try:
            self.judge.evaluate_original()
            with self._evaluator(progress_bar) as evaluator, one_thread():
                learning = PlanLearning(self.planning.network, self.learning, derived_seed(self.seed, 0))
                plans: list[Planned] = []
                while len(self.rounds) < self.n_rounds and not self._is_over(evaluator, n_timesteps, clock):
                    self.rounds.append(self._round(evaluator, learning, plans))
                    learned = _with_network(self.agent, self.planning.network)
                    candidates.append(NamedAgent(f"round {len(self.rounds)}", learned))
                    self._log(log)
                    on_round(self.rounds[-1])
            if not candidates:
                needed = f"the test alone takes about {self._seconds_of_verdict(1):.0f} s"
                raise RefineError(f"time_limit: {time_limit:g} s is too short: {needed}")
            self._warn_of_an_early_end(clock)
            origin = self._origin()
            self.judgement = self.judge.judge(candidates, progress_bar, origin, is_time_limited=time_limit is not None)
        except (KeyboardInterrupt, RefineError, EpisodeError) as stop:
            self.judgement = self._stopped(candidates, stop)
            raise
        log_verdict(log, self.judgement.result, self.agent.model.num_timesteps + origin.n_env_steps)
        return self.judgement

    def set_logger(self, logger: Logger) -> None:
        """
        Log elsewhere than ``verbose`` and ``tensorboard_log`` say.

        :param logger: a Stable-Baselines3 logger
        """
        self._logger = logger

    def _is_over(self, evaluator: Evaluator, n_timesteps: int | None, clock: Clock) -> bool:
        """Whether the steps are used up, or it is too late for another round."""
        return (n_timesteps is not None and evaluator.n_env_steps >= n_timesteps) or self._is_late(clock)

    def _is_late(self, clock: Clock) -> bool:
        """Whether the time left is too short for the verdict and another round that takes as long as those before."""
        if clock.limit is None:
            return False
        of_round = clock.elapsed / len(self.rounds) if self.rounds else 0.0
        return clock.elapsed + of_round + self._seconds_of_verdict(len(self.rounds) + 1) >= clock.limit

    def _warn_of_an_early_end(self, clock: Clock) -> None:
        if len(self.rounds) < self.n_rounds:
            why = "the time is up" if self._is_late(clock) else "the steps are used up"
            done = f"{len(self.rounds)} of {plural(self.n_rounds, 'round')}"
            logger.warning("planning ended after %s: %s", done, why)

    def _seconds_of_verdict(self, n_candidates: int) -> float:
        return self.judge.seconds_per_episode * self.judge.n_episodes(n_candidates)

    def _round(self, evaluator: Evaluator, learning: PlanLearning, plans: list[Planned]) -> Round:
        """Plan in some episodes, and learn all plans so far."""
        seeds = self.judge.seeds.take("search", self.n_episodes, start=1 + len(self.rounds) * self.n_episodes)
        population = ExplicitPopulation(
            [self.planning.theta(acts_by_search) for acts_by_search in (True, False)],
            names=["the search", "the agent, with searches"],
        )
        before = evaluator.n_env_steps
        episodes = evaluator.evaluate(population, [seeds[::2], seeds[1::2]])
        valid = [episode for own in episodes for episode in own if np.isfinite(episode.episode_return)]
        plans += [plan for episode in valid for plan in episode.metrics[PLANS]]
        del plans[:-_N_PLANS]
        if not plans:
            raise EpisodeError(
                "all episodes with searches had NaN or infinite rewards or observations: there is nothing to learn from"
            )
        cross_entropy, value_error = learning.fit(plans)
        by_search, by_agent = (_mean_return(own) for own in episodes)
        assert by_search is not None
        return Round(
            number=len(self.rounds) + 1,
            n_episodes=self.n_episodes,
            n_env_steps=evaluator.n_env_steps - before,
            n_plans=len(plans),
            search_return=by_search,
            agent_return=by_agent,
            cross_entropy=cross_entropy,
            value_error=value_error,
        )

    @contextmanager
    def _evaluator(self, progress_bar: bool) -> Iterator[Evaluator]:
        backend, options = self._backend
        n_episodes = self.n_rounds * self.n_episodes
        with (
            tqdm(total=n_episodes, unit="episode", dynamic_ncols=True, disable=not progress_bar) as progress,
            EVALUATORS[backend](
                self.planning.task, episode_timeout=self.planning.episode_timeout, **options
            ) as evaluator,
        ):
            evaluator.on_episode = progress.update
            yield evaluator

    def _log(self, log: Logger) -> None:
        """The last round."""
        last = self.rounds[-1]
        n_env_steps = sum(each.n_env_steps for each in self.rounds)
        log.record("rollout/ep_rew_mean", last.search_return if last.agent_return is None else last.agent_return)
        for name, value in asdict(last).items():
            if value is not None:
                log.record(f"plan/{name}", value)
        log.record("plan/summary", str(last), exclude=("tensorboard", "csv", "stdout"))
        log.dump(step=self.agent.model.num_timesteps + n_env_steps)

    def _stopped(self, candidates: Sequence[NamedAgent], stop: BaseException) -> Judgement | None:
        """The agent of the last round, if there is one."""
        if not candidates:
            return None
        last = candidates[-1]
        why = "interrupted" if isinstance(stop, KeyboardInterrupt) else "stopped by an error"
        reason = f"{why}: this is the agent after {last.name}, not tested on held-out seeds"
        return self.judge.unchecked(last, reason, self._origin())

    def _origin(self) -> Origin:
        settings = {
            **self._of_search,
            **asdict(self.learning),
            "n_rounds": self.n_rounds,
            "n_episodes": self.n_episodes,
            "rounds": [str(each) for each in self.rounds],
        }
        n_env_steps = self.planning.n_env_steps + sum(each.n_env_steps for each in self.rounds)
        n_episodes = self.planning.n_episodes + sum(each.n_episodes for each in self.rounds)
        return Origin("plan", settings, n_episodes, n_env_steps)


def _mean_return(episodes: Sequence[Episode]) -> float | None:
    return float(np.nanmean([each.episode_return for each in episodes])) if episodes else None


def _with_network(agent: Agent, network: Network) -> Agent:
    """A plain agent with the parameters of a network, and a policy of its own."""
    changed = with_own_policy(agent)
    policy: Any = changed.model.policy
    parameters_of(policy).set_theta(network.parameters.get_theta())
    for name in ("q_net", "quantile_net"):
        if hasattr(policy, name):
            getattr(policy, f"{name}_target").load_state_dict(getattr(policy, name).state_dict())
    return changed


def plan(
    model: BaseAlgorithm | Agent,
    env: str | Callable[[], gym.Env] | VecEnv | gym.Env | None = None,
    n_timesteps: int | None = None,
    progress_bar: bool = False,
    time_limit: float | None = None,
    on_round: Callable[[Round], object] = lambda found: None,
    **kwargs: Any,
) -> Judgement:
    """
    Plan, learn and judge in one call.

    :param model: see :class:`Planner`, as for the next
    :param env: of the model
    :param n_timesteps: see :meth:`Planner.learn`, as for the next three
    :param progress_bar: show progress bars
    :param time_limit: in seconds
    :param on_round: called after each round
    :param kwargs: any other argument of :class:`Planner`
    :return: the verdict; ``judgement.agent.model`` is the better model, and ``judgement.save()`` saves it
    :raises RefineError: see :class:`Planner`
    """
    planner = Planner(model, env, **kwargs)
    return planner.learn(n_timesteps, progress_bar=progress_bar, time_limit=time_limit, on_round=on_round)
