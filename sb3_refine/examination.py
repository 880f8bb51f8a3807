"""What is found out about two policies beside their returns: under noise, and what they do step by step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sb3_refine.comparison import UNDISTURBED, Contestant, evaluate, evaluate_all
from sb3_refine.evaluation import Evaluation
from sb3_refine.measures import SMOOTHNESS

BOTH = ("original", "refined")
N_SEEDS = 20  # under noise
_N_TRACED = (200, 100)  # steps of a trace of continuous actions, of others
MAX_DIMENSIONS = 4  # of an action trace


@dataclass(frozen=True)
class Examination:
    """
    What is found out about two policies beside their returns. All of it can be written as JSON and read again.

    :param robustness: one dict a condition, undisturbed first: ``noise``, its name; ``original`` and ``refined``, each
        with ``mean_return``, ``std_return``, ``failure_rate`` and ``returns``
    :param smoothness: by measure, the values of the undisturbed episodes of ``original`` and ``refined``
    :param traces: actions of an undisturbed episode of each: ``seed``, ``continuous``, ``dimensions`` that are shown;
        ``original`` and ``refined``, each with ``actions`` (one list a dimension), ``return``, ``length``, ``failed``
    :param paired: whether the same seed means the same episode
    :param n_episodes: episodes run for this
    :param n_env_steps: their environment steps
    """

    robustness: list[dict[str, Any]]
    smoothness: dict[str, dict[str, list[float]]]
    traces: dict[str, Any]
    paired: bool
    n_episodes: int
    n_env_steps: int

    @property
    def n_seeds(self) -> int:
        """Seeds under each condition."""
        return len(self.robustness[0]["original"]["returns"])


def examine(
    baseline: Contestant,
    refined: Contestant,
    seeds: Sequence[int],
    n_workers: int = 1,
    backend: str = "process",
    n_seeds: int = N_SEEDS,
) -> Examination:
    """
    Run both under noise, and record what they do on the seed on which their difference is the median one.

    :param baseline: the original
    :param refined: the result of the search
    :param seeds: of held-out episodes
    :param n_workers: episodes run at a time
    :param backend: who runs them
    :param n_seeds: how many of the seeds to take, from the first
    :return: what was found
    :raises EpisodeError: when an episode fails, or an undisturbed one has NaN or infinite rewards or observations
    """
    contestants = dict(zip(BOTH, (baseline, refined), strict=True))
    seeds = list(seeds[:n_seeds])
    conditions = evaluate_all(contestants, seeds, SMOOTHNESS, backend=backend, n_workers=n_workers)
    undisturbed = conditions[UNDISTURBED]
    differences = undisturbed["refined"].returns - undisturbed["original"].returns
    seed = seeds[int(np.argsort(differences, kind="stable")[(len(seeds) - 1) // 2])]
    traced = {name: evaluate(who, [seed], ["trajectory"], backend="serial") for name, who in contestants.items()}
    ran = [evaluation for condition in (*conditions.values(), traced) for evaluation in condition.values()]
    return Examination(
        robustness=[
            {"noise": noise, **{name: _figures(evaluation) for name, evaluation in condition.items()}}
            for noise, condition in conditions.items()
        ],
        smoothness={
            measure: {name: evaluation.measure(measure).tolist() for name, evaluation in undisturbed.items()}
            for measure in SMOOTHNESS
        },
        traces={"seed": seed, **_traces(traced)},
        paired=baseline.is_seeded and refined.is_seeded,
        n_episodes=sum(len(evaluation.episodes) for evaluation in ran),
        n_env_steps=int(sum(evaluation.lengths.sum() for evaluation in ran)),
    )


def _figures(evaluation: Evaluation) -> dict[str, Any]:
    returns = evaluation.returns
    valid = returns[np.isfinite(returns)]
    return {
        "mean_return": float(valid.mean()) if valid.size else None,
        "std_return": float(valid.std()) if valid.size else None,
        "failure_rate": evaluation.failure_rate,
        "returns": returns.tolist(),
    }


def _traces(traced: dict[str, Evaluation]) -> dict[str, Any]:
    """The first steps of the dimensions that move most."""
    found = {name: evaluation.episodes[0].measures["trajectory"] for name, evaluation in traced.items()}
    actions = {name: trajectory.actions.astype(np.float64) for name, trajectory in found.items()}
    moved = np.sum([np.abs(np.diff(steps, axis=0)).sum(axis=0) for steps in actions.values()], axis=0)
    dimensions = sorted(np.argsort(-moved, kind="stable")[:MAX_DIMENSIONS].tolist())
    continuous = found["original"].action_range is not None
    traces: dict[str, Any] = {"continuous": continuous, "dimensions": dimensions}
    for name, evaluation in traced.items():
        episode, shown = evaluation.episodes[0], actions[name][: _N_TRACED[not continuous], dimensions]
        traces[name] = {
            "actions": shown.T.round(4).tolist(),
            "return": episode.episode_return,
            "length": episode.length,
            "failed": episode.failed,
        }
    return traces
