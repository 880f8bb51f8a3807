"""Two policies beside their returns: how they perform under noise, and what they do step by step."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

import numpy as np

from sb3_refine.envs.families import EndEffector, family_of
from sb3_refine.errors import RefineError
from sb3_refine.evaluation.comparison import NO_NOISE, evaluate_all
from sb3_refine.evaluation.evaluation import Evaluation
from sb3_refine.evaluation.target import Target, check_valid
from sb3_refine.rollouts.episode import Trajectory
from sb3_refine.rollouts.mesh_dimension import mesh_dimension
from sb3_refine.rollouts.metrics import SMOOTHNESS

BOTH: tuple[Literal["original", "refined"], ...] = ("original", "refined")
N_SEEDS = 20  # under noise
_N_TRACED = (200, 100)  # steps of a trace of continuous actions, of others
N_PHASE = 500  # steps of a phase portrait: the last, so that a gait is shown rather than its start
_N_VALUES = 10  # observations with no more values than these, such as contacts, are not what moves
MAX_DIMENSIONS = 4  # of an action trace


class NoiseFigures(TypedDict):
    """Returns of one policy under one condition. ``failure_rate`` is a share; means leave invalid episodes out."""

    mean_return: float | None
    std_return: float | None
    failure_rate: float
    returns: list[float]


class NoiseLevel(TypedDict):
    """Both policies under one condition. ``noise`` is its name."""

    noise: str
    original: NoiseFigures
    refined: NoiseFigures


class Smoothness(TypedDict):
    """Values of one metric of smoothness, one for each episode without noise."""

    original: list[float]
    refined: list[float]


ActionTrace = TypedDict("ActionTrace", {"actions": list[list[float]], "return": float, "length": int, "failed": bool})
"""First actions of an episode, one list for each dimension that is shown, with the figures of the whole episode."""


class Traces(TypedDict):
    """Actions of an episode of each policy on one seed. ``dimensions`` are the indices of those that are shown."""

    seed: int
    continuous: bool
    dimensions: list[int]
    original: ActionTrace
    refined: ActionTrace


class MeshCounts(TypedDict):
    """Number of boxes (``mesh_sizes``) of each size, and the range of sizes that the mesh dimension is fitted on."""

    lower: float
    upper: float
    box_sizes: list[float]
    mesh_sizes: list[int]


class Meshes(TypedDict):
    """The counts behind the mesh dimension of each policy."""

    original: MeshCounts
    refined: MeshCounts


class PhasePortrait(TypedDict):
    """Two raw observations against each other. ``entries`` are their indices."""

    entries: list[int]
    original: list[list[float]]
    refined: list[list[float]]


class EndEffectorTrace(TypedDict):
    """Motion of an arm's end effector: position in m, one list for each axis; speed in m/s; jerk in m/s^3."""

    position: list[list[float]]
    speed: list[float]
    jerk: float


class EndEffectorTraces(TypedDict):
    """The end effector of both policies."""

    seconds_per_step: float
    original: EndEffectorTrace
    refined: EndEffectorTrace


class Motion(TypedDict, total=False):
    """What the traced episodes show of the motion, as far as the environment allows it."""

    mesh: Meshes
    phase: PhasePortrait
    end_effector: EndEffectorTraces


@dataclass(frozen=True)
class RobustnessResult:
    """
    Two policies under noise and step by step. All values can be written as JSON and read again.

    :param robustness: both policies under each condition; the first is without noise
    :param smoothness: by metric, of the episodes without noise
    :param traces: actions of an episode without noise
    :param paired: whether the same seed means the same episode
    :param n_episodes: episodes run for this
    :param n_env_steps: their environment steps
    :param motion: of the traced episodes
    """

    robustness: list[NoiseLevel]
    smoothness: dict[str, Smoothness]
    traces: Traces
    paired: bool
    n_episodes: int
    n_env_steps: int
    motion: Motion = field(default_factory=Motion)

    @property
    def n_seeds(self) -> int:
        """Seeds under each condition."""
        return len(self.robustness[0]["original"]["returns"])


def measure_robustness(
    original: Target,
    refined: Target,
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
    targets = {"original": original, "refined": refined}
    seeds = list(seeds[:n_seeds])
    conditions = evaluate_all(targets, seeds)
    noiseless = conditions[NO_NOISE]
    differences = noiseless["refined"].returns - noiseless["original"].returns
    seed = seeds[int(np.argsort(differences, kind="stable")[(len(seeds) - 1) // 2])]
    traced = {name: target.run([seed], ["trajectory"]) for name, target in targets.items()}
    for name, evaluation in traced.items():
        check_valid(evaluation, f"the {name}")
    all_ran = [evaluation for ran in (*conditions.values(), traced) for evaluation in ran.values()]
    return RobustnessResult(
        robustness=[
            NoiseLevel(noise=noise, original=_figures(ran["original"]), refined=_figures(ran["refined"]))
            for noise, ran in conditions.items()
        ],
        smoothness={
            metric: Smoothness(
                original=noiseless["original"].metric(metric).tolist(),
                refined=noiseless["refined"].metric(metric).tolist(),
            )
            for metric in SMOOTHNESS
        },
        traces=_traces(seed, traced),
        paired=original.is_seeded and refined.is_seeded,
        n_episodes=sum(len(evaluation.episodes) for evaluation in all_ran),
        n_env_steps=int(sum(evaluation.lengths.sum() for evaluation in all_ran)),
        motion=motion_of(_trajectories(traced), original.task.recipe.env_id, entries),
    )


def _figures(evaluation: Evaluation) -> NoiseFigures:
    returns = evaluation.returns
    valid = returns[np.isfinite(returns)]
    return {
        "mean_return": float(valid.mean()) if valid.size else None,
        "std_return": float(valid.std()) if valid.size else None,
        "failure_rate": evaluation.failure_rate,
        "returns": returns.tolist(),
    }


def _traces(seed: int, traced: dict[str, Evaluation]) -> Traces:
    """The first steps of the dimensions that move most."""
    found = _trajectories(traced)
    actions = {name: trajectory.actions.astype(np.float64) for name, trajectory in found.items()}
    moved = np.sum([np.abs(np.diff(steps, axis=0)).sum(axis=0) for steps in actions.values()], axis=0)
    dimensions = sorted(np.argsort(-moved, kind="stable")[:MAX_DIMENSIONS].tolist())
    continuous = found["original"].action_range is not None

    def trace(name: str) -> ActionTrace:
        episode, shown = traced[name].episodes[0], actions[name][: _N_TRACED[not continuous], dimensions]
        return {
            "actions": _rounded(shown.T),
            "return": episode.episode_return,
            "length": episode.length,
            "failed": episode.failed,
        }

    return Traces(
        seed=seed,
        continuous=continuous,
        dimensions=dimensions,
        original=trace("original"),
        refined=trace("refined"),
    )


def _trajectories(traced: dict[str, Evaluation]) -> dict[str, Trajectory]:
    return {name: evaluation.episodes[0].metrics["trajectory"] for name, evaluation in traced.items()}


def motion_of(found: dict[str, Trajectory], env_id: str | None, entries: tuple[int, int] | None = None) -> Motion:
    """
    :param found: an episode of each policy
    :param env_id: gymnasium id
    :param entries: for the phase portrait, see :func:`check_entries`; by default the two that move most
    :return: the motion
    """
    original, refined = (found[name] for name in BOTH)
    n_observed = original.observations.shape[1]
    continuous = n_observed > 0 and all(trajectory.observations.dtype.kind == "f" for trajectory in found.values())
    motion = Motion()
    meshes = Meshes(original=_mesh(original), refined=_mesh(refined)) if continuous else None
    if meshes is not None and meshes["original"]["mesh_sizes"] and meshes["refined"]["mesh_sizes"]:
        motion["mesh"] = meshes
    if entries is not None or (continuous and n_observed >= 2):
        chosen = list(entries or _most_moving([original.seen, refined.seen]))
        motion["phase"] = PhasePortrait(
            entries=chosen,
            original=_rounded(original.observations[-N_PHASE:, chosen].T),
            refined=_rounded(refined.observations[-N_PHASE:, chosen].T),
        )
    arm = family_of(env_id).end_effector
    if arm is not None and continuous and n_observed >= 6:
        motion["end_effector"] = EndEffectorTraces(
            seconds_per_step=arm.seconds_per_step,
            original=_end_effector(original, arm),
            refined=_end_effector(refined, arm),
        )
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


def _mesh(trajectory: Trajectory) -> MeshCounts:
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


def _end_effector(trajectory: Trajectory, arm: EndEffector) -> EndEffectorTrace:
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
