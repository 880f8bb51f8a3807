"""Environment wrappers: what evaluations count, ``VecEnv`` wrappers around one environment, old observations, noise."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_refine.envs.observations import flattened, observed_keys


class TrueReturn(gym.Wrapper):
    """
    Knows what Stable-Baselines3's ``Monitor`` knows where the Zoo puts it: inside all other wrappers.

    A wrapper outside may clip rewards, skip frames, or end an episode when a life is lost; ``evaluate_policy`` goes on
    until the true end, and reports the true return.

    :param env: the environment before any wrapper of the agent's
    """

    episode_return = 0.0
    """Since the last reset."""
    last_reward = 0.0
    """Of the last step."""
    unread = 0.0
    """Since somebody who reads rewards has last set it to 0: that a wrapper resets within a step is no matter."""
    has_ended = False
    """Whether the episode has, for the environment itself."""

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """:return: the observation and info"""
        self.episode_return, self.has_ended = 0.0, False
        return self.env.reset(**kwargs)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """:return: the result of the step"""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.last_reward = float(reward)
        self.episode_return += self.last_reward
        self.unread += self.last_reward
        self.has_ended = bool(terminated or truncated)
        return observation, reward, terminated, truncated, info


def true_return_of(env: gym.Env) -> TrueReturn | None:
    """
    :param env: any environment
    :return: the :class:`TrueReturn` among its wrappers, if there is one
    """
    while isinstance(env, gym.Wrapper):
        if isinstance(env, TrueReturn):
            return env
        env = env.env
    return None


def action_masks_of(env: gym.Env) -> Callable[[], Any] | None:
    """
    :param env: any environment
    :return: says which actions are valid now; None where the environment does not
    """
    try:
        return env.get_wrapper_attr("action_masks")
    except AttributeError:
        return None


class Vectorised(gym.Wrapper):
    """
    A single environment seen through ``VecEnv`` wrappers, such as ``VecFrameStack``.

    :param env: the environment
    :param wrappers: from one ``VecEnv`` to the next, innermost first
    """

    def __init__(self, env: gym.Env, wrappers: Sequence[Callable[[Any], Any]]):
        super().__init__(env)
        self._vec_env: Any = _vec_env_of(env)
        for wrapper in wrappers:
            self._vec_env = wrapper(self._vec_env)
        self.observation_space = self._vec_env.observation_space
        self.action_space = self._vec_env.action_space
        self._after_reset: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """:return: the first observation; where an episode goes on, that which the ``VecEnv`` has reset itself to"""
        if seed is None and self._after_reset is not None:
            return self._after_reset, {}
        self._vec_env.seed(seed)
        return _first(self._vec_env.reset()), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """:return: one step"""
        observations, rewards, dones, infos = self._vec_env.step(np.asarray(action)[None])
        done, truncated = bool(dones[0]), bool(infos[0]["TimeLimit.truncated"])
        self._after_reset = _first(observations) if done and infos[0].get("goes_on", False) else None
        return _first(observations), rewards[0], done and not truncated, truncated, infos[0]

    @property
    def vec_envs(self) -> list[Any]:
        """The ``VecEnv`` wrappers, outermost first, and the ``DummyVecEnv`` inside."""
        found = [self._vec_env]
        while hasattr(found[-1], "venv"):
            found.append(found[-1].venv)
        return found

    def close(self) -> None:
        """Close the environment."""
        self._vec_env.close()


def _vec_env_of(env: gym.Env) -> Any:
    """
    A ``DummyVecEnv`` that resets itself where an episode goes on, as after a lost life, but not at its true end: the
    next reset is to be the seeded one.
    """
    from stable_baselines3.common.vec_env import DummyVecEnv

    true_return = true_return_of(env)

    class Single(DummyVecEnv):
        def step_wait(self) -> Any:
            observation, self.buf_rews[0], terminated, truncated, info = self.envs[0].step(self.actions[0])
            info = {**info, "TimeLimit.truncated": truncated and not terminated}
            done = terminated or truncated
            if done:
                info["terminal_observation"] = observation
                info["goes_on"] = true_return is not None and not true_return.has_ended
                if info["goes_on"]:
                    observation, _ = self.envs[0].reset()
            self._save_obs(0, observation)
            return self._obs_from_buf(), np.copy(self.buf_rews), np.array([done]), [info]

    return Single([lambda: env])


def _first(observations: Any) -> Any:
    if isinstance(observations, dict):
        return {key: part[0] for key, part in observations.items()}
    return observations[0]


class IgnoreSuccessTermination(gym.Wrapper):
    """
    Episodes go on after success until their time is up: the goal has to be held.

    :param env: an environment that terminates on success, and says ``is_success``
    """

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self._max_steps = env.spec.max_episode_steps if env.spec is not None else None
        self._n_steps = 0

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """:return: the observation and info"""
        self._n_steps = 0
        return self.env.reset(**kwargs)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """:return: the result of the step, without the termination that success would be"""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._n_steps += 1
        if terminated and info.get("is_success", False):
            terminated = False
            # the time limit that rl_zoo3 puts in gymnasium's place says nothing of its own where there is a termination
            truncated = truncated or self._n_steps == self._max_steps
        return observation, reward, terminated, truncated, info


class ZeroContactForces(gym.ObservationWrapper):
    """
    Ant as agents of 2021 knew it: 111 numbers, of which the 84 contact forces were always 0.

    mujoco-py 2.1 left them at 0, whereas today's MuJoCo computes them.

    :param env: ``Ant-v4`` with ``use_contact_forces=True``
    """

    def __init__(self, env: gym.Env):
        super().__init__(env)
        assert isinstance(env.observation_space, spaces.Box)
        self.n_others = env.observation_space.shape[0] - 84

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """:return: the observation with its contact forces set to 0"""
        return np.concatenate([observation[: self.n_others], np.zeros(84, dtype=observation.dtype)])


class GoalInObservation(gym.ObservationWrapper):
    """
    The observation of hindsight experience replay until Stable-Baselines3 1.0: ``observation`` and ``desired_goal`` as
    one vector, in place of the ``Dict`` (its ``ObsDictWrapper``).

    :param env: with a ``Dict`` of these two and ``achieved_goal``
    """

    def __init__(self, env: gym.Env):
        super().__init__(env)
        parts = [env.observation_space[key] for key in ("observation", "desired_goal")]  # type: ignore[index]
        low, high = (np.concatenate([getattr(part, bound) for part in parts]) for bound in ("low", "high"))
        self.observation_space = spaces.Box(low, high, dtype=np.float32)

    def observation(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        """:return: the observation and the goal, float32"""
        return np.concatenate([observation["observation"], observation["desired_goal"]], dtype=np.float32)


@dataclass(frozen=True)
class Noise:
    """
    Independent zero-mean Gaussian noise in every step of an episode, drawn from the episode's seed.

    :param action: standard deviation of the noise on actions, as a share of their range ``high - low``; the result is
        clipped to it. Of actions that are not continuous, the probability of a random one instead
    :param observation_std: standard deviation of the noise on each observation that trajectories keep, raw, of shape
        ``(n_observed,)``, see :class:`~sb3_refine.rollouts.episode.Trajectory`; or None
    """

    action: float = 0.0
    observation_std: np.ndarray | None = None


class Noisy(gym.Wrapper):
    """
    An environment whose actions and observations get noise.

    :param env: the environment as the policy sees it
    :param noise: how much
    """

    def __init__(self, env: gym.Env, noise: Noise):
        super().__init__(env)
        self._noise = noise
        self._rng = np.random.default_rng(0)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """:return: the first observation, with noise"""
        if seed is not None:
            self._rng = np.random.default_rng([seed, 1])  # from the seed alone, an environment draws its own numbers
        observation, info = self.env.reset(seed=seed, options=options)
        return self._observed(observation), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """:return: the result of the noisy action, with noise on the observation"""
        observation, reward, terminated, truncated, info = self.env.step(self._acted(action))
        return self._observed(observation), reward, terminated, truncated, info

    def _acted(self, action: Any) -> Any:
        space, amount = self.action_space, self._noise.action
        if amount == 0:
            return action
        if isinstance(space, spaces.Box):
            noisy = action + amount * (space.high - space.low) * self._rng.standard_normal(space.shape)
            return np.clip(noisy, space.low, space.high).astype(space.dtype)
        if self._rng.random() < amount:
            space.seed(int(self._rng.integers(2**31)))
            return space.sample(self._mask())
        return action

    def _mask(self) -> Any:
        """Which actions are valid now, in the form that ``sample`` takes; None where the environment has no masks."""
        space = self.action_space
        if not self.env.has_wrapper_attr("action_masks"):
            return None
        masks = np.asarray(self.env.get_wrapper_attr("action_masks")(), dtype=np.int8).ravel()
        if isinstance(space, spaces.MultiDiscrete):
            return tuple(np.split(masks, np.cumsum(space.nvec.ravel())[:-1]))
        return masks if isinstance(space, spaces.Discrete) else None

    def _observed(self, observation: Any) -> Any:
        std = self._noise.observation_std
        if std is None:
            return observation
        noise = std * self._rng.standard_normal(std.size)
        if not isinstance(observation, dict):
            return _plus(observation, noise)
        noisy, start = dict(observation), 0
        for key in observed_keys(self.observation_space):
            size = flattened(observation[key]).size
            if size and np.asarray(observation[key]).dtype.kind == "f":
                noisy[key] = _plus(observation[key], noise[start : start + size])
            start += size
        return noisy


def _plus(values: np.ndarray, noise: np.ndarray) -> np.ndarray:
    return (values + noise.reshape(values.shape)).astype(values.dtype)
