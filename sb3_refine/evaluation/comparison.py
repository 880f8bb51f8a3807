"""Policies side by side on the same seeds: without noise, and under the same noise."""

from collections.abc import Mapping, Sequence

import numpy as np

from sb3_refine.envs.wrappers import Noise
from sb3_refine.evaluation.evaluation import Evaluation
from sb3_refine.evaluation.target import Target, check_valid
from sb3_refine.rollouts.metrics import SMOOTHNESS

NOISE_SHARES = (0.025, 0.1)
"""Standard deviation of the noise on actions and on observations, as a share of their range."""

NO_NOISE = "no noise"


def evaluate_all(
    targets: Mapping[str, Target],
    seeds: Sequence[int],
    metrics: Sequence[str] = SMOOTHNESS,
    with_noise: bool = True,
) -> dict[str, dict[str, Evaluation]]:
    """
    Run policies on the same seeds: without noise, and under the same noise.

    The noise on observations is a share of the ranges that the first policy went through; where a policy has other
    observations, of its own ranges.

    :param targets: the policies, by name
    :param seeds: one for each episode
    :param metrics: of each episode
    :param with_noise: whether to run the policies under the noise of :func:`noises`, too
    :return: by condition, :data:`NO_NOISE` first, then as :func:`noises` names them; in each, by name of the policy
    :raises EpisodeError: when an episode without noise had NaN or infinite rewards or observations
    """
    noiseless = {name: target.run(seeds, (*metrics, "observation_range")) for name, target in targets.items()}
    for name, evaluation in noiseless.items():
        check_valid(evaluation, f"the {name}")
    levels = _noises_of_all(noiseless) if with_noise else {}
    return {NO_NOISE: noiseless} | {
        level: {name: target.run(seeds, metrics, noise[name]) for name, target in targets.items()}
        for level, noise in levels.items()
    }


def n_conditions(with_noise: bool) -> int:
    """:return: conditions that :func:`evaluate_all` runs, at most"""
    return 1 + 2 * len(NOISE_SHARES) * with_noise


def _noises_of_all(noiseless: dict[str, Evaluation]) -> dict[str, dict[str, Noise]]:
    """By condition, and in it by policy."""
    first, *_ = noiseless.values()
    levels = {
        name: noises(first if _n_observed(evaluation) == _n_observed(first) else evaluation)
        for name, evaluation in noiseless.items()
    }
    common = [level for level in noises(first) if all(level in own for own in levels.values())]
    return {level: {name: own[level] for name, own in levels.items()} for level in common}


def _n_observed(evaluation: Evaluation) -> int:
    return int(evaluation.episodes[0].metrics["observation_range"].shape[1])


def noises(noiseless: Evaluation) -> dict[str, Noise]:
    """
    The conditions that robustness is measured under.

    :param noiseless: episodes with the metric ``observation_range``: the noise on an observation is a share of its
        range in these episodes
    :return: by name: ``action noise 2.5%`` and so on; none on observations that are not continuous
    """
    levels = {f"action noise {share:.1%}".replace(".0%", "%"): Noise(action=share) for share in NOISE_SHARES}
    ranges = np.array([episode.metrics["observation_range"] for episode in noiseless.episodes])
    if ranges.dtype.kind != "f" or ranges.size == 0:
        return levels
    spans = ranges[:, 1].max(axis=0) - ranges[:, 0].min(axis=0)
    for share in NOISE_SHARES:
        levels[f"observation noise {share:.1%}".replace(".0%", "%")] = Noise(observation_std=share * spans)
    return levels
