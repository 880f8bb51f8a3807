"""Every kind of agent: load, refine, save, load again; and the returns are those that evaluate_policy shows."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import sb3_contrib
import stable_baselines3
import torch
import toy_envs  # registers its environments
import yaml
from conftest import ZOO_AGENTS, run_policy, target_of
from fresh import run_script
from sb3_contrib.common.maskable.evaluation import evaluate_policy as evaluate_maskable_policy
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecNormalize

from sb3_refine import RefineError, Refiner, load_agent, plan, refine
from sb3_refine.agents.agent import save_agent
from sb3_refine.agents.zoo import new_run_folder
from sb3_refine.envs.normalisation import Normalised
from sb3_refine.envs.spec import EnvRecipe
from sb3_refine.evaluation.calibration import N_CALIBRATION_EPISODES
from sb3_refine.evaluation.comparison import evaluate_all
from sb3_refine.evaluators import RolloutTask, SerialEvaluator
from sb3_refine.policies.base import one_thread
from sb3_refine.policies.choice import rollout_policy
from sb3_refine.policies.exact import ExactPolicy
from sb3_refine.policies.parameters import PolicyParameters
from sb3_refine.rollouts.metrics import SMOOTHNESS

ON = {"n_steps": 32, "device": "cpu", "seed": 0}
PPO = {**ON, "batch_size": 32, "n_epochs": 1}
OFF = {"learning_starts": 20, "buffer_size": 500, "batch_size": 16, "device": "cpu", "seed": 0}
NET = {"policy_kwargs": {"net_arch": [16]}}
CNN = {"policy_kwargs": {"features_extractor_kwargs": {"features_dim": 16}, "net_arch": [16]}}
MULTI = {"policy_kwargs": {"features_extractor_kwargs": {"cnn_output_dim": 8}, "net_arch": [16]}}
LSTM = {"policy_kwargs": {"lstm_hidden_size": 8, "net_arch": [16]}}
ARS = {"n_delta": 2, "device": "cpu", "seed": 0}

KINDS = {
    # name: (algorithm, class, policy, environment, arguments, config.yml)
    "ars": ("ars", "ARS", "MlpPolicy", "Pendulum-v1", {**ARS, **NET}, {}),
    "ars linear": ("ars", "ARS", "LinearPolicy", "Pendulum-v1", {**ARS, "zero_policy": False}, {"normalize": True}),
    "crossq": ("crossq", "CrossQ", "MlpPolicy", "Pendulum-v1", {**OFF, **NET}, {}),
    "lstm": ("ppo_lstm", "RecurrentPPO", "MlpLstmPolicy", "Pendulum-v1", {**PPO, **LSTM}, {"normalize": True}),
    "lstm, discrete": ("ppo_lstm", "RecurrentPPO", "MlpLstmPolicy", "CartPole-v1", {**PPO, **LSTM}, {}),
    "masked": ("ppo_mask", "MaskablePPO", "MlpPolicy", "MaskedToy-v0", {**PPO, **NET}, {}),
    "image": ("ppo", "PPO", "CnnPolicy", "ImageToy-v0", {**PPO, **CNN}, {}),
    "image, dqn": ("dqn", "DQN", "CnnPolicy", "ImageToy-v0", {**OFF, **CNN}, {}),
    "image, qrdqn": ("qrdqn", "QRDQN", "CnnPolicy", "ImageToy-v0", {**OFF, **CNN}, {}),
    "frame stack": ("ppo", "PPO", "CnnPolicy", "ImageToy-v0", {**PPO, **CNN}, {"frame_stack": 3}),
    "frame stack, normalised": (
        *("a2c", "A2C", "MlpPolicy", "Pendulum-v1", {**ON, **NET}, {"frame_stack": 2, "normalize": True}),
    ),
    "vec_env_wrapper": (
        "a2c",
        "A2C",
        "MlpPolicy",
        "Pendulum-v1",
        ON,
        {"vec_env_wrapper": {"toy_envs.Halved": {"by": 4}}},
    ),
    "dict with image": ("sac", "SAC", "MultiInputPolicy", "DictToy-v0", {**OFF, **MULTI}, {}),
    "multi-discrete": ("a2c", "A2C", "MlpPolicy", "MultiDiscreteToy-v0", ON, {"normalize": True}),
    "multi-binary": ("ppo", "PPO", "MlpPolicy", "MultiBinaryToy-v0", PPO, {}),
    "discrete observations": ("ppo", "PPO", "MlpPolicy", "DiscreteToy-v0", PPO, {}),
    "lives": ("ppo", "PPO", "MlpPolicy", "LivesToy-v0", PPO, {"env_wrapper": ["toy_envs.Lives"]}),
    "lives, frame stack": (
        *("ppo", "PPO", "MlpPolicy", "LivesToy-v0", PPO, {"env_wrapper": ["toy_envs.Lives"], "frame_stack": 3}),
    ),
    "image, normalised": ("ppo", "PPO", "MlpPolicy", "ImageToy-v0", {**PPO, **NET}, {"normalize": True}),
    "memory optimised": (
        *("dqn", "DQN", "MlpPolicy", "CartPole-v1"),
        *(
            {
                **OFF,
                **NET,
                "optimize_memory_usage": True,
                "replay_buffer_kwargs": {"handle_timeout_termination": False},
            },
            {},
        ),
    ),
    "gSDE": ("ppo", "PPO", "MlpPolicy", "Pendulum-v1", {**PPO, "use_sde": True}, {}),
    "shared extractor": ("a2c", "A2C", "CnnPolicy", "ImageToy-v0", {**ON, **CNN}, {}),
    "extractors apart": (
        *("ppo", "PPO", "CnnPolicy", "ImageToy-v0"),
        *({**PPO, "policy_kwargs": {**CNN["policy_kwargs"], "share_features_extractor": False}}, {}),
    ),
    "squashed": (
        "a2c",
        "A2C",
        "MlpPolicy",
        "Pendulum-v1",
        {**ON, "use_sde": True, "policy_kwargs": {"squash_output": True}},
        {},
    ),
}

FEW = ("ars linear", "lstm", "frame stack, normalised", "memory optimised", "dict with image")
SOME_FAST = [pytest.param(kind, marks=() if kind in FEW else pytest.mark.slow) for kind in KINDS]
"""All kinds, most of them slow: for what does not depend on the kind in many ways."""

SEEDS = [11, 12, 13, 14]


def vec_env_of(env_id, config, **kwargs):
    """As the Zoo builds it."""
    wrapper = toy_envs.Lives if config.get("env_wrapper") else None
    env = make_vec_env(env_id, seed=0, wrapper_class=wrapper, **kwargs)
    if config.get("vec_env_wrapper"):
        env = toy_envs.Halved(env, by=4)
    if config.get("normalize"):
        env = VecNormalize(env)
    return VecFrameStack(env, config["frame_stack"]) if config.get("frame_stack") else env


def make(kind, folder):
    """Train for a few steps and save in the Zoo's layout."""
    algo, name, policy, env_id, kwargs, config = KINDS[kind]
    env = vec_env_of(env_id, config)
    cls = getattr(sb3_contrib, name, None) or getattr(stable_baselines3, name)
    kwargs = {**kwargs, "policy_kwargs": dict(kwargs.get("policy_kwargs", {}))}  # SB3 writes into it
    model = cls(policy, env, **kwargs).learn(64)
    run_folder = folder / algo / f"{env_id}_1"
    (run_folder / env_id).mkdir(parents=True)
    model.save(run_folder / f"{env_id}.zip")
    (run_folder / env_id / "config.yml").write_text(yaml.safe_dump({"policy": policy, **config}))
    (run_folder / env_id / "args.yml").write_text(yaml.safe_dump({"env": env_id, "gym_packages": ["toy_envs"]}))
    if config.get("normalize"):
        model.get_vec_normalize_env().save(str(run_folder / env_id / "vecnormalize.pkl"))
    return algo, env_id, config


def load(folder, algo, env_id):
    return load_agent(algo, env_id, folder, gym_packages=["toy_envs"])


@pytest.mark.parametrize("kind", SOME_FAST)
def test_every_kind_goes_through_load_refine_save_and_load(kind, tmp_path):
    algo, env_id, config = make(kind, tmp_path / "in")
    agent = load(tmp_path / "in", algo, env_id)
    assert agent.algo == algo
    refiner = Refiner(agent, n_delta=4, n_eval_episodes=3, acceptance=False, n_workers=2, delta_std=1.0)
    before = refiner.parameters.get_theta()
    refiner.learn(2)
    assert not np.array_equal(refiner.parameters.get_theta(), before)
    refiner.save(tmp_path / "out")
    again = load(tmp_path / "out", algo, env_id)
    space = refiner.model.observation_space
    space.seed(0)
    for _ in range(10):
        observation = space.sample()
        ours, theirs = (x.predict(observation, deterministic=True)[0] for x in (refiner.model, again.model))
        assert np.array_equal(ours, theirs)
    assert {k: again.config.get(k) for k in config} == {k: agent.config.get(k) for k in config}


DISCRETE = [
    pytest.param(kind, marks=() if kind == "masked" else pytest.mark.slow)
    for kind in (
        *("masked", "image", "image, dqn", "image, qrdqn", "frame stack", "discrete observations", "lives"),
        *("lives, frame stack", "image, normalised", "memory optimised"),
    )
]


@pytest.mark.parametrize("kind", DISCRETE)
def test_every_discrete_kind_learns_from_planning(kind, tmp_path):
    algo, env_id, _ = make(kind, tmp_path / "in")
    agent = load(tmp_path / "in", algo, env_id)
    settings = {"n_simulations": 3, "n_rounds": 1, "n_episodes": 2, "n_gradient_steps": 3, "n_eval_episodes": 3}
    found = plan(agent, **settings, backend="serial")
    ours, theirs = (list(each.model.policy.parameters()) for each in found.agents)
    assert not all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))
    found.save(run_folder=tmp_path / "out" / algo / f"{env_id}_1")
    load(tmp_path / "out", algo, env_id)


@pytest.mark.parametrize("kind", SOME_FAST)
def test_the_return_for_a_seed_is_that_of_evaluate_policy(kind, tmp_path):
    algo, env_id, config = make(kind, tmp_path)
    agent = load(tmp_path, algo, env_id)
    refiner = Refiner(agent, backend="serial")
    with SerialEvaluator(refiner.make_task()) as evaluator:
        ours = [e.episode_return for e in run_policy(evaluator, refiner.parameters.get_theta(), SEEDS)]
    evaluate = evaluate_maskable_policy if algo == "ppo_mask" else evaluate_policy
    theirs = []
    with one_thread():
        for seed in SEEDS:
            env = vec_env_of(env_id, config)  # one that is used again may not heed its seed, after a lost life
            if config.get("normalize"):
                normalize = env.venv if isinstance(env, VecFrameStack) else env
                normalize.obs_rms, normalize.training, normalize.norm_reward = agent.vec_normalize.obs_rms, False, False
            env.seed(seed)
            theirs += evaluate(agent.model, env, 1, return_episode_rewards=True, warn=False)[0]
    assert ours == pytest.approx(theirs, abs=1e-5)  # Monitor rounds
    assert len(set(ours)) > 1


@pytest.mark.parametrize(
    ("cls", "policy", "n_stack"),
    [(stable_baselines3.PPO, "MlpPolicy", 3), (sb3_contrib.RecurrentPPO, "MlpLstmPolicy", None)],
)
def test_the_state_of_an_lstm_is_reset_after_a_lost_life(cls, policy, n_stack):
    env = make_vec_env("LivesToy-v0", wrapper_class=toy_envs.Lives)
    model = cls(policy, VecFrameStack(env, n_stack) if n_stack else env, device="cpu", seed=0)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.mul_(3)  # what is remembered shows in the action
    config = {"frame_stack": n_stack} if n_stack else {}
    theirs = []
    with one_thread():
        for seed in range(6):
            vec_env = vec_env_of("LivesToy-v0", {**config, "env_wrapper": True})
            vec_env.seed(seed)
            theirs += evaluate_policy(model, vec_env, 1, return_episode_rewards=True, warn=False)[0]
    wrappers = (partial(VecFrameStack, n_stack=n_stack),) if n_stack else ()
    recipe = EnvRecipe("LivesToy-v0", wrappers=(("toy_envs.Lives", {}),), vec_wrappers=wrappers)
    parameters = PolicyParameters(model.policy)
    task = RolloutTask(recipe, rollout_policy(model, parameters, None, model.observation_space))
    with SerialEvaluator(task) as evaluator:
        ours = [episode.episode_return for episode in run_policy(evaluator, parameters.get_theta(), range(6))]
    assert ours == pytest.approx(theirs, abs=1e-5)  # Monitor rounds


def test_a_wrapper_that_ends_every_episode_at_once_is_an_error(made_agents):
    """As where gymnasium's own TimeLimit is in config.yml: evaluate_policy would go on for ever."""
    agent = load_agent("ppo", "Pendulum-v1", made_agents)
    agent.recipe = EnvRecipe("Pendulum-v1", wrappers=(("gymnasium.wrappers.TimeLimit", {"max_episode_steps": 5}),))
    with pytest.raises(RefineError, match="env_wrapper: a wrapper has ended an episode 1000 times, and the env"):
        Refiner(agent, backend="serial", n_delta=2, n_eval_episodes=2).learn(1)


@pytest.mark.parametrize("kind", ["dict with image", "masked", "multi-binary", "multi-discrete", "image", "lstm"])
def test_every_kind_can_be_evaluated_with_noise(kind, tmp_path):
    algo, env_id, _ = make(kind, tmp_path)
    who = {"agent": target_of(load(tmp_path, algo, env_id))}
    conditions = evaluate_all(who, SEEDS, SMOOTHNESS)
    returns = {condition: found["agent"].returns for condition, found in conditions.items()}
    assert all(np.isfinite(values).all() for values in returns.values())
    assert not np.array_equal(returns["no noise"], returns["action noise 10%"])
    assert ("observation noise 10%" in returns) == (kind not in ("image",))


def test_which_kinds_run_on_the_exact_policy(tmp_path):
    exact = {"ars", "ars linear", "vec_env_wrapper", "frame stack, normalised", "gSDE", "squashed", "lives"}
    for kind in sorted(exact):
        algo, env_id, _ = make(kind, tmp_path / kind.replace(" ", "-"))
        agent = load(tmp_path / kind.replace(" ", "-"), algo, env_id)
        assert type(Refiner(agent).make_task().policy) is ExactPolicy, kind


def test_ars_trains_on_from_the_refined_parameters(tmp_path):
    algo, env_id, _ = make("ars linear", tmp_path)
    refiner = refine(load(tmp_path, algo, env_id), n_updates=1, n_delta=2, acceptance=False, n_workers=1)
    assert np.array_equal(refiner.model.weights.numpy(), refiner.parameters.get_theta())


@pytest.mark.parametrize("subproc", [False, True])
def test_a_model_in_memory_with_its_vec_envs(subproc, tmp_path):
    env = make_vec_env("Pendulum-v1", 2, vec_env_cls=SubprocVecEnv if subproc else None)
    env = VecFrameStack(VecNormalize(env), 2)
    try:
        model = stable_baselines3.A2C("MlpPolicy", env, **ON).learn(64)
        refiner = refine(model, n_updates=1, n_delta=2, n_eval_episodes=2, n_workers=1)
    finally:
        env.close()
    assert refiner.agent.vec_normalize.obs_rms.mean.shape == (3,)
    assert refiner.agent.observation_space.shape == (6,)
    assert refiner.agent.env_name == "Pendulum-v1"
    refiner.save(tmp_path)
    again = Refiner(load_agent("a2c", "Pendulum-v1", tmp_path), backend="serial")
    assert episodes_of(again) == episodes_of(refiner)


def episodes_of(refiner):
    refiner.agent.recipe.build().close()
    with SerialEvaluator(refiner.make_task()) as evaluator:
        return run_policy(evaluator, refiner.parameters.get_theta(), SEEDS)


@pytest.mark.parametrize(
    "make_env",
    [
        partial(gym.make, "Pendulum-v1", max_episode_steps=50),
        lambda: gym.wrappers.ClipReward(Monitor(gym.make("Pendulum-v1")), -1, 0),
        lambda: gym.wrappers.ReshapeObservation(gym.make("Pendulum-v1"), (1, 3)),
    ],
    ids=["time limit", "clipped rewards outside a Monitor", "an argument that is a tuple"],
)
def test_the_refined_model_in_memory_is_the_saved_one(make_env, tmp_path):
    model = stable_baselines3.PPO("MlpPolicy", DummyVecEnv([make_env]), **PPO)
    refiner = Refiner(model, backend="serial", acceptance=False, n_delta=1).learn(1)
    refiner.save(tmp_path)
    again = Refiner(load_agent("ppo", "Pendulum-v1", tmp_path), backend="serial")
    assert episodes_of(again) == episodes_of(refiner)


def test_rewards_are_counted_at_the_position_of_the_monitor():
    env = DummyVecEnv([lambda: gym.wrappers.ClipReward(Monitor(gym.make("Pendulum-v1")), -1, 0)])
    model = stable_baselines3.PPO("MlpPolicy", env, **PPO)
    ours = [episode.episode_return for episode in episodes_of(Refiner(model, backend="serial"))]
    theirs = []
    with one_thread():
        for seed in SEEDS:
            env.seed(seed)
            theirs += evaluate_policy(model, env, 1, return_episode_rewards=True)[0]
    assert ours == pytest.approx(theirs, abs=1e-5)


def test_environments_that_differ_are_refused():
    env = DummyVecEnv([lambda: gym.make("Pendulum-v1", g=9.0), lambda: gym.make("Pendulum-v1", g=2.0)])
    with pytest.raises(RefineError, match="its 2 environments differ; pass `env=`: a callable"):
        Refiner(stable_baselines3.PPO("MlpPolicy", env, **PPO))


def test_statistics_around_a_frame_stack_cannot_be_saved():
    env = VecNormalize(VecFrameStack(make_vec_env("Pendulum-v1"), 2))
    with pytest.raises(RefineError, match="VecNormalize around a VecFrameStack cannot be written"):
        Refiner(stable_baselines3.PPO("MlpPolicy", env, **PPO))


TRAIN_ON = """
import sys, yaml
import stable_baselines3, sb3_contrib
from pathlib import Path
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
sys.modules["sb3_refine"] = None
name, folder, env_id = sys.argv[1:]
if "Panda" in env_id: import panda_gym
wrapper = None
config = (Path(folder) / env_id / "config.yml").read_text()
if "TimeFeatureWrapper" in config:
    from sb3_contrib.common.wrappers import TimeFeatureWrapper as wrapper
env = make_vec_env(env_id, wrapper_class=wrapper)
if (Path(folder) / env_id / "vecnormalize.pkl").exists():
    env = VecNormalize.load(str(Path(folder) / env_id / "vecnormalize.pkl"), env)
cls = getattr(sb3_contrib, name, None) or getattr(stable_baselines3, name)
model = cls.load(Path(folder) / f"{env_id}.zip", env=env, device="cpu")
if hasattr(model, "learning_starts"):
    model.learning_starts = model.num_timesteps + 100  # hindsight replay needs a whole episode first
model.learn(150, reset_num_timesteps=False)
"""


@pytest.mark.parametrize(
    ("algo", "env", "module"),
    [
        ("a2c", "BipedalWalker-v3", "Box2D"),
        pytest.param("her", "PandaReach-v1", "panda_gym", marks=pytest.mark.slow),
        pytest.param("tqc", "PandaReach-v1", "panda_gym", marks=pytest.mark.slow),
        pytest.param("ppo", "LunarLanderContinuous-v2", "Box2D", marks=pytest.mark.slow),
        pytest.param("ars", "Hopper-v3", "mujoco", marks=pytest.mark.slow),
    ],
)
def test_training_continues_from_an_old_agent_with_plain_sb3(zoo_agents, tmp_path, algo, env, module):
    pytest.importorskip(module)
    agent = load_agent(algo, env, zoo_agents)
    run_folder = new_run_folder(tmp_path, agent.algo, agent.env_name)
    save_agent(agent, run_folder)
    done = run_script(TRAIN_ON, type(agent.model).__name__, run_folder, agent.env_name)
    assert done.returncode == 0, done.stderr[-1000:]


def test_a_huge_replay_buffer_is_not_allocated(tmp_path):
    model = stable_baselines3.DQN(
        "CnnPolicy", "ImageToy-v0", **{**OFF, **CNN, "policy_kwargs": dict(CNN["policy_kwargs"])}
    )
    model.buffer_size = 100_000_000  # 260 GB
    model.save(tmp_path / "dqn.zip")
    agent = load_agent(model=tmp_path / "dqn.zip", env="ImageToy-v0", gym_packages=["toy_envs"])
    assert agent.model.buffer_size == 100_000_000
    assert agent.model.replay_buffer.buffer_size == 1


def test_a_checkpoint_has_its_own_statistics(tmp_path):
    env = VecNormalize(make_vec_env("Pendulum-v1"))
    callback = CheckpointCallback(50, str(tmp_path), save_vecnormalize=True)
    model = stable_baselines3.SAC("MlpPolicy", env, **OFF).learn(150, callback=callback)
    env.save(str(tmp_path / "vecnormalize.pkl"))
    model.save(tmp_path / "last.zip")
    counts = []
    for name in ("rl_model_50_steps.zip", "rl_model_100_steps.zip", "last.zip"):
        counts.append(load_agent(model=tmp_path / name, env="Pendulum-v1").vec_normalize.obs_rms.count)
    assert counts == sorted(set(counts))


def test_statistics_that_the_config_does_not_use_are_ignored(tmp_path):
    algo, env_id, _ = make("lstm", tmp_path)
    config = tmp_path / algo / f"{env_id}_1" / env_id / "config.yml"
    config.write_text(yaml.safe_dump({"policy": "MlpLstmPolicy", "normalize": False, "env_kwargs": {"g": 5.0}}))
    args = {"env_kwargs": {"render_mode": "human", "max_episode_steps": 50}}
    (config.parent / "args.yml").write_text(yaml.safe_dump(args))
    agent = load(tmp_path, algo, env_id)
    assert agent.vec_normalize is None
    assert agent.recipe.env_kwargs == {"g": 5.0, "max_episode_steps": 50}
    config.write_text(yaml.safe_dump({"policy": "MlpLstmPolicy", "normalize": True}))
    assert load(tmp_path, algo, env_id).vec_normalize is not None
    assert load_agent(algo, env_id, tmp_path, no_vec_normalize=True).vec_normalize is None


def test_wrappers_that_write_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    algo, env_id, _ = make("gSDE", tmp_path)
    victim = tmp_path / "victim.monitor.csv"
    victim.write_text("precious")
    config = {"env_wrapper": [{"stable_baselines3.common.monitor.Monitor": {"filename": "victim"}}]}
    (tmp_path / algo / f"{env_id}_1" / env_id / "config.yml").write_text(yaml.safe_dump(config))
    with pytest.raises(RefineError, match="Monitor writes files or opens a window: not for rollouts; take it out"):
        load(tmp_path, algo, env_id)
    assert victim.read_text() == "precious"


def test_a_module_that_only_the_agent_names_is_not_imported(tmp_path):
    algo, env_id, _ = make("gSDE", tmp_path)
    folder = tmp_path / algo / f"{env_id}_1"
    (folder / env_id / "args.yml").write_text(yaml.safe_dump({"env": "evil:Pendulum-v1"}))
    with pytest.raises(RefineError, match="the module 'evil' is not imported.*add the module to `gym_packages`"):
        load_agent(model=folder / f"{env_id}.zip")


def test_images_in_memory():
    env = VecFrameStack(make_vec_env("ImageToy-v0", 1), 2)
    model = stable_baselines3.PPO("CnnPolicy", env, **{**PPO, **CNN, "policy_kwargs": dict(CNN["policy_kwargs"])})
    refiner = refine(model, n_updates=1, n_delta=1, n_eval_episodes=2, n_workers=1)
    assert refiner.result.rollouts == N_CALIBRATION_EPISODES + 2 + 2 + 2 * 2  # search, validation, test
    assert refiner.agent.observation_space.shape == (36, 36, 2)


def test_an_environment_that_cannot_be_built_again_is_refused_with_a_remedy():
    model = stable_baselines3.PPO("MlpPolicy", toy_envs.Halved(make_vec_env("Pendulum-v1")), **PPO)
    with pytest.raises(RefineError, match="a Halved cannot be built again in a worker; pass `env=`: a callable"):
        Refiner(model)
    make_env = partial(gym.make, "Pendulum-v1")
    assert Refiner(model, make_env).agent.env_name == "Pendulum-v1"


@pytest.mark.slow
def test_atari_is_built_as_in_the_zoo(tmp_path):
    """AtariWrapper and a stack of four frames, from life to life: the true return, as evaluate_policy counts it."""
    ale_py = pytest.importorskip("ale_py")
    pytest.importorskip("cv2")
    gym.register_envs(ale_py)
    env_id = "SpaceInvadersNoFrameskip-v4"
    model = stable_baselines3.PPO("CnnPolicy", VecFrameStack(make_atari_env(env_id), 4), **PPO)
    with torch.no_grad():
        model.policy.action_net.bias[1] = 100.0  # shoots all the time
    folder = tmp_path / "ppo" / f"{env_id}_1" / env_id
    folder.mkdir(parents=True)
    wrapper = "stable_baselines3.common.atari_wrappers.AtariWrapper"
    (folder / "config.yml").write_text(yaml.safe_dump({"frame_stack": 4, "env_wrapper": [wrapper]}))
    model.save(folder.parent / f"{env_id}.zip")
    ours = [e.episode_return for e in episodes_of(Refiner(load_agent("ppo", env_id, tmp_path), backend="serial"))]
    theirs = []
    with one_thread():
        for seed in SEEDS:
            env = VecFrameStack(make_atari_env(env_id), 4)
            env.seed(seed)
            theirs += evaluate_policy(model, env, 1, return_episode_rewards=True)[0]
    assert ours == theirs
    assert max(ours) > 0


ZOO = sorted(path for path in ZOO_AGENTS.glob("*/*_1/*.zip") if path.stem == path.parent.name.removesuffix("_1"))


@pytest.mark.slow
@pytest.mark.parametrize("path", ZOO, ids=lambda path: f"{path.parent.parent.name} {path.stem}")
def test_the_return_for_a_seed_is_that_of_evaluate_policy_on_every_zoo_agent(path):
    """The whole way: exact policy, accelerated step, remedies, against the Zoo's VecEnv with Monitor."""
    try:
        agent = load_agent(path.parent.parent.name, model=path)
    except RefineError as error:
        pytest.skip(str(error))  # a package of its environment is missing
    refiner = Refiner(agent, backend="serial")
    task = refiner.make_task()
    assert type(task.policy) is ExactPolicy
    with SerialEvaluator(task) as evaluator:
        ours = [e.episode_return for e in run_policy(evaluator, refiner.parameters.get_theta(), SEEDS[:2])]
    theirs = []
    with one_thread():
        for seed in SEEDS[:2]:
            env = make_vec_env(agent.recipe.build)
            if agent.vec_normalize is not None:
                env = Normalised(agent.vec_normalize)(env)
            env.seed(seed)
            theirs += evaluate_policy(agent.model, env, 1, return_episode_rewards=True, warn=False)[0]
            env.close()
    assert ours == pytest.approx(theirs, abs=1e-5)  # Monitor rounds
