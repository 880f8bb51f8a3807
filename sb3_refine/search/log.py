"""What a search logs, under the names that Stable-Baselines3 uses where it has them."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import CSVOutputFormat, Logger, TensorBoardOutputFormat
from stable_baselines3.common.utils import configure_logger, safe_mean

from sb3_refine.agents.agent import Agent
from sb3_refine.errors import RefineError
from sb3_refine.rollouts.episode import Episode
from sb3_refine.search.line_format import LineFormat
from sb3_refine.search.result import Result
from sb3_refine.search.state import SearchState, Update

PROGRESS = "progress.csv"
"""The log of a run, in its folder."""


def make_logger(verbose: int, tensorboard_log: str | None, tb_log_name: str, progress_bar: bool) -> Logger:
    """
    :param verbose: 0: silent, 1: a line for each entry, 2: Stable-Baselines3's table
    :param tensorboard_log: folder for TensorBoard, or None
    :param tb_log_name: name of the run in it; a number is added
    :param progress_bar: whether there is a bar, which lines would break
    :return: a logger
    :raises RefineError: when there is no TensorBoard, or its folder cannot be written
    """
    try:
        logger = configure_logger(int(verbose >= 2), tensorboard_log, tb_log_name, reset_num_timesteps=True)
    except (ImportError, OSError) as error:
        raise RefineError(f"tensorboard_log: {error}; `tensorboard_log=''` logs nowhere") from error
    if verbose == 1 and not progress_bar:
        logger.output_formats.append(LineFormat(sys.stdout))
    return logger


def tensorboard_folder(given: str | None, model: BaseAlgorithm | Agent) -> str | None:
    """
    :param given: by the user: a folder, ``""`` for none, or None
    :param model: that the user gave
    :return: the folder; by default that of the model. An agent from a file does not say where to write
    """
    if given is None:
        return None if isinstance(model, Agent) else model.tensorboard_log
    return given or None


def log_update(
    logger: Logger, search: SearchState, episodes: Sequence[Sequence[Episode]], num_timesteps: int, n_left: int
) -> None:
    """
    :param logger: of Stable-Baselines3
    :param search: after the update
    :param episodes: of each candidate of the update
    :param num_timesteps: of the model, those of the search included: the x-axis, as callbacks have it
    :param n_left: episodes that are left, those of the test included
    """
    flat = [episode for own in episodes for episode in own]
    returns = np.array([episode.episode_return for episode in flat])
    logger.record("rollout/ep_rew_mean", float(np.nanmean(returns)))
    logger.record("rollout/ep_len_mean", safe_mean([episode.length for episode in flat]))
    logger.record("refine/ep_rew_std", float(np.nanstd(returns)))
    logger.record("refine/ep_rew_max", float(np.nanmax(returns)))
    logger.record("refine/fitness_mean", search.history[-1].mean_fitness)
    logger.record("refine/failure_rate", safe_mean([episode.failed for episode in flat]))
    logger.record("refine/n_updates", search.n_updates_done, exclude="tensorboard")
    logger.record("refine/rollouts", search.n_episodes, exclude="tensorboard")
    logger.record("refine/invalid_episodes", search.n_invalid, exclude="tensorboard")
    logger.record("time/fps", int(search.n_env_steps / search.stopwatch.wall_time_s))
    logger.record("time/time_elapsed", int(search.stopwatch.wall_time_s), exclude="tensorboard")
    logger.record("refine/best", search.best_fitness, exclude=("tensorboard", "csv", "stdout"))
    time_left = search.stopwatch.wall_time_s / search.n_episodes * n_left
    logger.record("time/time_left", int(time_left), exclude=("tensorboard", "csv"))
    logger.record("time/total_timesteps", num_timesteps, exclude="tensorboard")
    logger.dump(step=num_timesteps)


def write_progress(path: Path, learning_curve: Sequence[Update], num_timesteps: int) -> None:
    """
    Write what a logger would have written during the search, where there was none.

    :param path: of ``progress.csv``
    :param learning_curve: of the search
    :param num_timesteps: of the model, before the search
    """
    output = CSVOutputFormat(str(path))
    for update in learning_curve:
        values = {
            "refine/n_updates": update.update,
            "refine/rollouts": update.rollouts,
            "time/total_timesteps": num_timesteps + update.env_steps,
            "rollout/ep_rew_mean": update.mean_return,
            "refine/ep_rew_std": update.std_return,
            "refine/ep_rew_max": update.max_return,
            "refine/fitness_mean": update.mean_fitness,
            "refine/failure_rate": update.failure_rate,
        }
        output.write(values, dict.fromkeys(values, ()), update.env_steps)
    output.close()


def log_verdict(logger: Logger, result: Result, num_timesteps: int) -> None:
    """
    Write the verdict to TensorBoard. The terminal and ``refinement.json`` have it anyway.

    :param logger: of Stable-Baselines3
    :param result: with a test or without
    :param num_timesteps: of the model, those of the search included
    """
    values: dict[str, float | str] = {"refine/verdict": f"{result.decision}: {result.reason}"}
    for name, evaluation in (("original", result.baseline), ("candidate", result.candidate)):
        if evaluation is not None:
            values[f"refine/{name}_return"] = float(evaluation.returns.mean())
    if result.paired_difference is not None:
        difference = result.paired_difference
        values |= {f"refine/difference_{name}": getattr(difference, name) for name in ("mean", "ci_low", "ci_high")}
    for output in logger.output_formats:
        if isinstance(output, TensorBoardOutputFormat):
            output.write(values, dict.fromkeys(values, ()), num_timesteps)
