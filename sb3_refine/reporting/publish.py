"""The folder of a run, pushed to the Hugging Face Hub in the Zoo's layout of a repo."""

import io
import json
import shlex
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from sb3_refine.agents.hub import PULLED
from sb3_refine.agents.hub_client import LOG_IN, client, push_refusal, quiet
from sb3_refine.agents.zoo import zoo_yaml
from sb3_refine.errors import RefineError, one_line
from sb3_refine.reporting.model_card import model_card
from sb3_refine.reporting.report import report_text
from sb3_refine.reporting.run_folder import RunFolder, read_run_folder

_BESIDE = ("tasks.yml", "exploration.npz")
_OURS = (*PULLED, "train_eval_metrics.zip", "results.json", "refinement.json", "report.md", "replay.mp4")
"""Files about the agent that a push replaces; they are removed."""

_METRICS = ("evaluations.npz", "progress.csv")


# ---------------------------------------------------------------- push


def check_push(organization: str, repo_name: str | None = None) -> None:
    """
    Find out before the search what would stop a push after it, as far as that needs no connection.

    :param organization: organization or user to push to
    :param repo_name: name of the repo, if it is known
    :raises RefineError: when the Hub's client or a token is missing, or the name cannot be one
    """
    hub = client()
    try:
        hub.utils.validate_repo_id(f"{organization}/{repo_name or 'name'}")
    except hub.errors.HFValidationError as error:
        raise RefineError(f"cannot push: {one_line(error)}") from error
    if hub.constants.HF_HUB_OFFLINE:
        raise RefineError("HF_HUB_OFFLINE is set: unset it, or push later with `sb3-refine push`")
    if hub.get_token() is None:
        raise RefineError(f"the Hub takes nothing without a token; {LOG_IN}")


def push(run_folder: str | Path, organization: str, repo_name: str | None = None) -> str:
    """
    Push the folder of a run to the Hub, in the layout that this package and ``load_from_hub`` of the Zoo and of
    ``huggingface_sb3`` expect. A missing repo is created; files of an agent that was there before are removed.

    :param run_folder: ``OUTPUT/ALGO/ENV_K``
    :param organization: organization or user
    :param repo_name: name of the repo; None: ``ALGO-ENV``
    :return: address of the repo
    :raises RefineError: when it could not be pushed, with the command that tries again; the folder stays as it is
    """
    run = read_run_folder(run_folder)
    repo = f"{organization}/{repo_name or f'{run.record.algo}-{run.env_name}'}"
    command = ["sb3-refine", "push", str(run_folder), "--organization", organization]
    command += ["--repo-name", repo_name] if repo_name else []
    try:
        check_push(organization, repo_name)
        return _upload(repo, layout(run, repo))
    except RefineError as error:
        raise RefineError(
            f"not pushed to {repo}: {error}; the agent is safe in {run_folder}; to try again: {shlex.join(command)}"
        ) from error


def layout(run: RunFolder, repo: str) -> dict[str, Path | bytes]:
    """
    :param run: the folder of a run
    :param repo: id of the repo
    :return: the files of the repo by the Zoo's names: their content, or the path of a file
    """
    inner = run.path / run.env_name
    record = replace(run.record, source=_published(run.record.source), command=None)  # it may name folders, too
    files: dict[str, Path | bytes] = {
        f"{record.algo}-{run.env_name}.zip": run.zip,
        "config.yml": zoo_yaml(run.config).encode(),
        "args.yml": inner / "args.yml",
        "env_kwargs.yml": yaml.safe_dump(json.loads(json.dumps(run.args.get("env_kwargs") or {}))).encode(),
        "train_eval_metrics.zip": _zipped([path for name in _METRICS if (path := run.path / name).is_file()]),
        "refinement.json": (json.dumps(record.to_json(), indent=2) + "\n").encode(),
        "README.md": model_card(run, repo).encode(),
        **{f"plots/{path.name}": path for path in run.plots},
    }
    if run.report is not None:  # written anew: without the folders of this machine, and without what others added to it
        folder = Path("refined-agents", record.algo, run.path.name)
        files["report.md"] = report_text(folder, record, {path.stem for path in run.plots}).encode()
    if run.vec_normalize is not None:
        files["vec_normalize.pkl"] = run.vec_normalize
    files |= {name: path for name in _BESIDE if (path := run.path / name).is_file()}
    if record.saved is not None and not record.tasks:  # of the environment itself
        results = {
            "mean_reward": record.saved.mean_return,
            "std_reward": record.saved.std_return,
            "is_deterministic": True,
            "n_eval_episodes": record.saved.n_episodes,
        }
        files["results.json"] = json.dumps(results).encode()
    return files


def _upload(repo: str, files: dict[str, Path | bytes]) -> str:
    hub = client()
    api = hub.HfApi()
    zip_name = next(name for name in files if name.endswith(".zip"))
    with quiet():
        try:
            url = api.create_repo(repo, exist_ok=True)
            stale = [name for name in api.list_repo_files(repo) if _is_stale(name, zip_name, files)]
            api.create_commit(
                repo,
                [
                    *(hub.CommitOperationDelete(path_in_repo=name) for name in stale),
                    *(hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=file) for name, file in files.items()),
                ],
                commit_message="Refined with sb3-refine",
            )
        except (hub.errors.HTTPError, OSError, RuntimeError, ValueError) as error:
            raise push_refusal(repo, error) from error
    return str(url)


def _is_stale(name: str, zip_name: str, files: dict[str, Path | bytes]) -> bool:
    """Whether a file in the repo is of the agent that was there before; the Zoo also leaves its zip unpacked."""
    return name not in files and (name in _OURS or name.startswith(("plots/", f"{Path(zip_name).stem}/")))


def _published(source: Mapping[str, Any]) -> dict[str, Any]:
    """Where an agent came from, without the folders of the machine that refined it."""
    return {**source, "path": Path(source["path"]).name if source.get("path") else None}


def _zipped(paths: list[Path]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in paths:
            archive.writestr(zipfile.ZipInfo(path.name), path.read_bytes())  # without the date: same bytes again
    return buffer.getvalue()
