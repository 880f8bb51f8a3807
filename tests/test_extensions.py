"""Parts that others add: each registered in one line, and used from the command line, Python, a resume and a report."""

import json

import numpy as np
import pytest
from conftest import ENV_ID
from fresh import run_command
from toy_parts import ReturnPerStep, ThreadEvaluator, ToyCEM, ToyPGPE

from sb3_refine import RefineError, Refiner, load_agent
from sb3_refine.cli.main import main
from sb3_refine.evaluators import EVALUATORS
from sb3_refine.objectives import OBJECTIVES
from sb3_refine.optimizers import OPTIMIZERS
from sb3_refine.testing import EvaluatorContract, ObjectiveContract, OptimizerContract


class TestToyCEM(OptimizerContract):
    optimizer = ToyCEM
    options = {"n_candidates": 40, "std": 0.5}  # noqa: RUF012


class TestToyPGPE(OptimizerContract):
    optimizer = ToyPGPE


class ForgetsToCopy(ToyCEM):
    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.best = state["best"]


class ChangesAnOption(ToyCEM):
    def _tell(self, population, fitness):
        super()._tell(population, fitness)
        self.std *= 0.9


class IgnoresNaN(ToyCEM):
    def _tell(self, population, fitness):
        self.theta = population.theta(int(np.argmax(fitness)))


class KeepsNoState(ToyCEM):
    def state_dict(self):
        return {**super().state_dict(), "best": {"history": [0.0], "thetas": []}}


@pytest.mark.parametrize(
    ("broken", "test"),
    [
        (ForgetsToCopy, "test_state_is_a_copy"),
        (ChangesAnOption, "test_options_stay_as_they_are"),
        (IgnoresNaN, "test_candidates_without_fitness_are_dropped"),
        (KeepsNoState, "test_state_goes_through_a_checkpoint_to_the_same_bits"),
    ],
)
def test_the_contract_finds_mistakes(broken, test, tmp_path):
    contract = type("Contract", (OptimizerContract,), {"optimizer": broken})()
    check = getattr(contract, test)
    with pytest.raises(AssertionError):
        check(tmp_path) if test.endswith("bits") else check()


class TestThreadEvaluator(EvaluatorContract):
    evaluator = ThreadEvaluator
    options = {"name": "other"}  # noqa: RUF012


class TestReturnPerStep(ObjectiveContract):
    objective = ReturnPerStep(bonus=2.0)


@pytest.fixture
def parts(monkeypatch):
    """Each part is registered in one line."""
    monkeypatch.setitem(OPTIMIZERS, "toy-cem", ToyCEM)
    monkeypatch.setitem(OPTIMIZERS, "toy-pgpe", ToyPGPE)
    monkeypatch.setitem(EVALUATORS, "threads", ThreadEvaluator)
    monkeypatch.setitem(OBJECTIVES, "per-step", ReturnPerStep)


OPTIMIZER = {"toy-cem": "toy-cem:n_candidates=4,std=0.1", "toy-pgpe": "toy-pgpe:n_pairs=2,step=(0.1)"}
EPISODES_PER_UPDATE = {"toy-cem": 4, "toy-pgpe": 4 * 3}


@pytest.mark.parametrize("name", OPTIMIZER)
def test_an_optimizer_from_python_a_checkpoint_and_a_resume(parts, made_agents, tmp_path, name):
    """Whole, and interrupted and resumed on another backend: the same bits."""

    def refiner(**kwargs):
        agent = load_agent("ppo", ENV_ID, made_agents)
        return Refiner(agent, optimizer=OPTIMIZER[name], objective="per-step:bonus=1", n_eval_episodes=4, **kwargs)

    def interrupt(local, globals_):
        if local["search"].n_updates_done == 2:
            raise KeyboardInterrupt
        return True

    whole = refiner(backend="threads", n_workers=2).learn(3)
    assert whole.settings["optimizer"] == name
    with pytest.raises(KeyboardInterrupt):
        refiner(backend="serial").learn(3, callback=interrupt, checkpoint_folder=tmp_path, checkpoint_interval=1)
    resumed = refiner(backend="threads:name=x").learn(3, checkpoint_folder=tmp_path, resume=True)
    assert np.array_equal(whole.tested[1], resumed.tested[1])
    assert whole.result.reason == resumed.result.reason
    assert "in per-step:bonus=1" in whole.result.reason
    held_out = sum(one["n_episodes"] for one in whole.result.candidates) + 2 * 4
    assert whole.result.rollouts == 3 * EPISODES_PER_UPDATE[name] + held_out
    with pytest.raises(RefineError, match="other settings than those of the interrupted run: episodes_per_candidate"):
        refiner(episodes_per_candidate=2).learn(3, checkpoint_folder=tmp_path, resume=True)


@pytest.mark.parametrize("name", OPTIMIZER)
def test_parts_from_the_command_line_to_the_report(parts, made_agents, tmp_path, capsys, name):
    agent = ["--algo", "ppo", "--env", ENV_ID, "-f", made_agents, "-o", tmp_path, "--n-eval-episodes", 4]
    parts = ["--optimizer", OPTIMIZER[name], "--objective", "per-step:bonus=1", "--backend", "threads:name=x"]
    budget = ["--budget", 2 * EPISODES_PER_UPDATE[name] + 1]
    assert main([*map(str, agent), *parts, *map(str, budget)]) == 0
    run_folder = tmp_path / "ppo" / f"{ENV_ID}_1"
    refinement = json.loads((run_folder / "refinement.json").read_text())
    settings = refinement["settings"]
    assert (settings["optimizer"], settings["n_updates"], settings["backend"]) == (name, 2, "threads")
    assert settings["objective"] == "per-step:bonus=1"
    assert f"search takes {EPISODES_PER_UPDATE[name]} rollouts" in failure_of(capsys, agent, parts, "--budget", "1")
    report = (run_folder / "report.md").read_text()
    assert "per-step:bonus=1" in report
    assert name in report
    resumed = ["--resume", str(run_folder), "--backend", "threads", "--no-report"]
    assert main(resumed) == 0
    again = json.loads((run_folder / "refinement.json").read_text())
    assert again["refined"]["returns"] == refinement["refined"]["returns"]


def failure_of(capsys, agent, parts, *more):
    capsys.readouterr()
    assert main([*map(str, agent), *parts, *more]) == 1
    return capsys.readouterr().err


def test_presets_are_those_of_the_optimizer(parts, made_agents, capsys):
    common = ["--algo", "ppo", "--env", ENV_ID, "-f", str(made_agents), "--backend", "serial", "--dry-run"]
    assert main([*common, "--optimizer", "toy-cem"]) == 0
    assert "2 updates of 8 rollouts" in capsys.readouterr().out
    assert main([*common, "--optimizer", "toy-cem", "--preset", "large", "--episodes-per-candidate", "2"]) == 0
    assert "2 updates of 32 rollouts" in capsys.readouterr().out
    assert main([*common, "--optimizer", "toy-pgpe", "--preset", "paper"]) == 1
    assert "--preset: toy-pgpe: unknown 'paper'; choose from default" in capsys.readouterr().err
    assert main([*common, "--optimizer", "toy-pgpe", "--n-delta", "4"]) == 1
    assert "toy-pgpe has no option 'n_delta'; toy-pgpe takes n_pairs, step" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"optimizer": "toy-cem:n=3"}, "optimizer: toy-cem has no option 'n'.*takes n_candidates, std"),
        ({"optimizer": "toy-cem:std"}, "optimizer: toy-cem:std: expected toy-cem:option=value,option=value"),
        ({"optimizer": "toy-cem:std=1,std=2"}, "optimizer: toy-cem:std=1,std=2: std is given twice"),
        ({"optimizer": "toy-cem:std=1", "std": 2}, "optimizer: std is given twice"),
        ({"backend": "threads:names=x"}, r"backend: threads has no option 'names' \(did you mean name\?\)"),
        ({"backend": "serial:x=1"}, "backend: serial has no option 'x'; serial takes n_workers"),
        ({"episodes_per_candidate": 0}, "episodes_per_candidate: expected a whole number of at least 1, got 0"),
    ],
)
def test_a_wrong_option_is_one_line(parts, made_agents, arguments, line):
    with pytest.raises(RefineError, match=line):
        Refiner(load_agent("ppo", ENV_ID, made_agents), **arguments)


def test_options_reach_the_optimizer_either_way(parts, made_agents):
    agent = load_agent("ppo", ENV_ID, made_agents)
    for arguments in (
        {"optimizer": "ars:n_delta=3,learning_rate=(0.1,0.01)"},
        {"n_delta": 3, "learning_rate": (0.1, 0.01)},
    ):
        settings = Refiner(agent, **arguments).settings
        assert (settings["n_delta"], settings["learning_rate"]) == (3, (0.1, 0.01))


def test_a_module_that_the_user_names_registers_parts(made_agents, tmp_path):
    """In a process of its own, with nothing imported before."""
    (tmp_path / "my_parts.py").write_text(
        "from sb3_refine.optimizers import OPTIMIZERS\nfrom toy_parts import ToyCEM\nOPTIMIZERS['mine'] = ToyCEM\n"
    )
    arguments = ["--algo", "ppo", "--env", ENV_ID, "-f", made_agents, "--optimizer", "mine:n_candidates=4"]
    done = run_command(*arguments, "--gym-packages", "my_parts", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 updates of 4 rollouts" in done.stdout
