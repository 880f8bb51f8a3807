"""The robot arm of panda-gym, with one call of PyBullet for all substeps of a step and a handful for the rest."""

import math
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import gymnasium as gym
import numpy as np

from sb3_refine.envs.accelerators.bullet_binding import bind, client_of

_Floats = tuple[float, ...]


def accelerate(env: gym.Env) -> bool:
    """
    Give the simulation a ``step`` with the same bits, and bind PyBullet's functions.

    The stock simulation calls PyBullet for each of its 20 substeps. This one lets it divide one long step into them;
    motors are commanded between steps, with the short time step, as before. Where robot and task are stock too, what
    they ask PyBullet for, number by number, is asked for at once.

    :param env: an environment that has been reset
    :return: whether it has the stock simulation, and is now accelerated
    """
    panda: Any = env.unwrapped
    simulation: Any = getattr(panda, "sim", None)
    if "panda_gym.pybullet" not in sys.modules:  # then it is none of theirs
        return False
    from panda_gym.pybullet import PyBullet

    if type(simulation) is not PyBullet or not bind(client_of(simulation)):
        return False
    simulation.step = _one_call(simulation)
    if simulation.connection_mode == simulation.physics_client.DIRECT:  # no window: nothing to hold back
        simulation.no_rendering = nullcontext
    if _is_stock(panda):
        panda.robot.reset = _fast_robot_reset(panda.robot)
        panda._get_obs = _fast_get_obs(panda)
        panda.step = _fast_step(panda)
    return True


def _is_stock(panda: Any) -> bool:
    """Whether every method that the fast ones replace is the one they were written after (Flip ignores its seed)."""
    from panda_gym.envs.core import RobotTaskEnv
    from panda_gym.envs.panda_tasks import Panda, PickAndPlace, Push, Reach, Slide, Stack

    return (
        isinstance(panda, RobotTaskEnv)
        and type(panda).step is RobotTaskEnv.step
        and type(panda)._get_obs is RobotTaskEnv._get_obs
        and type(panda.robot) is Panda
        and type(panda.task) in (Reach, Push, Slide, PickAndPlace, Stack)
    )


def _one_call(simulation: Any) -> Callable[[], None]:
    client, short = simulation.physics_client, simulation.timestep
    set_time_step, step_simulation = client.setTimeStep, client.stepSimulation
    long = short * simulation.n_substeps
    client.setPhysicsEngineParameter(numSubSteps=simulation.n_substeps)

    def step() -> None:
        set_time_step(long)
        step_simulation()
        set_time_step(short)

    return step


def _fast_robot_reset(robot: Any) -> Callable[[], None]:
    """All joints in one call."""
    reset_joints, body = robot.sim.physics_client.resetJointStatesMultiDof, robot.sim._bodies_idx[robot.body_name]
    joints, angles = robot.joint_indices.tolist(), robot.neutral_joint_values[:, None].tolist()
    return lambda: reset_joints(body, joints, angles)


def _fast_step(panda: Any) -> Callable[[np.ndarray], tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]]:
    """One distance for both the success and the reward."""
    set_action, simulate, get_obs, task = _fast_set_action(panda.robot), panda.sim.step, panda._get_obs, panda.task
    is_sparse = task.reward_type == "sparse"

    def step(action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        set_action(action)
        simulate()
        observation = get_obs()
        difference = observation["achieved_goal"] - task.goal
        distance = math.sqrt(np.add.reduce(difference * difference))
        is_success = bool(distance < task.distance_threshold)
        reward = -float(distance > task.distance_threshold if is_sparse else np.float32(distance))
        return observation, reward, is_success, False, {"is_success": is_success}

    return step


def _fast_set_action(robot: Any) -> Callable[[np.ndarray], None]:
    """Lists instead of arrays, which PyBullet reads number by number."""
    client, body, ee_link = robot.sim.physics_client, robot.sim._bodies_idx[robot.body_name], robot.ee_link
    link_state, joint_states = client.getLinkState, client.getJointStates
    inverse_kinematics = client.calculateInverseKinematics
    set_motors, mode = client.setJointMotorControlArray, client.POSITION_CONTROL
    joints, fingers, forces = robot.joint_indices.tolist(), robot.fingers_indices.tolist(), robot.joint_forces.tolist()
    arm, downwards, low, high = joints[:7], [1.0, 0.0, 0.0, 0.0], robot.action_space.low, robot.action_space.high
    controls_ee, has_fingers = robot.control_type == "ee", not robot.block_gripper

    def arm_angles(action: np.ndarray) -> _Floats:
        if not controls_ee:
            return tuple(s[0] + d for s, d in zip(joint_states(body, arm), (action[:7] * 0.05).tolist(), strict=True))
        x, y, z = (link_state(body, ee_link)[0] + action[:3] * 0.05).tolist()
        return inverse_kinematics(body, ee_link, [x, y, 0.0 if z < 0 else z], downwards)[:7]

    def set_action(action: np.ndarray) -> None:
        action = np.minimum(np.maximum(action, low), high)
        finger = 0.0
        if has_fingers:
            left, right = joint_states(body, fingers)
            finger = float((left[0] + right[0] + action[-1] * 0.2) / 2)  # in the action's precision
        set_motors(body, joints, mode, targetPositions=[*arm_angles(action), finger, finger], forces=forces)

    return set_action


def _fast_get_obs(panda: Any) -> Callable[[], dict[str, np.ndarray]]:
    """Each link and object asked for once, and all numbers made one array."""
    robot, task, simulation = panda.robot, panda.task, panda.sim
    link_state, joint_states = simulation.physics_client.getLinkState, simulation.physics_client.getJointStates
    body, ee_link, fingers = simulation._bodies_idx[robot.body_name], robot.ee_link, robot.fingers_indices.tolist()
    has_fingers, object_states = not robot.block_gripper, _fast_object_states(simulation)

    def get_obs() -> dict[str, np.ndarray]:
        state = link_state(body, ee_link, computeLinkVelocity=1)
        position, velocity = state[0], state[6]
        width: _Floats = ()
        if has_fingers:
            left, right = joint_states(body, fingers)
            width = (left[0] + right[0],)
        states, positions = object_states()
        return {
            "observation": np.array(position + velocity + width + states, dtype=np.float32),
            "achieved_goal": np.array(positions or position, dtype=np.float32),
            "desired_goal": task.goal.astype(np.float32),
        }

    return get_obs


def _fast_object_states(simulation: Any) -> Callable[[], tuple[_Floats, _Floats]]:
    """What a task observes of its objects, and where they are; Reach has none."""
    client = simulation.physics_client
    pose, velocity, euler = client.getBasePositionAndOrientation, client.getBaseVelocity, client.getEulerFromQuaternion
    objects = [body for name, body in simulation._bodies_idx.items() if name.startswith("object")]

    def object_states() -> tuple[_Floats, _Floats]:
        states: _Floats = ()
        positions: _Floats = ()
        for body in objects:
            position, orientation = pose(body)
            linear, angular = velocity(body)
            states += position + euler(orientation) + linear + angular
            positions += position
        return states, positions

    return object_states
