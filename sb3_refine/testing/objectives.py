"""What every objective must do."""

import copy
import math
from typing import ClassVar

import cloudpickle
import numpy as np

from sb3_refine.objectives import OBJECTIVE_METRIC, Objective, make_objective
from sb3_refine.rollouts.episode import Episode, Trajectory


class ObjectiveContract:
    """
    Tests of an objective.

    ``objective`` is its name with options, as on the command line, or an instance; ``metric`` is a value that its
    :meth:`~sb3_refine.objectives.Objective.measure` may give for an episode.
    """

    objective: ClassVar[str | Objective]
    metric: ClassVar[float] = 1.5

    def make(self) -> Objective:
        """:return: the objective, calibrated on :meth:`baseline`"""
        objective = copy.deepcopy(make_objective(self.objective))  # an instance is not shared by the tests
        objective.calibrate(self.baseline())
        return objective

    def episode(self, value: float, failed: bool = False, success: bool = False) -> Episode:
        """:return: an episode with a return"""
        return Episode(float(value), 10, failed, success, {OBJECTIVE_METRIC: self.metric})

    def baseline(self) -> list[Episode]:
        """:return: episodes of the original"""
        return [self.episode(value, failed=value < 20, success=value > 50) for value in range(1, 100, 10)]

    def test_fitness_is_a_finite_number(self) -> None:
        objective = self.make()
        for episode in self.baseline():
            assert math.isfinite(objective.fitness(episode))
        assert math.isfinite(objective.of_episodes(self.baseline()))

    def test_an_invalid_episode_has_no_fitness(self) -> None:
        objective, invalid = self.make(), Episode(math.nan, 3, False)
        assert math.isnan(objective.fitness(invalid))
        assert math.isnan(objective.of_episodes([*self.baseline(), invalid]))

    def test_a_population_has_one_fitness_a_candidate(self) -> None:
        objective, baseline = self.make(), self.baseline()
        assert np.isfinite(objective.of_population([[episode] for episode in baseline])).all()
        several = objective.of_population([baseline[:3], baseline[3:6], [baseline[6], Episode(math.nan, 3, False)]])
        assert several.shape == (3,)
        assert np.isfinite(several).tolist() == [True, True, False]  # an invalid episode drops its candidate

    def test_the_fitness_of_updates_can_be_compared(self) -> None:
        """The fitness of a candidate does not depend on the other candidates of its update."""
        objective, (first, *others) = self.make(), self.baseline()
        (alone,) = objective.of_population([[first]])
        assert objective.of_population([[first], *([other] for other in others)])[0] == alone

    def test_a_better_population_has_more_fitness(self) -> None:
        """Of two candidates, the one with the better episodes comes first."""
        worse, better = (self.episode(value, success=value > 50) for value in (1, 99))
        low, high = self.make().of_population([[worse, worse], [better, better]])
        assert low < high

    def test_calibrating_again_changes_nothing(self) -> None:
        objective = self.make()
        before = [objective.fitness(episode) for episode in self.baseline()]
        objective.calibrate(self.baseline())
        assert [objective.fitness(episode) for episode in self.baseline()] == before

    def test_workers_can_measure(self) -> None:
        """Where an objective needs the trajectory, a worker gets a copy of ``measure`` before the calibration."""
        objective = make_objective(self.objective)
        if not objective.needs_trajectory:
            assert objective.metrics == ()
            return
        measure = cloudpickle.loads(cloudpickle.dumps(objective.checked_measure))
        value = measure(trajectory())
        assert isinstance(value, float)
        assert objective.metrics == (OBJECTIVE_METRIC,)

    def test_the_name_is_stable(self) -> None:
        """A checkpoint knows its objective by the name, which a calibration or a copy does not change."""
        before = make_objective(self.objective).name
        assert before == self.make().name == cloudpickle.loads(cloudpickle.dumps(self.make())).name


def trajectory(n_steps: int = 100) -> Trajectory:
    """:return: the steps of an episode in which two observations go round in a circle"""
    angle = np.linspace(0, 20, n_steps + 1)
    observations = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    actions = np.sin(3 * angle[:-1, None])
    return Trajectory(observations, observations, actions, np.ones(n_steps), np.full(1, 2.0))
