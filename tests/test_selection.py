"""Which iterate is put to the test."""

import re
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import train

from sb3_refine import Refiner
from sb3_refine.evaluation.evaluation import Evaluation
from sb3_refine.evaluation.judge import MIN_EFFECT_EPISODES
from sb3_refine.evaluation.selection import Candidate, episodes_to_resolve, n_selection_episodes, sequential_halving
from sb3_refine.evaluation.statistics import mean_interval
from sb3_refine.evaluation.target import EvaluationTarget
from sb3_refine.evaluators import SerialEvaluator
from sb3_refine.optimizers import ARS
from sb3_refine.rollouts.episode import Episode
from sb3_refine.search.state import N_MILESTONES, SearchState
from sb3_refine.seeding import EpisodeSeeds


def vector(value):
    return np.full(1, value, dtype=np.float32)


def episode(value):
    return Episode(float(value), 1, False)


def candidates_of(values, runner):
    return [Candidate(f"iterate {i}", SimpleNamespace(run=partial(runner, value))) for i, value in enumerate(values)]


def mean_return(episodes):
    return np.mean([one.episode_return for one in episodes])


class Runner:
    """The return is the value of the candidate plus the seed's luck; remembers which candidate ran on which seed."""

    def __init__(self, luck=lambda value, seed: 0.0):
        self.luck = luck
        self.ran = {}

    def __call__(self, value, seeds, metrics):
        self.ran.setdefault(value, []).extend(seeds)
        return Evaluation(tuple(seeds), tuple(episode(value + self.luck(value, seed)) for seed in seeds))


def halve(values, n_seeds, runner=None, is_eligible=lambda episodes: True):
    """The value of the candidate that is chosen."""
    candidates = candidates_of(values, runner or Runner())
    chosen = sequential_halving(candidates, list(range(n_seeds)), (), mean_return, is_eligible)
    return values[candidates.index(chosen)]


def test_the_better_half_goes_on_to_more_seeds():
    runner = Runner()
    assert halve([3, 1, 7, 0, 5, 2, 6, 4], 40, runner) == 7
    n_seeds = {value: len(seeds) for value, seeds in runner.ran.items()}
    assert n_seeds == {0: 10, 1: 10, 2: 10, 3: 10, 4: 20, 5: 20, 6: 40, 7: 40}
    assert all(seeds == list(range(len(seeds))) for seeds in runner.ran.values())  # common seeds, none twice


@pytest.mark.parametrize("n_candidates", [1, 2, 3, 8, 13])
@pytest.mark.parametrize("n_seeds", [1, 7, 50])
def test_the_episodes_of_a_choice_are_known_before(n_candidates, n_seeds):
    runner = Runner()
    halve(list(range(n_candidates)), n_seeds, runner)
    assert n_selection_episodes(n_candidates, n_seeds) == sum(map(len, runner.ran.values()))


def test_luck_on_a_few_seeds_is_detected():
    """The worst is lucky on the first quarter of the seeds, and beaten on all of them."""
    assert halve([0, 40, 1, 2], 40, Runner(lambda value, seed: 100.0 if value == 0 and seed < 10 else 0.0)) == 40


def test_a_single_candidate_needs_no_choice():
    runner = Runner()
    assert halve([5], 40, runner) == 5
    assert runner.ran == {}


def test_fewer_seeds_than_rounds_are_enough():
    assert halve(list(range(8)), 2) == 7


def test_a_candidate_with_an_invalid_episode_is_not_chosen():
    assert halve([9, 2, 3], 8, Runner(lambda value, seed: np.nan if value == 9 else 0.0)) == 3


def test_an_ineligible_candidate_is_chosen_only_if_there_is_no_other():
    values = [5, 9, 2, 3]
    assert halve(values, 8, is_eligible=lambda found: mean_return(found) < 5) == 3
    assert halve(values, 8, is_eligible=lambda found: False) == 9
    invalid = Runner(lambda value, seed: np.nan if value == 9 else 0.0)  # comes last of all
    assert halve([9, 5, 2, 3], 8, invalid, lambda found: not mean_return(found) < 9) == 5


def test_episodes_to_resolve_an_effect():
    before, after = np.zeros(5), np.array([1, 3, 1, 3, np.nan])  # a standard deviation of 2 / sqrt(3)
    z, tail = 1.95996 + 0.84162, np.log(2 / 0.05) * 3  # had the 3 befallen the other: 2 - 3, 3 below the mean
    n = episodes_to_resolve(before, after, 0.1, alpha=0.05)
    assert z * np.sqrt(4 / 3 / n) + tail / n <= 0.1 < z * np.sqrt(4 / 3 / (n - 1)) + tail / (n - 1)
    assert episodes_to_resolve(before, before, 0.1, alpha=0.05) == 2
    assert episodes_to_resolve(before, np.full(5, np.nan), 0.1, alpha=0.05) > MIN_EFFECT_EPISODES[1]


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
    search = SearchState(ARS(vector(0), seed=0, n_updates=n_updates or len(scores)), start_theta=vector(0))
    for update, score in enumerate(scores):
        search.optimizer.theta, search.optimizer.n_updates_done = vector(update + 1), update + 1
        search.n_episodes += 2
        search.record(vector(update), [[episode(score)]] * 2, np.full(2, float(score)))
    return search


def test_each_part_of_a_search_provides_its_best_iterate():
    scores = [0, 1, 0, 2, 0, 3, 9, 4, 0, 5, 0, 6]  # of iterates 0 to 11; two make a part
    found = {iterate.name: float(iterate.theta[0]) for iterate in searched(scores).iterates}
    assert found.pop("running average") == pytest.approx(np.average(range(1, 13), weights=range(1, 13)))
    assert found == {"last iterate": 12, **{f"iterate {i}": i for i in (1, 3, 5, 6, 9, 11)}}
    assert searched(scores).best == (6, vector(6))


def test_the_original_is_not_a_candidate():
    assert [iterate.name for iterate in searched([5, 0], n_updates=6).iterates] == [
        "last iterate",
        "running average",
        "iterate 1",
    ]
    assert searched([5, 0], n_updates=6).best == (0, vector(0))


def test_the_state_of_a_search_survives():
    search = searched([0, 1, 0, 2, 0, 3])
    again = SearchState(ARS(vector(0), seed=0, n_updates=6), start_theta=vector(7))
    again.load_state_dict(search.state_dict())
    assert again.history == search.history
    assert [(i.name, i.update, i.theta) for i in again.iterates] == [
        (i.name, i.update, i.theta) for i in search.iterates
    ]
    assert len(again.milestones) == N_MILESTONES


@pytest.fixture
def model():
    return train("ppo")


SHORT = {"backend": "serial", "optimizer": "ars", "n_delta": 2}


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
    refiner.learn(3, callback=lambda local, globals_: last.append(refiner.parameters.get_theta()) or True)
    assert np.array_equal(refiner.tested[1], last[-1])
    assert refiner.result.rollouts == 3 * 4 + 5 + 2 * 10
    assert [candidate["chosen"] for candidate in refiner.result.candidates] == [False, True]


def test_the_three_streams_of_seeds_stay_apart(model, monkeypatch):
    refiner = Refiner(model, **SHORT, n_eval_episodes=10)
    by_stream = {stream: set(refiner.seeds.take(stream, 1000)) for stream in ("search", "validation", "test")}
    held_out, search, evaluate = [], [], SerialEvaluator.evaluate

    def spy(self, population, seeds, *arguments):
        (held_out if len(population) == 1 else search).append([seed for own in seeds for seed in own])
        return evaluate(self, population, seeds, *arguments)

    monkeypatch.setattr(SerialEvaluator, "evaluate", spy)
    refiner.learn(4)
    *validation, first_test, second_test, rechecked = held_out
    assert first_test == second_test
    assert set(first_test) <= by_stream["test"]
    assert {seed for seeds in (*validation, rechecked) for seed in seeds} <= by_stream["validation"]
    assert {seed for seeds in search for seed in seeds} <= by_stream["search"]


def test_no_search_seed_is_used_twice_whatever_the_sizes_of_the_populations():
    search, seeds = SearchState(ARS(vector(0), seed=0, n_updates=3), start_theta=vector(0)), EpisodeSeeds(0)
    taken = [search.take_seeds(seeds, groups, n) for groups, n in (([0, 0, 1, 1], 1), ([7], 2), ([4, 5, 4], 3))]
    stream = seeds.take("search", 10)
    assert taken[0] == [[stream[0]], [stream[0]], [stream[1]], [stream[1]]]
    assert taken[1] == [stream[2:4]]
    assert taken[2] == [stream[4:7], stream[7:10], stream[4:7]]
    assert search.state_dict()["n_search_seeds"] == 10


@pytest.mark.parametrize(("min_effect", "n_episodes"), [(1e9, MIN_EFFECT_EPISODES[0]), (150.0, None)])
def test_auto_runs_as_many_episodes_as_the_effect_takes(model, caplog, min_effect, n_episodes):
    caplog.set_level("INFO", "sb3_refine")
    result = Refiner(model, **SHORT, n_eval_episodes="auto", min_effect=min_effect, n_workers=2).learn(2).result
    n_seeds = len(result.baseline.seeds)
    wanted = int(re.search(r"to resolve a difference of \S+ takes about (\d+)", caplog.text)[1])
    assert n_seeds == (n_episodes or min(max(wanted, MIN_EFFECT_EPISODES[0]), MIN_EFFECT_EPISODES[1]))
    assert f"{n_seeds} held-out episodes: to resolve a difference of" in caplog.text
    assert len(set(result.baseline.seeds)) == n_seeds


def test_a_search_without_an_update_tests_nothing_twice(model, caplog):
    result = Refiner(model, **SHORT, n_eval_episodes=10).learn(5, time_limit=1e-9).result
    assert (result.decision, result.n_updates_done) == ("original", 0)
    assert result.reason == "nothing was searched: there is no candidate but the original"
    assert "the search ended after 0 of 5 updates" in caplog.text
    assert result.rollouts == 5 + 10


def test_auto_survives_an_invalid_episode(model, monkeypatch):
    refiner = Refiner(model, **SHORT, n_eval_episodes="auto", min_effect=1e9, selection=False)
    start, run = refiner.parameters.get_theta(), EvaluationTarget.run

    def with_nan(self, seeds, metrics=(), noise=None):
        found = run(self, seeds, metrics, noise)
        if np.array_equal(self.theta, start) or metrics:
            return found
        first, *others = found.episodes
        return Evaluation(found.seeds, (first._replace(episode_return=np.nan), *others))

    monkeypatch.setattr(EvaluationTarget, "run", with_nan)
    assert len(refiner.learn(1).result.baseline.seeds) == MIN_EFFECT_EPISODES[0]


def test_a_numpy_integer_is_a_number_of_episodes(model):
    assert len(Refiner(model, **SHORT, n_eval_episodes=np.int64(4)).learn(1).result.baseline.seeds) == 4
