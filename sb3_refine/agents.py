"""Agents on disk and in memory: Zoo folders, plain zips, loaded models."""

import ast
import hashlib
import inspect
import os
import re
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import gymnasium as gym
import yaml
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize, unwrap_vec_normalize

from sb3_refine.environments import EnvRecipe, current_env_id, parse_wrappers
from sb3_refine.errors import RefineError, did_you_mean
from sb3_refine.legacy import detached, read_model_data, read_vec_normalize, read_zoo_yaml

ALGOS = {
    "a2c": "stable_baselines3.A2C",
    "ddpg": "stable_baselines3.DDPG",
    "ppo": "stable_baselines3.PPO",
    "sac": "stable_baselines3.SAC",
    "td3": "stable_baselines3.TD3",
    "tqc": "sb3_contrib.TQC",
    "trpo": "sb3_contrib.TRPO",
}
"""Algorithms by the Zoo's names."""

NOT_YET = ("ars", "crossq", "dqn", "her", "ppo_lstm", "ppo_mask", "qrdqn")
"""The Zoo's other algorithms, which cannot be refined yet."""


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


@dataclass
class _Files:
    """What lies on disk of an agent."""

    model: Path
    config: Path | None
    args: Path | None
    vec_normalize: Path | None


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
    if algo is not None and algo not in ALGOS:
        if algo in NOT_YET:
            raise RefineError(f"--algo: {algo} agents cannot be refined yet; choose from {', '.join(ALGOS)}")
        raise RefineError(
            f"--algo: unknown algorithm {algo!r}{did_you_mean(algo, ALGOS)}; choose from {', '.join(ALGOS)}"
        )
    if model is not None:
        files, env = _plain_files(Path(model), env, vec_normalize)
    elif algo is None or env is None:
        raise RefineError("--algo and --env: both are needed to find an agent in a folder; or name a zip with --model")
    else:
        which = _model_name(load_best, load_checkpoint, load_last_checkpoint)
        files = _zoo_files(Path(folder), algo, env, exp_id, which)
    config = read_zoo_yaml(files.config) if files.config else {}
    args = read_zoo_yaml(files.args) if files.args else {}
    recipe = _recipe(env, config, args, env_kwargs, gym_packages)
    algo, sb3_model = _load_model(files.model, algo, config, trust_remote_code)
    statistics = _load_statistics(files, config, no_vec_normalize, trust_remote_code)
    observation_space = _check_spaces(recipe, sb3_model, statistics)
    return Agent(
        model=sb3_model,
        algo=algo,
        env_name=(recipe.env_id or env).replace("/", "-"),
        recipe=recipe,
        observation_space=observation_space,
        vec_normalize=statistics,
        config=config,
        args=args,
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
    algo = _algo_of_class(type(model))
    source = model.get_env() if env is None else env
    statistics = unwrap_vec_normalize(source) if isinstance(source, VecEnv) else None
    if statistics is None:
        statistics = model.get_vec_normalize_env()
    if source is None:
        raise RefineError("env: the model was loaded without an environment; pass its id or a callable that makes it")
    recipe = _recipe_from_env(source)
    if statistics is not None:
        statistics = _without_env(statistics)
    observation_space = _check_spaces(recipe, model, statistics)
    return Agent(
        model=model,
        algo=algo,
        env_name=_env_name(recipe),
        recipe=recipe,
        observation_space=observation_space,
        vec_normalize=statistics,
        config=_minimal_config(model, recipe, statistics),
        source={"path": None, "sha256": None},
    )


def new_run_folder(folder: str | Path, algo: str, env_name: str) -> Path:
    """
    Make the folder of a new run, as the Zoo numbers them: nothing is ever overwritten.

    :param folder: the output folder
    :param algo: the Zoo's name of the algorithm
    :param env_name: name of the environment
    :return: ``folder/algo/env_name_K``, K the next free number
    :raises RefineError: when it cannot be written
    """
    parent = Path(folder) / algo
    try:
        parent.mkdir(parents=True, exist_ok=True)
        run_folder = parent / f"{env_name}_{_latest_exp_id(parent, env_name) + 1}"
        run_folder.mkdir()
        (run_folder / env_name).mkdir()
        with tempfile.TemporaryFile(dir=run_folder):
            pass
    except OSError as error:
        raise RefineError(
            f"--output: cannot write to {parent} ({error.strerror or error}); choose another folder with -o"
        ) from error
    return run_folder


def save_agent(agent: Agent, run_folder: str | Path) -> Path:
    """
    Save an agent in the Zoo's layout, so that the Zoo's own tools and plain Stable-Baselines3 run on it.

    :param agent: what to save
    :param run_folder: a folder made by :func:`new_run_folder`
    :return: path of the zip
    """
    run_folder = Path(run_folder)
    inner = run_folder / agent.env_name
    inner.mkdir(exist_ok=True)
    args = {"algo": agent.algo, "env_kwargs": None, **agent.args, "env": agent.env_name}
    _write_yaml(inner / "config.yml", agent.config)
    _write_yaml(inner / "args.yml", args)
    if agent.vec_normalize is not None:
        with atomic_path(inner / "vecnormalize.pkl") as path:
            agent.vec_normalize.save(str(path))
    with atomic_path(run_folder / f"{agent.env_name}.zip") as path:
        agent.model.save(path)
    return run_folder / f"{agent.env_name}.zip"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """
    Write a file whole or not at all: a full disk or a kill leaves the last good copy.

    :param path: where the file shall be
    :return: context manager giving the path to write to, in the same folder and with the same suffix
    """
    temporary = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """
    :param path: a file
    :return: its SHA-256 as hexadecimal digits
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(file)


def _sha256(file: Any) -> str:
    return hashlib.sha256(file.read()).hexdigest()  # Python 3.10


# ---------------------------------------------------------------- files


def _model_name(load_best: bool, load_checkpoint: int | None, load_last_checkpoint: bool) -> str | None:
    if load_best:
        return "best_model.zip"
    if load_checkpoint is not None:
        return f"rl_model_{load_checkpoint}_steps.zip"
    return "last checkpoint" if load_last_checkpoint else None


def _zoo_files(folder: Path, algo: str, env: str, exp_id: int, which: str | None) -> _Files:
    env_name = env.replace("/", "-")
    parent = folder / algo
    if exp_id == 0:
        exp_id = _latest_exp_id(parent, env_name)
    run_folder = parent / f"{env_name}_{exp_id}" if exp_id > 0 else parent
    zip_path = run_folder / (which or f"{env_name}.zip")
    if which == "last checkpoint":
        zip_path = max(run_folder.glob("rl_model_*_steps.zip"), key=_checkpoint_steps, default=run_folder / which)
    if not zip_path.is_file():
        there = sorted(str(path.relative_to(folder)) for path in folder.glob(f"*/{env_name}_[0-9]*"))
        hint = f"there are: {', '.join(there)}" if there else "see -f/--folder, --exp-id and --algo"
        raise RefineError(f"no agent at {zip_path}; {hint}")
    inner = run_folder / env_name
    return _Files(zip_path, *(_if_file(inner / name) for name in ("config.yml", "args.yml", "vecnormalize.pkl")))


def _plain_files(zip_path: Path, env: str | None, vec_normalize: str | Path | None) -> tuple[_Files, str]:
    if not zip_path.is_file():
        raise RefineError(f"--model: no file at {zip_path}")
    names = [env.replace("/", "-")] if env else sorted(p.parent.name for p in zip_path.parent.glob("*/config.yml"))
    if len(names) != 1:
        raise RefineError(f"--env: {zip_path} does not say which environment it is for; name it with --env")
    inner = zip_path.parent / names[0]
    args = _if_file(inner / "args.yml")
    env = env or str(read_zoo_yaml(args).get("env", names[0]) if args else names[0])
    statistics = _if_file(inner / "vecnormalize.pkl") if vec_normalize is None else Path(vec_normalize)
    return _Files(zip_path, _if_file(inner / "config.yml"), args, statistics), env


def _latest_exp_id(parent: Path, env_name: str) -> int:
    pattern = re.compile(re.escape(env_name) + r"_(\d+)")
    found = [pattern.fullmatch(path.name) for path in parent.glob(f"{env_name}_*")]
    return max((int(match.group(1)) for match in found if match), default=0)


def _checkpoint_steps(path: Path) -> int:
    return int(path.stem.split("_")[2])


def _if_file(path: Path) -> Path | None:
    return path if path.is_file() else None


def _write_yaml(path: Path, content: dict[str, Any]) -> None:
    with atomic_path(path) as temporary:
        # the Zoo reads and writes ordered dictionaries
        temporary.write_text(yaml.dump(OrderedDict(sorted(content.items()))))


# ---------------------------------------------------------------- models


def _load_model(
    path: Path, algo: str | None, config: dict[str, Any], trust_remote_code: bool
) -> tuple[str, BaseAlgorithm]:
    data = read_model_data(path, trust_remote_code)
    inferred = _infer_algo(data)
    if inferred not in ALGOS:
        raise RefineError(f"{path}: a {inferred} agent, which cannot be refined yet; choose from {', '.join(ALGOS)}")
    if algo is not None and algo != inferred:
        raise RefineError(f"--algo: {path} holds a {inferred} agent, not {algo}; pass --algo {inferred}")
    cls = _algo_class(inferred)
    _restore_schedules(data, config, cls)
    try:
        # every attribute is handed over, so that SB3 unpickles none itself
        model = cls.load(path, device="cpu", custom_objects=data)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise RefineError(f"{path}: Stable-Baselines3 cannot load it ({type(error).__name__}: {reason})") from error
    broken = [name for name, p in model.policy.named_parameters() if not bool(p.isfinite().all())]
    if broken:
        raise RefineError(f"{path}: NaN or inf in {', '.join(broken)}; choose another checkpoint")
    _check_kind(model)
    return inferred, model


def _algo_class(algo: str) -> type[BaseAlgorithm]:
    module, _, name = ALGOS[algo].rpartition(".")
    return getattr(import_module(module), name)


def _restore_schedules(data: dict[str, Any], config: dict[str, Any], cls: type[BaseAlgorithm]) -> None:
    """
    Put back what training used where the zip does not have it, so that training can go on: loading with schedules of
    0, as the Zoo does to run an agent, leaves them in whatever is saved afterwards.
    """
    for name in ("learning_rate", "clip_range"):
        value = data.get(name)
        if name in data and (value is None or (value(1.0) if callable(value) else value) == 0):
            default = inspect.signature(cls).parameters[name].default
            data[name] = _zoo_schedule(config.get(name, default))


def _zoo_schedule(value: Any) -> Any:
    """The Zoo's ``lin_0.001`` is linear to 0; numbers are constant."""
    if isinstance(value, str) and value.startswith("lin_"):
        return LinearSchedule(float(value.removeprefix("lin_")), 0.0, 1.0)
    return value if callable(value) else float(value)


def _infer_algo(data: dict[str, Any]) -> str:
    """Which algorithm saved a zip: its attributes tell, and the module of its policy where they do not."""
    policy_module = getattr(data.get("policy_class"), "__module__", "")
    for part, algo in (("recurrent", "ppo_lstm"), ("maskable", "ppo_mask"), ("crossq", "crossq"), ("qrdqn", "qrdqn")):
        if part in policy_module:
            return algo
    for key, algo in (
        ("top_quantiles_to_drop_per_net", "tqc"),
        ("n_delta", "ars"),
        ("cg_max_steps", "trpo"),
        ("clip_range", "ppo"),
        ("exploration_fraction", "dqn"),
        ("target_entropy", "sac"),
        ("gae_lambda", "a2c"),
    ):
        if key in data:
            return algo
    if "target_policy_noise" in data:
        # DDPG is TD3 with one critic and no delay
        n_critics = data.get("policy_kwargs", {}).get("n_critics", 2)
        return "ddpg" if data.get("policy_delay") == 1 and n_critics == 1 else "td3"
    raise RefineError("this zip was saved by no algorithm of stable-baselines3 or sb3-contrib that is known here")


def _algo_of_class(cls: type[BaseAlgorithm]) -> str:
    for algo in ALGOS:
        if cls is _algo_class(algo):
            return algo
    raise RefineError(f"model: {cls.__name__} cannot be refined yet; choose from {', '.join(ALGOS)}")


def _check_kind(model: BaseAlgorithm) -> None:
    for name, space in (("observation", model.observation_space), ("action", model.action_space)):
        if not isinstance(space, spaces.Box):
            raise RefineError(f"agents with {type(space).__name__} {name} spaces cannot be refined yet; only Box can")
    if len(model.observation_space.shape or ()) > 1:
        raise RefineError("agents with image observations cannot be refined yet; only vectors can")


# ---------------------------------------------------------------- normalisation


def _load_statistics(
    files: _Files, config: dict[str, Any], no_vec_normalize: bool, trust_remote_code: bool
) -> VecNormalize | None:
    if no_vec_normalize:
        return None
    if files.vec_normalize is not None:
        return read_vec_normalize(files.vec_normalize, trust_remote_code)
    if _normalizes_observations(config.get("normalize", False)):
        raise RefineError(
            f"{files.model}: its config normalises observations, but there is no vecnormalize.pkl; name it with "
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
    return EnvRecipe(
        env_id=current_env_id(env),
        env_kwargs={**stored, **(env_kwargs or {})},
        wrappers=parse_wrappers(config.get("env_wrapper")),
        gym_packages=(*(args.get("gym_packages") or ()), *gym_packages),
    )


def _recipe_from_env(env: str | Callable[[], gym.Env] | VecEnv | gym.Env) -> EnvRecipe:
    if isinstance(env, str):
        return EnvRecipe(current_env_id(env))
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


def _env_name(recipe: EnvRecipe) -> str:
    if recipe.env_id is None:
        env = recipe.build()
        name = env.spec.id if env.spec is not None else type(env.unwrapped).__name__
        env.close()
    else:
        name = recipe.env_id
    return name.replace("/", "-")


def _minimal_config(model: BaseAlgorithm, recipe: EnvRecipe, statistics: VecNormalize | None) -> dict[str, Any]:
    """The part of the Zoo's ``config.yml`` that its tools need to run an agent."""
    config: dict[str, Any] = {"policy": type(model.policy).__name__, "normalize": statistics is not None}
    if recipe.wrappers:
        config["env_wrapper"] = [{name: kwargs} for name, kwargs in recipe.wrappers]
    return config


def _check_spaces(recipe: EnvRecipe, model: BaseAlgorithm, statistics: VecNormalize | None) -> spaces.Space:
    """Build the environment once and hold its spaces against the model's. Bounds may differ, shapes may not."""
    _check_kind(model)
    env = recipe.build()
    try:
        for name, ours, theirs in (
            ("observation", model.observation_space, env.observation_space),
            ("action", model.action_space, env.action_space),
        ):
            if type(ours) is not type(theirs) or ours.shape != theirs.shape:
                raise RefineError(
                    f"--env: the agent's {name} space {ours} does not fit that of {_describe(recipe)}, {theirs}; "
                    "is a wrapper (config.yml), an --env-kwargs or another version of the environment missing?"
                )
        if statistics is not None and statistics.norm_obs:
            obs_rms: Any = statistics.obs_rms
            shape = obs_rms.mean.shape
            if shape != env.observation_space.shape:
                raise RefineError(
                    f"vecnormalize.pkl: its statistics have shape {shape}, the observations "
                    f"{env.observation_space.shape}; name the file that belongs to this agent with --vecnormalize"
                )
        return env.observation_space
    finally:
        env.close()


def _describe(recipe: EnvRecipe) -> str:
    return recipe.env_id or "the given environment"


def remove_if_unused(run_folder: Path) -> None:
    """
    Take back the folder of a run that left nothing.

    :param run_folder: a folder made by :func:`new_run_folder`
    """
    if not any(run_folder.glob("*.zip")):
        shutil.rmtree(run_folder, ignore_errors=True)
