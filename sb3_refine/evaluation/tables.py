"""Figures of agents side by side, as the terminal shows them."""

import math
from collections.abc import Callable, Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from sb3_refine.evaluation.by_task import Group
from sb3_refine.evaluation.evaluation import Evaluation, PairedDifference
from sb3_refine.formatting import METRIC_LABELS, number_text, rate_text
from sb3_refine.rollouts.episode import Episode

_LABELS = {
    "mean_return": "mean return",
    "std_return": "std",
    "median_return": "median",
    "min_return": "min",
    "cvar10_return": "worst tenth (CVaR10)",
    "mean_length": "mean length",
}
_MANY = 20  # episodes, with fewer of which the worst tenth is the worst one


def plain_table(*headers: str) -> Table:
    """
    :param headers: of the columns
    :return: a table that breaks lines where the terminal is narrow; no text is cut off
    """
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for i, header in enumerate(headers):
        table.add_column(header, justify="left" if i == 0 or not header else "right", overflow="fold")
    return table


def figures_table(
    evaluations: Mapping[str, Evaluation], more: Callable[[Sequence[Episode]], dict[str, float]] = lambda episodes: {}
) -> Table:
    """
    :param evaluations: by the name of the agent
    :param more: further figures of the episodes of an agent, by their label
    :return: rows are figures, columns agents
    """
    table = plain_table("", *evaluations)
    columns = [
        _column(evaluation) | {label: number_text(value) for label, value in more(evaluation.episodes).items()}
        for evaluation in evaluations.values()
    ]
    for label in dict.fromkeys(label for column in columns for label in column):
        table.add_row(label, *(column.get(label, "") for column in columns))
    return table


def _column(evaluation: Evaluation) -> dict[str, str]:
    """The figures of one agent, by their label."""
    s = evaluation.summary()
    steps = f"{int(evaluation.lengths.sum()):,}"
    column = {"episodes": str(s["n_episodes"]), "environment steps": steps}
    labels = {name: label for name, label in _LABELS.items() if name != "cvar10_return" or s["n_episodes"] >= _MANY}
    column |= {label: number_text(s[name]) for name, label in labels.items()}
    n_failed = sum(episode.failed for episode in evaluation.episodes)
    column["failures"] = f"{n_failed} of {s['n_episodes']}"
    column["failure rate (95%)"] = rate_text(s["failure_rate"], s["failure_rate_ci"])
    if "success_rate" in s:
        column["success rate (95%)"] = rate_text(s["success_rate"], s["success_rate_ci"])
    column |= {label: f"{s[name]:.4f}" for name, label in METRIC_LABELS.items() if name in s}
    n_moving = s.get("mesh_dimension_episodes", s["n_episodes"])
    if n_moving < s["n_episodes"]:
        value = column.get("mesh dimension", "no motion to measure")
        column["mesh dimension"] = f"{value} ({n_moving} of {s['n_episodes']} episodes)"
    return column


def noise_table(
    conditions: Mapping[str, Mapping[str, Evaluation]], differences: Mapping[str, PairedDifference], reference: str
) -> Table:
    """
    :param conditions: evaluations by condition and agent, without noise first
    :param differences: of the agent and the reference, by condition
    :param reference: name of the agent that another is compared with, where there is one
    :return: rows are conditions, and in each the agents
    """
    without_noise, *_ = conditions.values()
    is_comparison = reference in without_noise
    has_success = all(evaluation.success_rate is not None for evaluation in without_noise.values())
    rate = "success_rate" if has_success else "failure_rate"
    headers = ["noise on", "mean ± std", rate.replace("_", " ")]
    table = plain_table(*([headers[0], "", *headers[1:], "difference"] if is_comparison else headers))
    for condition, evaluations in conditions.items():
        label = "none" if evaluations is without_noise else condition.replace(" noise", "")
        figures = [_mean_and_rate(evaluation, rate) for evaluation in evaluations.values()]
        cells = ["\n".join(column) for column in zip(*figures, strict=True)]
        if is_comparison:
            d = differences.get(condition)
            difference = "" if d is None else difference_text(d).replace(" (", "\n(")
            cells = ["\n".join(evaluations), *cells, difference]
        table.add_row(label, *cells)
    return table


def _mean_and_rate(evaluation: Evaluation, rate: str) -> tuple[str, str]:
    if evaluation.n_invalid:
        return "not valid", f"{evaluation.n_invalid} with NaN or inf"
    s = evaluation.summary()
    return f"{number_text(s['mean_return'])} ± {number_text(s['std_return'])}", f"{s[rate]:.1%}"


def task_table(parameter: str, groups: Sequence[Group], evaluations: Mapping[str, Evaluation]) -> Table:
    """
    :param parameter: of the tasks
    :param groups: its values or parts of its range, with the places of their episodes
    :param evaluations: by the name of the agent
    :return: rows are groups, columns the mean returns of agents
    """
    table = plain_table(parameter, "episodes", *(f"{name}: mean ± std" for name in evaluations))
    for label, part in groups:
        samples = [evaluation.returns[part] for evaluation in evaluations.values()]
        figures = [f"{number_text(sample.mean())} ± {number_text(sample.std())}" for sample in samples]
        table.add_row(label, str(len(part)), *figures)
    return table


def better_text(p_better: float, paired: bool) -> str:
    """
    :param p_better: see :class:`~sb3_refine.evaluation.evaluation.PairedDifference`
    :param paired: see there
    :return: how often the one is better than the other
    """
    where = "on a seed" if paired else "in a pair of episodes"
    return f"better {where}: {p_better:.1%}, ties counting half"


def difference_text(difference: PairedDifference) -> str:
    """
    :param difference: of two agents
    :return: the difference and its interval, if it has one
    """
    if difference.ci_low == -math.inf:
        return number_text(difference.mean, "+")
    low, high = map(number_text, (difference.ci_low, difference.ci_high))
    return f"{number_text(difference.mean, '+')} ({low}, {high})"
