"""``sb3-refine evaluate``: one agent, or two side by side."""

import json
import re
import shutil
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3
import torch
from conftest import ENV_ID, ON_POLICY
from gymnasium import spaces
from sb3_contrib.common.wrappers import TimeFeatureWrapper

from sb3_refine.cli.main import main
from sb3_refine.seeding import EpisodeSeeds

CONDITIONS = ["no noise", "action noise 2.5%", "action noise 10%", "observation noise 2.5%", "observation noise 10%"]


class Marked(gym.Env):
    """Reports ``is_success`` in the end: the number that was drawn at the start is positive. Observes a constant."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)
    n_steps = 5

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.number = 0, self.draw()
        return self.observe(), {}

    def draw(self):
        return float(self.np_random.normal())

    def observe(self):
        return np.zeros(2, dtype=np.float32)

    def step(self, action):
        self.t += 1
        return self.observe(), self.number, self.t == self.n_steps, False, {"is_success": self.number > 0}


class Unseeded(Marked):
    """Ignores its seed."""

    def draw(self):
        return float(np.random.default_rng().normal())


class Discrete(Marked):
    """Observes one of three numbers, and ends by a failure."""

    observation_space = spaces.Discrete(3)

    def observe(self):
        return self.t % 3

    def step(self, action):
        return *super().step(action)[:4], {}


class Fragile(Marked):
    """Its reward is NaN as soon as an action is not the least that there is."""

    def step(self, action):
        observation, *rest = super().step(action)
        return observation, 0.0 if action[0] <= self.limit else float("nan"), *rest[1:]

    limit = -1.0
    n_steps = 30  # so that noise is above 0 in some


class Broken(Fragile):
    """Its reward is always NaN."""

    limit = -2.0


class Stirring(Marked):
    """Goes round in a circle, or ends at once."""

    def observe(self):
        return np.array([np.cos(0.3 * self.t), np.sin(0.3 * self.t)], dtype=np.float32)

    def step(self, action):
        observation, *rest = super().step(action)
        return observation, rest[0], self.number < 0, False, {}


for cls in (Marked, Unseeded, Discrete, Fragile, Broken, Stirring):
    gym.register(f"Evaluated{cls.__name__}-v0", cls, max_episode_steps=50)


def evaluate(*arguments):
    """In this process, one episode after the other."""
    return main(["evaluate", *map(str, arguments), "--backend", "serial"])


@pytest.fixture
def evaluated(tmp_path, capsys):
    """Runs ``evaluate``; gives what it wrote and what it showed."""

    def run(*arguments):
        path = tmp_path / "figures.json"
        assert evaluate(*arguments, "--json", path) == 0
        return json.loads(path.read_text()), capsys.readouterr().out

    return run


@pytest.fixture
def refused(capsys):
    """Runs ``evaluate``; gives its exit status and the one line that it showed."""

    def run(*arguments):
        try:
            status = evaluate(*arguments)
        except SystemExit as ended:
            status = ended.code
        shown = capsys.readouterr()
        assert shown.err.count("\n") == 1, shown.err
        assert shown.err.startswith("sb3-refine evaluate: error: ")
        return status, shown.err, shown.out

    return run


@pytest.fixture
def toy(tmp_path):
    """The arguments that name a PPO agent for one of the environments above, which always takes the least action."""

    def make(cls):
        env_id = f"Evaluated{cls.__name__}-v0"
        model = stable_baselines3.PPO("MlpPolicy", env_id, batch_size=32, **ON_POLICY)
        with torch.no_grad():
            model.policy.action_net.bias[:] = -5
        model.save(tmp_path / "toy.zip")
        return ["--model", tmp_path / "toy.zip", "--env", env_id, "--gym-packages", "test_cli_evaluate"]

    return make


def agent_of(made_agents, algo):
    return ["--algo", algo, "--env", ENV_ID, "-f", made_agents]


def zip_of(folder, algo):
    return folder / algo / f"{ENV_ID}_1" / f"{ENV_ID}.zip"


def rollouts(zip_path, seeds):
    """Returns by plain Stable-Baselines3."""
    model, env = stable_baselines3.PPO.load(zip_path, device="cpu"), gym.make(ENV_ID)
    for seed in seeds:
        observation, _ = env.reset(seed=seed)
        total, done = 0.0, False
        while not done:
            observation, reward, terminated, truncated, _ = env.step(model.predict(observation, deterministic=True)[0])
            total, done = total + float(reward), terminated or truncated
        yield total


def test_the_figures_are_those_of_plain_rollouts_on_the_test_seeds(made_agents, evaluated):
    written, shown = evaluated(*agent_of(made_agents, "ppo"), "--n-eval-episodes", 12, "--seed", 3, "--no-noise")
    seeds = EpisodeSeeds(3).take("test", 12)
    returns = np.array(list(rollouts(zip_of(made_agents, "ppo"), seeds)))
    assert written["seeds"] == seeds
    assert list(written["agents"]) == ["agent"]
    agent = written["agents"]["agent"]
    assert (agent["algo"], agent["source"]["path"]) == ("ppo", str(zip_of(made_agents, "ppo")))
    found = agent["conditions"]["no noise"]
    assert found["returns"] == pytest.approx(returns, rel=1e-5)
    returns = np.array(found["returns"])
    assert (found["lengths"], found["failed"], found["success"]) == ([200] * 12, [False] * 12, [None] * 12)
    summary = found["summary"]
    expected = {
        "mean_return": returns.mean(),
        "std_return": returns.std(),
        "median_return": np.median(returns),
        "min_return": returns.min(),
        "cvar10_return": returns.min(),
        "mean_length": 200,
        "failure_rate": 0,
        "n_episodes": 12,
    }
    assert {name: summary[name] for name in expected} == pytest.approx(expected)
    z = 1.959964
    assert summary["failure_rate_ci"] == pytest.approx([0, z**2 / (12 + z**2)], abs=1e-5)  # Wilson's, of 0 in 12
    assert 0 < summary["action_change"] < 2
    assert "success_rate" not in summary and "mesh_dimension" not in summary
    assert written["paired_differences"] == {}
    assert {"python", "gymnasium", "stable-baselines3"} <= set(written["versions"])
    for figure in ("mean_return", "std_return", "median_return", "min_return", "cvar10_return", "mean_length"):
        assert f"{summary[figure]:.2f}\n" in shown
    assert f"ppo on {ENV_ID}, 12 episodes with the test seeds of --seed 3" in shown
    assert "0 of 12" in shown
    assert "0.0% (0.0% to 24.2%)" in shown


def test_two_agents_side_by_side_on_the_same_seeds(made_agents, evaluated):
    arguments = [*agent_of(made_agents, "ppo"), "--n-eval-episodes", 6, "--no-noise", "--alpha", 0.2]
    written, shown = evaluated(*arguments, "--compare-to", zip_of(made_agents, "sac"))
    assert [agent["algo"] for agent in written["agents"].values()] == ["sac", "ppo"]
    returns = {name: agent["conditions"]["no noise"]["returns"] for name, agent in written["agents"].items()}
    differences = np.subtract(returns["agent"], returns["other"])
    found = written["paired_differences"]["no noise"]
    assert found["mean"] == pytest.approx(differences.mean())
    assert found["p_better"] == pytest.approx(np.mean(differences > 0))
    assert (found["confidence"], found["paired"]) == (0.8, True)
    assert found["ci_low"] < found["mean"] < found["ci_high"]
    assert f"agent: {zip_of(made_agents, 'ppo')}\nother: {zip_of(made_agents, 'sac')}\n" in shown
    interval = f"({found['ci_low']:.2f}, {found['ci_high']:.2f}) at 80%"
    assert f"agent minus other on the same seeds: {found['mean']:+.2f} {interval}" in shown
    alone, _ = evaluated(*arguments)
    assert alone["agents"]["agent"] == written["agents"]["agent"]


def test_an_agent_against_itself_is_no_better(made_agents, evaluated):
    arguments = [*agent_of(made_agents, "a2c"), "--n-eval-episodes", 3]
    written, shown = evaluated(*arguments, "--compare-to", made_agents)
    assert list(written["paired_differences"]) == CONDITIONS
    for difference in written["paired_differences"].values():
        assert (difference["mean"], difference["p_better"]) == (0.0, 0.5)
    assert written["agents"]["agent"] == written["agents"]["other"]
    assert shown.count("(0.00, 0.00)") == 6  # five rows of noise, and the sentence below
    assert "better on a seed: 50.0%" in " ".join(shown.split())


@pytest.mark.parametrize("what", ["log folder", "run folder", "zip", "zip without its suffix"])
def test_the_other_agent_is_named_by_folder_or_zip(made_agents, evaluated, tmp_path, what):
    """Statistics and config beside a zip are found, as a2c's are here."""
    zip_path = zip_of(made_agents, "a2c")
    path = {"log folder": made_agents, "run folder": zip_path.parent, "zip": zip_path}.get(
        what, zip_path.with_suffix("")
    )
    arguments = [*agent_of(made_agents, "a2c"), "--n-eval-episodes", 2, "--no-noise"]
    written, _ = evaluated(*arguments, "--compare-to", path)
    assert written["agents"]["other"] == written["agents"]["agent"]
    shutil.copytree(zip_path.parent, tmp_path / "run")
    (tmp_path / "run" / ENV_ID / "vecnormalize.pkl").rename(tmp_path / "run" / "vecnormalize.pkl")
    beside, _ = evaluated(*arguments, "--compare-to", tmp_path / "run")
    assert beside["paired_differences"]["no noise"]["mean"] == 0


def test_episodes_are_replayed_by_their_seeds(made_agents, evaluated):
    arguments = [*agent_of(made_agents, "ppo"), "--no-noise"]
    written, _ = evaluated(*arguments, "--n-eval-episodes", 5)
    returns = dict(zip(written["seeds"], written["agents"]["agent"]["conditions"]["no noise"]["returns"], strict=True))
    seeds = [written["seeds"][4], written["seeds"][1]]
    replayed, shown = evaluated(*arguments, "--seeds", *seeds)
    assert replayed["seeds"] == seeds
    found = replayed["agents"]["agent"]["conditions"]["no noise"]["returns"]
    assert found == [returns[seed] for seed in seeds]
    assert "2 episodes with the seeds of --seeds" in shown


@pytest.mark.slow
def test_the_default_seeds_confirm_the_claim_of_a_refinement(made_agents, tmp_path, evaluated):
    arguments = agent_of(made_agents, "td3")
    fast = ["--n-updates", 1, "--n-delta", 2, "--n-eval-episodes", 4, "--backend", "serial", "--verbose", 0]
    assert main([*map(str, [*arguments, "-o", tmp_path / "out", *fast])]) == 0
    claimed = json.loads((tmp_path / "out" / "td3" / f"{ENV_ID}_1" / "refinement.json").read_text())
    written, _ = evaluated(*arguments, "--n-eval-episodes", 4, "--no-noise")
    assert written["seeds"] == claimed["seeds"]["test"]
    assert written["agents"]["agent"]["conditions"]["no noise"]["returns"] == claimed["baseline"]["returns"]


def test_noise_is_on_by_default_and_lowers_the_return(evaluated):
    written, shown = evaluated("--demo", "--n-eval-episodes", 8)
    conditions = written["agents"]["agent"]["conditions"]
    assert list(conditions) == CONDITIONS
    means = {condition: found["summary"]["mean_return"] for condition, found in conditions.items()}
    assert means["no noise"] > means["action noise 10%"]
    assert means["no noise"] > means["observation noise 2.5%"] > means["observation noise 10%"]
    smooth, shaken = conditions["no noise"]["summary"], conditions["observation noise 10%"]["summary"]
    assert smooth["action_change"] < shaken["action_change"]
    for condition, found in conditions.items():
        label = condition.replace("no noise", "none").replace(" noise", "")
        summary = found["summary"]
        assert f"{label} " in shown
        assert f"{summary['mean_return']:.2f} ± {summary['std_return']:.2f}" in shown


def test_workers_make_no_difference(made_agents, tmp_path, capsys):
    arguments = [*agent_of(made_agents, "ppo"), "--n-eval-episodes", 5, "--compare-to", zip_of(made_agents, "a2c")]
    serial, parallel = tmp_path / "serial.json", tmp_path / "parallel.json"
    assert evaluate(*arguments, "--json", serial) == 0
    arguments += ["--json", parallel, "--n-workers", 2, "-P"]
    assert main(["evaluate", *map(str, arguments)]) == 0
    assert serial.read_text() == parallel.read_text()
    assert "50/50" in capsys.readouterr().err  # the bar counts all episodes of both agents


def test_success_is_counted_where_the_environment_reports_it(toy, evaluated):
    written, shown = evaluated(*toy(Marked), "--n-eval-episodes", 20)
    found = written["agents"]["agent"]["conditions"]["no noise"]
    assert found["success"] == [value > 0 for value in found["returns"]]
    n = sum(found["success"])
    assert 0 < n < 20
    assert found["summary"]["success_rate"] == n / 20
    assert found["failed"] == [not success for success in found["success"]]
    assert f" {20 - n} of 20\n" in shown
    _, under_noise = shown.split("noise on")
    assert "success rate" in under_noise
    assert under_noise.count(f" {n / 20:.1%}\n") == 5


def test_a_robots_success_is_counted(zoo_agents, evaluated):
    pytest.importorskip("panda_gym")
    arguments = ["--algo", "tqc", "--env", "PandaReach-v1", "-f", zoo_agents, "--n-eval-episodes", 3, "--no-noise"]
    written, _ = evaluated(*arguments, "--compare-to", zoo_agents / "her" / "PandaReach-v1_1")
    for agent in written["agents"].values():
        found = agent["conditions"]["no noise"]
        assert found["success"] == [True] * 3
        assert found["summary"]["success_rate"] == 1
        assert max(found["lengths"]) < 50


@pytest.mark.slow
def test_failures_over_initial_states(zoo_agents, evaluated):
    """As in the published Table II; this agent always falls, as its own evaluations say: none lasts 1000 steps."""
    pytest.importorskip("pybullet_envs_gymnasium")
    arguments = ["--algo", "ddpg", "--env", "HopperBulletEnv-v0", "-f", zoo_agents]
    written, shown = evaluated(*arguments, "--n-eval-episodes", 3, "--no-noise")
    found = written["agents"]["agent"]["conditions"]["no noise"]
    assert found["failed"] == [True] * 3
    assert max(found["lengths"]) < 1000
    assert "3 of 3" in shown
    other = np.load(zoo_agents / "ddpg" / "HopperBulletEnv-v0_1" / "evaluations.npz")["ep_lengths"]
    assert other[-5:].max() < 1000


def test_noise_is_scaled_to_each_agents_own_observations(made_agents, evaluated, tmp_path):
    """The one has the time among its observations, the other has not."""
    wrapped = TimeFeatureWrapper(gym.make(ENV_ID))
    folder = tmp_path / "ppo" / f"{ENV_ID}_1"
    (folder / ENV_ID).mkdir(parents=True)
    stable_baselines3.PPO("MlpPolicy", wrapped, batch_size=32, **ON_POLICY).save(folder / f"{ENV_ID}.zip")
    (folder / ENV_ID / "config.yml").write_text("env_wrapper: sb3_contrib.common.wrappers.TimeFeatureWrapper\n")
    arguments = ["--algo", "ppo", "--env", ENV_ID, "-f", tmp_path, "--n-eval-episodes", 2]
    written, _ = evaluated(*arguments, "--compare-to", made_agents)
    alone, _ = evaluated(*arguments)
    assert list(written["paired_differences"]) == CONDITIONS
    assert written["agents"]["agent"] == alone["agents"]["agent"]


def test_an_environment_of_an_old_name_is_found_under_either(zoo_agents, evaluated):
    pytest.importorskip("Box2D")
    arguments = ["--algo", "ppo", "--env", "LunarLanderContinuous-v2", "-f", zoo_agents, "--n-eval-episodes", 1]
    for path in (zoo_agents, zoo_agents / "ppo" / "LunarLanderContinuous-v2_1"):
        written, _ = evaluated(*arguments, "--no-noise", "--compare-to", path)
        assert written["env"] == "LunarLanderContinuous-v3"
        assert written["agents"]["other"] == written["agents"]["agent"]


def test_the_mesh_dimension_is_measured_on_request(made_agents, evaluated):
    arguments = [*agent_of(made_agents, "ppo"), "--n-eval-episodes", 2, "--mesh-dimension", "--no-noise"]
    written, shown = evaluated(*arguments)
    dimension = written["agents"]["agent"]["conditions"]["no noise"]["summary"]["mesh_dimension"]
    assert dimension > 0
    assert f"{dimension:.4f}" in shown


def test_the_mesh_dimension_is_of_episodes_with_motion(toy, evaluated):
    options = ("--n-eval-episodes", 6, "--mesh-dimension", "--no-noise")
    written, shown = evaluated(*toy(Stirring), *options)
    dimension, n_moving = re.search(r"mesh dimension +([\d.]+) \((\d) of 6 episodes\)", shown).groups()
    assert 0.5 < float(dimension) < 1.9  # of 2 observations
    assert 0 < int(n_moving) < 6
    assert written["agents"]["agent"]["conditions"]["no noise"]["summary"]["mesh_dimension_episodes"] == int(n_moving)
    assert "no motion to measure (0 of 6 episodes)" in evaluated(*toy(Marked), *options)[1]


def test_without_seeds_the_comparison_is_unpaired_and_says_so(toy, evaluated, tmp_path):
    arguments = toy(Unseeded)
    written, shown = evaluated(*arguments, "--n-eval-episodes", 4, "--no-noise", "--compare-to", tmp_path / "toy.zip")
    assert not written["paired_differences"]["no noise"]["paired"]
    assert "agent minus other, unpaired, as the environment ignores its seed: " in shown
    assert "better in a pair of episodes: " in shown


def test_no_noise_on_observations_that_are_not_continuous(toy, evaluated):
    written, shown = evaluated(*toy(Discrete), "--n-eval-episodes", 2)
    conditions = written["agents"]["agent"]["conditions"]
    assert list(conditions) == CONDITIONS[:3]
    assert conditions["no noise"]["failed"] == [True, True]
    assert "no noise on observations: they are not continuous, or images" in shown


def test_episodes_with_nan_are_dropped_and_reported_in_one_line(toy, refused, tmp_path):
    arguments = [*toy(Fragile), "--n-eval-episodes", 3, "--json", tmp_path / "figures.json"]
    status, line, shown = refused(*arguments, "--compare-to", tmp_path / "toy.zip")
    assert status == 1
    assert "3 of the 3 episodes of the other under action noise 2.5% had NaN or infinite rewards" in line
    assert shown.count("3 with NaN or inf") == 4
    written = json.loads((tmp_path / "figures.json").read_text())
    assert list(written["paired_differences"]) == [c for c in CONDITIONS if not c.startswith("action")]
    found = written["agents"]["agent"]["conditions"]["action noise 10%"]
    assert (found["n_invalid"], found["returns"]) == (3, [None] * 3)


def test_nothing_is_compared_where_noiseless_episodes_have_nan(toy, refused):
    status, line, shown = refused(*toy(Broken), "--n-eval-episodes", 4)
    assert (status, shown) == (1, "")
    seeds = EpisodeSeeds(0).take("test", 3)
    assert (
        f"4 of the 4 episodes of the agent had NaN or infinite rewards or observations, those with seed {seeds[0]}"
        in line
    )
    assert "and others: there is nothing to compare; fix the environment" in line


def test_the_first_seed_or_the_requested_seeds_are_filmed(made_agents, monkeypatch, tmp_path, evaluated):
    video = pytest.importorskip("sb3_refine.reporting.video")
    filmed = []
    monkeypatch.setattr(video, "record_video", lambda who, seed, path: filmed.append((list(who), seed, path)) or path)
    arguments = [*agent_of(made_agents, "ppo"), "--no-noise", "--video", tmp_path / "films"]
    evaluated(*arguments, "--n-eval-episodes", 2, "--compare-to", made_agents)
    first = EpisodeSeeds(0).take("test", 1)[0]
    assert filmed == [(["other", "agent"], first, tmp_path / "films" / f"{ENV_ID}-seed-{first}.mp4")]
    filmed.clear()
    evaluated(*arguments, "--seeds", 7, 8)
    assert [(names, seed) for names, seed, _ in filmed] == [(["agent"], 7), (["agent"], 8)]


def test_a_missing_encoder_is_an_error_before_the_episodes(made_agents, monkeypatch, tmp_path, refused):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    code, line, shown = refused(*agent_of(made_agents, "ppo"), "--video", tmp_path / "films")
    assert (code, shown) == (1, "")
    assert "imageio_ffmpeg is missing" in line


def test_tables_are_not_truncated_in_a_pipe(made_agents, capsys):
    assert evaluate(*agent_of(made_agents, "ppo"), "--compare-to", made_agents, "--n-eval-episodes", 2) == 0
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert max(map(len, [line for line in shown.splitlines() if str(made_agents) not in line])) <= 110
    assert "observation 2.5%" in shown and "high-frequency share" in shown


@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        (["--compare-to", "nowhere"], 1, "--compare-to: there is nothing at nowhere; name a log folder"),
        (["--compare-to", "."], 1, "--compare-to: no agent ppo/Pendulum-v1 in ."),
        (["--n-eval-episodes", "0"], 2, "--n-eval-episodes: expected at least 1, got 0"),
        (["--n-eval-episodes", "100", "--seeds", "3"], 2, "--seeds: not allowed with argument --n-eval-episodes"),
        (["--seeds", "3", "--seed", "0"], 1, "--seeds: says which episodes to run, and so does --seed"),
        (["--seeds", "-3"], 2, "--seeds: expected a seed of at least 0, got -3"),
        (["--seeds", "3", "4", "3"], 1, "--seeds: names a seed more than once"),
        (["--alpha", "2"], 1, "--alpha: expected a number between 0 and 1, got 2.0"),
        (["--json", "nowhere/figures.json"], 1, "--json: cannot write to"),
        (["--json", "."], 1, "--json: . is a folder; name a file"),
        (["--compare-too", "x"], 2, "--compare-too x (did you mean --compare-to or --trust-compare-to?)"),
        (["--exp-id", "7"], 1, "no such agent of ppo"),
        (["--demo"], 2, "--demo brings its own agent"),
    ],
)
def test_a_users_mistake_is_one_line(made_agents, tmp_path, monkeypatch, refused, arguments, status, line):
    monkeypatch.chdir(tmp_path)
    code, shown, _ = refused(*agent_of(made_agents, "ppo"), *arguments)
    assert (code, shown.count(line)) == (status, 1), shown
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_backend_is_answered_with_the_nearest(made_agents, capsys):
    assert main(["evaluate", *map(str, agent_of(made_agents, "ppo")), "--backend", "proces"]) == 1
    assert "--backend: unknown 'proces' (did you mean process?)" in capsys.readouterr().err


def test_the_other_agent_has_to_be_of_the_same_environment(made_agents, tmp_path, refused):
    other = tmp_path / "ppo" / "MountainCarContinuous-v0_1"
    (other / "MountainCarContinuous-v0").mkdir(parents=True)
    (other / "MountainCarContinuous-v0" / "config.yml").write_text("policy: MlpPolicy\n")
    model = stable_baselines3.PPO("MlpPolicy", "MountainCarContinuous-v0", batch_size=32, **ON_POLICY)
    model.save(other / "MountainCarContinuous-v0.zip")
    arguments = [*agent_of(made_agents, "ppo"), "--compare-to"]
    status, line, _ = refused(*arguments, other)
    assert status == 1
    assert f"no {ENV_ID}.zip in {other}; there are: MountainCarContinuous-v0.zip" in line
    status, line, _ = refused(*arguments, other / "MountainCarContinuous-v0.zip")
    assert status == 1
    assert f"the other agent is for MountainCarContinuous-v0, the agent itself for {ENV_ID}" in line


def test_the_environments_arguments_have_to_be_the_same(made_agents, tmp_path, refused, evaluated):
    shutil.copytree(made_agents / "ppo", tmp_path / "ppo")
    (tmp_path / "ppo" / f"{ENV_ID}_1" / ENV_ID / "args.yml").write_text(f"env: {ENV_ID}\nenv_kwargs: {{g: 5.0}}\n")
    arguments = [*agent_of(made_agents, "ppo"), "--compare-to", tmp_path, "--n-eval-episodes", 1, "--no-noise"]
    status, line, _ = refused(*arguments)
    assert status == 1
    assert (
        "the other agent has an environment with the arguments {'g': 5.0}, the agent itself one with {}; give" in line
    )
    written, _ = evaluated(*arguments, "--env-kwargs", "g:5.0")
    assert written["env_kwargs"] == {"g": 5.0}
    assert written["paired_differences"]["no noise"]["mean"] == 0


def test_help_starts_quickly_and_names_the_subcommands(capsys):
    for argument in ("--help", "evaluate --help", "push --help"):
        with pytest.raises(SystemExit) as ended:
            main(argument.split())
        assert ended.value.code == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert ("sb3-refine evaluate" in shown and "sb3-refine push" in shown) or argument != "--help"
    script = (
        "import sys; from sb3_refine.cli.evaluate import make_evaluate_parser; make_evaluate_parser().format_help(); "
        "print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


def test_a_misspelt_subcommand_is_answered_with_the_nearest(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["evalute", "--algo", "ppo"])
    assert ended.value.code == 2
    assert "evalute (did you mean evaluate?)" in capsys.readouterr().err
