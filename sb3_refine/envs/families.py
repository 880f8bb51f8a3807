"""What is known of families of environments: one row for each family in :data:`FAMILIES`."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sb3_refine.envs.remedies import FORGET_CONTACTS, FRESH_ENV, NEW_BOX2D_WORLD

_CRASH_REWARD = -100

FailureRule = Callable[[float], bool]
"""Whether an episode that ended by termination has failed, by the reward of its last step."""


def _always(reward: float) -> bool:
    return True


def _never(reward: float) -> bool:
    return False


def _without_reward(reward: float) -> bool:
    return reward <= 0


def _with_crash_reward(reward: float) -> bool:
    return reward == _CRASH_REWARD


@dataclass(frozen=True)
class EndEffector:
    """
    Where an arm's observations have its end effector.

    :param position: of the position in m
    :param velocity: of the velocity in m/s
    :param seconds_per_step: between two actions
    """

    position: slice
    velocity: slice
    seconds_per_step: float


@dataclass(frozen=True)
class EnvFamily:
    """
    A family of environments. A family that is not in the table works, too, if nothing here is needed for it.

    :param pattern: regular expression of the ids, without their version
    :param modules: to import, as they register the ids
    :param extra: of this package that installs what the family needs
    :param renamed: for old versions, the version that today's packages register instead
    :param since_renamed: for old versions, keyword arguments and a wrapper that make today's environment the old one
    :param fails: whether an episode that ended by termination has failed; ``is_success`` in the last ``info`` overrides
        this
    :param remedy: what makes its episodes reproducible, see :mod:`sb3_refine.envs.remedies`
    :param accelerators: names of those that may fit, see :mod:`sb3_refine.envs.accelerators`
    :param end_effector: of an arm
    :param prints_to: descriptor that its C library prints to whenever an environment is made, or None
    """

    pattern: str
    modules: tuple[str, ...] = ()
    extra: str | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)
    since_renamed: Mapping[str, tuple[dict[str, Any], str]] = field(default_factory=dict)
    fails: FailureRule = _always
    remedy: str | None = None
    accelerators: tuple[str, ...] = ()
    end_effector: EndEffector | None = None
    prints_to: int | None = None


_BOX2D = EnvFamily("", extra="box2d", fails=_with_crash_reward, accelerators=("box2d",))
_MUJOCO = EnvFamily("", extra="mujoco", renamed={"v2": "v4", "v3": "v4"}, prints_to=2)
_ROBOTICS = EnvFamily("", modules=("mujoco", "gymnasium_robotics"), extra="robotics")
_PANDA = EnvFamily(
    "",
    modules=("pybullet", "panda_gym"),
    extra="panda",
    renamed={"v1": "v3", "v2": "v3"},
    accelerators=("panda", "bullet binding"),
    end_effector=EndEffector(slice(0, 3), slice(3, 6), seconds_per_step=20 / 500),  # 20 steps of the simulation
    prints_to=1,
)
_OLD_ANT: tuple[dict[str, Any], str] = ({"use_contact_forces": True}, "sb3_refine.envs.wrappers.ZeroContactForces")

FAMILIES: list[EnvFamily] = [
    EnvFamily(
        r".*BulletEnv",
        modules=("pybullet", "pybullet_envs_gymnasium"),
        extra="bullet",
        accelerators=("bullet walker", "bullet binding"),
        prints_to=1,
    ),
    replace(_PANDA, pattern=r"Panda(Push|Slide|PickAndPlace|Flip).*", remedy=FORGET_CONTACTS),
    replace(_PANDA, pattern=r"PandaStack.*", remedy=FRESH_ENV),  # its contacts depend on earlier episodes now and then
    replace(_PANDA, pattern=r"Panda.*"),
    replace(_BOX2D, pattern=r"LunarLander(Continuous)?", renamed={"v2": "v3"}),
    replace(_BOX2D, pattern=r"BipedalWalker(Hardcore)?", remedy=NEW_BOX2D_WORLD),
    replace(_BOX2D, pattern=r"CarRacing"),
    replace(_MUJOCO, pattern=r"Ant", since_renamed={"v2": _OLD_ANT, "v3": _OLD_ANT}),
    replace(
        _MUJOCO,
        pattern=r"HalfCheetah|Hopper|Humanoid|HumanoidStandup|InvertedDoublePendulum|InvertedPendulum|Pusher|Reacher|"
        r"Swimmer|Walker2d",
    ),
    replace(_ROBOTICS, pattern=r"Fetch.*", renamed={"v1": "v4", "v2": "v4", "v3": "v4"}),
    replace(_ROBOTICS, pattern=r"(HandReach|HandManipulate).*"),
    EnvFamily(r"ALE/.*|.*NoFrameskip", modules=("ale_py",), extra="atari"),
    EnvFamily(r"MountainCar(Continuous)?|Acrobot|Taxi|CliffWalking(Slippery)?", fails=_never),
    EnvFamily(r"FrozenLake(8x8)?|(MiniGrid|BabyAI)-.*", fails=_without_reward),
]
"""The first row that matches an id holds for it."""

_UNKNOWN = EnvFamily("")


def family_of(env_id: str | None) -> EnvFamily:
    """
    :param env_id: gymnasium id, or None for an environment without one
    :return: its family; a family without special rules if the table has none
    """
    for family in FAMILIES:
        if re.fullmatch(rf"({family.pattern})-v\d+", env_id or ""):
            return family
    return _UNKNOWN


def current_env_id(env_id: str) -> str:
    """
    :param env_id: id that an agent was trained on
    :return: the id under which today's packages register that environment
    """
    name, _, version = env_id.rpartition("-")
    renamed = family_of(env_id).renamed
    return f"{name}-{renamed[version]}" if version in renamed else env_id


def changes_since(env_id: str) -> tuple[dict[str, Any], tuple[tuple[str, dict[str, Any]], ...]]:
    """
    :param env_id: id that an agent was trained on
    :return: what makes today's environment the one it was: keyword arguments, and wrappers as :class:`EnvRecipe` has
        them
    """
    kwargs, *wrappers = family_of(env_id).since_renamed.get(env_id.rpartition("-")[2], ({},))
    return dict(kwargs), tuple((str(wrapper), {}) for wrapper in wrappers)


def is_failure(env_id: str | None, reward: float, info: dict[str, Any]) -> bool:
    """
    Whether an episode that ended by termination has failed. Most environments terminate on failure; some on success.

    :param env_id: gymnasium id
    :param reward: of the last step
    :param info: of the last step; ``is_success`` in it decides
    :return: False where the goal was reached: by ``is_success``, in environments that end nowhere else or with a
        reward nowhere else, or without the reward of -100 that Box2D's environments give for a crash
    """
    return not info["is_success"] if "is_success" in info else family_of(env_id).fails(reward)
