"""What a search logs of an update, under the names that Stable-Baselines3 uses where it has them."""

from collections.abc import Sequence

import numpy as np
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import safe_mean

from sb3_refine.rollouts.episode import Episode
from sb3_refine.search.state import SearchState


def log_update(logger: Logger, search: SearchState, episodes: Sequence[Sequence[Episode]]) -> None:
    """
    :param logger: of Stable-Baselines3
    :param search: after the update
    :param episodes: of each candidate of the update
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
    logger.record("time/total_timesteps", search.n_env_steps, exclude="tensorboard")
    logger.dump(step=search.n_env_steps)
