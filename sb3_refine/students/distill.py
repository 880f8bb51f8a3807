"""A student learns an agent's actions: behaviour cloning, then DAgger."""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from sb3_refine.agents.agent import Agent, save_agent
from sb3_refine.agents.copies import with_theta
from sb3_refine.agents.from_model import agent_from_model
from sb3_refine.agents.tasks import write_tasks
from sb3_refine.agents.zoo import new_run_folder
from sb3_refine.envs.normalisation import without_env
from sb3_refine.envs.observations import stacked
from sb3_refine.errors import RefineError, check_count, check_seconds
from sb3_refine.evaluation.demonstrations import Demonstration, demonstrate
from sb3_refine.evaluation.evaluation import Evaluation, paired_difference
from sb3_refine.evaluation.target import check_valid, open_targets, rollout_task
from sb3_refine.evaluators import Backend, backend_options
from sb3_refine.files import as_json, atomic_path, reraise_write_errors, sha256
from sb3_refine.policies.base import one_thread
from sb3_refine.policies.choice import rollout_policy
from sb3_refine.policies.parameters import PolicyParameters
from sb3_refine.reporting.record import versions
from sb3_refine.seeding import EpisodeSeeds, globals_restored
from sb3_refine.stopwatch import Stopwatch
from sb3_refine.students.architectures import STUDENTS, Student, student_options
from sb3_refine.students.cloning import Cloning

logger = logging.getLogger(__name__)

FILE_NAME = "distillation.json"

N_VALIDATION_EPISODES = 20
"""Of each round's student: the best one is tested."""

_HELD_OUT = 0.1  # of the episodes of a round, at least one
_LEAST_VARIANCE = 1e-8  # of an entry of the observation, below which the entry counts as constant
_OF_ENVIRONMENT = ("env_wrapper", "frame_stack", "vec_env_wrapper")  # entries of config.yml


@dataclass(frozen=True)
class Round:
    """
    What a round has led to.

    :param number: 0 for behaviour cloning, then one for each round of DAgger
    :param n_episodes: with labels, so far
    :param n_steps: of these
    :param loss: of the student, mean over the steps that it has learned from
    :param held_out_loss: over the steps of episodes that were held out
    :param mean_return: of the student on validation seeds
    """

    number: int
    n_episodes: int
    n_steps: int
    loss: float
    held_out_loss: float
    mean_return: float


@dataclass(frozen=True)
class Distillation:
    """
    The result of :func:`distill`.

    :param agent: the student
    :param record: the content of ``distillation.json``
    """

    agent: Agent
    record: dict[str, Any]

    @property
    def model(self) -> BaseAlgorithm:
        """The student: a model of ``PPO``."""
        return self.agent.model

    def __str__(self) -> str:
        """Both returns, and their difference, if the student was tested."""
        lines = [f"student of round {self.record['chosen_round']}, by the mean return on validation seeds"]
        for who in ("teacher", "student"):
            figures = self.record[who]
            found = "not tested"
            if "mean_return" in figures:
                spread = f"{figures['mean_return']:.5g} +- {figures['std_return']:.3g}"
                found = f"{spread} in {figures['n_episodes']} test episodes"
            lines.append(f"{who}: {found}, {figures['n_parameters']:,} parameters")
        if "paired_difference" in self.record:
            d = self.record["paired_difference"]
            interval = f"[{d['ci_low']:.4g}, {d['ci_high']:.4g}] at {d['confidence']:.0%} confidence"
            lines.append(f"student minus teacher, on the same seeds: {d['mean']:+.4g} {interval}")
            if d["ci_high"] < 0:
                lines.append(
                    "the student is worse: more rounds, episodes or gradient steps may help, or a larger student, or a "
                    "refinement"
                )
        return "\n".join(lines)

    def save(self, folder: str | Path = "distilled-agents", run_folder: str | Path | None = None) -> Path:
        """
        Save the student in the Zoo's layout, with ``distillation.json`` beside it.

        :param folder: output folder; the student goes to ``folder/ppo/ENV_K``, K the next free number
        :param run_folder: a folder made by :func:`~sb3_refine.agents.zoo.new_run_folder`, instead
        :return: the run's folder
        :raises RefineError: when the folder cannot be written
        """
        run_folder = Path(run_folder or new_run_folder(folder, self.agent.algo, self.agent.env_name))
        digest = sha256(save_agent(self.agent, run_folder))
        write_tasks(run_folder, self.agent)
        with reraise_write_errors(FILE_NAME, run_folder), atomic_path(run_folder / FILE_NAME) as path:
            path.write_text(as_json({**self.record, "output_sha256": digest}), encoding="utf-8")
        return run_folder


class DistillationInterrupted(KeyboardInterrupt):
    """
    Ctrl-C during :func:`distill`.

    :param found: the best student so far, not tested
    """

    def __init__(self, found: Distillation):
        super().__init__()
        self.found = found


def distill(
    teacher: BaseAlgorithm | Agent,
    student: str = "mlp",
    env: str | Callable[[], gym.Env] | VecEnv | gym.Env | None = None,
    n_episodes: int = 20,
    n_rounds: int = 5,
    n_gradient_steps: int | None = None,
    learning_rate: float | None = None,
    n_eval_episodes: int = 100,
    seed: int = 0,
    n_workers: int | None = None,
    backend: Backend = "process",
    accelerator: bool = True,
    episode_timeout: float = 600.0,
    on_round: Callable[[Round], object] = lambda found: None,
    **student_kwargs: Any,
) -> Distillation:
    """
    Make a student: a policy of another architecture that takes a trained agent's deterministic actions. The student
    first learns from episodes of the teacher (behaviour cloning); then, in each round of DAgger
    (https://arxiv.org/abs/1011.0686, algorithm 3.1, with beta 0 after the first round), it acts, and learns the
    teacher's actions for what it has seen. The student that is best on validation seeds is compared with the teacher on
    test seeds.

    >>> from stable_baselines3 import SAC
    >>> teacher = SAC("MlpPolicy", "Pendulum-v1", seed=0, device="cpu")
    >>> found = distill(teacher, "linear", n_episodes=2, n_rounds=0, n_eval_episodes=2, backend="serial")
    >>> found.record["student"]["n_parameters"]
    4

    :param teacher: a Stable-Baselines3 model, or an :class:`~sb3_refine.agents.agent.Agent` from ``load_agent``; it is
        left as it is
    :param student: one of ``sb3_refine.students.architectures.STUDENTS``, with options as in ``"mlp:net_arch=[16,16]"``
    :param env: see :class:`~sb3_refine.refiner.Refiner`
    :param n_episodes: of each round; one in ten is held out
    :param n_rounds: of DAgger
    :param n_gradient_steps: see :class:`~sb3_refine.students.cloning.Cloning`, as for the next
    :param learning_rate: of Adam
    :param n_eval_episodes: test episodes of both
    :param seed: of everything random
    :param n_workers: see :class:`~sb3_refine.refiner.Refiner`, for the next three too; the workers run the episodes on
        validation and test seeds
    :param backend: who runs these
    :param accelerator: whether to use a faster, bit-identical ``step`` where there is one
    :param episode_timeout: seconds after which an episode counts as hanging
    :param on_round: called after each round
    :param student_kwargs: options of the student
    :return: the student, a model of ``PPO``, and its figures
    :raises RefineError: when an argument is wrong
    :raises EpisodeError: when an episode fails
    :raises DistillationInterrupted: on Ctrl-C, with the best student so far
    """
    check_count("n_episodes", n_episodes, 2)
    check_count("n_rounds", n_rounds, 0)
    check_count("n_gradient_steps", 1 if n_gradient_steps is None else n_gradient_steps, 1)
    check_count("n_eval_episodes", n_eval_episodes, 2)
    check_count("seed", seed, 0)
    if learning_rate is not None and not 0 < learning_rate < np.inf:
        raise RefineError(f"learning_rate: expected a number above 0, got {learning_rate}")
    check_seconds("episode_timeout", episode_timeout)
    if isinstance(teacher, Agent) and env is not None:
        raise RefineError("env: an Agent brings its own environment; leave env out, or pass teacher.model")
    name, options = student_options(student, student_kwargs)
    backend_name, backend_kwargs = backend_options("backend", backend, n_workers)
    workers = {"backend": backend_name, **backend_kwargs}
    workers.update(accelerator=accelerator, episode_timeout=episode_timeout)
    agent = teacher if isinstance(teacher, Agent) else agent_from_model(teacher, env)
    if isinstance(agent.model, MaskablePPO) and name == "transformer":
        raise RefineError("student: a transformer has no action masks, which this agent needs; choose mlp")
    training = {"seed": seed, "n_gradient_steps": n_gradient_steps, "learning_rate": learning_rate}
    course = _Course(agent, STUDENTS[name](**options), n_episodes, training, workers)
    course.described, course.n_rounds = {"architecture": name, **options}, n_rounds
    try:
        for number in range(n_rounds + 1):
            on_round(course.advance(number))
        return _tested(course, agent, n_eval_episodes, workers)
    except KeyboardInterrupt:
        if not course.rounds:
            raise
        raise DistillationInterrupted(course.distillation()) from None


def _tested(course: "_Course", teacher: Agent, n_eval_episodes: int, workers: dict[str, Any]) -> Distillation:
    """The best student, compared with its teacher on test seeds."""
    found, seeds = course.distillation(), course.seeds.take("test", n_eval_episodes)
    with open_targets([teacher, found.agent], **workers) as targets:
        of_teacher, of_student = (target.run(seeds) for target in targets)
        is_paired = all(target.is_seeded for target in targets)
    for evaluation, whose in ((of_teacher, "the teacher"), (of_student, "the student")):
        check_valid(evaluation, whose)
    found.record["student"].update(_figures(of_student))
    found.record["teacher"].update(_figures(of_teacher))
    found.record["paired_difference"] = asdict(paired_difference(of_teacher, of_student, paired=is_paired))
    found.record["seeds"] = {"test": seeds}
    found.record["rollouts"] += 2 * n_eval_episodes
    found.record["env_steps"] += int(of_teacher.lengths.sum() + of_student.lengths.sum())
    found.record["settings"]["n_eval_episodes"] = n_eval_episodes
    summary = of_teacher.summary()
    brief = {name: summary[name] for name in ("mean_return", "std_return", "n_episodes")}
    found.agent.args["teacher"] = {"algo": teacher.algo, **brief}
    return found


class _Course:
    """The rounds: demonstrations so far, the student, and the best of it."""

    def __init__(
        self, teacher: Agent, student: Student, n_episodes: int, training: dict[str, Any], workers: dict[str, Any]
    ):
        self._teacher, self._stopwatch = teacher, Stopwatch()
        self._per_round, self.seeds, self._workers = n_episodes, EpisodeSeeds(training["seed"]), workers
        self._task = rollout_task(
            teacher, accelerator=workers["accelerator"], episode_timeout=workers["episode_timeout"]
        )
        self.n_episodes = self.n_env_steps = 0
        self.described: dict[str, Any] = {}  # the student, for the record
        self.n_rounds = 0  # that were asked for
        self.rounds: list[Round] = []
        self._demonstrations, self._held_out = self._demonstrated(None)
        statistics = teacher.vec_normalize
        if statistics is None or not statistics.norm_obs:
            statistics = _statistics_of(teacher, self._demonstrations)
        self._student = _student_of(teacher, student, statistics, training["seed"])
        self._cloning = Cloning(self._student.model.policy, student, self._student.statistics, **training)
        self._parameters = PolicyParameters(self._student.model.policy)
        self._best: tuple[float, np.ndarray] = -np.inf, self._parameters.get_theta()
        self.chosen = 0

    def advance(self, number: int) -> Round:
        """
        :param number: of the round
        :return: what it has led to
        """
        if number > 0:  # the first ones are the teacher's own
            new = self._demonstrated(self._student)
            self._demonstrations += new[0]
            self._held_out += new[1]
        learned, held_out = map(self._cloning.examples, (self._demonstrations, self._held_out))
        if number == 0:
            self._cloning.start_at_mean(learned)
        with one_thread():
            self._cloning.fit(learned)
            losses = self._cloning.loss(learned), self._cloning.loss(held_out)
        mean_return = self._mean_return()
        if mean_return >= self._best[0]:  # of equals, the one that has learned more
            self._best, self.chosen = (mean_return, self._parameters.get_theta()), number
        found = Round(
            number=number,
            n_episodes=len(self._demonstrations) + len(self._held_out),
            n_steps=sum(map(len, self._demonstrations + self._held_out)),
            loss=losses[0],
            held_out_loss=losses[1],
            mean_return=mean_return,
        )
        self.rounds.append(found)
        return found

    def distillation(self) -> Distillation:
        """:return: the best student so far, not tested"""
        best, teacher = with_theta(self._student, self._best[1]), self._teacher
        best.model.num_timesteps = self.rounds[self.chosen].n_steps
        n_parameters = PolicyParameters(teacher.model.policy).size
        record = {
            "student": {**self.described, "n_parameters": self._parameters.size},
            "teacher": {"algo": teacher.algo, "n_parameters": n_parameters},
            "env": teacher.env_id,
            "rounds": [asdict(each) for each in self.rounds],
            "chosen_round": self.chosen,
            "rollouts": self.n_episodes,
            "env_steps": self.n_env_steps,
            "wall_time_s": self._stopwatch.wall_time_s,
            "cpu_time_s": self._stopwatch.cpu_time_s,
            **({} if self._teacher.recipe.tasks is None else {"tasks": self._teacher.recipe.tasks.settings}),
            "settings": {"n_episodes": self._per_round, "n_rounds": self.n_rounds, **self._cloning.settings},
            "source": teacher.source,
            "versions": versions(),
        }
        return Distillation(best, record)

    def _mean_return(self) -> float:
        with open_targets([self._student], **self._workers) as (target,):
            evaluation = target.run(self.seeds.take("validation", N_VALIDATION_EPISODES))
        check_valid(evaluation, "the student")
        self.n_episodes += len(evaluation.episodes)
        self.n_env_steps += int(evaluation.lengths.sum())
        return float(evaluation.returns.mean())

    def _demonstrated(self, acting: Agent | None) -> tuple[list[Demonstration], list[Demonstration]]:
        """Episodes to learn from, and others to hold out."""
        seeds = self.seeds.take("search", self._per_round, len(self.rounds) * self._per_round if acting else 0)
        policy = None
        if acting is not None:
            policy = rollout_policy(acting.model, self._parameters, acting.statistics, acting.observation_space)
        found = demonstrate(self._task, self._teacher.observation_space, seeds, policy)
        self.n_episodes += len(found)
        self.n_env_steps += sum(map(len, found))
        n_held_out = max(1, round(_HELD_OUT * len(found)))
        return found[n_held_out:], found[:n_held_out]


def _statistics_of(teacher: Agent, demonstrations: list[Demonstration]) -> VecNormalize | None:
    """
    Statistics of the observations of a teacher that has none: networks learn better from normalised observations. None
    where the Zoo's files have no place for them, or for what is not continuous.
    """
    if teacher.recipe.vec_wrappers:  # statistics would be those of single frames
        return None
    space = teacher.observation_space
    parts = dict(space.spaces) if isinstance(space, spaces.Dict) else {"": space}
    if not all(isinstance(part, spaces.Box) and not is_image_space(part) for part in parts.values()):
        return None
    env = DummyVecEnv([teacher.recipe.build])
    try:
        statistics = VecNormalize(env, norm_reward=False, training=False)
        observations = stacked([each for one in demonstrations for each in one.observations])
        rms: Any = statistics.obs_rms
        for key, each in rms.items() if isinstance(rms, dict) else [("", rms)]:
            values = (observations[key] if isinstance(observations, dict) else observations).astype(np.float64)
            each.mean, each.var, each.count = values.mean(axis=0), values.var(axis=0), float(len(values))
            each.var = np.where(each.var < _LEAST_VARIANCE, 1.0, each.var)
        return without_env(statistics)
    finally:
        env.close()


def _student_of(teacher: Agent, student: Student, statistics: VecNormalize | None, seed: int) -> Agent:
    """A new student in the teacher's environment."""
    policy, policy_kwargs = student.policy(teacher.observation_space)
    is_masked = isinstance(teacher.model, MaskablePPO)
    cls: Any = MaskablePPO if is_masked else PPO
    env = DummyVecEnv([teacher.recipe.build])
    try:
        with globals_restored():
            model = cls(policy, env, seed=seed, device="cpu", policy_kwargs=policy_kwargs)
    finally:
        env.close()
    model.env = None
    name = policy if isinstance(policy, str) else f"{policy.__module__}.{policy.__qualname__}"
    config = {key: teacher.config[key] for key in _OF_ENVIRONMENT if key in teacher.config}
    args: dict[str, Any] = {
        key: teacher.args[key] for key in ("env", "env_kwargs", "gym_packages") if key in teacher.args
    }
    return Agent(
        model=model,
        algo="ppo_mask" if is_masked else "ppo",
        env_name=teacher.env_name,
        recipe=teacher.recipe,
        observation_space=teacher.observation_space,
        vec_normalize=statistics,
        config={**config, "policy": name, "normalize": statistics is not None},
        args=args,
        source=teacher.source,
        left_out=teacher.left_out,
    )


def _figures(evaluation: Evaluation) -> dict[str, Any]:
    return {**evaluation.summary(), "returns": evaluation.returns.tolist()}
