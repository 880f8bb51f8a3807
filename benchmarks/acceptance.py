"""
How often the decision accepts what is no better, and how often it finds what is, on real returns.

Recorded once (``--record``, then kept in benchmarks/results/returns.json): the returns of five agents of the Zoo on
common seeds, as they are, after a search, perturbed so little that only chaos differs, and perturbed for the worse.
Every trial draws seeds from them anew and decides.

- no difference: an agent against itself on other seeds; against one perturbed without effect, sides drawn by lot; and
  real differences moved such that their mean is zero, however skewed they are
- worse: the agent perturbed for the worse; the original instead of a refined agent
- better: real refinements; the same returns with a gain, in standard deviations of the return

``--catastrophes`` measures what no test of the mean can do without knowing the worst that can happen: a little better
but for rare catastrophes, that cost as much on average as is gained; the decision beside Student's t (one-sided) and
the percentile bootstrap, each at the same level.

``--candidates`` measures the whole verdict: the best of many candidates on validation seeds, then its test. None of
the candidates is better: their returns are recorded ones whose mean is moved to the original's.

python benchmarks/acceptance.py --json benchmarks/results/acceptance.json
python benchmarks/acceptance.py --candidates 8 30 --episodes 100 auto --trials 1000 \
    --json benchmarks/results/acceptance_candidates.json
python benchmarks/acceptance.py --catastrophes --json benchmarks/results/catastrophes.json
"""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from common import parser, show, write
from rich.progress import track
from scipy import stats

from sb3_refine import Refiner, load_agent
from sb3_refine.evaluation.acceptance import REFINED, decide
from sb3_refine.evaluation.evaluation import Evaluation
from sb3_refine.evaluation.judge import AUTO, JudgeSettings, judge_candidates
from sb3_refine.evaluation.selection import Candidate
from sb3_refine.evaluation.statistics import wilson_interval
from sb3_refine.evaluation.target import EvaluationTarget
from sb3_refine.optimizers.noise_table import direction, noise_key
from sb3_refine.rollouts.episode import Episode
from sb3_refine.seeding import STREAMS, EpisodeSeeds

RETURNS = Path(__file__).parent / "results" / "returns.json"
AGENTS = (  # and updates of the search
    ("ddpg", "HopperBulletEnv-v0", 40),
    ("a2c", "HopperBulletEnv-v0", 40),
    ("a2c", "Walker2DBulletEnv-v0", 40),
    ("ppo", "LunarLanderContinuous-v2", 80),
    ("tqc", "MountainCarContinuous-v0", 80),
)
N_RECORDED = 1000
NO_EFFECT, WORSE = 1e-6, 0.02  # standard deviations of the perturbations

Draw = Callable[[int, np.random.Generator], tuple[np.ndarray, np.ndarray]]
Rule = Callable[[np.ndarray, np.ndarray, float], bool]


class Cell(NamedTuple):
    """
    Pairs of agents.

    :param name: what they are
    :param true_difference: of their mean returns, after minus before
    :param draw: gives the returns of both on a number of seeds
    """

    name: str
    true_difference: float
    draw: Draw


def record(options: Any) -> None:
    recorded = {}
    for algo, env, n_updates in AGENTS:
        refiner = Refiner(load_agent(algo, env, options.agents), acceptance=False)
        theta = refiner.parameters.get_theta()
        searched = refiner.learn(n_updates).parameters.get_theta()
        delta, seeds = direction(99, noise_key(99, 0, 0), theta.size), refiner.seeds.take("test", N_RECORDED)
        variants = {"original": theta, "refined": searched}
        variants |= {"no effect": theta + np.float32(NO_EFFECT) * delta, "worse": theta + np.float32(WORSE) * delta}
        with refiner.evaluator() as evaluator:
            recorded[f"{algo} {env}"] = {
                name: EvaluationTarget(evaluator, theta).run(seeds).returns.round(6).tolist()
                for name, theta in track(variants.items(), description=f"{algo} {env}")
            }
    RETURNS.write_text(json.dumps(recorded) + "\n")


def no_difference(name: str, found: dict[str, np.ndarray]) -> Iterator[Cell]:
    for which in ("original", "refined"):
        yield Cell(f"{name}: {which} against itself on other seeds", 0.0, independent(found[which]))
    yield Cell(f"{name}: perturbed without effect", 0.0, by_lot(found["original"], found["no effect"]))
    for before, after in (("original", "refined"), ("refined", "original"), ("original", "worse")):
        shift = (found[after] - found[before]).mean()
        yield Cell(f"{name}: {before} to {after}, mean moved to 0", 0.0, pairs(found[before], found[after] - shift))


def worse(name: str, found: dict[str, np.ndarray]) -> Iterator[Cell]:
    for before, after in (("original", "worse"), ("worse", "original"), ("refined", "original")):
        difference = float((found[after] - found[before]).mean())
        if difference < 0:
            yield Cell(f"{name}: {before} to {after}", difference, pairs(found[before], found[after]))


def rare(name: str, found: dict[str, np.ndarray]) -> Iterator[Cell]:
    for rate in (0.01, 0.02, 0.03, 0.05):
        yield Cell(f"{name}: {rate:.0%} catastrophes", 0.0, catastrophes(found["refined"], rate))


def better(name: str, found: dict[str, np.ndarray]) -> Iterator[Cell]:
    original = found["original"]
    difference = float((found["refined"] - original).mean())
    yield Cell(f"{name}: original to refined", difference, pairs(original, found["refined"]))
    for gain in (0.1, 0.2, 0.4, 0.8):
        moved = found["no effect"] + gain * original.std()
        difference = float((moved - original).mean())
        yield Cell(f"{name}: perturbed without effect, plus {gain} std", difference, pairs(original, moved))


def independent(returns: np.ndarray) -> Draw:
    return lambda n, rng: (rng.choice(returns, n), rng.choice(returns, n))


def pairs(before: np.ndarray, after: np.ndarray) -> Draw:
    def draw(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        seeds = rng.integers(before.size, size=n)
        return before[seeds], after[seeds]

    return draw


def by_lot(one: np.ndarray, other: np.ndarray) -> Draw:
    def draw(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        first, second = pairs(one, other)(n, rng)
        swapped = rng.random(n) < 0.5
        return np.where(swapped, second, first), np.where(swapped, first, second)

    return draw


def catastrophes(returns: np.ndarray, rate: float) -> Draw:
    """As bad as the worst episode, at this rate; all others gain as much as makes up for it."""
    gain = rate / (1 - rate) * (returns.mean() - returns.min())

    def draw(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        before = rng.choice(returns, n)
        return before, np.where(rng.random(n) < rate, returns.min(), before + gain)

    return draw


def ours(before: np.ndarray, after: np.ndarray, alpha: float) -> bool:
    seeds = tuple(range(before.size))
    old, new = (
        Evaluation(seeds, tuple(Episode(float(value), 1, False) for value in returns)) for returns in (before, after)
    )
    return decide(old, new, alpha).decision == REFINED


def students_t(before: np.ndarray, after: np.ndarray, alpha: float) -> bool:
    if np.ptp(after - before) == 0:
        return bool(after[0] > before[0])
    return bool(stats.ttest_rel(after, before, alternative="greater").pvalue < alpha / 2)


def bootstrap(before: np.ndarray, after: np.ndarray, alpha: float) -> bool:
    differences = after - before
    resampled = np.random.default_rng(0).choice(differences, (2000, differences.size))
    return bool(np.quantile(resampled.mean(axis=1), alpha / 2) > 0)


def run(cell: Cell, n_episodes: int, alpha: float, n_trials: int, rule: Rule = ours) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    accepted = sum(rule(*cell.draw(n_episodes, rng), alpha) for _ in range(n_trials))
    low, high = wilson_interval(accepted, n_trials)
    return {
        "name": f"{cell.name}, {n_episodes} episodes",
        "true_difference": cell.true_difference,
        "alpha": alpha,
        "trials": n_trials,
        "accepted": accepted,
        "ci_low": low,
        "ci_high": high,
        "n_episodes": n_episodes,
    }


class RecordedTarget:
    """
    An agent whose episodes are drawn from recorded returns: the same seed draws the same place in them.

    :param returns: of the agent
    :param places: of the seeds of the validation and of the test stream
    """

    task, is_seeded = None, True

    def __init__(self, returns: np.ndarray, places: np.ndarray):
        self.theta = self._returns = returns
        self._places = places

    def run(self, seeds: Sequence[int], *_: Any) -> Evaluation:
        places = [self._places[int(STREAMS[seed % 3] == "test"), seed // 3 % N_RECORDED] for seed in seeds]
        return Evaluation(tuple(seeds), tuple(Episode(float(self._returns[place]), 1, False) for place in places))


def no_better(found: dict[str, np.ndarray], n: int) -> list[np.ndarray]:
    """Returns of candidates with the mean of the original; all but the first three are not paired with it."""
    variants = [found[name] for name in ("refined", "no effect", "worse")]
    moved = [returns - returns.mean() + found["original"].mean() for returns in variants]
    return [np.roll(moved[k % 3], 31 * (k // 3)) for k in range(n)]


def measure_candidates(options: Any) -> list[dict[str, Any]]:
    """How often the best of some candidates, none of which is better, is accepted."""
    results, rows = [], []
    for name, found in read_returns().items():
        for n_candidates in options.candidates:
            returns = no_better(found, n_candidates)
            for n_episodes in options.episodes:
                settings = JudgeSettings(n_eval_episodes=n_episodes, alpha=options.alpha)
                what = f"{name}: {n_candidates} candidates, {n_episodes} episodes"
                trials = track(range(options.trials), what)
                accepted = sum(is_accepted(found["original"], returns, settings, trial) for trial in trials)
                low, high = wilson_interval(accepted, options.trials)
                results.append(
                    {
                        **{"name": what, "true_difference": 0.0, "alpha": options.alpha, "trials": options.trials},
                        **{"accepted": accepted, "ci_low": low, "ci_high": high},
                        **{"n_candidates": n_candidates, "n_episodes": n_episodes},
                    }
                )
                rows.append([what, accepted / options.trials, f"({low:.4f}, {high:.4f})"])
    show(f"none is better: accepted of {options.trials}", ["agent", "share accepted", "95% interval"], rows)
    return results


def is_accepted(original: np.ndarray, returns: list[np.ndarray], settings: JudgeSettings, trial: int) -> bool:
    """Whether one of the candidates is accepted, in episodes that are drawn anew."""
    places = np.random.default_rng(trial).integers(N_RECORDED, size=(2, N_RECORDED))
    first, *others = (Candidate(str(k), RecordedTarget(each, places)) for k, each in enumerate([original, *returns]))
    return judge_candidates(first, others, settings, EpisodeSeeds(trial)).decision.decision == REFINED


def read_returns() -> dict[str, dict[str, np.ndarray]]:
    recorded = json.loads(RETURNS.read_text())
    return {name: {key: np.array(values) for key, values in found.items()} for name, found in recorded.items()}


def measure_catastrophes(options: Any) -> list[dict[str, Any]]:
    results, rows = [], []
    cells = [cell for item in read_returns().items() for cell in rare(*item)]
    for n_episodes in options.episodes:
        for cell in track(cells, f"{n_episodes} episodes"):
            found = run(cell, n_episodes, options.alpha, options.trials)
            others = {
                rule.__name__: run(cell, n_episodes, options.alpha, options.trials, rule)["accepted"]
                for rule in (students_t, bootstrap)
            }
            results.append({**found, **others})
            rows.append([found["name"], *(n / options.trials for n in (found["accepted"], *others.values()))])
    show(f"no better: share accepted of {options.trials}", ["pair", "ours", "Student's t", "bootstrap"], rows)
    return results


def measure(options: Any) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    for title, cells in (("no difference", no_difference), ("worse", worse), ("better", better)):
        found = [
            run(cell, n_episodes, options.alpha, options.trials)
            for n_episodes in options.episodes
            for cell in track([c for item in read_returns().items() for c in cells(*item)], f"{title}, {n_episodes}")
        ]
        results += found
        rows = [
            [r["name"], r["true_difference"], r["accepted"] / r["trials"], f"({r['ci_low']:.4f}, {r['ci_high']:.4f})"]
            for r in found
        ]
        header = ["pair", "true difference", "share accepted", "95% interval"]
        show(f"{title}: accepted of {options.trials} trials at alpha = {options.alpha}", header, rows)
    no_better = [r for r in results if r["true_difference"] <= 0]
    highest = max(no_better, key=lambda r: r["accepted"] / r["trials"])
    print(
        f"of {len(no_better)} pairs that are no better, at most {highest['accepted'] / highest['trials']:.2%} accepted"
    )
    print(f"significantly more than alpha: {[r['name'] for r in no_better if r['ci_low'] > r['alpha']] or 'none'}")
    return results


def main() -> None:
    options = parser(__doc__.splitlines()[1])
    options.add_argument("--record", action="store_true", help="run the agents anew")
    options.add_argument("--catastrophes", action="store_true", help="measure what cannot be seen")
    options.add_argument("--trials", type=int, default=2000, help="decisions of each cell")
    options.add_argument("--alpha", type=float, default=0.05, help="level of significance")
    options.add_argument(
        "--episodes",
        type=lambda text: text if text == AUTO else int(text),
        nargs="+",
        default=[30, 100, 300],
        help="episodes of a decision; with --candidates also auto, the default of the product",
    )
    options.add_argument("--candidates", type=int, nargs="+", help="measure the choice among so many, too")
    options = options.parse_args()
    logging.getLogger("sb3_refine").setLevel(logging.ERROR)
    if options.record:
        record(options)
    if options.candidates:
        results = measure_candidates(options)
    else:
        results = measure_catastrophes(options) if options.catastrophes else measure(options)
    write(options.json, results)


if __name__ == "__main__":
    main()
