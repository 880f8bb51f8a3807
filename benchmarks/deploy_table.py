"""
The tables of deploy.py, in Markdown.

python benchmarks/deploy_table.py benchmarks/results/deploy.json
"""

import argparse
import json
from pathlib import Path
from typing import Any

Cells = dict[str, Any]


def main() -> None:
    options = argparse.ArgumentParser(description="The tables of deploy.py, in Markdown.")
    options.add_argument("json", type=Path)
    cells = json.loads(options.parse_args().json.read_text())
    for table in (transformers, small_students, rounded, exported_agents, exported_students, speed):
        rows = table(cells)
        if len(rows) > 1:
            print(f"\n{table.__doc__}\n")
            print(_markdown(rows))


def transformers(cells: Cells) -> list[list[str]]:
    """A transformer of the walker, three seeds: mean return +- std; the population is the mean of all candidates."""
    rows = [["seed", "teacher", "cloned", "DAgger", "default search", "es-transformers", "population, wrong noise"]]
    for seed in range(10):
        name = f"transformer {seed}"
        if f"{name} dagger" not in cells:
            continue
        found = [cells.get(f"{name} {kind}") for kind in ("default search", "es-transformers", "wrong noise")]
        rows.append(
            [
                str(seed),
                _return(cells[f"{name} dagger"]["teacher"]),
                _return(cells[f"{name} cloned"]["student"]),
                _return(cells[f"{name} dagger"]["student"]),
                *(_verdict(cell) for cell in found[:2]),
                ", ".join(f"{value:,.0f}" for value in found[2]["population"]) if found[2] else "",
            ]
        )
    return rows


def small_students(cells: Cells) -> list[list[str]]:
    """Students: share of the teacher's return before and after refinement."""
    rows = [["teacher", "student", "parameters", "teacher's return", "student", "share", "refined", "share"]]
    for name, cell in cells.items():
        if not name.startswith("small ") or "n_parameters" not in cell:
            continue
        _, algo, env, student = name.split(" ", 3)
        refined = cells.get(f"{name} refined")
        after = refined["refined"]["mean_return"] / cell["teacher"]["mean_return"] if refined else None
        rows.append(
            [
                f"{algo} {env}",
                student.removeprefix("mlp:net_arch="),
                f"{cell['n_parameters']:,}",
                _return(cell["teacher"]),
                _return(cell["student"]),
                f"{cell['share']:.0%}",
                _verdict(refined),
                "" if after is None else f"{after:.0%}",
            ]
        )
    return rows


def rounded(cells: Cells) -> list[list[str]]:
    """Mean return after rounding minus before, on the same seeds, with its 95% interval."""
    kinds = ("float16", "int8", "int4")
    rows = [["agent", "return", *kinds]]
    names = [name.rpartition(" ")[0] for name in cells if name.startswith("rounding ") and name.endswith("float16")]
    for name in names:
        found = [cells.get(f"{name} {kind}") for kind in kinds]
        rows.append(
            [name.removeprefix("rounding "), _return(found[0]["before"]), *(_difference(cell) for cell in found)]
        )
    return rows


def exported_agents(cells: Cells) -> list[list[str]]:
    """Largest difference to predict in ten episodes, or steps with another action; bytes."""
    rows = [["agent", "steps", "onnx", "torch", "c"]]
    for name, cell in cells.items():
        if name.startswith("export ") and "small" not in name:
            files = cell.get("files", {})
            shown = [_file(files.get(kind)) for kind in ("onnx", "torch", "c")]
            steps = f"{cell['n_steps']:,}" if files else cell["refused"]
            rows.append([name.removeprefix("export "), steps, *shown])
    return rows


def exported_students(cells: Cells) -> list[list[str]]:
    """Files of students: bytes, and microseconds a step called from Python."""
    rows = [["student", "weights", "parameters", "onnx", "c"]]
    for name, cell in cells.items():
        if name.startswith("export small"):
            student, _, kind = name.removeprefix("export small ").rpartition(" ")
            files = [cell["files"][each] for each in ("onnx", "c")]
            shown = [f"{file['bytes']:,} B, {file['us_per_step']:.1f} us" for file in files]
            rows.append([student, "float32" if kind == "None" else kind, f"{cell['n_parameters']:,}", *shown])
    return rows


def speed(cells: Cells) -> list[list[str]]:
    """Microseconds a step of a transformer, median."""
    rows = [["parameters", "whole window", "predict", "rollout"]]
    cell = cells.get("speed transformer")
    if cell:
        rows.append([f"{cell['n_parameters']:,}", *(f"{cell[f'us {each}']:.0f}" for each in rows[0][1:])])
    return rows


def _return(figures: dict[str, Any]) -> str:
    digits = 0 if abs(figures["mean_return"]) >= 1000 else 1
    return f"{figures['mean_return']:,.{digits}f} ± {figures['std_return']:,.{digits}f}"


def _verdict(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return ""
    shown = _return(cell["refined"])
    return f"**{shown}**" if cell["decision"] == "refined" else f"{shown} (kept)"


def _difference(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return ""
    found = cell["paired_difference"]
    return f"{found['mean']:+,.1f} [{found['ci_low']:,.1f}, {found['ci_high']:,.1f}]"


def _file(file: dict[str, Any] | None) -> str:
    if file is None:
        return ""
    found = f"{file['n_different']} other" if "n_different" in file else f"{file['largest_difference']:.1e}"
    return f"{found}; {file['bytes']:,} B"


def _markdown(rows: list[list[str]]) -> str:
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body])


if __name__ == "__main__":
    main()
