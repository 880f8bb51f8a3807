"""The original on validation seeds: what the objective is calibrated on, and what later episodes are compared with."""

import logging
import numbers
import reprlib

import numpy as np

from sb3_refine.agents.agent import Agent
from sb3_refine.errors import EpisodeError, RefineError
from sb3_refine.evaluation.evaluation import Evaluation
from sb3_refine.evaluation.selection import Candidate
from sb3_refine.evaluation.target import Target, check_valid
from sb3_refine.objectives import Objective

logger = logging.getLogger(__name__)

_N_RECHECKED = 2  # episodes that are run again at the end
_MARGIN = 0.05  # tolerated beyond the range in evaluations.npz, as a share of its width


def evaluate_baseline(
    original: Candidate, validation_seeds: list[int], objective: Objective, objective_name: str
) -> Evaluation:
    """
    Run the original on the validation seeds, as far as this was not done, and calibrate the objective on the episodes.

    :param original: its episodes are noted in it
    :param validation_seeds: one for each episode
    :param objective: what is maximised
    :param objective_name: what messages call the objective
    :return: the episodes
    :raises RefineError: when the objective does not fit the agent
    :raises EpisodeError: when an episode fails, or has NaN or infinite rewards or observations
    """
    original.run_on(validation_seeds, objective.metrics)
    baseline = Evaluation(tuple(validation_seeds), tuple(original.episodes))
    check_valid(baseline, "the original")
    objective.calibrate(baseline.episodes)
    for fitness in map(objective.fitness, baseline.episodes):
        if not is_number(fitness):
            what = f"the fitness of {objective_name} is {reprlib.repr(fitness)}"
            raise RefineError(f"objective: {what}; it must be a number")
    if not np.isfinite(objective.of_episodes(baseline.episodes)):
        raise RefineError(f"objective: {objective_name} gave NaN or infinity for the original; fix it")
    return baseline


def warn_if_unexpected(agent: Agent, baseline: Evaluation) -> None:
    """
    Warn where the agent's returns are not those of its own ``evaluations.npz``: then the environment is probably not
    the one that the agent was trained in.

    :param agent: as loaded
    :param baseline: its episodes
    """
    expected, returns = agent.expected_return, baseline.returns
    if expected is None:
        return
    margin = max(2 * returns.std() / np.sqrt(len(returns)), _MARGIN * (expected.high - expected.low))
    if expected.low - margin <= returns.mean() <= expected.high + margin:
        return
    logger.warning(
        "UNEXPECTED RETURN: the agent's mean return is %.4g, but its own evaluations.npz says %.4g (%.4g to %.4g near "
        "its end): is %s, with these wrappers and arguments, still the environment that the agent was trained in?",
        *(returns.mean(), expected.last, expected.low, expected.high, agent.env_name),
    )


def recheck_reproducibility(original: Target, baseline: Evaluation) -> None:
    """
    Run some episodes of the original again after the search, and warn where their returns differ: some environments
    keep state between episodes that the probe before the search does not find.

    :param original: the original
    :param baseline: its episodes before the search
    """
    seeds = baseline.seeds[:_N_RECHECKED]
    try:
        found = original.run(seeds).returns.tolist()
    except EpisodeError as error:  # the verdict stands
        logger.warning("the original could not be run again at the end: %s", str(error).partition("\n")[0])
        return
    expected = baseline.returns[: len(seeds)].tolist()
    if found != expected:
        logger.warning(
            "STATE LEAKS BETWEEN EPISODES: the original's returns for the seeds %s were %s before the search, and are "
            "%s after it: the result depends on the order of the episodes, and on the number of workers",
            *(", ".join(f"{value:.6g}" for value in values) for values in (seeds, expected, found)),
        )


def is_number(value: object) -> bool:
    """:return: whether a value is a real number, and no bool"""
    return isinstance(value, numbers.Real) and not isinstance(value, (bool, np.bool_))
