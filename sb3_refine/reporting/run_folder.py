"""The folder of a finished run, read again."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sb3_refine.agents.decoding.zoo_expressions import without_code
from sb3_refine.agents.decoding.zoo_yaml import read_zoo_yaml
from sb3_refine.errors import RefineError
from sb3_refine.files import refuse_links, sha256
from sb3_refine.reporting.record import FILE_NAME, RunRecord, read_record


@dataclass(frozen=True)
class RunFolder:
    """
    The folder of a finished run.

    :param path: the folder, ``OUTPUT/ALGO/ENV_K``
    :param env_name: name of the environment, as files are named after it
    :param args: the Zoo's ``args.yml``
    :param config: the Zoo's ``config.yml``
    :param record: ``refinement.json``
    """

    path: Path
    env_name: str
    args: dict[str, Any]
    config: dict[str, Any]
    record: RunRecord

    @property
    def zip(self) -> Path:
        """The agent."""
        return self.path / f"{self.env_name}.zip"

    @property
    def vec_normalize(self) -> Path | None:
        """Its observation statistics, where it has any."""
        path = self.path / self.env_name / "vecnormalize.pkl"
        return path if path.is_file() else None

    @property
    def plots(self) -> list[Path]:
        """Pictures for the model card."""
        return sorted(path for path in self.path.glob("plots/*.png") if re.fullmatch(r"[\w-]+\.png", path.name))

    @property
    def report(self) -> Path | None:
        """The report, where one was written."""
        path = self.path / "report.md"
        return path if path.is_file() else None


def read_run_folder(path: str | Path) -> RunFolder:
    """
    :param path: ``OUTPUT/ALGO/ENV_K``
    :return: its content
    :raises RefineError: when it is no such folder, or the zip is not the one that ``refinement.json`` names
    """
    path = Path(path)
    refuse_links(path)
    inner = sorted(config.parent for config in path.glob("*/config.yml"))
    if not (path / FILE_NAME).is_file() or len(inner) != 1:
        raise RefineError(f"{path}: no folder of a finished run; name OUTPUT/ALGO/ENV_K, which has a refinement.json")
    if not re.fullmatch(r"[\w.:-]+", inner[0].name):
        raise RefineError(f"{inner[0]}: expected the name of an environment, of letters, digits and any of . : _ -")
    run = RunFolder(
        path=path,
        env_name=inner[0].name,
        args=_read_args(inner[0] / "args.yml"),
        config=without_code(read_zoo_yaml(inner[0] / "config.yml")),
        record=read_record(path),
    )
    if not run.zip.is_file() or sha256(run.zip) != run.record.output_sha256:
        raise RefineError(f"{run.zip}: missing, or not the agent that refinement.json names; refine it again")
    return run


def _read_args(path: Path) -> dict[str, Any]:
    args = read_zoo_yaml(path)
    if not isinstance(args.get("env_kwargs") or {}, dict):
        raise RefineError(f"{path}: env_kwargs: expected a mapping")
    return args
