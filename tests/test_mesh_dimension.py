"""The mesh dimension: the published values where those are sound, and no reward for standing still where not."""

import warnings

import numpy as np
import pytest

from sb3_refine.rollouts.mesh_dimension import MeshDimension, mesh_dimension


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def published(points: np.ndarray) -> MeshDimension:
    """The definition, plainly: a set of tuples for each mesh, and a general least-squares fit."""

    def size(box: float) -> int:
        return len({tuple(key) for key in np.rint(points * (1 / box)) * box + 0.0})

    boxes, sizes = [1.0], [size(1.0)]
    while sizes[0] < len(points) and boxes[0] > 1e-9:
        boxes.insert(0, boxes[0] / 1.2)
        sizes.insert(0, size(boxes[0]))
    while sizes[-1] > 1:
        boxes.append(boxes[-1] * 1.2)
        sizes.append(size(boxes[-1]))
    x, y = np.log2(boxes[:-1]), np.log2(sizes[:-1])
    slopes = [(y[i + 1] - y[i]) / (x[i + 1] - x[i]) for i in range(len(x) - 2)]
    return MeshDimension(-np.polyfit(x, y, 1)[0], -min([0.0, *slopes]), np.array(sizes), np.array(boxes))


def assert_same(ours: MeshDimension, theirs: MeshDimension) -> None:
    np.testing.assert_array_equal(ours.mesh_sizes, theirs.mesh_sizes)
    np.testing.assert_array_equal(ours.box_sizes, theirs.box_sizes)
    np.testing.assert_allclose(ours[:2], theirs[:2], rtol=0, atol=1e-6)


def assert_worst(result: MeshDimension, n_dims: int) -> None:
    assert (result.lower, result.upper, result.mean) == (n_dims, n_dims, n_dims)
    assert len(result.mesh_sizes) == len(result.box_sizes) == 0


def walk(n_steps: int = 300, n_dims: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=0.3, size=(n_steps, n_dims)).cumsum(axis=0)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("n_dims", [1, 2, 5, 23])
def test_a_walk_has_the_published_dimension(n_dims, dtype):
    points = walk(n_dims=n_dims).astype(dtype)
    assert_same(mesh_dimension(points), published(points))


@pytest.mark.parametrize("scale", [1e-3, 0.1, 10.0, 100.0])
def test_a_gait_has_the_published_dimension_at_any_usual_scale(scale):
    time = np.arange(400)[:, None]
    gait = np.sin(time * [0.21, 0.21, 0.42, 0.13] + [0, 1, 2, 3]) + 0.01 * np.random.default_rng(0).normal(
        size=(400, 4)
    )
    assert_same(mesh_dimension(scale * gait), published(scale * gait))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_motion_that_comes_to_rest_has_the_published_dimension(dtype):
    points = (np.exp(-0.05 * np.arange(300))[:, None] * [1.0, -0.5, 0.3]).astype(
        dtype
    )  # boxes far below float32's step
    assert published(points).mesh_sizes[0] == 300
    assert published(points).box_sizes[0] < 1e-7
    assert_same(mesh_dimension(points), published(points))


def test_mesh_sizes_fall_from_all_points_to_one():
    result = mesh_dimension(walk())
    assert result.mesh_sizes[0] == 300
    assert result.mesh_sizes[-1] == 1
    assert (np.diff(result.box_sizes) > 0).all()
    assert result.mean == (result.lower + result.upper) / 2


def test_known_sets_have_their_dimension():
    line = np.linspace(0, 10, 20_000)[:, None] * np.ones(4)
    square = np.random.default_rng(0).uniform(0, 10, size=(20_000, 2))
    for n_dims, points in [(1, line), (2, square)]:
        result = mesh_dimension(points)
        # away from the ends, where one box for all and one box for each point bend the line
        middle = (result.mesh_sizes > 20) & (result.mesh_sizes < 1000)
        x, y = np.log2(result.box_sizes[middle]), np.log2(result.mesh_sizes[middle])
        assert -np.polyfit(x, y, 1)[0] == pytest.approx(n_dims, rel=0.1)
        assert result.lower < n_dims < result.upper


def test_a_row_that_repeats_another_changes_nothing():
    points = walk()
    repeated = np.insert(points, 200, points[50], axis=0)
    assert published(repeated).lower < 0.2 * published(points).lower  # what the published definition makes of it
    for again in (repeated, np.repeat(points, 2, axis=0), np.tile(points, (3, 1)), np.r_[points, points[::-1]]):
        assert_same(mesh_dimension(again), published(points))


def test_a_row_that_nearly_repeats_another_changes_nothing():
    points = walk()
    repeated = np.insert(points, 200, points[50] + 1e-12, axis=0)
    assert mesh_dimension(repeated).lower == pytest.approx(published(points).lower, abs=0.01)


@pytest.mark.parametrize("n_moving", [299, 200, 151, 149, 50, 6, 1])
@pytest.mark.parametrize("jitter", [0.0, 1e-11])
def test_standing_still_is_never_rewarded(n_moving, jitter):
    points = walk()
    points[n_moving:] = points[n_moving - 1]
    points[n_moving:] += jitter * np.random.default_rng(1).normal(size=points[n_moving:].shape)
    result = mesh_dimension(points)
    if n_moving < 150:
        assert_worst(result, 3)
    else:
        assert result.mean >= published(points[:n_moving]).mean - 1e-9


def test_standing_still_for_most_of_the_time_gets_the_worst_value_even_with_jitter():
    points = walk()
    points[100:] = points[99] + 1e-6 * np.random.default_rng(1).normal(size=(200, 3))
    assert published(points).mean < published(points[:100]).mean  # what the published definition makes of it
    assert_worst(mesh_dimension(points), 3)


@pytest.mark.parametrize(
    "points",
    [
        np.zeros((300, 3)),
        np.full((300, 3), 7.5),
        1 + 1e-6 * walk(),
        1e-30 * walk(),
        1e-300 * walk(),
        5e-324 * np.rint(walk()),
        np.tile(walk(2), (150, 1)),
        np.tile(walk(5), (60, 1)),
        np.array(np.meshgrid([-0.45, 0.45], [-0.45, 0.45], [-0.45, 0.45])).reshape(3, -1).T,
        np.random.default_rng(0).integers(2, size=(300, 3)),
        np.random.default_rng(0).integers(2, size=(300, 3)).astype(bool),
        np.concatenate([walk(), [[1e300, 0, 0]]]),
    ],
    ids=[
        "zeros",
        "constant",
        "a millionth",
        "tiny",
        "tinier",
        "smallest float",
        "two states",
        "five states",
        "all part at once",
        "integers",
        "bool",
        "one blow-up",
    ],
)
def test_no_motion_gets_the_worst_value(points):
    assert_worst(mesh_dimension(points), 3)


@pytest.mark.parametrize("n_steps", range(6))
def test_up_to_five_rows_get_the_worst_value(n_steps):
    assert_worst(mesh_dimension(walk(n_steps)), 3)


def test_six_rows_are_measured():
    assert_same(mesh_dimension(walk(6)), published(walk(6)))


def test_the_worst_is_not_below_that_of_motion():
    for n_dims in (3, 5, 23):
        assert mesh_dimension(np.ones((300, n_dims))).mean >= max(
            min(mesh_dimension(walk(n_dims=n_dims, seed=seed)).mean, n_dims / 2) for seed in range(5)
        )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_give_nan(bad):
    points = walk()
    points[17, 1] = bad
    result = mesh_dimension(points)
    assert np.isnan([result.lower, result.upper, result.mean]).all()
    assert len(result.mesh_sizes) == len(result.box_sizes) == 0


@pytest.mark.parametrize("exponent", [20, 40, 100, 1010])
def test_huge_scales_change_nothing_but_the_unit(exponent):
    reference, result = mesh_dimension(2.0**60 * walk()), mesh_dimension(2.0**exponent * walk())
    assert result[:2] == reference[:2]
    np.testing.assert_array_equal(result.mesh_sizes, reference.mesh_sizes)
    np.testing.assert_array_equal(result.box_sizes, np.ldexp(reference.box_sizes, exponent - 60))


def test_the_largest_floats_do_not_overflow():
    points = np.random.default_rng(0).uniform(-1, 1, size=(300, 3)) * np.finfo(np.float64).max
    result = mesh_dimension(points)
    assert (result.mesh_sizes[0], result.mesh_sizes[-1]) == (300, 1)
    assert 0 < result.lower < result.upper < np.inf
    single = mesh_dimension((walk() * 1e36).astype(np.float32))
    assert single.lower == pytest.approx(mesh_dimension(walk() * 1e36).lower, abs=0.01)


def test_observations_far_from_the_origin_terminate():
    for offset in (1e6, 1e12, 1e15):
        result = mesh_dimension(walk() + offset)
        assert result.mesh_sizes[-1] == 1
        assert result.lower > 0.4


def test_constant_observations_separate_no_points():
    padded = np.concatenate([walk(), np.full((300, 1), 1e300)], axis=1)
    assert_same(mesh_dimension(padded), mesh_dimension(walk()))


def test_the_observations_are_left_as_they_are():
    points = walk()
    mesh_dimension(points)
    np.testing.assert_array_equal(points, walk())


@pytest.mark.parametrize("shape", [(), (300,), (300, 0), (300, 4, 4)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected shape \(n_steps, n_dims\), got"):
        mesh_dimension(np.ones(shape))
