"""Two policies side by side: on the same seeds, and on the same seeds under noise."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

from sb3_refine.agents.agent import Agent
from sb3_refine.envs.observations import normalisation_of
from sb3_refine.envs.spec import EnvRecipe
from sb3_refine.envs.wrappers import Noise
from sb3_refine.errors import EpisodeError
from sb3_refine.evaluation.evaluation import Evaluation
from sb3_refine.evaluators import EVALUATORS, RolloutTask
from sb3_refine.policies.choice import rollout_policy
from sb3_refine.policies.parameters import PolicyParameters
from sb3_refine.rollouts.episode import Episode
from sb3_refine.rollouts.metrics import SMOOTHNESS, Measure
from sb3_refine.rollouts.reproducibility import probe

NOISE_SHARES = (0.025, 0.1)
"""Standard deviation of the noise on actions and on observations, as a share of their range."""

UNDISTURBED = "no noise"

_CHUNK = 16  # episodes of a worker between two reports of progress


@dataclass(frozen=True)
class Contestant:
    """
    A policy that is fit to be run.

    :param task: what workers are given; its policy and environment
    :param vector: its parameters
    :param is_seeded: whether the seed decides the episode; if not, seeds cannot be paired
    """

    task: RolloutTask
    vector: np.ndarray
    is_seeded: bool


def contestant(
    agent: Agent,
    parameters: PolicyParameters | None = None,
    seed: int = 0,
    accelerator: bool = True,
    measures: Mapping[str, Measure] | None = None,
    episode_timeout: float = 600.0,
) -> Contestant:
    """
    Make an agent fit to be run: with the environment in the form that the probe finds to be reproducible.

    :param agent: the agent
    :param parameters: what a search changes of it; by default all that is behind the action
    :param seed: of the directions of a search
    :param accelerator: whether to use a faster, bit-identical ``step`` where there is one
    :param measures: what episodes may be asked for beside :data:`~sb3_refine.rollouts.metrics.MEASURES`
    :param episode_timeout: seconds after which an episode of the probe is given up as hanging
    :return: the agent as it is
    """
    parameters = parameters or PolicyParameters(agent.model.policy, "actor")
    vector = parameters.get_vector()
    policy = rollout_policy(agent.model, parameters, agent.statistics, agent.observation_space)
    found = probe(agent.recipe, policy, vector, accelerator, episode_timeout)
    normalisation = normalisation_of(agent.statistics, agent.observation_space)
    task = RolloutTask(found.recipe, policy, seed, normalisation, measures or {}, found.replays)
    return Contestant(task, vector, found.seeded)


def evaluate(
    who: Contestant,
    seeds: Sequence[int],
    measures: Sequence[str] = SMOOTHNESS,
    noise: Noise | None = None,
    backend: str = "process",
    n_workers: int = 1,
    on_episodes: Callable[[list[Episode]], object] = lambda episodes: None,
) -> Evaluation:
    """
    Run a policy.

    :param who: the policy
    :param seeds: one for each episode
    :param measures: what to measure in each
    :param noise: what disturbs its actions and observations
    :param backend: who runs the episodes
    :param n_workers: how many at a time
    :param on_episodes: called with every few episodes that are done, for a progress bar
    :return: the episodes
    """
    recipe: EnvRecipe = replace(who.task.recipe, noise=noise)
    episodes: list[Episode] = []
    with EVALUATORS[backend](replace(who.task, recipe=recipe), n_workers) as evaluator:
        for start in range(0, len(seeds), _CHUNK * n_workers):
            chunk = seeds[start : start + _CHUNK * n_workers]
            episodes += evaluator.evaluate_mean(who.vector, chunk, measures)
            on_episodes(episodes[start:])
    return Evaluation(tuple(seeds), tuple(episodes))


def evaluate_all(
    contestants: dict[str, Contestant],
    seeds: Sequence[int],
    measures: Sequence[str] = SMOOTHNESS,
    with_noise: bool = True,
    backend: str = "process",
    n_workers: int = 1,
    progress: tqdm | None = None,
) -> dict[str, dict[str, Evaluation]]:
    """
    Run policies on the same seeds: undisturbed, and under the same noise.

    The noise on observations is a share of the ranges that the first policy went through; where a policy has other
    observations, of its own.

    :param contestants: the policies, by name
    :param seeds: one for each episode
    :param measures: what to measure in each
    :param with_noise: whether to run them under the noise of :func:`noises`, too
    :param backend: who runs the episodes
    :param n_workers: how many at a time
    :param progress: a bar, whose total is set here, or None
    :return: by condition, :data:`UNDISTURBED` first, then as :func:`noises` names them; in each, by contestant
    :raises EpisodeError: when an undisturbed episode had NaN or infinite rewards or observations
    """
    progress = tqdm(disable=True) if progress is None else progress
    progress.total = len(contestants) * len(seeds) * (1 + 2 * len(NOISE_SHARES) * with_noise)

    def run(who: Contestant, measures: Sequence[str] = measures, noise: Noise | None = None) -> Evaluation:
        return evaluate(who, seeds, measures, noise, backend, n_workers, lambda done: progress.update(len(done)))

    undisturbed = {name: run(who, (*measures, "observation_range")) for name, who in contestants.items()}
    for name, evaluation in undisturbed.items():
        check_valid(evaluation, f"the {name}")
    if not with_noise:
        return {UNDISTURBED: undisturbed}
    levels = _noises_of_all(undisturbed)
    progress.total = len(contestants) * len(seeds) * (1 + len(levels))
    return {UNDISTURBED: undisturbed} | {
        level: {name: run(who, noise=noise[name]) for name, who in contestants.items()}
        for level, noise in levels.items()
    }


def check_valid(evaluation: Evaluation, whose: str) -> None:
    """
    :param evaluation: of some episodes
    :param whose: what they are called in the message
    :raises EpisodeError: when any had NaN or infinite rewards or observations, naming their seeds
    """
    seeds = [seed for seed, value in zip(evaluation.seeds, evaluation.returns, strict=True) if np.isnan(value)]
    if seeds:
        shown = ", ".join(map(str, seeds[:3])) + (" and others" if len(seeds) > 3 else "")
        raise EpisodeError(
            f"{len(seeds)} of the {len(evaluation.seeds)} episodes of {whose} had NaN or infinite rewards or "
            f"observations, those with seed {shown}: there is nothing to compare; fix the environment"
        )


def _noises_of_all(undisturbed: dict[str, Evaluation]) -> dict[str, dict[str, Noise]]:
    """By level, by contestant."""
    first, *_ = undisturbed.values()
    levels = {
        name: noises(first if _n_observed(evaluation) == _n_observed(first) else evaluation)
        for name, evaluation in undisturbed.items()
    }
    common = [level for level in noises(first) if all(level in own for own in levels.values())]
    return {level: {name: own[level] for name, own in levels.items()} for level in common}


def _n_observed(evaluation: Evaluation) -> int:
    return int(evaluation.episodes[0].measures["observation_range"].shape[1])


def noises(undisturbed: Evaluation) -> dict[str, Noise]:
    """
    The noise that robustness is measured under.

    :param undisturbed: episodes that were asked for ``observation_range``: the noise on an observation is a share of
        the range that it went through in them
    :return: by name: ``action noise 2.5%`` and so on; none on observations that are not continuous
    """
    levels = {f"action noise {share:.1%}".replace(".0%", "%"): Noise(action=share) for share in NOISE_SHARES}
    ranges = np.array([episode.measures["observation_range"] for episode in undisturbed.episodes])
    if ranges.dtype.kind != "f" or ranges.size == 0:
        return levels
    spans = ranges[:, 1].max(axis=0) - ranges[:, 0].min(axis=0)
    for share in NOISE_SHARES:
        levels[f"observation noise {share:.1%}".replace(".0%", "%")] = Noise(observation_std=share * spans)
    return levels
