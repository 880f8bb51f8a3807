"""The checkpoints of a training run: within a bound on disk, and fit to go on from the last one."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sb3_refine.agents.agent import Agent, write_config
from sb3_refine.agents.candidates import NamedAgent
from sb3_refine.agents.decoding.schema import (
    Check,
    SchemaError,
    list_of,
    number,
    plain,
    read_json,
    record,
    row,
    text,
    whole,
)
from sb3_refine.errors import RefineError
from sb3_refine.files import atomic_path, refuse_links, reraise_write_errors
from sb3_refine.stopwatch import Stopwatch
from sb3_refine.training.continuation import Continuation, agent_at

FILE_NAME = "training.json"
_BUFFER = "rl_model_replay_buffer_{}_steps.npz"


class Snapshots:
    """
    Models of a training in a folder, with the names of Stable-Baselines3's ``CheckpointCallback`` and the statistics of
    each: every k-th one and the last, with k the least power of 2 that leaves at most ``n_max``.

    :param folder: where to
    :param agent: before training
    :param n_max: models beside the last
    :param trust: see :func:`~sb3_refine.agents.decoding.model_zip.read_model`
    """

    def __init__(self, folder: Path, agent: Agent, n_max: int = 20, trust: bool = False):
        self.folder, self.n_max = folder, n_max
        self._agent, self._trust = agent, trust
        self._kept: list[tuple[int, int]] = []  # number, time steps of the model

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, number: int, n_steps: int, save: Callable[[Path, Path], None]) -> None:
        """
        Save a model, and remove those that are then too many.

        :param number: of the model, from 1
        :param n_steps: its time steps
        :param save: saves it, to a path for the zip and a path for the statistics
        :raises RefineError: when a file cannot be written; the models before are still there
        """
        remark = f". The checkpoints before are still in {self.folder}" if self._kept else ""
        with reraise_write_errors("the checkpoint", self.folder, remark):
            if not self._kept:
                self.folder.mkdir(parents=True, exist_ok=True)
                write_config(self._agent, self.folder)
            save(*self._paths(n_steps))
            before = [*(one for one in self._kept if one[1] != n_steps), (number, n_steps)]
            spacing = 1
            while number // spacing > self.n_max:
                spacing *= 2
            self._kept = [one for one in before if one[0] % spacing == 0 or one[0] == number]
            self._note()
        for _, dropped in set(before) - set(self._kept):
            for path in self._paths(dropped):
                path.unlink(missing_ok=True)

    def agents(self, n_last: int | None = None) -> list[NamedAgent]:
        """
        :param n_last: only the last ones; None for all
        :return: the agents, by their steps
        """
        return [
            NamedAgent(f"{n_steps} steps", agent_at(self._agent, *self._paths(n_steps), self._trust))
            for _, n_steps in (self._kept if n_last is None else self._kept[-n_last:])
        ]

    def _note(self) -> None:
        """What else is written with a model, before others are removed."""

    def _paths(self, n_steps: int) -> tuple[Path, Path]:
        names = f"rl_model_{n_steps}_steps.zip", f"rl_model_vecnormalize_{n_steps}_steps.pkl"
        return self.folder / names[0], self.folder / names[1]


class Checkpoints(Snapshots):
    """
    Snapshots of a training that can go on from the last one.

    :param folder: where to
    :param agent: before training
    :param settings: resumed training must have the same
    :param n_max: models beside the last
    :param trust: see :func:`~sb3_refine.agents.decoding.model_zip.read_model`
    :param keep_buffer: whether to save the replay buffer too, without which an off-policy agent cannot go on
    """

    def __init__(
        self,
        folder: Path,
        agent: Agent,
        settings: Mapping[str, Any],
        n_max: int = 20,
        trust: bool = False,
        keep_buffer: bool = True,
    ):
        super().__init__(folder, agent, n_max, trust)
        self._keep_buffer = keep_buffer
        self._settings = json.loads(json.dumps(settings))
        self._state: dict[str, Any] = {}

    def take(self, training: Continuation, stopwatch: Stopwatch) -> None:
        """
        Save the agent after a slice, and all that is needed to go on from it.

        :param training: at the end of the slice
        :param stopwatch: of the run
        :raises RefineError: when a file cannot be written; the checkpoints before are still there
        """
        counts = [training.n_slices, training.n_episodes, training.n_warm_up_left]
        self._state = {
            "settings": self._settings,
            "counts": counts,
            "seconds": [stopwatch.wall_time_s, stopwatch.cpu_time_s],
        }

        def save(zip_path: Path, statistics_path: Path) -> None:
            training.save(zip_path, statistics_path)
            if self._keep_buffer:
                training.save_buffer(self._buffer_path(training.num_timesteps))

        self.add(training.n_slices, training.num_timesteps, save)
        self._remove_buffers(but=self._buffer_path(training.num_timesteps))

    def _buffer_path(self, n_steps: int) -> Path:
        return self.folder / _BUFFER.format(n_steps)

    def _remove_buffers(self, but: Path | None = None) -> None:
        for path in self.folder.glob(_BUFFER.format("*")):
            if path != but:
                path.unlink()

    def _note(self) -> None:
        with atomic_path(self.folder / FILE_NAME) as path:
            path.write_text(json.dumps({**self._state, "slices": self._kept}))

    def restore(self, training: Continuation) -> Stopwatch:
        """
        Go on from the last checkpoint.

        :param training: gets its state
        :return: of the interrupted run, running on
        :raises RefineError: when there is none, a file is damaged, or the settings are others
        """
        state = read_state(self.folder / FILE_NAME, _STATE)
        check_same_settings(self._settings, state["settings"])
        self._kept = [(number, n_steps) for number, n_steps in state["slices"]]
        training.load(*self._paths(self._kept[-1][1]), self._trust)
        training.n_slices, training.n_episodes, training.n_warm_up_left = state["counts"]
        buffer_path = self._buffer_path(self._kept[-1][1])
        if buffer_path.exists():
            training.use_buffer(buffer_path)
        return Stopwatch(*state["seconds"])

    def end(self) -> None:
        """Remove what is only needed to go on."""
        self._remove_buffers()


_STATE = record(
    {
        "settings": record({"objective": text()}, others=plain),
        "slices": list_of(row(whole(1), whole(0))),
        "counts": row(whole(1), whole(0), whole(0)),
        "seconds": row(number(0, 1e10), number(0, 1e10)),
    }
)


def read_settings(folder: Path) -> dict[str, Any]:
    """
    :param folder: with the checkpoints of an interrupted training
    :return: its settings
    :raises RefineError: when they cannot be read
    """
    return read_state(folder / FILE_NAME, _STATE)["settings"]


def read_state(path: Path, check: Check) -> Any:
    """
    :param path: of a JSON file that an interrupted run has left
    :param check: of its content
    :return: the content
    :raises RefineError: when it cannot be read
    """
    try:
        refuse_links(path.parent)
        content = read_json(path)
        check(content)
    except SchemaError as error:
        raise RefineError(f"resume: {path} cannot be read ({error}); start a new run") from None
    return content


def check_same_settings(settings: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
    """
    :param settings: of this run
    :param stored: of the run to resume
    :raises RefineError: for the first one that differs
    """
    for name, value in settings.items():
        if stored.get(name) != value:
            was = stored.get(name)
            raise RefineError(f"resume: other settings than those of the interrupted run: {name} was {was!r}")
