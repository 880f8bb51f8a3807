"""A check that tasks differ: an environment may ignore a parameter without a word."""

from collections.abc import Callable
from dataclasses import replace

from sb3_refine.envs.spec import EnvRecipe
from sb3_refine.envs.task_env import check_spaces
from sb3_refine.errors import RefineError
from sb3_refine.tasks.family import FixedTask, Task

_PLAN = ((0.0, 1), (0.1, 2))  # scale of the perturbation, seed
_NOT_CHECKED = ("env_kwargs.max_episode_steps",)  # an agent that fails early does not come to the end

Run = Callable[..., list[str]]
"""What runs episodes of a recipe to their end and returns a hash of each."""


def check_tasks(recipe: EnvRecipe, run: Run) -> None:
    """
    Run the same episodes with different values of each parameter.

    :param recipe: with a family of tasks
    :param run: see :data:`Run`
    :raises RefineError: when a parameter changes nothing, or the tasks cannot be made
    """
    assert recipe.tasks is not None
    env = recipe.build()
    env.close()
    for name, groups in recipe.tasks.variations().items():
        for task in groups[0]:
            other = replace(recipe, tasks=FixedTask(task)).build()
            other.close()
            check_spaces(other, (env.observation_space, env.action_space), task)
        if name not in _NOT_CHECKED and not any(_differ(recipe, group, run) for group in groups):
            values = [task.parameters for task in groups[0]]
            raise RefineError(
                f"tasks: {name}: the environment ignores it: episodes with {values[0]} and with {values[-1]} are "
                "equal, and so with other values of the other parameters; take it out, or set what switches it on"
            )


def _differ(recipe: EnvRecipe, tasks: list[Task], run: Run) -> bool:
    """Whether any two of the tasks give different episodes."""
    first, *others = (replace(recipe, tasks=FixedTask(task)) for task in tasks)
    expected = run(first, _PLAN)
    return any(run(other, _PLAN) != expected for other in others)
