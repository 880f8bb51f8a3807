"""Stable-Baselines3's callbacks in a search."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, unwrap_vec_normalize

from sb3_refine.agents.agent import Agent
from sb3_refine.envs.normalisation import Normalised
from sb3_refine.rollouts.episode import Episode


def as_callback(callback: MaybeCallback) -> BaseCallback:
    """
    :param callback: a callback, a list of them, a function, or None
    :return: one callback
    """
    if isinstance(callback, list) or callback is None:
        return CallbackList(callback or [])
    return callback if isinstance(callback, BaseCallback) else ConvertCallback(callback)


@contextmanager
def callback_context(agent: Agent, logger: Logger, callback: MaybeCallback) -> Iterator[BaseCallback]:
    """
    Initialise callbacks with an agent's model, which meanwhile has our logger, our count of time steps and an
    environment, as callbacks know it from training.

    :param agent: whose model
    :param logger: of the search
    :param callback: what the user gave
    :return: one callback
    """
    model, given = agent.model, as_callback(callback)
    names = ("_logger", "_custom_logger", "num_timesteps", "env", "_vec_normalize_env")
    own = {name: vars(model)[name] for name in names if name in vars(model)}
    env = _training_env(agent) if callback and model.get_env() is None else None
    try:
        model.set_logger(logger)
        if env is not None:
            model.env, model._vec_normalize_env = env, unwrap_vec_normalize(env)
        given.init_callback(model)
        yield given
    finally:
        if env is not None:
            env.close()
        for name in names:
            vars(model).pop(name, None)
        vars(model).update(own)


def episodes_as_steps(episodes: Sequence[Sequence[Episode]], seconds: float) -> dict[str, Any]:
    """
    The local variables that callbacks look for in a training step. Each episode of an update counts as an environment
    that ends in this step.

    :param episodes: of each candidate of the update
    :param seconds: since the search began
    :return: ``infos`` with Monitor's entry, ``rewards`` with the returns, ``dones``
    """
    flat = [episode for own in episodes for episode in own]
    entries = [{"r": each.episode_return, "l": each.length, "t": round(seconds, 6)} for each in flat]
    return {
        "infos": [{"episode": entry} for entry in entries],
        "rewards": np.array([each.episode_return for each in flat]),
        "dones": np.ones(len(flat), dtype=bool),
    }


def _training_env(agent: Agent) -> VecEnv:
    """The agent's environment with its statistics, frozen, for what callbacks ask of it."""
    env: VecEnv = DummyVecEnv([agent.recipe.build])
    if agent.statistics is not None:
        env = Normalised(agent.statistics)(env)
    return BaseAlgorithm._wrap_env(env, verbose=0)
