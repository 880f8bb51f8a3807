"""``Trainer`` and ``--method train``: an agent is trained on, and its checkpoints are judged."""

import json

import numpy as np
import pytest
import stable_baselines3
import torch
from conftest import ENV_ID, NORMALIZED
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import LinearSchedule
from test_kinds import SOME_FAST, load, make

from sb3_refine import RefineError, Trainer, load_agent
from sb3_refine.cli.main import main
from sb3_refine.stopwatch import Stopwatch
from sb3_refine.training import continuation
from sb3_refine.training.checkpoints import Checkpoints
from sb3_refine.training.continuation import Continuation, TrainSettings

FAST = {"n_eval_episodes": 4, "backend": "serial", "seed": 3}
NO_WARM_UP = TrainSettings(n_warm_up=0)


def parameters_of(model):
    """All tensors of the policy, those of the critics included."""
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def train_on(agent, folder, slices, settings=NO_WARM_UP, restart=False):
    """Train for some slices; with ``restart``, in a new process, as far as files are concerned, for each."""
    checkpoints = Checkpoints(folder, agent, {"objective": "return"})
    training = Continuation(agent, settings, seed=1)
    for number, n_steps in enumerate(slices):
        if restart and number:
            training = Continuation(agent, settings, seed=1)
            checkpoints.restore(training)
        training.advance(n_steps, CallbackList([]))
        checkpoints.take(training, Stopwatch())
    return checkpoints.agents()[-1].agent


@pytest.mark.parametrize("kind", SOME_FAST)
def test_every_kind_is_trained_on_and_resumes_to_the_same_bits(kind, tmp_path):
    algo, env_id, _ = make(kind, tmp_path / "in")
    agent = load(tmp_path / "in", algo, env_id)
    before = parameters_of(agent.model)
    whole = train_on(agent, tmp_path / "whole", [64, 64])
    resumed = train_on(agent, tmp_path / "resumed", [64, 64], restart=True)
    assert same(parameters_of(whole.model), parameters_of(resumed.model))
    assert not same(parameters_of(whole.model), before)
    assert same(parameters_of(agent.model), before)
    assert whole.model.num_timesteps >= agent.model.num_timesteps + 128
    if agent.vec_normalize is not None:
        assert np.array_equal(whole.vec_normalize.obs_rms.mean, resumed.vec_normalize.obs_rms.mean)
        assert whole.vec_normalize.obs_rms.count > agent.vec_normalize.obs_rms.count


@pytest.mark.slow
def test_hindsight_experience_replay_resumes_to_the_same_bits(tmp_path):
    from stable_baselines3.common.envs import BitFlippingEnv

    model = stable_baselines3.SAC(
        "MultiInputPolicy",
        BitFlippingEnv(n_bits=4, continuous=True, max_steps=4),
        replay_buffer_class=stable_baselines3.HerReplayBuffer,
        **{"learning_starts": 20, "buffer_size": 500, "batch_size": 16, "seed": 0, "device": "cpu"},
    ).learn(64)
    agent = Trainer(model, lambda: BitFlippingEnv(n_bits=4, continuous=True, max_steps=4), **FAST).agent
    whole = train_on(agent, tmp_path / "whole", [30, 30], TrainSettings(n_warm_up=40))
    resumed = train_on(agent, tmp_path / "resumed", [30, 30], TrainSettings(n_warm_up=40), restart=True)
    assert same(parameters_of(whole.model), parameters_of(resumed.model))
    assert not same(parameters_of(whole.model), parameters_of(model))


def test_an_off_policy_agent_warms_up_with_its_own_policy(made_agents):
    agent = load_agent("sac", ENV_ID, made_agents)
    training = Continuation(agent, TrainSettings(n_warm_up=50), seed=0)
    actions = []

    class Spy(BaseCallback):
        def _on_step(self):
            actions.append(float(self.locals["actions"].item()))
            return True

    training.advance(20, Spy())
    training.advance(30, Spy())
    assert same(parameters_of(training._model), parameters_of(agent.model))
    assert training._model.replay_buffer.pos == 50
    assert (training._model.learning_starts, training._model.gradient_steps) == (20, 1)
    training.advance(50, Spy())
    assert not same(parameters_of(training._model), parameters_of(agent.model))
    assert len(actions) == 100


def test_schedules_are_held_and_saved_as_they_were(made_agents, tmp_path):
    agent = load_agent("ppo", ENV_ID, made_agents)
    agent.model.lr_schedule, agent.model.learning_rate = LinearSchedule(0.01, 0.0, 1.0), LinearSchedule(0.01, 0.0, 1.0)
    rates = []

    class Spy(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_start(self):
            rates.append(self.model.lr_schedule(0.77))

    training = Continuation(agent, TrainSettings(progress_remaining=0.2), seed=0)
    training.advance(64, Spy())
    assert rates == pytest.approx([0.002, 0.002])
    training.save(tmp_path / "saved.zip", tmp_path / "statistics.pkl")
    assert stable_baselines3.PPO.load(tmp_path / "saved.zip").lr_schedule(0.5) == pytest.approx(0.005)


def test_frozen_statistics_stay_as_they_are(made_agents, tmp_path):
    agent = load_agent(NORMALIZED, ENV_ID, made_agents)
    trained = train_on(agent, tmp_path, [64], TrainSettings(normalisation="frozen"))
    assert np.array_equal(trained.vec_normalize.obs_rms.mean, agent.vec_normalize.obs_rms.mean)
    assert trained.vec_normalize.training is agent.vec_normalize.training is True
    assert not same(parameters_of(trained.model), parameters_of(agent.model))


@pytest.mark.parametrize(
    ("n_slices", "kept"), [(3, [1, 2, 3]), (5, [2, 4, 5]), (9, [2, 4, 6, 8, 9]), (16, [4, 8, 12, 16])]
)
def test_checkpoints_on_disk_are_bounded_and_evenly_spaced(made_agents, tmp_path, n_slices, kept):
    agent = load_agent("ppo", ENV_ID, made_agents)
    start = agent.model.num_timesteps
    checkpoints = Checkpoints(tmp_path, agent, {"objective": "return"}, n_max=4)
    training = Continuation(agent, TrainSettings(), seed=0)
    for _ in range(n_slices):
        training.advance(32, CallbackList([]))
        checkpoints.take(training, Stopwatch())
        assert len(list(tmp_path.glob("*.zip"))) <= 5
    names = {f"rl_model_{start + 32 * number}_steps.zip" for number in kept}
    assert {path.name for path in tmp_path.glob("*.zip")} == names
    assert [each.name for each in checkpoints.agents()] == [f"{start + 32 * number} steps" for number in kept]


@pytest.fixture
def short_slices(monkeypatch):
    monkeypatch.setattr(continuation, "_EPISODES_PER_SLICE", 32 / 200)


@pytest.mark.parametrize(("algo", "n_of_rollout"), [("ppo", 32), ("sac", 1)])
def test_a_slice_is_several_whole_episodes_of_each_environment(made_agents, algo, n_of_rollout):
    """Else the late parts of episodes would never be trained on."""
    agent = load_agent(algo, ENV_ID, made_agents)
    training = Continuation(agent, TrainSettings(), seed=0)
    length = training.slice_length(longest_episode=250)
    assert length >= 3 * 250 * agent.model.n_envs
    assert length % n_of_rollout == 0
    assert training.slice_length(longest_episode=10, at_least=4000) >= 4000


def test_a_slice_of_ars_is_one_update(tmp_path):
    algo, env_id, _ = make("ars", tmp_path)
    training = Continuation(load(tmp_path, algo, env_id), TrainSettings(), seed=0)
    assert training.slice_length(longest_episode=250) == 1


class Course(BaseCallback):
    """What a user's callback sees."""

    def __init__(self, n_steps=None):
        super().__init__()
        self.seen, self._n_steps = [], n_steps

    def _on_training_start(self):
        self.seen.append("start")

    def _on_step(self):
        if self.n_calls == self._n_steps:
            raise KeyboardInterrupt
        return True

    def _on_rollout_end(self):
        self.seen.append(self.num_timesteps)

    def _on_training_end(self):
        self.seen.append("end")


def test_the_users_callback_sees_one_training(made_agents, short_slices):
    agent, course = load_agent("ppo", ENV_ID, made_agents), Course()
    start = agent.model.num_timesteps
    judgement = Trainer(agent, **FAST).learn(96, callback=course)
    assert course.seen == ["start", start + 32, start + 64, start + 96, "end"]
    assert judgement.settings["n_timesteps_done"] == 96
    assert len(judgement.settings["candidates"]) == 3
    assert judgement.result.env_steps > 96


def test_what_is_saved_is_a_real_continuation(made_agents, tmp_path, short_slices):
    """The state of the optimizer, the statistics and the number of time steps are those of the checkpoint."""
    agent = load_agent(NORMALIZED, ENV_ID, made_agents)
    trained = Trainer(agent, alpha=0.999999, max_return_loss=1.0, **FAST)
    judgement = trained.learn(128, checkpoint_folder=tmp_path / "checkpoints")
    candidate = judgement.agents[1]
    steps = int(judgement.name.split()[0])
    assert candidate.model.num_timesteps == steps > agent.model.num_timesteps
    assert candidate.vec_normalize.obs_rms.count == pytest.approx(
        agent.vec_normalize.obs_rms.count + steps - agent.model.num_timesteps, abs=steps // 32 + 1
    )
    optimizer = candidate.model.policy.optimizer.state_dict()["state"]
    assert optimizer
    assert not torch.equal(
        next(iter(optimizer.values()))["square_avg"],
        next(iter(agent.model.policy.optimizer.state_dict()["state"].values()))["square_avg"],
    )


def test_ctrl_c_leaves_the_last_checkpoint_and_resumes_to_the_same_verdict(made_agents, tmp_path, short_slices):
    agent = load_agent("sac", ENV_ID, made_agents)
    settings = {**FAST, "n_warm_up": 20}
    whole = Trainer(agent, **settings).learn(96)
    interrupted = Trainer(agent, **settings)
    with pytest.raises(KeyboardInterrupt):
        interrupted.learn(96, callback=Course(n_steps=70), checkpoint_folder=tmp_path)
    assert interrupted.judgement.result.decision == "unchecked"
    start = agent.model.num_timesteps
    assert interrupted.judgement.agent.model.num_timesteps == start + 64
    resumed = Trainer(agent, **settings).learn(96, checkpoint_folder=tmp_path, resume=True)
    assert resumed.result.candidates == whole.result.candidates
    assert resumed.result.reason == whole.result.reason
    assert (resumed.result.rollouts, resumed.result.env_steps) == (whole.result.rollouts, whole.result.env_steps)
    assert not list(tmp_path.glob("*replay_buffer*"))


def test_other_settings_are_not_resumed(made_agents, tmp_path, short_slices):
    agent = load_agent("ppo", ENV_ID, made_agents)
    with pytest.raises(KeyboardInterrupt):
        Trainer(agent, **FAST).learn(96, callback=Course(n_steps=40), checkpoint_folder=tmp_path)
    with pytest.raises(RefineError, match="resume: other settings than those of the interrupted run: n_timesteps was"):
        Trainer(agent, **FAST).learn(97, checkpoint_folder=tmp_path, resume=True)


@pytest.mark.slow
def test_the_time_limit_is_kept(made_agents, monkeypatch):
    agent = load_agent("ppo", ENV_ID, made_agents)
    judgement = Trainer(agent, **FAST).learn(10**7, time_limit=6.0)
    assert judgement.settings["n_timesteps_done"] < 10**6
    assert judgement.result.wall_time_s < 30
    with pytest.raises(RefineError, match="time_limit: 0 s are too short to train and to judge the result"):
        Trainer(agent, **FAST).learn(1000, time_limit=0)


def test_a_replay_buffer_takes_the_place_of_the_warm_up(made_agents, tmp_path):
    agent = load_agent("sac", ENV_ID, made_agents)
    model = stable_baselines3.SAC.load(made_agents / "sac" / f"{ENV_ID}_1" / f"{ENV_ID}.zip", env=make_vec_env(ENV_ID))
    model.learn(40, reset_num_timesteps=False)
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    with pytest.raises(RefineError, match="replay_buffer: reading it runs the code in it"):
        Trainer(agent, replay_buffer=tmp_path / "buffer.pkl", **FAST)
    training = Continuation(agent, TrainSettings(), seed=0)
    training.use_buffer(tmp_path / "buffer.pkl")
    training.advance(10, CallbackList([]))
    assert training._model.replay_buffer.pos == model.replay_buffer.pos + 10
    assert not same(parameters_of(training._model), parameters_of(agent.model))


def test_a_replay_buffer_of_another_number_of_environments_is_one_line(made_agents, tmp_path):
    path = made_agents / "sac" / f"{ENV_ID}_1" / f"{ENV_ID}.zip"
    model = stable_baselines3.SAC.load(path, env=make_vec_env(ENV_ID, n_envs=2))
    model.learn(40, reset_num_timesteps=False)
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    training = Continuation(load_agent("sac", ENV_ID, made_agents), TrainSettings(), seed=0)
    training.use_buffer(tmp_path / "buffer.pkl")
    with pytest.raises(RefineError, match=r"replay_buffer: .*buffer.pkl is of 2 environments, the agent of 1"):
        training.advance(10, CallbackList([]))


def test_a_model_in_memory_goes_on_with_its_replay_buffer(made_agents):
    model = stable_baselines3.SAC.load(made_agents / "sac" / f"{ENV_ID}_1" / f"{ENV_ID}.zip", env=make_vec_env(ENV_ID))
    model.learn(40, reset_num_timesteps=False)
    before = model.replay_buffer.observations.copy()
    training = Continuation(Trainer(model, **FAST).agent, TrainSettings(), seed=0)
    training.advance(10, CallbackList([]))
    assert training.n_warm_up_left == 0
    assert training._model.replay_buffer.pos == 50
    assert np.array_equal(training._model.replay_buffer.observations[:40], before[:40])
    assert model.replay_buffer.pos == 40
    assert np.array_equal(model.replay_buffer.observations, before)


def test_the_replay_buffer_on_disk_is_that_of_the_last_checkpoint_and_only_where_it_is_kept(made_agents, tmp_path):
    agent = load_agent("sac", ENV_ID, made_agents)
    for keep_buffer in (True, False):
        folder = tmp_path / str(keep_buffer)
        checkpoints = Checkpoints(folder, agent, {"objective": "return"}, keep_buffer=keep_buffer)
        training = Continuation(agent, NO_WARM_UP, seed=0)
        for _ in range(2):
            training.advance(32, CallbackList([]))
            checkpoints.take(training, Stopwatch())
        found = [path.name for path in folder.glob("*replay_buffer*")]
        assert found == [f"rl_model_replay_buffer_{training.num_timesteps}_steps.npz"] * keep_buffer


def test_returns_over_several_steps_end_with_the_slice(tmp_path):
    model = stable_baselines3.SAC(
        "MlpPolicy", ENV_ID, n_steps=3, learning_starts=20, buffer_size=500, batch_size=16, seed=0, device="cpu"
    )
    training = Continuation(Trainer(model, ENV_ID, **FAST).agent, NO_WARM_UP, seed=0)
    for _ in range(2):
        training.advance(30, CallbackList([]))
    assert training._model.replay_buffer.timeouts[:, 0].nonzero()[0].tolist() == [29, 59]


def test_hindsight_experience_replay_with_infos_is_not_resumed(tmp_path):
    from stable_baselines3.common.envs import BitFlippingEnv

    def env():
        return BitFlippingEnv(n_bits=4, continuous=True, max_steps=4)

    model = stable_baselines3.SAC(
        "MultiInputPolicy",
        env(),
        replay_buffer_class=stable_baselines3.HerReplayBuffer,
        replay_buffer_kwargs={"copy_info_dict": True},
        **{"learning_starts": 20, "buffer_size": 500, "batch_size": 16, "seed": 0, "device": "cpu"},
    )
    agent = Trainer(model, env, **FAST).agent
    with pytest.raises(RefineError, match="resume: copy_info_dict=True makes the replay buffer keep what is not saved"):
        train_on(agent, tmp_path, [30, 30], restart=True)


def test_a_damaged_buffer_of_an_interrupted_run_is_one_line(made_agents, tmp_path):
    agent = load_agent("sac", ENV_ID, made_agents)
    for content in (b"no zip", None):
        train_on(agent, tmp_path, [40])
        (path,) = tmp_path.glob("rl_model_replay_buffer_*_steps.npz")
        if content is None:
            np.savez(path, pos=np.asarray(4), full=np.asarray(False), observations=np.zeros((600, 1, 3)))
        else:
            path.write_bytes(content)
        checkpoints, training = (
            Checkpoints(tmp_path, agent, {"objective": "return"}),
            Continuation(agent, NO_WARM_UP, 1),
        )
        checkpoints.restore(training)
        with pytest.raises(RefineError, match="resume: .*_steps.npz is damaged .*; start a new run"):
            training.advance(10, CallbackList([]))


@pytest.mark.parametrize("content", ["", "[]", '{"settings": {}}', '{"settings": {"objective": 1}, "slices": []}'])
def test_a_damaged_state_of_an_interrupted_run_is_one_line(made_agents, tmp_path, content):
    agent = load_agent("ppo", ENV_ID, made_agents)
    train_on(agent, tmp_path, [32])
    (tmp_path / "training.json").write_text(content)
    with pytest.raises(RefineError, match="resume: .*training.json cannot be read .*; start a new run"):
        Checkpoints(tmp_path, agent, {"objective": "return"}).restore(Continuation(agent, NO_WARM_UP, 1))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"progress_remaining": 1.5}, "progress_remaining: expected a share from 0 to 1, got 1.5"),
        ({"n_warm_up": -1}, "n_warm_up: expected a whole number of at least 0, got -1"),
        ({"normalisation": "froze"}, r"normalisation: unknown 'froze' \(did you mean frozen\?\)"),
        ({"vec_env": "dumy"}, r"vec_env: unknown 'dumy' \(did you mean dummy\?\)"),
        ({"n_checkpoints": 0}, "n_checkpoints: expected a whole number of at least 1, got 0"),
        ({"replay_buffer": "x.pkl"}, "replay_buffer: ppo has none; leave it out"),
        ({"alpha": 2}, "alpha: expected a number between 0 and 1, got 2"),
    ],
)
def test_settings_out_of_range_are_one_line(made_agents, arguments, line):
    with pytest.raises(RefineError, match=line):
        Trainer(load_agent("ppo", ENV_ID, made_agents), **arguments)


def test_the_length_of_the_training_has_to_be_known(made_agents):
    with pytest.raises(RefineError, match=r"n_timesteps: config.yml does not say how long the agent was trained"):
        Trainer(load_agent("ppo", ENV_ID, made_agents), **FAST).learn()


def test_the_command_line_trains_judges_saves_and_reports(tmp_path, short_slices, capsys):
    arguments = ["--demo", "--method", "train", "-n", "4096", "-o", tmp_path, "--n-eval-episodes", 6]
    assert main([str(argument) for argument in [*arguments, "--backend", "serial"]]) == 0
    run_folder = tmp_path / "ppo" / f"{ENV_ID}_1"
    record = json.loads((run_folder / "refinement.json").read_text())
    assert (record["method"], record["settings"]["n_timesteps"]) == ("train", 4096)
    assert load_agent("ppo", ENV_ID, tmp_path).model.num_timesteps >= 4096
    assert "## The training" in (run_folder / "report.md").read_text()
    assert "trained on" in capsys.readouterr().out
    judge = ["judge", "--demo", "--candidates", run_folder / "checkpoints", "-o", tmp_path / "again", "--no-report"]
    assert main([str(argument) for argument in [*judge, "--n-eval-episodes", 6, "--backend", "serial"]]) == 0


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--method", "train", "--n-updates", "3"], "--n-updates: not an option of --method train; leave it out"),
        (["-n", "3"], "--n-timesteps: not an option of --method search; leave it out"),
        (["--method", "train", "-n", "100", "--vec-env", "x"], "--vec-env: unknown 'x'; choose from dummy, subproc"),
    ],
)
def test_options_of_another_method_are_one_line(arguments, line, capsys, tmp_path):
    assert main(["--demo", "-o", str(tmp_path), *arguments]) == 1
    assert line in capsys.readouterr().err
