"""The command line: what a user types, what comes back."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from datetime import datetime
from pathlib import Path

import pytest
from conftest import ENV_ID, children_of, left_after, running_search
from fresh import COMMAND_LINE, run_command, run_script

from sb3_refine import RefineError, Refiner
from sb3_refine.cli.main import main
from sb3_refine.errors import EpisodeError

FAST = [
    "--n-updates",
    "3",
    "--n-delta",
    "4",
    "--n-eval-episodes",
    "5",
    "--n-workers",
    "2",
    "--verbose",
    "0",
    "--no-report",
]


def test_refines_an_agent_and_saves_it(made_agents, tmp_path, run):
    done = run("--algo", "a2c", "--env", ENV_ID, "-f", made_agents, "-o", tmp_path, *FAST[:-1], "--verbose", 1)
    assert (done.returncode, done.stderr) == (0, "")
    shown = done.stdout
    run_folder = tmp_path / "a2c" / f"{ENV_ID}_1"
    written = json.loads((run_folder / "refinement.json").read_text())
    assert f"decision: {written['decision']}" in shown
    assert written["command"].startswith(f"sb3-refine --algo a2c --env {ENV_ID} -f {made_agents} -o {tmp_path} --n-up")
    assert abs(datetime.fromisoformat(written["date"]).timestamp() - time.time()) < 120
    assert f"{written['baseline']['mean_return']:.2f}" in shown
    assert str(run_folder / f"{ENV_ID}.zip") in shown
    assert f"sb3-refine evaluate --algo a2c --env {ENV_ID} -f {tmp_path} --exp-id 1" in shown
    assert sorted(path.name for path in run_folder.iterdir()) == [
        ENV_ID,
        f"{ENV_ID}.zip",
        "plots",
        "progress.csv",
        "refinement.json",
        "report.md",
        "state",
    ]
    inner = sorted(path.name for path in (run_folder / ENV_ID).iterdir())
    assert inner == ["args.yml", "config.yml", "vecnormalize.pkl"]


def test_the_demo_shows_a_significant_gain(tmp_path):
    done = run_command("--demo", "-o", tmp_path, "--n-updates", 20, "--n-eval-episodes", 20, "--no-report")
    assert done.returncode == 0, done.stderr
    assert "decision: refined" in done.stdout
    written = json.loads((tmp_path / "ppo" / f"{ENV_ID}_1" / "refinement.json").read_text())
    assert written["paired_difference"]["ci_low"] > 50


def test_a_run_again_gets_a_new_number(made_agents, tmp_path, run):
    for _ in range(2):
        done = run("--algo", "ppo", "--env", ENV_ID, "-f", made_agents, "-o", tmp_path, *FAST)
        assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "ppo").iterdir()) == [f"{ENV_ID}_1", f"{ENV_ID}_2"]


def test_no_acceptance_saves_the_last_iterate_unchecked(made_agents, tmp_path, run):
    done = run("--algo", "sac", "--env", ENV_ID, "-f", made_agents, "-o", tmp_path, "--no-acceptance", *FAST)
    assert "decision: unchecked" in done.stdout
    written = json.loads((tmp_path / "sac" / f"{ENV_ID}_1" / "refinement.json").read_text())
    assert (written["decision"], written["baseline"], written["refined"]) == ("unchecked", None, None)
    assert written["rollouts"] == 3 + 3 * 10  # calibration, search


def test_a_dry_run_shows_the_plan_and_writes_nothing(made_agents, tmp_path, run):
    done = run("--algo", "td3", "--env", ENV_ID, "-f", made_agents, "-o", tmp_path / "out", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "64 updates of 36 rollouts: 2,304 rollouts, up to 448 held-out episodes" in done.stdout
    assert re.search(r"two episodes of the agent: returns -?\d+\.\d and -?\d+\.\d, 400 steps", done.stdout)
    assert re.search(r"would take about \d+ (seconds|minutes) at this pace; nothing was written", done.stdout)
    assert not (tmp_path / "out").exists()


def test_a_budget_is_a_number_of_rollouts(made_agents, run):
    arguments = ["--algo", "td3", "--env", ENV_ID, "-f", made_agents, "--dry-run"]
    assert "8 updates of 36 rollouts" in run(*arguments, "--budget", "291").stdout, "3 episodes measure the noise"
    assert "7 updates of 36 rollouts" in run(*arguments, "--budget", "290").stdout
    assert "200 updates of 128 rollouts" in run(*arguments, "--preset", "paper").stdout


def test_options_reach_the_search(made_agents, tmp_path, run):
    arguments = ["--algo", "a2c", "--env", ENV_ID, "-f", made_agents, "-o", tmp_path, *FAST, "--load-best"]
    run_folder = made_agents / "a2c" / f"{ENV_ID}_1"
    shutil.copy(run_folder / f"{ENV_ID}.zip", run_folder / "best_model.zip")
    options = {"--alpha": 0.2, "--seed": 9, "--parameters": "head", "--n-eval-episodes": 6}
    options |= {"--optimizer": "ars", "--n-top": 2}
    done = run(*arguments, *(part for option in options.items() for part in option), "--learning-rate", 0.1, 0.01)
    (run_folder / "best_model.zip").unlink()
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "a2c" / f"{ENV_ID}_1" / "refinement.json").read_text())
    settings = {name.lstrip("-").replace("-", "_"): value for name, value in options.items()}
    assert {name: written["settings"][name] for name in settings} == settings
    assert written["settings"]["learning_rate"] == [0.1, 0.01]
    assert written["paired_difference"]["confidence"] == 0.8
    assert written["source"]["path"].endswith("best_model.zip")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_result_is_saved_takes_effect_afterwards(made_agents, tmp_path, monkeypatch, number):
    def save(self, *args, **kwargs):
        os.kill(os.getpid(), number)
        time.sleep(0.1)
        return saved(self, *args, **kwargs)

    saved = Refiner.save
    monkeypatch.setattr(Refiner, "save", save)
    arguments = ["--algo", "ppo", "--env", ENV_ID, "-f", made_agents, "-o", tmp_path, *FAST]
    assert main(list(map(str, arguments))) == 130
    assert (tmp_path / "ppo" / f"{ENV_ID}_1" / "refinement.json").exists()


def test_after_an_error_one_line_says_how_to_resume(made_agents, tmp_path, monkeypatch, capsys):
    def log(logger, search, *_):
        if search.n_updates_done == 2:
            raise EpisodeError("the pendulum fell off")

    monkeypatch.setattr("sb3_refine.refiner.log_update", log)
    arguments = ["--algo", "ppo", "--env", ENV_ID, "-f", made_agents, "-o", tmp_path, *FAST, "--log-interval", "1"]
    assert main([*map(str, arguments), "--checkpoint-interval", "1"]) == 1
    way_on, error = capsys.readouterr().err.splitlines()
    assert error == "sb3-refine: error: the pendulum fell off"
    command = f"sb3-refine --resume {tmp_path / 'ppo' / f'{ENV_ID}_1'} --no-report --verbose 0"
    remark = "(with --time-limit 0, to judge what there is)"
    assert way_on == f"to go on from here, once that is fixed: {command} {remark}"


def test_a_full_disk_at_the_end_still_shows_the_verdict(made_agents, tmp_path, monkeypatch, capsys):
    def as_json(content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sb3_refine.reporting.record.as_json", as_json)
    arguments = ["--algo", "ppo", "--env", ENV_ID, "-f", made_agents, "-o", tmp_path, *FAST]
    assert main(list(map(str, arguments))) == 1
    shown, errors = capsys.readouterr()
    assert re.search(r"^decision: (refined|original) \(", shown, re.MULTILINE)
    assert shown.endswith("\nnot saved, or only in part\n")
    run_folder = tmp_path / "ppo" / f"{ENV_ID}_1"
    way_on, error = errors.splitlines()
    assert way_on == f"to go on from here, once that is fixed: sb3-refine --resume {run_folder} --no-report --verbose 0"
    assert error.startswith(
        f"sb3-refine: error: refinement.json cannot be written to {run_folder} ([Errno 28] No space"
    )
    monkeypatch.undo()
    assert main(["--resume", str(run_folder), "--verbose", "0", "--no-report"]) == 0
    assert capsys.readouterr().out.splitlines()[-2] == shown.splitlines()[-2]


def test_a_disk_that_is_full_for_the_tables_is_one_line(made_agents, tmp_path, monkeypatch, capsys):
    def dump(self, step=0):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("stable_baselines3.common.logger.Logger.dump", dump)
    arguments = ["--algo", "ppo", "--env", ENV_ID, "-f", made_agents, "-o", tmp_path, *FAST, "--log-interval", "1"]
    assert main([*map(str, arguments), "--checkpoint-interval", "1"]) == 1
    way_on, error = capsys.readouterr().err.splitlines()
    assert way_on.startswith("to go on from here, once that is fixed: sb3-refine --resume ")
    assert error == "sb3-refine: error: [Errno 28] No space left on device"


@pytest.mark.skipif(sys.platform == "win32", reason="limits are POSIX's")
def test_an_agent_that_cannot_be_written_is_one_line_before_the_search(made_agents, tmp_path):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); "
    arguments = ["--algo", "ppo", "--env", ENV_ID, "-f", made_agents, "-o", tmp_path / "out", *FAST]
    done = run_script(limit + COMMAND_LINE, *arguments)
    assert done.returncode == 1
    line = rf"sb3-refine: error: the agent cannot be written to {tmp_path}.*File too large.*is the disk full\?\n"
    assert re.fullmatch(line, done.stderr), done.stderr
    assert not (tmp_path / "out").exists()


def test_the_report_is_written_without_missing_parts(made_agents, tmp_path, monkeypatch, capsys):
    def record_video(*args):
        raise RefineError("video: no screen")

    monkeypatch.setattr("sb3_refine.reporting.report.record_video", record_video)
    monkeypatch.setattr("sb3_refine.reporting.video.encoder", lambda: "")
    arguments = ["--algo", "ppo", "--env", ENV_ID, "-f", made_agents, "-o", tmp_path, *FAST[:-1], "--video"]
    assert main(list(map(str, arguments))) == 1
    assert "the agent is saved, but its report is not complete: video: no screen" in capsys.readouterr().err
    assert "## Robustness" in (tmp_path / "ppo" / f"{ENV_ID}_1" / "report.md").read_text()


@pytest.mark.slow
def test_the_phase_portrait_shows_the_requested_observations(made_agents, tmp_path, capsys):
    """Pendulum observes the cosine and the sine of its angle, and its velocity."""
    arguments = ["--algo", "ppo", "--env", ENV_ID, "-f", made_agents, "-o", tmp_path, *FAST]
    arguments = [str(argument) for argument in arguments if argument != "--no-report"]
    assert main([*arguments, "--phase-portrait", "2", "1"]) == 0
    found = json.loads((tmp_path / "ppo" / f"{ENV_ID}_1" / "refinement.json").read_text())
    assert found["examination"]["motion"]["phase"]["entries"] == [2, 1]
    assert main([*arguments, "--phase-portrait", "2", "3"]) == 1
    assert "expected two different ones of the 3 observations, numbered from 0; got (2, 3)" in capsys.readouterr().err
    assert not (tmp_path / "ppo" / f"{ENV_ID}_2").exists()  # told before the search


def test_a_plain_zip_needs_no_algo(made_agents, tmp_path, run):
    zip_path = made_agents / "ppo" / f"{ENV_ID}_1" / f"{ENV_ID}.zip"
    shutil.copy(zip_path, tmp_path / "mine.zip")
    done = run("--model", tmp_path / "mine.zip", "--env", ENV_ID, "-o", tmp_path / "out", *FAST, "--verbose", 1)
    assert done.returncode == 0, done.stderr
    assert "ppo on Pendulum-v1" in done.stdout


@pytest.mark.slow
def test_the_log_is_a_line_an_update_or_sb3s_tables_or_a_bar(made_agents, tmp_path, run):
    pytest.importorskip("tensorboard")
    arguments = ["--algo", "ppo", "--env", ENV_ID, "-f", made_agents, "-o", tmp_path / "out", *FAST[:-3], "--no-report"]
    lines = run(*arguments, "--tensorboard-log", tmp_path / "tb")
    assert re.search(r"this will take about \d+ (second|minute)s?, at the pace of the first episodes", lines.stdout)
    assert re.findall(r"^update (\d+) .* 0:\d\d +0:\d\d$", lines.stdout, re.MULTILINE) == ["1", "2", "3"]
    assert max(map(len, lines.stdout.partition("decision:")[0].splitlines())) <= 80
    assert lines.stderr == ""
    assert "ep_rew_mean" in run(*arguments, "--verbose", 2).stdout
    bar = run(*arguments, "-P")
    assert "update 1" not in bar.stdout
    assert "51/51" in bar.stderr  # all episodes, the held-out ones too
    assert "best -" in bar.stderr
    assert list((tmp_path / "tb").glob("*/events.out.tfevents*"))
    assert len((tmp_path / "out" / "ppo" / f"{ENV_ID}_1" / "progress.csv").read_text().splitlines()) == 1 + 3


def test_at_verbose_0_there_is_the_verdict_only(made_agents, tmp_path, run):
    done = run("--algo", "ppo", "--env", ENV_ID, "-f", made_agents, "-o", tmp_path, *FAST)
    verdict, saved = done.stdout.splitlines()
    assert verdict.startswith("decision: ")
    assert saved.startswith("saved to ")


def test_an_unknown_command_is_refused(capsys):
    for name, hint in (("demo", "--demo"), ("evalute", "evaluate")):
        with pytest.raises(SystemExit):
            main([name, "--help"])
        assert (
            f"error: unknown command: {name} (did you mean {hint}?); see sb3-refine --help" in capsys.readouterr().err
        )


@pytest.mark.parametrize("command", [[], ["judge"], ["evaluate"], ["push"]])
def test_the_help_fits_a_terminal_of_100_columns(command, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        main([*command, "--help"])
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 100
    assert shown.startswith("usage: sb3-refine")


def test_few_test_episodes_are_remarked_on_at_the_start(made_agents, tmp_path, run):
    arguments = ["--algo", "ppo", "--env", ENV_ID, "-f", made_agents, "-o", tmp_path, "--dry-run"]
    remark = "test episodes show large differences only: see --n-eval-episodes"
    assert f"5 {remark}" in run(*arguments, "--n-eval-episodes", 5).stdout
    assert remark not in run(*arguments).stdout


@pytest.fixture
def long_run(made_agents, tmp_path):
    with running_search(made_agents, tmp_path) as running:
        yield running


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.slow
def test_ctrl_c_leaves_the_best_so_far_and_no_process(long_run, run, number):
    process, run_folder = long_run
    children = children_of(process.pid)
    assert children
    process.send_signal(number)
    shown, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert errors == f"to go on from here: sb3-refine --resume {run_folder}\nsb3-refine: interrupted\n"
    decision = json.loads((run_folder / "refinement.json").read_text())["decision"]
    assert decision in ("unchecked", "original")  # as long as nothing was better than the original
    judged = run("--resume", run_folder, "--time-limit", 0, "--verbose", 0, "--no-report")
    assert "at 95%" in judged.stdout
    assert json.loads((run_folder / "refinement.json").read_text())["baseline"]["n_episodes"] == 5
    assert f"decision: {decision} (interrupted after" in shown
    assert (run_folder / f"{ENV_ID}.zip").exists()
    assert not left_after(60, children)


@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        (["--algo", "tqcc", "--env", ENV_ID], 1, r"--algo: unknown algorithm 'tqcc' \(did you mean tqc\?\)"),
        (["--algo", "a2c", "--env", "Pendulum-v9"], 1, "no agent a2c/Pendulum-v9 in .*did you mean Pendulum-v1"),
        (["--env", ENV_ID], 1, "--algo, --env: both are needed"),
        (["--algo", "ppo", "--env", ENV_ID, "--n-updats", "3"], 2, r"--n-updats.*did you mean --n-updates"),
        (["--algo", "ppo", "--env", ENV_ID, "--n-updates", "x"], 2, "argument --n-updates: invalid int value: 'x'"),
        (["--algo", "ppo", "--env", ENV_ID, "--n-updates", "0"], 2, "--n-updates: expected at least 1, got 0"),
        (
            ["--algo", "ppo", "--env", ENV_ID, "--preset", "papr"],
            1,
            r"--preset: unknown 'papr' \(did you mean paper\?\)",
        ),
        (["--algo", "ppo", "--env", ENV_ID, "--env-kwargs", "g"], 2, "--env-kwargs: expected key:value, got 'g'"),
        (["--algo", "ppo", "--env", ENV_ID, "--learning-rate", "1", "2", "3"], 1, "expected one number or a start"),
        (["--algo", "ppo", "--env", ENV_ID, "-o", "/proc/none"], 1, "--output: cannot write to"),
        (["--model", "none.zip"], 1, "--model: no file at none.zip"),
        (["--algo", "ppo", "--env", ENV_ID, "--optimizer", "ars:seed=3"], 1, "--optimizer: ars has no option 'seed'"),
        (["--algo", "ppo", "--env", ENV_ID, "--optimizer", "ars:n_updates=x"], 1, "ars has no option 'n_updates'"),
        (["--algo", "ppo", "--env", ENV_ID, "--optimizer", "ars:n_delta=x"], 1, "n_delta: expected a whole number"),
        (["--algo", "ppo", "--env", ENV_ID, "--optimizer", "own"], 1, "unknown 'own'; .* registers it in --gym-pack"),
        (
            ["--algo", "ppo", "--env", ENV_ID, "--optimizer", "ars:n_delta=8", "--n-delta", "4"],
            1,
            "--optimizer: n_delta is given twice",
        ),
    ],
)
def test_a_users_mistake_is_one_line(made_agents, tmp_path, monkeypatch, run, arguments, status, line):
    monkeypatch.chdir(tmp_path)
    if "-f" not in arguments:
        arguments = [*arguments, "-f", made_agents]
    done = run(*arguments)
    assert done.returncode == status
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("sb3-refine: error: ")
    assert re.search(line, done.stderr), done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["wrong algo", "corrupt zip", "missing vecnormalize"])
def test_a_corrupt_agent_is_one_line(made_agents, tmp_path, run, what):
    agents = tmp_path / "agents"
    shutil.copytree(made_agents, agents)
    algo, line = "ppo", ""
    zip_path = agents / "ppo" / f"{ENV_ID}_1" / f"{ENV_ID}.zip"
    if what == "wrong algo":
        zip_path.write_bytes((agents / "tqc" / f"{ENV_ID}_1" / f"{ENV_ID}.zip").read_bytes())
        line = "holds a tqc agent, not ppo; pass --algo tqc"
    elif what == "corrupt zip":
        zip_path.write_bytes(zip_path.read_bytes()[:5000])
        line = "not a valid Stable-Baselines3 zip"
    else:
        algo, line = "a2c", "there is no vecnormalize.pkl"
        (agents / "a2c" / f"{ENV_ID}_1" / ENV_ID / "vecnormalize.pkl").unlink()
    done = run("--algo", algo, "--env", ENV_ID, "-f", agents, "-o", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert line in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_unknown_environment_is_one_line(made_agents, run):
    zip_path = made_agents / "ppo" / f"{ENV_ID}_1" / f"{ENV_ID}.zip"
    done = run("--model", zip_path, "--env", "Pendulun-v1")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "unknown environment 'Pendulun-v1' (did you mean Pendulum-v1" in done.stderr


@pytest.mark.slow
def test_modules_of_the_working_directory_are_found(made_agents, tmp_path):
    """The console script, which starts without the working directory, and its workers."""
    (tmp_path / "my_module.py").write_text(
        "import gymnasium as gym\n"
        "from gymnasium.envs.classic_control import PendulumEnv\n"
        "gym.register('Mine-v0', PendulumEnv, max_episode_steps=20)\n"
        "def effort(trajectory):\n"
        "    return -float(abs(trajectory.actions).sum())\n"
    )
    zip_path = made_agents / "ppo" / f"{ENV_ID}_1" / f"{ENV_ID}.zip"
    script = Path(sysconfig.get_path("scripts")) / "sb3-refine"
    arguments = ["--env", "Mine-v0", "--gym-packages", "my_module", "--objective", "my_module:effort"]
    command = [str(script), "--model", str(zip_path), *arguments, *FAST]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "decision: " in done.stdout


def test_help_starts_quickly(run):
    """No torch: `--help` answers at once."""
    script = (
        "import sys; from sb3_refine.cli.refine_options import make_parser; make_parser().format_help(); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    assert "--n-delta" in run("--help").stdout
