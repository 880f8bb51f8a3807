"""The model card of a refined agent: metadata that the Hub indexes, the figures, and how to load it."""

from typing import Any

from sb3_refine.agents.sb3_models import ALGOS
from sb3_refine.reporting.markdown import code_span, escaped
from sb3_refine.reporting.run_folder import RunFolder
from sb3_refine.reporting.tables import better_text, number_text

_ROWS = (
    ("mean return", "mean_return"),
    ("standard deviation", "std_return"),
    ("lowest return", "min_return"),
    ("worst tenth (CVaR10)", "cvar10_return"),
    ("mean length", "mean_length"),
    ("failure rate", "failure_rate"),
    ("held-out episodes", "n_episodes"),
)

_OUTCOME = {
    "refined": "This is the refined agent: it did better than the original on held-out seeds.",
    "original": "This is the **original** agent, unchanged: no better one was found.",
    "unchecked": "This agent comes out of a search, but was **not tested** on held-out seeds.",
}


def model_card(run: RunFolder, repo: str) -> str:
    """
    :param run: what a run has left
    :param repo: id of the repo on the Hub
    :return: the ``README.md`` of the repo
    """
    algo_class = ALGOS[run.algo].rpartition(".")[2]
    sections = [
        f"# **{algo_class}** agent for **{escaped(run.env_id)}**",
        _introduction(run),
        *_figures(run),
        *(f"![{path.stem}](plots/{path.name})" for path in run.plots),
        *(["More in [report.md](report.md)."] if run.report is not None else []),
        "## How to load it",
        *_usage(run, repo, algo_class),
        "## Origin",
        _origin(run),
    ]
    return f"---\n{_metadata(run, algo_class)}\n---\n\n" + "\n\n".join(sections) + "\n"


def _metadata(run: RunFolder, algo_class: str) -> str:
    """The card's front matter; the Hub takes the agent's figures from its ``model-index``."""
    from huggingface_hub import EvalResult, ModelCardData

    tags = [run.env_id, "deep-reinforcement-learning", "reinforcement-learning", "stable-baselines3", "sb3-refine"]
    data: dict[str, Any] = {"library_name": "stable-baselines3", "tags": tags}
    figures = run.evaluation or {}
    if None not in (figures.get("mean_return"), figures.get("std_return")):  # NaN, in JSON
        value = f"{figures['mean_return']:.2f} +/- {figures['std_return']:.2f}"
        result = EvalResult(
            task_type="reinforcement-learning",
            task_name="reinforcement-learning",
            dataset_type=run.env_id,
            dataset_name=run.env_id,
            metric_type="mean_reward",
            metric_name="mean_reward",
            metric_value=value,
            verified=False,
        )
        data.update(model_name=algo_class, eval_results=[result])
    return ModelCardData(**data).to_yaml()


def _introduction(run: RunFolder) -> str:
    decision = run.refinement["decision"]
    return (
        "A [Stable-Baselines3](https://github.com/DLR-RM/stable-baselines3) agent that went through `sb3-refine`: a "
        "direct random search around the parameters behind its deterministic action.\n\n"
        f"{_OUTCOME[decision]}{_maximised(run)}\n\nDecision: `{decision}` ({escaped(run.refinement['reason'])})."
    )


def _maximised(run: RunFolder) -> str:
    """What the decision went by, where it was not the return."""
    objective = run.refinement["settings"].get("objective", "return")
    return "" if objective == "return" else f" What was maximised is {code_span(objective)}, not the return alone."


def _figures(run: RunFolder) -> list[str]:
    """Before and after, and the difference between the two."""
    baseline, refined, difference = (run.refinement[key] for key in ("baseline", "refined", "paired_difference"))
    if baseline is None or refined is None or difference is None:
        return []
    if any(difference[key] is None for key in ("mean", "ci_low", "ci_high", "p_better")):
        return []
    rows = [f"| {title} | {_figure(key, baseline[key])} | {_figure(key, refined[key])} |" for title, key in _ROWS]
    table = "\n".join(["| | original | after the search |", "|---|---:|---:|", *rows])
    paired = "paired difference" if difference["paired"] else "difference"
    return [
        "## Before and after",
        table,
        f"The {paired} of the returns is {number_text(difference['mean'], '+')}, {difference['confidence']:.0%} "
        f"interval ({number_text(difference['ci_low'])}, {number_text(difference['ci_high'])}); "
        f"{better_text(difference['p_better'], difference['paired'])}. `refinement.json` has the return of every seed.",
    ]


def _figure(key: str, value: float | None) -> str:
    if value is None:  # NaN, in JSON
        return "not valid"
    if key == "n_episodes":
        return str(value)
    return f"{value:.1%}" if key == "failure_rate" else number_text(value)


def _usage(run: RunFolder, repo: str, algo_class: str) -> list[str]:
    organization, _, name = repo.partition("/")
    env = run.env_id
    file_name = f"{run.algo}-{run.env_name}"
    ours = "" if name == file_name else f" --repo-name {name}"
    zoos = "" if name == file_name else f" -name {name}"
    return [
        "With `sb3-refine`, to go on from it:",
        f"```\nsb3-refine --algo {run.algo} --env {env} --organization {organization}{ours}\n```",
        "With the [RL Zoo](https://github.com/DLR-RM/rl-baselines3-zoo):",
        f"```\nTRUST_REMOTE_CODE=True python -m rl_zoo3.load_from_hub --algo {run.algo} --env {env} "
        f"-orga {organization}{zoos} -f logs/\npython -m rl_zoo3.enjoy --algo {run.algo} --env {env} -f logs/\n```",
        "With plain Stable-Baselines3:",
        f"```python\n{_snippet(run, repo, algo_class, file_name)}\n```",
    ]


def _snippet(run: RunFolder, repo: str, algo_class: str, file_name: str) -> str:
    module = ALGOS[run.algo].rpartition(".")[0]
    env_kwargs = {key: value for key, value in (run.args.get("env_kwargs") or {}).items() if key != "render_mode"}
    made = f'make_vec_env("{run.env_id}"' + (f", env_kwargs={env_kwargs!r})" if env_kwargs else ")")
    lines = [
        "from huggingface_hub import hf_hub_download",
        f"from {module} import {algo_class}",
        "from stable_baselines3.common.env_util import make_vec_env",
    ]
    if run.vec_normalize is not None:
        lines.append("from stable_baselines3.common.vec_env import VecNormalize")
    lines += ["", f"env = {made}"]
    if run.config.get("env_wrapper"):
        lines[-1] += "  # and the wrappers of config.yml"
    if run.vec_normalize is not None:
        lines += [
            f'env = VecNormalize.load(hf_hub_download("{repo}", "vec_normalize.pkl"), env)',
            "env.training, env.norm_reward = False, False",
        ]
    lines.append(f'model = {algo_class}.load(hf_hub_download("{repo}", "{file_name}.zip"), env=env)')
    return "\n".join(lines)


def _origin(run: RunFolder) -> str:
    source = run.refinement["source"]
    if source.get("repo"):
        link = f"[{escaped(source['repo'])}](https://huggingface.co/{source['repo']})"
        origin = f"{link} at revision {code_span(str(source.get('revision')))}"
    else:
        origin = "an agent in a folder" if source.get("path") else "a model in memory"
    hashed = f", SHA-256 `{source['sha256']}`" if source.get("sha256") else ""
    settings, versions = run.refinement["settings"], run.refinement["versions"]
    updates = "1 update" if settings["n_updates_done"] == 1 else f"{settings['n_updates_done']} updates"
    return (
        f"- refined from {origin}{hashed}\n"
        f"- this agent: SHA-256 `{run.refinement['output_sha256']}`\n"
        f"- search: {code_span(settings['optimizer'])}, {updates}, {run.refinement['rollouts']} "
        f"episodes, {run.refinement['env_steps']} environment steps, seed {run.refinement['seeds']['seed']}\n"
        f"- versions: {', '.join(f'{package} {version}' for package, version in versions.items())}"
    )
