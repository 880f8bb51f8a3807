"""
The results of four refinements, pinned to the bit: a change of the code's structure must not change them.

``python tests/test_pinned.py`` records the results of this machine in ``pinned.json``. Processors differ in bits.
"""

import hashlib
import json
import platform
import signal
import subprocess
import sys
import time
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
import torch as th
from conftest import ZOO_AGENTS

RECORD = Path(__file__).with_name("pinned.json")
COMMON = [
    "--optimizer",
    "ars",
    "--n-delta",
    "4",
    "--n-eval-episodes",
    "10",
    "--n-workers",
    "2",
    "--alpha",
    "0.9",
    "--no-report",
]
RUNS = {
    "ddpg/HopperBulletEnv-v0": ["--n-updates", "12", "--objective", "smooth", "--seed", "5"],
    "a2c/BipedalWalker-v3": ["--n-updates", "3", "--objective", "mesh-dimension", "--seed", "1"],
    "dqn/CartPole-v1": ["--n-updates", "40", "--objective", "smooth", "--checkpoint-interval", "1", "--seed", "1"],
    "tqc/PandaReach-v1": ["--n-updates", "5", "--no-acceptance", "--delta-std", "0.1", "--seed", "1"],
}
KILLED = "dqn/CartPole-v1"
NOT_PINNED = ("wall_time_s", "versions", "source", "output_sha256")


def machine() -> dict[str, str]:
    """What the bits of an episode depend on."""
    packages = ("torch", "numpy", "gymnasium", "stable-baselines3", "pybullet", "box2d")
    found = {package: version(package).partition("+")[0] for package in packages}
    processor = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    return {
        **found,
        "machine": platform.machine(),
        "cpu": th.backends.cpu.get_cpu_capability(),
        "processor": processor.partition(":")[2].strip(),
    }


def command(name: str, output: Path) -> list[str]:
    algo, env = name.split("/")
    agent = ["--algo", algo, "--env", env, "-f", str(ZOO_AGENTS), "-o", str(output), "--verbose", "0"]
    return [sys.executable, "-m", "sb3_refine.cli", *agent, *COMMON, *RUNS[name]]


def kill_and_resume(arguments: list[str], output: Path) -> None:
    """SIGKILL after the first checkpoint, then ``--resume``."""
    process = subprocess.Popen(arguments)
    while not list(output.glob("*/*/state/checkpoint.pt")):
        assert process.poll() is None, "it ended before its first checkpoint"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (state,) = output.glob("*/*/state")
    assert not list(state.parent.glob("*.zip")), "it was killed too late"
    resumed = [sys.executable, "-m", "sb3_refine.cli", "--resume", str(state.parent), "--n-workers", "2"]
    subprocess.run([*resumed, "--no-report", "--verbose", "0", "--checkpoint-interval", "1"], check=True)


def result_of(name: str, output: Path) -> dict:
    """SHA-256 of the refined policy, and ``refinement.json`` without what differs from run to run."""
    if name == KILLED:
        kill_and_resume(command(name, output), output)
    else:
        subprocess.run(command(name, output), check=True)
    (path,) = output.glob("*/*/refinement.json")
    refinement = json.loads(path.read_text())
    keys = sorted(refinement)
    for key in NOT_PINNED:
        del refinement[key]
    (model,) = path.parent.glob("*.zip")
    with zipfile.ZipFile(model) as archive, archive.open("policy.pth") as file:
        policy = th.load(file, weights_only=True)
    digest = hashlib.sha256()
    for parameter_name, parameter in policy.items():
        digest.update(parameter_name.encode() + parameter.numpy().tobytes())
    return {"policy_sha256": digest.hexdigest(), "keys": keys, "refinement": refinement}


def assert_includes(found, expected, where="refinement.json"):
    """Keys may be added, nothing else may differ."""
    if isinstance(expected, dict):
        for key, value in expected.items():
            assert key in found, f"{where} has no {key}"
            assert_includes(found[key], value, f"{where}: {key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for index, value in enumerate(expected):
            assert_includes(found[index], value, f"{where}: {index}")
    else:
        assert found == expected, where


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_the_result_is_the_recorded_one(zoo_agents, tmp_path, name):
    try:
        found = machine()
    except ModuleNotFoundError as missing:
        pytest.skip(f"recorded with a package that is not installed: {missing}")
    recorded = [record["results"] for record in json.loads(RECORD.read_text()) if record["machine"] == found]
    if not recorded:
        pytest.skip(f"not recorded on this machine with these packages: {found}")
    result = result_of(name, tmp_path)
    expected = recorded[0][name]
    assert result["policy_sha256"] == expected["policy_sha256"]
    assert set(expected["keys"]) <= set(result["keys"])
    assert_includes(result["refinement"], expected["refinement"])


if __name__ == "__main__":
    import tempfile

    results = {}
    for run in RUNS:
        with tempfile.TemporaryDirectory() as folder:
            results[run] = result_of(run, Path(folder))
    others = [record for record in json.loads(RECORD.read_text()) if record["machine"] != machine()]
    RECORD.write_text(json.dumps([*others, {"machine": machine(), "results": results}], indent=1) + "\n")
