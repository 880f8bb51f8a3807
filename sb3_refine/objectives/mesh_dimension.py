"""The return divided by the mesh dimension."""

import logging
from collections.abc import Sequence

import numpy as np

from sb3_refine.errors import RefineError, check_count
from sb3_refine.objectives.base import OBJECTIVE_METRIC, Objective, returns_of
from sb3_refine.rollouts.episode import Episode, Trajectory
from sb3_refine.rollouts.mesh_dimension import MIN_POINTS, mesh_dimension, stands_still

logger = logging.getLogger(__name__)

BOUNDS = ("mean", "lower", "upper")


class MeshDimensionShaped(Objective):
    r"""
    Return per dimension: :math:`R / D` where returns are positive, :math:`R \cdot D` where they are negative ("Direct
    Random Search for Fine Tuning of Deep RL Policies", https://arxiv.org/abs/2109.05604, Eq. 2 and 3).

    :math:`D` is the mesh dimension of the observations as the policy sees them; for ``Dict`` observations, of the
    ``observation`` entry. Both bounds are clipped to at most ``n_dims / 2``, the value of a failed episode. Unlike in
    the paper, they are also clipped to at least 1: a motion along a curve has one dimension, and smaller estimates
    would reward standing still. An episode in which only a clock moves, such as that of ``TimeFeatureWrapper``, counts
    as failed. (If a body may rest but tremble, leave a clock out with ``entries``: together they look like a curve.) An
    episode that does not fail but is too short to measure, such as a success within a few steps, has :math:`D = 1`.

    :param bound: ``"mean"`` of the bounds as in the paper, ``"lower"`` or ``"upper"``
    :param skip: steps to leave out at the start, where the motion is not yet periodic
    :param entries: which observations, by index, such as ``"0-3+7"`` or ``[0, 1, 2, 3, 7]``; by default all
    """

    needs_trajectory = True
    needs_baseline = True

    def __init__(self, bound: str = "mean", skip: int = 0, entries: str | int | Sequence[int] | None = None):
        if bound not in BOUNDS:
            raise RefineError(f"objective: bound: expected one of {', '.join(BOUNDS)}, got {bound!r}")
        check_count("objective: skip", skip, 0)
        self.bound = bound
        self.skip = skip
        self.entries = None if entries is None else parse_entries(entries)
        self.sign = 0.0

    def measure(self, trajectory: Trajectory) -> float:
        """:return: :math:`D`"""
        seen = observations = trajectory.seen[1 + self.skip :]
        if self.entries is not None:
            if max(self.entries) >= observations.shape[1]:
                raise RefineError(
                    f"objective: entries: there are {observations.shape[1]} observations, numbered from 0; "
                    f"got {max(self.entries)}"
                )
            observations = observations[:, self.entries]
        if observations.shape[1] == 0:
            raise RefineError(
                "objective: images (observations of three axes) have no mesh dimension; choose another objective"
            )
        highest = max(1.0, observations.shape[1] / 2)
        if trajectory.failed or stands_still(seen):
            return highest
        if len(observations) < MIN_POINTS:
            return 1.0
        found = mesh_dimension(observations)
        lower, upper = np.clip([found.lower, found.upper], 1.0, highest)
        return float({"mean": (lower + upper) / 2, "lower": lower, "upper": upper}[self.bound])

    def calibrate(self, baseline: Sequence[Episode]) -> None:
        """
        :param baseline: gives the sign
        :raises RefineError: when returns have different signs, when all are 0, or when too few steps are left after
            ``skip``
        """
        longest = max(episode.length for episode in baseline)
        if longest < MIN_POINTS:
            raise RefineError(
                f"objective: mesh-dimension: the original's episodes are too short to be measured: the longest has "
                f"{longest} of at least {MIN_POINTS} steps; use another objective, or where they end at success, "
                "`end_at_success=False`"
            )
        if self.skip > longest - MIN_POINTS:
            raise RefineError(
                f"objective: mesh-dimension: skip={self.skip} leaves fewer than {MIN_POINTS} steps of the original's "
                f"episodes, of which the longest has {longest}"
            )
        returns = returns_of(baseline)
        if not returns.any():
            raise RefineError(
                "objective: mesh-dimension: the original's return is 0 in every validation episode, so dividing it "
                "changes nothing; use `objective='return'`"
            )
        if returns.min() < 0 < returns.max():
            raise RefineError(
                f"objective: mesh-dimension: the original's returns have mixed signs ({returns.min():.4g} to "
                f"{returns.max():.4g}), so neither dividing nor multiplying by the dimension rewards better episodes; "
                "use `objective='smooth'`, or shift the rewards in a wrapper"
            )
        self.sign = 1.0 if returns.mean() > 0 else -1.0
        self._warn_if_constant(baseline)

    def _warn_if_constant(self, baseline: Sequence[Episode]) -> None:
        dimensions = {episode.metrics.get(OBJECTIVE_METRIC, np.nan) for episode in baseline}
        n_different = len({(episode.episode_return, episode.length) for episode in baseline})
        if all(episode.failed for episode in baseline):
            logger.warning(
                "objective: mesh-dimension: all of the original's episodes terminate, which counts as failing: as long "
                "as they do, the dimension has no effect, and the return is maximised"
            )
        elif len(dimensions) == 1 and n_different > 1:
            logger.warning(
                "objective: mesh-dimension: the clipped dimension is %.4g in all of the original's episodes: as long "
                "as it stays there, the return is maximised; use more entries, or another objective",
                *dimensions,
            )

    def fitness(self, episode: Episode) -> float:
        """:return: Eq. 2 or 3, by the sign of the baseline; a return of the other sign counts with :math:`D = 1`"""
        dimension = episode.metrics.get(OBJECTIVE_METRIC, np.nan)
        if episode.episode_return * self.sign < 0:
            return episode.episode_return
        return episode.episode_return / dimension if self.sign > 0 else episode.episode_return * dimension

    def figures(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """:return: the mean of :math:`D`"""
        return {
            "D of the objective": float(
                np.mean([episode.metrics.get(OBJECTIVE_METRIC, np.nan) for episode in episodes])
            )
        }


_MAX_ENTRIES = 10**6


def parse_entries(given: str | int | Sequence[int]) -> list[int]:
    """
    :param given: such as ``"0-3+7"``, a single one, or all of them one by one
    :return: such as ``[0, 1, 2, 3, 7]``
    :raises RefineError: when it is not of that form, or names one twice
    """
    text = "+".join(map(str, given)) if isinstance(given, (list, tuple, np.ndarray)) else str(given)
    entries: list[int] = []
    try:
        for part in text.split("+"):
            first, _, last = part.partition("-")
            found = range(int(first), int(last or first) + 1)
            if not found or found.stop > _MAX_ENTRIES:
                raise ValueError
            entries += found
    except ValueError:
        entries = []
    if not entries or len(set(entries)) < len(entries):
        raise RefineError(f"objective: entries: expected different indices such as 0-3+7, got {text!r}")
    return entries
