"""The locomotion walkers of pybullet_envs_gymnasium, with a handful of PyBullet calls a step instead of some forty."""

import math
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np


def accelerate(env: gym.Env) -> bool:
    """
    Give a walker a ``step`` with the same bits at half the time.

    The stock step asks PyBullet for one link, joint or motor at a time. This one asks for all at once and does the same
    arithmetic in the same order and precision.

    :param env: an environment that has been reset at least twice (the floor joins the robot's parts after the first)
    :return: whether it is a walker of the stock kind, and now accelerated
    """
    walker: Any = env.unwrapped
    if not _is_stock_walker(walker):
        return False
    walker.step = _fast_step(walker)
    return True


def _is_stock_walker(walker: Any) -> bool:
    """Whether every method that the fast step replaces is the one it was written after."""
    if "pybullet_envs_gymnasium.gym_locomotion_envs" not in sys.modules:  # then it is none of theirs
        return False
    from pybullet_envs_gymnasium.gym_locomotion_envs import WalkerBaseBulletEnv
    from pybullet_envs_gymnasium.robot_locomotors import Humanoid, WalkerBase

    if not isinstance(walker, WalkerBaseBulletEnv):
        return False
    robot, cls = type(walker.robot), type(walker)
    scene: Any = walker.scene
    return (
        cls.step is WalkerBaseBulletEnv.step
        and cls.HUD is WalkerBaseBulletEnv.HUD
        and robot.calc_state is WalkerBase.calc_state
        and robot.calc_potential is WalkerBase.calc_potential
        and robot.apply_action in (WalkerBase.apply_action, Humanoid.apply_action)
        and not scene.multiplayer
    )


def _fast_step(walker: Any) -> Callable[[np.ndarray], tuple[np.ndarray, float, bool, bool, dict[str, Any]]]:
    import pybullet

    robot, client = walker.robot, walker._p._client
    step_simulation = partial(pybullet.stepSimulation, physicsClientId=client)
    apply_action = _fast_apply_action(walker)
    calc_state = _fast_calc_state(walker)
    ground = next(iter(walker.ground_ids))[0]
    contacts = partial(pybullet.getContactPoints, physicsClientId=client)
    feet = [(index, foot.bodies[foot.bodyIndex], foot.bodyPartIndex) for index, foot in enumerate(robot.feet)]
    electricity_cost, stall_torque_cost = walker.electricity_cost, walker.stall_torque_cost
    n_actions, dt = walker.action_space.shape[0], walker.scene.dt
    add = np.add.reduce

    def step(action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        apply_action(action)
        step_simulation()
        state = calc_state()
        alive = walker._alive = float(robot.alive_bonus(state[0] + robot.initial_z, robot.body_rpy[1]))
        done = walker._isDone() or not math.isfinite(add(state))
        potential = -robot.walk_target_dist / dt
        progress = float(potential - walker.potential)
        walker.potential = potential
        feet_contact = robot.feet_contact
        for index, body, part in feet:
            feet_contact[index] = 1.0 if contacts(body, ground, part, -1) else 0.0
        electricity = electricity_cost * float(add(np.abs(action * robot.joint_speeds)) / n_actions)
        electricity += stall_torque_cost * float(add(np.square(action)) / n_actions)
        at_limit = float(walker.joints_at_limit_cost * robot.joints_at_limit)
        walker.rewards = [alive, progress, electricity, at_limit, 0.0]
        reward = sum(walker.rewards)
        walker.reward += reward
        return state, reward, bool(done), False, {}

    return step


def _fast_apply_action(walker: Any) -> Callable[[np.ndarray], None]:
    """All motors in one call."""
    import pybullet
    from pybullet_envs_gymnasium.robot_locomotors import Humanoid

    robot = walker.robot
    set_motors = partial(pybullet.setJointMotorControlArray, physicsClientId=walker._p._client)
    in_single_precision = type(robot).apply_action is Humanoid.apply_action
    if in_single_precision:  # it multiplies before it converts
        motors = robot.motors
        gains = np.array([1 * power * robot.power for power in robot.motor_power], dtype=np.float32)
    else:
        motors = robot.ordered_joints
        gains = np.array([robot.power * joint.power_coef for joint in motors])
    body, joints = motors[0].bodies[motors[0].bodyIndex], [joint.jointIndex for joint in motors]
    mode = pybullet.TORQUE_CONTROL

    def apply_action(action: np.ndarray) -> None:
        if not math.isfinite(np.add.reduce(action)):
            assert np.isfinite(action).all()
        clipped = np.minimum(np.maximum(action[: len(joints)], -1), 1)
        set_motors(body, joints, mode, forces=(gains * clipped).tolist())

    return apply_action


def _torso_state(torso: Any, client: int) -> Callable[[], tuple[Any, Any, Any]]:
    """Position, orientation and velocity of the torso, which is a link or the base of its body."""
    import pybullet

    body, link = torso.bodies[torso.bodyIndex], torso.bodyPartIndex
    link_state = partial(pybullet.getLinkState, physicsClientId=client)
    base_pose = partial(pybullet.getBasePositionAndOrientation, physicsClientId=client)
    base_velocity = partial(pybullet.getBaseVelocity, physicsClientId=client)

    def state_of_link() -> tuple[Any, Any, Any]:
        state = link_state(body, link, computeLinkVelocity=1)
        return state[0], state[1], state[6]

    def state_of_base() -> tuple[Any, Any, Any]:
        position, orientation = base_pose(body)
        return position, orientation, base_velocity(body)[0]

    return state_of_link if link >= 0 else state_of_base


def _fast_calc_state(walker: Any) -> Callable[[], np.ndarray]:
    """All links in one call, all joints in another."""
    import pybullet

    robot, client = walker.robot, walker._p._client
    parts, torso = list(robot.parts.values()), robot.robot_body
    body = torso.bodies[torso.bodyIndex]
    links = [part.bodyPartIndex for part in parts if part.bodyPartIndex >= 0]
    positions = np.array([part.current_position() for part in parts])  # those of base parts other than the torso stay
    is_link = np.array([part.bodyPartIndex >= 0 for part in parts])
    is_torso = np.array([part is torso for part in parts])
    torso_is_link, torso_state = torso.bodyPartIndex >= 0, _torso_state(torso, client)
    joints = [joint.jointIndex for joint in robot.ordered_joints]
    limits = [(joint.lowerLimit, joint.upperLimit - joint.lowerLimit) for joint in robot.ordered_joints]
    link_states = partial(pybullet.getLinkStates, physicsClientId=client)
    joint_states = partial(pybullet.getJointStates, physicsClientId=client)
    euler, add, n_parts = pybullet.getEulerFromQuaternion, np.add.reduce, len(parts)
    x, y = positions[:, 0], positions[:, 1]

    def calc_state() -> np.ndarray:
        relative = []
        for (lower, span), state in zip(limits, joint_states(body, joints), strict=True):
            relative.append(2 * (state[0] - lower) / span - 1.0)
            relative.append(0.1 * state[1])
        j = np.array(relative, dtype=np.float32)
        robot.joint_speeds = j[1::2]
        robot.joints_at_limit = np.count_nonzero(np.abs(j[0::2]) > 0.99)
        position, orientation, velocity = torso_state()
        positions[is_link] = [state[0] for state in link_states(body, links)]
        if not torso_is_link:
            positions[is_torso] = position
        body_x, body_y, z = add(x) / n_parts, add(y) / n_parts, position[2]
        robot.body_xyz = (body_x, body_y, z)
        robot.body_real_xyz = np.array(position)
        robot.body_rpy = roll, pitch, yaw = euler(orientation)
        if robot.initial_z is None:
            robot.initial_z = np.float64(z)
        to_target = np.array([robot.walk_target_y - body_y, robot.walk_target_x - body_x])
        robot.walk_target_theta = np.arctan2(to_target[0], to_target[1])
        robot.walk_target_dist = np.sqrt(to_target.dot(to_target))
        angle = robot.walk_target_theta - yaw
        sin, cos = np.sin(-yaw), np.cos(-yaw)
        vx, vy, vz = np.dot(np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]), np.array(velocity))
        more = [z - robot.initial_z, np.sin(angle), np.cos(angle), 0.3 * vx, 0.3 * vy, 0.3 * vz, roll, pitch]
        state = np.concatenate([np.array(more, dtype=np.float32), j, robot.feet_contact])
        return np.minimum(np.maximum(state, -5, out=state), 5, out=state)

    return calc_state
