"""Averages of agents and greedy soups, as candidates beside the agents themselves."""

import numpy as np
import pytest
import stable_baselines3
import torch
from conftest import ENV_ID, NORMALIZED
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from test_kinds import SOME_FAST, load, make

from sb3_refine import RefineError, load_agent
from sb3_refine.agents.averages import average
from sb3_refine.agents.candidates import NamedAgent
from sb3_refine.agents.copies import with_own_policy, with_theta
from sb3_refine.agents.from_model import agent_from_model
from sb3_refine.cli.options import DEMO
from sb3_refine.evaluation.soup import MAX_INGREDIENTS, greedy_soup
from sb3_refine.judging import Judge
from sb3_refine.policies.parameters import PolicyParameters

FAST = {"n_eval_episodes": 8, "backend": "serial"}


def shifted(agent, by):
    parameters = PolicyParameters(agent.model.policy)
    parameters.set_theta(parameters.get_theta() + np.float32(by))
    return agent


def theta_of(agent):
    return PolicyParameters(agent.model.policy).get_theta()


@pytest.mark.parametrize("kind", SOME_FAST)
def test_every_kind_can_be_averaged_saved_and_loaded(kind, tmp_path):
    algo, env_id, _ = make(kind, tmp_path)
    one, two, three = (shifted(load(tmp_path, algo, env_id), by) for by in (0.0, 0.25, 1.0))
    mean = average([one, two, three])
    expected = np.mean([theta_of(agent).astype(float) for agent in (one, two, three)], axis=0)
    assert theta_of(mean) == pytest.approx(expected, abs=1e-6)
    assert not np.array_equal(theta_of(three), theta_of(mean))
    mean.model.save(tmp_path / "mean.zip")
    again = type(mean.model).load(tmp_path / "mean.zip", device="cpu")
    for name, value in mean.model.policy.state_dict().items():
        assert torch.equal(value, again.policy.state_dict()[name])


def test_statistics_are_those_of_the_mixture(made_agents):
    """What RunningMeanStd would have found, had it seen as many observations of each."""
    agents = [load_agent(NORMALIZED, ENV_ID, made_agents) for _ in range(2)]
    samples = [np.random.default_rng(i).normal(i, 1 + i, size=(5000, 3)) for i in range(2)]
    for agent, sample in zip(agents, samples, strict=True):
        rms = agent.vec_normalize.obs_rms
        rms.mean, rms.var, rms.count = sample.mean(axis=0), sample.var(axis=0), 5000.0
    mixed = average(agents).vec_normalize.obs_rms
    together = np.concatenate(samples)
    assert mixed.mean == pytest.approx(together.mean(axis=0))
    assert mixed.var == pytest.approx(together.var(axis=0))
    assert mixed.count == 5000.0
    assert agents[1].vec_normalize.obs_rms.mean == pytest.approx(samples[1].mean(axis=0))


def change_clip(agent):
    agent.vec_normalize.clip_obs = 3.0


@pytest.mark.parametrize(
    ("algos", "change", "line"),
    [
        (("ppo", "a2c"), None, "average: ppo and a2c agents have no average"),
        (("a2c", "a2c"), change_clip, "average: the agents' statistics differ in clip_obs: 3.0 and 10.0"),
    ],
)
def test_agents_of_different_kinds_have_no_average(made_agents, algos, change, line):
    agents = [load_agent(algo, ENV_ID, made_agents) for algo in algos]
    if change is not None:
        change(agents[0])
    with pytest.raises(RefineError, match=line):
        average(agents)


def test_networks_of_other_shapes_have_no_average(made_agents):
    other = load_agent("ppo", ENV_ID, made_agents)
    with pytest.raises(RefineError, match="average: the agents have networks of other shapes"):
        average([load_agent(DEMO["algo"], DEMO["env"], DEMO["folder"]), other])


def named(values):
    agents = [shifted(load_agent(DEMO["algo"], DEMO["env"], DEMO["folder"]), value) for value in values]
    return [NamedAgent(str(value), agent) for value, agent in zip(values, agents, strict=True)]


def test_a_greedy_soup_takes_what_makes_it_better():
    """The best value is 0: of 0.4, 1.0, -0.5 and 3.0, the first and the third average to about 0."""
    center = theta_of(named([0.0])[0].agent)

    def score(agents):
        return [-abs(float((theta_of(agent) - center).mean())) for agent in agents]

    soup = greedy_soup(named([1.0, 0.4, 3.0, -0.5]), score)
    assert theta_of(soup.agent) == pytest.approx(center - 0.05, abs=1e-6)
    assert greedy_soup(named([0.0, 1.0]), score) is None
    calls = []
    greedy_soup(named(np.linspace(1, 2, 12)), lambda agents: calls.append(len(agents)) or score(agents))
    assert calls == [12] + [1] * (MAX_INGREDIENTS - 1)


def test_averages_are_judged_beside_the_agents():
    original = shifted(load_agent(DEMO["algo"], DEMO["env"], DEMO["folder"]), 0.3)
    candidates = named([0.05, -0.05, 0.1])
    judgement = Judge(original, **FAST).judge(candidates, n_average=2)
    names = [one["name"] for one in judgement.result.candidates]
    assert names[:5] == ["original", "0.05", "-0.05", "0.1", "average of the last 2"]
    without = Judge(original, **FAST).judge(candidates)
    assert judgement.result.rollouts > without.result.rollouts
    assert judgement.result.env_steps == 200 * judgement.result.rollouts


def test_agents_that_normalise_rewards_alone_have_an_average():
    env = VecNormalize(make_vec_env(ENV_ID), norm_obs=False)
    model = stable_baselines3.PPO("MlpPolicy", env, n_steps=32, batch_size=32, device="cpu").learn(64)
    agents = [agent_from_model(model) for _ in range(2)]
    assert average(agents).vec_normalize.ret_rms.mean == pytest.approx(agents[0].vec_normalize.ret_rms.mean)


def test_a_copy_is_trained_apart_from_its_agent(made_agents):
    """Its entropy coefficient and its optimizers are its own, and belong together."""
    agent = load_agent("sac", ENV_ID, made_agents)
    model, own = agent.model, with_own_policy(agent).model
    coefficient = model.log_ent_coef.item()
    assert own.ent_coef_optimizer.param_groups[0]["params"][0] is own.log_ent_coef
    own.log_ent_coef.grad = torch.ones(1)
    own.ent_coef_optimizer.step()
    assert own.log_ent_coef.item() != coefficient
    assert model.log_ent_coef.item() == coefficient
    assert own.actor.optimizer.param_groups[0]["params"][0] is next(own.actor.parameters())


@pytest.mark.slow
def test_the_episodes_of_averages_are_known_beforehand(made_agents):
    agent = load_agent("ppo", ENV_ID, made_agents)
    rng = np.random.default_rng(0)
    theta = PolicyParameters(agent.model.policy).get_theta()
    found = [NamedAgent(str(i), with_theta(agent, theta + 0.1 * rng.standard_normal(theta.size))) for i in range(9)]
    judge = Judge(agent, n_eval_episodes=8, backend="serial", alpha=0.999, max_return_loss=1.0)
    baseline = judge.evaluate_original()
    judgement = judge.judge(found, n_average=3)
    n_most = judge.n_episodes(len(found), n_average=3)
    assert 0.8 * n_most < judgement.result.rollouts - len(baseline.episodes) <= n_most
