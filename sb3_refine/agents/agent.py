"""A trained agent with everything needed to run it, and how it is saved."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecNormalize

from sb3_refine.agents.decoding.schema import SchemaError, number, one_of, record, whole
from sb3_refine.agents.sb3_models import ALGOS, fits, shape_of
from sb3_refine.agents.zoo import ExpectedReturn, write_zoo_yaml
from sb3_refine.envs.normalisation import Normalised, without_env
from sb3_refine.envs.spec import EnvRecipe
from sb3_refine.errors import RefineError
from sb3_refine.files import atomic_path, reraise_write_errors


@dataclass
class Agent:
    """
    A trained agent and everything needed to run it.

    :param model: the Stable-Baselines3 model
    :param algo: the Zoo's name of its algorithm
    :param env_name: name of its environment, as files are named after it
    :param recipe: builds its environment
    :param observation_space: of the raw environment
    :param vec_normalize: its observation statistics without an environment, or None
    :param config: the Zoo's ``config.yml``
    :param args: the Zoo's ``args.yml``
    :param source: where it came from
    :param left_out: names of wrappers that ``config.yml`` cannot name
    :param expected_return: range of the mean return that its ``evaluations.npz`` suggests, or None
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
    left_out: tuple[str, ...] = ()
    expected_return: ExpectedReturn | None = None

    @property
    def env_id(self) -> str:
        """Id of its environment; the name where the environment has no id."""
        return self.recipe.env_id or self.env_name

    @property
    def statistics(self) -> VecNormalize | None:
        """Statistics that the policy normalises observations with; None where the recipe's environment already does."""
        return statistics_for_policy(self.vec_normalize, self.recipe)


def environment_of(agent: Agent) -> dict[str, Any]:
    """
    :param agent: any
    :return: for settings: the algorithm, and everything that decides the environment
    """
    recipe = agent.recipe
    return {
        "algo": agent.algo,
        "env": agent.env_id,
        "env_from_callable": recipe.env_id is None or bool(agent.left_out),
        **({"wrappers_left_out": list(agent.left_out)} if agent.left_out else {}),
        "env_kwargs": recipe.env_kwargs,
        "wrappers": [list(wrapper) for wrapper in recipe.wrappers],
        "end_at_success": recipe.end_at_success,
        **({} if recipe.tasks is None else {"tasks": recipe.tasks.settings}),
    }


def teacher_of(agent: Agent) -> dict[str, Any]:
    """
    :param agent: any
    :return: for settings: the figures of its teacher, where it is a student and ``args.yml`` has them; else nothing
    """
    teacher = agent.args.get("teacher")
    return {"teacher": teacher} if is_teacher(teacher) else {}


def is_teacher(value: Any) -> bool:
    """
    :param value: from a file
    :return: whether it has the figures of a teacher, and nothing else
    """
    try:
        _TEACHER(value)
    except SchemaError:
        return False
    return True


_LARGEST = 1e15
_TEACHER = record(
    {
        "algo": one_of(*ALGOS),
        "mean_return": number(-_LARGEST, _LARGEST),
        "std_return": number(0, _LARGEST),
        "n_episodes": whole(1, 10**9),
    }
)


def save_agent(agent: Agent, run_folder: str | Path) -> Path:
    """
    Save an agent in the Zoo's layout, so that the Zoo's own tools and plain Stable-Baselines3 run on it.

    :param agent: what to save
    :param run_folder: a folder, such as :func:`~sb3_refine.agents.zoo.new_run_folder` makes
    :return: path of the zip
    :raises RefineError: when it cannot be written
    """
    run_folder = Path(run_folder)
    with reraise_write_errors("the agent", run_folder):
        inner = write_config(agent, run_folder)
        if agent.vec_normalize is not None:
            with atomic_path(inner / "vecnormalize.pkl") as path:
                agent.vec_normalize.save(str(path))
        with atomic_path(run_folder / f"{agent.env_name}.zip") as path:
            agent.model.save(path)
    return run_folder / f"{agent.env_name}.zip"


def write_config(agent: Agent, run_folder: Path) -> Path:
    """
    Write ``config.yml`` and ``args.yml``.

    :param agent: whose
    :param run_folder: where to
    :return: the folder in it that has them
    """
    inner = run_folder / agent.env_name
    args = {"env": agent.env_name, "env_kwargs": None, **agent.args, "algo": agent.algo}
    inner.mkdir(parents=True, exist_ok=True)
    write_zoo_yaml(inner / "config.yml", agent.config)
    write_zoo_yaml(inner / "args.yml", args)
    return inner


def with_statistics(agent: Agent, statistics: VecNormalize | None) -> Agent:
    """
    :param agent: any
    :param statistics: with or without their environment; None where the agent has none
    :return: the agent with these statistics in place of its own
    """
    if statistics is None or agent.vec_normalize is None:
        return agent
    statistics = without_env(statistics)
    statistics.training = agent.vec_normalize.training
    wrappers = [
        Normalised(statistics) if isinstance(wrapper, Normalised) else wrapper for wrapper in agent.recipe.vec_wrappers
    ]
    return replace(agent, vec_normalize=statistics, recipe=replace(agent.recipe, vec_wrappers=tuple(wrappers)))


def statistics_for_policy(statistics: VecNormalize | None, recipe: EnvRecipe) -> VecNormalize | None:
    return None if any(isinstance(wrapper, Normalised) for wrapper in recipe.vec_wrappers) else statistics


def check_fit(
    model: BaseAlgorithm,
    statistics: VecNormalize | None,
    observation_space: spaces.Space,
    action_space: spaces.Space,
    recipe: EnvRecipe,
) -> None:
    """Compare the environment's spaces with the model's: shapes must match, bounds may differ."""
    for name, ours, theirs in (
        ("observation", model.observation_space, observation_space),
        ("action", model.action_space, action_space),
    ):
        if not fits(ours, theirs):
            raise RefineError(
                f"env: the agent's {name} space {ours} does not match that of {recipe.env_id or 'the environment'}, "
                f"{theirs}; is a wrapper (config.yml), an entry of `env_kwargs` missing, or another version used?"
            )
    statistics = statistics_for_policy(statistics, recipe)
    if statistics is not None and statistics.norm_obs:
        obs_rms: Any = statistics.obs_rms
        if isinstance(obs_rms, dict) and isinstance(observation_space, spaces.Dict):
            shape: Any = {**shape_of(observation_space), **{key: part.mean.shape for key, part in obs_rms.items()}}
        else:
            shape = list(obs_rms) if isinstance(obs_rms, dict) else obs_rms.mean.shape
        if shape != shape_of(observation_space):
            raise RefineError(
                f"vecnormalize.pkl: its statistics have shape {shape}, the observations {shape_of(observation_space)}; "
                "name the file that belongs to this agent with `vec_normalize`"
            )
