"""Save and restore the state of an environment, to try out what its actions lead to."""

import copy
import pickle
import random
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
_IMMUTABLE = {type(None), bool, int, float, str, bytes, np.float32, np.float64, np.int64}  # most variables: no copy


class EnvState(NamedTuple):
    """
    What :meth:`EnvStates.save` has found.

    :param variables: of each wrapper and of the environment
    :param simulator: of its simulator, if it has one that is not written in Python
    :param chance: the states of the random number generators; None where they are not part of it
    """

    variables: list[dict[str, Any]]
    simulator: Any
    chance: list[Any] | None


class EnvStates:
    """
    Saves and restores the state of an environment: copies of the variables of all wrappers and of the environment, and
    the state of its simulator by the simulator's own functions (Atari, MuJoCo). Random number generators, also those of
    the process, stay the objects that they are.

    :param env: an environment, with its wrappers
    """

    def __init__(self, env: gym.Env):
        self.env = env
        self._layers = list(_layers(env))
        self._simulator = _simulator_of(env.unwrapped)
        self._kept = [*self._layers, *self._simulator.objects, *_constants(self._layers)]
        self._generators: list[Any] = [np.random.mtrand._rand, random._inst]
        self._n_of_process = len(self._generators)

    def save(self, with_chance: bool = True) -> EnvState:
        """
        :param with_chance: whether the state of the random number generators belongs to the state. Without, what
            follows a :meth:`restore` may differ from time to time where the environment is random
        :return: the state; what follows does not change it
        """
        variables = self._copied([vars(layer) for layer in self._layers])
        return EnvState(variables, self._simulator.save(), self.chance() if with_chance else None)

    def restore(self, state: EnvState) -> None:
        """:param state: of this environment, which can be restored again"""
        for layer, variables in zip(self._layers, self._copied(state.variables), strict=True):
            vars(layer).clear()
            vars(layer).update(variables)
        self._simulator.restore(state.simulator)
        for generator, its_state in zip(self._generators, state.chance or [], strict=False):
            _set_state(generator, its_state)

    def reseed(self, seed: int) -> None:
        """:param seed: of all that is random from now on, as far as a :meth:`save` has found its generators"""
        seeds = np.random.SeedSequence(seed).spawn(len(self._generators))
        for generator, own in zip(self._generators, seeds, strict=True):
            _seed(generator, own)

    def chance(self) -> list[Any]:
        """:return: the present states of the random number generators"""
        return [_state_of(generator) for generator in self._generators]

    def drawn(self) -> bytes:
        """:return: what changes when the environment draws from a generator of its own"""
        return pickle.dumps([_state_of(generator) for generator in self._generators[self._n_of_process :]])

    def _copied(self, variables: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """One memo for all layers: they may share objects."""
        while True:
            memo: dict[int, Any] = {id(each): each for each in (*self._kept, *self._generators)}
            copies = [
                {
                    name: value if type(value) in _IMMUTABLE else copy.deepcopy(value, memo)
                    for name, value in own.items()
                }
                for own in variables
            ]
            originals = memo.get(id(memo), ())  # kept there by deepcopy
            found = [each for each in originals if isinstance(each, _GENERATORS)]
            if not found:
                return copies
            self._generators += found


_GENERATORS = (np.random.Generator, np.random.RandomState, random.Random)


def _state_of(generator: Any) -> Any:
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.getstate() if isinstance(generator, random.Random) else generator.get_state(legacy=True)[1:]


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.set_state(("MT19937", *state))


def _seed(generator: Any, seed: np.random.SeedSequence) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = type(generator.bit_generator)(seed).state
    else:
        generator.seed(int(seed.generate_state(1)[0]))


class StateCheck(NamedTuple):
    """
    What :func:`check_states` has found.

    :param is_random: whether something was drawn in a step
    :param n_env_steps: that it took
    """

    is_random: bool
    n_env_steps: int


def check_states(env: gym.Env, seed: int = 0) -> StateCheck:
    """
    Test that the state of an environment can be saved and restored: after each of some restored states, the same random
    actions lead to the same observations, rewards and valid actions, to the bit.

    :param env: any, with discrete actions
    :param seed: of the episodes and of the actions
    :return: whether the environment is random
    :raises RefineError: with the reason, if its state cannot be restored
    """
    steps = _Steps(env, np.random.default_rng(seed))
    for number, n_before in enumerate(_STARTS):
        env.reset(seed=seed + number)
        if steps.take(n_before) and steps.last_ended:
            env.reset()
        try:
            _check_restored(EnvStates(env), steps)
        except RefineError:
            raise
        except Exception as error:  # whatever an environment's parts raise when they are copied
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise RefineError(
                f"env: a tree search saves the state of the environment, and that of {_name(env)} cannot be saved "
                f"({reason}); use another method"
            ) from error
    return StateCheck(steps.has_drawn, steps.n_taken)


class _Steps:
    """Takes random steps that can be repeated."""

    def __init__(self, env: gym.Env, rng: np.random.Generator):
        self._env, self._rng, self.n_taken, self.last_ended = env, rng, 0, False
        self._masks = action_masks_of(env)
        self.has_drawn = False

    def take(
        self, n_steps: int, actions: list[int] | None = None, states: EnvStates | None = None
    ) -> list[tuple[int, bytes]]:
        """:return: each action with its outcome, until the episode has ended"""
        found: list[tuple[int, bytes]] = []
        for number in range(n_steps):
            action = self._action() if actions is None else actions[number]
            before = None if states is None else pickle.dumps(states.chance())
            outcome = self._env.step(action)
            self.has_drawn = self.has_drawn or (states is not None and pickle.dumps(states.chance()) != before)
            self.n_taken += 1
            self.last_ended = bool(outcome[2] or outcome[3])
            valid = b"" if self._masks is None or self.last_ended else np.array(self._masks(), dtype=bool).tobytes()
            found.append((action, outcome_key(outcome) + valid))
            if self.last_ended:
                break
        return found

    def _action(self) -> int:
        space: Any = self._env.action_space
        return int(self._rng.choice(np.arange(space.n) if self._masks is None else np.flatnonzero(self._masks())))


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
    first = steps.take(_N_STEPS, states=states)
    states.restore(state)
    again = steps.take(len(first), [action for action, _ in first])
    states.restore(state)
    if again != first:
        same = sum(1 for one, other in zip(first, again, strict=False) if one == other)
        raise RefineError(
            f"env: a tree search restores the state of the environment, and after that, step {same + 1} of "
            f"{_name(states.env)} differs from before; use another method"
        )


def _name(env: gym.Env) -> str:
    return type(env.unwrapped).__name__ if env.spec is None else env.spec.id


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
    ``class_attributes`` the methods of a ``VecEnvWrapper``. A copy of a Bullet client would end the connection when it
    is deleted.
    """
    for layer in layers:
        for name, value in vars(layer).items():
            is_client = type(value).__name__ == "BulletClient"
            if name in ("P", "class_attributes") or is_client or isinstance(value, (spaces.Space, EnvSpec)):
                yield value


# ---------------------------------------------------------------- simulators


class _Simulator(Protocol):
    """
    :ivar objects: that hold its state, and are not copied
    """

    objects: list[Any]

    def save(self) -> Any: ...

    def restore(self, state: Any) -> None: ...


class _NoSimulator:
    objects: list[Any] = []  # noqa: RUF012 - never changed

    def save(self) -> None:
        return None

    def restore(self, state: Any) -> None:
        pass


class _Ale:
    """The Arcade Learning Environment. Its state lacks the last action, which sticky actions repeat."""

    def __init__(self, env: Any):
        self._ale = env.ale
        self.objects = [env.ale]
        if self._ale.getFloat("repeat_action_probability") > 0:
            raise RefineError(
                "env: a tree search restores the state of the environment, which is not possible with Atari's sticky "
                "actions; add repeat_action_probability:0.0 to `env_kwargs`"
            )

    def save(self) -> Any:
        return self._ale.cloneState(include_rng=True)

    def restore(self, state: Any) -> None:
        self._ale.restoreState(state)


class _Mujoco:
    """MuJoCo, by its full integration state."""

    def __init__(self, env: Any):
        import mujoco  # type: ignore[import-untyped]

        self._mujoco, self._model, self._data = mujoco, env.model, env.data
        self._kind = mujoco.mjtState.mjSTATE_INTEGRATION
        self.objects = [env.model, env.data, *(vars(env)[name] for name in ("mujoco_renderer",) if name in vars(env))]

    def save(self) -> np.ndarray:
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
