"""Frozen observation normalisation as a ``VecEnv`` wrapper."""

from dataclasses import dataclass

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecNormalize


@dataclass(frozen=True)
class Normalised:
    """
    Frozen observation normalisation as a ``VecEnv`` wrapper, for where another wrapper comes after it.

    :param statistics: without their environment
    """

    statistics: VecNormalize

    def __call__(self, vec_env: VecEnv) -> VecNormalize:
        """
        :param vec_env: what to wrap
        :return: the wrapped one
        """
        wrapped = without_env(detached(self.statistics))  # which may have come by pickle
        wrapped.set_venv(vec_env)
        wrapped.training = wrapped.norm_reward = False
        return wrapped


def without_env(vec_normalize: VecNormalize) -> VecNormalize:
    """A copy without its environment: pickling leaves the environment behind."""
    copy = VecNormalize.__new__(VecNormalize)
    copy.__setstate__(vec_normalize.__getstate__())
    return detached(copy)


def detached(vec_normalize: VecNormalize) -> VecNormalize:
    """
    :param vec_normalize: a wrapper that has lost its environment
    :return: the same, with the attributes that ``VecNormalize.__getstate__`` expects, so that it can be pickled
    """
    vec_normalize.__dict__.setdefault("class_attributes", {})
    vec_normalize.__dict__.setdefault("returns", np.zeros(1))
    return vec_normalize
