"""What a finished run has left, read again."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sb3_refine.errors import RefineError
from sb3_refine.files import sha256
from sb3_refine.legacy import read_zoo_yaml


@dataclass(frozen=True)
class RunFolder:
    """
    What a run has left, to be pushed.

    :param path: the folder, ``OUTPUT/ALGO/ENV_K``
    :param env_name: name of the environment, as files are named after it
    :param args: the Zoo's ``args.yml``
    :param config: the Zoo's ``config.yml``
    :param refinement: ``refinement.json``
    """

    path: Path
    env_name: str
    args: dict[str, Any]
    config: dict[str, Any]
    refinement: dict[str, Any]

    @property
    def algo(self) -> str:
        """The Zoo's name of the algorithm."""
        return str(self.refinement["settings"]["algo"])

    @property
    def env_id(self) -> str:
        """Id of the environment."""
        return str(self.refinement["settings"]["env"])

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
        return sorted(self.path.glob("plots/*.png"))

    @property
    def report(self) -> Path | None:
        """The report, where one was written."""
        path = self.path / "report.md"
        return path if path.is_file() else None

    @property
    def evaluation(self) -> dict[str, Any] | None:
        """The held-out figures of the agent that was saved, or None where it was not tested."""
        name = {"refined": "refined", "original": "baseline"}.get(self.refinement["decision"])
        return self.refinement[name] if name else None


def read_run_folder(path: str | Path) -> RunFolder:
    """
    :param path: ``OUTPUT/ALGO/ENV_K``
    :return: what lies there
    :raises RefineError: when it is no such folder, or the zip is not the one that ``refinement.json`` speaks of
    """
    path = Path(path)
    inner = sorted(config.parent for config in path.glob("*/config.yml"))
    if not (path / "refinement.json").is_file() or len(inner) != 1:
        raise RefineError(f"{path}: no folder of a finished run; name OUTPUT/ALGO/ENV_K, which has a refinement.json")
    run = RunFolder(
        path=path,
        env_name=inner[0].name,
        args=read_zoo_yaml(inner[0] / "args.yml"),
        config=read_zoo_yaml(inner[0] / "config.yml"),
        refinement=_read_json(path / "refinement.json"),
    )
    if not run.zip.is_file() or sha256(run.zip) != run.refinement["output_sha256"]:
        raise RefineError(f"{run.zip}: missing, or not the agent that refinement.json speaks of; refine it again")
    return run


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError, OSError) as error:
        raise RefineError(f"{path}: cannot be read ({error}); refine the agent again") from error
