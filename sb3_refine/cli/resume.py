"""``--resume``: going on with an interrupted run."""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sb3_refine.cli.options import is_code, is_scope
from sb3_refine.errors import EpisodeError, RefineError, printable
from sb3_refine.files import atomic_path, refuse_links

_SOURCE = "source.json"


def resumed_settings(options: argparse.Namespace) -> dict[str, Any]:
    """
    Fill the options not given with those of the interrupted run. Those that are given are compared with it later.

    :return: options of the optimizer, ``n_updates`` and ``selection``
    """
    from sb3_refine.optimizers import OPTIMIZERS
    from sb3_refine.parts import parse_part
    from sb3_refine.search.checkpoint import read_checkpoint

    if "preset" in options.given:
        raise RefineError("--resume: goes on with the settings of the interrupted run: leave --preset out")
    refuse_links(Path(options.resume))
    state_folder = Path(options.resume) / "state"
    settings, _ = read_checkpoint(state_folder)
    if settings["optimizer"] == "meta-es":
        raise RefineError(f"--resume: go on with this run by sb3-refine meta --resume {options.resume}")
    check_named_again(options, settings)
    for name in (
        "parameters", "seed", "n_eval_episodes", "alpha", "optimizer", "objective", "min_effect", "max_return_loss",
        "episodes_per_candidate",
    ):  # fmt: skip
        if name not in options.given:
            setattr(options, name, settings[name])
    options.quantize = options.quantize or settings.get("quantize")
    options.no_acceptance = options.no_acceptance or not settings["acceptance"]
    options.no_end_at_success = options.no_end_at_success or not settings["end_at_success"]
    take_tasks(options, settings)
    if options.model is None and options.algo is None and options.env is None:
        options.model = original_in(state_folder)
    optimizer, _ = parse_part("--resume: optimizer", settings["optimizer"], OPTIMIZERS)
    names = ("n_updates", "selection", *OPTIMIZERS[optimizer].options())
    try:
        return {name: settings[name] for name in names}
    except KeyError as error:
        raise RefineError(f"--resume: the checkpoint in {state_folder} has no {error.args[0]}") from None


def take_tasks(options: argparse.Namespace, settings: dict[str, Any]) -> None:
    """
    Go on with the tasks of the interrupted run, unless the user names a file.

    :param options: those given
    :param settings: of the interrupted run
    :raises RefineError: when the tasks came from a function, which no command can name
    """
    tasks = settings.get("tasks")
    if isinstance(tasks, str):
        raise RefineError(f"--resume: the tasks of the interrupted run came from {tasks}; go on with it in Python")
    if tasks is not None and options.tasks is None:
        from sb3_refine.agents.tasks import check_stored_tasks

        check_stored_tasks(tasks)
        options.tasks = tasks


def original_in(state_folder: Path) -> Path:
    """
    :param state_folder: of an interrupted run
    :return: the zip of the original
    :raises RefineError: when there is not one
    """
    zips = sorted(state_folder.glob("*.zip"))
    if len(zips) != 1:
        raise RefineError(f"--resume: expected one zip with the original agent in {state_folder}, found {len(zips)}")
    return zips[0]


def check_named_again(options: argparse.Namespace, settings: dict[str, Any]) -> None:
    """
    A checkpoint may come from someone else: do not run code or regular expressions that only the file names.

    :param options: those given
    :param settings: of the interrupted run
    :raises RefineError: when there is one that is not given again
    """
    unsafe = {
        "objective": is_code(settings["objective"]),
        "parameters": not is_scope(settings.get("parameters", "actor")),
    }
    for name, is_unsafe in unsafe.items():
        if is_unsafe and name not in options.given:
            raise RefineError(
                f"--resume: the interrupted run has --{name} {shlex.quote(settings[name])}, which is not run because "
                "only a file names it; pass the option again if you trust it"
            )


def resume_command(run_folder: Path, options: argparse.Namespace, subcommand: Sequence[str] = ()) -> str:
    """What goes on with the run. Code that the user named is not run again unless it is named again."""
    command = ["sb3-refine", *subcommand, "--resume", str(run_folder)]
    named = {"objective": "return", "parameters": "actor", **vars(options)}
    if is_code(named["objective"]):
        command += ["--objective", named["objective"]]
    if not is_scope(named["parameters"]):
        command += ["--parameters", named["parameters"]]
    module = (options.env or "").rpartition(":")[0]
    packages = list(dict.fromkeys(filter(None, [*options.gym_packages, module])))
    if packages:
        command += ["--gym-packages", *packages]
    if options.env_kwargs:
        command += ["--env-kwargs", *(f"{name}:{value}" for name, value in options.env_kwargs.items())]
    for flag in ("trust_remote_code", "no_report"):
        if getattr(options, flag):
            command += [f"--{flag.replace('_', '-')}"]
    if "backend" in options.given:
        command += ["--backend", options.backend]
    if "verbose" in options.given:
        command += ["--verbose", str(options.verbose)]
    return shlex.join(command)


def say_how_to_go_on(run_folder: Path, stop: BaseException, command: str) -> None:
    from sb3_refine.auto.auto_refiner import SETTINGS as AUTO
    from sb3_refine.search.checkpoint import FILE_NAME as CHECKPOINT
    from sb3_refine.training.checkpoints import FILE_NAME as TRAINING

    paths = (run_folder / "state" / CHECKPOINT, run_folder / "checkpoints" / TRAINING, run_folder / "auto" / AUTO)
    if not any(path.exists() for path in paths):
        return
    once = "" if isinstance(stop, KeyboardInterrupt) else ", once that is fixed"
    line = f"to go on from here{once}: {command}"
    if isinstance(stop, EpisodeError):  # the same episode would fail again
        line += " (with --time-limit 0, to judge what there is)"
    print(printable(line), file=sys.stderr)


def original_source(source: dict[str, Any], state_folder: Path) -> dict[str, Any]:
    """Where the agent came from in the first place, also when it is loaded from the state of an interrupted run."""
    from sb3_refine.agents.decoding.schema import SchemaError, read_json
    from sb3_refine.reporting.record import SOURCE

    path = state_folder / _SOURCE
    if path.exists():
        try:
            stored = read_json(path)
            SOURCE(stored)
        except SchemaError as error:
            raise RefineError(f"--resume: {path} is damaged ({error}); start a new run") from None
        return stored
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(source))
    return source


def csv_format(path: Path) -> Any:
    """SB3's format starts an empty file: a resumed run keeps the rows that it has."""
    from stable_baselines3.common.logger import CSVOutputFormat

    try:
        before = path.read_text() if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise RefineError(f"--resume: {path} cannot be read ({type(error).__name__}); remove it") from None
    csv_format = CSVOutputFormat(str(path))
    if before:
        csv_format.file.write(before)
        csv_format.keys = before.splitlines()[0].split(",")
    return csv_format
