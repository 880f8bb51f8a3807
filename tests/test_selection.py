"""Which iterate is put to the test."""

import re

import numpy as np
import pytest
from conftest import train

from sb3_refine import Refiner
from sb3_refine.evaluation.judge import AUTO_EPISODES
from sb3_refine.evaluation.selection import Iterate, distinct, episodes_to_resolve, sequential_halving
from sb3_refine.evaluation.statistics import mean_interval
from sb3_refine.optimizers import ARS
from sb3_refine.rollouts.episode import Episode
from sb3_refine.search.state import N_MILESTONES, SearchState


def vector(value):
    return np.full(1, value, dtype=np.float32)


def episode(value):
    return Episode(float(value), 1, False)


def iterates_of(values):
    return [Iterate(f"iterate {i}", i, vector(value)) for i, value in enumerate(values)]


def mean_return(episodes):
    return np.mean([one.episode_return for one in episodes])


class Runner:
    """The return is the parameter plus the seed's luck; remembers who ran where."""

    def __init__(self, luck=lambda theta, seed: 0.0):
        self.luck = luck
        self.ran = {}

    def __call__(self, theta, seeds):
        self.ran.setdefault(float(theta[0]), []).extend(seeds)
        return [episode(theta[0] + self.luck(theta[0], seed)) for seed in seeds]


def test_the_better_half_goes_on_to_more_seeds():
    runner = Runner()
    chosen = sequential_halving(iterates_of([3, 1, 7, 0, 5, 2, 6, 4]), list(range(40)), runner, mean_return)
    assert chosen.vector == 7
    n_seeds = {value: len(seeds) for value, seeds in runner.ran.items()}
    assert n_seeds == {0: 10, 1: 10, 2: 10, 3: 10, 4: 20, 5: 20, 6: 40, 7: 40}
    assert all(seeds == list(range(len(seeds))) for seeds in runner.ran.values())  # common seeds, none twice


def test_luck_on_a_few_seeds_is_found_out():
    """The worst is lucky on the first quarter of the seeds, and beaten on all of them."""
    lucky = Runner(lambda theta, seed: 100.0 if theta == 0 and seed < 10 else 0.0)
    assert sequential_halving(iterates_of([0, 40, 1, 2]), list(range(40)), lucky, mean_return).vector == 40


def test_a_single_iterate_needs_no_choice():
    runner = Runner()
    assert sequential_halving(iterates_of([5]), list(range(40)), runner, mean_return).vector == 5
    assert runner.ran == {}


def test_fewer_seeds_than_rounds_are_enough():
    assert sequential_halving(iterates_of(range(8)), [1, 2], Runner(), mean_return).vector == 7


def test_an_iterate_with_an_invalid_episode_is_not_chosen():
    ill = Runner(lambda theta, seed: np.nan if theta == 9 else 0.0)
    assert sequential_halving(iterates_of([9, 2, 3]), list(range(8)), ill, mean_return).vector == 3


def test_what_is_not_eligible_is_chosen_only_where_nothing_else_is():
    iterates, seeds = iterates_of([5, 9, 2, 3]), list(range(8))
    assert sequential_halving(iterates, seeds, Runner(), mean_return, lambda found: mean_return(found) < 5).vector == 3
    iterates = iterates_of([5, 9, 2, 3])
    assert sequential_halving(iterates, seeds, Runner(), mean_return, lambda found: False).vector == 9
    ill = Runner(lambda theta, seed: np.nan if theta == 9 else 0.0)  # what is invalid comes last of all
    iterates = iterates_of([9, 5, 2, 3])
    assert sequential_halving(iterates, seeds, ill, mean_return, lambda found: not mean_return(found) < 9).vector == 5


def test_the_same_parameters_are_run_once():
    assert [iterate.name for iterate in distinct(iterates_of([1, 2, 1, 3, 2]))] == [
        "iterate 0",
        "iterate 1",
        "iterate 3",
    ]


def test_episodes_to_resolve_an_effect():
    before, after = np.zeros(5), np.array([1, 3, 1, 3, np.nan])  # a standard deviation of 2 / sqrt(3)
    z, tail = 1.95996 + 0.84162, np.log(2 / 0.05) * 3  # had the 3 befallen the other: 2 - 3, 3 below the mean
    n = episodes_to_resolve(before, after, 0.1, alpha=0.05)
    assert z * np.sqrt(4 / 3 / n) + tail / n <= 0.1 < z * np.sqrt(4 / 3 / (n - 1)) + tail / (n - 1)
    assert episodes_to_resolve(before, before, 0.1, alpha=0.05) == 2
    assert episodes_to_resolve(before, np.full(5, np.nan), 0.1, alpha=0.05) > AUTO_EPISODES[1]


def test_that_many_episodes_do_resolve_it():
    """Returns that vary much more than their differences, as when nearly the same policy runs on the same seeds."""
    rng = np.random.default_rng(0)
    before = rng.normal(-150, 100, 50)
    n = episodes_to_resolve(before, before + rng.normal(0, 1, 50), 5.0, alpha=0.05)
    before = rng.normal(-150, 100, n)
    low, high = mean_interval(before, before + 5 + rng.normal(0, 1, n), 0.05)
    assert (high - low) / 2 < 1.25 * 5  # the lowest of n returns is lower than that of 50


def searched(scores, n_updates=None):
    """The state of a search whose iterates are 1, 2, 3, ... and whose populations did as well as the scores say."""
    search = SearchState(ARS(vector(0), seed=0, n_updates=n_updates or len(scores)), start=vector(0))
    for update, score in enumerate(scores):
        search.optimizer.mean, search.optimizer.n_updates_done = vector(update + 1), update + 1
        search.n_episodes += 2
        search.record(vector(update), [episode(score)] * 2, np.full(2, float(score)))
    return search


def test_each_part_of_a_search_offers_its_best_iterate():
    scores = [0, 1, 0, 2, 0, 3, 9, 4, 0, 5, 0, 6]  # of iterates 0 to 11; two make a part
    found = {iterate.name: float(iterate.vector[0]) for iterate in searched(scores).iterates}
    assert found.pop("running average") == pytest.approx(np.average(range(1, 13), weights=range(1, 13)))
    assert found == {"last iterate": 12, **{f"iterate {i}": i for i in (1, 3, 5, 6, 9, 11)}}
    assert searched(scores).best == (6, vector(6))


def test_the_original_is_no_find():
    assert [iterate.name for iterate in searched([5, 0], n_updates=6).iterates] == [
        "last iterate",
        "running average",
        "iterate 1",
    ]
    assert searched([5, 0], n_updates=6).best == (0, vector(0))


def test_the_state_of_a_search_survives():
    search = searched([0, 1, 0, 2, 0, 3])
    again = SearchState(ARS(vector(0), seed=0, n_updates=6), start=vector(7))
    again.load_state_dict(search.state_dict())
    assert again.history == search.history
    assert [(i.name, i.update, i.vector) for i in again.iterates] == [
        (i.name, i.update, i.vector) for i in search.iterates
    ]
    assert len(again.milestones) == N_MILESTONES


@pytest.fixture
def model():
    return train("ppo")


SHORT = {"backend": "serial", "n_delta": 2}


def test_every_held_out_episode_is_counted(model):
    """Of 4 updates: last iterate, average, iterates 1 to 3; rounds on 5, 10 and 20 of 20 validation seeds."""
    result = Refiner(model, **SHORT, n_eval_episodes=40).learn(4).result
    names = [candidate["name"] for candidate in result.candidates]
    assert names == ["original", "last iterate", "running average", "iterate 1", "iterate 2", "iterate 3"]
    assert sorted(candidate["n_episodes"] for candidate in result.candidates) == [5, 5, 10, 20, 20, 20]
    assert result.rollouts == 4 * 4 + (20 + 5 + 5 + 10 + 20 + 20) + 2 * 40
    assert sum(candidate["chosen"] for candidate in result.candidates) == 1


def test_without_selection_the_last_iterate_is_judged(model):
    refiner = Refiner(model, **SHORT, n_eval_episodes=10, selection=False, alpha=0.9)
    last = []
    refiner.learn(3, callback=lambda local, globals_: last.append(refiner.parameters.get_vector()) or True)
    assert np.array_equal(refiner.tested[1], last[-1])
    assert refiner.result.rollouts == 3 * 4 + 5 + 2 * 10
    assert [candidate["chosen"] for candidate in refiner.result.candidates] == [False, True]


def test_the_three_streams_of_seeds_stay_apart(model):
    refiner = Refiner(model, **SHORT, n_eval_episodes=10)
    by_stream = {stream: set(refiner.seeds.take(stream, 1000)) for stream in ("search", "validation", "test")}
    seen = {"held out": [], "search": []}
    run, search_seeds = refiner._run, refiner._search_seeds

    def spy(search, evaluator, progress, theta, seeds, measures=()):
        seen["held out"].append(seeds)
        return run(search, evaluator, progress, theta, seeds, measures)

    refiner._run = spy
    refiner._search_seeds = lambda candidates: seen["search"].append(search_seeds(candidates)) or seen["search"][-1]
    refiner.learn(4)
    *validation, first_test, second_test = seen["held out"]
    assert first_test == second_test
    assert set(first_test) <= by_stream["test"]
    assert {seed for seeds in validation for seed in seeds} <= by_stream["validation"]
    assert {seed for seeds in seen["search"] for seed in seeds} <= by_stream["search"]


@pytest.mark.parametrize(("min_effect", "n_episodes"), [(1e9, AUTO_EPISODES[0]), (150.0, None)])
def test_auto_runs_as_many_episodes_as_the_effect_takes(model, caplog, min_effect, n_episodes):
    caplog.set_level("INFO", "sb3_refine")
    result = Refiner(model, **SHORT, n_eval_episodes="auto", min_effect=min_effect, n_workers=2).learn(2).result
    n_seeds = len(result.baseline.seeds)
    wanted = int(re.search(r"to resolve a difference of \S+ takes (\d+)", caplog.text)[1])
    assert n_seeds == (n_episodes or min(max(wanted, AUTO_EPISODES[0]), AUTO_EPISODES[1]))
    assert f"{n_seeds} held-out episodes: to resolve a difference of" in caplog.text
    assert len(set(result.baseline.seeds)) == n_seeds


def test_a_search_without_an_update_tests_nothing_twice(model, caplog):
    result = Refiner(model, **SHORT, n_eval_episodes=10).learn(5, time_limit=1e-9).result
    assert (result.decision, result.n_updates_done) == ("original", 0)
    assert result.reason == "nothing was searched: no update was done"
    assert "the search ended after 0 of 5 updates" in caplog.text
    assert result.rollouts == 5 + 10


def test_auto_survives_an_invalid_episode(model):
    refiner = Refiner(model, **SHORT, n_eval_episodes="auto", min_effect=1e9, selection=False)
    run = refiner._run

    def ill(search, evaluator, progress, theta, seeds, measures=()):
        episodes = run(search, evaluator, progress, theta, seeds, measures)
        if not np.array_equal(theta, search.start) and not measures:
            episodes[0] = episodes[0]._replace(episode_return=np.nan)
        return episodes

    refiner._run = ill
    assert len(refiner.learn(1).result.baseline.seeds) == AUTO_EPISODES[0]


def test_a_numpy_integer_is_a_number_of_episodes(model):
    assert len(Refiner(model, **SHORT, n_eval_episodes=np.int64(4)).learn(1).result.baseline.seeds) == 4
