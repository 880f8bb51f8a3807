"""The mesh dimension of a trajectory: how many dimensions of its space a motion fills."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

_FACTOR = 1.2  # from one box size to the next
_FLOOR = 1e-9  # the first box size that is not above it is the last
MIN_POINTS = 6  # fewer are too few to fit a line
_MIN_EXTENT, _MAX_EXTENT = 1e-4, 1e4  # below, nothing moves; above, the unit is changed
_MIN_STEP = 1e-5  # of the extent: rows that differ by less do not move
_CLOCK, _ROUNDING = (
    0.01,
    1e-6,
)  # tolerated differences of a clock's steps: relative to their mean, and to float32 values
_GOLDEN_RATIO = (1 + 5**0.5) / 2


class MeshDimension(NamedTuple):
    """
    Bounds of the dimension of a trajectory, and the counts that they come from.

    :param lower: minus the slope of the line through the logarithms of the sizes ("mdim" in the paper's code)
    :param upper: minus the steepest slope between neighbouring sizes ("cdim")
    :param mesh_sizes: number of boxes that the trajectory visits, for each box size; shape ``(n_sizes,)``
    :param box_sizes: edge length of the boxes, ascending, in the unit of the observations; same shape
    """

    lower: float
    upper: float
    mesh_sizes: np.ndarray
    box_sizes: np.ndarray

    @property
    def mean(self) -> float:
        """Mean of the bounds, not clipped."""
        return (self.lower + self.upper) / 2


def mesh_dimension(observations: np.ndarray) -> MeshDimension:
    """
    Count the boxes that a trajectory visits, on meshes from one box for each point up to one box for all, as "Direct
    Random Search for Fine Tuning of Deep RL Policies" does (https://arxiv.org/abs/2109.05604, section IV). On clean
    trajectories this is the value of the paper's code.

    The paper divides returns by the dimension, which must not reward standing still. Therefore, where there is no
    motion to measure, both bounds are ``n_dims``, the largest dimension possible, and no counts are given:

    - an extent (the largest range of any observation) below 1e-4, such as that of a constant trajectory;
    - fewer than six rows move, or fewer than half of the rows. A row moves if some observation differs from the row
      before by more than 1e-5 of the extent;
    - fewer than six distinct points, or no slope above 0, as with fewer than four meshes.

    The paper clips both bounds to at most ``n_dims / 2``, the value of a failed episode. After clipping, standing still
    counts like failing.

    If some rows are equal to others, to within 1e-9, the rows that do not move are left out, and the finest mesh has a
    box for each distinct point; the published definition needs a box for each row. If the extent is above 1e4, the
    trajectory is scaled by a power of two so that the extent is between 1 and 2. With NaN or infinity, the bounds are
    NaN and no counts are given. One weakness of the published definition remains: in a trajectory that moves half of
    the time, rows that are close to each other but not equal reduce the lower bound.

    >>> t = np.linspace(0, 20 * np.pi, 1000)
    >>> circle = mesh_dimension(np.column_stack([np.cos(t), np.sin(t)]))  # as a gait, which comes back to its start
    >>> print(f"{circle.lower:.2f}")
    0.96

    :param observations: as the policy sees them, shape ``(n_steps, n_dims)``; the boxes are aligned to their origin
    :return: the bounds and the counts
    :raises ValueError: when the array is not two-dimensional, or ``n_dims`` is 0
    """
    rows = np.asarray(observations)
    if rows.dtype != np.float32:
        rows = rows.astype(np.float64, copy=False)
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise ValueError(f"observations: expected shape (n_steps, n_dims), got {rows.shape}")
    n_steps, n_dims = rows.shape
    if not np.isfinite(rows).all():
        return _without_counts(np.nan)
    if n_steps < MIN_POINTS:
        return _without_counts(n_dims)
    points, extent, exponent = _in_units(np.ascontiguousarray(rows.T))
    if extent < _MIN_EXTENT:
        return _without_counts(n_dims)
    moves = _moves(points, _MIN_STEP * extent)
    if np.count_nonzero(moves) < _min_moves(n_steps):
        return _without_counts(n_dims)
    mesh_sizes, box_sizes = _measure(points, moves)
    lower, upper = _bounds(mesh_sizes, box_sizes)
    if mesh_sizes[0] < MIN_POINTS or min(lower, upper) <= 0:
        return _without_counts(n_dims)
    with np.errstate(over="ignore"):  # around numbers close to the largest, boxes may be beyond it
        return MeshDimension(lower, upper, mesh_sizes, np.ldexp(box_sizes, exponent))


def stands_still(observations: np.ndarray) -> bool:
    """
    Whether there is no motion to measure, in the sense of :func:`mesh_dimension`, when a clock is left out. A clock is
    the last observation, as ``TimeFeatureWrapper`` adds it, if this observation alone changes by the same amount in
    every step: with a clock, a body at rest would trace a curve. (If several observations change evenly, something
    moves along a straight line.)

    :param observations: as the policy sees them, shape ``(n_steps, n_dims)``
    :return: False also where observations are not finite
    """
    points = np.asarray(observations, dtype=np.float64).T
    if points.shape[1] < MIN_POINTS or not np.isfinite(points).all():
        return False
    steps = np.diff(points, axis=1)
    pace, rounding = np.abs(steps.mean(axis=1)), _ROUNDING * np.abs(points).max(axis=1)
    is_uniform = (np.ptp(steps, axis=1) <= _CLOCK * pace + rounding) & (pace * points.shape[1] > _MIN_EXTENT)
    if is_uniform[-1] and is_uniform.sum() == 1:
        points = points[:-1]
    extent = np.ptp(points, axis=1).max(initial=0.0)
    if extent < _MIN_EXTENT:
        return True
    return int(np.count_nonzero(_moves(points, _MIN_STEP * extent))) < _min_moves(points.shape[1])


def _min_moves(n_steps: int) -> float:
    """:return: the number of rows that have to move"""
    return max(MIN_POINTS, n_steps / 2)


def _without_counts(bound: float) -> MeshDimension:
    return MeshDimension(float(bound), float(bound), np.empty(0, dtype=np.int64), np.empty(0))


def _in_units(points: np.ndarray) -> tuple[np.ndarray, float, int]:
    """
    :param points: shape ``(n_dims, n_steps)``
    :return: the points without constant dimensions; their extent; the exponent of the unit
    """
    low, high = points.min(axis=1), points.max(axis=1)
    points = points[low < high]
    with np.errstate(over="ignore"):
        extent = (high - low).max()
    if extent <= _MAX_EXTENT:
        return points, extent, 0
    first = int(np.frexp(np.abs(points).max())[1])
    points = np.ldexp(points, -first)  # none above 1: no overflow from here on
    extent, second = np.frexp(np.ptp(points, axis=1).max())
    return np.ldexp(points, 1 - second), 2 * extent, int(first + second - 1)


def _moves(points: np.ndarray, min_step: float) -> np.ndarray:
    """:return: of each point, whether it is further than ``min_step`` from the one before; True for the first"""
    steps = np.abs(np.diff(points, axis=1)).max(axis=0)
    return np.concatenate(([True], steps > min_step))


class _Meshes:
    """
    Counts the boxes of a mesh that hold a point. Boxes are compared by hashes instead of coordinates, which is faster,
    see ``benchmarks/mesh_dimension.py``.

    :param points: shape ``(n_dims, n_steps)``; float32 points are assigned to boxes in float32 arithmetic
    """

    def __init__(self, points: np.ndarray):
        self._points, self._places = points, np.empty_like(points)
        self._reach = float(np.abs(points).max(axis=1).sum())
        self._weights, self._multipliers = _random_integers(len(points))

    def size(self, box: float) -> int:
        """:return: the number of boxes of this edge length"""
        hashes = self._hashes(box)
        hashes.sort()
        return int(np.count_nonzero(hashes[1:] != hashes[:-1])) + 1

    def _hashes(self, box: float) -> np.ndarray:
        """:return: a number for each point, the same for all points of a box"""
        places = np.multiply(self._points, 1 / box, out=self._places)
        np.rint(places, out=places)
        if self._reach < 2.0**22 * box:
            # products and sums are integers below 2**53, so there is no rounding
            first, second = self._weights @ places.astype(np.float64, copy=False)
            return first + _GOLDEN_RATIO * second
        if places.dtype == np.float32:  # neighbouring boxes may have the same coordinates
            places *= box
            places += 0.0  # there are two zeros
            return np.einsum("dn,d->n", places.view(np.uint32), self._multipliers)
        places += 1.5 * 2.0**52  # puts an integer into the low bits
        return np.einsum("dn,d->n", places.view(np.uint64), self._multipliers)  # modulo 2**64


@lru_cache(maxsize=8)
def _random_integers(n_dims: int) -> tuple[np.ndarray, np.ndarray]:
    """:return: some below ``2**26`` of shape ``(2, n_dims)``, and odd ones below ``2**64`` of shape ``(n_dims,)``"""
    generator = np.random.default_rng(0)
    weights = generator.integers(2**26, size=(2, n_dims)).astype(np.float64)
    return weights, 2 * generator.integers(2**63, size=n_dims, dtype=np.uint64) + np.uint64(1)


def _measure(points: np.ndarray, moves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    :param points: shape ``(n_dims, n_steps)``
    :param moves: which points to keep if some points are equal, shape ``(n_steps,)``
    :return: mesh sizes and box sizes
    """
    meshes, n_points = _Meshes(points), points.shape[1]
    if meshes.size(1e-4) == n_points:  # no two points are equal, as in most trajectories
        return _count(meshes, n_points)
    precise = points.astype(np.float64, copy=False)
    if _n_distinct(precise) < n_points:
        points = precise = precise[:, moves]
    n_points = _n_distinct(precise)
    mesh_sizes, box_sizes = _count(_Meshes(points), n_points)
    if mesh_sizes[0] < n_points:  # float32 cannot separate all points
        return _count(_Meshes(precise), n_points)
    return mesh_sizes, box_sizes


def _n_distinct(points: np.ndarray) -> int:
    return _Meshes(points).size(_box_sizes_below_one()[-1])


def _count(meshes: _Meshes, n_points: int) -> tuple[np.ndarray, np.ndarray]:
    """:return: mesh sizes and box sizes, from at least ``n_points`` boxes to one box"""
    finer = _box_sizes_below_one()
    boxes, sizes = [1.0], [meshes.size(1.0)]
    for box in finer:
        if sizes[-1] >= n_points:
            break
        boxes.append(box)
        sizes.append(meshes.size(box))
    boxes.reverse()
    sizes.reverse()
    while sizes[-1] > 1:
        boxes.append(boxes[-1] * _FACTOR)
        sizes.append(meshes.size(boxes[-1]))
    return np.array(sizes), np.array(boxes)


@lru_cache(maxsize=1)
def _box_sizes_below_one() -> list[float]:
    sizes = [1.0 / _FACTOR]
    while sizes[-1] > _FLOOR:
        sizes.append(sizes[-1] / _FACTOR)
    return sizes


def _bounds(mesh_sizes: np.ndarray, box_sizes: np.ndarray) -> tuple[float, float]:
    """
    The lower and the upper bound; 0 where there are no slopes. As in the paper's code, both leave out the coarsest
    mesh, and the upper bound leaves out the coarsest slope between the others.
    """
    if len(mesh_sizes) < 4:
        return 0.0, 0.0
    x, y = np.log2(box_sizes[:-1]), np.log2(mesh_sizes[:-1])
    deviations = x - x.mean()
    lower = -float(deviations @ y / (deviations @ deviations))
    return lower, -float((np.diff(y) / np.diff(x))[:-1].min())
