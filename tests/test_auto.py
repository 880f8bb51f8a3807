"""``AutoRefiner`` and ``--method auto``: search and training share one budget."""

import json
import re
import time

import numpy as np
import pytest
import torch
from conftest import ENV_ID
from stable_baselines3.common.callbacks import BaseCallback

from sb3_refine import AutoRefiner, RefineError, load_agent, with_tasks
from sb3_refine.auto.schedule import STEPS, Budget, Schedule
from sb3_refine.cli.main import main
from sb3_refine.judging import Judge
from sb3_refine.training.continuation import Continuation

FAST = {"n_eval_episodes": 4, "backend": "serial", "seed": 3, "search": {"n_delta": 2}}


class ToyArm:
    """Counts steps; finds a fitness that depends on the steps."""

    def __init__(self, name, fitness):
        self.name, self.n_env_steps, self.is_done, self._fitness = name, 0, False, fitness
        self._noise = np.random.default_rng(len(name)).normal(size=8)
        self._noise -= self._noise.mean()

    def advance(self, is_over):
        while not is_over():
            self.n_env_steps += 10

    def candidates(self):
        return [self]

    def fitness(self):
        return self._fitness(self.n_env_steps) + self._noise


def run_of(tmp_path, training, search=lambda n: 0.0, is_stopped=lambda: False, time_left=None):
    """
    A run of toy arms: the steps and the planned share of each, the number of the best of the training, and what was
    kept. The original's fitness is 1.
    """
    arm, shares, kept = ToyArm("training", training), {}, {None: ToyArm("", lambda n: 1.0).fitness()}

    def start_search(share, number):
        name = "search" if number is None else "search from training"
        shares[name] = share
        return ToyArm(name, search)

    def compare(number):
        return kept.get(number, kept[None] + 9), arm.fitness()  # of an earlier run: 10

    schedule = Schedule(
        arm, Budget(800, STEPS), compare, lambda number: kept.update({number: arm.fitness()}), start_search, tmp_path
    )
    schedule.run(is_stopped, time_left)
    return {each.name: each.n_env_steps for each in schedule.arms}, shares, schedule.best


def test_a_training_that_is_not_clearly_better_than_the_original_ends_at_once(tmp_path):
    for number, training in enumerate((lambda n: -5.0, lambda n: 1.0, lambda n: 1.1)):
        used, shares, best = run_of(tmp_path / str(number), training)
        assert used == {"training": 100, "search": 700}
        assert shares == {"search": 7 / 8}, "the search is planned for all that is left"
        assert best is None


def test_the_training_goes_on_as_long_as_it_gets_better(tmp_path):
    used, shares, best = run_of(tmp_path, training=lambda n: min(n, 200) / 10)
    assert used == {"training": 300, "search from training": 500}
    assert shares == {"search from training": 5 / 8}
    assert best == 2


def test_half_of_the_budget_is_for_the_search_at_least(tmp_path):
    used, _, best = run_of(tmp_path, training=lambda n: n / 10)
    assert used == {"training": 400, "search from training": 400}
    assert best == 4


def test_a_training_that_gets_worse_again_does_not_count(tmp_path):
    used, _, best = run_of(tmp_path, training=lambda n: 5.0 if n < 150 else -5.0)
    assert used == {"training": 200, "search from training": 600}
    assert best == 1


def test_the_search_goes_on_as_long_as_there_is_time(tmp_path):
    seconds = iter(range(1000, -1, -1))
    used, *_ = run_of(tmp_path, lambda n: -5.0, time_left=lambda: next(seconds))
    assert used == {"training": 100, "search": 10 * 999}
    used, *_ = run_of(tmp_path / "other", lambda n: -5.0, time_left=lambda: 0.0)
    assert used == {"training": 100, "search": 0}


def test_a_run_that_is_stopped_at_once_still_has_the_search_that_it_had(tmp_path):
    """What an interrupted run has found is judged, that of the search too."""
    run_of(tmp_path, training=lambda n: n / 10)
    used, _, best = run_of(tmp_path, lambda n: n / 10, is_stopped=lambda: True)
    assert used == {"training": 0, "search from training": 0}
    assert best == 4


def test_where_there_is_nothing_to_search_the_training_gets_the_rest(tmp_path, monkeypatch):
    def advance(arm, is_over, advance=ToyArm.advance):
        arm.is_done = arm.name == "search"
        if not arm.is_done:
            advance(arm, is_over)

    monkeypatch.setattr(ToyArm, "advance", advance)
    monkeypatch.setattr(ToyArm, "candidates", lambda arm: [] if arm.is_done else [arm])
    used, *_ = run_of(tmp_path, training=lambda n: 1.0)
    assert used == {"training": 800, "search": 0}


def test_a_run_that_goes_on_compares_with_the_best_of_before(tmp_path):
    (tmp_path / "auto.json").write_text(json.dumps([{"is_better": True, "left": 7 / 8, "text": "the first eighth"}]))
    used, _, best = run_of(tmp_path, training=lambda n: 5.0)  # better than the original, worse than the best so far
    assert (used["training"], best) == (200, 1)


def test_decisions_are_kept_and_not_made_again(tmp_path):
    run_of(tmp_path, training=lambda n: -5.0)
    used, _, best = run_of(tmp_path, training=lambda n: n / 10)
    assert (used, best) == ({"training": 100, "search": 700}, None)
    (tmp_path / "auto.json").write_text("[1]")
    with pytest.raises(RefineError, match=r"resume: .*auto.json cannot be read"):
        run_of(tmp_path, training=lambda n: 5.0)


def test_search_and_training_are_judged_together(made_agents, tmp_path, caplog):
    caplog.set_level("INFO", "sb3_refine.auto.schedule")
    agent = load_agent("ppo", ENV_ID, made_agents)
    judgement = AutoRefiner(agent, **FAST).learn(budget=40, checkpoint_folder=tmp_path)
    names = [one["name"] for one in judgement.result.candidates]
    assert any(name.startswith("search") for name in names)
    assert any(name.startswith("training: ") for name in names)
    assert judgement.method == "auto"
    arms, rounds = judgement.settings["arms"], judgement.settings["rounds"]
    (of_search,) = [arm for name, arm in arms.items() if name.startswith("search")]
    assert of_search[1] == 200 * of_search[0]
    update = 5  # rollouts: what is left may be too little for another one
    assert judgement.result.env_steps > sum(n_steps for _, n_steps, _ in arms.values()) > (40 - update) * 200
    assert re.match(r"after 1\d% of the budget: original -\d+(\.\d+)?, training -\d", rounds[0])
    assert [line for line in caplog.messages if line.startswith("after ")] == rounds
    assert caplog.messages[0] == "training:"
    assert sum(name.startswith("training: ") for name in names) <= 3, "its last candidates, and the best before"


@pytest.mark.slow
def test_an_interrupted_race_goes_on_to_the_same_verdict(made_agents, tmp_path):
    agent = load_agent("a2c", ENV_ID, made_agents)
    calls, last_call = [], None

    def stop(*_):
        calls.append(1)
        if len(calls) == last_call:
            raise KeyboardInterrupt
        return True

    whole = AutoRefiner(agent, **FAST).learn(budget=60, callback=stop)
    n_of_trial = 60 * 200 // 8 // agent.model.n_envs
    for last_call in (n_of_trial + 3, len(calls) - 2):  # in the first search, and near the end
        calls.clear()
        folder = tmp_path / str(last_call)
        interrupted = AutoRefiner(agent, **FAST)
        with pytest.raises(KeyboardInterrupt):
            interrupted.learn(budget=60, callback=stop, checkpoint_folder=folder)
        judged = AutoRefiner(agent, **FAST).learn(60, time_limit=0, checkpoint_folder=folder, resume=True)
        assert judged.result.env_steps < whole.result.env_steps
        resumed = AutoRefiner(agent, **FAST).learn(budget=60, checkpoint_folder=folder, resume=True)
        assert resumed.settings["rounds"] == whole.settings["rounds"]
        assert resumed.result.candidates == whole.result.candidates
        assert resumed.result.reason == whole.result.reason
    assert interrupted.judgement.result.decision == "unchecked"
    with pytest.raises(RefineError, match="resume: other settings than those of the interrupted run: alpha was 0.05"):
        AutoRefiner(agent, alpha=0.1, **FAST).learn(budget=60, checkpoint_folder=folder, resume=True)


@pytest.mark.slow
def test_the_time_limit_is_kept(made_agents):
    agent = load_agent("ppo", ENV_ID, made_agents)
    judgement = AutoRefiner(agent, **FAST).learn(time_limit=10.0)
    assert judgement.result.wall_time_s < 30
    assert judgement.settings["arms"]["training"][1] > 0
    with pytest.raises(RefineError, match="budget: there is a time_limit, too"):
        AutoRefiner(agent, **FAST).learn(budget=10, time_limit=10.0)


@pytest.mark.slow
def test_a_resumed_race_ends_in_time_for_the_verdict(made_agents, tmp_path):
    agent = load_agent("ppo", ENV_ID, made_agents)

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        AutoRefiner(agent, **FAST).learn(budget=5000, callback=stop, checkpoint_folder=tmp_path)
    started = time.perf_counter()
    judgement = AutoRefiner(agent, **FAST).learn(5000, time_limit=6.0, checkpoint_folder=tmp_path, resume=True)
    assert 1 < time.perf_counter() - started < 12
    used = sum(n_steps for _, n_steps, _ in judgement.settings["arms"].values())
    assert 0 < used < 5000 * 200 / 2, "the time ended the race, not the budget"
    assert judgement.result.decision in ("refined", "original")


def test_without_a_folder_for_checkpoints_no_replay_buffer_is_written(made_agents, monkeypatch):
    def save_buffer(*_):
        raise AssertionError("a replay buffer was saved")

    monkeypatch.setattr(Continuation, "save_buffer", save_buffer)
    judgement = AutoRefiner(load_agent("sac", ENV_ID, made_agents), **FAST).learn(budget=8)
    assert judgement.settings["arms"]["training"][1] > 0


@pytest.mark.slow
def test_the_command_line_says_where_the_budget_went(tmp_path):
    arguments = ["--demo", "--method", "auto", "--budget", 120, "--n-delta", 2, "-o", tmp_path, "--n-eval-episodes", 6]
    assert main([str(argument) for argument in [*arguments, "--backend", "serial", "--verbose", 0]]) == 0
    run_folder = tmp_path / "ppo" / f"{ENV_ID}_1"
    record = json.loads((run_folder / "refinement.json").read_text())
    assert record["method"] == "auto"
    report = (run_folder / "report.md").read_text()
    assert "## Training and search" in report
    assert "Where the budget went:" in report
    assert "% of the budget: original" in report.replace("\n  ", " ")
    resumed = ["--resume", run_folder, "--no-report", "--backend", "serial", "--verbose", 0, "--time-limit", 0]
    assert main([str(argument) for argument in resumed]) == 0


def test_training_goes_on_where_no_noise_changes_what_the_agent_does(made_agents, caplog):
    agent = load_agent("td3", ENV_ID, made_agents)
    with torch.no_grad():
        agent.model.policy.actor.mu[-2].bias.fill_(1e6)  # the action is always the largest one
    judgement = AutoRefiner(agent, **FAST).learn(budget=8)
    assert "search: ends at once: optimizer: no noise on the parameters changes the actions" in caplog.text
    names = [one["name"] for one in judgement.result.candidates]
    assert any(name.startswith("training: ") for name in names)
    assert not any(name.startswith("search: ") for name in names)


@pytest.mark.slow
def test_the_users_callback_sees_one_training(made_agents):
    class Course(BaseCallback):
        seen = ()

        def _on_training_start(self):
            self.seen += ("start",)

        def _on_step(self):
            return True

        def _on_training_end(self):
            self.seen += ("end",)

    course = Course()
    judgement = AutoRefiner(load_agent("ppo", ENV_ID, made_agents), **FAST).learn(budget=16, callback=course)
    assert course.seen == ("start", "end")
    _, n_steps, _ = judgement.settings["arms"]["training"]
    assert course.n_calls == pytest.approx(n_steps, rel=0.1)


def test_a_function_is_an_objective_too(made_agents):
    def objective(trajectory):
        return -float(np.abs(trajectory.actions).mean())

    agent = load_agent("ppo", ENV_ID, made_agents)
    judgement = AutoRefiner(agent, objective=objective, **FAST).learn(budget=16)
    assert judgement.objective.of_episodes(judgement.result.baseline.episodes) < 0


def test_the_pace_of_the_original_is_measured_once(made_agents):
    judge = Judge(load_agent("ppo", ENV_ID, made_agents), n_eval_episodes=4, backend="serial")
    assert judge.evaluate_original() == judge.evaluate_original()
    assert judge.seconds_per_episode > 1e-4


def test_ctrl_c_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    def interrupted(schedule, *_):
        (schedule._path.parent / "search").mkdir()
        (schedule._path.parent / "search" / "checkpoint.pt").touch()  # without any, the folder is removed
        raise KeyboardInterrupt

    monkeypatch.setattr(Schedule, "run", interrupted)
    arguments = ["--demo", "--method", "auto", "--budget", 40, "-o", tmp_path, "--n-eval-episodes", 4]
    assert main([str(argument) for argument in [*arguments, "--backend", "serial", "--verbose", 0]]) == 130
    said = capsys.readouterr().err
    assert f"to go on from here: sb3-refine --resume {tmp_path / 'ppo' / f'{ENV_ID}_1'}" in said


@pytest.mark.slow
def test_both_are_in_the_tasks_of_the_agent(made_agents, tmp_path):
    agent = with_tasks(load_agent("ppo", ENV_ID, made_agents), {"env_kwargs": {"g": {"uniform": [5.0, 15.0]}}})
    judgement = AutoRefiner(agent, **FAST).learn(budget=40, checkpoint_folder=tmp_path / "auto")
    record = json.loads((judgement.save(tmp_path / "out") / "refinement.json").read_text())
    assert record["tasks"] == [agent.recipe.tasks.task(seed).parameters for seed in record["seeds"]["test"]]
    assert any(name.startswith("search") for name in record["settings"]["arms"])
