"""
What each objective changes: one search with it, and one picture of the run's report.

python benchmarks/objectives.py --agents FOLDER --figures docs/objectives --json benchmarks/results/objectives.json
"""

import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common import parser, write
from stable_baselines3 import DDPG, HerReplayBuffer

from sb3_refine import Refiner, load_agent
from sb3_refine.agents.agent import Agent


@dataclass(frozen=True)
class Case:
    """
    :param objective: name and options
    :param algo: of the agent
    :param env: of the agent
    :param plot: of the report, that shows the change best
    :param options: of :func:`~sb3_refine.load_agent`
    """

    objective: str
    algo: str
    env: str
    plot: str
    options: tuple[tuple[str, Any], ...] = ()


CASES = [
    Case("smooth:weight=1", "tqc", "PandaReach-v1", "actions", (("end_at_success", False),)),
    Case("mesh-dimension", "a2c", "HopperBulletEnv-v0", "phase"),
    Case("survival", "dqn", "LunarLander-v2", "failures"),
    Case("cvar", "dqn", "LunarLander-v2", "returns"),
    Case("success", "ddpg", "PandaReach-v3", "end_effector"),
]


def half_trained(folder: Path) -> Agent:
    """An arm that reaches some of its goals."""
    import panda_gym  # noqa: F401 - registers the environment

    policy_kwargs = {"net_arch": [64, 64]}
    model = DDPG(
        "MultiInputPolicy", "PandaReach-v3", replay_buffer_class=HerReplayBuffer, policy_kwargs=policy_kwargs,
        gamma=0.9, tau=0.05, learning_starts=200, seed=0, device="cpu",
    )  # fmt: skip
    model.learn(1200).save(folder / "PandaReach-v3.zip")
    return load_agent("ddpg", "PandaReach-v3", model=folder / "PandaReach-v3.zip")


def run(case: Case, options: Any) -> dict[str, Any]:
    """The figures of a search; its picture goes to the folder."""
    with tempfile.TemporaryDirectory() as name:
        if case.objective == "success":
            agent = half_trained(Path(name))
        else:
            agent = load_agent(case.algo, case.env, options.agents, **dict(case.options))
        with Refiner(agent, objective=case.objective, seed=0) as refiner:
            refiner.learn(options.n_updates)
            run_folder = refiner.save(name)
            refiner.report(run_folder)
        picture = case.objective.partition(":")[0]
        shutil.copy(Path(run_folder) / "plots" / f"{case.plot}.png", options.figures / f"{picture}.png")
    result = refiner.result
    assert result is not None
    assert result.baseline is not None
    assert result.candidate is not None
    assert result.objective_difference is not None
    print(case.objective, result, sep="\n", flush=True)
    return {
        **{"objective": case.objective, "algo": case.algo, "env": case.env},
        **{"decision": result.decision, "reason": result.reason},
        **{"baseline": result.baseline.summary(), "refined": result.candidate.summary()},
        "objective_difference": asdict(result.objective_difference),
        **{"rollouts": result.rollouts, "env_steps": result.env_steps},
        **{"wall_time_s": round(result.wall_time_s, 1), "cpu_time_s": round(result.cpu_time_s, 1)},
    }


def main() -> None:
    options_parser = parser("One search with each objective, and a picture of its change.")
    options_parser.add_argument("--figures", type=Path, default=Path("docs/objectives"))
    options_parser.add_argument("--n-updates", type=int, help="of the search; the default preset's, if not said")
    options_parser.add_argument("--only", nargs="+", help="objectives, without options")
    options = options_parser.parse_args()
    options.figures.mkdir(parents=True, exist_ok=True)
    cases = [case for case in CASES if not options.only or case.objective.partition(":")[0] in options.only]
    found = []
    for case in cases:
        found.append(run(case, options))
        write(options.json, found)


if __name__ == "__main__":
    main()
