"""Recipes: the same environment in any process, and errors that name the remedy."""

import pickle
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from sb3_contrib.common.wrappers import TimeFeatureWrapper

from sb3_refine import RefineError, load_agent
from sb3_refine.agents.agent import save_agent
from sb3_refine.agents.zoo import new_run_folder
from sb3_refine.agents.zoo_config import parse_wrappers
from sb3_refine.envs.accelerators import ACCELERATORS
from sb3_refine.envs.families import FAMILIES, EnvFamily, current_env_id, family_of, is_failure
from sb3_refine.envs.remedies import BEFORE_RESET, FRESH_ENV
from sb3_refine.envs.spec import EnvRecipe
from sb3_refine.envs.wrappers import Noise, Noisy


def first_steps(env, seed=3):
    observations = [env.reset(seed=seed)[0]]
    for _ in range(20):
        observation, *_ = env.step(np.full(env.action_space.shape, 0.3, dtype=np.float32))
        observations.append(observation)
    return np.stack(observations)


def test_a_recipe_survives_pickling():
    recipe = EnvRecipe("Pendulum-v1", {"g": 9.0}, (("sb3_contrib.common.wrappers.TimeFeatureWrapper", {}),))
    copy = pickle.loads(pickle.dumps(recipe))
    assert copy == recipe
    assert isinstance(copy.build(), TimeFeatureWrapper)
    assert np.array_equal(first_steps(copy.build()), first_steps(recipe.build()))


def test_keyword_arguments_reach_the_environment():
    assert EnvRecipe("Pendulum-v1", {"g": 1.5}).build().unwrapped.g == 1.5


class Still(gym.Env):
    """Returns the action that it got, and has masks."""

    def __init__(self, action_space, observation=0.0, observation_space=None):
        self.action_space = action_space
        self.observation_space = observation_space or spaces.Box(-1, 1, (1,))
        self.observation = observation
        self.masks = None

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation, {}

    def step(self, action):
        return self.observation, 0.0, False, False, {"action": action}

    def action_masks(self):
        return self.masks


@pytest.mark.parametrize(
    ("space", "masks", "valid"),
    [
        (spaces.Discrete(4), [0, 1, 0, 1], {(1,), (3,)}),
        (spaces.MultiDiscrete([2, 3]), [1, 0, 0, 1, 1], {(0, 1), (0, 2)}),
    ],
)
def test_noisy_actions_stay_valid(space, masks, valid):
    env = Still(space)
    env.masks = np.array(masks, dtype=bool)
    noisy = Noisy(env, Noise(action=1.0))
    noisy.reset(seed=0)
    taken = {tuple(np.atleast_1d(noisy.step(None)[-1]["action"]).tolist()) for _ in range(50)}
    assert taken == valid


def test_noise_is_added_to_continuous_values_inside_the_wrappers():
    parts = {
        "image": spaces.Box(0, 255, (4, 4, 1), np.uint8),
        "mode": spaces.Discrete(3),
        "position": spaces.Box(-1, 1, (2,), np.float32),
    }
    observation = {"image": np.zeros((4, 4, 1), np.uint8), "mode": 2, "position": np.zeros(2, np.float32)}
    env = Still(spaces.Discrete(2), observation, spaces.Dict(parts))
    noisy = Noisy(env, Noise(observation_std=np.array([1.0, 0.0, 0.5])))  # of the mode and the position
    seen = noisy.reset(seed=0)[0]
    assert (seen["mode"], seen["image"].sum()) == (2, 0)
    assert seen["position"][0] == 0 != seen["position"][1]


def test_noise_differs_from_the_environments_own_draws_for_the_same_seed():
    env = Still(spaces.Discrete(2), np.zeros(3))
    noise = Noisy(env, Noise(observation_std=np.ones(3))).reset(seed=7)[0]
    assert not np.allclose(noise, env.np_random.standard_normal(3))


def test_the_time_limit_is_kept_and_no_monitor_is_added():
    env = EnvRecipe("Pendulum-v1").build()
    assert env.spec.max_episode_steps == 200
    assert "Monitor" not in str(env)


@pytest.mark.parametrize("env", ["HalfCheetah-v5", "HopperBulletEnv-v0"])
def test_nothing_is_printed_when_an_environment_is_made(env, capfd):
    if "Bullet" in env:
        pytest.importorskip("pybullet_envs_gymnasium", reason="needs the extra bullet")
        capfd.readouterr()
    EnvRecipe(env).build().close()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("LunarLanderContinuous-v2", "LunarLanderContinuous-v3"),
        ("LunarLander-v2", "LunarLander-v3"),
        ("Hopper-v3", "Hopper-v4"),
        ("PandaReach-v1", "PandaReach-v3"),
        ("PandaPickAndPlace-v1", "PandaPickAndPlace-v3"),
        ("HopperBulletEnv-v0", "HopperBulletEnv-v0"),
        ("Hopper-v5", "Hopper-v5"),
        ("BipedalWalker-v3", "BipedalWalker-v3"),
    ],
)
def test_renamed_environments(old, new):
    assert current_env_id(old) == new


@pytest.mark.parametrize(
    ("env_wrapper", "expected"),
    [
        (None, ()),
        ("a.B", (("a.B", {}),)),
        (["a.B", {"c.D": {"n": 1}}], (("a.B", {}), ("c.D", {"n": 1}))),
        ("utils.wrappers.TimeFeatureWrapper", (("sb3_contrib.common.wrappers.TimeFeatureWrapper", {}),)),
    ],
)
def test_the_zoos_env_wrapper(env_wrapper, expected):
    assert parse_wrappers(env_wrapper) == expected


@pytest.mark.parametrize(
    ("recipe", "line"),
    [
        (
            EnvRecipe("Pendulun-v1"),
            r"unknown environment 'Pendulun-v1' \(did you mean Pendulum-v1.*name that package in `gym_packages`",
        ),
        (EnvRecipe("Pendulum-v1", {"gravity": 1}), r"env_kwargs: Pendulum-v1: .*unexpected keyword argument 'gravity'"),
        (
            EnvRecipe("Pendulum-v1", gym_packages=("no_such",)),
            r"gym_packages: no_such needs the module 'no_such'",
        ),
        (EnvRecipe("Pendulum-v1", wrappers=(("no.Such", {}),)), r"env_wrapper: cannot import 'no.Such'"),
        (EnvRecipe("Pendulum-v1", wrappers=(("os.system", {}),)), r"'os.system' is not a gymnasium.Wrapper"),
    ],
)
def test_errors_name_the_remedy(recipe, line):
    with pytest.raises(RefineError, match=line):
        recipe.build()


@pytest.mark.parametrize(
    ("env_id", "module", "extra"),
    [
        ("HopperBulletEnv-v0", "pybullet_envs_gymnasium", "bullet"),
        ("PandaReach-v3", "panda_gym", "panda"),
        ("LunarLanderContinuous-v3", "Box2D", "box2d"),
        ("Hopper-v4", "mujoco", "mujoco"),
    ],
)
def test_a_missing_package_names_the_extra(monkeypatch, env_id, module, extra):
    for name in [name for name in sys.modules if name.split(".")[0] in (module, "gymnasium") and "envs." in name]:
        if "box2d" in name or "mujoco" in name:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(RefineError, match=rf"pip install 'sb3-refine\[{extra}\]'"):
        EnvRecipe(env_id).build()


def test_output_of_native_libraries_is_not_shown(capfd):
    pytest.importorskip("pybullet_envs_gymnasium")
    EnvRecipe("HopperBulletEnv-v0").build().close()
    print("shown")
    assert capfd.readouterr().out == "shown\n"


def test_the_first_episode_is_like_any_other():
    """Bullet's walkers differ in the first episode after they are made."""
    pytest.importorskip("pybullet_envs_gymnasium")
    env = EnvRecipe("Walker2DBulletEnv-v0").build()
    first, second = first_steps(env), first_steps(env)
    assert np.array_equal(first, second)


def test_gym_make_works_as_before():
    EnvRecipe("Pendulum-v1").build()
    assert "sb3_refine" not in str(gym.make("Pendulum-v1"))


def test_old_ant_has_111_observations_with_contact_forces_of_zero(zoo_agents):
    pytest.importorskip("mujoco")
    agent = load_agent("trpo", "Ant-v3", zoo_agents)
    assert agent.recipe.env_kwargs["use_contact_forces"] is True
    env = agent.recipe.build()
    observation, _ = env.reset(seed=0)
    assert observation.shape == (111,)
    env.action_space.seed(0)
    forces = 0.0
    for _ in range(60):
        observation, *_ = env.step(env.action_space.sample())
        forces += np.abs(env.unwrapped.contact_forces).max()
        assert (observation[27:] == 0).all()
        assert np.abs(observation[:27]).max() > 0
    assert forces > 0


def test_a_renamed_environment_with_its_wrapper_is_saved_so_that_it_loads_again(zoo_agents, tmp_path):
    pytest.importorskip("mujoco")
    agent = load_agent("trpo", "Ant-v3", zoo_agents)
    save_agent(agent, new_run_folder(tmp_path, "trpo", agent.env_name))
    again = load_agent("trpo", "Ant-v4", tmp_path)
    assert again.recipe == agent.recipe


@pytest.mark.parametrize(
    ("env_id", "extra", "remedy", "accelerators"),
    [
        ("HopperBulletEnv-v0", "bullet", None, ("bullet walker", "bullet binding")),
        ("PandaPushDense-v3", "panda", "forget contacts", ("panda", "bullet binding")),
        ("PandaStack-v3", "panda", "fresh env", ("panda", "bullet binding")),
        ("PandaReach-v1", "panda", None, ("panda", "bullet binding")),
        ("BipedalWalkerHardcore-v3", "box2d", "new Box2D world", ("box2d",)),
        ("Ant-v4", "mujoco", None, ()),
        ("HandReach-v1", "robotics", None, ()),
        ("BreakoutNoFrameskip-v4", "atari", None, ()),
        ("CartPole-v1", None, None, ()),
        ("MyOwn", None, None, ()),
        (None, None, None, ()),
    ],
)
def test_the_entry_of_a_family(env_id, extra, remedy, accelerators):
    family = family_of(env_id)
    assert (family.extra, family.remedy, family.accelerators) == (extra, remedy, accelerators)


def test_every_name_in_the_table_of_families_exists():
    for family in FAMILIES:
        assert set(family.accelerators) <= set(ACCELERATORS)
        assert family.remedy in (None, FRESH_ENV, *BEFORE_RESET)
        assert set(family.since_renamed) <= set(family.renamed)


def test_a_third_party_adds_a_family(monkeypatch):
    row = EnvFamily(r"Toy.*", renamed={"v0": "v7"}, fails=lambda reward: reward < -1)
    monkeypatch.setattr("sb3_refine.envs.families.FAMILIES", [*FAMILIES, row])
    assert current_env_id("ToyChase-v0") == "ToyChase-v7"
    assert [is_failure("ToyChase-v7", reward, {}) for reward in (-2, 0)] == [True, False]
