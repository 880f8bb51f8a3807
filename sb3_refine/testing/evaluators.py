"""What every backend must do."""

from functools import cache, partial
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import PPO

from sb3_refine.agents.from_model import agent_from_model
from sb3_refine.envs.spec import EnvRecipe
from sb3_refine.envs.wrappers import Noise
from sb3_refine.errors import EpisodeError
from sb3_refine.evaluation.target import rollout_task
from sb3_refine.evaluators import Evaluator, RolloutTask, SerialEvaluator
from sb3_refine.optimizers import NoisePopulation
from sb3_refine.rollouts.episode import Episode

SEEDS = [[3], [3], [5, 6], [5, 6], [7, 3, 8]]
METRICS = ("action_change",)


class EvaluatorContract:
    """
    Tests of a backend.

    ``evaluator`` is its class, ``options`` are arguments of its constructor beside the task, the number of workers and
    the timeout.
    """

    evaluator: ClassVar[type[Evaluator]]
    options: ClassVar[dict[str, Any]] = {}

    @pytest.fixture
    def task(self) -> RolloutTask:
        """:return: a small policy on Pendulum"""
        return small_task()

    @pytest.fixture
    def expected(self) -> list[list[Episode]]:
        """:return: the episodes that every backend must give"""
        return serial_episodes()

    def make(self, task: RolloutTask, n_workers: int = 2, episode_timeout: float = 600.0) -> Evaluator:
        """:return: the backend"""
        return self.evaluator(task, n_workers, episode_timeout, **self.options)

    @pytest.mark.parametrize("n_workers", [1, 2, 3])
    def test_results_do_not_depend_on_who_computed_them(
        self, task: RolloutTask, expected: list[list[Episode]], n_workers: int
    ) -> None:
        population = population_of(task)
        with self.make(task, n_workers) as evaluator:
            assert evaluator.evaluate(population, SEEDS, METRICS) == expected
            alone = evaluator.evaluate(population, [[], [], [], [], [8]], METRICS)
        assert alone == [[], [], [], [], expected[4][2:]]  # in any order, after other episodes
        assert len({episode.episode_return for own in expected for episode in own}) > 4

    def test_one_pool_serves_populations_metrics_and_noise(
        self, task: RolloutTask, expected: list[list[Episode]]
    ) -> None:
        noise, population = Noise(action=0.1), population_of(task)
        with SerialEvaluator(task) as serial:
            noisy = serial.evaluate(population, SEEDS, (), noise)
        with self.make(task) as evaluator:
            assert evaluator.evaluate(population, SEEDS, (), noise) == noisy != expected
            other = evaluator.evaluate(population_of(task, std=0.5), SEEDS, METRICS)
            assert other != expected
            assert evaluator.evaluate(population, SEEDS, METRICS) == expected

    def test_episodes_and_steps_are_counted(self, task: RolloutTask) -> None:
        calls: list[None] = []
        with self.make(task) as evaluator:
            evaluator.on_episode = lambda: calls.append(None)
            evaluator.evaluate(population_of(task), SEEDS)
            assert (evaluator.n_episodes, evaluator.n_env_steps, len(calls)) == (9, 9 * 20, 9)

    def test_every_candidate_needs_seeds(self, task: RolloutTask) -> None:
        with self.make(task) as evaluator, pytest.raises(ValueError, match="seeds: expected 5 lists"):
            evaluator.evaluate(population_of(task), [[1]])

    def test_an_error_in_the_environment_names_the_episode(self, task: RolloutTask) -> None:
        broken = RolloutTask(EnvRecipe(None, make=partial(make_env, fails_with_seed=6)), task.policy)
        with self.make(broken) as evaluator:
            with pytest.raises(EpisodeError, match=r"seed 6 of .*(?s:.)*ArithmeticError: the pendulum fell off"):
                evaluator.evaluate(population_of(task), SEEDS)
            few = evaluator.evaluate(population_of(task), [[3], [3], [], [], []])  # the pool can still be used
        assert len(few[0]) == len(few[1]) == 1

    def test_closing_twice_is_safe(self, task: RolloutTask) -> None:
        with self.make(task) as evaluator:
            evaluator.evaluate(population_of(task), [[1], [], [], [], []])
            evaluator.close()


@cache
def small_task() -> RolloutTask:
    """:return: a small policy on Pendulum, in episodes of 20 steps"""
    model = PPO("MlpPolicy", make_env(), n_steps=32, batch_size=32, seed=0, device="cpu")
    return rollout_task(agent_from_model(model, make_env), accelerator=False)


@cache
def serial_episodes() -> list[list[Episode]]:
    """:return: the episodes of the population, one after the other in this process"""
    with SerialEvaluator(small_task()) as serial:
        return serial.evaluate(population_of(small_task()), SEEDS, METRICS)


def population_of(task: RolloutTask, std: float = 0.1) -> NoisePopulation:
    """:return: two antithetic pairs and their centre"""
    theta = np.full(task.policy.n_parameters, 0.01, dtype=np.float32)
    return NoisePopulation(theta, std, [7, 7, 9, 9, 0], [1.0, -1.0, 1.0, -1.0, 0.0], seed=0)


class _Fragile(gym.Wrapper):
    """Fails in the third step of the episodes with one seed."""

    def __init__(self, env: gym.Env, fails_with_seed: int):
        super().__init__(env)
        self._bad_seed, self._n_steps = fails_with_seed, -1

    def reset(self, *, seed: int | None = None, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """:return: the observation and info"""
        self._n_steps = 0 if seed == self._bad_seed else -1000
        return self.env.reset(seed=seed, **kwargs)

    def step(self, action: Any) -> Any:
        """:return: the result of the step"""
        self._n_steps += 1
        if self._n_steps == 3:
            raise ArithmeticError("the pendulum fell off")
        return self.env.step(action)


def make_env(fails_with_seed: int | None = None) -> gym.Env:
    """:return: Pendulum, in episodes of 20 steps"""
    env: gym.Env = gym.make("Pendulum-v1", max_episode_steps=20)
    return env if fails_with_seed is None else _Fragile(env, fails_with_seed)
