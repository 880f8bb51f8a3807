"""Agents pulled from the Hugging Face Hub."""

import logging
import re
from pathlib import Path

from sb3_refine.agents.hub_client import NotThere, client, is_unreachable, pull_refusal, quiet
from sb3_refine.agents.zoo import AgentFiles, NoSuchAgent, find_in_folder
from sb3_refine.envs.families import current_env_id
from sb3_refine.errors import RefineError, one_line
from sb3_refine.files import sha256

logger = logging.getLogger(__name__)

ORGANIZATION = "sb3"
"""Where the Zoo keeps its agents on the Hub."""

PULLED = ("config.yml", "args.yml", "env_kwargs.yml", "vec_normalize.pkl", "tasks.yml", "exploration.npz")
"""Files that are pulled with the zip, if the repo has them."""
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
    :param exp_id: number of the experiment, see :func:`~sb3_refine.agents.zoo.find_in_folder`
    :param zip_name: name of the zip, see :func:`~sb3_refine.agents.zoo.find_in_folder`
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
                "a repo on the Hub holds one agent: leave out `exp_id`, `load_best`, `load_checkpoint` and "
                "`load_last_checkpoint`, or `organization`, `repo_name` and `revision`"
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
            raise RefineError(f"{missing}; the agent was not loaded from the Hub either: {error}") from error


def pull(
    algo: str, env: str, organization: str = ORGANIZATION, repo_name: str | None = None, revision: str | None = None
) -> AgentFiles:
    """
    Pull an agent from the Hub into the Hub client's own cache, or take it from there when the Hub cannot be reached.

    :param algo: the Zoo's name of the algorithm
    :param env: environment id; if there is no repo for an old id, that of its new id is used
    :param organization: organization or user
    :param repo_name: name of the repo; None: ``ALGO-ENV``
    :param revision: branch, tag or commit; None: the newest
    :return: its files; all but the zip are optional
    :raises RefineError: no such repo, revision or zip; no access; no connection; an interrupted download
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
    wanted = [*zip_names, *PULLED]
    with quiet():
        try:
            info = hub.HfApi().model_info(repo, revision=revision, timeout=_TIMEOUT)
        except hub.errors.HFValidationError as error:
            raise RefineError(f"organization, repo_name: {one_line(error)}") from error
        except (hub.errors.HTTPError, OSError) as error:
            if not is_unreachable(error):
                raise pull_refusal(repo, revision, error) from error
            return _cached_snapshot(repo, revision, wanted, error)
        _check_zip(repo, zip_names, [file.rfilename for file in info.siblings or ()])
        try:
            # the zip last: if the cache has the zip, it has the other files too
            for names in (PULLED, zip_names):
                snapshot = Path(hub.snapshot_download(repo, revision=revision, allow_patterns=[*names]))
        except (hub.errors.HTTPError, OSError) as error:
            if not is_unreachable(error):
                raise pull_refusal(repo, revision, error) from error
            raise RefineError(
                f"the download of {repo} was interrupted ({one_line(error)}); no partial file is kept; run the same "
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
    beside = {name: snapshot / name for name in PULLED if (snapshot / name).is_file()}
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
            "download one and name it with `model`"
        )


def _check_intact(repo: str, path: Path) -> None:
    """The cache names the copy of a large file by its SHA-256 on the Hub."""
    copy = path.resolve()
    if re.fullmatch("[0-9a-f]{64}", copy.name) and sha256(copy) != copy.name:
        copy.unlink()
        path.unlink()
        raise RefineError(
            f"{repo}: the copy of {path.name} in the Hub's cache was damaged and has been removed; run the same "
            "command again to download the file"
        )
