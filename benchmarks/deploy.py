"""
Students, rounded weights and exported files.

transformer: a student of 600,000 parameters, three seeds: the teacher, after cloning, after DAgger, after evolution
strategies with our default search and, with as many rollouts, with six updates of the preset es-transformers; and how
the mean return of the candidates falls with the noise and the step size of training without a pretrained start.
small: the fewest parameters that keep 95% of the teacher's return, before and after refinement; one run each.
rounding: mean returns after rounding to 16, 8 and 4 bits, of originals, students and refined agents, on the same seeds.
export: largest difference to predict over ten episodes of every agent, bytes, microseconds a step.
speed: microseconds a step of a transformer.

A cell that is in the results is not run again. Agents are kept in --work between the sections.

python benchmarks/deploy.py transformer small rounding export speed --agents FOLDER --work FOLDER --json FILE
"""

import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from common import circumstances, parser

from sb3_refine import RefineError, Refiner, export, load_agent
from sb3_refine.agents.agent import Agent
from sb3_refine.agents.copies import with_own_policy, with_rounding
from sb3_refine.agents.zoo import new_run_folder
from sb3_refine.deploy.formats import FORMATS
from sb3_refine.deploy.network import deployed_policy
from sb3_refine.evaluation.demonstrations import demonstrate
from sb3_refine.evaluation.evaluation import paired_difference
from sb3_refine.evaluation.target import open_targets, rollout_task
from sb3_refine.optimizers import OPTIMIZERS
from sb3_refine.policies.base import DeterministicPolicy
from sb3_refine.policies.general import StatefulPolicy
from sb3_refine.policies.parameters import PolicyParameters
from sb3_refine.policies.rounding import ROUNDINGS
from sb3_refine.seeding import EpisodeSeeds
from sb3_refine.students.distill import distill

WALKER = ("tqc", "Walker2DBulletEnv-v0")
SMALL = [
    ("ppo", "LunarLanderContinuous-v2"),
    ("dqn", "LunarLander-v2"),
    ("ddpg", "HopperBulletEnv-v0"),
    ("tqc", "Walker2DBulletEnv-v0"),
]
REFINED_FIRST = {("ddpg", "HopperBulletEnv-v0")}
STUDENTS = [[], [4], [8], [16], [8, 8], [16, 16], [32, 32], [64, 64], [128, 128]]
"""Hidden layers."""
EXPORTED = ("linear", "mlp:net_arch=[32,32]")  # students
SERIAL = {"n_workers": 1}
N_ROUNDS = 3
N_UPDATES = 20  # of our default search
KEPT = 0.95  # of the teacher's mean return


class Bench:
    """The results so far, and the agents that sections share."""

    def __init__(self, options: Any):
        self.agents, self.work, self.path = options.agents, options.work, options.json
        self.cells: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {}

    def cell(self, name: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A cell of the results, run only if it is missing."""
        if name not in self.cells:
            started = time.perf_counter()
            self.cells[name] = {**run(), "run": circumstances()}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self.cells, indent=1) + "\n")
            print(f"{name}: {_brief(self.cells[name])}, {time.perf_counter() - started:.0f} s", flush=True)
        return self.cells[name]

    def original(self, algo: str, env: str) -> Agent:
        return load_agent(algo, env, self.agents)

    def kept(self, name: str) -> Agent:
        """An agent that a cell has saved."""
        cell = self.cells[name]
        return load_agent(cell["algo"], cell["env_name"], self.work / _folder(name))

    def keep(self, name: str, agent: Agent, save: Callable[..., Any]) -> dict[str, str]:
        run_folder = self.work / _folder(name) / agent.algo / f"{agent.env_name}_1"
        if not run_folder.exists():
            run_folder = new_run_folder(self.work / _folder(name), agent.algo, agent.env_name)
        save(run_folder=run_folder)
        return {"algo": agent.algo, "env_name": agent.env_name}


def _folder(name: str) -> str:
    return "".join(each if each.isalnum() else "_" for each in name)


def _brief(cell: dict[str, Any]) -> str:
    shown = {key: value for key, value in cell.items() if isinstance(value, (int, float, str))}
    return ", ".join(
        f"{key} {value:.5g}" if isinstance(value, float) else f"{key} {value}" for key, value in shown.items()
    )


# ---------------------------------------------------------------- making agents


def make_student(bench: Bench, name: str, teacher: Agent, student: str, seed: int, n_rounds: int = N_ROUNDS) -> Any:
    """The cell of a student; the agent is kept."""

    def run() -> dict[str, Any]:
        found = distill(teacher, student, n_rounds=n_rounds, seed=seed, **SERIAL)
        record = found.record
        return {
            **bench.keep(name, found.agent, found.save),
            **{who: _figures(record[who]) for who in ("teacher", "student")},
            "share": record["student"]["mean_return"] / record["teacher"]["mean_return"],
            "n_parameters": record["student"]["n_parameters"],
            **{key: record[key] for key in ("paired_difference", "rounds", "chosen_round", "rollouts", "env_steps")},
            **{key: round(record[key], 1) for key in ("wall_time_s", "cpu_time_s")},
        }

    return bench.cell(name, run)


def make_refined(bench: Bench, name: str, start: Agent, seed: int, n_updates: int, **kwargs: Any) -> Any:
    """The cell of a refinement; what was tested is kept, accepted or not."""

    def run() -> dict[str, Any]:
        agent = with_own_policy(start)
        refiner = Refiner(agent, seed=seed, n_eval_episodes=100, **SERIAL, **kwargs).learn(n_updates)
        result = refiner.result
        assert result is not None and refiner.tested is not None
        assert result.baseline is not None and result.candidate is not None and result.paired_difference is not None
        refiner.parameters.set_theta(refiner.tested[1])
        return {
            **bench.keep(name, agent, refiner.save),
            "decision": result.decision,
            "baseline": _figures(result.baseline.summary()),
            "refined": _figures(result.candidate.summary()),
            "paired_difference": asdict(result.paired_difference),
            "population": [float(update.mean_return) for update in result.learning_curve],
            "rollouts": result.rollouts,
            "env_steps": result.env_steps,
            "wall_time_s": round(result.wall_time_s, 1),
            "cpu_time_s": round(result.cpu_time_s, 1),
        }

    return bench.cell(name, run)


def _figures(summary: dict[str, Any]) -> dict[str, Any]:
    return {name: summary[name] for name in ("mean_return", "std_return", "min_return", "n_episodes")}


# ---------------------------------------------------------------- sections


def transformer(bench: Bench, seeds: list[int]) -> None:
    """A transformer: cloned, after DAgger, refined."""
    teacher = bench.original(*WALKER)
    preset = OPTIMIZERS["plain-openai-es"].presets["es-transformers"]
    options = {key: value for key, value in preset.items() if key != "n_updates"}
    for seed in seeds:
        make_student(bench, f"transformer {seed} cloned", teacher, "transformer", seed, n_rounds=0)
        name = f"transformer {seed} dagger"
        make_student(bench, name, teacher, "transformer", seed)
        student = bench.kept(name)
        make_refined(bench, f"transformer {seed} default search", student, seed, N_UPDATES)
        n_updates = N_UPDATES * 40 // 128  # as many rollouts as the default search
        es = {"optimizer": "plain-openai-es", **options}
        make_refined(bench, f"transformer {seed} es-transformers", student, seed, n_updates, **es)
        wrong = {**es, "delta_std": 0.02, "learning_rate": 0.05}
        make_refined(bench, f"transformer {seed} wrong noise", student, seed, 3, **wrong)


def small(bench: Bench, seeds: list[int]) -> None:
    """The fewest parameters that keep 95% of the return."""
    for algo, env in SMALL:
        teacher, seed = bench.original(algo, env), 0
        if (algo, env) in REFINED_FIRST:
            name = f"small {algo} {env} teacher"
            make_refined(bench, name, teacher, seed, N_UPDATES)
            teacher = bench.kept(name)
        for student in _by_size(teacher):
            name = f"small {algo} {env} {student}"
            cell = make_student(bench, name, teacher, student, seed)
            make_refined(bench, f"{name} refined", bench.kept(name), seed, N_UPDATES)
            if cell["share"] >= KEPT:
                break


def _by_size(teacher: Agent) -> list[str]:
    """Students, from the fewest parameters to the most."""
    n_in = int(np.prod(teacher.observation_space.shape or ()))
    space: Any = teacher.model.action_space
    n_out = int(space.n) if hasattr(space, "n") else int(np.prod(space.shape))

    def n_parameters(hidden: list[int]) -> int:
        sizes = [n_in, *hidden, n_out]
        return sum(before * after + after for before, after in pairwise(sizes))

    ordered = sorted(STUDENTS, key=n_parameters)
    return [f"mlp:net_arch={str(hidden).replace(' ', '')}" if hidden else "linear" for hidden in ordered]


def rounding(bench: Bench, seeds: list[int]) -> None:
    """What rounding does to originals, students and refined agents."""
    for name, agent in _agents_to_round(bench):
        for kind in ROUNDINGS:

            def run(agent: Agent = agent, kind: str = kind) -> dict[str, Any]:
                test = EpisodeSeeds(0).take("test", 100)
                with open_targets([agent, with_rounding(agent, kind)], **SERIAL) as targets:
                    before, after = (target.run(test) for target in targets)
                return {
                    "before": _figures(before.summary()),
                    "after": _figures(after.summary()),
                    "share": float(after.returns.mean() / before.returns.mean()),
                    "paired_difference": asdict(paired_difference(before, after)),
                    "rollouts": 2 * len(test),
                    "env_steps": int(before.lengths.sum() + after.lengths.sum()),
                }

            bench.cell(f"rounding {name} {kind}", run)


def _agents_to_round(bench: Bench) -> Iterator[tuple[str, Agent]]:
    for algo, env in SMALL:
        yield f"{algo} {env} original", bench.original(algo, env)
        name = f"rounding {algo} {env} refined"
        make_refined(bench, name, bench.original(algo, env), 0, N_UPDATES)
        yield f"{algo} {env} refined", bench.kept(name)
    for kind in ("cloned", "dagger", "default search", "es-transformers"):
        name = f"transformer 0 {kind}"
        if name in bench.cells:
            yield name, bench.kept(name)
    for algo, env in SMALL:
        last = [name for name in bench.cells if name.startswith(f"small {algo} {env} ")][-2:]
        for name in last:  # the last student, and the same after a refinement
            yield name, bench.kept(name)


def exported(bench: Bench, seeds: list[int]) -> None:
    """Every agent, in every format."""
    for zip_path in sorted(bench.agents.glob("*/*/*.zip")):
        algo, env = zip_path.parent.parent.name, zip_path.parent.name.rpartition("_")[0]
        _export(bench, f"export {algo} {env}", load_agent(algo, env, bench.agents))
    for name in [name for name in bench.cells if name.startswith("small ") and name.rpartition(" ")[2] in EXPORTED]:
        for quantize in (None, "float16", "int8"):
            _export(bench, f"export {name} {quantize}", bench.kept(name), quantize)
    if "transformer 0 dagger" in bench.cells:
        _export(bench, "export transformer", bench.kept("transformer 0 dagger"))


def _export(bench: Bench, name: str, agent: Agent, quantize: str | None = None) -> None:
    def run() -> dict[str, Any]:
        folder, files = bench.work / _folder(name), {}
        try:
            policy = deployed_policy(agent, quantize)
        except RefineError as error:
            return {"refused": str(error)}
        formats = [each for each in FORMATS if each != "c" or not policy.state]
        record = export(agent, folder, formats, n_episodes=10, quantize=quantize)
        (episode,) = demonstrate(rollout_task(agent), agent.observation_space, EpisodeSeeds(0).take("test", 1))
        inputs = np.array([policy.as_input(each) for each in episode.observations[:500]])
        for kind, file in record["files"].items():
            function = FORMATS[kind].read(folder / file["file"], policy, Path(file["file"]).stem)
            files[kind] = {**file, "us_per_step": _microseconds(function, policy, inputs)}
            files[kind].pop("sha256")
        return {"n_parameters": record["n_parameters"], "n_steps": record["checked_on"]["n_steps"], "files": files}

    bench.cell(name, run)


def _microseconds(function: Any, policy: Any, inputs: np.ndarray) -> float:
    """A step, with the cost of the call from Python; the median, as the machine may do other work, too."""
    state, times = [entry.zeros(1) for entry in policy.state], []
    for row in inputs:
        started = time.perf_counter()
        _, *state = function(row[np.newaxis], *state)
        times.append(time.perf_counter() - started)
    return round(float(np.median(times)) * 1e6, 2)


def speed(bench: Bench, seeds: list[int]) -> None:
    """A step of a transformer: the whole window again, predict with its memory, and our rollouts."""
    agent = bench.kept("transformer 0 dagger")
    policy: Any = agent.model.policy
    parameters = PolicyParameters(policy)
    task = rollout_task(agent)
    general = StatefulPolicy(policy, parameters.slices(), agent.statistics, agent.observation_space)
    (episode,) = demonstrate(task, agent.observation_space, EpisodeSeeds(0).take("test", 1))
    observations = episode.observations[:500]
    context = policy.transformer.context

    def window(each: Any) -> None:
        features = th.zeros(context, policy.observation_space.shape[0])
        policy.distribution_of_sequences(features, th.zeros(1, context, *policy.action_space.shape))

    def run() -> dict[str, Any]:
        th.set_num_threads(1)
        found: dict[str, Any] = {"n_parameters": parameters.size}
        for name, step in (("whole window", window), ("predict", general), ("rollout", task.policy)):
            if isinstance(step, DeterministicPolicy):
                step.begin_episode(None)  # type: ignore[arg-type]
            times = []
            with th.inference_mode():
                for each in observations:
                    started = time.perf_counter()
                    step(each)
                    times.append(time.perf_counter() - started)
            found[f"us {name}"] = round(float(np.median(times)) * 1e6, 1)
        return found

    bench.cell("speed transformer", run)


SECTIONS = {"transformer": transformer, "small": small, "rounding": rounding, "export": exported, "speed": speed}


def main() -> None:
    options_parser = parser("Students, rounded weights and exported files.")
    options_parser.add_argument("sections", nargs="+", choices=SECTIONS)
    options_parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the transformers")
    options_parser.add_argument("--work", type=Path, default=Path("deploy-agents"), help="where agents are kept")
    options = options_parser.parse_args()
    if options.json is None:
        options_parser.error("--json: name the file of the results")
    logging.getLogger("sb3_refine").setLevel(logging.ERROR)
    bench = Bench(options)
    for section in options.sections:
        SECTIONS[section](bench, options.seeds)


if __name__ == "__main__":
    main()
