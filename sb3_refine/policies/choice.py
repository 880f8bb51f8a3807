"""The policy to roll out with: the exact one where it gives the bits of ``predict``, else the general one."""

import logging
from functools import cache
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_refine.envs.observations import normalisation_of
from sb3_refine.policies.base import DeterministicPolicy, one_thread
from sb3_refine.policies.exact import _exact_policy
from sb3_refine.policies.exact_transformer import ExactTransformer, is_exact
from sb3_refine.policies.general import GeneralPolicy, _copy_on_cpu, _general_class
from sb3_refine.policies.transformer import TransformerPolicy

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.vec_env import VecNormalize

    from sb3_refine.policies.parameters import PolicyParameters


logger = logging.getLogger(__name__)


def rollout_policy(
    model: "BaseAlgorithm",
    parameters: "PolicyParameters",
    vec_normalize: "VecNormalize | None",
    observation_space: spaces.Space,
) -> DeterministicPolicy:
    """
    The policy to roll out with: the exact one where it reproduces ``predict`` bit for bit, else the general one.

    :param model: the agent's model
    :param parameters: its searched parameters
    :param vec_normalize: its observation normalisation, or None
    :param observation_space: observation space of the raw environment
    :return: a policy that can be pickled
    """
    if vec_normalize is not None and not vec_normalize.norm_obs:
        vec_normalize = None
    policy = _exact_or_general(model, parameters, vec_normalize, observation_space)
    policy.normalisation = normalisation_of(vec_normalize, observation_space)
    return policy


def _exact_or_general(
    model: "BaseAlgorithm",
    parameters: "PolicyParameters",
    vec_normalize: "VecNormalize | None",
    observation_space: spaces.Space,
) -> DeterministicPolicy:
    general = _general_class(model.policy)(
        _copy_on_cpu(model.policy), parameters.slices(), vec_normalize, observation_space
    )
    exact: DeterministicPolicy | None
    try:
        if isinstance(model.policy, TransformerPolicy):
            exact = _exact_transformer(model.policy, parameters, vec_normalize, observation_space)
        else:
            exact = _exact_policy(model.policy, parameters, vec_normalize, observation_space)
        is_same = (
            exact is not None
            and exact.n_parameters == parameters.size
            and _same_actions(exact, general, observation_space)
        )
    except (AttributeError, TypeError, ValueError, RuntimeError):  # a class of the user's own may be built otherwise
        exact = None
    if exact is None:
        _say_once("rollouts use the policy's own predict: it is no MLP or transformer that there is a faster way for")
        return general
    if not is_same:
        logger.warning("general policy: the exact one differs from model.predict on this machine")
        return general
    return exact


@cache
def _say_once(message: str) -> None:
    """In a process: the candidates of a verdict are all alike."""
    logger.info(message)


def _exact_transformer(
    policy: TransformerPolicy,
    parameters: "PolicyParameters",
    vec_normalize: "VecNormalize | None",
    observation_space: spaces.Space,
) -> ExactTransformer | None:
    if not is_exact(policy):
        return None
    copy: Any = _copy_on_cpu(policy)
    return ExactTransformer(copy, parameters.slices(), vec_normalize, observation_space)


def _same_actions(
    exact: DeterministicPolicy, general: GeneralPolicy, space: spaces.Space, n_observations: int = 64
) -> bool:
    """
    Whether two policies give the same bits on random observations, from tiny ones to some far outside the usual; those
    of one episode, if the policies have a state.
    """
    for policy in (exact, general):
        policy.begin_episode(gym.Env())
    rng = np.random.default_rng(0)
    observations = [_random(space, magnitude, rng) for magnitude in np.geomspace(1e-2, 1e2, n_observations)]
    with one_thread():
        return all(np.array_equal(exact(x), general(x)) for x in observations)


def _random(space: spaces.Space, magnitude: float, rng: np.random.Generator) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: _random(part, magnitude, rng) for key, part in space.spaces.items()}
    return (magnitude * rng.standard_normal(space.shape)).astype(space.dtype)
