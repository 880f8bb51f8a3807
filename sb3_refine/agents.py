"""Agents on disk and in memory: Zoo folders, plain zips, loaded models."""

import ast
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize, unwrap_vec_normalize

from sb3_refine.environments import EnvRecipe, current_env_id, import_env_package, parse_wrappers
from sb3_refine.errors import RefineError
from sb3_refine.files import atomic_path, sha256
from sb3_refine.legacy import detached, read_model_data, read_vec_normalize, read_zoo_yaml
from sb3_refine.models import (
    algo_of,
    check_algo,
    check_kind,
    load_model,
    shape_of,
    trained_on_normalised_observations,
)
from sb3_refine.zoo import LAST_CHECKPOINT, AgentFiles, find_beside, find_in_folder, write_zoo_yaml

logger = logging.getLogger(__name__)


@dataclass
class Agent:
    """
    A trained agent and all that is needed to run it.

    :param model: the Stable-Baselines3 model
    :param algo: the Zoo's name of its algorithm
    :param env_name: name of its environment, as files are named after it
    :param recipe: builds its environment
    :param observation_space: of the raw environment
    :param vec_normalize: its observation statistics without an environment, or None
    :param config: the Zoo's ``config.yml``
    :param args: the Zoo's ``args.yml``
    :param source: where it came from
    """

    model: BaseAlgorithm
    algo: str
    env_name: str
    recipe: EnvRecipe
    observation_space: spaces.Space
    vec_normalize: VecNormalize | None = None
    config: dict[str, Any] = field(default_factory=dict)
    args: dict[str, Any] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)


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
) -> Agent:
    """
    Load a trained agent from a folder of the RL Zoo, or from a plain zip. Agents saved with the legacy ``gym`` load
    without it, and nothing in their files is run.

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
    :param gym_packages: modules to import first, to register environments
    :param no_vec_normalize: go on without the statistics that the agent's config asks for
    :param trust_remote_code: unpickle whatever the files hold; it can run any code
    :return: the agent
    :raises RefineError: with one line that says what is wrong and what to do
    """
    if algo is not None:
        check_algo(algo)
    if model is not None:
        files = find_beside(Path(model), env, None if vec_normalize is None else Path(vec_normalize))
    elif algo is None or env is None:
        raise RefineError("--algo and --env: both are needed to find an agent in a folder; or name a zip with --model")
    else:
        zip_name = _zip_name(load_best, load_checkpoint, load_last_checkpoint)
        files = find_in_folder(Path(folder), algo, env, exp_id, zip_name)
        if vec_normalize is not None:
            files = replace(files, vec_normalize=Path(vec_normalize))
    config = read_zoo_yaml(files.config) if files.config else {}
    args = read_zoo_yaml(files.args) if files.args else {}
    recipe = _recipe(files.env, config, args, env_kwargs, gym_packages)
    data = read_model_data(files.model, trust_remote_code)
    observation_space, action_space = _spaces_of(recipe)
    algo, sb3_model = load_model(files.model, data, algo, config, observation_space)
    needs_statistics = trained_on_normalised_observations(data) or _normalizes_observations(config.get("normalize"))
    statistics = _load_statistics(files, needs_statistics, no_vec_normalize, trust_remote_code)
    _check_fit(sb3_model, statistics, observation_space, action_space, recipe)
    return Agent(
        model=sb3_model,
        algo=algo,
        env_name=(recipe.env_id or files.env).replace("/", "-"),
        recipe=recipe,
        observation_space=observation_space,
        vec_normalize=statistics,
        config={**config, "normalize": (config.get("normalize") or True) if statistics is not None else False},
        args={
            **args,
            "env": recipe.env_id,
            "env_kwargs": recipe.env_kwargs or None,
            "gym_packages": list(recipe.gym_packages),
        },
        source={"path": str(files.model), "sha256": sha256(files.model)},
    )


def agent_from_model(model: BaseAlgorithm, env: str | Callable[[], gym.Env] | VecEnv | gym.Env | None = None) -> Agent:
    """
    Wrap a model in memory. The model itself is used, not a copy.

    :param model: a Stable-Baselines3 model
    :param env: id of its environment, a callable that makes the raw environment, a ``VecEnv`` (its ``VecNormalize``
        statistics are kept), an environment made by ``gymnasium.make``, or None for the model's own
    :return: the agent
    :raises RefineError: when the environment cannot be built again in another process
    """
    algo = algo_of(model)
    check_kind(model.observation_space, model.action_space)
    source = model.get_env() if env is None else env
    statistics = unwrap_vec_normalize(source) if isinstance(source, VecEnv) else None
    if statistics is None:
        statistics = model.get_vec_normalize_env()
    if source is None:
        raise RefineError("env: the model was loaded without an environment; pass its id or a callable that makes it")
    if statistics is not None:
        statistics = _without_env(statistics)
    recipe = _recipe_from_env(source)
    built = recipe.build()
    try:
        _check_fit(model, statistics, built.observation_space, built.action_space, recipe)
        spec = built.spec
        return Agent(
            model=model,
            algo=algo,
            env_name=(spec.id if spec is not None else type(built.unwrapped).__name__).replace("/", "-"),
            recipe=recipe,
            observation_space=built.observation_space,
            vec_normalize=statistics,
            config=_minimal_config(model, spec, statistics),
            args={
                "env": spec.id if spec is not None else None,
                "env_kwargs": _plain(dict(spec.kwargs)) if spec is not None and spec.kwargs else None,
            },
            source={"path": None, "sha256": None},
        )
    finally:
        built.close()


def save_agent(agent: Agent, run_folder: str | Path) -> Path:
    """
    Save an agent in the Zoo's layout, so that the Zoo's own tools and plain Stable-Baselines3 run on it.

    :param agent: what to save
    :param run_folder: a folder, such as :func:`~sb3_refine.zoo.new_run_folder` makes
    :return: path of the zip
    """
    run_folder = Path(run_folder)
    inner = run_folder / agent.env_name
    inner.mkdir(parents=True, exist_ok=True)
    write_zoo_yaml(inner / "config.yml", agent.config)
    write_zoo_yaml(inner / "args.yml", {"env": agent.env_name, "env_kwargs": None, **agent.args, "algo": agent.algo})
    if agent.vec_normalize is not None:
        with atomic_path(inner / "vecnormalize.pkl") as path:
            agent.vec_normalize.save(str(path))
    with atomic_path(run_folder / f"{agent.env_name}.zip") as path:
        agent.model.save(path)
    return run_folder / f"{agent.env_name}.zip"


def _zip_name(load_best: bool, load_checkpoint: int | None, load_last_checkpoint: bool) -> str | None:
    if load_best:
        return "best_model.zip"
    if load_checkpoint is not None:
        return f"rl_model_{load_checkpoint}_steps.zip"
    return LAST_CHECKPOINT if load_last_checkpoint else None


# ---------------------------------------------------------------- normalisation


def _load_statistics(
    files: AgentFiles, needed: bool, no_vec_normalize: bool, trust_remote_code: bool
) -> VecNormalize | None:
    if files.vec_normalize is not None:
        return read_vec_normalize(files.vec_normalize, trust_remote_code)
    if needed and not no_vec_normalize:
        raise RefineError(
            f"{files.model}: it was trained on normalised observations, but there is no vecnormalize.pkl; name it with "
            "--vecnormalize, or go on without it with --no-vecnormalize"
        )
    return None


def _normalizes_observations(normalize: Any) -> bool:
    """The Zoo's ``normalize``: a truth value, or keyword arguments of VecNormalize as a mapping or as text."""
    if isinstance(normalize, str):
        normalize = _literal_kwargs(normalize)
    if isinstance(normalize, dict):
        return bool(normalize.get("norm_obs", True))
    return bool(normalize)


def _literal_kwargs(text: str) -> Any:
    """``"{'a': 1}"`` or ``"dict(a=1)"`` without running it."""
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
            return {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords}
        return ast.literal_eval(node)
    except (SyntaxError, ValueError) as error:
        raise RefineError(f"config.yml: normalize: expected literal keyword arguments, got {text!r}") from error


def _without_env(vec_normalize: VecNormalize) -> VecNormalize:
    """A copy without its environment: pickling leaves the environment behind."""
    copy = VecNormalize.__new__(VecNormalize)
    copy.__setstate__(vec_normalize.__getstate__())
    return detached(copy)


# ---------------------------------------------------------------- environments


def _recipe(
    env: str,
    config: dict[str, Any],
    args: dict[str, Any],
    env_kwargs: dict[str, Any] | None,
    gym_packages: tuple[str, ...] | list[str],
) -> EnvRecipe:
    for key in ("frame_stack", "vec_env_wrapper"):
        if config.get(key):
            raise RefineError(f"config.yml: agents with {key} cannot be refined yet")
    stored = args.get("env_kwargs") or config.get("env_kwargs") or {}
    if not isinstance(stored, dict):
        raise RefineError(f"args.yml: env_kwargs: expected a mapping, got {stored!r}")
    env_id = current_env_id(env)
    if env_id != env:
        logger.info("%s is called %s today, and is saved under that name", env, env_id)
    wanted = [package for package in args.get("gym_packages") or () if package not in gym_packages]
    if wanted:
        raise RefineError(
            f"args.yml: the agent wants {', '.join(wanted)} imported to register its environment; "
            f"if you trust its author, pass --gym-packages {' '.join(wanted)}"
        )
    return EnvRecipe(
        env_id=env_id,
        env_kwargs={**stored, **(env_kwargs or {})},
        wrappers=parse_wrappers(config.get("env_wrapper")),
        gym_packages=tuple(gym_packages),
    )


def _recipe_from_env(env: str | Callable[[], gym.Env] | VecEnv | gym.Env) -> EnvRecipe:
    if isinstance(env, str):
        env_id = current_env_id(env)
        import_env_package(env_id)
        return EnvRecipe(env_id, make=_SpecMaker(gym.spec(env_id)))  # the caller's script may have registered it
    if isinstance(env, (VecEnv, gym.Env)):
        return _recipe_from_instance(env)
    if callable(env):
        return EnvRecipe(None, make=env)
    raise RefineError(f"env: expected an id, a callable, a VecEnv or an environment, got {type(env).__name__}")


def _recipe_from_instance(env: VecEnv | gym.Env) -> EnvRecipe:
    """A recipe from a living environment, through the spec and the wrappers that gymnasium records."""
    way_out = "pass a callable that makes the raw environment, or its id"
    while isinstance(env, VecEnv) and not isinstance(env, DummyVecEnv):
        if not isinstance(env, VecNormalize):
            raise RefineError(f"env: a {type(env).__name__} cannot be built again in a worker; {way_out}")
        env = env.venv
    inner: Any = env.envs[0] if isinstance(env, DummyVecEnv) else env
    wrappers: list[tuple[str, dict[str, Any]]] = []
    while isinstance(inner, gym.Wrapper) and type(inner).__module__.split(".")[0] != "gymnasium":
        name = f"{type(inner).__module__}.{type(inner).__qualname__}"
        if name == "sb3_contrib.common.wrappers.time_feature.TimeFeatureWrapper":
            wrappers.insert(0, (name, _time_feature_kwargs(inner)))
        elif name != "stable_baselines3.common.monitor.Monitor":
            raise RefineError(f"env: the wrapper {name} cannot be built again in a worker; {way_out}")
        inner = inner.env
    spec = inner.spec
    if spec is None:
        raise RefineError(f"env: {type(inner).__name__} was not made by gymnasium.make; {way_out}")
    return EnvRecipe(spec.id, wrappers=tuple(wrappers), make=_SpecMaker(spec))


def _time_feature_kwargs(wrapper: Any) -> dict[str, Any]:
    return {"max_steps": wrapper._max_steps, "test_mode": wrapper._test_mode}


@dataclass(frozen=True)
class _SpecMaker:
    """Makes an environment from its gymnasium spec."""

    spec: Any

    def __call__(self) -> gym.Env:
        return gym.make(self.spec)


def _minimal_config(model: BaseAlgorithm, spec: Any, statistics: VecNormalize | None) -> dict[str, Any]:
    """The part of the Zoo's ``config.yml`` that its tools need to run an agent."""
    aliases = {cls: name for name, cls in model.policy_aliases.items()}
    config: dict[str, Any] = {
        "policy": aliases.get(type(model.policy), "MlpPolicy"),
        "normalize": statistics is not None,
    }
    wrappers = (
        [] if spec is None else [(w.entry_point.replace(":", "."), _plain(w.kwargs)) for w in spec.additional_wrappers]
    )
    if wrappers and all(kwargs is not None for _, kwargs in wrappers):
        config["env_wrapper"] = [{name: kwargs} for name, kwargs in wrappers]
    return config


def _plain(value: Any) -> Any:
    """numpy's numbers and arrays as YAML's own."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def _spaces_of(recipe: EnvRecipe) -> tuple[spaces.Space, spaces.Space]:
    env = recipe.build()
    env.close()
    return env.observation_space, env.action_space


def _check_fit(
    model: BaseAlgorithm,
    statistics: VecNormalize | None,
    observation_space: spaces.Space,
    action_space: spaces.Space,
    recipe: EnvRecipe,
) -> None:
    """Hold the environment's spaces against the model's. Bounds may differ, shapes may not."""
    for name, ours, theirs in (
        ("observation", model.observation_space, observation_space),
        ("action", model.action_space, action_space),
    ):
        if shape_of(ours) != shape_of(theirs):
            raise RefineError(
                f"--env: the agent's {name} space {ours} does not fit that of {recipe.env_id or 'the environment'}, "
                f"{theirs}; is a wrapper (config.yml), an --env-kwargs or another version of the environment missing?"
            )
    if statistics is not None and statistics.norm_obs:
        obs_rms: Any = statistics.obs_rms
        shape: Any = {**shape_of(observation_space)} if isinstance(obs_rms, dict) else obs_rms.mean.shape
        if isinstance(obs_rms, dict):
            shape.update({key: part.mean.shape for key, part in obs_rms.items()})
        if shape != shape_of(observation_space):
            raise RefineError(
                f"vecnormalize.pkl: its statistics have shape {shape}, the observations {shape_of(observation_space)}; "
                "name the file that belongs to this agent with --vecnormalize"
            )
