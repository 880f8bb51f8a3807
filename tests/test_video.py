"""Videos: the pictures are those of the very episode that the seed gives without them."""

import os
import sys
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from conftest import target_of
from stable_baselines3.common.env_util import make_vec_env

from sb3_refine.agents.from_model import agent_from_model
from sb3_refine.agents.load import load_agent
from sb3_refine.cli.options import DEMO
from sb3_refine.envs.spec import EnvRecipe
from sb3_refine.errors import RefineError
from sb3_refine.evaluators import SerialEvaluator
from sb3_refine.reporting.video import Film, film, record_video, side_by_side

SEED = 5


@pytest.fixture(scope="module")
def demo():
    return target_of(load_agent(DEMO["algo"], DEMO["env"], DEMO["folder"]))


def with_recipe(who, recipe):
    return replace(who, evaluator=SerialEvaluator(replace(who.task, recipe=recipe)))


def frames_of(path):
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    reader = imageio_ffmpeg.read_frames(str(path))
    about = next(reader)
    width, height = about["size"]
    return about, [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader]


def picture(height=240, width=320, value=200):
    return np.full((height, width, 3), value, dtype=np.uint8)


def test_the_filmed_episode_is_the_episode(demo):
    (expected,) = demo.run([SEED]).episodes
    found = film(demo, SEED)
    assert found.episode == expected
    assert len(found.pictures) == 201  # the reset and every step: Pendulum's clock is as fast as the video's
    assert found.fps == 30
    assert found.captions[0] == "step 0   return 0.0"
    assert found.captions[-1] == f"ended at step 200   return {expected.episode_return:.1f}"
    assert not np.array_equal(found.at(0)[0], found.at(100)[0])


@pytest.mark.slow
def test_the_video_shows_both_side_by_side(demo, tmp_path):
    still = replace(demo, theta=np.zeros_like(demo.theta))
    path = record_video({"original": demo, "refined": still}, SEED, tmp_path / "new" / "both.mp4")
    about, frames = frames_of(path)
    assert about["fps"] == 30
    assert about["size"] == (2 * 500 + 8, 500 + 44)
    assert len(frames) == 201 + 45  # the last picture stays for a second and a half
    shown = frames[100][44:, :500].astype(int), frames[100][44:, 508:].astype(int)
    filmed = [film(who, SEED).at(100)[0].astype(int) for who in (demo, still)]
    apart = [[np.abs(a - b).mean() for a in shown] for b in filmed]
    assert max(apart[0][0], apart[1][1]) < 2 < min(apart[0][1], apart[1][0])
    assert frames[100][:44].max() > 200  # something is written above
    assert [entry.name for entry in path.parent.iterdir()] == ["both.mp4"]


def test_a_film_that_ends_early_keeps_its_caption():
    short, long = Film(fps=30), Film(fps=30)
    short.pictures.append(picture(value=90))
    short.captions.append("failed at step 1   return -5.0")
    for i in range(5):
        long.pictures.append(picture(height=300))
        long.captions.append(f"step {i}   return {i}.0")
    frames = list(side_by_side({"original": short, "refined": long}))
    assert len(frames) == 5 + 45
    assert frames[-1].shape == (344, 648, 3)
    assert (frames[-1][44:284, :320] == 90).all()
    assert (frames[-1][284:, :320] != 90).all()  # below the lower of the two
    assert short.at(40)[1] == "failed at step 1   return -5.0"
    left, right = frames[-1][:44, :320].astype(int), frames[-1][:44, 328:].astype(int)
    assert (left[..., 0] - left[..., 2]).max() > 100  # the end is written in another colour
    assert (right[..., 0] - right[..., 2]).max() < 20


def test_small_pictures_are_enlarged_and_odd_sizes_made_even():
    tiny = Film(fps=30)
    tiny.pictures.append(picture(63, 65))
    tiny.captions.append("step 0   return 0.0")
    height, width, _ = next(side_by_side({"a": tiny})).shape
    assert (height, width) == (5 * 63 + 44 + 1, 5 * 65 + 1)


def test_a_fast_clock_shows_every_nth_step_in_real_time(demo):
    def make():
        env = gym.Wrapper(gym.make("Pendulum-v1", render_mode="rgb_array"))
        env.metadata = {"render_modes": ["rgb_array"], "render_fps": 125}
        return env

    recipe = EnvRecipe(None, make=make)
    found = film(with_recipe(demo, recipe), SEED)
    assert found.fps == 125 / 4
    assert found.captions[1].startswith("step 4 ")
    assert found.captions[-1].startswith("ended at step 200 ")


def test_models_in_memory_can_be_filmed():
    from stable_baselines3 import PPO

    model = PPO.load(DEMO["folder"] / "ppo" / "Pendulum-v1_1" / "Pendulum-v1.zip", device="cpu")
    who = target_of(agent_from_model(model, make_vec_env("Pendulum-v1")))
    (expected,) = who.run([SEED]).episodes
    assert film(who, SEED).episode == expected


def test_a_callable_without_rendering_is_an_error(demo):
    recipe = EnvRecipe(None, make=lambda: gym.make("Pendulum-v1"))
    with pytest.raises(RefineError, match="have it pass render_mode='rgb_array'"):
        film(with_recipe(demo, recipe), SEED)


def test_an_environment_that_cannot_be_rendered_is_an_error(demo):
    class Broken(gym.Wrapper):
        def render(self):
            raise OSError("no screen")

    recipe = EnvRecipe(None, make=lambda: Broken(gym.make("Pendulum-v1", render_mode="rgb_array")))
    with pytest.raises(RefineError, match=r"Pendulum-v1 cannot be rendered \(OSError: no screen\)"):
        film(with_recipe(demo, recipe), SEED)


def test_without_an_encoder_the_extra_is_named_before_anything_runs(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(RefineError, match=r"imageio_ffmpeg is missing; pip install 'sb3-refine\[video\]'"):
        record_video({}, SEED, tmp_path / "a.mp4")
    assert not list(tmp_path.iterdir())


def test_without_ffmpeg_the_extra_is_named(monkeypatch, tmp_path):
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")

    def missing():
        raise RuntimeError("No ffmpeg exe could be found.")

    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", missing)
    with pytest.raises(RefineError, match=r"the program ffmpeg is missing; pip install"):
        record_video({}, SEED, tmp_path / "a.mp4")


def test_a_folder_that_cannot_be_written_is_an_error(demo, tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    (tmp_path / "file").touch()
    with pytest.raises(RefineError, match="video: cannot write"):
        record_video({"a": demo}, SEED, tmp_path / "file" / "a.mp4")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algo", "env", "package"),
    [
        ("ddpg", "HopperBulletEnv-v0", "pybullet"),
        ("ppo", "Walker2DBulletEnv-v0", "pybullet"),
        ("tqc", "PandaReach-v1", "panda_gym"),
        ("ppo", "LunarLanderContinuous-v2", "Box2D"),
        ("a2c", "BipedalWalker-v3", "Box2D"),
        ("dqn", "CartPole-v1", "gymnasium"),
        ("tqc", "Hopper-v3", "mujoco"),
    ],
)
def test_real_agents_are_filmed_without_a_display(zoo_agents, tmp_path, monkeypatch, algo, env, package):
    pytest.importorskip(package)
    for variable in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(variable, raising=False)
    before = os.environ.get("MUJOCO_GL"), os.environ.get("SDL_VIDEODRIVER")
    who = target_of(load_agent(algo, env, zoo_agents))
    (expected,) = who.run([SEED]).episodes
    try:
        found = film(who, SEED)
    except RefineError as error:
        if package == "mujoco" and "MuJoCo needs OpenGL" in str(error):
            pytest.skip(f"no OpenGL here: {error}")
        raise
    assert found.episode == expected
    assert (os.environ.get("MUJOCO_GL"), os.environ.get("SDL_VIDEODRIVER")) == before
    assert found.at(0)[0].std() > 5  # not blank
    assert not np.array_equal(found.pictures[0], found.pictures[len(found.pictures) // 2])
