"""Loading from Zoo folders, plain zips and memory; saving so that others can load."""

import errno
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import ENV_ID, MADE, train
from fresh import run_script
from sb3_contrib.common.wrappers import TimeFeatureWrapper
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecCheckNan, VecNormalize

from sb3_refine import RefineError, Refiner, load_agent
from sb3_refine.agents.agent import save_agent
from sb3_refine.agents.from_model import agent_from_model
from sb3_refine.agents.zoo import new_run_folder
from sb3_refine.files import atomic_path, reraise_write_errors

OBSERVATIONS = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)


@pytest.fixture
def agents(made_agents, tmp_path) -> Path:
    """A copy of the made agents, to be spoilt."""
    shutil.copytree(made_agents, tmp_path / "agents")
    return tmp_path / "agents"


def zip_of(folder, algo):
    return folder / algo / f"{ENV_ID}_1" / f"{ENV_ID}.zip"


def state_of(model):
    return {f"{key}/{name}": value for key, part in model.get_parameters().items() for name, value in part.items()}


def assert_equal_states(before, after, but=()):
    assert before.keys() == after.keys()
    for name, value in before.items():
        if name.removeprefix("policy/") in but:
            continue
        if isinstance(value, th.Tensor):
            assert th.equal(value, after[name]), name
        else:
            assert str(value) == str(after[name]), name


@pytest.mark.parametrize("algo", MADE)
def test_a_zoo_folder_loads_as_plain_sb3_would(made_agents, algo):
    agent = load_agent(algo, ENV_ID, made_agents)
    plain = MADE[algo][0].load(zip_of(made_agents, algo), device="cpu")
    assert_equal_states(state_of(plain), state_of(agent.model))
    assert np.array_equal(
        plain.predict(OBSERVATIONS, deterministic=True)[0], agent.model.predict(OBSERVATIONS, deterministic=True)[0]
    )
    assert (agent.vec_normalize is not None) == (algo == "a2c")
    assert agent.source["sha256"] is not None


def test_the_newest_experiment_is_the_default(agents):
    shutil.copytree(agents / "ppo" / f"{ENV_ID}_1", agents / "ppo" / f"{ENV_ID}_12")
    shutil.copytree(agents / "ppo" / f"{ENV_ID}_1", agents / "ppo" / f"{ENV_ID}_9")
    assert f"{ENV_ID}_12" in load_agent("ppo", ENV_ID, agents).source["path"]
    assert f"{ENV_ID}_9" in load_agent("ppo", ENV_ID, agents, exp_id=9).source["path"]


def test_best_model_and_checkpoints(agents):
    run_folder = agents / "ppo" / f"{ENV_ID}_1"
    for name in ("best_model", "rl_model_900_steps", "rl_model_1000_steps"):
        shutil.copy(run_folder / f"{ENV_ID}.zip", run_folder / f"{name}.zip")
    for options, name in (
        ({"load_best": True}, "best_model.zip"),
        ({"load_checkpoint": 900}, "rl_model_900_steps.zip"),
        ({"load_last_checkpoint": True}, "rl_model_1000_steps.zip"),
    ):
        assert load_agent("ppo", ENV_ID, agents, **options).source["path"].endswith(name)


def test_a_plain_zip(agents, tmp_path):
    shutil.copy(zip_of(agents, "ppo"), tmp_path / "mine.zip")
    agent = load_agent(model=tmp_path / "mine.zip", env=ENV_ID)
    assert (agent.algo, agent.recipe.env_id, agent.vec_normalize) == ("ppo", ENV_ID, None)
    with pytest.raises(RefineError, match="does not say which environment it is for; name it"):
        load_agent(model=tmp_path / "mine.zip")


def test_a_plain_zip_with_its_statistics(agents, tmp_path):
    shutil.copy(zip_of(agents, "a2c"), tmp_path / "mine.zip")
    statistics = agents / "a2c" / f"{ENV_ID}_1" / ENV_ID / "vecnormalize.pkl"
    agent = load_agent(model=tmp_path / "mine.zip", env=ENV_ID, vec_normalize=statistics)
    assert np.array_equal(agent.vec_normalize.obs_rms.mean, train("a2c").get_vec_normalize_env().obs_rms.mean)


def test_a_zip_inside_a_zoo_folder_finds_its_files(agents):
    agent = load_agent(model=zip_of(agents, "a2c"))
    assert (agent.algo, agent.recipe.env_id) == ("a2c", ENV_ID)
    assert agent.vec_normalize is not None


@pytest.mark.parametrize("algo", MADE)
def test_a_wrong_algo_is_refused_with_the_right_one(agents, algo):
    for other in set(MADE) - {algo}:
        shutil.copytree(agents / algo, agents / f"copy-{other}")
        shutil.rmtree(agents / other)
        (agents / f"copy-{other}").rename(agents / other)
        with pytest.raises(RefineError, match=f"holds a {algo} agent, not {other}; pass `algo='{algo}'`"):
            load_agent(other, ENV_ID, agents)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"algo": "pppo"}, r"unknown algorithm 'pppo' \(did you mean ppo\?\)"),
        ({"algo": "ppo_lstm"}, "no such agent of ppo_lstm in .*; there are: a2c"),
        ({"algo": None}, "algo, env: both are needed"),
        ({"env": "Pendulun-v1"}, r"no agent ppo/Pendulun-v1 in .*\(did you mean Pendulum-v1\?\)"),
        ({"folder": "nowhere"}, "there is no folder nowhere; name the Zoo's log folder with -f"),
        ({"exp_id": 7}, rf"no such agent of ppo in .*; there are: .*ppo.{ENV_ID}_1"),
        ({"load_best": True}, rf"no best_model.zip in .*; there are: {ENV_ID}.zip"),
        ({"load_last_checkpoint": True}, r"no rl_model_\*_steps.zip in .*; there are"),
        ({"model": "nowhere.zip"}, "model: no file at nowhere.zip"),
        ({"env_kwargs": {"gravity": 3}}, "env_kwargs: Pendulum-v1: .*unexpected keyword argument 'gravity'"),
    ],
)
def test_errors_are_one_line(made_agents, arguments, line):
    with pytest.raises(RefineError, match=line) as error:
        load_agent(**{"algo": "ppo", "env": ENV_ID, "folder": made_agents, **arguments})
    assert "\n" not in str(error.value)


def test_missing_statistics_stop_unless_waived(agents):
    (agents / "a2c" / f"{ENV_ID}_1" / ENV_ID / "vecnormalize.pkl").unlink()
    with pytest.raises(
        RefineError,
        match="trained on normalised observations, but there is no vecnormalize.pkl.*`no_vec_normalize",
    ):
        load_agent("a2c", ENV_ID, agents)
    assert load_agent("a2c", ENV_ID, agents, no_vec_normalize=True).vec_normalize is None


@pytest.mark.parametrize(
    ("normalize", "needed"),
    [
        ("true", True),
        ("false", False),
        ("\"{'norm_obs': False, 'norm_reward': True}\"", False),
        ("dict(norm_obs=True, norm_reward=False)", True),
        ("{norm_reward: false}", True),
    ],
)
def test_which_configs_need_statistics(agents, normalize, needed):
    config = agents / "ppo" / f"{ENV_ID}_1" / ENV_ID / "config.yml"
    config.write_text(f"normalize: {normalize}")
    if needed:
        with pytest.raises(RefineError, match="no vecnormalize.pkl"):
            load_agent("ppo", ENV_ID, agents)
    else:
        assert load_agent("ppo", ENV_ID, agents).vec_normalize is None


def test_a_config_runs_nothing(agents, tmp_path):
    config = agents / "ppo" / f"{ENV_ID}_1" / ENV_ID / "config.yml"
    config.write_text(f"normalize: \"__import__('os').system('touch {tmp_path / 'run'}')\"")
    with pytest.raises(RefineError, match="normalize: expected a literal"):
        load_agent("ppo", ENV_ID, agents)
    assert not (tmp_path / "run").exists()


def test_spaces_must_match(agents, tmp_path):
    with pytest.raises(
        RefineError, match=r"observation space Box.*\(3,\).* does not match that of MountainCarContinuous-v0"
    ):
        load_agent(model=zip_of(agents, "ppo"), env="MountainCarContinuous-v0")
    statistics = VecNormalize(make_vec_env("MountainCarContinuous-v0"))
    statistics.save(str(tmp_path / "other.pkl"))
    with pytest.raises(RefineError, match=r"statistics have shape \(2,\), the observations \(3,\)"):
        load_agent(model=zip_of(agents, "ppo"), vec_normalize=tmp_path / "other.pkl")


class OwnAlgorithm(PPO):
    """A subclass: nobody else could load what is saved of it."""


def test_unknown_algorithms_are_refused():
    with pytest.raises(RefineError, match="OwnAlgorithm is not one of the algorithms a2c, ars, crossq"):
        agent_from_model(OwnAlgorithm("MlpPolicy", ENV_ID, n_steps=8, device="cpu"))


def test_nan_weights_are_found_at_load(tmp_path):
    model = train("ppo")
    with th.no_grad():
        model.policy.action_net.bias.fill_(float("nan"))
    model.save(tmp_path / "nan.zip")
    with pytest.raises(RefineError, match="NaN or inf in action_net.bias; choose another checkpoint"):
        load_agent(model=tmp_path / "nan.zip", env=ENV_ID)


def test_schedules_of_zero_are_restored_from_the_config(agents):
    """Loading as the Zoo does to run an agent leaves a learning rate of 0 in whatever is saved afterwards."""
    path = zip_of(agents, "ppo")
    idiom = {"learning_rate": 0.0, "lr_schedule": lambda _: 0.0, "clip_range": lambda _: 0.0}
    PPO.load(path, custom_objects=idiom, device="cpu").save(path)
    config = path.parent / ENV_ID / "config.yml"
    config.write_text("learning_rate: lin_0.004\nclip_range: 0.3\n")
    model = load_agent("ppo", ENV_ID, agents).model
    assert [model.lr_schedule(x) for x in (1.0, 0.5)] == [0.004, 0.002]
    assert model.clip_range(1.0) == 0.3
    config.write_text("policy: MlpPolicy\n")
    model = load_agent("ppo", ENV_ID, agents).model  # nothing in the config either: PPO's defaults
    assert (model.lr_schedule(1.0), model.clip_range(1.0)) == (3e-4, 0.2)


def test_an_authors_own_schedule_is_neither_run_nor_replaced(agents):
    path = zip_of(agents, "ppo")
    PPO.load(path, device="cpu", custom_objects={"learning_rate": lambda p: 1e-5 * p}).save(path)
    with pytest.raises(RefineError, match=r"learning_rate is the author's own code.*name a number in config.yml"):
        load_agent("ppo", ENV_ID, agents)
    assert load_agent("ppo", ENV_ID, agents, trust_remote_code=True).model.lr_schedule(0.5) == 5e-6
    (path.parent / ENV_ID / "config.yml").write_text("learning_rate: 0.002\n")
    assert load_agent("ppo", ENV_ID, agents).model.lr_schedule(0.5) == 0.002


def test_environment_arguments_come_from_the_agent_and_can_be_overridden(agents):
    args = agents / "ppo" / f"{ENV_ID}_1" / ENV_ID / "args.yml"
    args.write_text("env_kwargs: {g: 3.0}\n")
    assert load_agent("ppo", ENV_ID, agents).recipe.build().unwrapped.g == 3.0
    assert load_agent("ppo", ENV_ID, agents, env_kwargs={"g": 4.0}).recipe.build().unwrapped.g == 4.0


def test_a_file_cannot_have_modules_imported(agents):
    (agents / "ppo" / f"{ENV_ID}_1" / ENV_ID / "args.yml").write_text("gym_packages: [this]\n")
    with pytest.raises(RefineError, match="'this' is not imported.*add the module to `gym_packages`"):
        load_agent("ppo", ENV_ID, agents)
    assert "this" not in sys.modules


def test_statistics_of_a_zoo_folder_can_lie_elsewhere(agents, tmp_path):
    statistics = agents / "a2c" / f"{ENV_ID}_1" / ENV_ID / "vecnormalize.pkl"
    statistics.rename(tmp_path / "mine.pkl")
    assert load_agent("a2c", ENV_ID, agents, vec_normalize=tmp_path / "mine.pkl").vec_normalize is not None


def test_a_plain_zip_trained_on_normalised_observations_asks_for_its_statistics(agents, tmp_path):
    shutil.copy(zip_of(agents, "a2c"), tmp_path / "mine.zip")
    with pytest.raises(RefineError, match="trained under VecNormalize, but there is no vecnormalize.pkl"):
        load_agent(model=tmp_path / "mine", env=ENV_ID)


# ---------------------------------------------------------------- in memory


def test_a_model_brings_its_environment_and_statistics():
    agent = agent_from_model(train("a2c"))
    assert agent.recipe.build().spec.id == ENV_ID
    assert agent.vec_normalize is not None
    assert agent.vec_normalize.venv is None


@pytest.mark.parametrize(
    "env",
    [ENV_ID, lambda: gym.make(ENV_ID), gym.make(ENV_ID), make_vec_env(ENV_ID), VecNormalize(make_vec_env(ENV_ID))],
)
def test_environments_of_every_form(env):
    model = train("ppo")
    agent = agent_from_model(model, env)
    assert agent.model is model
    assert agent.env_name == ENV_ID
    assert (agent.vec_normalize is not None) == isinstance(env, VecNormalize)
    assert agent.recipe.build().spec.max_episode_steps == 200


def test_an_id_that_only_the_callers_script_registers():
    gym.register("Mine-v0", entry_point=lambda: gym.make(ENV_ID, g=3.0).unwrapped, max_episode_steps=9)
    try:
        agent = agent_from_model(train("ppo"), "Mine-v0")
        payload = cloudpickle.dumps(agent.recipe)
    finally:
        gym.registry.pop("Mine-v0")
    env = cloudpickle.loads(payload).build()
    assert (env.spec.max_episode_steps, env.unwrapped.g) == (9, 3.0)


def test_the_saved_files_describe_the_environment(tmp_path):
    env = gym.wrappers.RescaleAction(gym.make(ENV_ID, g=5.0), np.float32(-1.0), np.float32(1.0))
    model = SAC("MlpPolicy", env, buffer_size=10, device="cpu")
    save_agent(agent_from_model(model), new_run_folder(tmp_path, "sac", ENV_ID))
    agent = load_agent("sac", ENV_ID, tmp_path)
    assert agent.config["policy"] == "MlpPolicy"
    env = agent.recipe.build()
    assert env.unwrapped.g == 5.0
    assert env.action_space.high == 1.0


def test_wrappers_of_gymnasium_are_kept():
    model = SAC(
        "MlpPolicy", gym.wrappers.RescaleAction(gym.make(ENV_ID, g=5.0), -1.0, 1.0), buffer_size=10, device="cpu"
    )
    env = agent_from_model(model).recipe.build()
    assert env.action_space.high == 1.0
    assert env.unwrapped.g == 5.0


@pytest.mark.parametrize(
    ("make_env", "line"),
    [
        (
            lambda: SubprocVecEnv([lambda: Scaled(gym.make(ENV_ID), 2)]),
            "arguments of the wrapper .*Scaled are not known",
        ),
        (lambda: DummyVecEnv([lambda: Scaled(gym.make(ENV_ID), 2)]), "arguments of the wrapper .*Scaled are not known"),
        (
            lambda: gym.envs.classic_control.PendulumEnv(g=5.0),
            "PendulumEnv was not made by gymnasium.make, and its con",
        ),
        (
            lambda: make_vec_env(Own, 2, vec_env_cls=SubprocVecEnv),
            "environments <Monitor<Own instance>> of the SubprocV",
        ),
        (lambda: 5, "expected an id, a callable, a VecEnv or an environment, got int"),
    ],
)
def test_an_environment_that_cannot_be_rebuilt_is_refused_with_a_remedy(make_env, line):
    env = make_env()
    try:
        with pytest.raises(RefineError, match=line):
            agent_from_model(train("ppo"), env)
    finally:
        if hasattr(env, "close"):
            env.close()


class Own(gym.envs.classic_control.PendulumEnv):
    def __init__(self):
        super().__init__(g=5.0)


class Halved(gym.RewardWrapper):
    def reward(self, reward):
        return reward / 2


class Scaled(gym.RewardWrapper):
    def __init__(self, env, by):
        super().__init__(env)
        self.by = by

    def reward(self, reward):
        return reward * self.by


def first_reward(agent):
    env = cloudpickle.loads(cloudpickle.dumps(agent.recipe)).build()
    env.reset(seed=1)
    return env.step(np.zeros(1, np.float32))[1]


def model_of(env):
    return PPO("MlpPolicy", env, n_steps=8, batch_size=8, device="cpu", seed=0)


def test_a_wrapper_without_arguments_is_built_again():
    plain, halved = (agent_from_model(model_of(env)) for env in (gym.make(ENV_ID), Halved(gym.make(ENV_ID))))
    assert first_reward(halved) == first_reward(plain) / 2


class TwiceTheLimit(gym.wrappers.TimeLimit):
    def __init__(self, env, n):
        super().__init__(env, 2 * n)


class Tenth(gym.wrappers.TransformReward):
    def __init__(self, env):
        super().__init__(env, lambda reward: reward / 10)


class Bonus(gym.RewardWrapper):
    def __init__(self, env, *bonus):
        super().__init__(env)

    def reward(self, reward):
        return reward + 1


def test_a_wrapper_is_its_class_and_not_the_one_that_its_module_has_under_that_name():
    class Halved(gym.RewardWrapper):
        def reward(self, reward):
            return 1000.0

    assert first_reward(agent_from_model(model_of(Halved(Own())))) == 1000.0


def test_arguments_of_a_base_class_are_not_those_of_the_wrapper():
    tenth = agent_from_model(model_of(Tenth(gym.make(ENV_ID))))
    assert first_reward(tenth) == pytest.approx(first_reward(agent_from_model(model_of(gym.make(ENV_ID)))) / 10)
    with pytest.raises(RefineError, match="the arguments of the wrapper .*TwiceTheLimit are not known"):
        agent_from_model(model_of(TwiceTheLimit(gym.make(ENV_ID), 5)))
    with pytest.raises(RefineError, match="the arguments of the wrapper .*Bonus are not known"):
        agent_from_model(model_of(Bonus(gym.make(ENV_ID), 100)))


def test_environments_of_different_classes_are_refused():
    for other in (lambda: Halved(Own()), lambda: gym.make(ENV_ID)):
        with pytest.raises(RefineError, match="its 2 environments differ"):
            agent_from_model(train("ppo"), DummyVecEnv([Own, other]))


def test_processes_that_cannot_send_their_spec_are_an_error_of_one_line():
    env = SubprocVecEnv([lambda: gym.wrappers.TransformReward(gym.make(ENV_ID), lambda reward: reward)])
    with pytest.raises(RefineError, match="the processes of the SubprocVecEnv cannot tell which wrappers they have"):
        agent_from_model(train("ppo"), env)


@pytest.mark.parametrize("wrap", [lambda env: gym.wrappers.TransformReward(env, lambda reward: reward / 2), Bonus])
def test_wrappers_that_config_yml_cannot_name_are_left_out_with_a_warning(wrap, tmp_path, caplog):
    agent = agent_from_model(model_of(gym.make(ENV_ID)), lambda: wrap(gym.make(ENV_ID)))
    assert "env_wrapper" not in agent.config
    assert "config.yml: cannot name the wrapper" in caplog.text
    refiner = Refiner(agent, backend="serial", n_delta=1, acceptance=False).learn(1)
    run_folder = refiner.save(tmp_path)
    assert "PPO.load(" in refiner.report(run_folder).read_text()


def test_a_time_feature_is_written_into_the_config():
    wrapped = TimeFeatureWrapper(gym.make(ENV_ID))
    assert agent_from_model(model_of(wrapped)).config["env_wrapper"] == [
        {"sb3_contrib.common.wrappers.time_feature.TimeFeatureWrapper": {"max_steps": 200, "test_mode": False}}
    ]


def test_another_time_limit_is_warned_about(caplog):
    agent_from_model(model_of(gym.make(ENV_ID, max_episode_steps=20)), ENV_ID)
    assert "episodes of the model's own environment end after 20 steps, those of `env` after 200" in caplog.text


def test_wrappers_that_change_nothing_are_not_missed(caplog):
    env = gym.wrappers.RecordEpisodeStatistics(gym.make(ENV_ID))
    agent_from_model(model_of(VecCheckNan(DummyVecEnv([lambda: env]))), lambda: gym.wrappers.TimeLimit(Own(), 200))
    assert not caplog.records


def test_rewards_are_counted_where_the_monitor_is():
    plain, inside = (
        agent_from_model(model_of(env)) for env in (gym.make(ENV_ID), make_vec_env(ENV_ID, wrapper_class=Halved))
    )
    baselines = [
        Refiner(agent, backend="serial", n_delta=1, n_eval_episodes=2).learn(1).result.baseline
        for agent in (plain, inside)
    ]
    assert baselines[0].returns.tolist() == baselines[1].returns.tolist()


@pytest.mark.parametrize("make_env", [Own, lambda: make_vec_env(Own, 2), lambda: Halved(Own())])
def test_an_environment_whose_class_takes_no_arguments_is_built_again(make_env):
    agent = agent_from_model(model_of(make_env()))
    assert (agent.env_name, agent.recipe.build().unwrapped.g) == ("Own", 5.0)


def test_wrappers_that_the_given_environment_lacks_are_warned_about(caplog):
    model = model_of(Halved(gym.make(ENV_ID)))
    agent_from_model(model, lambda: Halved(gym.make(ENV_ID)))
    assert not caplog.records
    agent_from_model(model, ENV_ID)
    assert "the model's own environment has Halved, which `env` has not" in caplog.text


def test_the_saved_files_name_wrappers_without_arguments():
    assert agent_from_model(model_of(Halved(gym.make(ENV_ID)))).config["env_wrapper"] == [{f"{__name__}.Halved": {}}]


def test_a_model_without_an_environment_asks_for_one(made_agents):
    with pytest.raises(RefineError, match="loaded without an environment; pass its id or a callable"):
        agent_from_model(PPO.load(zip_of(made_agents, "ppo"), device="cpu"))


# ---------------------------------------------------------------- saving


def refined(folder, algo, tmp_path):
    """An agent that a search has moved, saved."""
    refiner = Refiner(load_agent(algo, ENV_ID, folder), backend="serial", acceptance=False, n_delta=1)
    refiner.learn(n_updates=2)
    return refiner, refiner.save(tmp_path / "refined")


@pytest.mark.parametrize("algo", MADE)
def test_a_saved_agent_differs_in_the_searched_parameters_only(made_agents, tmp_path, algo):
    """Critics, optimizer states, counters, schedules: all of the original."""
    refiner, run_folder = refined(made_agents, algo, tmp_path)
    cls = MADE[algo][0]
    before, after = (cls.load(p, device="cpu") for p in (zip_of(made_agents, algo), run_folder / f"{ENV_ID}.zip"))
    searched = refiner.parameters.names
    assert_equal_states(state_of(before), state_of(after), but=searched)
    for name in searched:
        assert not th.equal(before.policy.state_dict()[name], after.policy.state_dict()[name])
    assert (before.num_timesteps, before.lr_schedule(1.0)) == (after.num_timesteps, after.lr_schedule(1.0))
    action = refiner.model.predict(OBSERVATIONS, deterministic=True)[0]
    assert np.array_equal(after.predict(OBSERVATIONS, deterministic=True)[0], action)


@pytest.mark.parametrize("algo", MADE)
def test_training_continues_from_a_saved_agent(made_agents, tmp_path, algo):
    _, run_folder = refined(made_agents, algo, tmp_path)
    env = make_vec_env(ENV_ID)
    if algo == "a2c":
        env = VecNormalize.load(str(run_folder / ENV_ID / "vecnormalize.pkl"), env)
        assert env.training
    model = MADE[algo][0].load(run_folder / f"{ENV_ID}.zip", env=env, device="cpu")
    assert model.lr_schedule(1.0) == 3e-4
    if algo == "ppo":
        assert model.clip_range(1.0) == 0.2
    before = state_of(model)
    before = {name: value.clone() for name, value in before.items() if isinstance(value, th.Tensor)}
    model.learn(64)
    assert any(not th.equal(value, state_of(model)[name]) for name, value in before.items())


def test_a_saved_agent_loads_where_this_package_does_not_exist(made_agents, tmp_path):
    _, run_folder = refined(made_agents, "a2c", tmp_path)
    script = (
        "import sys; sys.modules['sb3_refine'] = None; sys.modules['rl_zoo3'] = None\n"
        "from stable_baselines3 import A2C\n"
        "from stable_baselines3.common.env_util import make_vec_env\n"
        "from stable_baselines3.common.vec_env import VecNormalize\n"
        f"env = VecNormalize.load({str(run_folder / ENV_ID / 'vecnormalize.pkl')!r}, make_vec_env({ENV_ID!r}))\n"
        f"model = A2C.load({str(run_folder / ENV_ID)!r} + '.zip', env=env, device='cpu')\n"
        "print(model.predict(env.reset(), deterministic=True)[0].shape)\n"
    )
    done = run_script(script)
    assert (done.returncode, done.stdout) == (0, "(1, 1)\n"), done.stderr
    with zipfile.ZipFile(run_folder / f"{ENV_ID}.zip") as archive:
        assert b"sb3_refine" not in archive.read("data")
    assert b"sb3_refine" not in (run_folder / ENV_ID / "vecnormalize.pkl").read_bytes()


@pytest.mark.slow
def test_the_zoos_enjoy_runs_on_a_saved_agent(made_agents, tmp_path):
    pytest.importorskip("rl_zoo3")
    for algo in ("a2c", "tqc"):
        refined(made_agents, algo, tmp_path)
        command = [sys.executable, "-m", "rl_zoo3.enjoy", "--algo", algo, "--env", ENV_ID]
        command += ["-f", str(tmp_path / "refined"), "--no-render", "-n", "401"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        assert "2 Episodes" in done.stdout


def test_save_and_load_round_trip(made_agents, tmp_path):
    agent = load_agent("a2c", ENV_ID, made_agents)
    save_agent(agent, new_run_folder(tmp_path, "a2c", ENV_ID))
    copy = load_agent("a2c", ENV_ID, tmp_path)
    assert_equal_states(state_of(agent.model), state_of(copy.model))
    assert copy.config == agent.config
    assert np.array_equal(copy.vec_normalize.obs_rms.var, agent.vec_normalize.obs_rms.var)


def test_nothing_is_overwritten(tmp_path):
    folders = [new_run_folder(tmp_path, "ppo", ENV_ID) for _ in range(3)]
    assert [folder.name for folder in folders] == [f"{ENV_ID}_{k}" for k in (1, 2, 3)]


def test_an_output_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RefineError, match="output: cannot write to .*; choose another folder"):
        new_run_folder(tmp_path / "file", "ppo", ENV_ID)


def test_a_failed_write_leaves_the_last_good_copy(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("good")
    with pytest.raises(OSError, match="disk full"), atomic_path(path) as temporary:
        temporary.write_text("ha")
        raise OSError("disk full")
    assert path.read_text() == "good"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space"), r"it cannot be written to .*No space\); is the disk full\?$"),
        (RuntimeError("unexpected pos 64 vs 0"), r"it cannot be written to .*unexpected pos.*is the disk full\?$"),
        (OSError(errno.EACCES, "Permission denied"), r"it cannot be written to .*denied\); choose another folder$"),
    ],
)
def test_files_that_cannot_be_written_are_an_error_with_a_remedy(error, line, tmp_path):
    with pytest.raises(RefineError, match=line), reraise_write_errors("it", tmp_path):
        raise error


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path):
    with pytest.raises(NotImplementedError, match="no save"), reraise_write_errors("it", tmp_path):
        raise NotImplementedError("no save")  # which is a RuntimeError


def test_files_of_an_old_agent_are_saved_in_todays_format(zoo_agents, tmp_path):
    """The legacy gym is needed neither to load nor afterwards; the old id gives way to the one that exists."""
    pytest.importorskip("Box2D")
    agent = load_agent("ppo", "LunarLanderContinuous-v2", zoo_agents)
    assert agent.env_name == "LunarLanderContinuous-v3"
    path = save_agent(agent, new_run_folder(tmp_path, "ppo", agent.env_name))
    with zipfile.ZipFile(path) as archive:
        assert json.loads(archive.read("data"))["observation_space"][":type:"] == "<class 'gymnasium.spaces.box.Box'>"
    model = PPO.load(path, device="cpu")
    assert (model.lr_schedule(1.0), model.clip_range(1.0)) == (0.0003, 0.2)
    assert load_agent("ppo", "LunarLanderContinuous-v3", tmp_path).args["env"] == "LunarLanderContinuous-v3"
