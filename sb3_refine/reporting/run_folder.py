"""What a finished run has left, read again."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sb3_refine.agents.decoding.schema import (
    SchemaError,
    flag,
    mapping_of,
    number,
    one_of,
    optional,
    plain,
    read_json,
    record,
    text,
    whole,
)
from sb3_refine.agents.decoding.zoo_expressions import without_code
from sb3_refine.agents.decoding.zoo_yaml import read_zoo_yaml
from sb3_refine.agents.sb3_models import ALGOS
from sb3_refine.errors import RefineError
from sb3_refine.files import refuse_links, sha256


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
        return sorted(path for path in self.path.glob("plots/*.png") if re.fullmatch(r"[\w-]+\.png", path.name))

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
    refuse_links(path)
    inner = sorted(config.parent for config in path.glob("*/config.yml"))
    if not (path / "refinement.json").is_file() or len(inner) != 1:
        raise RefineError(f"{path}: no folder of a finished run; name OUTPUT/ALGO/ENV_K, which has a refinement.json")
    if not re.fullmatch(r"[\w.:-]+", inner[0].name):
        raise RefineError(f"{inner[0]}: expected the name of an environment, of letters, digits and any of . : _ -")
    run = RunFolder(
        path=path,
        env_name=inner[0].name,
        args=_read_args(inner[0] / "args.yml"),
        config=without_code(read_zoo_yaml(inner[0] / "config.yml")),
        refinement=_read_refinement(path / "refinement.json"),
    )
    if not run.zip.is_file() or sha256(run.zip) != run.refinement["output_sha256"]:
        raise RefineError(f"{run.zip}: missing, or not the agent that refinement.json speaks of; refine it again")
    return run


_HEX = r"[0-9a-f]{64}"
_ID = r"[\w./:-]{1,200}"
_FIGURE = optional(number(-1e300, 1e300))  # null stands for NaN

SOURCE = record(
    {
        "path?": optional(text()),
        "sha256?": optional(text(_HEX)),
        "repo?": optional(text(_ID)),
        "revision?": optional(text(r"[\w./-]{1,200}")),
    },
    others=plain,
)
"""Where an agent came from, as ``source.json`` and ``refinement.json`` have it."""

_EVALUATION = record(
    {
        **dict.fromkeys(("mean_return", "std_return", "min_return", "cvar10_return", "mean_length"), _FIGURE),
        "failure_rate": _FIGURE,
        "n_episodes": whole(1),
    }
)

_REFINEMENT = record(
    {
        "decision": one_of("refined", "original", "unchecked"),
        "reason": text(),
        "baseline": optional(_EVALUATION),
        "refined": optional(_EVALUATION),
        "paired_difference": optional(
            record(
                {
                    **dict.fromkeys(("mean", "ci_low", "ci_high", "p_better"), _FIGURE),
                    "confidence": number(0, 1),
                    "paired": flag,
                }
            )
        ),
        "rollouts": whole(0),
        "env_steps": whole(0),
        "settings": record(
            {
                "algo": one_of(*ALGOS),
                "env": text(_ID),
                "optimizer": text(),
                "objective?": text(),
                "n_updates_done": whole(0),
            }
        ),
        "seeds": record({"seed": whole(0)}),
        "versions": mapping_of(text(r"[\w.+!-]{1,50}"), r"[\w.-]{1,50}"),
        "source": SOURCE,
        "output_sha256": text(_HEX),
    }
)


def _read_args(path: Path) -> dict[str, Any]:
    args = read_zoo_yaml(path)
    if not isinstance(args.get("env_kwargs") or {}, dict):
        raise RefineError(f"{path}: env_kwargs: expected a mapping")
    return args


def _read_refinement(path: Path) -> dict[str, Any]:
    try:
        refinement = read_json(path)
        _REFINEMENT(refinement)
    except SchemaError as error:
        raise RefineError(f"{path}: cannot be read ({error}); refine the agent again") from None
    return dict(refinement)
