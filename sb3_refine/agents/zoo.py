"""The RL Zoo's folder layout: where an agent's files are, and where a new run goes."""

import logging
import re
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from sb3_refine.agents.decoding.evaluations import read_evaluations
from sb3_refine.agents.decoding.pickle_tree import DecodingError
from sb3_refine.agents.decoding.zoo_yaml import read_zoo_yaml
from sb3_refine.agents.imports import check_importable
from sb3_refine.envs.families import current_env_id
from sb3_refine.errors import RefineError, did_you_mean
from sb3_refine.files import atomic_path

logger = logging.getLogger(__name__)

LAST_CHECKPOINT = "rl_model_*_steps.zip"


@dataclass(frozen=True)
class AgentFiles:
    """
    The files of an agent.

    :param model: the zip
    :param env: id of the environment it was trained on
    :param config: its ``config.yml``, or None
    :param args: its ``args.yml``, or None
    :param vec_normalize: its ``vecnormalize.pkl``, or None
    :param env_kwargs: its ``env_kwargs.yml``, or None
    :param source: of an agent from the Hub: ``repo`` and ``revision``
    :param evaluations: the ``evaluations.npz`` of its training, or None
    :param chosen_statistics: whether the user named ``vec_normalize``
    """

    model: Path
    env: str
    config: Path | None
    args: Path | None
    vec_normalize: Path | None
    env_kwargs: Path | None = None
    source: dict[str, str] = field(default_factory=dict)
    evaluations: Path | None = None
    chosen_statistics: bool = False


class NoSuchAgent(RefineError):
    """A folder has nothing at all under that algorithm and environment."""


def find_in_folder(folder: Path, algo: str, env: str, exp_id: int = 0, zip_name: str | None = None) -> AgentFiles:
    """
    Find an agent in a log folder of the Zoo.

    :param folder: the log folder
    :param algo: the Zoo's name of the algorithm
    :param env: environment id; if the folder has nothing for an old id, its new id is used
    :param exp_id: number of the experiment; 0: the newest, -1: no experiment folder
    :param zip_name: name of the zip, or a pattern of which the one with most steps is taken; None for the last model
    :return: its files
    :raises RefineError: when there is no such agent, saying what there is
    """
    if not folder.is_dir():
        raise NoSuchAgent(f"folder: there is no folder {folder}; name the Zoo's log folder with -f")
    parent = folder / algo
    env_name = env.replace("/", "-")
    if exp_id >= 0 and not _experiments(parent, env_name):
        env_name = current_env_id(env).replace("/", "-")
    if exp_id == 0:
        exp_id = max(_experiments(parent, env_name), default=0)
    run_folder = parent / f"{env_name}_{exp_id}" if exp_id > 0 else parent
    zips = sorted(filter(Path.is_file, run_folder.glob(zip_name or f"{env_name}.zip")), key=n_steps)
    if not zips:
        raise _not_found_error(folder, algo, env_name, run_folder, zip_name or f"{env_name}.zip")
    files = _files_beside(zips[-1], env, run_folder / env_name)
    _check_links(folder, files)
    return files


def find_beside(
    zip_path: Path, env: str | None = None, vec_normalize: Path | None = None, gym_packages: Iterable[str] = ()
) -> AgentFiles:
    """
    Find the files that belong to a zip: inside a Zoo folder, its config and statistics are beside it.

    :param zip_path: the zip; the suffix may be left out, as Stable-Baselines3 allows
    :param env: environment id; None to take that of the config
    :param vec_normalize: its statistics, if they are elsewhere
    :param gym_packages: modules that the user has named
    :return: its files
    :raises RefineError: when there is no such zip, or nothing says which environment it is for
    """
    if zip_path.suffix != ".zip" and not zip_path.is_file():
        zip_path = zip_path.with_name(f"{zip_path.name}.zip")
    if not zip_path.is_file():
        raise RefineError(f"model: no file at {zip_path}")
    given = env is not None
    names = [env.replace("/", "-")] if env else sorted(p.parent.name for p in zip_path.parent.glob("*/config.yml"))
    if len(names) != 1:
        raise RefineError(f"env: {zip_path} does not say which environment it is for; name it")
    args = _if_file(zip_path.parent / names[0] / "args.yml")
    _check_inside(args, zip_path.parent)
    env = env or str((read_zoo_yaml(args).get("env") if args else None) or names[0])
    if ":" in env and not given:
        check_importable(env.partition(":")[0], f"args.yml: env: {env[:80]!r}", gym_packages)
    files = _files_beside(zip_path, env, zip_path.parent / names[0], vec_normalize)
    _check_links(zip_path.parent, files, named_by_user=(zip_path, vec_normalize))
    return files


def run_folders(folder: Path, algo: str, env_name: str) -> list[Path]:
    """
    :param folder: a log folder
    :param algo: the Zoo's name of the algorithm
    :param env_name: name of the environment, as folders have it
    :return: the folders of the runs in it, by their numbers
    """
    return [folder / algo / f"{env_name}_{number}" for number in sorted(_experiments(folder / algo, env_name))]


def is_checkpoint(path: Path) -> bool:
    """
    :param path: a zip
    :return: whether the zip has a name of Stable-Baselines3's ``CheckpointCallback``
    """
    return re.fullmatch(r".+_\d+_steps", path.stem) is not None


def n_steps(path: Path) -> int:
    """
    :param path: a file of a checkpoint
    :return: time steps that the name tells; 0 where it tells none
    """
    return int(next(iter(re.findall(r"_(\d+)_steps", path.stem)), 0))


def read_args(files: AgentFiles) -> dict[str, Any]:
    """
    :param files: of an agent
    :return: its ``args.yml``; the environment's keyword arguments also from the ``env_kwargs.yml`` beside it, but for
        the ``render_mode`` that the Zoo adds there to film the agent
    :raises RefineError: when they cannot be read
    """
    args = read_zoo_yaml(files.args) if files.args else {}
    env_kwargs = read_zoo_yaml(files.env_kwargs) if files.env_kwargs else {}
    env_kwargs.pop("render_mode", None)
    if env_kwargs and isinstance(args.get("env_kwargs") or {}, dict):
        args["env_kwargs"] = {**(args.get("env_kwargs") or {}), **env_kwargs}
    return args


def new_run_folder(folder: str | Path, algo: str, env_name: str) -> Path:
    """
    Make the folder of a new run, as the Zoo numbers them: nothing is ever overwritten.

    :param folder: the output folder
    :param algo: the Zoo's name of the algorithm
    :param env_name: name of the environment
    :return: ``folder/algo/env_name_K``, K the next free number
    :raises RefineError: when it cannot be written
    """
    parent = Path(folder) / algo
    try:
        parent.mkdir(parents=True, exist_ok=True)
        run_folder = _make_next_folder(parent, env_name)
        with tempfile.TemporaryFile(dir=run_folder):
            pass
    except OSError as error:
        raise RefineError(
            f"output: cannot write to {parent} ({error.strerror or error}); choose another folder"
        ) from error
    return run_folder


def _make_next_folder(parent: Path, env_name: str) -> Path:
    """Several runs may look for the next number at once, and only one of them can make a folder."""
    number = max(_experiments(parent, env_name), default=0)
    while True:
        number += 1
        run_folder = parent / f"{env_name}_{number}"
        try:
            run_folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return run_folder


def remove_if_unused(run_folder: Path) -> None:
    """
    Remove the folder of a run that saved neither an agent nor a state to resume from, and its parents if empty.

    :param run_folder: a folder made by :func:`new_run_folder`
    """
    if any(any(run_folder.glob(pattern)) for pattern in ("*.zip", "state/*.pt", "checkpoints/*.zip", "auto/*/*")):
        return
    shutil.rmtree(run_folder, ignore_errors=True)
    with suppress(OSError):  # not empty
        run_folder.parent.rmdir()
        run_folder.parent.parent.rmdir()


def write_zoo_yaml(path: Path, content: dict[str, Any]) -> None:
    """
    :param path: where to
    :param content: written as the ordered dictionary that the Zoo reads and writes
    """
    try:
        text = zoo_yaml(content)
    except yaml.representer.RepresenterError as error:
        raise RefineError(
            f"{path.name}: {error.args[1]!r} cannot be written to it; pass numbers, text or lists"
        ) from error
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def zoo_yaml(content: dict[str, Any]) -> str:
    """
    :param content: of a ``config.yml`` or ``args.yml``
    :return: its text
    """
    return yaml.dump(OrderedDict(sorted(_plain(content).items())), Dumper=_ZooDumper)


class _ZooDumper(yaml.SafeDumper):
    """Writes the types that the Zoo reads, and no others."""


_ZooDumper.add_representer(
    OrderedDict,
    lambda dumper, content: dumper.represent_sequence(
        "tag:yaml.org,2002:python/object/apply:collections.OrderedDict", [[list(item) for item in content.items()]]
    ),
)


_ZooDumper.add_representer(
    tuple, lambda dumper, content: dumper.represent_sequence("tag:yaml.org,2002:python/tuple", content)
)


def _plain(value: Any) -> Any:
    """Numbers and arrays of numpy as YAML's own."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(part) for part in value)
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def _files_beside(zip_path: Path, env: str, inner: Path, vec_normalize: Path | None = None) -> AgentFiles:
    return AgentFiles(
        model=zip_path,
        env=env,
        config=_if_file(inner / "config.yml"),
        args=_if_file(inner / "args.yml"),
        vec_normalize=vec_normalize or _statistics_of(zip_path, inner),
        chosen_statistics=vec_normalize is not None,
        env_kwargs=_if_file(inner / "env_kwargs.yml"),
        evaluations=_if_file(zip_path.parent / "evaluations.npz"),
    )


def _check_links(folder: Path, files: AgentFiles, named_by_user: Iterable[Path | None] = ()) -> None:
    """An agent's files must not be links to other files of this machine; the folder itself may be a link."""
    parts = (files.model, files.config, files.args, files.vec_normalize, files.env_kwargs, files.evaluations)
    for path in parts:
        if path not in named_by_user:
            _check_inside(path, folder)


def _check_inside(path: Path | None, folder: Path) -> None:
    if path is not None and not path.resolve().is_relative_to(folder.resolve()):
        raise RefineError(f"{path}: a link that leads out of {folder}; put the file itself there")


def _statistics_of(zip_path: Path, inner: Path) -> Path | None:
    """A checkpoint has statistics of its own, if CheckpointCallback saved them; else those of the run, or beside it."""
    of_checkpoint = re.sub(r"_(\d+_steps)$", r"_vecnormalize_\1", zip_path.stem)
    names = [f"{of_checkpoint}.pkl"] if of_checkpoint != zip_path.stem else []
    places = [zip_path.parent / name for name in names] + [inner / "vecnormalize.pkl"]
    places += [zip_path.parent / name for name in ("vecnormalize.pkl", "vec_normalize.pkl")]
    return next((path for path in places if _if_file(path)), None)


class ExpectedReturn(NamedTuple):
    """
    The range of the mean return that an agent's evaluations in training suggest.

    :param low: least mean return of the evaluations next to the one that was saved, less one standard deviation
    :param high: highest, plus one standard deviation
    :param last: mean return of the evaluation of what was saved
    """

    low: float
    high: float
    last: float


def expected_return(files: AgentFiles) -> ExpectedReturn | None:
    """
    :param files: of an agent
    :return: what its ``evaluations.npz`` says of the zip: the best evaluation for ``best_model.zip``, that of its time
        step for a checkpoint, the last for any other; None without a readable one
    """
    if files.evaluations is None:
        return None
    try:
        time_steps, results = read_evaluations(files.evaluations)
    except DecodingError as error:
        logger.warning(
            "%s: cannot be read (%s); whether the agent returns what it did in training is not checked",
            *(files.evaluations, error),
        )
        return None
    means = results.mean(axis=1)
    at = len(means) - 1
    if files.model.name == "best_model.zip":
        at = int(means.argmax())
    elif n_steps(files.model):
        at = int(np.abs(time_steps.astype(np.float64) - n_steps(files.model)).argmin())
    near = slice(max(0, at - 4), at + 1)
    std = float(results[near].std(axis=1).mean())
    return ExpectedReturn(float(means[near].min()) - std, float(means[near].max()) + std, float(means[at]))


def _not_found_error(folder: Path, algo: str, env_name: str, run_folder: Path, zip_name: str) -> RefineError:
    """The error for an agent that is not found, with what the folder has instead."""
    if run_folder.is_dir() and run_folder != folder / algo:
        zips = ", ".join(sorted(path.name for path in run_folder.glob("*.zip")))
        return RefineError(f"no {zip_name} in {run_folder}; there are: {zips or 'no zips'}")
    same_env = sorted(str(path.relative_to(folder)) for path in folder.glob(f"*/{env_name}_[0-9]*"))
    if same_env:
        return NoSuchAgent(f"no such agent of {algo} in {folder}; there are: {', '.join(same_env)}")
    known = {re.sub(r"_\d+$", "", path.name) for path in folder.glob(f"{algo}/*_[0-9]*")}
    hint = did_you_mean(env_name, known) or (
        "" if known else f"; it has no agents of {algo}: is it the Zoo's log folder?"
    )
    return NoSuchAgent(f"no agent {algo}/{env_name} in {folder}{hint}")


def _experiments(parent: Path, env_name: str) -> list[int]:
    pattern = re.compile(re.escape(env_name) + r"_(\d+)")
    matches = [pattern.fullmatch(path.name) for path in parent.glob(f"{env_name}_*")]
    return [int(match.group(1)) for match in matches if match]


def _if_file(path: Path) -> Path | None:
    try:
        return path if path.is_file() else None
    except OSError:  # a name that is too long
        return None
