"""Agents from the folders of the RL Zoo, from the Hub, and from plain zips."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.vec_env import VecNormalize

from sb3_refine.agents.agent import Agent, check_fit
from sb3_refine.agents.decoding.model_zip import StoredModel, read_model
from sb3_refine.agents.decoding.statistics import read_vec_normalize
from sb3_refine.agents.hub import find_agent
from sb3_refine.agents.sb3_models import check_algo, check_identity, fits, load_model, trained_under_vec_normalize
from sb3_refine.agents.tasks import Tasks, with_tasks
from sb3_refine.agents.zoo import LAST_CHECKPOINT, AgentFiles, expected_return, find_beside, read_args
from sb3_refine.agents.zoo_config import normalizes_observations, read_config, recipe_of, vec_wrappers_of
from sb3_refine.envs.spec import GOAL_IN_OBSERVATION, EnvRecipe
from sb3_refine.errors import RefineError
from sb3_refine.files import sha256

logger = logging.getLogger(__name__)


def load_agent(
    algo: str | None = None,
    env: str | None = None,
    folder: str | Path = "rl-trained-agents",
    *,
    exp_id: int = 0,
    load_best: bool = False,
    load_checkpoint: int | None = None,
    load_last_checkpoint: bool = False,
    model: str | Path | None = None,
    vec_normalize: str | Path | None = None,
    env_kwargs: dict[str, Any] | None = None,
    gym_packages: tuple[str, ...] | list[str] = (),
    no_vec_normalize: bool = False,
    trust_remote_code: bool = False,
    organization: str | None = None,
    repo_name: str | None = None,
    revision: str | None = None,
    end_at_success: bool = True,
    tasks: Tasks | None = None,
) -> Agent:
    """
    Load a trained agent from a folder of the RL Zoo, from the Hub, or from a plain zip. Agents saved with the legacy
    ``gym`` load without it, and no code in their files is run. Modules that ``config.yml`` and ``args.yml`` name are
    imported if an installed package that depends on gymnasium or Stable-Baselines3 has them, or if they are named in
    ``gym_packages``.

    >>> import sb3_refine
    >>> agent = load_agent("ppo", "Pendulum-v1", Path(sb3_refine.__file__).parent / "demo")
    >>> print(agent.algo, agent.env_id, type(agent.model).__name__)
    ppo Pendulum-v1 PPO

    :param algo: the Zoo's name of the algorithm; may be left out with ``model``
    :param env: id of the environment it was trained on; may be left out with ``model`` inside a Zoo folder
    :param folder: the Zoo's log folder
    :param exp_id: number of the experiment; 0: the newest, -1: no experiment folder
    :param load_best: load the best model instead of the last
    :param load_checkpoint: load the checkpoint of this many time steps instead of the last model
    :param load_last_checkpoint: load the last checkpoint instead of the last model
    :param model: a plain zip, instead of a folder
    :param vec_normalize: its ``vecnormalize.pkl``; found by itself inside a Zoo folder
    :param env_kwargs: keyword arguments of the environment, over those of the agent's ``config.yml`` and ``args.yml``
    :param gym_packages: modules to import first, to register environments; wrappers may be imported from them, too
    :param no_vec_normalize: go on without the statistics that the agent's config asks for
    :param trust_remote_code: unpickle what cannot be read as data, which can run any code of the agent's author
    :param organization: pull from this organization on the Hub; None: from the Zoo's, if the folder has no such agent
    :param repo_name: pull from this repo of the organization; None: ``ALGO-ENV``
    :param revision: pull this branch, tag or commit; None: the newest
    :param end_at_success: whether episodes end when the environment says so on success; if not, the goal has to be held
    :param tasks: put the agent into a family of tasks, see :func:`~sb3_refine.agents.tasks.with_tasks`
    :return: the agent
    :raises RefineError: with one line that says what is wrong and what to do
    """
    if algo is not None:
        check_algo(algo)
    if model is not None:
        if organization or repo_name or revision:
            raise RefineError("model: a zip is not pulled: leave out `organization`, `repo_name` and `revision`")
        statistics_path = None if vec_normalize is None else Path(vec_normalize)
        files = find_beside(Path(model), env, statistics_path, gym_packages)
    elif algo is None or env is None:
        raise RefineError("algo, env: both are needed to find an agent in a folder; or name a zip with `model`")
    else:
        zip_name = _zip_name(load_best, load_checkpoint, load_last_checkpoint)
        hub = {"organization": organization, "repo_name": repo_name, "revision": revision}
        files = find_agent(Path(folder), algo, env, exp_id, zip_name, **hub)
        if vec_normalize is not None:
            files = replace(files, vec_normalize=Path(vec_normalize), chosen_statistics=True)
    config = read_config(files.config) if files.config else {}
    args = read_args(files)
    recipe = recipe_of(files.env, config, args, env_kwargs, gym_packages)
    recipe = replace(recipe, end_at_success=end_at_success)
    if trust_remote_code:
        logger.warning(
            "trust_remote_code: %s and the files beside it are unpickled where they cannot be read as data: their "
            "author's code runs with your rights",
            files.model,
        )
    stored = read_model(files.model, trust_remote_code)
    check_identity(stored, algo)
    statistics = _load_statistics(files, stored, config, no_vec_normalize, trust_remote_code)
    return with_tasks(_agent_of(files, stored, statistics, config, args, recipe), tasks)


def _agent_of(
    files: AgentFiles,
    stored: StoredModel,
    statistics: VecNormalize | None,
    config: dict[str, Any],
    args: dict[str, Any],
    recipe: EnvRecipe,
) -> Agent:
    """The agent in its environment, from files that have been read."""
    recipe = replace(recipe, vec_wrappers=vec_wrappers_of(config, statistics, recipe.gym_packages))
    observation_space, action_space = _spaces_of(recipe)
    if stored.has_goal_in_observation and isinstance(observation_space, spaces.Dict):
        recipe = replace(recipe, wrappers=(*recipe.wrappers, (GOAL_IN_OBSERVATION, {})))
        observation_space, action_space = _spaces_of(recipe)
    model = load_model(stored, config, observation_space)
    check_fit(model, statistics, observation_space, action_space, recipe)
    if statistics is not None and fits(statistics.observation_space, model.observation_space):
        # so that both accept the environment of today for further training
        statistics.observation_space, statistics.action_space = model.observation_space, model.action_space
    wrappers = {"env_wrapper": [{name: kwargs} for name, kwargs in recipe.wrappers]} if recipe.wrappers else {}
    normalize = (config.get("normalize") or True) if statistics is not None else False
    env_args = {
        "env": recipe.env_id,
        "env_kwargs": recipe.env_kwargs or None,
        "gym_packages": list(recipe.gym_packages),
    }
    return Agent(
        model=model,
        algo=stored.algo,
        env_name=(recipe.env_id or files.env).replace("/", "-"),
        recipe=recipe,
        observation_space=observation_space,
        vec_normalize=statistics,
        config={**config, **wrappers, "normalize": normalize},
        args={**args, **env_args},
        source={**files.source, "path": str(files.model), "sha256": sha256(files.model)},
        expected_return=expected_return(files),
    )


def _zip_name(load_best: bool, load_checkpoint: int | None, load_last_checkpoint: bool) -> str | None:
    if load_best:
        return "best_model.zip"
    if load_checkpoint is not None:
        return f"rl_model_{load_checkpoint}_steps.zip"
    return LAST_CHECKPOINT if load_last_checkpoint else None


# ---------------------------------------------------------------- normalisation


def _load_statistics(
    files: AgentFiles, stored: StoredModel, config: dict[str, Any], no_vec_normalize: bool, trust_remote_code: bool
) -> VecNormalize | None:
    if no_vec_normalize or (config.get("normalize") is False and not files.chosen_statistics):
        return None
    if files.vec_normalize is not None:
        return read_vec_normalize(files.vec_normalize, trust_remote_code)
    if normalizes_observations(config.get("normalize")):
        raise RefineError(
            f"{files.model}: it was trained on normalised observations, but there is no vecnormalize.pkl; name it with "
            "`vec_normalize`, or go on without it with `no_vec_normalize=True`"
        )
    if not config and trained_under_vec_normalize(stored):
        raise RefineError(
            f"{files.model}: it was trained under VecNormalize, but there is no vecnormalize.pkl; name it with "
            "`vec_normalize`, or if it normalised no observations, go on without it with `no_vec_normalize=True`"
        )
    return None


def _spaces_of(recipe: EnvRecipe) -> tuple[spaces.Space, spaces.Space]:
    env = recipe.build()
    env.close()
    return env.observation_space, env.action_space
