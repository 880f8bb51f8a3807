"""The report: says what is known, what is not, and what got worse."""

import ast
import json
import math
import re
import shlex
from dataclasses import asdict, replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import toy_envs
from conftest import target_of
from PIL import Image
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_refine import RefineError, Refiner
from sb3_refine.agents.load import load_agent
from sb3_refine.cli.options import DEMO
from sb3_refine.envs.families import family_of
from sb3_refine.envs.observations import Normalisation
from sb3_refine.errors import EpisodeError
from sb3_refine.evaluation.evaluation import Evaluation, paired_difference
from sb3_refine.evaluation.robustness import (
    RobustnessResult,
    check_entries,
    end_effector_jerk,
    measure_robustness,
    motion_of,
)
from sb3_refine.evaluation.statistics import mean_interval
from sb3_refine.evaluation.target import EvaluationTarget
from sb3_refine.files import as_json
from sb3_refine.reporting.record import RunRecord, read_record
from sb3_refine.reporting.report import PLOTS, write_report
from sb3_refine.rollouts.episode import Episode, Trajectory
from sb3_refine.rollouts.mesh_dimension import mesh_dimension

N = 40
RNG = np.random.default_rng(0)
OLD = RNG.normal(100, 10, N)
MORE = {"action_change": 0.2, "action_jerk": 1.0, "high_frequency_share": 0.1}


PANDA_ARM = family_of("PandaReach-v3").end_effector


def evaluation(returns, failed=None):
    failed = np.zeros(len(returns), bool) if failed is None else failed
    episodes = tuple(
        Episode(float(r), 10 + i, bool(f), None, MORE) for i, (r, f) in enumerate(zip(returns, failed, strict=True))
    )
    return Evaluation(tuple(range(1000, 1000 + len(returns))), episodes)


def figures(of):
    lengths, failed = of.lengths.tolist(), [episode.failed for episode in of.episodes]
    return {**of.summary(), "returns": of.returns.tolist(), "lengths": lengths, "failed": failed}


def refinement(before=OLD, after=None, decision="refined", failed=None, paired=True, n_updates=3):
    """What ``refinement.json`` holds, as if it had been read from there."""
    old, new = evaluation(before), evaluation(before + 50 if after is None else after, failed)
    curve = [
        {
            "update": u,
            "rollouts": 32 * u,
            "env_steps": 3200 * u,
            "mean_return": 90.0 + u,
            "std_return": 5.0,
            "min_return": 70.0,
            "max_return": 120.0,
            "mean_fitness": 90.0 + u,
            "failure_rate": 0.0,
        }
        for u in range(1, n_updates + 1)
    ]
    candidates = [
        {"name": name, "update": u, "n_episodes": 20, "mean_return": m, "mean_fitness": m, "chosen": chosen}
        for name, u, m, chosen in (("original", 0, 100.0, False), ("last iterate", 3, 150.0, True))
    ]
    content = {
        "decision": decision,
        "reason": "better on held-out seeds",
        "baseline": figures(old),
        "refined": figures(new),
        "paired_difference": asdict(paired_difference(old, new, paired=paired)),
        "learning_curve": curve,
        "candidates": candidates,
        "rollouts": 176,
        "env_steps": 17_600,
        "wall_time_s": 12.3,
        "settings": {
            **{"algo": "ppo", "env": "Pendulum-v1", "optimizer": "ars", "n_delta": 16, "gym_packages": []},
            **{"n_updates": n_updates, "n_updates_done": n_updates},
        },
        "seeds": {"seed": 0, "test": list(old.seeds)},
        "versions": {"python": "3.11", "sb3-refine": "0.1.0"},
        "source": {"path": "somewhere/Pendulum-v1.zip", "sha256": "a" * 64},
        "output_sha256": "b" * 64,
    }
    return json.loads(json.dumps(content))


def about_mesh(content):
    """The same, of a search that maximised the mesh dimension."""
    content["settings"]["objective"] = "mesh-dimension"
    return content | {"objective_difference": content["paired_difference"]}


def examination(lost=0.0, continuous=True, n_dimensions=2, n=20):
    """Both the same, but for what the refined one loses to the noise."""
    rng = np.random.default_rng(1)
    noiseless = rng.normal(100, 5, n)

    def level(noise, old, new):
        return {"noise": noise, **{k: {"returns": v.tolist()} for k, v in (("original", old), ("refined", new))}}

    def trace():
        actions = rng.normal(size=(n_dimensions, 30)).tolist()
        return {"actions": actions, "return": 1.0, "length": 30, "failed": False}

    return RobustnessResult(
        robustness=[
            level("no noise", noiseless, noiseless),
            level("action noise 10%", noiseless - 10, noiseless - 10 - lost + rng.normal(0, 0.1, n)),
        ],
        smoothness={name: {"original": [0.2] * n, "refined": [0.2] * n} for name in MORE},
        traces={
            **{"seed": 1003, "continuous": continuous, "dimensions": list(range(n_dimensions))},
            **{"original": trace(), "refined": trace()},
        },
        paired=True,
        n_episodes=82,
        n_env_steps=8200,
    )


def with_motion(found):
    """The same, of a Panda arm that goes round."""
    motion = motion_of({"original": swinging(700), "refined": swinging(200, jitter=0.0)}, "PandaReach-v3")
    return replace(found, motion=motion)


def swinging(n_steps, jitter=0.2, n_observed=6, dtype=np.float64, normalisation=None):
    """A trajectory that goes round, in all observations."""
    time = np.arange(n_steps + 1)
    observations = np.cos(np.outer(time, 0.1 * np.sqrt(1 + np.arange(n_observed))))
    observations += jitter * np.random.default_rng(2).normal(size=observations.shape)
    actions, rewards = np.zeros((n_steps, 1)), np.zeros(n_steps)
    observations = observations.astype(dtype)
    seen = observations if normalisation is None else normalisation(observations)
    return Trajectory(observations, seen, actions, rewards, np.array([2.0]))


def both(trajectory):
    return {"original": trajectory, "refined": trajectory}


@pytest.fixture
def run_folder(tmp_path) -> Path:
    folder = tmp_path / "refined agents" / "ppo" / "Pendulum-v1_7"
    (folder / "state").mkdir(parents=True)
    (folder / "state" / "Pendulum-v1.zip").touch()
    return folder


def report_of(run_folder, content, found=None):
    """The report of a run with that ``refinement.json``."""
    if found is not None:
        content = content | {"examination": asdict(found)}
    return write_report(run_folder, RunRecord.from_json(json.loads(as_json(content))))


def text_of(run_folder, *args):
    """The report, its paragraphs on one line each."""
    blocks = report_of(run_folder, *args).read_text().split("\n\n")
    return "\n\n".join(block if block.startswith(("|", "`", "-")) else " ".join(block.split("\n")) for block in blocks)


def row(text, label):
    found = next(line for line in text.splitlines() if line.startswith(f"| {label} "))
    return [cell.strip() for cell in found.strip("|").split("|")]


def commands(text):
    return [shlex.split(line) for line in text.replace("\\\n", "").splitlines() if line.startswith("sb3-refine")]


def option(command, name):
    return command[command.index(name) + 1]


# ---------------------------------------------------------------- what it says


def test_the_verdict_comes_first_and_names_the_kept_agent(run_folder):
    lines = text_of(run_folder, refinement(), examination()).splitlines()
    assert lines[0] == "# ppo Pendulum-v1: refined"
    assert lines[2].startswith("**The refined agent is better and was kept.** Mean return ")
    assert "on 40 held-out seeds: +50.0 (" in lines[2]
    assert lines[2].endswith("higher on 40 seeds, lower on 0, the same on 0.")
    assert lines[4] == "Nothing that was measured got clearly worse."
    assert "Where the saved agent (refined) did worst; on no seed did it return less than the original." in lines


def test_a_loss_is_shown_in_the_summary_and_in_its_row(run_folder):
    after = OLD + 50 + 8 * (OLD - 100)  # better on average, and far more scattered
    failed = np.arange(N) < 20
    text = text_of(run_folder, refinement(after=after, failed=failed), examination(lost=30))
    worse = text.splitlines()[4]
    assert worse.startswith("**Worse after the search:** standard deviation; worst tenth (CVaR10); failure rate; ")
    assert "return under action noise 10%; robustness: it loses more to action noise 10%" in worse
    assert row(text, "standard deviation")[-1] == "worse"
    assert row(text, "failure rate")[1:3] == ["0.0%", "50.0%"]
    assert row(text, "failure rate")[-1] == "worse"
    assert row(text, "mean return")[-1] == "better"
    assert "The failure rate with Wilson's 95% interval: 0.0% (0.0% to 8.8%) before" in text


def test_smoothness_is_compared_on_the_seeds_of_the_robustness_test(run_folder):
    found = examination()
    rough = {"original": [0.2] * 20, "refined": list(np.linspace(0.3, 0.4, 20))}
    text = text_of(run_folder, refinement(), replace(found, smoothness={"action_change": rough, "action_jerk": rough}))
    assert row(text, "action change a step *")[:3] == ["action change a step *", "0.2000", "0.3500"]
    assert row(text, "action jerk *")[-1] == "worse"
    assert "Rows with * are of the first 20 of the seeds." in text
    text = text_of(run_folder, refinement())
    assert row(text, "action change a step") == ["action change a step", "0.2000", "0.2000", "+0.0000", ""]


def test_for_discrete_actions_only_changes_are_compared(run_folder):
    text = text_of(run_folder, refinement(), examination(continuous=False, n_dimensions=1))
    assert "action change a step *" in text
    assert "action jerk" not in text


def test_a_small_difference_gets_no_verdict(run_folder):
    after = OLD + RNG.normal(0, 10, N)
    text = text_of(run_folder, refinement(after=after, decision="original"), examination())
    assert row(text, "mean return")[-1] == "no clear change"
    assert text.splitlines()[2].startswith("**The original agent was kept; the result of the search did not pass.**")


def test_an_objective_other_than_the_return_is_named(run_folder):
    content = refinement(after=OLD - 30)
    content["settings"]["objective"] = "mesh_dimension"
    content["objective_difference"] = {**content["paired_difference"], "mean": 12.5, "ci_low": 10.0, "ci_high": 15.25}
    text = text_of(run_folder, content, examination())
    assert "was kept.** Its objective, `mesh_dimension`, changed by +12.5 (10 to 15.25). Mean return" in text
    assert text.splitlines()[4].startswith("**Worse after the search:** mean return; ")


@pytest.mark.slow
def test_another_objective_than_the_return_is_shown_where_the_return_is(run_folder):
    content = refinement()
    content["settings"]["objective"] = "mesh-dimension"
    content["objective_note"] = " (as a bound)"
    content["objective_difference"] = {**content["paired_difference"], "mean": 12.5, "ci_low": 10.0, "ci_high": 15.25}
    content["baseline"]["objective"], content["refined"]["objective"] = ({"D of it": d} for d in (3.25, 2.5))
    for candidate, fitness in zip(content["candidates"], (31.25, 61.5), strict=True):
        candidate["mean_fitness"] = fitness
    text = text_of(run_folder, content)
    assert "Its objective, `mesh-dimension` (as a bound), changed by" in " ".join(text.split())
    assert row(text, "D of it") == ["D of it", "3.250", "2.500", "-0.750", ""]
    assert row(text, "on validation seeds") == [
        "on validation seeds",
        "update",
        "episodes",
        "steps",
        "mean return",
        "objective",
        "",
    ]
    assert row(text, "last iterate") == ["last iterate", "3", "20", "", "150.00", "61.50", "chosen"]
    content["refined"]["objective"] = {"D of it": None}  # NaN, in JSON
    assert "D of it" not in text_of(run_folder, content)


@pytest.mark.slow
def test_success_rates_are_compared_seed_by_seed(run_folder):
    content = refinement()
    old, new = [True] * 36 + [False] * 4, [True] * 24 + [False] * 16
    for name, success in (("baseline", old), ("refined", new)):
        rate = float(np.mean(success))
        content[name] |= {"success": success, "success_rate": rate, "success_rate_ci": [rate - 0.1, rate + 0.1]}
    low, high = mean_interval(np.array(old, float), np.array(new, float), 0.05)
    expected = ["success rate", "90.0%", "60.0%", f"-30.0% ({100 * low:.1f}% to {100 * high:.1f}%)", "worse"]
    assert row(text_of(run_folder, content), "success rate") == expected
    content["paired_difference"]["confidence"] = 0.5
    assert row(text_of(run_folder, content), "success rate") != expected
    del content["baseline"]["success"]  # of an earlier version
    assert row(text_of(run_folder, content), "success rate")[3] == "-30.0%"


def test_an_untested_agent_claims_nothing(run_folder):
    content = refinement(decision="unchecked") | {"baseline": None, "refined": None, "paired_difference": None}
    content |= {"reason": "the last iterate, not tested on held-out seeds", "candidates": []}
    content["seeds"] = {"seed": 0, "test": None}
    text = text_of(run_folder, content)
    assert text.splitlines()[2] == "**Not tested**: the last iterate, not tested on held-out seeds."
    assert text.splitlines()[4] == "How good the result of the search is, is not known."
    assert "Before and after" not in text
    assert sorted(path.name for path in run_folder.glob("plots/*")) == ["learning_curve.png"]
    assert "--seeds" not in commands(text)[0]


def test_after_an_interruption_the_original_is_known(run_folder):
    content = refinement(decision="unchecked") | {"refined": None, "paired_difference": None, "learning_curve": []}
    assert f"The original: mean return {OLD.mean():.2f}, standard deviation" in text_of(run_folder, content)


def test_unpaired_seeds_are_not_compared_seed_by_seed(run_folder):
    text = text_of(run_folder, refinement(paired=False), examination())
    assert "unpaired, as the environment ignores its seed" in text.splitlines()[2]
    assert "so there are no pairs of episodes" in text
    assert "largest loss" not in text
    assert "on no seed" not in text
    assert not (run_folder / "plots" / "paired.png").exists()


def test_without_failures_there_is_a_sentence_and_no_plot(run_folder):
    report_of(run_folder, refinement(failed=np.arange(N) < 3))
    assert (run_folder / "plots" / "failures.png").exists()
    text = text_of(run_folder, refinement())
    assert "None of the 40 episodes ended in a failure, neither before nor after." in text
    assert not (run_folder / "plots" / "failures.png").exists()  # that of the report before


def test_tables_are_tables_in_a_terminal(run_folder):
    text = report_of(run_folder, refinement(), examination()).read_text()
    tables = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    assert len(tables) == 5
    for table in tables:
        assert len({len(line) for line in table.splitlines()}) == 1
    prose = [line for line in text.splitlines() if not line.startswith(("|", "sb3-refine", "  --", "- ", "  `"))]
    assert max(map(len, prose)) <= 100


# ---------------------------------------------------------------- the worst seeds


def test_the_worst_seeds_are_listed_with_a_replay_command(run_folder):
    after = OLD + 50
    after[[3, 11]] = 5.0, -20.0
    text = text_of(run_folder, refinement(after=after))
    rows = [line for line in text.splitlines() if re.match(r"\| +\d{4} \|", line)]
    assert rows[0].split()[1] == "1011"
    assert "-20.0" in rows[0]
    assert rows[0].endswith("| ended at step 21 | lowest return and largest loss |")
    assert rows[1].split()[1] == "1003"
    assert len(rows) == 5
    assert "on no seed did it return less" not in text
    (first,) = [command for command in commands(text) if "--seeds" in command]  # one command for all
    seeds = first[first.index("--seeds") + 1 :]
    assert seeds[: seeds.index("--video")] == [line.split()[1] for line in rows]
    assert first[:2] == ["sb3-refine", "evaluate"]
    assert option(first, "-f") == str(run_folder.parent.parent)
    assert option(first, "--exp-id") == "7"
    assert option(first, "--algo") == "ppo"
    assert option(first, "--env") == "Pendulum-v1"
    assert option(first, "--compare-to") == str(run_folder / "state")
    assert option(first, "--video") == "videos"


def test_the_commands_are_understood_by_the_command_line(run_folder):
    from sb3_refine.cli.evaluate import make_evaluate_parser

    for command in commands(text_of(run_folder, refinement())):
        options = make_evaluate_parser().parse_args(command[2:])
        assert options.compare_to == str(run_folder / "state")
    assert options.no_noise is False  # the last one measures robustness


def test_without_the_original_the_command_leaves_it_out(run_folder):
    (run_folder / "state" / "Pendulum-v1.zip").unlink()
    assert not any("--compare-to" in command for command in commands(text_of(run_folder, refinement())))


def test_the_saved_agent_is_replayed_if_the_search_was_not_kept(run_folder):
    after = OLD - 50
    after[0] = -500.0  # of an agent that nobody has any more
    text = text_of(run_folder, refinement(after=after, decision="original"))
    rows = [line for line in text.splitlines() if re.match(r"\| +\d{4} \|", line)]
    assert rows[0].split()[1] == str(1000 + int(np.argmin(OLD)))
    assert "largest loss" not in text
    assert not any("--compare-to" in command for command in commands(text))


def test_a_folder_of_another_name_is_replayed_by_its_zip(tmp_path):
    (tmp_path / "ppo-run").mkdir()
    command = commands(text_of(tmp_path / "ppo-run", refinement()))[0]
    assert option(command, "--model") == str(tmp_path / "ppo-run" / "Pendulum-v1.zip")
    assert "--exp-id" not in command


# ---------------------------------------------------------------- the plots


def colours(path):
    with Image.open(path) as image:
        image.verify()
    with Image.open(path) as image:
        counts = image.convert("RGB").getcolors(1 << 24)
    return {colour: count for count, colour in counts}


def has(found, colour, tolerance=70):
    target = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return sum(n for c, n in found.items() if np.abs(np.array(c) - target).max() <= tolerance)


@pytest.mark.slow
def test_every_plot_is_drawn_in_both_colours(run_folder):
    from sb3_refine.reporting import plots

    after = OLD + RNG.normal(20, 30, N)
    content = about_mesh(refinement(after=after, failed=np.arange(N) < 3))
    content["tasks"] = [{"mass": 1 + i / N} for i in range(N)]
    report_of(run_folder, content, with_motion(examination()))
    assert sorted(path.stem for path in run_folder.glob("plots/*.png")) == sorted(PLOTS)
    for path in run_folder.glob("plots/*.png"):
        found = colours(path)
        assert found[(255, 255, 255)] > 0.5 * sum(found.values())
        assert has(found, plots.ORIGINAL) > 50
        assert has(found, plots.REFINED) > 50
        assert path.stat().st_size < 100_000


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (np.full(30, 500.0), np.full(30, 500.0)),  # CartPole
        (np.array([-3.0, 94.0] * 15), np.full(30, 94.0)),  # MountainCarContinuous
        (np.append(np.full(29, -1.0), -1e6), np.linspace(-2, -1, 30)),
        (np.array([-200.0, -150.0]), np.array([-180.0, -190.0])),
        (np.zeros(2), np.zeros(2)),
    ],
    ids=["constant", "bimodal", "heavy tail", "two episodes", "zero"],
)
def test_unusual_distributions_of_returns_are_reported(run_folder, before, after):
    text = text_of(run_folder, refinement(before, after), examination(n=len(before)))
    assert (run_folder / "plots" / "returns.png").stat().st_size > 2000
    assert "nan" not in text
    assert ("With fewer than 10 episodes, intervals say little" in text) == (len(before) < 10)


def test_far_outliers_do_not_push_all_others_into_one_bar():
    from sb3_refine.reporting.plots import _bins

    bins, is_cut = _bins(np.append(np.linspace(0, 1, 100), -1e6))
    assert is_cut
    assert -1.1 < bins[0] < bins[-1] < 2.1
    bins, is_cut = _bins(np.full(30, 500.0))
    middle = len(bins) // 2
    assert not is_cut
    assert bins[middle - 1] < 500 < bins[middle]


def test_what_is_not_a_number_does_not_stop_a_report(run_folder):
    content, found = refinement(), examination()
    for value, row_of_curve in zip((None, float("nan"), -float("inf")), content["learning_curve"], strict=True):
        row_of_curve["min_return"] = row_of_curve["mean_return"] = value
    found.robustness[1]["refined"]["returns"][:] = [float("nan")] * 20
    text = text_of(run_folder, content, found)
    assert "| action noise 10% |     90." in text


def test_episodes_that_are_not_valid_do_not_stop_a_report(run_folder):
    content = refinement(decision="original")
    content["candidates"][1]["mean_return"] = None
    assert "not valid" in text_of(run_folder, content)
    content |= {"refined": None, "paired_difference": None, "reason": "1 of the original's episodes had NaN or inf"}
    content["baseline"] |= {"mean_return": None, "std_return": None}
    assert "**The original agent was kept**: 1 of the original's" in text_of(run_folder, content)


def test_four_of_many_actions_are_shown(run_folder):
    text = text_of(run_folder, refinement(), examination(n_dimensions=4))
    assert "At most 4 actions are shown, those that move most." in text


def test_without_matplotlib_the_text_is_written(run_folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sb3_refine.reporting.plots", None)
    monkeypatch.delattr("sb3_refine.reporting.plots", raising=False)
    text = text_of(run_folder, refinement())
    assert "(No plot `returns`: matplotlib is missing; pip install" in text
    assert row(text, "mean return")[-1] == "better"


# ---------------------------------------------------------------- the motion


def test_the_mesh_curve_is_that_of_the_observations_as_the_policy_sees_them():
    seen = Normalisation(np.zeros(6), np.full(6, 0.25), np.full(6, 10.0))
    found = motion_of({"original": swinging(100, normalisation=seen), "refined": swinging(80)}, "Toy-v0")["mesh"]
    expected = mesh_dimension(4 * swinging(100).observations[1:])
    assert found["original"]["mesh_sizes"] == expected.mesh_sizes.tolist()
    np.testing.assert_allclose(found["original"]["box_sizes"], expected.box_sizes, rtol=1e-4)
    assert (found["original"]["lower"], found["original"]["upper"]) == (expected.lower, expected.upper)
    assert found["refined"]["mesh_sizes"][0] == 80


def test_without_motion_there_is_no_mesh_curve():
    still = np.ones((10, 6))
    found = motion_of(
        {"original": swinging(100), "refined": replace(swinging(9), observations=still, seen=still)}, None
    )
    assert sorted(found) == ["phase"]


def test_the_phase_portrait_shows_the_observations_that_change_most():
    trajectory = swinging(700)
    trajectory.observations[:] *= [1, 3, 2, 0.1, 1, 1]
    trajectory.observations[:, 4] = 100 * (np.arange(701) % 2)  # a contact
    trajectory.observations[:, 5] = np.linspace(100, 0, 701)  # the time that is left
    found = motion_of(both(trajectory), "Toy-v0")["phase"]
    assert found["entries"] == [1, 2]
    assert np.shape(found["refined"]) == (2, 500)
    np.testing.assert_allclose(found["original"], trajectory.observations[-500:, [1, 2]].T, rtol=1e-4)
    seen = Normalisation(np.zeros(6), np.array([1, 30, 2, 0.01, 1, 1]), np.full(6, 90.0))
    normalised = replace(trajectory, seen=seen(trajectory.observations))
    assert motion_of(both(normalised), "Toy-v0")["phase"]["entries"][1] == 3


def test_the_entries_of_the_phase_portrait_can_be_chosen():
    found = motion_of(both(swinging(50)), "Toy-v0", (5, 0))["phase"]
    assert found["entries"] == [5, 0]
    np.testing.assert_allclose(found["original"][0], swinging(50).observations[:, 5], rtol=1e-4)
    for entries in ((0, 6), (-1, 0), (1,), (2, 2)):
        with pytest.raises(
            RefineError, match="expected two different ones of the 6 observations, numbered from 0; got"
        ):
            check_entries(entries, 6)


def test_images_states_and_a_single_observation_have_no_portraits():
    assert motion_of(both(swinging(50, n_observed=0)), "Toy-v0") == {}
    assert motion_of(both(swinging(50, dtype=np.int64)), "Toy-v0") == {}
    assert sorted(motion_of(both(swinging(50, dtype=np.int64)), "Toy-v0", (0, 1))) == ["phase"]  # asked for
    assert sorted(motion_of(both(swinging(50, n_observed=1)), "Toy-v0")) == ["mesh"]


def test_the_end_effector_of_a_panda_is_traced():
    seconds = 0.04 * np.arange(51)
    observations = np.zeros((51, 7))
    observations[:, :3] = np.outer(seconds**3 / 6, [3, 0, 4])  # whose third derivative is (3, 0, 4)
    observations[:, 3:6] = np.outer(seconds**2 / 2, [3, 0, 4])
    trajectory = replace(swinging(50), observations=observations)
    assert end_effector_jerk(trajectory, PANDA_ARM) == pytest.approx(5)
    assert end_effector_jerk(replace(trajectory, observations=observations[:3]), PANDA_ARM) == 0
    found = motion_of(both(trajectory), "PandaReach-v3")["end_effector"]
    assert found["seconds_per_step"] == 0.04
    assert found["original"]["position"][2][-1] == pytest.approx(4 * 2**3 / 6, rel=1e-4)
    assert found["original"]["speed"][-1] == pytest.approx(5 * 2**2 / 2, rel=1e-4)
    assert found["refined"]["jerk"] == pytest.approx(5)
    assert "end_effector" not in motion_of(both(trajectory), "FetchReach-v4")


def test_the_time_between_two_steps_of_a_panda():
    pytest.importorskip("panda_gym")
    env = gym.make("PandaReach-v3")
    assert env.unwrapped.sim.dt == pytest.approx(0.04)
    env.close()


@pytest.mark.slow
def test_the_motion_is_shown_where_there_is_any(run_folder):
    content, found = about_mesh(refinement()), with_motion(examination())
    text = text_of(run_folder, content, found)
    lower, upper = (found.motion["mesh"]["original"][bound] for bound in ("lower", "upper"))
    assert f"the motion has, {lower:.2f} to {upper:.2f} before, " in text
    first, second = found.motion["phase"]["entries"]
    assert f"Observations {first} and {second} (numbered from 0) against each other over the last 500 steps" in text
    assert f"{found.motion['end_effector']['original']['jerk']:.2f} m/s³ before" in text
    assert "with `--no-end-at-success` the goal has to be held" in text
    content["settings"]["end_at_success"] = False
    text = text_of(run_folder, content, found)
    assert "with `--no-end-at-success` the goal has to be held" not in text
    assert all("--no-end-at-success" in command for command in commands(text))
    found = replace(found, motion={"phase": found.motion["phase"]})
    found.motion["phase"]["original"] = found.motion["phase"]["refined"]
    assert "against each other over the whole episode" in text_of(run_folder, content, found)
    assert not any((run_folder / "plots" / f"{name}.png").exists() for name in ("mesh", "end_effector"))


@pytest.mark.slow
def test_boxes_are_counted_only_where_their_dimension_was_maximised(run_folder):
    text = text_of(run_folder, refinement(), with_motion(examination()))
    assert "plots/phase.png" in text
    assert "plots/mesh.png" not in text
    assert not (run_folder / "plots" / "mesh.png").exists()


def test_the_verdict_and_one_picture_come_first(run_folder):
    for decision, picture, paired in (
        ("refined", "paired", True),
        ("original", "paired", True),
        ("refined", "returns", False),
    ):
        text = text_of(run_folder, refinement(decision=decision, paired=paired), examination())
        head, _ = text.split("## Before and after")
        assert "\n\n## Robustness" in text
        assert re.findall(r"plots/(\w+)\.png", head) == [picture]
        assert ("The reason: " in head) == (decision == "original")


def test_a_robustness_result_without_motion_is_read(run_folder):
    old = asdict(examination())
    del old["motion"]
    assert "## Motion" not in text_of(run_folder, refinement() | {"examination": old})


# ---------------------------------------------------------------- the examination


@pytest.fixture(scope="module")
def demo():
    return target_of(load_agent(DEMO["algo"], DEMO["env"], DEMO["folder"]))


def test_robustness_of_two_policies(demo):
    other = replace(demo, theta=np.zeros_like(demo.theta))
    found = measure_robustness(demo, other, range(50, 90), n_seeds=3)
    names = ["no noise", "action noise 2.5%", "action noise 10%", "observation noise 2.5%", "observation noise 10%"]
    assert [level["noise"] for level in found.robustness] == names
    assert found.n_episodes == 5 * 2 * 3 + 2
    assert found.n_env_steps == 200 * found.n_episodes
    assert found.n_seeds == 3
    noiseless = [who.run([50, 51, 52]).returns for who in (demo, other)]
    for who, returns in zip(("original", "refined"), noiseless, strict=True):
        assert found.robustness[0][who]["returns"] == returns.tolist()
        assert found.robustness[0][who]["mean_return"] == pytest.approx(returns.mean())
        assert found.robustness[2][who]["returns"] != returns.tolist()
    median = np.argsort(noiseless[1] - noiseless[0])[1]
    assert found.traces["seed"] == 50 + median
    assert found.traces["original"]["return"] == noiseless[0][median]
    assert found.smoothness["action_change"]["refined"] == [0.0] * 3  # whose weights are all 0
    assert np.shape(found.traces["refined"]["actions"]) == (1, 200)
    assert np.ptp(found.traces["refined"]["actions"]) == 0 < np.ptp(found.traces["original"]["actions"])
    assert found.motion["phase"]["entries"] == [0, 2] or found.motion["phase"]["entries"] == [1, 2]
    assert np.shape(found.motion["phase"]["original"]) == (2, 201)
    assert "end_effector" not in found.motion
    assert measure_robustness(demo, other, [50], entries=(1, 0)).motion["phase"]["entries"] == [1, 0]


def test_an_invalid_traced_episode_is_reported(demo, monkeypatch):
    """As where an environment has a history, and the episode is another one when it is run again."""
    invalid = Evaluation((50,), (Episode(math.nan, 3, False),))
    run = EvaluationTarget.run
    traced = ["trajectory"]
    monkeypatch.setattr(EvaluationTarget, "run", lambda *given: invalid if traced in given else run(*given))
    with pytest.raises(EpisodeError, match="the original"):
        measure_robustness(demo, demo, [50])


@pytest.mark.slow
def test_a_saved_robustness_result_gives_the_same_report(demo, run_folder):
    found = measure_robustness(demo, demo, range(3), n_seeds=2)
    first = report_of(run_folder, refinement(), found).read_text()
    content = refinement() | {"examination": json.loads(json.dumps(asdict(found)))}
    assert report_of(run_folder, content).read_text() == first
    assert row(first, "action noise 10%")[-1] == "same"


def test_commands_say_where_the_environment_came_from_a_callable(run_folder):
    told = "# Pendulum-v1 as it is registered, if it is: the environment of this run came from a callable\nsb3-refine"
    content = refinement()
    assert told not in report_of(run_folder, content).read_text()
    content["settings"]["env_from_callable"] = True
    assert told in report_of(run_folder, content).read_text()


@pytest.mark.parametrize(
    ("env", "from_callable"), [(None, False), ("Pendulum-v1", False), (lambda: gym.make("Pendulum-v1"), True)]
)
def test_the_saved_files_say_whether_the_environment_came_from_a_callable(env, from_callable, tmp_path):
    agent = load_agent(DEMO["algo"], DEMO["env"], DEMO["folder"])
    refiner = Refiner(agent if env is None else agent.model, env, acceptance=False, backend="serial", n_delta=2).learn(
        1
    )
    assert read_record(refiner.save(tmp_path)).settings["env_from_callable"] is from_callable


@pytest.mark.parametrize("normalise", [False, True])
def test_where_the_environment_has_no_id_the_report_shows_python_that_runs(tmp_path, capsys, normalise):
    def make_env():
        return gym.wrappers.TimeLimit(toy_envs.MultiBinaryToy(), 20)

    env = make_vec_env(make_env)
    model = PPO("MlpPolicy", VecNormalize(env) if normalise else env, n_steps=8, batch_size=8, device="cpu")
    refiner = Refiner(model, acceptance=False, backend="serial", n_delta=2).learn(1)
    run_folder = refiner.save(tmp_path)
    text = refiner.report(run_folder).read_text()
    assert "sb3-refine evaluate" not in text
    (snippet,) = re.findall(r"```\n(from .*?)```", text, re.DOTALL)
    assert ("VecNormalize.load" in snippet) == normalise
    exec(snippet, {"make_env": make_env})
    mean_and_std = ast.literal_eval(re.sub(r"np\.float64\((.*?)\)", r"\1", capsys.readouterr().out))
    assert np.isfinite(mean_and_std).all()
