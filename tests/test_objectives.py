"""What is maximised."""

import json
import math
import os
import re
import threading
from dataclasses import replace
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from conftest import BACKENDS, ENV_ID, target_of, train
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from sb3_refine import RefineError, Refiner, load_agent
from sb3_refine.envs.observations import Normalisation
from sb3_refine.envs.spec import EnvRecipe
from sb3_refine.envs.wrappers import IgnoreSuccessTermination, TrueReturn
from sb3_refine.errors import EpisodeError
from sb3_refine.objectives import OBJECTIVE_METRIC, OBJECTIVES, Objective, make_objective
from sb3_refine.objectives.mesh_dimension import MeshDimensionShaped, parse_entries
from sb3_refine.objectives.smooth import Smooth
from sb3_refine.rollouts.episode import Episode, Trajectory
from sb3_refine.rollouts.mesh_dimension import mesh_dimension, stands_still
from sb3_refine.rollouts.metrics import action_change, action_jerk, high_frequency_share, mean_mesh_dimension
from sb3_refine.testing import ObjectiveContract


def episode(value, failed=False, success=None, measure=None):
    return Episode(float(value), 10, failed, success, {} if measure is None else {OBJECTIVE_METRIC: measure})


def trajectory(observations=None, actions=None, failed=False, normalisation=None):
    observations = np.zeros((11, 2)) if observations is None else np.asarray(observations)
    actions = np.zeros((10, 1)) if actions is None else np.asarray(actions, dtype=float)
    seen = observations if normalisation is None else normalisation(observations)
    return Trajectory(observations, seen, actions, np.ones(len(actions)), np.full(actions.shape[1], 2.0), failed)


def calibrated(spec, baseline):
    objective = make_objective(spec)
    objective.calibrate(baseline)
    return objective


BASELINE = [episode(value, failed=value < 20, success=value > 50, measure=0.2) for value in range(0, 100, 10)]


class TestReturn(ObjectiveContract):
    objective = "return"


class TestSurvival(ObjectiveContract):
    objective = "survival:weight=2"


class TestSuccess(ObjectiveContract):
    objective = "success"


class TestCVaR(ObjectiveContract):
    objective = "cvar:share=0.2"


class TestWorst(ObjectiveContract):
    objective = "worst:k=3"


class TestSmooth(ObjectiveContract):
    objective = "smooth:weight=0.5"


class TestMeshDimension(ObjectiveContract):
    objective = "mesh-dimension"


def test_every_objective_has_a_contract_test():
    tested = {
        cls.objective.partition(":")[0] for cls in ObjectiveContract.__subclasses__() if cls.__module__ == __name__
    }
    assert tested == set(OBJECTIVES)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_more_return_is_never_worse(name):
    objective = calibrated(name, [e._replace(episode_return=e.episode_return + 1) for e in BASELINE])
    values = [objective.fitness(episode(value, success=True, measure=1.5)) for value in (-5, 1, 10, 50, 200)]
    assert values == sorted(values)


def test_survival_without_failures_is_said_to_be_the_return(caplog):
    calibrated("survival", [episode._replace(failed=False) for episode in BASELINE])
    assert "failed in none of 10 validation episodes; where nothing fails, this is the return" in caplog.text


def test_an_objective_that_fails_is_named_first():
    def broken(steps):
        return steps.rewards[10**6]

    with pytest.raises(EpisodeError, match=r"^objective: test_objectives:.*broken failed: IndexError: "):
        Refiner(train("ppo"), objective=broken, backend="serial", **SHORT).learn(1)


def test_survival_penalises_failures_in_units_of_the_return():
    objective = calibrated("survival:weight=2", BASELINE)  # their mean is 45
    assert objective.fitness(episode(30)) == 30
    assert objective.fitness(episode(30, failed=True)) == 30 - 2 * 45


def test_smooth_penalises_jitter_relative_to_the_original():
    objective = calibrated("smooth:weight=0.5", BASELINE)
    assert objective.fitness(episode(45, measure=0.2)) == pytest.approx(45 - 0.5 * 45)
    assert objective.fitness(episode(45, measure=0.1)) == pytest.approx(45 - 0.25 * 45)
    assert objective.measure(trajectory(actions=[[0], [1], [0], [1]])) == 1.0
    with pytest.raises(RefineError, match="actions never change"):
        calibrated("smooth", [e._replace(metrics={OBJECTIVE_METRIC: 0.0}) for e in BASELINE])


@pytest.mark.parametrize("name", ["survival", "smooth"])
def test_a_weight_needs_returns_other_than_zero(name):
    with pytest.raises(RefineError, match="return is 0 in every validation episode"):
        calibrated(name, [episode(0, measure=0.2)] * 5)


@pytest.mark.parametrize("what", [None, 3, Smooth])
def test_an_invalid_objective_is_refused(what):
    with pytest.raises(RefineError, match="expected a name, a function or an instance of Objective"):
        make_objective(what)


def test_success_is_read_from_the_environments_info():
    objective = calibrated("success", BASELINE)
    assert [objective.fitness(e) for e in BASELINE] == [0.0] * 6 + [1.0] * 4
    with pytest.raises(RefineError, match="reports no is_success"):
        calibrated("success", [episode(1)])


def test_cvar_is_that_of_the_original_and_no_more_than_that_of_another():
    baseline = [episode(value) for value in np.random.default_rng(0).normal(size=1000)]
    objective = calibrated("cvar:share=0.2", baseline)
    worst = np.sort([e.episode_return for e in baseline])[:200].mean()
    assert np.mean([objective.fitness(e) for e in baseline]) == pytest.approx(worst, abs=2e-3)
    assert objective.of_episodes(baseline) == pytest.approx(worst)
    better = [episode(0.5 * e.episode_return + 0.1) for e in baseline]
    gain = np.mean([objective.fitness(e) for e in better]) - worst
    assert 0 < gain <= objective.of_episodes(better) - worst


def test_the_search_for_a_better_tail_goes_by_the_lower_half():
    objective = calibrated("cvar", [episode(v) for v in (0, 4, 5, 6, 10)])
    values = objective.of_population([[episode(v)] for v in (9, 1, 5, 3, 7)])
    assert values == pytest.approx([5.4, 1, 5, 3, 5.2])
    assert objective.of_population([[episode(9)]]) == values[0], "updates can be compared"


def circle(n=500, turns=7.3):
    angle = np.linspace(0, 2 * np.pi * turns, n)
    return np.column_stack([np.cos(angle), np.sin(angle), np.cos(2 * angle), np.sin(2 * angle)])


def test_mesh_dimension_divides_positive_returns_and_multiplies_negative_ones():
    assert calibrated("mesh-dimension", [episode(10), episode(20)]).fitness(episode(30, measure=1.5)) == 20
    assert calibrated("mesh-dimension", [episode(-10), episode(-20)]).fitness(episode(-30, measure=1.5)) == -45
    with pytest.raises(RefineError, match=r"mixed signs \(-10 to 20\).*use `objective='smooth'`"):
        calibrated("mesh-dimension", [episode(-10), episode(20)])


def test_the_dimension_is_that_of_the_normalised_observations_clipped():
    rows, stretched = circle(), Normalisation(np.ones(4), np.array([1, 2, 3, 4.0]), np.full(4, 10.0))
    found = mesh_dimension(stretched(rows)[1:])
    expected = np.clip([found.lower, found.upper], 1, 2)
    steps = trajectory(rows, np.zeros((499, 1)), normalisation=stretched)
    assert make_objective("mesh-dimension").measure(steps) == expected.mean()
    assert make_objective("mesh-dimension:bound=lower").measure(steps) == expected[0]
    assert make_objective("mesh-dimension:bound=upper").measure(steps) == expected[1]


def test_a_dimension_at_its_limits_is_a_warning(caplog):
    """Three observations have at most 1.5 dimensions, and a motion at least 1."""
    calibrated("mesh-dimension", [episode(value, measure=1.25) for value in (5, 6, 7)])
    assert "the clipped dimension is 1.25 in all of the original's episodes" in caplog.text
    caplog.clear()
    calibrated("mesh-dimension", [episode(value, measure=value / 2) for value in (5, 6, 7)])
    calibrated("mesh-dimension", [episode(5, measure=1.7)] * 3)  # one and the same episode, however it is clipped
    assert caplog.text == ""
    calibrated("mesh-dimension", [episode(value, failed=True, measure=4.0) for value in (5, 6, 7)])
    assert "all of the original's episodes terminate" in caplog.text
    with pytest.raises(RefineError, match="the original's return is 0 in every validation episode"):
        calibrated("mesh-dimension", [episode(0.0, measure=2), episode(0.0, measure=2)])
    with pytest.raises(RefineError, match="skip=5 leaves fewer than 6 steps of the original's episodes, of which the"):
        calibrated("mesh-dimension:skip=5", [episode(5, measure=2)])


def test_the_transient_and_some_observations_can_be_left_out():
    rows = np.vstack([np.random.default_rng(0).normal(size=(100, 4)), circle()])
    short = make_objective("mesh-dimension:skip=100,entries=0-1").measure(trajectory(rows, np.zeros((599, 1))))
    assert short == make_objective("mesh-dimension:entries=0+1").measure(trajectory(rows[100:], np.zeros((499, 1))))
    assert parse_entries("0-2+5") == [0, 1, 2, 5]
    with pytest.raises(RefineError, match="expected different indices such as 0-3"):
        parse_entries("0-2+1")
    with pytest.raises(RefineError, match="there are 4 observations, numbered from 0; got 7"):
        make_objective("mesh-dimension:entries=7").measure(trajectory(rows))


def test_neither_failing_nor_standing_still_is_rewarded():
    objective = make_objective("mesh-dimension")
    moving = objective.measure(trajectory(circle(), np.zeros((499, 1))))
    assert objective.measure(trajectory(circle(), np.zeros((499, 1)), failed=True)) == 2.0  # half of 4
    assert objective.measure(trajectory(np.ones((500, 4)), np.zeros((499, 1)))) == 2.0 > moving


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_clock_is_not_motion(dtype):
    """A body at rest is none that moves along a line because TimeFeatureWrapper says how late it is."""
    objective, clock = make_objective("mesh-dimension"), 1 - np.arange(1000) / 1000
    still, moving = np.ones((1000, 15)), np.column_stack([circle(1000), circle(1000, 3.1)])
    normalised = Normalisation(np.full(16, 0.5), np.full(16, 0.29), np.full(16, 10.0))
    rows = np.column_stack([still, clock]).astype(dtype)
    assert objective.measure(trajectory(rows, np.zeros((999, 1)), normalisation=normalised)) == 8.0
    rows = np.column_stack([moving, clock]).astype(dtype)
    found = mesh_dimension(rows[1:])
    expected = np.clip([found.lower, found.upper], 1, 4.5).mean()
    assert objective.measure(trajectory(rows, np.zeros((999, 1)))) == expected < 4.5


def test_a_straight_line_is_motion():
    t = np.linspace(0, 1, 500)
    rows = np.column_stack([t, 2 * t, np.full((500, 2), 0.5), np.ones((500, 2))])  # a point mass, and its goal
    assert make_objective("mesh-dimension").measure(trajectory(rows, np.zeros((499, 1)))) < 2.9  # of 3
    assert stands_still(np.column_stack([np.ones((500, 5)), t]))
    assert not stands_still(np.column_stack([t, np.ones((500, 5))]))  # not where a wrapper puts its clock


def test_a_success_within_a_few_steps_is_no_failure():
    quick, failing = (trajectory(circle(4), np.zeros((3, 1)), failed=failed) for failed in (False, True))
    objective = calibrated("mesh-dimension", [episode(-10), episode(-20)])
    assert (objective.measure(quick), objective.measure(failing)) == (1.0, 2.0)
    late = trajectory(circle(100), np.zeros((99, 1)))
    assert make_objective("mesh-dimension:skip=95").measure(late) == 1.0
    assert make_objective("mesh-dimension:skip=20").measure(late) > 1.0


def test_falling_at_once_is_not_smooth():
    objective = calibrated("smooth:weight=2", [episode(1000.0, measure=0.5), episode(1000.0, measure=0.3)])
    fell = episode(1.0, measure=0.0, failed=True)
    assert objective.fitness(fell._replace(length=0)) == pytest.approx(1.0 - 2000)
    assert objective.fitness(fell._replace(length=5)) == pytest.approx(1.0 - 1000)
    assert objective.fitness(fell._replace(length=10)) == 1.0
    assert objective.fitness(episode(1000.0, measure=0.2)._replace(length=5)) == 0.0  # which did not fail
    assert objective.fitness(episode(1.0, measure=0.8, failed=True)._replace(length=5)) == pytest.approx(1.0 - 4000)


def test_constant_actions_are_smooth():
    steps = replace(trajectory(np.zeros((11, 1)), np.ones((10, 2))), action_range=np.array([0.0, 2.0]))
    assert action_change(steps) == action_jerk(steps) == 0.0


def test_images_have_no_mesh_dimension():
    images = trajectory(observations=np.zeros((11, 0)))
    for measure in (mean_mesh_dimension, make_objective("mesh-dimension").measure):
        with pytest.raises(RefineError, match="images .observations of three axes. have no mesh dimension"):
            measure(images)


def test_smoothness_of_known_actions():
    steady, jitter = trajectory(actions=np.full((64, 1), 0.7)), trajectory(actions=np.tile([[1.0], [-1.0]], (32, 1)))
    assert [f(steady) for f in (action_change, action_jerk, high_frequency_share)] == [0, 0, 0]
    assert (action_change(jitter), action_jerk(jitter), high_frequency_share(jitter)) == (2.0, 8.0, 1.0)
    wave = trajectory(actions=np.sin(2 * np.pi * np.arange(64) / 16)[:, None])
    assert high_frequency_share(wave) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("n", [49, 50, 999, 1000])
def test_the_high_frequency_share_does_not_depend_on_the_length(n):
    steps = np.arange(n)
    slow, fast = np.sin(2 * np.pi * steps * 5 / n), 0.5 * (-1.0) ** steps
    expected = fast.var() / (slow + fast).var()  # a third
    assert high_frequency_share(trajectory(actions=(slow + fast)[:, None])) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ("mesh-dimension:entries=5-3", "entries: expected different indices such as 0-3"),
        ("smoth", r"unknown 'smoth' \(did you mean smooth\?\); choose from return, .*or name a module:function"),
        ("smooth:wieght=1", r"smooth has no option 'wieght' \(did you mean weight\?\); smooth takes weight"),
        ("return:x=1", "return has no option 'x'; return takes no options"),
        ("smooth:weight=-1", "weight: expected a number of at least 0, got -1"),
        ("cvar:share=2", "share: expected a number from 0.01 to 1, got 2"),
        ("mesh-dimension:bound=middle", "bound: expected one of mean, lower, upper, got 'middle'"),
        ("mesh-dimension:skip=-1", "skip: expected a whole number of at least 0"),
        ("mesh-dimension:entries=a", "entries: expected different indices such as 0-3"),
        ("no_such_module:f", "cannot be imported"),
        ("math:no_such_function", r"there is no 'no_such_function' in math \(.*\)$"),
        ("math:cosin", r"there is no 'cosin' in math \(.*\) \(did you mean copysign or sin or cos\?\)"),
        ("mesh-dimension:entries=1.5", "entries: expected different indices such as 0-3"),
        ("mesh-dimension:skip=1,skip=2", "skip=1,skip=2: skip is given twice"),
        ("math:pi", "math:pi is no function"),
        ("sb3_refine.objectives.smooth:Smooth", "smooth:Smooth is no function"),
    ],
)
def test_wrong_objectives_are_an_error(spec, line):
    with pytest.raises(RefineError, match=line):
        make_objective(spec)


def test_a_module_that_exits_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "exiting_module.py").write_text("raise SystemExit(4)")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RefineError, match=r"cannot be imported \(SystemExit: 4\)"):
        make_objective("exiting_module:f")


@pytest.mark.parametrize(
    ("given", "entries"),
    [([0, 2], [0, 2]), ((0, 2), [0, 2]), (np.array([0, 2]), [0, 2]), ("0+2", [0, 2]), (3, [3]), (np.int64(3), [3])],
)
def test_entries_may_be_numbers_from_python(given, entries):
    assert MeshDimensionShaped(entries=given).entries == entries


def test_episodes_that_are_too_short_for_a_dimension_are_a_warning():
    with pytest.raises(RefineError, match="the longest has 3 of at least 6 steps.*`end_at_success=False`"):
        calibrated("mesh-dimension", [episode(5, measure=1.0)._replace(length=3)])


def bold(steps):
    """Much torque."""
    return float(np.abs(steps.actions).sum())


def perverse(steps):
    """As little return as possible."""
    return -float(steps.rewards.sum())


SHORT = {"optimizer": "ars", "n_delta": 4, "n_eval_episodes": 20, "learning_rate": 0.05, "delta_std": 0.05}


def test_a_users_function_is_maximised_in_the_workers():
    refiner = Refiner(train("ppo"), objective=bold, n_workers=2, max_return_loss=math.inf, **SHORT).learn(10)
    result = refiner.result
    assert result.decision == "refined"
    assert result.objective_difference.ci_low > 0
    assert "paired difference in test_objectives:bold" in result.reason
    assert result.learning_curve[-1].mean_fitness > result.learning_curve[0].mean_fitness
    assert set(result.baseline.summary()) >= {"mean_return", "failure_rate", "action_change", "high_frequency_share"}


@pytest.mark.parametrize("spec", ["cvar:share=0.25", "mesh-dimension:skip=20"])
def test_the_metrics_of_an_objective_are_shown_before_and_after(spec, tmp_path):
    refiner = Refiner(train("ppo"), objective=spec, backend="serial", **SHORT).learn(2)
    written = json.loads((refiner.save(tmp_path) / "refinement.json").read_text())
    for name, tested in (("baseline", refiner.result.baseline), ("refined", refiner.result.candidate)):
        [(label, value)] = written[name]["objective"].items()
        episodes = tested.episodes
        if spec.startswith("cvar"):
            assert label == "worst 25% (CVaR)"
            assert value == pytest.approx(np.sort([e.episode_return for e in episodes])[:5].mean())
        else:
            assert label == "D of the objective"
            assert value == pytest.approx(np.mean([e.metrics[OBJECTIVE_METRIC] for e in episodes]))
    note = " (a lower bound; the table has the tail itself)" if spec.startswith("cvar") else ""
    assert written["objective_note"] == note
    assert "mean_fitness" in written["learning_curve"][0]
    assert f"paired difference in {spec}{note} " in refiner.result.reason


def rewards(steps):
    return steps.rewards.sum()


def test_a_trajectory_has_the_rewards_of_the_environment_itself():
    def clipped():
        return gym.wrappers.ClipReward(TrueReturn(gym.make(ENV_ID)), -0.001, 0.001)

    refiner = Refiner(train("ppo"), clipped, objective=rewards, backend="serial", **SHORT).learn(1)
    for found in refiner.result.baseline.episodes:
        assert found.episode_return < -1
        assert found.metrics[OBJECTIVE_METRIC] == pytest.approx(found.episode_return)


class Odd(Objective):
    """Its measure, or its fitness, is no number."""

    needs_trajectory = True

    def __init__(self, measure=1.0, fitness=1.0):
        self._measure, self._fitness = measure, fitness

    def measure(self, trajectory):
        return self._measure

    def fitness(self, episode):
        return self._fitness


@pytest.mark.parametrize("value", [None, {"a": 1}, "12", np.arange(3)])
def test_a_metric_returns_a_number(value):
    with pytest.raises(RefineError, match=r"objective: Odd returned .*; it must return a number"):
        Refiner(train("ppo"), objective=Odd(measure=value), backend="serial", **SHORT).learn(1)


@pytest.mark.parametrize("value", [None, "12", np.ones(1), True, np.bool_(True)])
def test_a_fitness_function_returns_a_number(value):
    with pytest.raises(RefineError, match=r"objective: the fitness of Odd is .*; it must be a number"):
        Refiner(train("ppo"), objective=Odd(fitness=value), backend="serial", **SHORT).learn(1)


def test_every_fitness_is_a_number():
    class Forgetful(Objective):
        def fitness(self, episode):
            return episode.episode_return if episode.episode_return > -1000 else None

    with pytest.raises(RefineError, match="objective: the fitness of Forgetful is None; it must be a number"):
        Refiner(train("ppo"), objective=Forgetful(), backend="serial", **SHORT).learn(1)


def test_objects_that_cannot_be_sent_to_workers_are_an_error():
    lock = threading.Lock()
    with pytest.raises(RefineError, match="cannot be sent to worker processes .*lock.*backend='serial'"):
        Refiner(train("ppo"), objective=lambda steps: float(lock.locked()), backend="process", **SHORT).learn(1)


def where_it_runs(trajectory):
    return float(os.getpid())


def test_only_numbers_are_sent_between_processes():
    refiner = Refiner(train("ppo"), objective=where_it_runs, n_workers=2, **SHORT).learn(1)
    for found in refiner.result.baseline.episodes:
        assert found.metrics[OBJECTIVE_METRIC] != os.getpid()
        assert all(isinstance(value, float) for value in found.metrics.values())


def tidy(trajectory):
    trajectory.actions.sort(axis=0)
    return 0.0


def test_a_function_cannot_change_the_trajectory_of_other_metrics():
    with pytest.raises(EpisodeError, match="read-only"):
        Refiner(train("ppo"), objective=tidy, backend="serial", **SHORT).learn(1)


def test_a_loss_of_return_is_vetoed():
    refiner = Refiner(train("ppo"), objective=perverse, backend="serial", **SHORT)
    before = refiner.parameters.get_theta()
    refiner.learn(10)
    assert refiner.result.objective_difference.ci_low > 0
    assert refiner.result.decision == "original"
    assert "more than 5% (max_return_loss)" in refiner.result.reason
    assert np.array_equal(refiner.parameters.get_theta(), before)


def test_a_candidate_that_would_be_vetoed_is_tested_only_if_there_is_no_other():
    settings = {**SHORT, "learning_rate": 0.004, "backend": "serial"}
    original, *iterates = Refiner(train("ppo"), objective=perverse, **settings).learn(10).result.candidates
    limit = 1.05 * original["mean_return"]  # which is negative
    [chosen] = [iterate for iterate in iterates if iterate["chosen"]]
    assert chosen["n_episodes"] == original["n_episodes"]
    assert chosen["mean_return"] >= limit
    best = max(iterates, key=lambda iterate: iterate["mean_fitness"])
    assert best["mean_return"] < limit


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_on_every_backend(backend):
    refiner = Refiner(train("ppo"), objective="smooth", backend=backend, n_workers=2, **SHORT).learn(2)
    reference = Refiner(train("ppo"), objective="smooth", backend="serial", **SHORT).learn(2)
    assert refiner.result.learning_curve == reference.result.learning_curve


def test_without_a_need_no_trajectory_is_kept(monkeypatch):
    monkeypatch.setattr("sb3_refine.rollouts.rollout.Recording", None)
    Refiner(train("ppo"), backend="serial", acceptance=False, **SHORT).learn(1)


class Reach(gym.Env):
    """Ends at success, which lasts."""

    observation_space, action_space = spaces.Box(-1, 1, (1,)), spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action):
        self.t += 1
        success = self.t >= 3
        return np.zeros(1, dtype=np.float32), -1.0, success, self.t >= 6, {"is_success": success}


def test_episodes_can_go_on_at_success():
    def n_steps(**kwargs):
        env = EnvRecipe(None, make=Reach, **kwargs).build()
        env.reset(seed=0)
        for step in range(1, 100):
            if any(env.step(env.action_space.sample())[2:4]):
                return step

    assert (n_steps(), n_steps(end_at_success=False)) == (3, 6)


class Limit(gym.Wrapper):
    """As rl_zoo3 has it: a termination leaves it silent."""

    def reset(self, **kwargs):
        self.n_steps = 0
        return self.env.reset(**kwargs)

    def step(self, action):
        observation, reward, terminated, _, info = self.env.step(action)
        self.n_steps += 1
        return observation, reward, terminated, self.n_steps >= 5 and not terminated, info


def test_the_zoos_own_time_limit_ends_them_too():
    reach = Reach()
    reach.spec = EnvSpec("Reach-v0", max_episode_steps=5)
    held = IgnoreSuccessTermination(Limit(reach))
    held.reset(seed=0)
    ends = [held.step(np.zeros(1))[2:4] for _ in range(5)]
    assert ends == [(False, False)] * 4 + [(False, True)]


@pytest.mark.slow
def test_panda_holds_its_pose_on_request(zoo_agents):
    pytest.importorskip("panda_gym")
    agent = load_agent("tqc", "PandaReach-v1", zoo_agents, end_at_success=False)
    held = target_of(agent).run([1, 2])
    assert held.lengths.tolist() == [50, 50]
    assert held.success_rate == 1.0


def test_an_objective_survives_a_resume(tmp_path, caplog):
    def refiner():
        return Refiner(train("ppo"), ENV_ID, objective="smooth", backend="serial", **SHORT)

    whole = refiner().learn(4)
    with pytest.raises(KeyboardInterrupt):
        refiner().learn(4, callback=Interrupt(2), checkpoint_folder=tmp_path, checkpoint_interval=1)
    resumed = refiner().learn(4, checkpoint_folder=tmp_path, resume=True)
    assert resumed.result.learning_curve == whole.result.learning_curve
    assert resumed.result.candidates == whole.result.candidates
    assert "told from other objectives" not in caplog.text


class Powered(Objective):
    def __init__(self, function):
        self.function = function

    def fitness(self, episode):
        return self.function(episode.episode_return)


def test_a_resumed_function_is_matched_by_its_name_with_a_warning(tmp_path, caplog):
    def refiner():
        return Refiner(train("ppo"), ENV_ID, objective=Powered(lambda value: value), backend="serial", **SHORT)

    with pytest.raises(KeyboardInterrupt):
        refiner().learn(4, callback=Interrupt(2), checkpoint_folder=tmp_path, checkpoint_interval=1)
    assert not caplog.text
    refiner().learn(4, checkpoint_folder=tmp_path, resume=True)
    assert "Powered:function=<function test_a_resumed_function_is" in caplog.text
    assert "other objectives may have the name" in caplog.text
    assert " at 0x" not in caplog.text


class Interrupt:
    def __init__(self, after):
        self.after, self.n_calls = after, 0

    def __call__(self, local, globals_):
        self.n_calls += 1
        if self.n_calls > self.after:
            raise KeyboardInterrupt
        return True


def test_objectives_are_known_by_name():
    assert make_objective("smooth:weight=1").name == Smooth(1).name == Smooth(np.int64(1)).name == "Smooth:weight=1.0"
    assert make_objective(bold).name == make_objective(partial(bold)).name == "test_objectives:bold"
    assert make_objective("return").name == "return"  # no objective beside the return, however it was named
    assert Refiner(train("ppo"), objective="smooth").settings["objective"] == "smooth"


def nan_on_some(trajectory):
    return math.nan if trajectory.rewards[0] > -0.3 else 1.0


def as_text(trajectory):
    return "good"


def test_a_function_that_returns_no_number_is_an_error():
    with pytest.raises(RefineError, match="test_objectives:as_text returned 'good'; it must return a number"):
        make_objective(as_text).checked_measure(trajectory())
    with pytest.raises(RefineError, match="it must return a number"):
        make_objective(lambda steps: 10**400).checked_measure(trajectory())


def test_episodes_that_the_objective_cannot_score_are_reported():
    """Not as if more episodes would help."""
    settings = {"n_delta": 2, "n_eval_episodes": 40, "selection": False, "backend": "serial"}
    refiner = Refiner(train("ppo"), objective=nan_on_some, **settings)
    with pytest.raises(RefineError, match=r"nan_on_some gave NaN or infinity for the original; fix it"):
        refiner.learn(1)
    refiner.objective.of_episodes = lambda episodes: 1.0
    result = refiner.learn(1).result
    assert re.search(r"gave NaN or inf for \d+ of the original's 40 held-out episodes", result.reason)
    assert (result.decision, result.paired_difference) == ("original", None)


def test_a_dry_run_tries_the_objective_too():
    with pytest.raises(RefineError, match="there are 3 observations"):
        Refiner(train("ppo"), objective="mesh-dimension:entries=7").try_episodes()


def test_an_objective_that_gives_infinity_is_an_error():
    with pytest.raises(RefineError, match=r"test_objectives:endless gave NaN or infinity for the original"):
        Refiner(train("ppo"), objective=endless, backend="serial", **SHORT).learn(1)


def endless(steps):
    return np.inf


def test_worst_is_the_expected_least_return_of_several_episodes_of_the_original():
    worst = calibrated("worst:k=3", BASELINE)
    drawn = np.random.default_rng(0).choice([one.episode_return for one in BASELINE], (200_000, 3)).min(axis=1)
    assert worst.of_episodes(BASELINE) == pytest.approx(drawn.mean(), rel=0.01)
    assert np.mean([worst.fitness(one) for one in BASELINE]) == pytest.approx(worst.of_episodes(BASELINE))


def test_the_mean_fitness_of_worst_never_overstates_another_agent():
    worst, rng = calibrated("worst:k=5", BASELINE), np.random.default_rng(0)
    for _ in range(200):
        others = [episode(value) for value in rng.normal(rng.uniform(0, 100), rng.uniform(1, 60), 10)]
        assert np.mean([worst.fitness(one) for one in others]) <= worst.of_episodes(others) + 1e-9


def test_worst_of_one_is_refused():
    with pytest.raises(RefineError, match="k: expected a whole number of at least 2, got 1"):
        make_objective("worst:k=1")
