"""What is known of families of environments: one row a family."""

import re
from typing import Any

RENAMED = {
    r"LunarLander(Continuous)?-v2": "-v3",
    r"(Ant|HalfCheetah|Hopper|Humanoid|HumanoidStandup|InvertedDoublePendulum|InvertedPendulum|Pusher|Reacher|Swimmer|Walker2d)-v[23]": "-v4",  # noqa: E501
    r"Panda(Reach|Push|Slide|PickAndPlace|Stack|Flip)(Dense|Joints|JointsDense)?-v[12]": "-v3",
    r"Fetch(Reach|Push|Slide|PickAndPlace)(Dense)?-v[123]": "-v4",
}
"""Environments that today's packages call otherwise: pattern of the old id, the version that replaces it."""

CHANGED: dict[str, tuple[dict[str, Any], str]] = {
    r"Ant-v[23]": ({"use_contact_forces": True}, "sb3_refine.envs.wrappers.ZeroContactForces"),
}
"""Renamed environments that differ from what they were: the keyword arguments and the wrapper that bring that back."""

FAMILIES = (
    # pattern of the id, modules that it needs and that register it, extra that installs them
    (r".*BulletEnv-v\d+", ("pybullet", "pybullet_envs_gymnasium"), "bullet"),
    (r"Panda.*-v\d+", ("pybullet", "panda_gym"), "panda"),
    (r"(Fetch|HandReach|HandManipulate).*-v\d+", ("mujoco", "gymnasium_robotics"), "robotics"),
    (r"(ALE/.*|.*NoFrameskip)-v\d+", ("ale_py",), "atari"),
)

_GOAL = r"(MountainCar(Continuous)?|Acrobot|Taxi|CliffWalking(Slippery)?)-v\d+"
_REWARDED_GOAL = r"(FrozenLake(8x8)?|(MiniGrid|BabyAI)-.*)-v\d+"
_CRASH = r"(LunarLander(Continuous)?|BipedalWalker(Hardcore)?|CarRacing)-v\d+"
_CRASH_REWARD = -100


ENTRY_POINTS = (
    # modules that gymnasium registers without installing what they need
    ("gymnasium.envs.box2d", "box2d"),
    ("gymnasium.envs.mujoco", "mujoco"),
)


def current_env_id(env_id: str) -> str:
    """
    :param env_id: id that an agent was trained on
    :return: the id under which today's packages register that environment
    """
    for pattern, version in RENAMED.items():
        if re.fullmatch(pattern, env_id):
            return re.sub(r"-v\d+$", version, env_id)
    return env_id


def is_failure(env_id: str | None, reward: float, info: dict[str, Any]) -> bool:
    """
    Whether an episode that ended by termination has failed. Most environments terminate on failure; some on success.

    :param env_id: gymnasium id
    :param reward: of the last step
    :param info: of the last step; ``is_success`` in it decides
    :return: False where the goal was reached: by ``is_success``, in environments that end nowhere else or with a
        reward nowhere else, or without the reward of -100 that Box2D's environments give for a crash
    """
    if "is_success" in info:
        return not info["is_success"]
    if re.fullmatch(_GOAL, env_id or ""):
        return False
    if re.fullmatch(_REWARDED_GOAL, env_id or ""):
        return reward <= 0
    return reward == _CRASH_REWARD if re.fullmatch(_CRASH, env_id or "") else True


def changes_since(env_id: str) -> tuple[dict[str, Any], tuple[tuple[str, dict[str, Any]], ...]]:
    """
    :param env_id: id that an agent was trained on
    :return: what makes today's environment the one it was: keyword arguments, and wrappers as :class:`EnvRecipe` has
        them
    """
    for pattern, (kwargs, wrapper) in CHANGED.items():
        if re.fullmatch(pattern, env_id):
            return kwargs, ((wrapper, {}),)
    return {}, ()
