"""What the benchmarks share: the circumstances of a run, a table, a JSON file, an environment."""

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from rich.console import Console
from rich.table import Table

from sb3_refine.reporting.record import versions

ROOT = Path(__file__).parents[1]


class EndsAtOnce(gym.Env):
    """Free of charge, and over after one step."""

    def __init__(self, observation_space: gym.Space, action_space: gym.Space):
        self.observation_space, self.action_space = observation_space, action_space
        self._observation = np.zeros(observation_space.shape, observation_space.dtype)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self._observation, {}

    def step(self, action: Any) -> Any:
        return self._observation, float(action[0]), True, False, {}


def parser(description: str) -> argparse.ArgumentParser:
    """:return: a parser with the options that every benchmark has"""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--json", type=Path, help="write the results here too")
    options.add_argument(
        "--agents", type=Path, default=ROOT.parent / "shared" / "agents", help="a log folder of the Zoo"
    )
    return options


def circumstances() -> dict[str, Any]:
    """:return: command, commit, versions and machine of this run"""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    changed = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=False)
    cpu = next((x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")), ": unknown")
    return {
        "command": " ".join(["python", *(Path(a).name if a.startswith("/") else a for a in sys.argv)]),
        "commit": commit.stdout.strip() + (" with changes" if changed.stdout.strip() else ""),
        "versions": versions(),
        "machine": f"{platform.machine()}, {cpu.partition(':')[2].strip()}",
    }


def show(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    """Print a table; numbers to three significant digits."""
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row))
    Console(width=160).print(table)


def write(path: Path | None, results: list[dict[str, Any]]) -> None:
    """Write a list of results, each with the circumstances."""
    if path is not None:
        run = circumstances()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([{**result, "run": run} for result in results], indent=1) + "\n")
