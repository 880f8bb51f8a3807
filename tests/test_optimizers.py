"""Contract of every optimizer in the registry, and ARS as its equation says."""

import subprocess
import sys

import numpy as np
import pytest

from sb3_refine.errors import RefineError
from sb3_refine.optimizers import ARS, OPTIMIZERS
from sb3_refine.optimizers.candidates import direction

N_PARAMETERS = 20


def perturbed(optimizer, candidate):
    delta = direction(optimizer.seed, candidate.update, candidate.pair, optimizer.mean.size)
    return optimizer.mean + np.float32(candidate.scale) * delta


def sphere(vector):
    return -float(np.sum((vector - 1.0) ** 2))


@pytest.fixture(params=OPTIMIZERS)
def optimizer(request):
    return OPTIMIZERS[request.param](np.zeros(N_PARAMETERS), seed=0, n_updates=150)


def run(optimizer, n_updates):
    for _ in range(n_updates):
        candidates = optimizer.ask()
        optimizer.tell([sphere(perturbed(optimizer, c)) for c in candidates])


def test_converges_on_a_sphere(optimizer):
    start = sphere(optimizer.mean)
    run(optimizer, 150)
    assert start == -N_PARAMETERS
    assert sphere(optimizer.mean) > 0.2 * start


def test_same_seed_same_search(optimizer):
    twin = type(optimizer)(np.zeros(N_PARAMETERS), seed=0, n_updates=150)
    stranger = type(optimizer)(np.zeros(N_PARAMETERS), seed=1, n_updates=150)
    for each in (optimizer, twin, stranger):
        run(each, 3)
    assert np.array_equal(optimizer.mean, twin.mean)
    assert not np.array_equal(optimizer.mean, stranger.mean)


def test_asks_for_a_population_of_its_size(optimizer):
    assert len(optimizer.ask()) == optimizer.population_size


def test_tell_before_ask_is_refused(optimizer):
    with pytest.raises(RuntimeError, match="ask for candidates first"):
        optimizer.tell(np.zeros(optimizer.population_size))


def test_ask_twice_is_refused(optimizer):
    optimizer.ask()
    with pytest.raises(RuntimeError, match="ask\\(\\) was called twice"):
        optimizer.ask()


def test_fitness_of_another_shape_is_refused(optimizer):
    optimizer.ask()
    with pytest.raises(ValueError, match=rf"expected shape \({optimizer.population_size},\), got \(3,\)"):
        optimizer.tell(np.zeros(3))


def test_infinite_fitness_is_refused(optimizer):
    optimizer.ask()
    with pytest.raises(ValueError, match="NaN to drop a candidate, got inf"):
        optimizer.tell(np.full(optimizer.population_size, np.inf))


def test_without_any_fitness_the_mean_stays(optimizer):
    optimizer.ask()
    optimizer.tell(np.full(optimizer.population_size, np.nan))
    assert np.array_equal(optimizer.mean, np.zeros(N_PARAMETERS))
    assert optimizer.n_updates_done == 1


def test_state_round_trip(optimizer):
    """A new optimizer that takes up the state goes on to the same bits."""
    run(optimizer, 5)
    twin = type(optimizer)(np.ones(N_PARAMETERS), seed=0, n_updates=150)
    twin.load_state_dict(optimizer.state_dict())
    for each in (optimizer, twin):
        run(each, 3)
    assert np.array_equal(optimizer.mean, twin.mean)
    assert optimizer.n_updates_done == twin.n_updates_done == 8


def test_equal_fitness_does_not_move_the_mean(optimizer):
    optimizer.ask()
    optimizer.tell(np.full(optimizer.population_size, 7.0))
    assert np.array_equal(optimizer.mean, np.zeros(N_PARAMETERS))


def test_the_callers_vector_is_left_alone(optimizer):
    start = np.zeros(N_PARAMETERS, dtype=np.float32)
    run(type(optimizer)(start, seed=0, n_updates=3), 2)
    assert np.array_equal(start, np.zeros(N_PARAMETERS))


def test_ars_takes_the_step_of_its_equation():
    """theta + alpha / (n sigma_R) * sum (R+ - R-) delta, sigma_R over all 2n returns."""
    n_delta, fitness = 3, np.array([4.0, 1.0, -2.0, 5.0, 0.5, 0.0])
    ars = ARS(np.ones(N_PARAMETERS), seed=5, n_updates=10, n_delta=n_delta, learning_rate=0.1, delta_std=0.3)
    ars.ask()
    ars.tell(fitness)
    step = sum((fitness[2 * i] - fitness[2 * i + 1]) * direction(5, 0, i, N_PARAMETERS) for i in range(n_delta))
    expected = 1.0 + 0.1 / (n_delta * fitness.std()) * step
    assert np.allclose(ars.mean, expected, rtol=1e-5, atol=1e-6)


def test_ars_steps_along_the_top_directions_only():
    """n_top directions by max(R+, R-), not by their difference; the divisor stays n_delta."""
    fitness = np.array([-9.0, 4.0, 5.0, -2.0, 0.5, -30.0])
    ars = ARS(np.zeros(N_PARAMETERS), seed=5, n_updates=10, n_delta=3, n_top=1, learning_rate=0.1, delta_std=0.3)
    ars.ask()
    ars.tell(fitness)
    expected = 0.1 / (3 * fitness.std()) * (5.0 + 2.0) * direction(5, 0, 1, N_PARAMETERS)
    assert np.allclose(ars.mean, expected, rtol=1e-5, atol=1e-6)


def test_ars_drops_a_pair_that_lost_a_candidate():
    fitness = np.array([4.0, np.nan, -2.0, 5.0, 0.5, 0.0])
    ars = ARS(np.zeros(N_PARAMETERS), seed=5, n_updates=10, n_delta=3, learning_rate=0.1, delta_std=0.3)
    ars.ask()
    ars.tell(fitness)
    step = -7.0 * direction(5, 0, 1, N_PARAMETERS) + 0.5 * direction(5, 0, 2, N_PARAMETERS)
    expected = 0.1 / (3 * np.std([-2.0, 5.0, 0.5, 0.0])) * step
    assert np.allclose(ars.mean, expected, rtol=1e-5, atol=1e-6)


def test_ars_perturbs_in_antithetic_pairs():
    ars = ARS(np.zeros(N_PARAMETERS), seed=0, n_updates=10, n_delta=4, delta_std=0.3)
    candidates = ars.ask()
    for plus, minus in zip(candidates[0::2], candidates[1::2], strict=True):
        assert (plus.update, plus.pair) == (minus.update, minus.pair)
        assert plus.scale == -minus.scale == 0.3
    assert len({candidate.pair for candidate in candidates}) == 4


def test_ars_schedules_are_linear_and_never_quite_reach_their_end():
    ars = ARS(np.zeros(N_PARAMETERS), seed=0, n_updates=4, n_delta=1, delta_std=(0.4, 0.0))
    scales = []
    for _ in range(4):
        candidates = ars.ask()
        scales.append(candidates[0].scale)
        ars.tell(np.zeros(2))
    assert np.allclose(scales, [0.4, 0.3, 0.2, 0.1])


def test_ars_step_size_is_scheduled_too():
    ars = ARS(np.zeros(N_PARAMETERS), seed=0, n_updates=4, n_delta=1, learning_rate=(0.4, 0.0), delta_std=1.0)
    steps = []
    for _ in range(4):
        before = ars.mean.copy()
        ars.ask()
        ars.tell(np.array([1.0, -1.0]))  # sigma_R is 1, so the step is 2 alpha delta
        steps.append(np.linalg.norm(ars.mean - before) / np.linalg.norm(direction(0, len(steps), 0, N_PARAMETERS)))
    assert np.allclose(steps, [0.8, 0.6, 0.4, 0.2], rtol=1e-4)


def test_directions_are_unit_normal_and_differ():
    directions = np.stack([direction(0, 0, i, 50_000) for i in range(4)])
    assert directions.dtype == np.float32
    assert np.allclose(directions.mean(axis=1), 0, atol=0.02)
    assert np.allclose(directions.std(axis=1), 1, atol=0.02)
    assert np.abs(np.corrcoef(directions) - np.eye(4)).max() < 0.02


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"n_delta": 0}, "n_delta: expected a whole number of at least 1, got 0"),
        ({"n_delta": 4, "n_top": 5}, "n_top: expected 1 to n_delta=4, got 5"),
        ({"learning_rate": -1.0}, "learning_rate: expected a positive number"),
        ({"delta_std": (0.1, 0.2, 0.3)}, "delta_std: expected a positive number or a start and an end"),
        ({"delta_std": "0.1"}, "delta_std: expected a positive number or a start and an end, got '0.1'"),
        ({"n_delta": 2.5}, "n_delta: expected a whole number of at least 1, got 2.5"),
        ({"delta_std": float("nan")}, "delta_std: expected a positive number"),
        ({"n_updates": 0}, "n_updates: expected a whole number of at least 1, got 0"),
    ],
)
def test_ars_refuses_arguments_out_of_range(arguments, line):
    with pytest.raises(RefineError, match=line):
        ARS(np.zeros(3), **{"seed": 0, "n_updates": 1, **arguments})


def test_directions_are_the_same_in_every_process_and_not_to_be_written_to():
    first = direction(3, 1, 2, 1000)
    code = "from sb3_refine.optimizers.candidates import direction; print(direction(3, 1, 2, 1000).tobytes().hex())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == first.tobytes().hex()
    with pytest.raises(ValueError, match="read-only"):
        first += 1


def test_directions_that_overlap_in_the_table_are_uncorrelated():
    """Slices of one table of 4 million numbers: a search draws more of them than fit side by side."""
    size = 200_000
    stack = np.stack([direction(0, update, 0, size) for update in range(60)])
    correlations = np.corrcoef(stack)[np.triu_indices(60, 1)]
    assert np.abs(correlations).max() < 5 / np.sqrt(size)
    assert abs(correlations.mean()) < 3 / np.sqrt(size * correlations.size)
