"""Agents on disk and in memory: Zoo folders, plain zips, loaded models."""

import logging
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium import spaces
from gymnasium.envs.registration import WrapperSpec, load_env_creator
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
    unwrap_vec_normalize,
)

from sb3_refine.decoding.literals import literal
from sb3_refine.decoding.model_zip import StoredModel, read_model
from sb3_refine.decoding.pickle_tree import DecodingError
from sb3_refine.decoding.statistics import detached, read_vec_normalize
from sb3_refine.decoding.zoo_expressions import without_code
from sb3_refine.decoding.zoo_yaml import read_zoo_yaml
from sb3_refine.environments import (
    GOAL_IN_OBSERVATION,
    EnvRecipe,
    VecWrapper,
    changes_since,
    check_stored_arguments,
    current_env_id,
    import_env_package,
    parse_wrappers,
)
from sb3_refine.errors import RefineError, check_count
from sb3_refine.files import atomic_path, sha256, told_if_unwritable
from sb3_refine.hub import find_agent
from sb3_refine.imports import check_importable
from sb3_refine.models import (
    algo_of,
    check_algo,
    check_identity,
    fits,
    load_model,
    shape_of,
    trained_under_vec_normalize,
)
from sb3_refine.zoo import (
    LAST_CHECKPOINT,
    AgentFiles,
    ExpectedReturn,
    expected_return,
    find_beside,
    read_args,
    write_zoo_yaml,
)

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
    :param expected_return: what its own ``evaluations.npz`` says of its mean return, or None
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
    expected_return: ExpectedReturn | None = None

    @property
    def statistics(self) -> VecNormalize | None:
        """What the policy has to normalise observations with: None where the recipe does it already."""
        return _left_to_the_policy(self.vec_normalize, self.recipe)


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
) -> Agent:
    """
    Load a trained agent from a folder of the RL Zoo, from the Hub, or from a plain zip. Agents saved with the legacy
    ``gym`` load without it, and no code in their files is run. Modules that ``config.yml`` and ``args.yml`` name are
    imported if an installed package that depends on gymnasium or Stable-Baselines3 has them, or if they are named in
    ``gym_packages``.

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
    :return: the agent
    :raises RefineError: with one line that says what is wrong and what to do
    """
    if algo is not None:
        check_algo(algo)
    if model is not None:
        if organization or repo_name or revision:
            raise RefineError(
                "a zip named with --model is not pulled: leave out --organization, --repo-name, --revision"
            )
        statistics_path = None if vec_normalize is None else Path(vec_normalize)
        files = find_beside(Path(model), env, statistics_path, gym_packages)
    elif algo is None or env is None:
        raise RefineError("--algo and --env: both are needed to find an agent in a folder; or name a zip with --model")
    else:
        zip_name = _zip_name(load_best, load_checkpoint, load_last_checkpoint)
        hub = {"organization": organization, "repo_name": repo_name, "revision": revision}
        files = find_agent(Path(folder), algo, env, exp_id, zip_name, **hub)
        if vec_normalize is not None:
            files = replace(files, vec_normalize=Path(vec_normalize), chosen_statistics=True)
    config = _read_config(files.config) if files.config else {}
    args = read_args(files)
    recipe = _recipe(files.env, config, args, env_kwargs, gym_packages)
    if trust_remote_code:
        logger.warning(
            "trust_remote_code: %s and the files beside it are unpickled where they cannot be read as data: their "
            "author's code runs with your rights",
            files.model,
        )
    stored = read_model(files.model, trust_remote_code)
    check_identity(stored, algo)
    statistics = _load_statistics(files, stored, config, no_vec_normalize, trust_remote_code)
    vec_wrappers = _vec_wrappers(config, statistics, recipe.gym_packages)
    recipe = replace(recipe, vec_wrappers=vec_wrappers, end_at_success=end_at_success)
    observation_space, action_space = _spaces_of(recipe)
    if stored.has_goal_in_observation and isinstance(observation_space, spaces.Dict):
        recipe = replace(recipe, wrappers=(*recipe.wrappers, (GOAL_IN_OBSERVATION, {})))
        observation_space, action_space = _spaces_of(recipe)
    sb3_model = load_model(stored, config, observation_space)
    _check_fit(sb3_model, statistics, observation_space, action_space, recipe)
    if statistics is not None and fits(statistics.observation_space, sb3_model.observation_space):
        # so that both accept the environment of today for further training
        statistics.observation_space, statistics.action_space = sb3_model.observation_space, sb3_model.action_space
    return Agent(
        model=sb3_model,
        algo=stored.algo,
        env_name=(recipe.env_id or files.env).replace("/", "-"),
        recipe=recipe,
        observation_space=observation_space,
        vec_normalize=statistics,
        config={
            **config,
            **({"env_wrapper": [{name: kwargs} for name, kwargs in recipe.wrappers]} if recipe.wrappers else {}),
            "normalize": (config.get("normalize") or True) if statistics is not None else False,
        },
        args={
            **args,
            "env": recipe.env_id,
            "env_kwargs": recipe.env_kwargs or None,
            "gym_packages": list(recipe.gym_packages),
        },
        source={**files.source, "path": str(files.model), "sha256": sha256(files.model)},
        expected_return=expected_return(files),
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
            config=_minimal_config(model, spec, statistics, recipe),
            args={"env": spec.id if spec is not None else None, "env_kwargs": _env_kwargs(spec)},
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
    :raises RefineError: when it cannot be written
    """
    run_folder = Path(run_folder)
    inner = run_folder / agent.env_name
    args = {"env": agent.env_name, "env_kwargs": None, **agent.args, "algo": agent.algo}
    with told_if_unwritable("the agent", run_folder):
        inner.mkdir(parents=True, exist_ok=True)
        write_zoo_yaml(inner / "config.yml", agent.config)
        write_zoo_yaml(inner / "args.yml", args)
        if agent.vec_normalize is not None:
            with atomic_path(inner / "vecnormalize.pkl") as path:
                agent.vec_normalize.save(str(path))
        with atomic_path(run_folder / f"{agent.env_name}.zip") as path:
            agent.model.save(path)
    return run_folder / f"{agent.env_name}.zip"


def _read_config(path: Path) -> dict[str, Any]:
    """The Zoo's ``config.yml``, in which nothing is left that the Zoo would run when it reads what is saved here."""
    config = read_zoo_yaml(path)
    _normalizes_observations(config.get("normalize"))  # checks that a text is a literal, which is then saved as it is
    return without_code(config)


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
    if _normalizes_observations(config.get("normalize")):
        raise RefineError(
            f"{files.model}: it was trained on normalised observations, but there is no vecnormalize.pkl; name it with "
            "--vecnormalize, or go on without it with --no-vecnormalize"
        )
    if not config and trained_under_vec_normalize(stored):
        raise RefineError(
            f"{files.model}: it was trained under VecNormalize, but there is no vecnormalize.pkl; name it with "
            "--vecnormalize, or if it normalised no observations, go on without it with --no-vecnormalize"
        )
    return None


def _normalizes_observations(normalize: Any) -> bool:
    """
    The Zoo's ``normalize``: a truth value, or keyword arguments of VecNormalize as a mapping or as text.

    :raises RefineError: when the text is no literal
    """
    if isinstance(normalize, str):
        try:
            normalize = literal(normalize)
        except DecodingError as error:
            raise RefineError(f"config.yml: normalize: {error}") from None
    if isinstance(normalize, dict):
        return bool(normalize.get("norm_obs", True))
    return bool(normalize)


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
    stored: dict[str, Any] = {}
    for name, content in (("config.yml", config), ("args.yml", args)):
        kwargs = content.get("env_kwargs") or {}
        if not isinstance(kwargs, dict) or not all(isinstance(key, str) for key in kwargs):
            raise RefineError(f"{name}: env_kwargs: expected a mapping of names to values, got {kwargs!r}")
        stored.update(kwargs)
    stored.pop("render_mode", None)  # rollouts show nothing
    stored = {name: value for name, value in stored.items() if name not in (env_kwargs or {})}
    for name, value in stored.items():
        remedy = f"if you trust it, pass --env-kwargs {shlex.quote(name)}:VALUE"
        check_stored_arguments(f"env_kwargs: {name}", value, remedy)
    env_id = current_env_id(env)
    if env_id != env:
        logger.info("%s is called %s today, and is saved under that name", env, env_id)
    kwargs_then, wrappers_then = changes_since(env)
    named_by_user = tuple(gym_packages)
    wanted = args.get("gym_packages") or []
    if not isinstance(wanted, list) or not all(isinstance(package, str) for package in wanted):
        raise RefineError(f"args.yml: gym_packages: expected a list of modules, got {wanted!r}")
    wrappers = parse_wrappers(config.get("env_wrapper"))
    for package in wanted:
        check_importable(package, "args.yml: gym_packages", named_by_user)
    for name, wrapper_kwargs in wrappers:
        check_importable(name.rpartition(".")[0], "config.yml: env_wrapper", named_by_user)
        check_stored_arguments(f"config.yml: env_wrapper: {name}", wrapper_kwargs)
    return EnvRecipe(
        env_id=env_id,
        env_kwargs={**kwargs_then, **stored, **(env_kwargs or {})},
        wrappers=wrappers_then + wrappers,
        gym_packages=tuple(dict.fromkeys((*named_by_user, *wanted))),
    )


def _recipe_from_env(env: str | Callable[[], gym.Env] | VecEnv | gym.Env) -> EnvRecipe:
    if isinstance(env, str):
        env_id = current_env_id(env)
        import_env_package(env_id)
        return EnvRecipe(env_id, make=_maker(gym.spec(env_id)))  # the caller's script may have registered it
    if isinstance(env, (VecEnv, gym.Env)):
        return _recipe_from_instance(env)
    if callable(env):
        return EnvRecipe(None, make=env)
    raise RefineError(f"env: expected an id, a callable, a VecEnv or an environment, got {type(env).__name__}")


_WAY_OUT = "pass a callable that makes the raw environment, or its id"
_TIME_FEATURE = "sb3_contrib.common.wrappers.time_feature:TimeFeatureWrapper"
_MONITOR = "stable_baselines3.common.monitor:Monitor"
_TRUE_RETURN = "sb3_refine.wrappers:TrueReturn"
_VECTORISED = "sb3_refine.wrappers:Vectorised"


def _recipe_from_instance(env: VecEnv | gym.Env) -> EnvRecipe:
    """A recipe from a living environment, through the spec and the wrappers that gymnasium records."""
    vec_wrappers: list[Callable[[Any], Any]] = []
    while isinstance(env, VecEnvWrapper):
        if isinstance(env, VecNormalize):
            vec_wrappers.insert(0, Normalised(_without_env(env)))
        elif isinstance(env, VecFrameStack):
            vec_wrappers.insert(0, _frame_stack(env.stacked_obs))
        elif not isinstance(env, (VecTransposeImage, VecMonitor)):  # predict transposes itself
            raise RefineError(f"env: a {type(env).__name__} cannot be built again in a worker; {_WAY_OUT}")
        env = env.venv
    if vec_wrappers and isinstance(vec_wrappers[-1], Normalised):  # left to the policy
        vec_wrappers.pop()
    specs = env.get_attr("spec") if isinstance(env, VecEnv) else [env.spec]
    if any(spec != specs[0] for spec in specs):
        raise RefineError(f"env: its {len(specs)} environments differ; {_WAY_OUT}")
    spec = specs[0]
    if spec is None:
        inner = env.get_attr("unwrapped", 0)[0] if isinstance(env, DummyVecEnv) else env
        raise RefineError(f"env: {type(inner).__name__} was not made by gymnasium.make; {_WAY_OUT}")
    return EnvRecipe(spec.id, vec_wrappers=tuple(vec_wrappers), make=_maker(_complete(spec, env)))


def _frame_stack(stack: Any) -> Callable[[Any], VecFrameStack]:
    """The same frame stack again, given what stacks the observations."""
    parts = getattr(stack, "sub_stacked_observations", None)
    if parts is None:
        return partial(VecFrameStack, n_stack=stack.n_stack, channels_order=_order_of(stack))
    order: Any = {key: _order_of(part) for key, part in parts.items()}
    return partial(VecFrameStack, n_stack=next(iter(parts.values())).n_stack, channels_order=order)


def _order_of(stack: Any) -> str:
    return "first" if stack.channels_first else "last"


def _complete(spec: Any, env: VecEnv | gym.Env) -> Any:
    """The spec with the arguments of wrappers that gymnasium has not recorded, as far as we know them."""
    wrappers = []
    for wrapper in spec.additional_wrappers:
        if wrapper.entry_point == _MONITOR:  # which counts the rewards that come from within
            wrappers.append(WrapperSpec("TrueReturn", _TRUE_RETURN, {}))
            continue
        kwargs = wrapper.kwargs
        if kwargs is None and wrapper.entry_point == _TIME_FEATURE:
            kwargs = {name: _attribute_of(env, f"_{name}") for name in ("max_steps", "test_mode")}
        if kwargs is None:
            name = wrapper.entry_point.replace(":", ".")
            raise RefineError(f"env: the wrapper {name} cannot be built again in a worker; {_WAY_OUT}")
        wrappers.append(replace(wrapper, kwargs=kwargs))
    if all(wrapper.entry_point in (_TRUE_RETURN, _TIME_FEATURE) for wrapper in wrappers):  # nothing alters rewards
        wrappers = [wrapper for wrapper in wrappers if wrapper.entry_point != _TRUE_RETURN]
    return replace(spec, additional_wrappers=tuple(wrappers))


def _attribute_of(env: VecEnv | gym.Env, name: str) -> Any:
    return env.get_attr(name, 0)[0] if isinstance(env, VecEnv) else env.get_wrapper_attr(name)


@dataclass(frozen=True)
class Normalised:
    """
    Frozen observation normalisation as a ``VecEnv`` wrapper, for where another wrapper comes after it.

    :param statistics: without their environment
    """

    statistics: VecNormalize

    def __call__(self, vec_env: VecEnv) -> VecNormalize:
        """
        :param vec_env: what to wrap
        :return: the wrapped one
        """
        wrapped = _without_env(detached(self.statistics))  # which may have come by pickle
        wrapped.set_venv(vec_env)
        wrapped.training = wrapped.norm_reward = False
        return wrapped


def _left_to_the_policy(statistics: VecNormalize | None, recipe: EnvRecipe) -> VecNormalize | None:
    return None if any(isinstance(wrapper, Normalised) for wrapper in recipe.vec_wrappers) else statistics


def _vec_wrappers(
    config: dict[str, Any], statistics: VecNormalize | None, gym_packages: tuple[str, ...]
) -> tuple[Callable[[Any], Any], ...]:
    """The Zoo's order: the agent's own wrappers, normalisation, frame stacking. Outermost, the policy normalises."""
    named = parse_wrappers(config.get("vec_env_wrapper"), "vec_env_wrapper")
    for name, wrapper_kwargs in named:
        check_importable(name.rpartition(".")[0], "config.yml: vec_env_wrapper", gym_packages)
        check_stored_arguments(f"config.yml: vec_env_wrapper: {name}", wrapper_kwargs)
    wrappers: list[Callable[[Any], Any]] = [VecWrapper(name, kwargs) for name, kwargs in named]
    n_stack = config.get("frame_stack")
    if n_stack:
        check_count("config.yml: frame_stack", n_stack, 1, at_most=1000)
        if statistics is not None and statistics.norm_obs:
            wrappers.append(Normalised(statistics))
        wrappers.append(partial(VecFrameStack, n_stack=n_stack))
    return tuple(wrappers)


@dataclass(frozen=True)
class _SpecMaker:
    """Makes an environment from its gymnasium spec, and wraps it."""

    spec: Any
    wrappers: tuple[tuple[Callable[..., gym.Env], dict[str, Any]], ...]

    def __call__(self) -> gym.Env:
        env = gym.make(self.spec)
        for wrapper, kwargs in self.wrappers:
            env = wrapper(env, **kwargs)
        return env


_OF_THE_SCRIPT = "__main__:"


def _maker(spec: Any) -> _SpecMaker:
    """What the caller's script defines goes to the workers as it is: they cannot import it by its name."""
    wrappers = spec.additional_wrappers
    is_ours = [wrapper.entry_point.startswith(_OF_THE_SCRIPT) for wrapper in wrappers]
    n_theirs = is_ours.index(True) if any(is_ours) else len(wrappers)
    spec = replace(spec, additional_wrappers=wrappers[:n_theirs])
    try:
        if str(spec.entry_point).startswith(_OF_THE_SCRIPT):
            spec = replace(spec, entry_point=load_env_creator(spec.entry_point))
        ours: Any = [(load_env_creator(wrapper.entry_point), wrapper.kwargs) for wrapper in wrappers[n_theirs:]]
    except AttributeError as error:  # a class within a function
        raise RefineError(f"env: it cannot be built again in a worker ({error}); {_WAY_OUT}") from None
    return _SpecMaker(spec, tuple(ours))


def _env_kwargs(spec: Any) -> dict[str, Any] | None:
    """Arguments of ``gymnasium.make`` that an environment was made with."""
    if spec is None:
        return None
    kwargs = dict(spec.kwargs)
    registered = gym.registry.get(spec.id)
    if registered is None or registered.max_episode_steps != spec.max_episode_steps:
        kwargs["max_episode_steps"] = spec.max_episode_steps
    return kwargs or None


def _minimal_config(
    model: BaseAlgorithm, spec: Any, statistics: VecNormalize | None, recipe: EnvRecipe
) -> dict[str, Any]:
    """The part of the Zoo's ``config.yml`` that its tools need to run an agent."""
    aliases = {cls: name for name, cls in model.policy_aliases.items()}
    config: dict[str, Any] = {
        "policy": aliases.get(type(model.policy), "MlpPolicy"),
        "normalize": statistics is not None,
    }
    recorded = () if spec is None else spec.additional_wrappers
    wrappers = [
        (w.entry_point.replace(":", "."), w.kwargs)
        for w in recorded
        if w.entry_point not in (_TRUE_RETURN, _VECTORISED)  # ours, made again of what is said here
    ]
    if wrappers and all(kwargs is not None for _, kwargs in wrappers):
        config["env_wrapper"] = [{name: kwargs} for name, kwargs in wrappers]
    stacks = [wrapper for wrapper in recipe.vec_wrappers if isinstance(wrapper, partial)]
    if stacks:
        config["frame_stack"] = stacks[0].keywords["n_stack"]
        if statistics is not None and _left_to_the_policy(statistics, recipe) is not None:
            raise RefineError(
                "env: a VecNormalize around a VecFrameStack cannot be written in the Zoo's config.yml; have them the "
                "other way round, as the Zoo does"
            )
    return config


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
        if not fits(ours, theirs):
            raise RefineError(
                f"--env: the agent's {name} space {ours} does not fit that of {recipe.env_id or 'the environment'}, "
                f"{theirs}; is a wrapper (config.yml), an --env-kwargs or another version of the environment missing?"
            )
    statistics = _left_to_the_policy(statistics, recipe)
    if statistics is not None and statistics.norm_obs:
        obs_rms: Any = statistics.obs_rms
        if isinstance(obs_rms, dict) and isinstance(observation_space, spaces.Dict):
            shape: Any = {**shape_of(observation_space), **{key: part.mean.shape for key, part in obs_rms.items()}}
        else:
            shape = list(obs_rms) if isinstance(obs_rms, dict) else obs_rms.mean.shape
        if shape != shape_of(observation_space):
            raise RefineError(
                f"vecnormalize.pkl: its statistics have shape {shape}, the observations {shape_of(observation_space)}; "
                "name the file that belongs to this agent with --vecnormalize"
            )
