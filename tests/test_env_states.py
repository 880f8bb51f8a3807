"""The state of an environment is saved and restored, to the bit, or the environment is refused with the reason."""

import random

import gymnasium as gym
import numpy as np
import pytest

from sb3_refine import RefineError
from sb3_refine.agents.from_model import agent_from_model
from sb3_refine.envs.states import EnvStates, check_states, outcome_key


class FiveForces(gym.ActionWrapper):
    """Continuous actions as five discrete ones."""

    def __init__(self, env):
        super().__init__(env)
        self.action_space = gym.spaces.Discrete(5)

    def action(self, action):
        low, high = self.env.action_space.low, self.env.action_space.high
        return (low + (high - low) * action / 4).astype(np.float32)


def make(env_id, module=None, **kwargs):
    if module:
        pytest.importorskip(module)
    if module == "ale_py":
        import ale_py

        gym.register_envs(ale_py)
    elif module:
        __import__(module)
    env = gym.make(env_id, **kwargs)
    return env if isinstance(env.action_space, gym.spaces.Discrete) else FiveForces(env)


KNOWN = [
    ("CartPole-v1", None, {}, False),
    ("MountainCar-v0", None, {}, False),
    ("Acrobot-v1", None, {}, False),
    ("Pendulum-v1", None, {}, False),
    ("FrozenLake-v1", None, {"is_slippery": True}, True),
    ("Blackjack-v1", None, {}, True),
    ("MiniGrid-DoorKey-5x5-v0", "minigrid", {}, False),
    ("MiniGrid-Dynamic-Obstacles-5x5-v0", "minigrid", {}, True),
    ("ALE/Breakout-v5", "ale_py", {"repeat_action_probability": 0.0}, False),
    ("Hopper-v5", "mujoco", {}, False),
    ("Walker2d-v5", "mujoco", {}, False),
]


@pytest.mark.parametrize(
    ("env_id", "module", "kwargs", "is_random"), KNOWN, ids=[f"{row[0]} {row[2] or ''}" for row in KNOWN]
)
def test_the_state_is_restored_to_the_bit(env_id, module, kwargs, is_random):
    env = make(env_id, module, **kwargs)
    assert check_states(env).is_random is is_random
    states = EnvStates(env)
    env.reset(seed=3)
    for action in (0, 1, 0):
        env.step(action)
    state = states.save()
    courses = []
    for _ in range(3):
        states.restore(state)
        courses.append([outcome_key(env.step(action)) for action in (1, 0, 1, 1, 0, 1)])
    assert courses[0] == courses[1] == courses[2]


@pytest.mark.parametrize(
    ("env_id", "module", "reason"),
    [
        ("LunarLander-v3", "Box2D", "that of LunarLander-v3 cannot be saved (TypeError: cannot pickle 'SwigPyObject'"),
        ("HopperBulletEnv-v0", "pybullet_envs_gymnasium", "step 1 of HopperBulletEnv-v0 differs from before"),
        ("Ant-v5", "mujoco", "of Ant-v5 differs from before; use another method"),
        ("ALE/Breakout-v5", "ale_py", "repeat_action_probability:0.0 to `env_kwargs`"),  # sticky actions
    ],
)
def test_an_environment_whose_state_is_elsewhere_is_refused(env_id, module, reason):
    env = make(env_id, module)
    with pytest.raises(RefineError) as raised:
        check_states(env)
    assert reason in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_time_limit_is_part_of_the_state():
    env = gym.make("MountainCar-v0", max_episode_steps=5)
    states = EnvStates(env)
    env.reset(seed=0)
    for _ in range(3):
        env.step(0)
    state = states.save()
    assert [env.step(0)[3] for _ in range(2)] == [False, True]
    states.restore(state)
    assert [env.step(0)[3] for _ in range(2)] == [False, True]


def test_without_chance_what_is_random_differs():
    env = gym.make("FrozenLake-v1", is_slippery=True)
    states = EnvStates(env)
    env.reset(seed=0)
    state = states.save(with_chance=False)
    outcomes = set()
    for seed in range(20):
        states.restore(state)
        states.reseed(seed)
        outcomes.add(int(env.step(2)[0]))
    assert outcomes == {0, 1, 4}  # to the right, up (a wall) or down


def test_stacked_frames_are_part_of_the_state():
    from stable_baselines3 import A2C
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecFrameStack

    stacked = VecFrameStack(make_vec_env("CartPole-v1"), 3)
    env = agent_from_model(A2C("MlpPolicy", stacked, device="cpu")).recipe.build()
    states = EnvStates(env)
    env.reset(seed=0)
    env.step(0)
    state = states.save()
    first = env.step(1)[0].copy()
    env.step(1)
    states.restore(state)
    again = env.step(1)[0]
    assert first.shape == (12,)
    assert np.array_equal(again, first)


class Coin(gym.Env):
    """Each step pays 1 or 0, by chance. The generator is where environments have it."""

    observation_space = gym.spaces.Box(0, 1, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, kind):
        self._kind = kind

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._python, self._old = random.Random(seed), np.random.RandomState(seed)
        self._parts = {"inside": [np.random.default_rng(seed)]}
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action):
        draw = {
            "numpy": self.np_random.random,
            "numpy, old": self._old.random_sample,
            "python": self._python.random,
            "of a part": self._parts["inside"][0].random,
            "of the process": np.random.random,
        }[self._kind]()
        return np.zeros(1, dtype=np.float32), float(draw < 0.5), False, False, {}


@pytest.mark.parametrize("kind", ["numpy", "numpy, old", "python", "of a part", "of the process"])
def test_generators_are_found_wherever_they_are(kind):
    env = Coin(kind)
    assert check_states(env).is_random
    env.reset(seed=0)
    states = EnvStates(env)
    exact, fresh = states.save(), states.save(with_chance=False)
    expected = [env.step(0)[1] for _ in range(20)]
    states.restore(exact)
    assert [env.step(0)[1] for _ in range(20)] == expected
    states.restore(fresh)
    states.reseed(1)
    assert [env.step(0)[1] for _ in range(20)] != expected
    states.restore(exact)
    assert [env.step(0)[1] for _ in range(20)] == expected
