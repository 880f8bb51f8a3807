"""One search and its verdict as a row of a results file, and a loop over rows that goes on after an interruption."""

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common import circumstances

from sb3_refine import Refiner


def search_and_test(refiner: Refiner, n_updates: int) -> dict[str, Any]:
    """
    :param refiner: before its search
    :param n_updates: of the search
    :return: what was found: what the verdict tests is the result, whether accepted or not
    """
    started = time.perf_counter()
    with refiner:
        refiner.learn(n_updates)
    result, search = refiner.result, refiner.search
    assert result is not None
    assert search is not None
    return {
        "decision": result.decision,
        "chosen": next(one["name"] for one in result.candidates if one["chosen"]),
        "baseline": result.baseline.summary() if result.baseline else None,
        "refined": result.candidate.summary() if result.candidate else None,
        "paired_difference": asdict(result.paired_difference) if result.paired_difference else None,
        "rollouts_of_search": search.history[-1].rollouts,
        "population_means": [round(update.mean_return, 2) for update in search.history],
        "rollouts": result.rollouts,
        "env_steps": result.env_steps,
        "cpu_time_s": round(result.cpu_time_s, 1),
        "wall_time_s": round(time.perf_counter() - started, 1),
    }


def described(rows: list[dict[str, Any]]) -> str:
    """:return: the tested mean of each run; in brackets where the original was kept"""
    texts = [f"{row['refined']['mean_return']:.5g} ± {row['refined']['std_return']:.3g}" for row in rows]
    return ", ".join(
        text if row["decision"] == "refined" else f"({text})" for text, row in zip(texts, rows, strict=True)
    )


def before(rows: list[dict[str, Any]]) -> str:
    """:return: the original: the mean over the runs, each of which has test seeds of its own"""
    mean, std = (sum(row["baseline"][name] for row in rows) / len(rows) for name in ("mean_return", "std_return"))
    return f"{mean:.5g} ± {std:.3g}"


def run_missing(
    keys: Iterable[dict[str, Any]],
    run: Callable[..., dict[str, Any]],
    path: Path | None,
    describe: Callable[[list[dict[str, Any]]], str] = described,
) -> list[dict[str, Any]]:
    """
    :param keys: what tells a row from the others, its settings included: arguments of ``run``
    :param run: makes a row
    :param path: of the results, written after each row; rows that are there are not run again
    :param describe: makes the text that is printed after a run
    :return: all rows
    """
    results = json.loads(path.read_text()) if path is not None and path.exists() else []
    for key in keys:
        if any(all(row[name] == value for name, value in key.items()) for row in results):
            continue
        row = {**key, **run(**key), "run": circumstances()}
        results.append(row)
        print(*key.values(), describe([row]), f"{row['wall_time_s']:.0f} s", flush=True)
        if path is not None:
            path.write_text(json.dumps(results, indent=1) + "\n")
    return results
