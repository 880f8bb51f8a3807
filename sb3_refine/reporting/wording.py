"""What texts say of each method, and of special circumstances."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sb3_refine.agents.agent import is_teacher
from sb3_refine.policies.rounding import ROUNDINGS


@dataclass(frozen=True)
class Wording:
    """
    :param after: when the agent that was tested was as it is
    :param tested: what texts call that agent
    :param column: what tables call that agent
    :param heading: of the section about the method
    :param description: of the method, for the model card
    """

    after: str
    tested: str
    column: str
    heading: str
    description: str


WORDING = {
    "search": Wording(
        after="after the search",
        tested="the result of the search",
        column="after the search",
        heading="The search",
        description="a direct random search around the parameters behind its deterministic action",
    ),
    "train": Wording(
        after="after training on",
        tested="the best checkpoint",
        column="trained on",
        heading="The training",
        description="training on with its own algorithm and hyperparameters",
    ),
    "auto": Wording(
        after="after training and search",
        tested="the best of training and search",
        column="trained and searched",
        heading="Training and search",
        description="training on with its own algorithm, as long as that made it better, then a direct random search",
    ),
    "plan": Wording(
        after="after planning",
        tested="the best agent that learned from planning",
        column="after planning",
        heading="The planning",
        description="expert iteration: tree searches that are led by the agent plan what to do, and the agent learns "
        "what they have found; the agent itself needs no search",
    ),
    "meta-es": Wording(
        after="after meta-learning",
        tested="the result of meta-learning",
        column="after meta-learning",
        heading="The meta-learning",
        description="evolution strategies on a distribution of actors and critics, from which a few episodes in a new "
        "task suffice to adapt; returns are those after adaptation",
    ),
    "adapt": Wording(
        after="after the adaptation",
        tested="the better of adaptation and training",
        column="adapted",
        heading="The adaptation",
        description="a few episodes in one task and gradient steps from them, or training on for as many steps",
    ),
    "judge": Wording(
        after="with the candidate",
        tested="the best candidate",
        column="candidate",
        heading="The candidates",
        description="the best of several agents, tested against the original",
    ),
}
"""By the ``method`` of a record."""


def notes_of(settings: Mapping[str, Any]) -> list[str]:
    """
    :param settings: of a record
    :return: sentences about rounded weights, and about the teacher of a student
    """
    notes = []
    if settings.get("tasks"):
        notes.append(
            "tasks: each episode has another task, drawn from its seed; all figures are of that family of tasks"
        )
    if settings.get("quantize") in ROUNDINGS:
        kind = settings["quantize"]
        notes.append(
            f"weights: rounded to {kind} in all episodes, those of the original too; an original is saved as it was"
        )
    teacher: Any = settings.get("teacher")
    if is_teacher(teacher):
        mean, std, n = (teacher[name] for name in ("mean_return", "std_return", "n_episodes"))
        spread = f"{mean:.5g} +- {std:.3g}"
        notes.append(f"teacher ({teacher['algo']}) of this student: {spread} in {n} episodes when the student was made")
    return notes
