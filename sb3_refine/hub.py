"""The Hugging Face Hub: agents pulled from it, refined agents pushed to it, in the Zoo's layout of a repo."""

import io
import json
import logging
import re
import shlex
import zipfile
from pathlib import Path
from typing import Any

import yaml

from sb3_refine.environments import current_env_id
from sb3_refine.errors import RefineError, one_line
from sb3_refine.files import sha256
from sb3_refine.hub_client import LOG_IN, NotThere, client, is_unreachable, pull_refusal, push_refusal, quiet
from sb3_refine.model_card import model_card
from sb3_refine.run_folder import RunFolder, read_run_folder
from sb3_refine.zoo import AgentFiles, NoSuchAgent, find_in_folder, zoo_yaml

logger = logging.getLogger(__name__)

ORGANIZATION = "sb3"
"""Where the Zoo keeps its agents on the Hub."""

_PULLED = ("config.yml", "args.yml", "env_kwargs.yml", "vec_normalize.pkl")
"""What is pulled beside the zip, where it is there."""

_OURS = (*_PULLED, "train_eval_metrics.zip", "results.json", "refinement.json", "report.md", "replay.mp4")
"""What speaks of the agent that a push replaces, and must not outlive it."""

_METRICS = ("evaluations.npz", "progress.csv")
_TIMEOUT = 30.0


# ---------------------------------------------------------------- pull


def find_agent(
    folder: Path,
    algo: str,
    env: str,
    exp_id: int = 0,
    zip_name: str | None = None,
    *,
    organization: str | None = None,
    repo_name: str | None = None,
    revision: str | None = None,
) -> AgentFiles:
    """
    Find an agent in a log folder of the Zoo; on the Hub, if the folder has none, or if the Hub is asked for.

    :param folder: the log folder
    :param algo: the Zoo's name of the algorithm
    :param env: environment id
    :param exp_id: number of the experiment, see :func:`~sb3_refine.zoo.find_in_folder`
    :param zip_name: name of the zip, see :func:`~sb3_refine.zoo.find_in_folder`
    :param organization: on the Hub; None: the Zoo's
    :param repo_name: name of the repo; None: ``ALGO-ENV``
    :param revision: branch, tag or commit; None: the newest
    :return: its files
    :raises RefineError: when neither has it, saying what the folder has and what the Hub has answered
    """
    has_choice = exp_id != 0 or zip_name is not None
    if not (organization is None and repo_name is None and revision is None):
        if has_choice:
            raise RefineError(
                "a repo on the Hub holds one agent: leave out --exp-id, --load-best, --load-checkpoint and "
                "--load-last-checkpoint, or --organization, --repo-name and --revision"
            )
        return pull(algo, env, organization or ORGANIZATION, repo_name, revision)
    try:
        return find_in_folder(folder, algo, env, exp_id, zip_name)
    except NoSuchAgent as missing:
        if has_choice:
            raise
        try:
            return pull(algo, env)
        except RefineError as error:
            raise RefineError(f"{missing}; nor is it on the Hub: {error}") from error


def pull(
    algo: str, env: str, organization: str = ORGANIZATION, repo_name: str | None = None, revision: str | None = None
) -> AgentFiles:
    """
    Pull an agent from the Hub into the Hub client's own cache, or take it from there when the Hub cannot be reached.

    :param algo: the Zoo's name of the algorithm
    :param env: environment id; where nothing is filed under an old id, what its new id has is taken
    :param organization: organization or user
    :param repo_name: name of the repo; None: ``ALGO-ENV``
    :param revision: branch, tag or commit; None: the newest
    :return: its files; all but the zip are optional
    :raises RefineError: no such repo, revision or zip; no access; no connection; a download that broke off
    """
    names = list(dict.fromkeys(f"{algo}-{name.replace('/', '-')}" for name in (env, current_env_id(env))))
    missing: list[NotThere] = []
    for repo in [repo_name] if repo_name else names:
        try:
            snapshot = _snapshot(f"{organization}/{repo}", revision, [f"{name}.zip" for name in names])
        except NotThere as error:
            missing.append(error)
            continue
        return _files_of(snapshot, f"{organization}/{repo}", env, names)
    raise missing[0]


def _snapshot(repo: str, revision: str | None, zip_names: list[str]) -> Path:
    """:return: the folder in the client's cache with the agent's files at one commit"""
    hub = client()
    wanted = [*zip_names, *_PULLED]
    with quiet():
        try:
            info = hub.HfApi().model_info(repo, revision=revision, timeout=_TIMEOUT)
        except hub.errors.HFValidationError as error:
            raise RefineError(f"--organization, --repo-name: {one_line(error)}") from error
        except (hub.errors.HTTPError, OSError) as error:
            if not is_unreachable(error):
                raise pull_refusal(repo, revision, error) from error
            return _cached_snapshot(repo, revision, wanted, error)
        _check_zip(repo, zip_names, [file.rfilename for file in info.siblings or ()])
        try:
            # the zip last: where the cache has it, it has the rest too
            for names in (_PULLED, zip_names):
                snapshot = Path(hub.snapshot_download(repo, revision=revision, allow_patterns=[*names]))
        except (hub.errors.HTTPError, OSError) as error:
            if not is_unreachable(error):
                raise pull_refusal(repo, revision, error) from error
            raise RefineError(
                f"the download of {repo} broke off ({one_line(error)}); no half of a file is kept: run the same "
                "command again"
            ) from error
    logger.info("pulled from the Hub: %s, revision %s", repo, snapshot.name)
    return snapshot


def _cached_snapshot(repo: str, revision: str | None, wanted: list[str], reason: Exception) -> Path:
    hub = client()
    try:
        snapshot = Path(hub.snapshot_download(repo, revision=revision, allow_patterns=wanted, local_files_only=True))
    except hub.errors.LocalEntryNotFoundError as error:
        asked = f"{repo} at {revision}" if revision else repo
        remedy = "unset HF_HUB_OFFLINE" if hub.constants.HF_HUB_OFFLINE else "check the connection"
        raise NotThere(
            f"the Hub cannot be reached ({one_line(reason)}), and its cache has no complete copy of {asked}; {remedy}"
        ) from error
    logger.info("the Hub cannot be reached: %s, revision %s from its cache", repo, snapshot.name)
    return snapshot


def _files_of(snapshot: Path, repo: str, env: str, names: list[str]) -> AgentFiles:
    _check_zip(repo, [f"{name}.zip" for name in names], [path.name for path in snapshot.glob("*.zip")])
    zip_path = next(path for name in names if (path := snapshot / f"{name}.zip").is_file())
    beside = {name: snapshot / name for name in _PULLED if (snapshot / name).is_file()}
    for path in (zip_path, *beside.values()):
        _check_intact(repo, path)
    return AgentFiles(
        model=zip_path,
        env=env,
        config=beside.get("config.yml"),
        args=beside.get("args.yml"),
        vec_normalize=beside.get("vec_normalize.pkl"),
        env_kwargs=beside.get("env_kwargs.yml"),
        source={"repo": repo, "revision": snapshot.name},
    )


def _check_zip(repo: str, wanted: list[str], there: list[str]) -> None:
    if not set(wanted) & set(there):
        zips = [name for name in there if name.endswith(".zip") and name != "train_eval_metrics.zip"]
        raise RefineError(
            f"{repo} has no {' or '.join(wanted)}; its zips: {', '.join(sorted(zips)) or 'none'}; "
            "download one and name it with --model"
        )


def _check_intact(repo: str, path: Path) -> None:
    """The cache names a large file's copy by the SHA-256 that the Hub has of it."""
    copy = path.resolve()
    if re.fullmatch("[0-9a-f]{64}", copy.name) and sha256(copy) != copy.name:
        copy.unlink()
        path.unlink()
        raise RefineError(
            f"{repo}: the copy of {path.name} in the Hub's cache was damaged, and is removed; run the same command "
            "again to download it anew"
        )


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
        raise RefineError(f"--push-to-hub: {one_line(error)}") from error
    if hub.constants.HF_HUB_OFFLINE:
        raise RefineError("--push-to-hub: HF_HUB_OFFLINE is set; unset it, or push later with `sb3-refine push`")
    if hub.get_token() is None:
        raise RefineError(f"--push-to-hub: the Hub takes nothing without a token; {LOG_IN}")


def push(run_folder: str | Path, organization: str, repo_name: str | None = None) -> str:
    """
    Push what a run has left to the Hub, where this package, the Zoo's ``load_from_hub`` and that of ``huggingface_sb3``
    find it. The repo is made if need be; files of the agent that was there before do not stay.

    :param run_folder: ``OUTPUT/ALGO/ENV_K``
    :param organization: organization or user
    :param repo_name: name of the repo; None: ``ALGO-ENV``
    :return: address of the repo
    :raises RefineError: when it could not be pushed, with the command that tries again; the folder stays as it is
    """
    run = read_run_folder(run_folder)
    repo = f"{organization}/{repo_name or f'{run.algo}-{run.env_name}'}"
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
    :param run: what a run has left
    :param repo: where it goes
    :return: the files of the repo: their names, as the Zoo has them, and their content or where it lies
    """
    inner = run.path / run.env_name
    refinement = {**run.refinement, "source": _published(run.refinement["source"])}
    files: dict[str, Path | bytes] = {
        f"{run.algo}-{run.env_name}.zip": run.zip,
        "config.yml": zoo_yaml(run.config).encode(),
        "args.yml": inner / "args.yml",
        "env_kwargs.yml": yaml.safe_dump(json.loads(json.dumps(run.args.get("env_kwargs") or {}))).encode(),
        "train_eval_metrics.zip": _zipped([path for name in _METRICS if (path := run.path / name).is_file()]),
        "refinement.json": (json.dumps(refinement, indent=2) + "\n").encode(),
        "README.md": model_card(run, repo).encode(),
        **{f"plots/{path.name}": path for path in run.plots},
    }
    if run.report is not None:  # without the folders of this machine
        text = run.report.read_text(errors="replace")
        files["report.md"] = text.replace(str(run.path.parent.parent), "refined-agents").encode()
    if run.vec_normalize is not None:
        files["vec_normalize.pkl"] = run.vec_normalize
    if run.evaluation is not None:
        results = {
            "mean_reward": run.evaluation["mean_return"],
            "std_reward": run.evaluation["std_return"],
            "is_deterministic": True,
            "n_eval_episodes": run.evaluation["n_episodes"],
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


def _published(source: dict[str, Any]) -> dict[str, Any]:
    """Where an agent came from, without the folders of the machine that refined it."""
    return {**source, "path": Path(source["path"]).name if source.get("path") else None}


def _zipped(paths: list[Path]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in paths:
            archive.writestr(zipfile.ZipInfo(path.name), path.read_bytes())  # without the date: same bytes again
    return buffer.getvalue()
