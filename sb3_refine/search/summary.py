"""The result of a run, as the terminal shows it."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.text import Text

from sb3_refine.errors import printable
from sb3_refine.evaluation.acceptance import REFINED
from sb3_refine.evaluation.tables import better_text, difference_text, figures_table
from sb3_refine.formatting import plural
from sb3_refine.rollouts.episode import Episode

if TYPE_CHECKING:
    from sb3_refine.search.result import Result

_WIDTH = 80  # where there is no terminal


def verdict(result: "Result") -> Text:
    """
    :param result: of a run
    :return: its decision and the reason
    """
    style = "bold green" if result.decision == REFINED else "bold yellow"
    return Text(printable(f"decision: {result.decision} ({result.reason})"), style)


def summary(
    result: "Result",
    candidate: str | None = None,
    figures: Callable[[Sequence[Episode]], dict[str, float]] = lambda episodes: {},
) -> Group:
    """
    :param result: of a run
    :param candidate: what the table calls the candidate; None for its name in the result
    :param figures: further figures of the episodes of an agent, by their label
    :return: the verdict, then the figures of both agents, then the costs
    """
    parts: list[RenderableType] = [verdict(result), ""]
    if result.baseline is not None and result.candidate is not None:
        both = {"original": result.baseline, candidate or result.candidate_name: result.candidate}
        parts += [figures_table(both, figures), ""]
    if result.paired_difference is not None:
        d = result.paired_difference
        what = "paired difference" if d.paired else "difference"
        better = better_text(d.p_better, d.paired)
        parts.append(f"{what} of the returns {difference_text(d)} at {d.confidence:.0%}; {better}")
    parts.append(
        f"{plural(result.rollouts, 'episode')}, {plural(result.env_steps, 'environment step')}, "
        f"{result.wall_time_s:.1f} s, {result.cpu_time_s:.1f} s of CPU time"
    )
    return Group(*parts)


def summary_text(result: "Result") -> str:
    """
    :param result: of a run
    :return: :func:`summary` without colours
    """
    console = Console(width=_WIDTH, color_system=None, highlight=False, markup=False, file=None)
    with console.capture() as capture:
        console.print(summary(result))
    return "\n".join(line.rstrip() for line in capture.get().splitlines())
