"""PolicyParameters: exactly what the deterministic action depends on, as a flat vector."""

import numpy as np
import pytest
import torch as th
from conftest import MADE

from sb3_refine import RefineError, load_agent
from sb3_refine.policies.parameters import PolicyParameters

ACTOR = {
    "a2c": ["mlp_extractor.policy_net.0", "mlp_extractor.policy_net.2", "action_net"],
    "ppo": ["mlp_extractor.policy_net.0", "mlp_extractor.policy_net.2", "action_net"],
    "trpo": ["mlp_extractor.policy_net.0", "mlp_extractor.policy_net.2", "action_net"],
    "ddpg": ["actor.mu.0", "actor.mu.2", "actor.mu.4"],
    "td3": ["actor.mu.0", "actor.mu.2", "actor.mu.4"],
    "sac": ["actor.latent_pi.0", "actor.latent_pi.2", "actor.mu"],
    "tqc": ["actor.latent_pi.0", "actor.latent_pi.2", "actor.mu.0"],
}
"""The layers between observation and deterministic action. No value net, no log_std, no critic."""


@pytest.fixture(params=MADE)
def model(request, made_agents):
    return load_agent(request.param, "Pendulum-v1", made_agents).model, request.param


def test_actor_is_exactly_the_layers_behind_the_action(model):
    model, algo = model
    expected = {f"{layer}.{kind}" for layer in ACTOR[algo] for kind in ("weight", "bias")}
    assert set(PolicyParameters(model.policy).names) == expected


def test_every_parameter_matters_and_no_other_does(model):
    """The claim itself: change one tensor, and the action on some observation changes, or never does."""
    model, _ = model
    observations = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    before = model.predict(observations, deterministic=True)[0]
    inside = PolicyParameters(model.policy).names
    for name, parameter in model.policy.named_parameters():
        original = parameter.detach().clone()
        with th.no_grad():
            parameter.add_(0.1 * th.randn_like(parameter))
        changed = not np.array_equal(before, model.predict(observations, deterministic=True)[0])
        with th.no_grad():
            parameter.copy_(original)
        assert changed == (name in inside), name


def test_head_is_the_last_layer(model):
    model, algo = model
    head = ACTOR[algo][-1]
    assert set(PolicyParameters(model.policy, "head").names) == {f"{head}.weight", f"{head}.bias"}


def test_a_regular_expression_chooses_by_name(model):
    model, _ = model
    names = PolicyParameters(model.policy, "bias$").names
    assert len(names) == 3
    assert all(name.endswith("bias") for name in names)


@pytest.mark.parametrize("scope", ["actor", "head"])
def test_round_trip_is_exact(model, scope):
    model, _ = model
    parameters = PolicyParameters(model.policy, scope)
    before = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    vector = parameters.get_theta()
    parameters.set_theta(vector)
    assert all(th.equal(before[name], tensor) for name, tensor in model.policy.state_dict().items())
    other = np.random.default_rng(0).standard_normal(parameters.size, dtype=np.float32)
    parameters.set_theta(other)
    assert np.array_equal(parameters.get_theta(), other)
    changed = {name for name, tensor in model.policy.state_dict().items() if not th.equal(before[name], tensor)}
    assert changed == set(parameters.names)


def test_the_vector_is_a_copy(model):
    model, _ = model
    parameters = PolicyParameters(model.policy)
    parameters.get_theta()[:] = 7
    assert not np.any(parameters.get_theta() == 7)


def test_choosing_parameters_does_not_change_the_policy(model):
    model, _ = model
    for parameter in model.policy.parameters():
        parameter.requires_grad_(False)
    assert PolicyParameters(model.policy).size > 0
    assert not any(parameter.requires_grad for parameter in model.policy.parameters())


def test_errors_list_the_choices(model):
    model, _ = model
    with pytest.raises(RefineError, match="matches none of the parameters behind the action.*weight"):
        PolicyParameters(model.policy, "critic")
    with pytest.raises(RefineError, match="no valid regular expression"):
        PolicyParameters(model.policy, "(")
    parameters = PolicyParameters(model.policy)
    with pytest.raises(RefineError, match=rf"expected shape \({parameters.size},\), got \(3,\)"):
        parameters.set_theta(np.zeros(3))
