"""Save and restore the state of an environment, to try out what its actions lead to."""

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from sb3_refine.envs.wrappers import Vectorised, action_masks_of
from sb3_refine.errors import RefineError

_N_STEPS = 30  # that the test repeats after restoring a state
_STARTS = (0, 3, 20)  # steps of an episode after which it saves the state
_N_REPEATS = 5  # of one step, to see whether it is random
_IMMUTABLE = {type(None), bool, int, float, str, bytes, np.float32, np.float64, np.int64}  # most variables: no copy


class EnvState(NamedTuple):
    """
    What :meth:`EnvStates.save` has found.

    :param variables: of each wrapper and of the environment
    :param simulator: of its simulator, if it has one that is not written in Python
    :param with_chance: whether the state of the random number generators is part of it
    """

    variables: list[dict[str, Any]]
    simulator: Any
    with_chance: bool


class EnvStates:
    """
    Saves and restores the state of an environment: copies of the variables of all wrappers and of the environment, and
    the state of its simulator by the simulator's own functions (Atari, MuJoCo).

    :param env: an environment, with its wrappers
    """

    def __init__(self, env: gym.Env):
        self.env = env
        self._layers = list(_layers(env))
        self._simulator = _simulator_of(env.unwrapped)
        self._kept = [*self._layers, *self._simulator.objects, *_constants(self._layers)]

    @property
    def has_random_simulator(self) -> bool:
        """Whether the simulator draws random numbers of its own, as Atari's does that repeats actions by chance."""
        return self._simulator.is_random

    def save(self, with_chance: bool = True) -> EnvState:
        """
        :param with_chance: whether the state of the random number generators belongs to the state. Without, what
            follows a :meth:`restore` may differ from time to time where the environment is random
        :return: the state; what follows does not change it
        """
        variables = [vars(layer) for layer in self._layers]
        return EnvState(self._copied(variables, with_chance), self._simulator.save(with_chance), with_chance)

    def restore(self, state: EnvState) -> None:
        """:param state: of this environment, which can be restored again"""
        for layer, variables in zip(self._layers, self._copied(state.variables, state.with_chance), strict=True):
            vars(layer).clear()
            vars(layer).update(variables)
        self._simulator.restore(state.simulator)

    def reseed(self, seed: int) -> None:
        """:param seed: of what is random from now on, as far as it comes from the environment's own generator"""
        self.env.unwrapped.np_random = np.random.default_rng(seed)

    def _copied(self, variables: list[dict[str, Any]], with_chance: bool) -> list[dict[str, Any]]:
        kept = self._kept if with_chance else [*self._kept, *_generators(variables)]
        memo: dict[int, Any] = {id(each): each for each in kept}  # of all layers: they may share objects
        return [
            {name: value if type(value) in _IMMUTABLE else copy.deepcopy(value, memo) for name, value in own.items()}
            for own in variables
        ]


class StateCheck(NamedTuple):
    """
    What :func:`check_states` has found.

    :param is_random: whether a step from one state may lead to several
    :param n_env_steps: that it took
    """

    is_random: bool
    n_env_steps: int


def check_states(env: gym.Env, seed: int = 0) -> StateCheck:
    """
    Test that the state of an environment can be saved and restored: after each of some restored states, the same random
    actions lead to the same observations and rewards, to the bit.

    :param env: any, with discrete actions
    :param seed: of the episodes and of the actions
    :return: whether the environment is random
    :raises RefineError: with the reason, if its state cannot be restored
    """
    steps = _Steps(env, np.random.default_rng(seed))
    is_random = False
    for number, n_before in enumerate(_STARTS):
        env.reset(seed=seed + number)
        if steps.take(n_before) and steps.last_ended:
            env.reset()
        try:
            states = EnvStates(env)
            _check_restored(states, steps)
            is_random = is_random or _is_random(states, steps)
        except RefineError:
            raise
        except Exception as error:  # whatever an environment's parts raise when they are copied
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise RefineError(f"env: its state cannot be saved ({reason})") from error
    return StateCheck(is_random, steps.n_taken)


class _Steps:
    """Takes random steps that can be repeated."""

    def __init__(self, env: gym.Env, rng: np.random.Generator):
        self._env, self._rng, self.n_taken, self.last_ended = env, rng, 0, False

    def take(self, n_steps: int, actions: list[int] | None = None) -> list[tuple[int, bytes]]:
        """:return: each action with what came of it, until the episode has ended"""
        found: list[tuple[int, bytes]] = []
        for number in range(n_steps):
            action = self._action() if actions is None else actions[number]
            outcome = self._env.step(action)
            self.n_taken += 1
            found.append((action, outcome_key(outcome)))
            self.last_ended = bool(outcome[2] or outcome[3])
            if self.last_ended:
                break
        return found

    def _action(self) -> int:
        masks = action_masks_of(self._env)
        space: Any = self._env.action_space
        valid = np.arange(space.n) if masks is None else np.flatnonzero(masks())
        return int(space.start + self._rng.choice(valid))


def outcome_key(outcome: tuple[Any, Any, bool, bool, Any]) -> bytes:
    """
    :param outcome: of a step
    :return: what tells it from others: the observation, the reward, and whether the episode has ended
    """
    observation, reward, terminated, truncated, _ = outcome
    return observation_key(observation) + np.float64(reward).tobytes() + bytes([bool(terminated), bool(truncated)])


def observation_key(observation: Any) -> bytes:
    """
    :param observation: of an environment
    :return: what tells it from others
    """
    return b"".join(_bytes(observation))


def _bytes(observation: Any) -> Iterator[bytes]:
    if isinstance(observation, dict):
        for key in sorted(observation):
            yield from _bytes(observation[key])
    elif isinstance(observation, tuple):
        for part in observation:
            yield from _bytes(part)
    elif isinstance(observation, str):
        yield observation.encode()
    else:
        yield np.asarray(observation).tobytes()


def _check_restored(states: EnvStates, steps: _Steps) -> None:
    state = states.save()
    first = steps.take(_N_STEPS)
    states.restore(state)
    again = steps.take(len(first), [action for action, _ in first])
    states.restore(state)
    if again != first:
        same = sum(1 for one, other in zip(first, again, strict=False) if one == other)
        raise RefineError(f"env: its state cannot be restored: after that, step {same + 1} differs from before")


def _is_random(states: EnvStates, steps: _Steps) -> bool:
    """Whether a step draws random numbers, or leads to different outcomes."""
    if states.has_random_simulator:
        return True
    before = states.save(with_chance=False)
    ((action, _),) = steps.take(1)
    outcomes: set[bytes] = set()
    for number in range(_N_REPEATS):
        states.restore(before)
        states.reseed(number)
        at_first = states.env.unwrapped.np_random.bit_generator.state
        outcomes.update(outcome for _, outcome in steps.take(1, [action]))
        if states.env.unwrapped.np_random.bit_generator.state != at_first:
            return True
    return len(outcomes) > 1


def _layers(env: gym.Env) -> Iterator[Any]:
    """The wrappers, those of a ``VecEnv`` too, and the environment."""
    yield env
    if isinstance(env, Vectorised):
        yield from env.vec_envs
    if isinstance(env, gym.Wrapper):
        yield from _layers(env.env)


def _constants(layers: list[Any]) -> Iterator[Any]:
    """
    What no step changes: not worth a copy. ``P`` has the probabilities of all steps of Gymnasium's toy texts,
    ``class_attributes`` the methods of a ``VecEnvWrapper``.
    """
    for layer in layers:
        for name, value in vars(layer).items():
            if name in ("P", "class_attributes") or isinstance(value, (spaces.Space, EnvSpec)):
                yield value


def _generators(variables: list[dict[str, Any]]) -> Iterator[Any]:
    for each in variables:
        yield from (value for value in each.values() if isinstance(value, np.random.Generator))


# ---------------------------------------------------------------- simulators


class _Simulator(Protocol):
    """
    :ivar objects: that hold its state, and are not copied
    :ivar is_random: whether its steps are
    """

    objects: list[Any]
    is_random: bool

    def save(self, with_chance: bool) -> Any: ...

    def restore(self, state: Any) -> None: ...


class _NoSimulator:
    objects: list[Any] = []  # noqa: RUF012 - never changed
    is_random = False

    def save(self, with_chance: bool) -> None:
        return None

    def restore(self, state: Any) -> None:
        pass


class _Ale:
    """The Arcade Learning Environment."""

    def __init__(self, env: Any):
        self._ale = env.ale
        self.objects, self.is_random = [env.ale], env.ale.getFloat("repeat_action_probability") > 0

    def save(self, with_chance: bool) -> Any:
        return self._ale.cloneState(include_rng=with_chance)

    def restore(self, state: Any) -> None:
        self._ale.restoreState(state)


class _Mujoco:
    """MuJoCo, by its full integration state."""

    is_random = False

    def __init__(self, env: Any):
        import mujoco  # type: ignore[import-untyped]

        self._mujoco, self._model, self._data = mujoco, env.model, env.data
        self._kind = mujoco.mjtState.mjSTATE_INTEGRATION
        self.objects = [env.model, env.data, *(vars(env)[name] for name in ("mujoco_renderer",) if name in vars(env))]

    def save(self, with_chance: bool) -> np.ndarray:
        state = np.empty(self._mujoco.mj_stateSize(self._model, self._kind))
        self._mujoco.mj_getState(self._model, self._data, state, self._kind)
        return state

    def restore(self, state: np.ndarray) -> None:
        """What follows from the state is computed anew, which changes the start of the solver: that is set again."""
        self._mujoco.mj_setState(self._model, self._data, state, self._kind)
        self._mujoco.mj_forward(self._model, self._data)
        self._mujoco.mj_setState(self._model, self._data, state, self._kind)


def _simulator_of(env: gym.Env) -> _Simulator:
    if hasattr(getattr(env, "ale", None), "cloneState"):
        return _Ale(env)
    if type(getattr(env, "data", None)).__module__.startswith("mujoco"):
        return _Mujoco(env)
    return _NoSimulator()
