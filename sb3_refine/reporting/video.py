"""Policies on the same seed, side by side, as a video."""

import importlib
import math
import os
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium.envs.registration import EnvSpec

from sb3_refine.agents.existing_env import EnvMaker
from sb3_refine.envs.spec import EnvRecipe
from sb3_refine.errors import RefineError
from sb3_refine.evaluation.target import Target
from sb3_refine.files import atomic_path
from sb3_refine.policies.base import one_thread
from sb3_refine.rollouts.episode import Episode
from sb3_refine.rollouts.reproducibility import Episodes
from sb3_refine.rollouts.rollout import rollout
from sb3_refine.seeding import globals_restored

_MAX_FPS = 30  # environments with a faster clock show every n-th step, in real time
_HOLD = 1.5  # seconds for which the last picture stays
_STRIP = 44  # pixels above each picture, for its two lines
_MIN_WIDTH, _MIN_HEIGHT = 320, 240  # smaller pictures are enlarged
_GAP = 8  # pixels between two pictures
_BACKGROUND, _INK, _ENDED_INK = (24, 24, 28), (255, 255, 255), (255, 196, 84)

_WITHOUT_DISPLAY = {"MUJOCO_GL": "egl", "SDL_VIDEODRIVER": "dummy"}
"""What renders on Linux where there is no display, in variables that are set unless the user has."""


@dataclass
class Film:
    """
    Pictures of one episode.

    :param fps: pictures per second
    :param pictures: uint8 of shape ``(height, width, 3)``
    :param captions: what to write above each picture
    :param episode: the result of the episode
    """

    fps: float = _MAX_FPS
    pictures: list[np.ndarray] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    episode: Episode | None = None

    def at(self, index: int) -> tuple[np.ndarray, str]:
        """
        :param index: of a picture; the last picture stays until the other episode ends, too
        :return: the picture and its caption
        """
        index = min(index, len(self.pictures) - 1)
        return self.pictures[index], self.captions[index]


def record_video(targets: Mapping[str, Target], seed: int, path: str | Path) -> Path:
    """
    Record one episode of each on the same seed, side by side. Rendering changes nothing: these are the episodes that
    the same seed gives without it.

    :param targets: the policies, by the name to write above the pictures, from left to right
    :param seed: of the episode
    :param path: where to, with the suffix ``.mp4``
    :return: the path
    :raises RefineError: when there is no encoder, or the environment gives no pictures
    """
    path = Path(path)
    encode = encoder()
    films = {name: film(target, seed) for name, target in targets.items()}
    fps = next(iter(films.values())).fps
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as partial:
            encode(partial, fps, side_by_side(films))
    except OSError as error:
        raise RefineError(f"video: cannot write {path} ({' '.join(str(error).split())[:200]})") from error
    return path


def film(target: Target, seed: int) -> Film:
    """
    :param target: the policy
    :param seed: of the episode
    :return: pictures of the episode
    :raises RefineError: when the environment gives no pictures
    """
    recipe = _rendering(target.task.recipe)
    policy = target.task.policy
    policy.set_theta(target.theta)
    film = Film()
    with _off_screen(), one_thread(), globals_restored():
        episodes = Episodes(recipe)
        try:
            camera = _Camera(episodes.next_env(seed), film)
            with th.inference_mode():
                film.episode = rollout(policy, camera, seed)
        finally:
            episodes.close()
    return _titled(film)


def side_by_side(films: Mapping[str, Film]) -> Iterator[np.ndarray]:
    """
    :param films: by name; one that ends early shows its last picture until all have ended
    :return: pictures of even height and width, with a strip above each that says the name, the step and the return so
        far
    """
    draw = _caption_painter()
    n_pictures = max(len(film.pictures) for film in films.values())
    n_pictures += round(_HOLD * next(iter(films.values())).fps)
    for i in range(n_pictures):
        shown = {name: film.at(i) for name, film in films.items()}
        yield _joined([draw(_enlarged(picture), name, caption) for name, (picture, caption) in shown.items()])


class _Camera(gym.Wrapper):
    """Takes a picture after the reset and after every n-th step, and the last one in any case."""

    def __init__(self, env: gym.Env, film: Film):
        super().__init__(env)
        clock = float(env.metadata.get("render_fps") or _MAX_FPS)
        self._every = max(1, round(clock / _MAX_FPS))
        self._film, film.fps = film, clock / self._every
        self._n_steps, self._total = 0, 0.0

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """:return: the observation and info"""
        result = self.env.reset(**kwargs)
        if kwargs.get("seed") is not None:  # not where an episode goes on after a lost life
            self._take()
        return result

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """:return: the result of the step"""
        result = self.env.step(action)
        self._n_steps += 1
        self._total += float(result[1])
        if result[2] or result[3] or self._n_steps % self._every == 0:
            self._take()
        return result

    def _take(self) -> None:
        self._film.pictures.append(_rendered(self.env))
        self._film.captions.append(f"step {self._n_steps}   return {self._total:.1f}")


def _rendered(env: gym.Env) -> np.ndarray:
    name = env.spec.id if env.spec is not None else type(env.unwrapped).__name__
    try:
        picture: Any = env.render()
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise RefineError(f"video: {name} cannot be rendered ({reason}){_remedy()}") from error
    if not (isinstance(picture, np.ndarray) and picture.ndim == 3 and picture.shape[2] == 3):
        raise RefineError(f"video: {name} gives no pictures with render_mode='rgb_array': leave the video out")
    return picture.astype(np.uint8)


def _remedy() -> str:
    if "mujoco" not in sys.modules:
        return ": leave the video out"
    return (
        f"; MuJoCo needs OpenGL, MUJOCO_GL is {os.environ.get('MUJOCO_GL', 'not set')}: without a display, install "
        "EGL (on Debian libegl1) and set MUJOCO_GL=egl, or OSMesa (libosmesa6) and MUJOCO_GL=osmesa"
    )


def _rendering(recipe: EnvRecipe) -> EnvRecipe:
    """The recipe of an environment that renders, with its stock step, which has the same bits."""
    recipe = replace(recipe, accelerated=False)
    if recipe.make is None:
        return replace(recipe, env_kwargs={**recipe.env_kwargs, "render_mode": "rgb_array"})
    if isinstance(recipe.make, EnvMaker) and isinstance(recipe.make.base, EnvSpec):
        spec = replace(recipe.make.base, kwargs={**recipe.make.base.kwargs, "render_mode": "rgb_array"})
        return replace(recipe, make=replace(recipe.make, base=spec))
    env = recipe.build()
    mode = env.render_mode
    env.close()
    if mode != "rgb_array":
        raise RefineError(
            f"video: the callable makes an environment with render_mode={mode!r}, which gives no pictures: have it "
            "pass render_mode='rgb_array', or leave the video out"
        )
    return recipe


@contextmanager
def _off_screen() -> Iterator[None]:
    """Without a display, tell MuJoCo and SDL so, for as long as pictures are taken."""
    has_display = not sys.platform.startswith("linux") or {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ)
    added = {} if has_display else {k: v for k, v in _WITHOUT_DISPLAY.items() if k not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _titled(film: Film) -> Film:
    """Say on the last picture that it is the last, and the true return, which wrappers may have hidden."""
    episode = film.episode
    assert episode is not None
    end = "failed" if episode.failed else "ended"
    film.captions[-1] = f"{end} at step {episode.length}   return {episode.episode_return:.1f}"
    return film


def _caption_painter() -> Callable[[np.ndarray, str, str], np.ndarray]:
    """A function that puts a strip with a name and a caption above a picture."""
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise RefineError("video: needs Pillow; pip install 'sb3-refine[video]'") from error
    fonts = [_font(ImageFont, size) for size in (16, 14, 12, 10)]

    def paint(picture: np.ndarray, name: str, caption: str) -> np.ndarray:
        image = Image.new("RGB", (picture.shape[1], picture.shape[0] + _STRIP), _BACKGROUND)
        image.paste(Image.fromarray(picture), (0, _STRIP))
        draw = ImageDraw.Draw(image)
        caption_ink = _INK if caption.startswith("step") else _ENDED_INK
        for line, (text, ink) in enumerate(((name, _INK), (caption, caption_ink))):
            font = next((font for font in fonts if draw.textlength(text, font=font) <= image.width - 12), fonts[-1])
            draw.text((6, _STRIP * (2 * line + 1) / 4), text, fill=ink, font=font, anchor="lm")
        return np.asarray(image)

    return paint


def _font(image_font: Any, size: int) -> Any:
    try:
        import matplotlib

        return image_font.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)
    except (ImportError, OSError):
        return image_font.load_default(size)


def _enlarged(picture: np.ndarray) -> np.ndarray:
    height, width, _ = picture.shape
    factor = max(1, math.ceil(_MIN_HEIGHT / height), math.ceil(_MIN_WIDTH / width))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def _joined(columns: Sequence[np.ndarray]) -> np.ndarray:
    height = max(column.shape[0] for column in columns)
    width = sum(column.shape[1] for column in columns) + _GAP * (len(columns) - 1)
    joined = np.full((height + height % 2, width + width % 2, 3), _BACKGROUND, dtype=np.uint8)  # H.264 wants even ones
    left = 0
    for column in columns:
        joined[: column.shape[0], left : left + column.shape[1]] = column
        left += column.shape[1] + _GAP
    return joined


def encoder() -> Callable[[Path, float, Iterator[np.ndarray]], None]:
    """
    :return: a function that writes pictures as H.264, through the ffmpeg that ``moviepy`` brings along, too
    :raises RefineError: when it is missing
    """
    try:
        imageio_ffmpeg: Any = importlib.import_module("imageio_ffmpeg")
        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        missing = "the module imageio_ffmpeg" if isinstance(error, ImportError) else "the program ffmpeg"
        raise RefineError(f"video: {missing} is missing; pip install 'sb3-refine[video]'") from error

    options = {"codec": "libx264", "macro_block_size": 2, "output_params": ["-movflags", "+faststart"]}

    def encode(path: Path, fps: float, pictures: Iterator[np.ndarray]) -> None:
        writer: Generator[None, Any, None] | None = None
        try:
            for picture in pictures:
                if writer is None:
                    size = picture.shape[1], picture.shape[0]
                    writer = imageio_ffmpeg.write_frames(str(path), size, fps=fps, **options)
                    writer.send(None)
                writer.send(np.ascontiguousarray(picture))
        finally:
            if writer is not None:
                writer.close()

    return encode
