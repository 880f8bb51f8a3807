"""The model card of a refined agent: metadata that the Hub indexes, the figures, and how to load it."""

from typing import Any

from sb3_refine.agents.sb3_models import ALGOS
from sb3_refine.evaluation.tables import better_text
from sb3_refine.formatting import code_span, escaped, number_text, plural, rate_text
from sb3_refine.reporting.record import AgentFigures, RunRecord
from sb3_refine.reporting.run_folder import RunFolder
from sb3_refine.reporting.templates import render
from sb3_refine.reporting.wording import WORDING

_ROWS = (
    ("mean return", "mean_return"),
    ("standard deviation", "std_return"),
    ("lowest return", "min_return"),
    ("worst tenth (CVaR10)", "cvar10_return"),
    ("mean length", "mean_length"),
)

_PICTURES = {
    "paired": "Each dot is a seed. Above the line, the return is higher {after}; below, it is lower.",
    "returns": "How often each return occurred, before and {after}; a tick is an episode.",
    "learning_curve": "The return during the search.",
}
"""Plots that the card may show, the first that there is, with their captions. The report shows all of them."""

_OUTCOMES = {
    "refined": "This is the refined agent: it did better than the original on held-out seeds.",
    "original": "This is the **original** agent, unchanged: no better one was found.",
    "unchecked": "This agent is the result of a search, but was **not tested** on held-out seeds.",
}


def model_card(run: RunFolder, repo: str) -> str:
    """
    :param run: the folder of a run
    :param repo: id of the repo on the Hub
    :return: the ``README.md`` of the repo
    """
    record = run.record
    algo_module, _, algo_class = ALGOS[record.algo].rpartition(".")
    organization, _, name = repo.partition("/")
    file_name = f"{record.algo}-{run.env_name}"
    env_kwargs = {key: value for key, value in (run.args.get("env_kwargs") or {}).items() if key != "render_mode"}
    difference = record.paired_difference
    drawn = {path.stem for path in run.plots}
    picture = next((name for name in _PICTURES if name in drawn), None)
    return render(
        "model_card.md.j2",
        record=record,
        wording=WORDING[record.method],
        metadata=_metadata(record, algo_class),
        outcome=_OUTCOMES[record.decision],
        rows=_rows(record),
        better=better_text(difference.p_better or 0.0, difference.paired) if difference else "",
        picture=picture,
        caption=_PICTURES[picture].format(after=WORDING[record.method].after) if picture else "",
        has_report=run.report is not None,
        organization=organization,
        own_name="" if name == file_name else name,
        repo=repo,
        file_name=file_name,
        algo_module=algo_module,
        algo_class=algo_class,
        normalised=run.vec_normalize is not None,
        env_kwargs=repr(env_kwargs) if env_kwargs else "",
        has_wrappers=bool(run.config.get("env_wrapper")),
        origin=_origin(record),
        versions=", ".join(f"{package} {version}" for package, version in record.versions.items()),
        plural=plural,
    )


def _metadata(record: RunRecord, algo_class: str) -> str:
    """The card's front matter; the Hub takes the agent's figures from its ``model-index``."""
    from huggingface_hub import EvalResult, ModelCardData

    tags = [record.env_id, "deep-reinforcement-learning", "reinforcement-learning", "stable-baselines3", "sb3-refine"]
    data: dict[str, Any] = {"library_name": "stable-baselines3", "tags": tags}
    saved = record.saved
    if saved is not None and saved.mean_return is not None and saved.std_return is not None:
        result = EvalResult(
            task_type="reinforcement-learning",
            task_name="reinforcement-learning",
            dataset_type=record.env_id,
            dataset_name=record.env_id,
            metric_type="mean_reward",
            metric_name="mean_reward",
            metric_value=f"{saved.mean_return:.2f} +/- {saved.std_return:.2f}",
            verified=False,
        )
        data.update(model_name=algo_class, eval_results=[result])
    return str(ModelCardData(**data).to_yaml())


def _rows(record: RunRecord) -> list[tuple[str, str, str]]:
    """Figures before and after; none where the two could not be compared."""
    before, after, difference = record.baseline, record.refined, record.paired_difference
    if before is None or after is None or difference is None:
        return []
    if None in (difference.mean, difference.ci_low, difference.ci_high, difference.p_better):
        return []

    def row(label: str, text: Any) -> tuple[str, str, str]:
        return label, text(before), text(after)

    return [
        *((label, number_text(getattr(before, name)), number_text(getattr(after, name))) for label, name in _ROWS),
        row("failure rate", lambda figures: rate_text(figures.failure_rate, None)),
        row("held-out rollouts", lambda figures: str(figures.n_episodes)),
        row("their environment steps", _n_steps),
    ]


def _n_steps(figures: AgentFigures) -> str:
    return f"{sum(figures.lengths):,}" if figures.lengths else "unknown"


def _origin(record: RunRecord) -> str:
    source = record.source
    if source.get("repo"):
        link = f"[{escaped(source['repo'])}](https://huggingface.co/{source['repo']})"
        return f"{link} at revision {code_span(str(source.get('revision')))}"
    return "an agent in a folder" if source.get("path") else "a model in memory"
