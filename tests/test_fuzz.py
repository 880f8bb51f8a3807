"""Mutated real files, a fixed number of them: see fuzz.py for what is demanded of each."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ENV_ID

from sb3_refine import Refiner, load_agent

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of time and memory are set as on Linux")


@pytest.fixture(scope="module")
def real_files(made_agents, tmp_path_factory):
    """An agent of every kind, and one file of each other kind."""
    folder = shutil.copytree(made_agents, tmp_path_factory.mktemp("fuzz") / "agents")
    np.savez(folder / "evaluations.npz", timesteps=np.arange(3), results=np.ones((3, 5)))
    refiner = Refiner(load_agent("ppo", ENV_ID, folder), backend="serial", n_delta=1, n_eval_episodes=2)
    refiner.learn(2, checkpoint_folder=folder / "state")
    return folder


def fuzz(folder, n_inputs, seed):
    command = [sys.executable, Path(__file__).with_name("fuzz.py"), folder, "--n-inputs", n_inputs, "--seed", seed]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{n_inputs} inputs: " in done.stdout
    for kind in ("zip", "pkl", "yml", "npz", "pt"):
        assert f"'{kind} read'" in done.stdout, "mutations that nothing survives test little"
        assert f"'{kind} refused'" in done.stdout


def test_mutated_files_are_read_or_refused(real_files):
    fuzz(real_files, 300, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_ten_thousand_mutated_files_of_the_zoo_are_read_or_refused(real_files, zoo_agents, tmp_path, seed):
    shutil.copytree(real_files, tmp_path / "files")
    for path in zoo_agents.glob("*/*_1"):
        shutil.copytree(path, tmp_path / "files" / "zoo" / path.parent.name / path.name)
    fuzz(tmp_path / "files", 10_000, seed)


def test_the_guard_detects_forbidden_actions(tmp_path):
    """The fuzzer itself can fail."""
    for code in ("import colorsys", "open('x', 'w')", "__import__('os').system('true')", "exec('1')"):
        script = (
            f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import fuzz; guard = fuzz.Guard(); "
            f"code = compile({code!r}, 'x', 'exec'); guard.active = True; exec(code); guard.active = False; "
            "print(guard.seen)"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True)
        assert done.stdout.strip(), code
