"""``sb3-refine evaluate``: one agent, or two side by side on the same seeds."""

import argparse
import logging
import math
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sb3_refine.cli.options import Parser, add_agent_options, count, load_chosen_agent, say, set_up_logging
from sb3_refine.errors import RefineError, printable
from sb3_refine.files import as_json

if TYPE_CHECKING:  # not for `--help`
    from rich.console import Console

    from sb3_refine.agents.agent import Agent
    from sb3_refine.evaluation.evaluation import Evaluation, PairedDifference
    from sb3_refine.evaluation.target import EvaluationTarget
    from sb3_refine.tasks.family import TaskFamily

AGENT, OTHER = "agent", "other"
"""What the two are called, in tables and in JSON."""

_N_EPISODES = 100
_N_WORST = 5  # tasks
_WIDTH = 80  # of tables and sentences that go to a pipe or a file


def make_evaluate_parser() -> Parser:
    """:return: the parser of ``sb3-refine evaluate``"""
    parser = Parser(
        prog="sb3-refine evaluate",
        description="Evaluate a trained Stable-Baselines3 agent, or two side by side on the same seeds, without noise "
        "and under noise on actions and observations.",
        epilog="example: sb3-refine evaluate --algo ddpg --env HopperBulletEnv-v0 -f refined-agents "
        "--compare-to rl-trained-agents -P",
        allow_abbrev=False,
    )
    add_agent_options(parser)
    episodes = parser.add_argument_group("the episodes")
    episodes.add_argument(
        "--compare-to",
        metavar="PATH",
        help="another agent, run on the same seeds: a log folder with ALGO/ENV_K in it, the folder of a run, or a zip",
    )
    episodes.add_argument(
        "--trust-compare-to",
        action="store_true",
        help="what --trust-remote-code is for the first agent: runs any code that the other agent's author put there",
    )
    which = episodes.add_mutually_exclusive_group()
    which.add_argument("--n-eval-episodes", type=count, metavar="N", help=f"how many (default: {_N_EPISODES})")
    which.add_argument("--seeds", type=_seed, nargs="+", metavar="S", help="these episode seeds, and nothing of --seed")
    episodes.add_argument(
        "--seed",
        type=_seed,
        help="the episodes that a refinement with this seed was judged on (default: 0); any other gives fresh ones",
    )
    episodes.add_argument("--no-noise", action="store_true", help="only episodes without noise: a fifth of the time")
    episodes.add_argument("--n-workers", type=count, help="episodes run at a time (default: all processors)")
    episodes.add_argument("--backend", default="process", help="process, serial or ray (default: %(default)s)")
    episodes.add_argument("--no-accelerator", action="store_true", help="use the stock step of the environment")
    episodes.add_argument(
        "--quantize",
        metavar="FORMAT",
        help="round the weights to float16, int8 or int4: of both agents; without --compare-to, the other agent is "
        "the same one, not rounded",
    )
    episodes.add_argument(
        "--search",
        type=count,
        metavar="N",
        help="act by tree search with N simulations in each step: both agents; without --compare-to, the other agent "
        "is the same one, without search; episodes are without noise",
    )
    output = parser.add_argument_group("the output")
    output.add_argument("--mesh-dimension", action="store_true", help="measure the mesh dimension, too; it takes time")
    output.add_argument(
        "--alpha", type=float, default=0.05, help="one minus the confidence of differences (default: %(default)s)"
    )
    output.add_argument("--json", metavar="FILE", help="write all figures, and those of every episode")
    output.add_argument("--video", metavar="DIR", help="film the first episode, or those of --seeds")
    output.add_argument("-P", "--progress", action="store_true", help="show a progress bar")
    return parser


def _seed(text: str) -> int:
    if int(text) < 0:
        raise argparse.ArgumentTypeError(f"expected a seed of at least 0, got {text}")
    return int(text)


_seed.__name__ = "int"  # argparse names it when the text is no number


@dataclass(frozen=True)
class _Report:
    """
    All that was found.

    :param agents: by name; the other one, if any, is the first
    :param conditions: by condition, by agent
    :param differences: by condition, agent minus other; none without an other, or where episodes were invalid
    """

    agents: dict[str, "Agent"]
    conditions: dict[str, dict[str, "Evaluation"]]
    differences: dict[str, "PairedDifference"]

    @property
    def noiseless(self) -> dict[str, "Evaluation"]:
        """Evaluations without noise, by agent."""
        return next(iter(self.conditions.values()))


def evaluate_agents(options: argparse.Namespace) -> int:
    """
    Run ``sb3-refine evaluate``.

    :param options: of :func:`make_evaluate_parser`
    :return: exit status
    :raises RefineError: when an option is wrong
    :raises EpisodeError: when an episode fails, or has NaN or infinite rewards or observations
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leave no workers
    set_up_logging(logging.WARNING)
    _check(options)
    record = _recorder(options)
    agents = {AGENT: load_chosen_agent(options)}
    if options.compare_to is not None:
        agents = {OTHER: _load_other(options, agents[AGENT]), **agents}
    if options.quantize is not None:
        from sb3_refine.agents.copies import with_rounding

        rounded = {name: with_rounding(agent, options.quantize) for name, agent in agents.items()}
        agents = {OTHER: agents[AGENT], **rounded}
    if options.search is not None and OTHER not in agents:
        agents = {OTHER: agents[AGENT], **agents}
    from sb3_refine.evaluation.target import check_valid
    from sb3_refine.seeding import EpisodeSeeds

    seeds = options.seeds or EpisodeSeeds(options.seed or 0).take("test", options.n_eval_episodes or _N_EPISODES)
    with _open_targets(options, agents) as targets:
        report = _run(options, agents, targets, seeds)
        _print_report(report, _title(options, agents[AGENT], len(seeds)), options)
        if options.json:
            _write_json(report, options, Path(options.json))
        for seed in seeds if options.seeds else seeds[:1]:
            record(targets, seed)
    for condition, evaluations in report.conditions.items():
        for name, evaluation in evaluations.items():
            check_valid(evaluation, f"the {name} under {condition}")
    return 0


def _check(options: argparse.Namespace) -> None:
    """Check the options before anything runs."""
    from sb3_refine.evaluators import EVALUATORS
    from sb3_refine.parts import parse_part
    from sb3_refine.policies.rounding import check_rounding

    if options.seeds and len(set(options.seeds)) < len(options.seeds):
        raise RefineError("--seeds: names a seed more than once, which would count twice; name each once")
    if options.seeds and options.seed is not None:
        raise RefineError("--seeds: says which episodes to run, and so does --seed; leave one out")
    parse_part("--backend", options.backend, EVALUATORS)
    if options.search is not None and options.quantize is not None:
        raise RefineError("--search: not with --quantize; leave one out")
    if options.search is not None and options.video:
        raise RefineError("--search: not with --video, as an environment that draws cannot be saved; leave one out")
    check_rounding("--quantize", options.quantize)
    if not 0 < options.alpha < 1:
        raise RefineError(f"--alpha: expected a number between 0 and 1, got {options.alpha}")
    if options.json:
        if Path(options.json).is_dir():
            raise RefineError(f"--json: {options.json} is a folder; name a file")
        _check_writable("--json", Path(options.json).absolute().parent)
    if options.video:
        _check_writable("--video", Path(options.video).absolute(), make=True)


def _check_writable(option: str, folder: Path, make: bool = False) -> None:
    try:
        if make:
            folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RefineError(f"{option}: cannot write to {folder} ({error.strerror or error}); choose another") from error


def _recorder(options: argparse.Namespace) -> Callable[[dict[str, "EvaluationTarget"], int], None]:
    """What films the episode of a seed; does nothing without ``--video``."""
    if not options.video:
        return lambda targets, seed: None
    from sb3_refine.reporting.video import encoder, record_video

    encoder()  # find out before the episodes whether one is missing

    def record(targets: dict[str, "EvaluationTarget"], seed: int) -> None:
        name = targets[AGENT].task.recipe.env_id or "env"
        path = Path(options.video) / f"{name.replace('/', '-')}-seed-{seed}.mp4"
        say(f"filmed: {record_video(targets, seed, path)}")

    return record


# ---------------------------------------------------------------- the other agent


def _load_other(options: argparse.Namespace, agent: "Agent") -> "Agent":
    """The agent of ``--compare-to``. It shares those options with the first that say nothing of its files."""
    from sb3_refine.agents.candidates import check_same_environment, env_beside
    from sb3_refine.agents.load import load_agent
    from sb3_refine.agents.zoo import find_beside

    zip_path = _find_other(Path(options.compare_to), options.algo or agent.algo, options.env or agent.env_name)
    env = env_beside(zip_path, options.env or agent.env_name)
    has_statistics = find_beside(zip_path, env).vec_normalize is not None
    other = load_agent(
        env=env,
        model=zip_path,
        env_kwargs=options.env_kwargs,
        gym_packages=options.gym_packages,
        no_vec_normalize=options.no_vec_normalize and not has_statistics,
        trust_remote_code=options.trust_compare_to,
        end_at_success=not options.no_end_at_success,
        tasks=options.tasks,
    )
    check_same_environment(agent, other, "--compare-to: the other agent")
    return other


def _find_other(path: Path, algo: str, env: str) -> Path:
    """The zip that ``--compare-to`` means."""
    from sb3_refine.agents.zoo import find_in_folder
    from sb3_refine.envs.families import current_env_id

    is_zip = path.is_file() or Path(f"{path}.zip").is_file()
    if is_zip and not path.is_dir():
        return path
    if not path.is_dir():
        raise RefineError(f"--compare-to: there is nothing at {path}; name a log folder, the folder of a run, or a zip")
    names = [f"{name.replace('/', '-')}.zip" for name in (env, current_env_id(env))]
    for name in names:
        if (path / name).is_file():
            return path / name
    zips = sorted(zip_path.name for zip_path in path.glob("*.zip"))
    if zips:
        there = f"no {names[-1]} in {path}; there are: {', '.join(zips)}"
        raise RefineError(f"--compare-to: {there}; name an agent of the same environment")
    try:
        return find_in_folder(path, algo, env).model
    except RefineError as error:
        if is_zip:  # a Zoo folder has ENV beside ENV.zip
            return path
        raise RefineError(f"--compare-to: {error}; name the folder of a run, or a zip, to compare with it") from error


# ---------------------------------------------------------------- the episodes


@contextmanager
def _open_targets(options: argparse.Namespace, agents: dict[str, "Agent"]) -> Iterator[dict[str, "EvaluationTarget"]]:
    """The agents by name; with ``--search``, those that act by tree search."""
    from sb3_refine.evaluation.target import open_targets
    from sb3_refine.evaluators import backend_options

    backend, backend_kwargs = backend_options("--backend", options.backend, options.n_workers)
    searching = {name: agent for name, agent in agents.items() if _searches(options, name)}
    others = {name: agent for name, agent in agents.items() if name not in searching}
    found: dict[str, EvaluationTarget] = {}
    with ExitStack() as stack:
        if searching:
            from sb3_refine.planning.task import open_planning_targets

            opened = open_planning_targets(list(searching.values()), options.search, backend, **backend_kwargs)
            found.update(zip(searching, stack.enter_context(opened), strict=True))
        if others:
            accelerator = not options.no_accelerator
            plain = open_targets(list(others.values()), backend, accelerator=accelerator, **backend_kwargs)
            found.update(zip(others, stack.enter_context(plain), strict=True))
        yield {name: found[name] for name in agents}


def _searches(options: argparse.Namespace, name: str) -> bool:
    return options.search is not None and (name == AGENT or options.compare_to is not None)


def _run(
    options: argparse.Namespace, agents: dict[str, "Agent"], targets: dict[str, "EvaluationTarget"], seeds: list[int]
) -> _Report:
    from tqdm import tqdm

    from sb3_refine.evaluation.comparison import evaluate_all, n_conditions
    from sb3_refine.evaluation.evaluation import paired_difference
    from sb3_refine.rollouts.metrics import SMOOTHNESS

    metrics = (*SMOOTHNESS, "mesh_dimension") if options.mesh_dimension else SMOOTHNESS
    with_noise = not options.no_noise and options.search is None  # a search would see what is behind the noise
    n_episodes = len(targets) * len(seeds) * n_conditions(with_noise)
    with tqdm(total=n_episodes, disable=not options.progress, unit="episode", dynamic_ncols=True) as progress:
        for target in targets.values():
            target.evaluator.on_episode = progress.update
        conditions = evaluate_all(targets, seeds, metrics, with_noise=with_noise)
        progress.total = progress.n  # fewer conditions where there can be no noise on observations
    paired = all(target.is_seeded for target in targets.values())
    differences = {
        condition: paired_difference(by_name[OTHER], by_name[AGENT], options.alpha, paired)
        for condition, by_name in conditions.items()
        if OTHER in by_name and not any(evaluation.n_invalid for evaluation in by_name.values())
    }
    return _Report(agents, conditions, differences)


# ---------------------------------------------------------------- what a person reads


def _title(options: argparse.Namespace, agent: "Agent", n_episodes: int) -> str:
    episodes = f"{n_episodes} episode{'s' * (n_episodes != 1)}"
    which = "the seeds of --seeds" if options.seeds else f"the test seeds of --seed {options.seed or 0}"
    return f"{agent.algo} on {agent.env_name}, {episodes} with {which}"


def _print_report(report: _Report, title: str, options: argparse.Namespace) -> None:
    from rich.console import Console

    from sb3_refine.evaluation.tables import figures_table, noise_table

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH
    console.print(printable(title), markup=False, soft_wrap=True)
    for name, agent in reversed(report.agents.items()):
        is_rounded = options.quantize and (name == AGENT or options.compare_to)
        rounded = f", weights rounded to {options.quantize}" if is_rounded else ""
        search = f", by tree search with {options.search} simulations" if _searches(options, name) else ""
        console.print(printable(f"{name}: {_origin(agent)}{rounded}{search}"), markup=False, soft_wrap=True)
    console.print()
    console.print(figures_table(report.noiseless))
    _print_tasks(report, console)
    if len(report.conditions) > 1:
        console.print()
        console.print(noise_table(report.conditions, report.differences, OTHER))
        if not any(condition.startswith("observation") for condition in report.conditions):
            console.print("no noise on observations: they are not continuous, or images", soft_wrap=True)
    if report.differences:
        console.print()
        console.print(_verdict(next(iter(report.differences.values()))), markup=False)


def _print_tasks(report: _Report, console: "Console") -> None:
    """The returns by parameter of the tasks, and the tasks with the lowest ones."""
    from sb3_refine.evaluation.by_task import by_parameter, task_text
    from sb3_refine.evaluation.tables import task_table

    family = report.agents[AGENT].recipe.tasks
    if family is None:
        return
    evaluation = report.noiseless[AGENT]
    tasks = [family.task(seed).parameters for seed in evaluation.seeds]
    for parameter, groups in by_parameter(tasks).items():
        console.print()
        console.print(task_table(parameter, groups, report.noiseless))
    console.print()
    for place in evaluation.returns.argsort(kind="stable")[:_N_WORST].tolist():
        line = f"seed {evaluation.seeds[place]}: {evaluation.returns[place]:.2f} with {task_text(tasks[place])}"
        console.print(printable(f"low return of the {AGENT}, {line}"), markup=False, soft_wrap=True)


def _verdict(d: "PairedDifference") -> str:
    from sb3_refine.evaluation.tables import better_text, difference_text

    found = f"{difference_text(d)} at {d.confidence:.0%}" if d.ci_low > -math.inf else difference_text(d)
    how = " on the same seeds" if d.paired else ", unpaired, as the environment ignores its seed"
    return f"{AGENT} minus {OTHER}{how}: {found}; {better_text(d.p_better, d.paired)}"


def _origin(agent: "Agent") -> str:
    source = agent.source
    return f"{source['repo']} at {source.get('revision')}" if source.get("repo") else str(source["path"])


# ---------------------------------------------------------------- what a program reads


def _write_json(report: _Report, options: argparse.Namespace, path: Path) -> None:
    from sb3_refine.files import atomic_path
    from sb3_refine.reporting.record import versions

    agent = report.agents[AGENT]
    content = {
        "env": agent.recipe.env_id,
        "env_kwargs": agent.recipe.env_kwargs,
        "seeds": list(report.noiseless[AGENT].seeds),
        "alpha": options.alpha,
        "quantize": options.quantize,
        "search": options.search,
        **({} if agent.recipe.tasks is None else _task_content(agent.recipe.tasks, report.noiseless[AGENT].seeds)),
        "agents": {name: _content(report, name) for name in report.agents},
        "paired_differences": {condition: asdict(d) for condition, d in report.differences.items()},
        "versions": versions(),
    }
    with atomic_path(path) as temporary:
        temporary.write_text(as_json(content))
    say(f"figures written to {path}")


def _task_content(family: "TaskFamily", seeds: Sequence[int]) -> dict[str, Any]:
    return {"tasks": family.settings, "task_of_episode": [family.task(seed).parameters for seed in seeds]}


def _content(report: _Report, name: str) -> dict[str, Any]:
    agent = report.agents[name]
    return {
        "algo": agent.algo,
        "wrappers": [list(wrapper) for wrapper in agent.recipe.wrappers],
        "source": agent.source,
        "conditions": {
            condition: {
                "summary": evaluations[name].summary(),
                "n_invalid": evaluations[name].n_invalid,
                "returns": evaluations[name].returns.tolist(),
                "lengths": evaluations[name].lengths.tolist(),
                "env_steps": sum(episode.n_env_steps for episode in evaluations[name].episodes),
                "failed": [episode.failed for episode in evaluations[name].episodes],
                "success": [episode.success for episode in evaluations[name].episodes],
            }
            for condition, evaluations in report.conditions.items()
        },
    }
