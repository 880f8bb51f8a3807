"""Averages of agents: of their networks, and of the statistics that normalise their observations."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

from sb3_refine.agents.agent import Agent, with_statistics
from sb3_refine.agents.copies import with_own_policy
from sb3_refine.agents.sb3_models import sync_copies
from sb3_refine.envs.normalisation import detached
from sb3_refine.errors import RefineError

_SAME_STATISTICS = ("norm_obs", "norm_obs_keys", "clip_obs", "epsilon")


def average(agents: Sequence[Agent]) -> Agent:
    """
    Average the weights of agents, as in https://arxiv.org/abs/2203.05482. Everything else is that of the last agent,
    the state of its optimizers included.

    The statistics of the observations are those of a mixture with equal shares: its mean is the mean of the means, its
    variance the mean of the variances plus the variance of the means; the count is the mean of the counts.

    :param agents: at least one; with the same algorithm, networks and environment
    :return: a new agent
    :raises RefineError: when the agents cannot be averaged, saying why
    """
    last = agents[-1]
    for agent in agents:
        _check_same_kind(last, agent)
    model = with_own_policy(last).model
    states = [agent.model.policy.state_dict() for agent in agents]
    mean = {name: _mean([state[name] for state in states]) for name in states[-1]}
    model.policy.load_state_dict(mean)
    sync_copies(model)
    averaged = replace(last, model=model, source={"path": None, "sha256": None}, expected_return=None)
    if last.vec_normalize is None:
        return averaged
    return with_statistics(averaged, _mixture([agent.vec_normalize for agent in agents if agent.vec_normalize]))


def _check_same_kind(one: Agent, other: Agent) -> None:
    if one.algo != other.algo:
        raise RefineError(f"average: {other.algo} and {one.algo} agents have no average; leave `average` out")
    shapes = [{name: value.shape for name, value in a.model.policy.state_dict().items()} for a in (one, other)]
    if shapes[0] != shapes[1]:
        raise RefineError("average: the agents have networks of other shapes; leave `average` out")
    statistics = [agent.vec_normalize for agent in (one, other)]
    if (statistics[0] is None) != (statistics[1] is None):
        raise RefineError("average: some of the agents normalise their observations and some do not")
    for name in _SAME_STATISTICS:
        values = [getattr(each, name, None) for each in statistics]
        if values[0] != values[1]:
            raise RefineError(f"average: the agents' statistics differ in {name}: {values[1]} and {values[0]}")


def _mean(tensors: Sequence[th.Tensor]) -> th.Tensor:
    """In double precision; counters are those of the last."""
    if not tensors[-1].is_floating_point():
        return tensors[-1]
    return th.stack([tensor.double() for tensor in tensors]).mean(dim=0).to(tensors[-1].dtype)


def _mixture(statistics: Sequence[VecNormalize]) -> VecNormalize:
    mixed = detached(copy.deepcopy(statistics[-1]))
    if mixed.norm_obs:  # without it, VecNormalize has no obs_rms
        all_obs: Any = [each.obs_rms for each in statistics]
        if isinstance(mixed.obs_rms, dict):
            mixed.obs_rms = {key: _mixed([one[key] for one in all_obs]) for key in mixed.obs_rms}
        else:
            mixed.obs_rms = _mixed(all_obs)
    mixed.ret_rms = _mixed([each.ret_rms for each in statistics])
    return mixed


def _mixed(parts: Sequence[RunningMeanStd]) -> RunningMeanStd:
    means = np.array([part.mean for part in parts])
    mixed = RunningMeanStd(shape=means[0].shape)
    mixed.mean = means.mean(axis=0)
    mixed.var = np.mean([part.var for part in parts], axis=0) + means.var(axis=0)
    mixed.count = float(np.mean([part.count for part in parts]))
    return mixed
