"""Agents in a family of tasks."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from sb3_refine.agents.agent import Agent, check_fit
from sb3_refine.agents.decoding.zoo_yaml import read_zoo_yaml
from sb3_refine.agents.imports import check_importable
from sb3_refine.agents.zoo_config import check_stored_arguments
from sb3_refine.errors import RefineError
from sb3_refine.files import atomic_path, reraise_write_errors
from sb3_refine.tasks.family import TaskDistribution, TaskFamily, family_of_tasks

FILE_NAME = "tasks.yml"

Tasks = str | Path | Mapping[str, Any] | Callable[[np.random.Generator], Mapping[str, Any]] | TaskFamily
"""A file, its content, a function that draws a task, or a family."""


def with_tasks(agent: Agent, tasks: Tasks | None) -> Agent:
    """
    Put an agent into a family of tasks: each episode is one of them, as its seed decides.

    >>> import sb3_refine
    >>> agent = sb3_refine.load_agent("ppo", "Pendulum-v1", Path(sb3_refine.__file__).parent / "demo")
    >>> agent = with_tasks(agent, {"env_kwargs": {"g": {"uniform": [8, 12]}}})
    >>> 8 <= agent.recipe.tasks.task(seed=1).parameters["g"] <= 12
    True

    :param agent: any
    :param tasks: a YAML file, its content as a mapping (see :class:`~sb3_refine.tasks.family.TaskDistribution`), a
        function (see :class:`~sb3_refine.tasks.family.TaskFunction`), a family; or None for the agent as it is
    :return: the agent in these tasks
    :raises RefineError: when the file or the tasks are wrong, or the agent does not fit the environments
    """
    if tasks is None:
        return agent
    if isinstance(tasks, (str, Path)):
        tasks = read_tasks(Path(tasks))
    family = family_of_tasks(tasks)
    if "render_mode" in family.task(0).env_kwargs:
        raise RefineError("tasks: env_kwargs: render_mode: rollouts show nothing; take it out")
    if isinstance(family, TaskDistribution):
        for wrapper in family.settings.get("env_wrapper", {}):
            check_importable(wrapper.rpartition(".")[0], "tasks: env_wrapper", agent.recipe.gym_packages)
    recipe = replace(agent.recipe, tasks=family)
    env = recipe.build()
    env.close()
    check_fit(agent.model, agent.vec_normalize, env.observation_space, env.action_space, recipe)
    return replace(agent, recipe=recipe, expected_return=None)


def check_stored_tasks(content: Any) -> None:
    """
    Check tasks from a file that the user did not name: of an agent, or of an interrupted run.

    :param content: as for :class:`~sb3_refine.tasks.family.TaskDistribution`
    :raises RefineError: for paths and very large numbers
    """
    for path, value in TaskDistribution(content).leaves():
        check_stored_arguments(f"tasks: {'.'.join(path)}", value, "name the file with `tasks` if you trust it")


def without_tasks(agent: Agent) -> Agent:
    """
    :param agent: any
    :return: the agent in the environment that it was trained in
    """
    return replace(agent, recipe=replace(agent.recipe, tasks=None))


def write_tasks(run_folder: Path, agent: Agent) -> None:
    """
    Write ``tasks.yml``, for commands that run the agent again; nothing where there are no tasks, or they came from a
    function.

    :param run_folder: where to
    :param agent: in its tasks
    :raises RefineError: when the file cannot be written
    """
    family = agent.recipe.tasks
    if family is not None and isinstance(family.settings, dict):
        with reraise_write_errors(FILE_NAME, run_folder), atomic_path(run_folder / FILE_NAME) as path:
            path.write_text(yaml.safe_dump(family.settings, sort_keys=False))


def read_tasks(path: Path) -> dict[str, Any]:
    """
    :param path: a YAML file
    :return: its content
    :raises RefineError: when it cannot be read
    """
    try:
        is_file = path.is_file()
    except OSError:
        is_file = False
    if not is_file:
        raise RefineError(f"tasks: there is no file {path}; name a YAML file")
    try:
        return read_zoo_yaml(path)
    except RefineError as error:
        raise RefineError(f"tasks: {error}") from None
