"""Every optimizer in the registry keeps the contract, and ARS is what its equation says."""

from typing import ClassVar

import numpy as np
import pytest
import torch
from fresh import run_script
from scipy import stats

from sb3_refine.errors import RefineError
from sb3_refine.optimizers import (
    ARS,
    CEM,
    CMAES,
    OPTIMIZERS,
    PGPE,
    BacktrackingARS,
    ExplicitPopulation,
    GuidedES,
    NoisePopulation,
    OpenAIES,
    ScaledOptimizer,
)
from sb3_refine.optimizers.backtracking_ars import clear_difference
from sb3_refine.optimizers.noise_table import direction, noise_key
from sb3_refine.optimizers.openai_es import PlainOpenAIES, centred_ranks
from sb3_refine.optimizers.population import pair_weights
from sb3_refine.testing import OptimizerContract

N_PARAMETERS = 20


class TestARS(OptimizerContract):
    optimizer = ARS


class TestPlainOpenAIES(OptimizerContract):
    optimizer = PlainOpenAIES


class TestBacktrackingARS(OptimizerContract):
    optimizer = BacktrackingARS


class TestCEM(OptimizerContract):
    optimizer = CEM


class TestCMAES(OptimizerContract):
    optimizer = CMAES


class TestSeparableCMAES(OptimizerContract):
    optimizer = CMAES
    options: ClassVar = {"separable": True}


class TestGuidedES(OptimizerContract):
    optimizer = GuidedES


class TestOpenAIES(OptimizerContract):
    optimizer = OpenAIES
    options: ClassVar = {"learning_rate": 0.02}


class TestPGPE(OptimizerContract):
    optimizer = PGPE
    options: ClassVar = {"max_speed": 1.0, "stdev_init": 0.1}


def test_every_optimizer_has_a_contract_test():
    tested = {cls.optimizer for cls in OptimizerContract.__subclasses__() if cls.__module__ == __name__}
    assert tested == set(OPTIMIZERS.values())


def delta(seed, update, number, size=N_PARAMETERS):
    return direction(seed, noise_key(seed, update, number), size)


def test_ars_takes_the_step_of_its_equation():
    """theta + alpha / (n sigma_R) * sum (R+ - R-) delta, sigma_R over all 2n returns."""
    n_delta, fitness = 3, np.array([4.0, 1.0, -2.0, 5.0, 0.5, 0.0])
    ars = ARS(np.ones(N_PARAMETERS), seed=5, n_updates=10, n_delta=n_delta, learning_rate=0.1, delta_std=0.3)
    ars.ask()
    ars.tell(fitness)
    step = sum((fitness[2 * i] - fitness[2 * i + 1]) * delta(5, 0, i) for i in range(n_delta))
    assert np.allclose(ars.theta, 1.0 + 0.1 / (n_delta * fitness.std()) * step, rtol=1e-5, atol=1e-6)


def test_ars_steps_along_the_top_directions_only():
    """n_top directions by max(R+, R-), not by their difference; the divisor stays n_delta."""
    fitness = np.array([-9.0, 4.0, 5.0, -2.0, 0.5, -30.0])
    ars = ARS(np.zeros(N_PARAMETERS), seed=5, n_updates=10, n_delta=3, n_top=1, learning_rate=0.1, delta_std=0.3)
    ars.ask()
    ars.tell(fitness)
    assert np.allclose(ars.theta, 0.1 / (3 * fitness.std()) * (5.0 + 2.0) * delta(5, 0, 1), rtol=1e-5, atol=1e-6)


def test_ars_drops_a_pair_that_lost_a_candidate():
    ars = ARS(np.zeros(N_PARAMETERS), seed=5, n_updates=10, n_delta=3, learning_rate=0.1, delta_std=0.3)
    ars.ask()
    ars.tell(np.array([4.0, np.nan, -2.0, 5.0, 0.5, 0.0]))
    step = -7.0 * delta(5, 0, 1) + 0.5 * delta(5, 0, 2)
    assert np.allclose(ars.theta, 0.1 / (3 * np.std([-2.0, 5.0, 0.5, 0.0])) * step, rtol=1e-5, atol=1e-6)


def test_ars_stays_where_no_direction_is_better():
    for fitness in (7.0, np.nan):
        ars = ARS(np.ones(N_PARAMETERS), seed=0, n_updates=10, n_delta=4)
        ars.ask()
        ars.tell(np.full(8, fitness))
        assert (ars.theta == 1).all()


def test_ars_perturbs_in_antithetic_pairs_that_share_their_seeds():
    ars = ARS(np.ones(N_PARAMETERS), seed=0, n_updates=10, n_delta=4, delta_std=0.3)
    population = ars.ask()
    assert population.groups == [0, 0, 1, 1, 2, 2, 3, 3]
    for number in range(4):
        plus, minus = population.theta(2 * number), population.theta(2 * number + 1)
        assert plus.tobytes() == (1 + np.float32(0.3) * delta(0, 0, number)).tobytes()
        assert minus.tobytes() == (1 + np.float32(-0.3) * delta(0, 0, number)).tobytes()


def test_ars_schedules_are_linear_and_stop_one_step_before_their_end():
    ars = ARS(np.zeros(N_PARAMETERS), seed=0, n_updates=4, n_delta=1, delta_std=(0.4, 0.0))
    stds = []
    for _ in range(4):
        stds.append(ars.ask().std)
        ars.tell(np.zeros(2))
    assert np.allclose(stds, [0.4, 0.3, 0.2, 0.1])


def test_ars_step_size_is_scheduled_too():
    ars = ARS(np.zeros(N_PARAMETERS), seed=0, n_updates=4, n_delta=1, learning_rate=(0.4, 0.0), delta_std=1.0)
    steps = []
    for update in range(4):
        before = ars.theta.copy()
        ars.ask()
        ars.tell(np.array([1.0, -1.0]))  # sigma_R is 1, so the step is 2 alpha delta
        steps.append(np.linalg.norm(ars.theta - before) / np.linalg.norm(delta(0, update, 0)))
    assert np.allclose(steps, [0.8, 0.6, 0.4, 0.2], rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"n_delta": 0}, "n_delta: expected a whole number of at least 1, got 0"),
        ({"n_delta": 4, "n_top": 5}, "n_top: expected 1 to n_delta=4, got 5"),
        ({"learning_rate": -1.0}, "learning_rate: expected a positive number"),
        ({"delta_std": (0.1, 0.2, 0.3)}, "delta_std: expected a positive number or a start and an end"),
        ({"delta_std": "0.1"}, "delta_std: expected a positive number or a start and an end, got '0.1'"),
        ({"delta_std": [0.1]}, "delta_std: expected a positive number or a start and an end"),
        ({"n_delta": 2.5}, "n_delta: expected a whole number of at least 1, got 2.5"),
        ({"delta_std": float("nan")}, "delta_std: expected a positive number"),
        ({"n_updates": 0}, "n_updates: expected a whole number of at least 1, got 0"),
    ],
)
def test_ars_refuses_arguments_out_of_range(arguments, line):
    with pytest.raises(RefineError, match=line):
        ARS(np.zeros(3), **{"seed": 0, "n_updates": 1, **arguments})


def test_a_population_may_have_a_standard_deviation_for_each_parameter():
    std = np.array([0.0, 0.1, 1.0])
    population = NoisePopulation(np.zeros(3), std, [5, 5, 9, 0], [1.0, -1.0, 1.0, 0.0], seed=3)
    assert population.theta(0).tolist() == (std.astype(np.float32) * direction(3, 5, 3)).tolist()
    assert np.array_equal(population.theta(1), -population.theta(0))
    assert population.groups == [0, 0, 1, 2]
    assert population.describe(2) == "candidate 2, the policy perturbed by +1 std times direction 1"
    assert population.describe(3) == "the iterate"
    assert not population.theta(3).any()


def test_a_population_of_explicit_vectors_shares_its_seeds_unless_grouped():
    population = ExplicitPopulation(np.eye(3, 4), names=["a", "b", "c"])
    assert (len(population), population.groups, population.describe(1)) == (3, [0, 0, 0], "b")
    assert population.theta(2).tolist() == [0, 0, 1, 0]
    assert ExplicitPopulation(np.eye(2), groups=[4, 7]).groups == [4, 7]


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (
            lambda: NoisePopulation(np.zeros(3), 0.1, [1, 2], [1.0], seed=0),
            "signs: expected 2, one for each key, got 1",
        ),
        (lambda: ExplicitPopulation(np.zeros(3)), r"expected shape \(n_candidates, n_parameters\), got \(3,\)"),
        (lambda: ExplicitPopulation(np.eye(3), groups=[0]), "groups: expected 3, one for each candidate, got 1"),
    ],
)
def test_a_population_of_mismatched_lengths_is_refused(make, line):
    with pytest.raises(ValueError, match=line):
        make()


def test_directions_are_unit_normal_and_differ():
    directions = np.stack([delta(0, 0, number, 50_000) for number in range(4)])
    assert directions.dtype == np.float32
    assert np.allclose(directions.mean(axis=1), 0, atol=0.02)
    assert np.allclose(directions.std(axis=1), 1, atol=0.02)
    assert np.abs(np.corrcoef(directions) - np.eye(4)).max() < 0.02


def test_directions_are_the_same_in_every_process_and_read_only():
    first = direction(3, noise_key(3, 1, 2), 1000)
    code = (
        "from sb3_refine.optimizers.noise_table import *; print(direction(3, noise_key(3, 1, 2), 1000).tobytes().hex())"
    )
    other = run_script(code)
    assert other.stdout.strip() == first.tobytes().hex()
    with pytest.raises(ValueError, match="read-only"):
        first += 1


def test_directions_that_overlap_in_the_table_are_uncorrelated():
    """Slices of one table of 4 million numbers: a search draws more of them than fit side by side."""
    size = 200_000
    stack = np.stack([delta(0, update, 0, size) for update in range(60)])
    correlations = np.corrcoef(stack)[np.triu_indices(60, 1)]
    assert np.abs(correlations).max() < 5 / np.sqrt(size)
    assert abs(correlations.mean()) < 3 / np.sqrt(size * correlations.size)


def test_a_scaled_optimizer_searches_changes_in_units_of_their_own():
    start, scale = np.arange(N_PARAMETERS, dtype=np.float32), np.linspace(0, 2, N_PARAMETERS, dtype=np.float32)
    inner = ARS(np.zeros(N_PARAMETERS), seed=5, n_updates=10, n_delta=2)
    twin = ARS(np.zeros(N_PARAMETERS), seed=5, n_updates=10, n_delta=2)
    scaled = ScaledOptimizer(inner, start, scale)
    population, changes = scaled.ask(), twin.ask()
    for index in range(4):
        assert np.array_equal(population.theta(index), start + scale * changes.theta(index))
        assert population.describe(index) == changes.describe(index)
    for optimizer in (scaled, twin):
        optimizer.tell(np.array([1.0, 4.0, 2.0, 0.0]))
    assert np.array_equal(scaled.theta, start + scale * twin.theta)
    assert scaled.theta[0] == start[0], "a parameter without a scale stays"


def test_a_scaled_optimizer_has_as_many_episodes_a_candidate_as_the_optimizer():
    optimizer = BacktrackingARS(np.zeros(2), seed=0, n_updates=1)
    optimizer.episodes_per_candidate = 3
    assert ScaledOptimizer(optimizer, np.zeros(2), np.ones(2)).episodes_per_candidate == 3


def backtracking(**kwargs):
    options = {"n_delta": 3, "n_center": 2, "learning_rate": 0.5, "delta_std": 0.3, "momentum": 0.6, **kwargs}
    return BacktrackingARS(np.ones(N_PARAMETERS), seed=5, n_updates=10, **options)


EIGHT = (4.0, 1.0, -2.0, 5.0, 0.5, 0.0, 1.0, 3.0)


def update(optimizer, center, pairs=(4.0, 1.0, -2.0, 5.0, 0.5, 0.0)):
    population = optimizer.ask()
    optimizer.tell(np.array([*center, *pairs]))
    return population


def rms(values):
    return np.sqrt(np.square(values).mean())


def test_backtracking_ars_takes_the_step_of_its_equation():
    """The median of the differences 3, -7 and 0.5 is 3."""
    optimizer, differences = backtracking(clip=2.0), np.array([3.0, -6.0, 0.5])
    update(optimizer, center=(1.0, 2.0))
    gradient = sum(differences[i] / rms(differences) * delta(5, 0, i) for i in range(3)) / 3
    velocity = 0.4 * gradient
    assert np.allclose(optimizer.theta, 1.0 + 0.5 * 0.3 / np.sqrt(0.4) * velocity, rtol=1e-5, atol=1e-6)
    before = optimizer.theta
    update(optimizer, center=(1.0, 2.0))
    gradient = sum(differences[i] / rms(differences) * delta(5, 1, i) for i in range(3)) / 3
    velocity = 0.6 * velocity + 0.4 * gradient
    assert np.allclose(optimizer.theta, before + 0.5 * 0.3 / np.sqrt(0.4) * velocity, rtol=1e-5, atol=1e-6)


def test_noise_and_step_of_backtracking_ars_change_over_the_search():
    optimizer = backtracking(learning_rate=(0.8, 0.2), delta_std=(0.4, 0.2), momentum=0.0, n_delta=1, n_center=0)
    for number in range(10):
        before, std, learning_rate = optimizer.theta, 0.4 - 0.02 * number, 0.8 - 0.06 * number
        assert update(optimizer, center=(), pairs=(1.0, 0.0)).std == pytest.approx(std)
        assert np.allclose(optimizer.theta - before, learning_rate * std * delta(5, number, 0), rtol=1e-5, atol=1e-6)


def test_backtracking_ars_drops_pairs_that_lost_a_candidate():
    optimizer, twin = backtracking(n_delta=3), backtracking(n_delta=3)
    update(optimizer, center=(1.0, 2.0), pairs=(4.0, 1.0, np.nan, 5.0, 0.5, 0.0))
    update(twin, center=(1.0, 2.0), pairs=(4.0, 1.0, 7.0, np.nan, 0.5, 0.0))
    assert np.array_equal(optimizer.theta, twin.theta)
    assert not np.array_equal(optimizer.theta, np.ones(N_PARAMETERS))


def test_backtracking_ars_stays_where_all_candidates_are_equal():
    optimizer = backtracking()
    update(optimizer, center=(1.0, 1.0), pairs=(1.0,) * 6)
    assert np.array_equal(optimizer.theta, np.ones(N_PARAMETERS))


def test_the_iterate_runs_on_the_seeds_of_the_first_pairs():
    population = backtracking().ask()
    assert list(population.groups) == [0, 1, 0, 0, 1, 1, 2, 2]
    assert [(population.theta(i) == 1).all() for i in range(8)] == [True] * 2 + [False] * 6


@pytest.mark.parametrize(("n_delta", "n_center"), [(1, 0), (3, 2), (16, 4)])
def test_the_iterate_has_an_episode_for_each_four_pairs_and_at_least_two(n_delta, n_center):
    optimizer = BacktrackingARS(np.zeros(2), seed=0, n_updates=1, n_delta=n_delta)
    assert optimizer.population_size == n_center + 2 * n_delta


def test_a_search_that_gets_worse_goes_back_and_halves_its_noise():
    optimizer = backtracking()
    update(optimizer, center=(10.0, 11.0))
    better = optimizer.theta.copy()
    assert update(optimizer, center=(40.0, 41.0)).std == 0.3
    assert not np.array_equal(optimizer.theta, better)
    update(optimizer, center=(-5.0, -4.0))
    assert np.array_equal(optimizer.theta, better)
    assert update(optimizer, center=(20.0, 21.0)).std == 0.15
    step = np.abs(optimizer.theta - better)
    assert step.max() > 0, "the search goes on from there"


def test_after_going_back_the_search_starts_without_momentum_and_with_half_of_the_step():
    optimizer, one_pair = backtracking(n_delta=2), (1.0, 0.0, 0.0, 0.0)
    update(optimizer, center=(10.0, 11.0), pairs=one_pair)
    update(optimizer, center=(-5.0, -4.0), pairs=one_pair)
    update(optimizer, center=(10.0, 11.0), pairs=one_pair)
    gradient = np.sqrt(2) * delta(5, 2, 0) / 2  # the difference of 1, divided by the root mean square of 1 and 0
    step = 0.5 * 0.15 / np.sqrt(0.4) * 0.4 * gradient
    assert np.allclose(optimizer.theta, 1.0 + step, rtol=1e-5, atol=1e-6)


def test_all_episodes_of_the_start_point_count_once_the_search_has_gone_back_to_it():
    optimizer = backtracking(tolerance=2.0)
    update(optimizer, center=(10.0, 11.0))
    update(optimizer, center=(-95.0, -94.0))
    update(optimizer, center=(30.0, 31.0))
    update(optimizer, center=(12.0, 13.0))  # clearly below 30 and 31, but not below 10, 11, 30 and 31
    assert optimizer.ask().std == 0.15


def test_all_episodes_of_the_best_iterate_count_once_the_search_has_gone_back_to_it():
    optimizer = backtracking(tolerance=2.0)
    update(optimizer, center=(10.0, 11.0))
    update(optimizer, center=(50.0, 51.0))
    best = optimizer.state_dict()["best_theta"]
    update(optimizer, center=(-95.0, -94.0))
    update(optimizer, center=(20.0, 21.0))
    update(optimizer, center=(60.0, 61.0))  # clearly above 20 and 21, but not above 20, 21, 50 and 51
    assert np.array_equal(optimizer.state_dict()["best_theta"], best)


def test_the_start_point_stays_what_an_iterate_is_compared_with_after_the_search_has_gone_back_to_a_better_one():
    optimizer = backtracking()
    update(optimizer, center=(10.0, 11.0))
    update(optimizer, center=(50.0, 51.0))
    update(optimizer, center=(-95.0, -94.0))
    update(optimizer, center=(50.0, 51.0))
    update(optimizer, center=(10.0, 11.0))
    assert optimizer.ask().std == 0.15


def test_a_search_that_has_gone_back_goes_on_with_the_same_bits_after_it_is_resumed():
    def tell(optimizer, number):
        population, rng = optimizer.ask(), np.random.default_rng(number)
        returns = [-np.square(population.theta(i)).sum() for i in range(len(population))]
        optimizer.tell(np.array(returns) + rng.normal(scale=0.5, size=len(returns)))

    start = np.full(200, 0.2)
    optimizer, states = BacktrackingARS(start, seed=1, n_updates=64), []
    for number in range(25):
        tell(optimizer, number)
        states.append(optimizer.state_dict())
    assert states[-1]["n_halved"] == 1
    assert states[-1]["has_improved"]
    for number in range(25):
        resumed = BacktrackingARS(start, seed=1, n_updates=64)
        resumed.load_state_dict(states[number])
        np.testing.assert_equal(resumed.state_dict(), states[number])
        for later in range(number + 1, 25):
            tell(resumed, later)
        assert np.array_equal(resumed.theta, optimizer.theta)


def test_an_iterate_that_is_worse_than_the_best_one_but_not_than_the_start_point_is_no_reason_to_go_back():
    optimizer = backtracking()
    for center in ((10.0, 11.0), (90.0, 91.0), (15.0, 16.0)):
        update(optimizer, center)
    assert optimizer.ask().std == 0.3


def test_a_search_that_has_not_improved_goes_back_to_its_start_point():
    optimizer = backtracking()
    update(optimizer, center=(10.0, 11.0))
    update(optimizer, center=(-5.0, -4.0))
    assert np.array_equal(optimizer.theta, np.ones(N_PARAMETERS))
    assert optimizer.ask().std == 0.15


def test_an_iterate_whose_perturbed_policies_are_clearly_better_is_the_best_one():
    optimizer = backtracking()
    update(optimizer, center=(10.0, 11.0), pairs=(-4.0, -1.0, -2.0, -5.0, -3.0, -3.0))
    better = optimizer.theta
    update(optimizer, center=(-15.0, -14.0), pairs=(10.0, 13.0, 12.0, 9.0, 11.0, 11.0))
    assert np.array_equal(optimizer.state_dict()["best_theta"], better)
    assert optimizer.ask().std == 0.3, "although the iterate itself is clearly worse than the start point"


def test_perturbed_policies_that_improved_once_must_improve_again_to_keep_the_search_from_going_back():
    optimizer, first, better = backtracking(n_delta=4), (-9.0, -9.5, -8.0, -8.5) * 2, (12.0, 13.0, 13.0, 14.0) * 2
    update(optimizer, center=(10.0, 11.0), pairs=first)
    update(optimizer, center=(-15.0, -14.0), pairs=better)
    assert update(optimizer, center=(-15.0, -14.0), pairs=better).std == 0.3
    assert optimizer.ask().std == 0.15


def test_a_search_whose_perturbed_policies_get_clearly_worse_goes_back_to_where_they_were_best():
    optimizer, first, better = backtracking(n_delta=4), (-9.0, -9.5, -8.0, -8.5) * 2, (12.0, 13.0, 13.0, 14.0) * 2
    update(optimizer, center=(10.0, 11.0), pairs=first)
    best = optimizer.theta
    update(optimizer, center=(10.0, 11.0), pairs=better)
    update(optimizer, center=(10.0, 11.0), pairs=first)
    assert np.array_equal(optimizer.theta, best)
    assert optimizer.ask().std == 0.15


LOW, A_LITTLE_BETTER = np.array([-9.0, -9.5, -8.0, -8.5] * 2), np.array([-8.9, -9.4, -7.9, -8.4] * 2)
HIGH = np.array([10.0, 11.0, 10.5, 11.5] * 2)
START, BETTER = (10.0, 11.0), (40.0, 41.0)


@pytest.mark.parametrize("patience", [1, 5])
def test_noise_is_halved_where_it_has_improved_nothing_after_some_updates_and_breaks_the_agent(patience):
    optimizer = backtracking(n_delta=4, patience=patience)
    update(optimizer, START, LOW)
    for _ in range(patience):
        assert update(optimizer, START, LOW).std == 0.3
    assert np.array_equal(optimizer.theta, np.ones(N_PARAMETERS))
    for _ in range(patience + 1):
        assert update(optimizer, START, LOW).std == 0.15
    assert optimizer.ask().std == 0.075, "and again"


@pytest.mark.parametrize(
    ("first", "later", "center", "patience"),
    [
        (LOW, A_LITTLE_BETTER, START, 2),
        (HIGH, HIGH, START, 2),
        (LOW, LOW, BETTER, 2),
        (LOW, LOW, START, None),
    ],
    ids=["it rises", "it does not break the agent", "an iterate is better", "no limit"],
)
def test_noise_stays_where(first, later, center, patience):
    optimizer = backtracking(n_delta=4, patience=patience)
    update(optimizer, START, first)
    for _ in range(8):
        assert update(optimizer, center, later).std == 0.3


def test_perturbed_policies_that_were_better_once_do_not_keep_noise_that_breaks_the_agent():
    optimizer = backtracking(n_delta=4, patience=3)
    update(optimizer, START, LOW)
    better = optimizer.theta
    for pairs in (LOW + 3.0, LOW + 2.9, LOW + 3.2, LOW + 2.7):
        assert update(optimizer, START, pairs).std == 0.3
    assert np.array_equal(optimizer.theta, better)
    assert optimizer.ask().std == 0.15


def test_noise_stays_once_the_iterates_of_some_updates_together_have_been_better():
    optimizer = backtracking(n_delta=4, patience=3)
    update(optimizer, START, LOW)
    for _ in range(3):
        update(optimizer, BETTER, LOW)
    for _ in range(8):
        assert update(optimizer, (30.0, 31.0), LOW).std == 0.3


def test_one_lucky_iterate_is_no_gain():
    """Two equal episodes seem to be clearly better than the start point, whose episodes differ."""
    optimizer = backtracking(n_delta=4, patience=3)
    optimizer.tell_start(np.array([40.0, 40.0, -60.0, 40.0] * 16))
    update(optimizer, (40.0, -60.0), LOW - 50.0)
    update(optimizer, (40.0, 40.0), LOW - 50.0)
    lucky = optimizer.state_dict()["best_theta"]
    for _ in range(3):
        assert update(optimizer, (40.0, -60.0), LOW - 50.1).std == 0.3
    assert optimizer.ask().std == 0.15
    assert np.array_equal(optimizer.theta, lucky)
    assert not np.array_equal(optimizer.theta, np.ones(N_PARAMETERS))


def test_noise_stays_where_perturbed_policies_have_been_better_on_average():
    optimizer = backtracking(n_delta=4, patience=2)
    for pairs in (LOW, LOW + 0.5, LOW - 0.1, LOW - 0.1):
        assert update(optimizer, START, pairs).std == 0.3


@pytest.mark.parametrize("number_of_directions", [2, 5, 6, 7])
def test_noise_that_makes_all_policies_equally_bad_is_halved(number_of_directions):
    """Nothing tells which direction is better: the search stays where it is."""
    optimizer = backtracking(n_delta=number_of_directions, patience=2)
    optimizer.tell_start(np.array([-10.1, -9.0, -9.2, -10.0]))
    for n_halved in range(3):
        for _ in range(3):
            assert update(optimizer, center=(-10.0, -10.1), pairs=(-119.6,) * 2 * number_of_directions).std == (
                0.3 / 2**n_halved
            )
    assert np.array_equal(optimizer.theta, np.ones(N_PARAMETERS))


def test_an_update_that_lost_all_its_candidates_does_not_count_as_one_without_improvement():
    optimizer = backtracking(n_delta=4, patience=2)
    for pairs in (LOW, np.full(8, np.nan), LOW, LOW):
        assert update(optimizer, START, pairs).std == 0.3
    assert optimizer.ask().std == 0.15


def test_without_episodes_of_the_start_point_noise_is_never_too_large():
    for fitness, n_halved in (([10.0, 11.0, 12.0], 1), ([], 0)):
        optimizer = backtracking(n_delta=4, n_center=0, patience=2)
        optimizer.tell_start(np.array(fitness))
        for _ in range(3):
            update(optimizer, center=(), pairs=LOW)
        assert optimizer.state_dict()["n_halved"] == n_halved


def test_with_one_direction_a_search_never_goes_back():
    optimizer = backtracking(n_delta=1, n_center=0)
    optimizer.tell_start(np.array([10.0, 11.0, 12.0]))
    for number in range(10):
        assert update(optimizer, center=(), pairs=(-100.0 * number, -101.0 * number)).std == 0.3


def test_a_resumed_search_has_waited_as_long_as_the_one_before():
    optimizer = backtracking(n_delta=4)
    for _ in range(4):
        update(optimizer, START, LOW)
    state, resumed = optimizer.state_dict(), backtracking(n_delta=4)
    resumed.load_state_dict(state)
    for _ in range(2):
        assert [update(each, START, LOW).std for each in (optimizer, resumed)] == [0.3, 0.3]
    assert [each.ask().std for each in (optimizer, resumed)] == [0.15, 0.15]
    assert len(state["pair_means"]) == 3, "a copy"


def test_a_better_iterate_is_the_best_one_whatever_the_policies_around_it():
    optimizer = backtracking(n_delta=4)
    update(optimizer, START, HIGH)
    better = optimizer.theta
    assert update(optimizer, BETTER, LOW).std == 0.3
    assert np.array_equal(optimizer.state_dict()["best_theta"], better)
    assert optimizer.ask().std == 0.3


def test_without_episodes_of_the_iterate_the_perturbed_policies_alone_are_compared():
    optimizer, first, worse = (
        backtracking(n_delta=4, n_center=0),
        (2.0, 3.0, 4.0, 3.0) * 2,
        (-9.0, -9.5, -8.0, -8.5) * 2,
    )
    update(optimizer, center=(), pairs=first)
    assert update(optimizer, center=(), pairs=worse).std == 0.3
    assert optimizer.ask().std == 0.15


def test_a_search_with_a_very_large_tolerance_never_goes_back():
    optimizer = backtracking(tolerance=1e9)
    for center in ((10.0, 11.0), (-500.0, -501.0), (-500.0, -501.0)):
        assert update(optimizer, center).std == 0.3


def test_after_going_back_perturbed_policies_are_compared_with_those_of_the_halved_noise():
    optimizer, full_noise, half = backtracking(n_delta=4), (2.0, 3.0, 4.0, 3.0) * 2, (-9.0, -9.5, -8.0, -8.5) * 2
    update(optimizer, center=(10.0, 11.0), pairs=full_noise)
    update(optimizer, center=(-15.0, -14.0), pairs=full_noise)
    for _ in range(3):
        assert update(optimizer, center=(10.0, 11.0), pairs=half).std == 0.15


def test_perturbed_policies_are_compared_by_pairs_as_both_of_a_pair_share_their_seeds():
    """With sixteen episodes, the difference would be clear; there are eight independent ones."""
    first = np.repeat([0.0, 1.0] * 4, 2)
    first[0] += 0.001  # so that the search makes a step
    optimizer = backtracking(n_delta=8, tolerance=2.5)
    update(optimizer, center=(10.0, 11.0), pairs=first)
    shift = (clear_difference(first, first, 2.5) + clear_difference(first[::2], first[::2], 2.5)) / 2
    update(optimizer, center=(10.0, 11.0), pairs=first - shift)
    assert optimizer.ask().std == 0.3


def test_the_start_point_is_compared_by_all_its_episodes_also_those_from_before_the_search():
    first, second = backtracking(), backtracking()
    first.tell_start(np.array([7.0, 8.0, 9.0, 8.0, np.nan, 7.5]))
    for optimizer, std in ((first, 0.3), (second, 0.15)):
        update(optimizer, center=(10.0, 10.0))
        update(optimizer, center=(7.0, 7.0))
        assert optimizer.ask().std == std
    assert first.state_dict()["start_center"].tolist() == [7.0, 8.0, 9.0, 8.0, 7.5, 10.0, 10.0]


def test_equal_returns_do_not_differ_by_rounding():
    """The means of twelve and of four times -119.6 differ in the last digit."""
    optimizer = backtracking(n_delta=4, n_center=4)
    for _ in range(2):
        update(optimizer, center=(-119.6,) * 4, pairs=EIGHT)
        update(optimizer, center=(-200.0,) * 4, pairs=EIGHT)
    update(optimizer, center=(-119.6,) * 4, pairs=EIGHT)
    update(optimizer, center=(-119.6,) * 4, pairs=EIGHT)
    assert optimizer.ask().std == 0.3 / 4


def test_a_policy_that_did_not_move_is_not_compared_with_itself():
    optimizer = backtracking()
    update(optimizer, center=(10.0, 11.0), pairs=(1.0,) * 6)
    update(optimizer, center=(-5.0, -4.0), pairs=(1.0,) * 6)
    assert optimizer.state_dict()["start_center"].tolist() == [10.0, 11.0, -5.0, -4.0]
    assert optimizer.ask().std == 0.3


@pytest.mark.parametrize("clip", [3.0, None])
def test_differences_of_more_than_three_times_their_median_are_clipped_unless_clip_is_none(clip):
    differences = np.array([1.0, -2.0, 2.0, 1900.0, 0.0])  # the median of those that are not 0 is 2
    expected = differences if clip is None else np.clip(differences, -clip * 2, clip * 2)
    fitness = np.stack([differences, np.zeros(5)], axis=1).ravel()
    assert pair_weights(fitness, clip) == pytest.approx(expected / rms(expected) / 5)


def test_a_difference_within_the_noise_of_the_episodes_is_no_reason_to_go_back():
    optimizer = backtracking()
    update(optimizer, center=(10.0, 20.0))
    update(optimizer, center=(5.0, 16.0))
    assert update(optimizer, center=(4.0, 15.0)).std == 0.3
    assert not np.array_equal(optimizer.theta, np.ones(N_PARAMETERS))


def test_few_episodes_are_no_reason_to_go_back_either():
    """A search of policies that are all equally good should rarely find one clearly worse."""
    n_halved, rng = 0, np.random.default_rng(0)
    for _ in range(40):
        optimizer = BacktrackingARS(np.zeros(2), seed=0, n_updates=64, n_delta=4, n_center=2)
        for _ in range(64):
            optimizer.tell(rng.normal(size=len(optimizer.ask())))
        n_halved += optimizer.state_dict()["n_halved"]
    assert n_halved / 40 < 0.5


def test_a_clear_difference_is_that_of_welchs_test():
    first, second = np.array([1.0, 2.0, 4.0]), np.array([9.0, 13.0, 10.0, 12.0])
    clear = clear_difference(first, second, tolerance=2.5)
    shifted = second - second.mean() + first.mean() - clear
    assert stats.ttest_ind(first, shifted, equal_var=False, alternative="greater").pvalue == pytest.approx(
        stats.norm.sf(2.5)
    )
    assert clear_difference(np.ones(3), np.zeros(3), 2.5) == 0.0


@pytest.mark.parametrize("center", [(7.0, 7.0), (np.nan, np.nan), (7.0, np.nan)])
def test_an_iterate_that_cannot_be_compared_is_not_given_up(center):
    optimizer = backtracking()
    for _ in range(3):
        assert update(optimizer, center).std == 0.3
    assert np.isfinite(optimizer.theta).all()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"n_center": 4}, "n_center: expected 0 to n_delta=3, got 4"),
        ({"momentum": 1.0}, "momentum: expected a number from 0 to below 1, got 1.0"),
        ({"clip": 0.0}, "clip: expected a number above 0, got 0.0"),
        ({"tolerance": -1.0}, "tolerance: expected a number of at least 0, got -1.0"),
        ({"patience": 0}, "patience: expected"),
        ({"delta_std": (0.1, 0.2, 0.3)}, "delta_std: expected a positive number or a start and an end"),
        ({"learning_rate": 0.0}, "learning_rate: expected a positive number or a start and an end, got 0.0"),
    ],
)
def test_options_of_backtracking_ars_out_of_range_are_one_line(options, line):
    with pytest.raises(RefineError, match=line):
        backtracking(**options)


def test_centred_ranks_go_from_minus_to_plus_a_half():
    assert centred_ranks(np.array([7.0, -3.0, 100.0])).tolist() == [0.0, -0.5, 0.5]
    assert centred_ranks(np.array([1.0, 5.0, 5.0, 9.0, 9.0])).tolist() == [-0.5, -0.125, -0.125, 0.375, 0.375]


def openai_es(**kwargs):
    options = {"n_delta": 3, "learning_rate": 0.1, "delta_std": 0.3, **kwargs}
    return OpenAIES(np.ones(N_PARAMETERS), seed=5, n_updates=10, **options)


def test_openai_es_takes_the_step_of_its_equation():
    """PyTorch's Adam is given the gradient of the equation."""
    optimizer, fitness = openai_es(weight_decay=0.5), np.array([4.0, 1.0, -2.0, 5.0, 0.5, 0.0])
    theta = torch.ones(N_PARAMETERS, requires_grad=True)
    adam = torch.optim.Adam([theta], lr=0.1, maximize=True)
    for update in range(3):
        ranks = np.array([0.3, 0.1, -0.5, 0.5, -0.1, -0.3])  # 4 of 5, 3 of 5, ...
        gradient = sum((ranks[2 * i] - ranks[2 * i + 1]) * delta(5, update, i) for i in range(3)) / (2 * 3 * 0.3)
        with torch.no_grad():
            theta -= 0.5 * (theta - 1)  # decoupled, and towards the start
        theta.grad = torch.tensor(gradient, dtype=torch.float32)
        adam.step()
        optimizer.ask()
        optimizer.tell(fitness)
        assert np.allclose(optimizer.theta, theta.detach().numpy(), atol=1e-5)


def test_the_settings_of_es_transformers_are_those_of_the_paper():
    preset = PlainOpenAIES.presets["es-transformers"]
    options = {name: value for name, value in preset.items() if name in PlainOpenAIES.options()}
    optimizer = PlainOpenAIES(np.ones(N_PARAMETERS), seed=5, n_updates=10, **options)
    assert (optimizer.delta_std, optimizer.learning_rate) == (0.01, 0.01)
    assert optimizer.population_size == 4 * OpenAIES(np.ones(N_PARAMETERS), seed=5, n_updates=10).population_size
    optimizer.ask()
    optimizer.tell(np.full(optimizer.population_size, 1.0))
    assert (optimizer.theta == 1).all(), "nothing is known, so nothing changes"
    before = optimizer.theta
    optimizer.ask()
    optimizer.tell(np.arange(optimizer.population_size, dtype=float))
    steps = optimizer.theta - np.float32(0.995) * before
    assert np.allclose(np.abs(steps), 0.01, rtol=1e-3), "the first step of Adam, after the decay towards zero"


def test_openai_es_stays_where_no_direction_is_better():
    for fitness in (7.0, np.nan):
        optimizer = openai_es()
        optimizer.ask()
        optimizer.tell(np.full(6, fitness))
        assert (optimizer.theta == 1).all()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"betas": (0.9, 1.0)}, r"betas: expected two numbers from 0 to below 1, got \(0.9, 1.0\)"),
        ({"weight_decay": -1.0}, "weight_decay: expected a number from 0 to 1, got -1.0"),
        ({"delta_std": (0.0, 0.1)}, r"delta_std: expected a positive start, got \(0.0, 0.1\)"),
    ],
)
def test_options_of_openai_es_out_of_range_are_one_line(options, line):
    with pytest.raises(RefineError, match=line):
        openai_es(**options)


def pgpe(**kwargs):
    return PGPE(np.ones(N_PARAMETERS), seed=5, n_updates=10, **{"n_delta": 3, "stdev_init": 0.3, **kwargs})


RANKS = np.array([0.3, 0.1, -0.5, 0.5, -0.1, -0.3])  # of the fitness below


def update_pgpe(optimizer):
    population = optimizer.ask()
    optimizer.tell(np.array([4.0, 1.0, -2.0, 5.0, 0.5, 0.0]))
    return population


def test_pgpe_takes_the_steps_of_its_equations():
    optimizer, max_speed = pgpe(momentum=0.5), 0.3 * np.sqrt(N_PARAMETERS) / 15
    update_pgpe(optimizer)
    gradient = sum((RANKS[2 * i] - RANKS[2 * i + 1]) / 2 * 0.3 * delta(5, 0, i) for i in range(3)) / 3
    velocity = max_speed / 2 * gradient / np.linalg.norm(gradient)
    assert np.allclose(optimizer.theta, 1 + velocity, atol=1e-6)
    of_std = sum((RANKS[2 * i] + RANKS[2 * i + 1]) / 2 * (delta(5, 0, i) ** 2 - 1) for i in range(3)) / 3
    std = 0.3 * (1 + np.clip(0.1 * of_std, -0.2, 0.2))
    assert np.allclose(update_pgpe(optimizer).std, std, atol=1e-6)


def test_pgpe_keeps_to_its_maximum_speed():
    optimizer = pgpe(momentum=0.99, max_speed=0.01)
    for _ in range(9):
        before = optimizer.theta.copy()
        update_pgpe(optimizer)
        assert np.linalg.norm(optimizer.theta - before) <= 0.01 * 0.3 * np.sqrt(N_PARAMETERS) * 1.0001


def test_pgpe_explores_less_where_perturbations_do_harm():
    """All of the fitness depends on the first parameter, which is at its best."""
    optimizer = PGPE(np.zeros(N_PARAMETERS), seed=0, n_updates=200, stdev_init=0.5, max_speed=1e-6)
    for _ in range(100):
        population = optimizer.ask()
        thetas = [population.theta(i) for i in range(len(population))]
        optimizer.tell(np.array([-(theta[0] ** 2) for theta in thetas]))
    std = optimizer.ask().std
    assert std[0] < 0.6 * np.median(std)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"stdev_init": 0.0}, "stdev_init: expected a positive number"),
        ({"momentum": 1.0}, "momentum: expected a number from 0 to below 1, got 1.0"),
        ({"stdev_learning_rate": 2.0}, "stdev_learning_rate: expected a number from 0 to 1, got 2.0"),
    ],
)
def test_options_of_pgpe_out_of_range_are_one_line(options, line):
    with pytest.raises(RefineError, match=line):
        pgpe(**options)


def cem(**kwargs):
    options = {"popsize": 4, "elite_share": 0.5, "learning_rate": 0.5, "delta_std": 0.3, "extra_std": 0.1, **kwargs}
    return CEM(np.ones(N_PARAMETERS), seed=5, n_updates=10, **options)


def test_cem_takes_the_step_of_its_equations():
    optimizer = cem()
    optimizer.ask()
    optimizer.tell(np.array([1.0, 4.0, np.nan, 2.0]))
    best = np.stack([0.3 * delta(5, 0, 1), 0.3 * delta(5, 0, 3)])
    assert np.allclose(optimizer.theta, 1.0 + 0.5 * best.mean(axis=0), atol=1e-6)
    variance = 0.5 * 0.3**2 + 0.5 * (np.square(best).mean(axis=0) + 0.1**2)
    assert np.allclose(optimizer.ask().std, np.sqrt(variance), atol=1e-6)


def test_candidates_of_cem_run_on_common_seeds():
    population = cem().ask()
    assert set(population.groups) == {0}
    assert population.describe(2).endswith("times direction 2")


@pytest.mark.parametrize("extra_std", [0, (0.0, 0.0)])
def test_cem_may_do_without_extra_noise(extra_std):
    optimizer = cem(extra_std=extra_std)
    optimizer.ask()
    optimizer.tell(np.arange(4.0))
    assert np.isfinite(optimizer.theta).all()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"popsize": 1}, "popsize: expected a whole number of at least 2"),
        ({"elite_share": 0.0}, "elite_share: expected a number above 0, at most 1, got 0.0"),
        ({"learning_rate": 1.5}, "learning_rate: expected a number above 0, at most 1, got 1.5"),
        ({"delta_std": 0.0}, "delta_std: expected a positive number, got 0.0"),
    ],
)
def test_options_of_cem_out_of_range_are_one_line(options, line):
    with pytest.raises(RefineError, match=line):
        cem(**options)


def test_cma_es_learns_which_parameters_belong_together():
    """On a long diagonal valley, the separable variant is far behind."""
    top, left = 3 * np.arange(6) - 7.5, {}
    for separable in (False, True):
        optimizer = CMAES(np.ones(6), seed=0, n_updates=200, separable=separable, lr_adapt=False)
        for _ in range(200):
            population = optimizer.ask()
            thetas = np.stack([population.theta(index) for index in range(len(population))]).astype(float)
            optimizer.tell(-np.square(thetas.sum(axis=1)) * 1e4 - np.square(thetas - top).sum(axis=1))
        left[separable] = np.abs(optimizer.theta - top).max()
    assert left[False] < 0.01 < left[True]


@pytest.mark.parametrize(("n", "kind"), [(1000, "CMA"), (1001, "SepCMA")])
def test_cma_es_keeps_covariances_of_few_parameters_alone(n, kind):
    assert type(CMAES(np.zeros(n), seed=0, n_updates=1)._cma).__name__ == kind


def test_a_covariance_that_would_not_fit_into_memory_is_one_line():
    line = "the covariance of 100000 parameters takes 240 GB; leave `separable` out, or search fewer `parameters`"
    with pytest.raises(RefineError, match=line):
        CMAES(np.zeros(100_000), seed=0, n_updates=1, separable=False)


def test_cma_es_counts_a_lost_candidate_as_the_worst():
    one, twin = (CMAES(np.zeros(N_PARAMETERS), seed=0, n_updates=1) for _ in range(2))
    fitness = np.arange(float(len(one.ask())))
    twin.ask()
    one.tell(fitness)
    twin.tell(np.where(fitness == 0, np.nan, fitness))
    assert np.array_equal(one.theta, twin.theta), "the worse half has no weight in the mean"
    assert not np.array_equal(one.theta, np.zeros(N_PARAMETERS))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"popsize": 1}, "popsize: expected a whole number of at least 2"),
        ({"sigma": 0.0}, "sigma: expected a positive number, got 0.0"),
    ],
)
def test_options_of_cma_es_out_of_range_are_one_line(options, line):
    with pytest.raises(RefineError, match=line):
        CMAES(np.zeros(N_PARAMETERS), seed=0, n_updates=1, **options)


def test_cma_es_needs_two_parameters():
    with pytest.raises(RefineError, match="cma-es: needs at least 2 parameters, got 1"):
        CMAES(np.zeros(1), seed=0, n_updates=1)


def guided_es(**kwargs):
    options = {"n_delta": 3, "learning_rate": 0.5, "delta_std": 0.3, **kwargs}
    return GuidedES(np.zeros(N_PARAMETERS), seed=2, n_updates=10, **options)


def directions_of(population):
    return np.array([(population.theta(i) - population.center) / population.std for i in range(0, len(population), 2)])


def test_guided_es_has_plain_noise_while_there_is_nothing_to_be_guided_by():
    population = guided_es().ask()
    for number, found in enumerate(directions_of(population)):
        assert np.allclose(found, delta(2, 0, number), atol=1e-5)


def test_guided_es_takes_the_step_of_its_equation():
    """theta + alpha sigma / N * sum (R+ - R-) / sigma_R * epsilon, without a pair that lost a candidate."""
    optimizer = guided_es()
    directions = directions_of(optimizer.ask())
    optimizer.tell(np.array([4.0, 1.0, np.nan, 5.0, 0.0, 4.0]))
    step = 3.0 * directions[0] - 4.0 * directions[2]
    assert np.allclose(optimizer.theta, 0.5 * 0.3 / (3 * np.sqrt((9 + 16) / 2)) * step, rtol=1e-4, atol=1e-6)


def test_guided_es_puts_the_share_of_its_noise_into_the_subspace():
    """With n = 20 and a share of a quarter for plain noise: 3/4 of 20 along the gradient, and 1/4 of 1 by chance."""
    optimizer = guided_es(n_delta=4000, noise_share=0.25)
    optimizer.critic_gradient = np.eye(N_PARAMETERS, dtype=np.float32)[7]
    variances = np.square(directions_of(optimizer.ask())).mean(axis=0)
    assert variances[7] == pytest.approx(0.75 * N_PARAMETERS + 0.25, rel=0.1)
    assert np.delete(variances, 7) == pytest.approx(0.25, rel=0.1)


def test_guided_es_is_guided_by_its_last_updates():
    optimizer, thetas = guided_es(n_guides=2, noise_share=0.0), []
    for fitness in ([1, 0, 0, 0, 0, 0], [0, 0, 3, 0, 0, 2], [0, 2, 0, 1, 0, 0]):
        optimizer.ask()
        thetas.append(optimizer.theta.copy())
        optimizer.tell(np.array(fitness, dtype=float))
    thetas.append(optimizer.theta.copy())
    last_two = np.diff(thetas, axis=0)[1:].astype(np.float64)
    directions = directions_of(optimizer.ask()).astype(np.float64)
    in_subspace = directions @ np.linalg.pinv(last_two) @ last_two
    assert np.allclose(directions, in_subspace, atol=1e-3)
    assert np.linalg.matrix_rank(directions, tol=1e-2) == 2


def test_guided_es_finds_a_maximum_in_many_dimensions_sooner_along_its_gradient():
    def distance_after(gradient):
        target = np.linspace(-1, 1, 500).astype(np.float32)
        optimizer = GuidedES(np.zeros(500), seed=0, n_updates=20, n_delta=4, n_guides=0)
        optimizer.critic_gradient = gradient * target
        for _ in range(20):
            population = optimizer.ask()
            thetas = [population.theta(i) for i in range(len(population))]
            optimizer.tell(-np.square(thetas - target).sum(axis=1))
        return np.linalg.norm(optimizer.theta - target)

    assert distance_after(1) < 0.8 * distance_after(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_delta": 0}, "n_delta: expected"),
        ({"n_guides": -1}, "n_guides: expected"),
        ({"noise_share": 1.5}, "noise_share: expected a number from 0 to 1, got 1.5"),
        ({"learning_rate": 0.0}, "learning_rate: expected a positive number"),
        ({"delta_std": -0.1}, "delta_std: expected a positive number"),
    ],
)
def test_guided_es_names_a_bad_option(options, message):
    with pytest.raises(RefineError, match=message):
        guided_es(**options)
