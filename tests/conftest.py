"""Agents to test on: real ones where they lie beside the checkout, and small ones made in the test run."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read on import: no test asks the Hub, but for those with a server of their own
# PyTorch's threads wait for each other on a busy machine, which takes ten times the processor time of these networks
os.environ.setdefault("OMP_NUM_THREADS", "1")

import logging
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import fresh
import gymnasium as gym
import pytest
import sb3_contrib
import stable_baselines3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_refine.agents.zoo import new_run_folder
from sb3_refine.cli.main import main
from sb3_refine.evaluation.target import EvaluationTarget, rollout_task
from sb3_refine.evaluators import SerialEvaluator
from sb3_refine.policies.parameters import PolicyParameters

ZOO_AGENTS = Path(os.environ.get("SB3_REFINE_AGENTS", Path(__file__).parents[2] / "shared" / "agents"))

ENV_ID = "Pendulum-v1"
BACKENDS = [
    "executor:make=concurrent.futures.ThreadPoolExecutor",
    "process",
    pytest.param("ray", marks=pytest.mark.slow),
    "serial",
]
SMALL = {"policy_kwargs": {"net_arch": [16, 16]}, "seed": 0, "device": "cpu"}
ON_POLICY = {**SMALL, "n_steps": 32}
OFF_POLICY = {**SMALL, "learning_starts": 20, "buffer_size": 500, "batch_size": 16}
MADE = {
    "a2c": (stable_baselines3.A2C, {**ON_POLICY, "use_sde": True}),
    "ppo": (stable_baselines3.PPO, {**ON_POLICY, "batch_size": 32, "n_epochs": 1}),
    "trpo": (sb3_contrib.TRPO, {**ON_POLICY, "batch_size": 32}),
    "ddpg": (stable_baselines3.DDPG, OFF_POLICY),
    "td3": (stable_baselines3.TD3, OFF_POLICY),
    "sac": (stable_baselines3.SAC, OFF_POLICY),
    "tqc": (sb3_contrib.TQC, {**OFF_POLICY, "use_sde": True}),
}
"""Algorithm and arguments of an agent of every kind; a2c with gSDE and normalised observations, tqc with gSDE."""

NORMALIZED = "a2c"

CONFIG = "!!python/object/apply:collections.OrderedDict\n- - - policy\n    - MlpPolicy\n"


def train(algo: str):
    """A model trained for a few steps, with its environment."""
    cls, kwargs = deepcopy(MADE[algo])  # SB3 writes into policy_kwargs
    env = make_vec_env(ENV_ID, n_envs=1, seed=0)
    if algo == NORMALIZED:
        env = VecNormalize(env)
    return cls("MlpPolicy", env, learning_rate=3e-4, **kwargs).learn(64)


@pytest.fixture(scope="session", autouse=True)
def server_of_processes():
    """Started before any test starts a process."""
    fresh.start_server()


@pytest.fixture(scope="session")
def made_agents(tmp_path_factory) -> Path:
    """A Zoo folder with a small agent of every kind, saved by plain Stable-Baselines3."""
    folder = tmp_path_factory.mktemp("rl-trained-agents")
    for algo in MADE:
        model = train(algo)
        run_folder = new_run_folder(folder, algo, ENV_ID)
        (run_folder / ENV_ID).mkdir()
        model.save(run_folder / f"{ENV_ID}.zip")
        config = CONFIG
        if algo == NORMALIZED:
            model.get_vec_normalize_env().save(str(run_folder / ENV_ID / "vecnormalize.pkl"))
            config += "  - - normalize\n    - true\n"
        (run_folder / ENV_ID / "config.yml").write_text(config)
    return folder


@pytest.fixture(scope="session")
def zoo_agents() -> Path:
    """Real agents of the RL Zoo's collection."""
    if not ZOO_AGENTS.is_dir():
        pytest.skip("no folder with the RL Zoo's agents; name one with SB3_REFINE_AGENTS")
    return ZOO_AGENTS


def run_policy(evaluator, theta, seeds):
    """Episodes of a policy on an open evaluator, in the order of the seeds."""
    return list(EvaluationTarget(evaluator, theta).run(list(seeds)).episodes)


def target_of(agent, objective=None) -> EvaluationTarget:
    """An agent, fit to be evaluated in this process."""
    evaluator = SerialEvaluator(rollout_task(agent, objective=objective)).__enter__()
    return EvaluationTarget(evaluator, PolicyParameters(agent.model.policy).get_theta())


@pytest.fixture
def run(capsys):
    """
    Runs ``sb3-refine`` as a user would, but in this process: a process of its own has to import PyTorch first.
    Logging starts anew, and signals are handled afterwards as they were before.
    """

    def run(*arguments) -> subprocess.CompletedProcess:
        root, own = logging.getLogger(), logging.getLogger("sb3_refine")
        handlers, level = root.handlers, own.level
        signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        root.handlers = []
        capsys.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as ended:  # argparse's
            status = ended.code
        finally:
            root.handlers = handlers
            own.setLevel(level)
            for number, handler in signals.items():
                signal.signal(number, handler)
        return subprocess.CompletedProcess(arguments, status, *capsys.readouterr())

    return run


class BrokenEnv(gym.Wrapper):
    """Pendulum that raises in the third step of an episode."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.n_steps = 0

    def reset(self, **kwargs):
        self.n_steps = 0
        return self.env.reset(**kwargs)

    def step(self, action):
        self.n_steps += 1
        if self.n_steps == 3:
            raise ArithmeticError("the pendulum fell off")
        return self.env.step(action)


@contextmanager
def running_search(agents, folder, *arguments):
    """A run of the command line that is busy searching, in a process group of its own; and its run folder."""
    script = (  # a job in the background starts with SIGINT ignored
        "import signal, sys; from sb3_refine.cli.main import main; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); sys.exit(main())"
    )
    command = [sys.executable, "-c", script, "--algo", "ppo", "--env", ENV_ID, "-f", str(agents)]
    command += ["-o", str(folder), "--n-updates", "100000", "--n-eval-episodes", "5", "--log-interval", "1", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process, run_folder = subprocess.Popen(command, start_new_session=True, **pipes), folder / "ppo" / f"{ENV_ID}_1"
    progress, deadline = run_folder / "progress.csv", time.time() + 300
    try:
        while not (progress.exists() and progress.read_text().count("\n") >= 3):
            assert process.poll() is None and time.time() < deadline, process.communicate()
            time.sleep(0.05)
        yield process, run_folder
    finally:
        process.kill()
        process.communicate()


def children_of(pid):
    """Process ids of the children of a process, and theirs."""
    listing = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True, check=True).stdout
    parents = dict(map(int, line.split()) for line in listing.splitlines()[1:])
    found = {child for child, parent in parents.items() if parent == pid}
    return found.union(*(children_of(child) for child in found))


def left_after(seconds, processes):
    """Those of the processes that have not ended by then."""
    deadline = time.time() + seconds
    while any(os.path.exists(f"/proc/{each}") for each in processes) and time.time() < deadline:
        time.sleep(0.1)
    return [each for each in processes if os.path.exists(f"/proc/{each}")]
