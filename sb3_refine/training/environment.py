"""The environment that an agent is trained on in: the Zoo's stack of wrappers, with the agent's own statistics."""

from copy import deepcopy
from dataclasses import replace

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecNormalize

from sb3_refine.agents.agent import Agent
from sb3_refine.envs.normalisation import Normalised, without_env

VEC_ENVS: dict[str, type[DummyVecEnv] | type[SubprocVecEnv]] = {"dummy": DummyVecEnv, "subproc": SubprocVecEnv}
"""Kinds of ``VecEnv``, by the Zoo's names."""


def training_env(agent: Agent, seed: int, vec_env: str = "dummy", is_frozen: bool = False) -> VecEnv:
    """
    Build the environments of an agent's training.

    :param agent: has the recipe, the statistics, and a model that knows how many environments there were
    :param seed: of the first environment; the others have the numbers after it
    :param vec_env: see :data:`VEC_ENVS`
    :param is_frozen: whether the statistics stay as they are, or go on changing as in training
    :return: the environments; rewards are normalised where they were in training
    """
    raw = replace(agent.recipe, vec_wrappers=())
    env: VecEnv = make_vec_env(raw.build, agent.model.n_envs, seed, vec_env_cls=VEC_ENVS[vec_env])
    outermost = () if agent.statistics is None else (Normalised(agent.statistics),)
    for wrapper in (*agent.recipe.vec_wrappers, *outermost):
        env = _normalised(wrapper, env, is_frozen) if isinstance(wrapper, Normalised) else wrapper(env)
    return env


def _normalised(wrapper: Normalised, env: VecEnv, is_frozen: bool) -> VecNormalize:
    """The statistics around an environment, as they were in training: with normalised rewards, if there were."""
    wrapped = deepcopy(without_env(wrapper.statistics))
    wrapped.set_venv(env)
    wrapped.training = not is_frozen
    return wrapped
