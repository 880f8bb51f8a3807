"""The gradient of a critic's values with respect to the policy's parameters."""

from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.policies import BasePolicy

from sb3_refine.policies.base import one_thread
from sb3_refine.policies.parameters import PolicyParameters, action_scores, differentiable


def critic_gradient(policy: BasePolicy, parameters: PolicyParameters, observations: Any) -> np.ndarray | None:
    r"""
    The deterministic policy gradient (http://proceedings.mlr.press/v32/silver14.html, equation 9),
    :math:`\nabla_\theta` of the mean of :math:`Q(s, \pi_\theta(s))` over observations.

    :param policy: policy of a Stable-Baselines3 model
    :param parameters: those that the gradient is with respect to
    :param observations: a batch of observations, as the policy sees them
    :return: float32 of shape ``(n_parameters,)``; None where the agent has no critic that rates continuous actions
    """
    critic = getattr(policy, "critic", None)
    if critic is None or not hasattr(policy, "actor"):
        return None
    policy.set_training_mode(False)
    batch, _ = policy.obs_to_tensor(observations)
    named = dict(policy.named_parameters())
    chosen = [named[name] for name in parameters.names]
    with differentiable(chosen), one_thread():
        values = critic(batch, action_scores(policy, batch))
        mean = th.stack([each.mean() for each in values]).mean()
        gradients = th.autograd.grad(mean, chosen)
    return np.concatenate([gradient.detach().cpu().numpy().ravel() for gradient in gradients], dtype=np.float32)
