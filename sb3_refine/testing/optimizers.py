"""What every optimizer must do."""

import inspect
import pickle
from typing import Any, ClassVar

import numpy as np
import pytest

from sb3_refine.optimizers import Optimizer
from sb3_refine.refiner import Refiner
from sb3_refine.search.checkpoint import Checkpoint, read_checkpoint
from sb3_refine.search.state import SearchState

N_PARAMETERS = 20
N_UPDATES = 150


class OptimizerContract:
    """
    Tests of an optimizer.

    ``optimizer`` is its class, ``options`` are arguments of its constructor. The sphere has its maximum of 0 at ones;
    after 150 updates from zeros, ``sphere_share`` of the distance in fitness may be left.
    """

    optimizer: ClassVar[type[Optimizer]]
    options: ClassVar[dict[str, Any]] = {}
    sphere_share: ClassVar[float] = 0.2

    def make(self, seed: int = 0, n_updates: int = N_UPDATES) -> Optimizer:
        """:return: the optimizer, at zeros"""
        return self.optimizer(np.zeros(N_PARAMETERS, dtype=np.float32), seed, n_updates, **self.options)

    def test_finds_the_top_of_a_sphere(self) -> None:
        optimizer = self.make()
        run(optimizer, N_UPDATES)
        assert sphere(optimizer.theta) > self.sphere_share * sphere(np.zeros(N_PARAMETERS))

    def test_candidates_are_float32_vectors_and_as_many_as_announced(self) -> None:
        optimizer = self.make()
        for _ in range(3):
            announced, population = optimizer.population_size, optimizer.ask()
            assert len(population) == len(population.groups) == announced
            for index in range(len(population)):
                theta = population.theta(index)
                assert (theta.dtype, theta.shape) == (np.float32, (N_PARAMETERS,))
                assert population.describe(index)
            optimizer.tell(np.arange(announced, dtype=float))

    def test_candidates_survive_pickling(self) -> None:
        """A worker gets a copy of the population, and computes the same bits."""
        population = self.make().ask()
        copied = pickle.loads(pickle.dumps(population))
        assert list(copied.groups) == list(population.groups)
        for index in range(len(population)):
            assert copied.theta(index).tobytes() == population.theta(index).tobytes()

    def test_the_order_in_which_candidates_are_computed_does_not_matter(self) -> None:
        population, twin = self.make().ask(), self.make().ask()
        backwards = [twin.theta(index).copy() for index in reversed(range(len(twin)))]
        for index, theta in enumerate(reversed(backwards)):
            assert theta.tobytes() == population.theta(index).tobytes()

    def test_same_seed_same_search(self) -> None:
        one, twin, other = self.make(), self.make(), self.make(seed=1)
        for each in (one, twin, other):
            run(each, 3)
        assert np.array_equal(one.theta, twin.theta)
        assert not np.array_equal(one.theta, other.theta)

    def test_state_goes_through_a_checkpoint_to_the_same_bits(self, tmp_path: Any) -> None:
        one, twin = self.make(), self.make()
        run(one, 5)
        twin.load_state_dict(stored(one, tmp_path))
        for each in (one, twin):
            run(each, 3)
        assert np.array_equal(one.theta, twin.theta)
        assert one.n_updates_done == twin.n_updates_done == 8

    def test_state_is_a_copy(self) -> None:
        """Neither the search that gave the state nor the one that loads it changes the state."""
        one, twin = self.make(), self.make()
        run(one, 2)
        state = one.state_dict()
        before = pickle.dumps(state)
        run(one, 3)
        assert pickle.dumps(state) == before, "state_dict() must copy"
        twin.load_state_dict(state)
        run(twin, 3)
        assert pickle.dumps(state) == before, "load_state_dict() must copy"

    def test_candidates_without_fitness_are_dropped(self) -> None:
        """The search still climbs where the worst quarter of each population has no fitness."""
        optimizer = self.make()
        for _ in range(N_UPDATES):
            fitness = fitness_of(optimizer.ask())
            fitness[np.argsort(fitness)[: max(1, len(fitness) // 4)]] = np.nan
            optimizer.tell(fitness)
            assert np.isfinite(optimizer.theta).all()
        assert sphere(optimizer.theta) > 0.9 * sphere(np.zeros(N_PARAMETERS))

    def test_without_any_fitness_the_search_goes_on(self) -> None:
        optimizer = self.make()
        optimizer.ask()
        optimizer.tell(np.full(optimizer.population_size, np.nan))
        assert np.isfinite(optimizer.theta).all()
        assert optimizer.n_updates_done == 1
        run(optimizer, 2)

    def test_equal_fitness_leaves_finite_parameters(self) -> None:
        optimizer = self.make()
        optimizer.tell(np.full(len(optimizer.ask()), 7.0))
        assert np.isfinite(optimizer.theta).all()
        run(optimizer, 2)

    def test_the_callers_vector_is_not_written_to(self) -> None:
        start = np.zeros(N_PARAMETERS, dtype=np.float32)
        run(self.optimizer(start, 0, N_UPDATES, **self.options), 2)
        assert not start.any()

    def test_ask_and_tell_take_turns(self) -> None:
        optimizer = self.make()
        with pytest.raises(RuntimeError, match="ask for candidates first"):
            optimizer.tell(np.zeros(optimizer.population_size))
        n = len(optimizer.ask())
        with pytest.raises(RuntimeError, match=r"ask\(\) was called twice"):
            optimizer.ask()
        with pytest.raises(ValueError, match=rf"expected shape \({n},\), got \({n + 1},\)"):
            optimizer.tell(np.zeros(n + 1))
        with pytest.raises(ValueError, match="NaN to drop a candidate, got inf"):
            optimizer.tell(np.full(n, np.inf))

    def test_options_can_be_read_back_and_have_names_of_their_own(self) -> None:
        """A checkpoint and ``refinement.json`` keep every option, beside the settings of the refiner."""
        optimizer, options = self.make(), self.optimizer.options()
        assert not set(options) & (set(inspect.signature(Refiner).parameters) | {"algo", "env_kwargs", "n_parameters"})
        for option in options:
            assert hasattr(optimizer, option), f"store the option as self.{option}"
        for option, value in self.options.items():
            assert np.array_equal(getattr(optimizer, option), value)

    def test_options_stay_as_they_are(self) -> None:
        """A resumed search compares them; what changes during the search has a name of its own."""
        optimizer, options = self.make(), self.optimizer.options()
        before = [getattr(optimizer, option) for option in options]
        run(optimizer, 5)
        for option, value in zip(options, before, strict=True):
            assert np.array_equal(getattr(optimizer, option), value), f"{option} has changed"

    def test_every_preset_is_valid(self) -> None:
        assert "default" in self.optimizer.presets
        for preset in self.optimizer.presets.values():
            options = {name: value for name, value in preset.items() if name in self.optimizer.options()}
            others = set(preset) - set(options) - {"n_updates"}
            assert others <= {"selection"}
            self.optimizer(np.zeros(N_PARAMETERS), 0, 1, **{**options, **self.options})


def sphere(theta: np.ndarray) -> float:
    """:return: a fitness that is 0 at ones and falls with the squared distance"""
    return -float(np.sum((theta - 1.0) ** 2))


def fitness_of(population: Any) -> np.ndarray:
    """:return: of each candidate of a population, the fitness on the sphere"""
    return np.array([sphere(population.theta(index)) for index in range(len(population))])


def run(optimizer: Optimizer, n_updates: int) -> None:
    """
    :param optimizer: any
    :param n_updates: to do on the sphere
    """
    for _ in range(n_updates):
        optimizer.tell(fitness_of(optimizer.ask()))


def stored(optimizer: Optimizer, folder: Any) -> dict[str, Any]:
    """:return: the state of an optimizer, written to a checkpoint and read again"""
    search = SearchState(optimizer, start_theta=np.zeros(N_PARAMETERS, dtype=np.float32))
    settings: dict[str, Any] = {
        **dict.fromkeys(("algo", "env", "optimizer", "objective", "parameters"), "toy"),
        **dict.fromkeys(("end_at_success", "acceptance", "selection"), True),
        "env_kwargs": {}, "seed": 0, "n_updates": N_UPDATES, "n_parameters": N_PARAMETERS, "n_eval_episodes": 2,
        "alpha": 0.05, "min_effect": None, "max_return_loss": 0.05,
    }  # fmt: skip
    search.history = [(0,) * 9] * optimizer.n_updates_done  # type: ignore[list-item]
    Checkpoint(folder, settings, interval=1).take(search)
    return dict(read_checkpoint(folder)[1]["optimizer"])
