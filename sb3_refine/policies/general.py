"""Any policy of Stable-Baselines3, by its own ``predict``."""

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import cloudpickle
import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_refine.envs.wrappers import action_masks_of
from sb3_refine.policies.base import DeterministicPolicy
from sb3_refine.policies.transformer import TransformerPolicy

if TYPE_CHECKING:
    from stable_baselines3.common.policies import BasePolicy
    from stable_baselines3.common.vec_env import VecNormalize


class GeneralPolicy(DeterministicPolicy):
    """
    Any Stable-Baselines3 policy, through its own ``predict``.

    :param policy: the policy; a copy of it when this object is sent to another process
    :param slices: the place of each searched parameter in the vector, by name
    :param vec_normalize: frozen normalisation without its environment, or None
    :param space: observation space of the raw environment
    """

    def __init__(
        self,
        policy: "BasePolicy",
        slices: dict[str, slice],
        vec_normalize: "VecNormalize | None",
        space: spaces.Space,
    ):
        self._arguments = (policy, slices, vec_normalize, space)
        self._policy, self._vec_normalize, self._space = policy, vec_normalize, space
        named = dict(policy.named_parameters())
        self._targets = [(named[name].detach().view(-1).numpy(), where) for name, where in slices.items()]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments, self.extras

    def __call__(self, observation: Any) -> Any:
        observation = as_vec_env_would(observation, self._space)
        if self._vec_normalize is not None:
            observation = self._vec_normalize.normalize_obs(observation)
        action = np.asarray(self._predict(observation))
        return action if action.ndim else action[()]

    def _predict(self, observation: Any) -> Any:
        return self._policy.predict(observation, deterministic=True)[0]


class StatefulPolicy(GeneralPolicy):
    """sb3-contrib's recurrent policies and transformers: their state runs through the episode."""

    _state: Any = None

    def begin_episode(self, env: gym.Env) -> None:
        self._state = None

    def note_action(self, action: Any) -> None:
        if isinstance(self._policy, TransformerPolicy):
            memory, last_action, n_steps = self._state
            self._state = memory, np.asarray(action, dtype=last_action.dtype)[np.newaxis], n_steps

    def _predict(self, observation: Any) -> Any:
        start = np.array([self._state is None])
        predict: Any = self._policy.predict
        action, self._state = predict(observation, state=self._state, episode_start=start, deterministic=True)
        return action


class MaskedPolicy(GeneralPolicy):
    """sb3-contrib's maskable policies: the environment says which actions are valid, if it can."""

    _masks: Callable[[], Any] | None = None

    def begin_episode(self, env: gym.Env) -> None:
        self._masks = action_masks_of(env)

    def _predict(self, observation: Any) -> Any:
        masks = None if self._masks is None else self._masks()
        predict: Any = self._policy.predict
        return predict(observation, deterministic=True, action_masks=masks)[0]


def as_vec_env_would(observation: Any, space: spaces.Space) -> Any:
    """
    :param observation: of an environment
    :param space: of the observations
    :return: the entries of the space, in its dtype
    """
    if isinstance(space, spaces.Dict):
        return {key: as_vec_env_would(observation[key], part) for key, part in space.spaces.items()}
    return np.asarray(observation, dtype=space.dtype)


def is_stateful(policy: "BasePolicy") -> bool:
    """
    :param policy: of a Stable-Baselines3 model
    :return: whether ``predict`` needs the ``state`` that it returned last
    """
    return hasattr(policy, "lstm_actor") or isinstance(policy, TransformerPolicy)


def _general_class(policy: "BasePolicy") -> type[GeneralPolicy]:
    if is_stateful(policy):
        return StatefulPolicy
    return MaskedPolicy if "action_masks" in inspect.signature(policy.predict).parameters else GeneralPolicy


def _copy_on_cpu(policy: "BasePolicy") -> "BasePolicy":
    """A policy of its own: candidates are written into it, and workers may have no GPU."""
    # not deepcopy: the policy's distribution may hold tensors of the last gradient step, which that refuses
    copy = cloudpickle.loads(cloudpickle.dumps(policy))
    copy.set_training_mode(False)
    return copy.to("cpu")
