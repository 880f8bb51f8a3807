"""
The mesh dimension on trajectories of real agents: ours against a plain dictionary of boxes, and its share of a rollout.

The plain count is the published definition without guards. The two and the rollout run in turn; times are medians of
CPU time. Where every row of a trajectory has a box of its own on some mesh, the two must agree: mesh and box sizes
exactly, slopes to 1e-6. Where not, the published definition has no sound value to agree with.

python benchmarks/mesh_dimension.py --agents FOLDER --json benchmarks/results/mesh_dimension.json
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from common import parser, show, write

from sb3_refine import Refiner, load_agent
from sb3_refine.evaluators import Batch, RolloutWorker
from sb3_refine.optimizers import ExplicitPopulation
from sb3_refine.rollouts.mesh_dimension import MeshDimension, mesh_dimension

ROWS = [
    ("ppo", "Walker2DBulletEnv-v0"),
    ("tqc", "Walker2DBulletEnv-v0"),
    ("ppo", "HopperBulletEnv-v0"),
    ("ddpg", "HopperBulletEnv-v0"),
    ("a2c", "HopperBulletEnv-v0"),
    ("tqc", "Hopper-v3"),
    ("trpo", "Ant-v3"),
    ("a2c", "BipedalWalker-v3"),
    ("ppo", "LunarLanderContinuous-v2"),
    ("dqn", "CartPole-v1"),
    ("tqc", "MountainCarContinuous-v0"),
    ("ddpg", "Pendulum-v1"),
    ("tqc", "PandaReach-v1"),
]


def plain_mesh_size(observations: np.ndarray, box: float) -> int:
    keys = np.round(observations * (1 / box)) * box
    keys[keys == -0.0] = 0.0
    mesh: dict[tuple[float, ...], int] = {}
    for key in map(tuple, keys):
        mesh[key] = mesh.get(key, 0) + 1
    return len(mesh)


def plain_mesh_dimension(observations: np.ndarray) -> MeshDimension:
    """The published definition: https://arxiv.org/abs/2109.05604, section IV, with the constants of its code."""
    boxes, sizes = [1.0], [plain_mesh_size(observations, 1.0)]
    while sizes[0] < len(observations) and boxes[0] > 1e-9:
        boxes.insert(0, boxes[0] / 1.2)
        sizes.insert(0, plain_mesh_size(observations, boxes[0]))
    while sizes[-1] > 1:
        boxes.append(boxes[-1] * 1.2)
        sizes.append(plain_mesh_size(observations, boxes[-1]))
    x, y = np.log2(boxes[:-1]), np.log2(sizes[:-1])
    lower = -np.polyfit(x, y, 1)[0] if len(x) > 1 else np.nan
    upper = -min([0.0, *(np.diff(y) / np.diff(x))[:-1]])
    return MeshDimension(float(lower), float(upper), np.array(sizes), np.array(boxes))


def check(ours: MeshDimension, plain: MeshDimension) -> None:
    np.testing.assert_array_equal(ours.mesh_sizes, plain.mesh_sizes)
    np.testing.assert_array_equal(ours.box_sizes, plain.box_sizes)
    np.testing.assert_allclose(ours[:2], plain[:2], rtol=0, atol=1e-6)


def milliseconds(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return 1000 * (time.process_time() - start)


def compare(algo: str, env: str, options: Any) -> dict[str, Any]:
    refiner = Refiner(load_agent(algo, env, options.agents), backend="serial")
    population = ExplicitPopulation([refiner.parameters.get_theta()])
    worker, job = RolloutWorker(refiner.make_task()), (0, options.seed)
    trajectory = worker.run(Batch(population, ("trajectory",)), job).metrics["trajectory"]
    observations = trajectory.seen
    ours, plain = mesh_dimension(observations), plain_mesh_dimension(observations)
    is_clean = len(observations) > 5 and int(plain.mesh_sizes[0]) == len(observations)
    if is_clean:
        check(ours, plain)
    times: dict[str, list[float]] = {"plain_ms": [], "ours_ms": [], "rollout_ms": []}
    for _ in range(options.rounds):
        times["plain_ms"].append(milliseconds(lambda: plain_mesh_dimension(observations)))
        times["ours_ms"] += [milliseconds(lambda: mesh_dimension(observations)) for _ in range(10)]
        times["rollout_ms"].append(milliseconds(lambda: worker.run(Batch(population), job)))
    worker.close()
    result = {name: statistics.median(values) for name, values in times.items()}
    return {
        "algo": algo,
        "env": env,
        "rows": len(observations),
        "dims": observations.shape[1],
        "meshes": len(plain.mesh_sizes),
        **result,
        "ratio": result["plain_ms"] / result["ours_ms"],
        "share_of_rollout": result["ours_ms"] / result["rollout_ms"],
        "identical": is_clean,
        "lower": ours.lower,
        "upper": ours.upper,
        "plain_lower": plain.lower,
        "plain_upper": plain.upper,
    }


def main() -> None:
    options = parser(__doc__.splitlines()[1])
    options.add_argument("--rounds", type=int, default=15, help="counted rounds")
    options.add_argument("--seed", type=int, default=100, help="of the episode")
    options.add_argument("--only", nargs="*", help="environments")
    options = options.parse_args()
    th.set_num_threads(1)
    rows = [row for row in ROWS if not options.only or row[1] in options.only]
    results = [compare(algo, env, options) for algo, env in rows]
    columns = ["agent", "rows x dims", "meshes", "plain ms", "ours ms", "ratio", "rollout ms", "share", "bounds", ""]
    table = [
        [
            f"{r['algo']} {r['env']}",
            f"{r['rows']} x {r['dims']}",
            r["meshes"],
            r["plain_ms"],
            r["ours_ms"],
            f"{r['ratio']:.0f}",
            f"{r['rollout_ms']:.0f}",
            f"{r['share_of_rollout']:.2%}",
            f"{r['lower']:.2f} {r['upper']:.2f}",
            "identical" if r["identical"] else f"{r['plain_lower']:.2f} {r['plain_upper']:.2f}",
        ]
        for r in results
    ]
    show("the mesh dimension of one episode", columns, table)
    write(options.json, results)


if __name__ == "__main__":
    main()
