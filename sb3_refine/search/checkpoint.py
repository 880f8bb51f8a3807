"""The state of a search in a file: written completely or not at all, resumed to the same bits."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch as th

from sb3_refine.agents.decoding.pickle_tree import BROKEN, DecodingError
from sb3_refine.agents.decoding.schema import (
    Check,
    SchemaError,
    either,
    flag,
    list_of,
    mapping_of,
    number,
    one_of,
    optional,
    plain,
    record,
    row,
    table,
    text,
    vector,
    whole,
)
from sb3_refine.agents.decoding.torch_files import read_torch_file
from sb3_refine.errors import RefineError, one_line
from sb3_refine.files import atomic_path, refuse_links, reraise_write_errors
from sb3_refine.search.state import SearchState, Update

FILE_NAME = "checkpoint.pt"


class Checkpoint:
    """
    Keeps the state of a search in a file.

    :param folder: where to; None keeps nothing
    :param settings: a resumed search must have the same
    :param interval: updates between two writes: the most that a kill can lose
    :param may_change: names of settings in which a resumed search may differ
    """

    def __init__(
        self, folder: str | Path | None, settings: dict[str, Any], interval: int, may_change: Collection[str] = ()
    ):
        if interval < 1:
            raise RefineError(f"checkpoint_interval: expected at least 1, got {interval}")
        self.folder = None if folder is None else Path(folder)
        self.settings = {name: _plain(value) for name, value in settings.items()}
        self.interval, self._may_change = interval, may_change
        self._state: dict[str, Any] | None = None

    def take(self, search: SearchState) -> None:
        """
        Copy the state after an update, and write it every ``interval`` updates.

        :param search: has the state
        """
        if self.folder is not None:
            self._state = search.state_dict()
            if search.optimizer.n_updates_done % self.interval == 0:
                self.write()

    def write(self) -> None:
        """
        Write the state last taken. A kill at any moment leaves the file before.

        :raises RefineError: when it cannot be written; the file before is left as it was
        """
        if self.folder is None or self._state is None:
            return
        remark = ". The checkpoint written before is still there" if (self.folder / FILE_NAME).exists() else ""
        try:
            with reraise_write_errors("the checkpoint", self.folder, remark):
                self.folder.mkdir(parents=True, exist_ok=True)
                with atomic_path(self.folder / FILE_NAME) as path:
                    th.save({"settings": self.settings, "state": _with_tensors(self._state)}, path)
        except RefineError:
            self._state = None  # do not try again when the search ends
            raise

    def read(self) -> dict[str, Any]:
        """
        :return: the state of the interrupted search
        :raises RefineError: when there is no file, it is damaged, or of other settings, naming each difference
        """
        if self.folder is None:
            raise RefineError("resume: name the folder of the interrupted search with checkpoint_folder")
        settings, state = read_checkpoint(self.folder)
        differences = [
            f"{name} was {settings.get(name)!r}, is {self.settings.get(name)!r}"
            for name in {**settings, **self.settings}
            if settings.get(name) != self.settings.get(name) and name not in self._may_change
        ]
        if differences:
            message = f"resume: other settings than those of the interrupted run: {'; '.join(differences)}"
            only_length = settings.get("n_updates") != self.settings.get("n_updates") and len(differences) == 1
            hint = "; to end the search earlier, use `time_limit` instead" if only_length else ""
            raise RefineError(message + hint)
        return state

    def restore(self, search: SearchState, state: dict[str, Any]) -> None:
        """
        :param search: gets the state
        :param state: what :meth:`read` gave
        :raises RefineError: when the state is damaged
        """
        try:
            search.load_state_dict(state)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:  # the optimizer's own state
            raise RefineError(f"resume: {self.folder} is damaged ({one_line(error)}); start a new run") from error


def _plain(value: Any) -> Any:
    """numpy's numbers and arrays as Python's, which checkpoints can hold."""
    if isinstance(value, (tuple, list)):
        return type(value)(map(_plain, value))
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value


def read_checkpoint(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """
    :param folder: where a :class:`Checkpoint` wrote
    :return: the settings and the state
    :raises RefineError: when there is no checkpoint, or it is damaged
    """
    path = folder / FILE_NAME
    try:
        refuse_links(folder)
        content = read_torch_file(path.read_bytes())
        record({"settings": record({}), "state": record({})})(content)
        settings, state = content["settings"], _with_arrays(content["state"])
        _SETTINGS(settings)
        _check_state(state, settings["n_parameters"], settings["n_updates"])
        return settings, state
    except FileNotFoundError:
        raise RefineError(f"resume: no checkpoint at {path}") from None
    except OSError as error:
        raise RefineError(f"resume: {path} cannot be read ({error.strerror})") from None
    except RefineError:
        raise
    except (DecodingError, SchemaError, *BROKEN) as error:
        raise RefineError(
            f"resume: {path} is damaged, or of another version of sb3-refine ({error}); start a new run"
        ) from None


_SETTINGS = record(
    {
        **dict.fromkeys(("algo", "env", "optimizer", "objective", "parameters"), text()),
        **dict.fromkeys(("end_at_success", "acceptance", "selection"), flag),
        "env_kwargs": mapping_of(plain),
        "seed": whole(0),
        "n_updates": whole(1, 10**9),
        "n_parameters": whole(1),
        "n_eval_episodes": either(one_of("auto"), whole(2)),
        "alpha": number(0, 1),
        "min_effect": optional(number(0, 1e300)),
        "max_return_loss": number(0),
    },
    others=plain,  # options of the optimizer, which checks them
)

_EPISODE = row(number(allow_nan=True), whole(0), flag, optional(flag), mapping_of(plain))


def _check_state(state: Any, n_parameters: int, n_updates: int) -> None:
    """
    :param state: what :meth:`SearchState.state_dict` gave
    :param n_parameters: length of the parameter vector
    :param n_updates: length of the search
    :raises SchemaError: when it is not what a search can have left
    """
    theta, done = vector(n_parameters, np.float32), whole(0, n_updates)
    counts = dict.fromkeys(("run_number", "n_search_seeds", "n_episodes", "n_env_steps", "n_invalid"), whole(0))
    record(
        {
            "optimizer": record({"theta": theta, "n_updates_done": done}, others=_optimizer_state),
            "start_theta": theta,
            "average": either(vector(0, np.float64), vector(n_parameters, np.float64)),
            "milestones": mapping_of(_milestone(number(), done, theta), r"\d"),
            "history": table(len(Update._fields)),
            **dict.fromkeys(("elapsed", "cpu_time"), number(0, 1e10)),
            "baseline": optional(row(list_of(whole(0)), list_of(_EPISODE))),
            **counts,
        }
    )(state)
    if len(state["history"]) != state["optimizer"]["n_updates_done"]:
        raise SchemaError("history: not as long as there were updates")
    if state["baseline"] is not None and not 0 < len(state["baseline"][0]) == len(state["baseline"][1]):
        raise SchemaError("baseline: not an episode for each seed")


def _optimizer_state(value: Any, depth: int = 0) -> None:
    """Further entries of an optimizer's state: arrays, numbers and text, in dicts and lists."""
    if isinstance(value, np.ndarray):
        return
    if depth < 10 and isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            _optimizer_state(item, depth + 1)
        return
    plain(value)


def _milestone(*checks: Check) -> Check:
    """A milestone is stored as a mapping from positions in the tuple."""

    def check(value: Any) -> None:
        if not isinstance(value, dict) or value.keys() != set(range(len(checks))):
            raise SchemaError("not a milestone")
        row(*checks)([value[place] for place in range(len(checks))])

    return check


def _with_tensors(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_tensors(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_with_tensors, value))
    if isinstance(value, np.generic):
        return value.item()
    return th.from_numpy(value) if isinstance(value, np.ndarray) else value


def _with_arrays(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_arrays(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_with_arrays, value))
    return value.numpy() if isinstance(value, th.Tensor) else value
