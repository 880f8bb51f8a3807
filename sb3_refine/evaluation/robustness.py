"""Two policies beside their returns: how they perform under noise, and what they do step by step."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sb3_refine.envs.families import EndEffector, family_of
from sb3_refine.errors import RefineError
from sb3_refine.evaluation.comparison import NO_NOISE, evaluate_all
from sb3_refine.evaluation.evaluation import Evaluation
from sb3_refine.evaluation.target import EvaluationTarget, check_valid
from sb3_refine.rollouts.episode import Trajectory
from sb3_refine.rollouts.mesh_dimension import mesh_dimension
from sb3_refine.rollouts.metrics import SMOOTHNESS

BOTH = ("original", "refined")
N_SEEDS = 20  # under noise
_N_TRACED = (200, 100)  # steps of a trace of continuous actions, of others
N_PHASE = 500  # steps of a phase portrait: the last, so that a gait is shown rather than its start
_N_VALUES = 10  # observations with no more values than these, such as contacts, are not what moves
MAX_DIMENSIONS = 4  # of an action trace


@dataclass(frozen=True)
class RobustnessResult:
    """
    Two policies under noise and step by step. All values can be written as JSON and read again.

    :param robustness: one dict a condition, noiseless first: ``noise``, its name; ``original`` and ``refined``, each
        with ``mean_return``, ``std_return``, ``failure_rate`` and ``returns``
    :param smoothness: by measure, the values of the noiseless episodes of ``original`` and ``refined``
    :param traces: actions of an noiseless episode of each: ``seed``, ``continuous``, ``dimensions`` that are shown;
        ``original`` and ``refined``, each with ``actions`` (one list a dimension), ``return``, ``length``, ``failed``
    :param paired: whether the same seed means the same episode
    :param n_episodes: episodes run for this
    :param n_env_steps: their environment steps
    :param motion: of the same episodes, where there is something to show: ``mesh``, the counts of boxes behind the mesh
        dimension; ``phase``, two raw ``entries`` of the observation against each other; ``end_effector`` of a Panda
        arm, its position in m and speed in m/s, with its jerk in m/s^3. Each has ``original`` and ``refined``
    """

    robustness: list[dict[str, Any]]
    smoothness: dict[str, dict[str, list[float]]]
    traces: dict[str, Any]
    paired: bool
    n_episodes: int
    n_env_steps: int
    motion: dict[str, Any] = field(default_factory=dict)

    @property
    def n_seeds(self) -> int:
        """Seeds under each condition."""
        return len(self.robustness[0]["original"]["returns"])


def measure_robustness(
    original: EvaluationTarget,
    refined: EvaluationTarget,
    seeds: Sequence[int],
    n_seeds: int = N_SEEDS,
    entries: tuple[int, int] | None = None,
) -> RobustnessResult:
    """
    Run both under noise, and record what they do on the seed on which their difference is the median one.

    :param original: the original
    :param refined: the result of the search
    :param seeds: of held-out episodes
    :param n_seeds: how many of the seeds to take, from the first
    :param entries: two observations, by index, for the phase portrait; by default the two that move most
    :return: what was found
    :raises RefineError: when there are no such entries
    :raises EpisodeError: when an episode fails, or one without noise has NaN or infinite rewards or observations
    """
    targets = dict(zip(BOTH, (original, refined), strict=True))
    seeds = list(seeds[:n_seeds])
    conditions = evaluate_all(targets, seeds)
    noiseless = conditions[NO_NOISE]
    differences = noiseless["refined"].returns - noiseless["original"].returns
    seed = seeds[int(np.argsort(differences, kind="stable")[(len(seeds) - 1) // 2])]
    traced = {name: target.run([seed], ["trajectory"]) for name, target in targets.items()}
    for name, evaluation in traced.items():
        check_valid(evaluation, f"the {name}")
    ran = [evaluation for condition in (*conditions.values(), traced) for evaluation in condition.values()]
    return RobustnessResult(
        robustness=[
            {"noise": noise, **{name: _figures(evaluation) for name, evaluation in condition.items()}}
            for noise, condition in conditions.items()
        ],
        smoothness={
            measure: {name: evaluation.metric(measure).tolist() for name, evaluation in noiseless.items()}
            for measure in SMOOTHNESS
        },
        traces={"seed": seed, **_traces(traced)},
        paired=original.is_seeded and refined.is_seeded,
        n_episodes=sum(len(evaluation.episodes) for evaluation in ran),
        n_env_steps=int(sum(evaluation.lengths.sum() for evaluation in ran)),
        motion=motion_of(_trajectories(traced), original.task.recipe.env_id, entries),
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
    found = _trajectories(traced)
    actions = {name: trajectory.actions.astype(np.float64) for name, trajectory in found.items()}
    moved = np.sum([np.abs(np.diff(steps, axis=0)).sum(axis=0) for steps in actions.values()], axis=0)
    dimensions = sorted(np.argsort(-moved, kind="stable")[:MAX_DIMENSIONS].tolist())
    continuous = found["original"].action_range is not None
    traces: dict[str, Any] = {"continuous": continuous, "dimensions": dimensions}
    for name, evaluation in traced.items():
        episode, shown = evaluation.episodes[0], actions[name][: _N_TRACED[not continuous], dimensions]
        traces[name] = {
            "actions": _rounded(shown.T),
            "return": episode.episode_return,
            "length": episode.length,
            "failed": episode.failed,
        }
    return traces


def _trajectories(traced: dict[str, Evaluation]) -> dict[str, Trajectory]:
    return {name: evaluation.episodes[0].metrics["trajectory"] for name, evaluation in traced.items()}


def motion_of(
    found: dict[str, Trajectory], env_id: str | None, entries: tuple[int, int] | None = None
) -> dict[str, Any]:
    """
    :param found: an episode of each policy
    :param env_id: gymnasium id
    :param entries: for the phase portrait, see :func:`check_entries`; by default the two that move most
    :return: ``motion`` of an :class:`RobustnessResult`
    """
    observations = [trajectory.observations for trajectory in found.values()]
    n_observed = observations[0].shape[1]
    continuous = n_observed > 0 and all(rows.dtype.kind == "f" for rows in observations)
    motion: dict[str, Any] = {}
    meshes = {name: _mesh(trajectory) for name, trajectory in found.items()} if continuous else {}
    if continuous and all(mesh["mesh_sizes"] for mesh in meshes.values()):
        motion["mesh"] = meshes
    if entries is not None or (continuous and n_observed >= 2):
        chosen = list(entries or _most_moving([trajectory.seen for trajectory in found.values()]))
        motion["phase"] = {"entries": chosen} | {
            name: _rounded(trajectory.observations[-N_PHASE:, chosen].T) for name, trajectory in found.items()
        }
    arm = family_of(env_id).end_effector
    if arm is not None and continuous and n_observed >= 6:
        motion["end_effector"] = {"seconds_per_step": arm.seconds_per_step} | {
            name: _end_effector(trajectory, arm) for name, trajectory in found.items()
        }
    return motion


def check_entries(entries: Sequence[int], n_observed: int) -> None:
    """
    :param entries: for a phase portrait
    :param n_observed: how many there are to choose from
    :raises RefineError: when they are not two of those
    """
    if len(set(entries)) != 2 or len(entries) != 2 or not all(0 <= entry < n_observed for entry in entries):
        expected = f"two different ones of the {n_observed} observations, numbered from 0"
        raise RefineError(f"phase portrait: expected {expected}; got {tuple(entries)}")


def _mesh(trajectory: Trajectory) -> dict[str, Any]:
    measured = mesh_dimension(trajectory.seen[1:])
    return {
        "lower": measured.lower,
        "upper": measured.upper,
        "box_sizes": _rounded(measured.box_sizes),
        "mesh_sizes": measured.mesh_sizes.tolist(),
    }


def _most_moving(seen: Sequence[np.ndarray]) -> list[int]:
    """The two of largest spread, as the policy sees them; last those that only jump, as contacts, or rise, as time."""
    spread = np.concatenate(seen).std(axis=0)
    for entry in range(spread.size):
        traces = [rows[:, entry] for rows in seen]
        steps = [np.diff(trace) for trace in traces]
        jumps = np.unique(np.concatenate(traces)).size <= _N_VALUES
        if jumps or all((step >= 0).all() or (step <= 0).all() for step in steps):
            spread[entry] = -1.0
    return sorted(np.argsort(-spread, kind="stable")[:2].tolist())


def _end_effector(trajectory: Trajectory, arm: EndEffector) -> dict[str, Any]:
    position, velocity = trajectory.observations[:, arm.position], trajectory.observations[:, arm.velocity]
    return {
        "position": _rounded(position.T),
        "speed": _rounded(np.linalg.norm(velocity, axis=1)),
        "jerk": end_effector_jerk(trajectory, arm),
    }


def end_effector_jerk(trajectory: Trajectory, arm: EndEffector) -> float:
    """
    Root mean square of the third derivative of the position of an arm's end effector, by differences.

    :param trajectory: of an episode
    :param arm: where the observations have the position
    :return: in m/s^3; 0 where there are too few steps
    """
    position = trajectory.observations[:, arm.position].astype(np.float64)
    jerk = np.diff(position, n=3, axis=0) / arm.seconds_per_step**3
    return float(np.sqrt(np.square(jerk).sum(axis=1).mean())) if len(jerk) else 0.0


def _rounded(values: np.ndarray) -> list[Any]:
    """To five significant digits."""
    return np.vectorize(lambda value: float(f"{value:.5g}"), otypes=[float])(values).tolist()
