"""The state of a search, and how it outlives the process: written whole or not at all, resumed to the same bits."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as th

from sb3_refine.decoding.pickle_tree import BROKEN, DecodingError
from sb3_refine.decoding.schema import (
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
from sb3_refine.decoding.torch_files import read_torch_file
from sb3_refine.episode import Episode
from sb3_refine.errors import EpisodeError, RefineError
from sb3_refine.evaluation import Evaluation
from sb3_refine.evaluators import Evaluator
from sb3_refine.files import atomic_path, refuse_links, told_if_unwritable
from sb3_refine.optimizers import Optimizer
from sb3_refine.selection import Iterate, distinct

FILE_NAME = "checkpoint.pt"
N_MILESTONES = 6  # parts of a search, each of which offers its best iterate
MAX_INVALID_SHARE = 0.2  # of all episodes; more, and the search is not worth going on with


class Update(NamedTuple):
    """
    One update of a search, by the episodes of its population.

    :param update: number of updates done with it
    :param rollouts: episodes so far, those on validation seeds included
    :param env_steps: their environment steps
    :param mean_return: of the population; NaN is left out
    :param std_return: of the population
    :param min_return: of the population
    :param max_return: of the population
    :param mean_fitness: of the population
    :param failure_rate: of the population
    """

    update: int
    rollouts: int
    env_steps: int
    mean_return: float
    std_return: float
    min_return: float
    max_return: float
    mean_fitness: float
    failure_rate: float


@dataclass
class SearchState:
    """
    All that changes during a search.

    :param optimizer: has the current mean
    :param start: parameters that the search started from
    :param baseline: the original on validation seeds, once evaluated
    :param average: running average of the iterates, later ones weighing more
    :param milestones: of each part of the search, the iterate that its population did best around: mean fitness of the
        population, number of updates, parameters
    :param history: what each update came to
    :param run_number: number of searches that the refiner has done before
    """

    optimizer: Optimizer
    start: np.ndarray
    baseline: Evaluation | None = None
    average: np.ndarray = field(default_factory=lambda: np.empty(0))
    milestones: dict[int, tuple[float, int, np.ndarray]] = field(default_factory=dict)
    history: list[Update] = field(default_factory=list)
    run_number: int = 0
    n_episodes: int = 0
    n_env_steps: int = 0
    n_invalid: int = 0
    _started: float = field(default_factory=time.perf_counter)

    @property
    def n_updates(self) -> int:
        """Updates done."""
        return self.optimizer.n_updates_done

    @property
    def elapsed(self) -> float:
        """Seconds spent, those before a resume included."""
        return time.perf_counter() - self._started

    @property
    def best(self) -> tuple[int, np.ndarray]:
        """The iterate that its population did best around: number of updates, parameters."""
        if not self.milestones:
            return 0, self.start
        _, update, vector = max(self.milestones.values(), key=lambda milestone: milestone[0])
        return update, vector

    @property
    def iterates(self) -> list[Iterate]:
        """What a search has to offer: the last iterate, the running average, and the best of each part."""
        found = [Iterate("last iterate", self.n_updates, self.optimizer.mean)]
        if self.average.size:
            found.append(Iterate("running average", self.n_updates, self.average.astype(np.float32)))
        milestones = [Iterate(f"iterate {u}", u, vector) for _, u, vector in self.milestones.values() if u > 0]
        return distinct([*found, *milestones])

    def count(self, evaluator: Evaluator) -> None:
        """:param evaluator: has the counts of all episodes so far"""
        self.n_episodes, self.n_env_steps = evaluator.n_episodes, evaluator.n_env_steps

    def record(self, mean: np.ndarray, episodes: list[Episode], fitness: np.ndarray) -> None:
        """
        Note an update. The mean fitness of the population around an iterate says how good it is, at no further cost.

        :param mean: the iterate that the episodes were perturbations of; the optimizer has moved on from it
        :param episodes: of its population
        :param fitness: of each
        :raises EpisodeError: when too many episodes returned NaN
        """
        returns = np.array([episode.episode_return for episode in episodes])
        self.n_invalid += int(np.isnan(fitness).sum())
        if self.n_invalid > MAX_INVALID_SHARE * self.n_episodes or np.isnan(fitness).all():
            whose = "rewards or observations; fix the environment" if np.isnan(returns).any() else "fitness; fix it"
            many = f"{self.n_invalid} of {self.n_episodes} episodes"
            raise EpisodeError(f"{many} had NaN or infinite {whose}, or perturb less (delta_std)")
        score, before = float(np.nanmean(fitness)), self.n_updates - 1
        part = N_MILESTONES * before // self.optimizer.n_updates
        if part not in self.milestones or score > self.milestones[part][0]:
            self.milestones[part] = score, before, mean.copy()
        self._average()
        returns = returns[np.isfinite(returns)]
        self.history.append(
            Update(
                update=self.n_updates,
                rollouts=self.n_episodes,
                env_steps=self.n_env_steps,
                mean_return=float(returns.mean()),
                std_return=float(returns.std()),
                min_return=float(returns.min()),
                max_return=float(returns.max()),
                mean_fitness=score,
                failure_rate=float(np.mean([episode.failed for episode in episodes])),
            )
        )

    def _average(self) -> None:
        """Polynomial-decay averaging, each iterate weighing as its number (Shamir and Zhang, 2013, eta = 1)."""
        if not self.average.size:
            self.average = self.optimizer.mean.astype(np.float64)
        self.average += 2 / (self.n_updates + 1) * (self.optimizer.mean - self.average)

    def state_dict(self) -> dict[str, Any]:
        """:return: a copy of everything, in types that :func:`read_checkpoint` reads"""
        return {
            "optimizer": self.optimizer.state_dict(),
            "start": self.start.copy(),
            "average": self.average.copy(),
            "milestones": {str(part): dict(enumerate(milestone)) for part, milestone in self.milestones.items()},
            "history": np.array(self.history, dtype=np.float64).reshape(-1, len(Update._fields)),
            "run_number": self.run_number,
            "n_episodes": self.n_episodes,
            "n_env_steps": self.n_env_steps,
            "n_invalid": self.n_invalid,
            "elapsed": self.elapsed,
            "baseline": None if self.baseline is None else _plain_evaluation(self.baseline),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """:param state: what :meth:`state_dict` gave"""
        self.optimizer.load_state_dict(state["optimizer"])
        for name in ("start", "average", "run_number", "n_episodes", "n_env_steps", "n_invalid"):
            setattr(self, name, state[name])
        self.milestones = {int(part): (m[0], m[1], m[2]) for part, m in state["milestones"].items()}
        self.history = [Update(*map(int, update[:3]), *map(float, update[3:])) for update in state["history"]]
        self._started = time.perf_counter() - state["elapsed"]
        if state["baseline"] is not None:
            seeds, episodes = state["baseline"]
            self.baseline = Evaluation(tuple(seeds), tuple(Episode(*episode) for episode in episodes))


def _plain_evaluation(evaluation: Evaluation) -> tuple[list[int], list[list[Any]]]:
    return list(evaluation.seeds), [list(episode) for episode in evaluation.episodes]


class Checkpoint:
    """
    Keeps the state of a search in a file.

    :param folder: where to; None keeps nothing
    :param settings: that a resume must share
    :param interval: updates between two writes: what a kill can lose
    """

    def __init__(self, folder: str | Path | None, settings: dict[str, Any], interval: int):
        if interval < 1:
            raise RefineError(f"checkpoint_interval: expected at least 1, got {interval}")
        self.folder = None if folder is None else Path(folder)
        self.settings = {name: _plain(value) for name, value in settings.items()}
        self.interval = interval
        self._state: dict[str, Any] | None = None

    def take(self, search: SearchState) -> None:
        """
        Take the state between two updates, and write it when it is time.

        :param search: what to take the state of
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
            with told_if_unwritable("the checkpoint", self.folder, remark):
                self.folder.mkdir(parents=True, exist_ok=True)
                with atomic_path(self.folder / FILE_NAME) as path:
                    th.save({"settings": self.settings, "state": _with_tensors(self._state)}, path)
        except RefineError:
            self._state = None  # is not tried again on the way out
            raise

    def run_number(self) -> int:
        """
        :return: number of searches that the refiner had done before the interrupted one
        :raises RefineError: when there is no file, or it is damaged
        """
        return int(read_checkpoint(self._existing_folder())[1]["run_number"])

    def _existing_folder(self) -> Path:
        if self.folder is None:
            raise RefineError("resume: name the folder of the interrupted search with checkpoint_folder")
        return self.folder

    def load(self, search: SearchState) -> None:
        """
        Go on from the file.

        :param search: takes up the state
        :raises RefineError: when there is no file, it is damaged, or of other settings, naming each difference
        """
        settings, state = read_checkpoint(self._existing_folder())
        differences = [
            f"{name} was {settings.get(name)!r}, is {self.settings.get(name)!r}"
            for name in {**settings, **self.settings}
            if settings.get(name) != self.settings.get(name)
        ]
        if differences:
            raise RefineError(f"--resume: other settings than those of the interrupted run: {'; '.join(differences)}")
        search.load_state_dict(state)


def _plain(value: Any) -> Any:
    """numpy's numbers and arrays as Python's, which checkpoints can hold."""
    if isinstance(value, (tuple, list)):
        return type(value)(map(_plain, value))
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value


def read_checkpoint(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """
    :param folder: where a :class:`Checkpoint` wrote
    :return: the settings and the state
    :raises RefineError: when there is none, or it is damaged
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
        raise RefineError(f"--resume: no checkpoint at {path}") from None
    except OSError as error:
        raise RefineError(f"--resume: {path} cannot be read ({error.strerror})") from None
    except RefineError:
        raise
    except (DecodingError, SchemaError, *BROKEN) as error:
        raise RefineError(
            f"--resume: {path} is damaged, or of another version of sb3-refine ({error}); start the run anew"
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
    counts = dict.fromkeys(("run_number", "n_episodes", "n_env_steps", "n_invalid"), whole(0))
    record(
        {
            "optimizer": record({"mean": theta, "n_updates_done": done}),
            "start": theta,
            "average": either(vector(0, np.float64), vector(n_parameters, np.float64)),
            "milestones": mapping_of(_milestone(number(), done, theta), r"\d"),
            "history": table(len(Update._fields)),
            "elapsed": number(0, 1e10),
            "baseline": optional(row(list_of(whole(0)), list_of(_EPISODE))),
            **counts,
        }
    )(state)
    if len(state["history"]) != state["optimizer"]["n_updates_done"]:
        raise SchemaError("history: not as long as there were updates")
    if state["baseline"] is not None and not 0 < len(state["baseline"][0]) == len(state["baseline"][1]):
        raise SchemaError("baseline: not an episode for each seed")


def _milestone(*checks: Check) -> Check:
    """A milestone is stored as a mapping from the places in the tuple."""

    def check(value: Any) -> None:
        if not isinstance(value, dict) or value.keys() != set(range(len(checks))):
            raise SchemaError("not a milestone")
        row(*checks)([value[place] for place in range(len(checks))])

    return check


def _with_tensors(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_tensors(item) for key, item in value.items()}
    return th.from_numpy(value) if isinstance(value, np.ndarray) else value


def _with_arrays(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_arrays(item) for key, item in value.items()}
    return value.numpy() if isinstance(value, th.Tensor) else value
