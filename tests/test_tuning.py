"""Searches as trials of Ray Tune: population-based training changes their settings on the way."""

import tempfile
from functools import partial
from pathlib import Path

import pytest

from sb3_refine import judge, load_agent
from sb3_refine.tuning import AGENT_FOLDER, trainable

ray = pytest.importorskip("ray")
tune = pytest.importorskip("ray.tune")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def local_ray():
    with tempfile.TemporaryDirectory(prefix="r") as folder:  # Ray allows short paths only
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=folder)
        yield
        ray.shutdown()


@pytest.mark.usefixtures("local_ray")
def test_population_based_training_changes_searches_and_judge_tests_their_agents(made_agents, tmp_path):
    make_agent = partial(load_agent, "ppo", "Pendulum-v1", made_agents)
    scheduler = tune.schedulers.PopulationBasedTraining(
        time_attr="training_iteration",
        perturbation_interval=3,
        quantile_fraction=0.5,
        hyperparam_mutations={"learning_rate": [0.01, 0.02]},
    )
    results = tune.Tuner(
        trainable(make_agent, n_updates=24, eval_freq=1, n_eval_episodes=20, optimizer="ars", n_delta=2),
        param_space={"learning_rate": tune.grid_search([1000.0, 0.02]), "delta_std": 0.02},
        tune_config=tune.TuneConfig(metric="mean_return", mode="max", scheduler=scheduler),
        run_config=tune.RunConfig(storage_path=str(tmp_path), name="pbt", verbose=0),
    ).fit()
    assert not results.errors
    assert [result.metrics["n_updates"] for result in results] == [24, 24]
    assert {result.metrics["rollouts"] for result in results} == {24 * (4 + 20)}
    assert results[0].config["learning_rate"] in (0.01, 0.02)  # the search went on from the other one
    agents = [Path(result.checkpoint.path) / AGENT_FOLDER / "Pendulum-v1.zip" for result in results]
    judgement = judge(make_agent(), agents, n_eval_episodes=10)
    assert len(judgement.result.candidates) >= 2  # equal ones count once
