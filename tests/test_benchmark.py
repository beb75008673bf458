"""scripts/benchmark.py and scripts/scale.py: what they make of measurements, and that they run."""

import importlib.util
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import benchmark
import pytest
import scale
from benchmarking import contest, ours, overhead, report, sb3
from benchmarking.company import common_speeds
from benchmarking.goals import Goal, Limit, judged, ratio
from benchmarking.processes import Window, run, steady_speed
from benchmarking.tables import ScaleTable, Size
from benchmarking.works import BF16, OURS, PEER, WORKS, StartUp, Target, Training
from harness import environment

from rlrun import record

SCRIPTS = Path(benchmark.__file__).parent
TRAININGS = [name for name, work in WORKS.items() if isinstance(work, Training)]


def script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / f"{name}.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment())


# --- Goals ----------------------------------------------------------------------------------------------


def test_a_limit_is_met_at_the_limit_and_not_beyond() -> None:
    assert [Limit(2.0).verdict(v, "x")["met"] for v in (1.99, 2.0, 3.0)] == [False, True, True]
    assert [Limit(2.0, at_most=True).verdict(v, "s")["met"] for v in (1.0, 2.0, 2.01)] == [True, True, False]
    assert Limit(100_000.0).verdict(1.0, "steps/s")["goal"] == ">= 100,000 steps/s"


def test_the_ratio_is_the_median_of_rounds_and_not_the_ratio_of_medians() -> None:
    # The machine gets ten times slower between rounds, and ours is twice as fast in two of the three.
    values = [(100.0, 200.0), (10.0, 20.0), (50.0, 40.0)]
    rounds = [{PEER: {"value": peer}, OURS: {"value": ours}} for peer, ours in values]
    judged_ = judged(rounds, [Goal(OURS, Limit(2.0), ratio=True)], peer=PEER, unit="steps/s")
    assert judged_["ratios"][OURS] == [2.0, 2.0, 0.8]
    assert judged_["goals"][OURS]["measured"] == 2.0
    assert judged_["goals"][OURS]["met"]
    assert judged_["sides"][PEER]["value"] == {"median": 50.0, "min": 10.0, "max": 100.0}


def test_of_times_the_shorter_is_the_faster_and_never_is_the_slowest() -> None:
    assert ratio(5.0, 10.0, faster_is_more=False) == 2.0
    assert ratio(5.0, math.inf, faster_is_more=False) == math.inf
    assert ratio(math.inf, 5.0, faster_is_more=False) == 0.0
    assert ratio(math.inf, math.inf, faster_is_more=False) == 1.0
    rounds = [{OURS: {"value": value}} for value in (4.0, math.inf, math.inf)]
    assert not judged(rounds, [Goal(OURS, Limit(10.0, at_most=True))], peer=PEER, unit="s")["goals"][OURS]["met"]


def test_a_side_without_a_peer_has_no_ratio() -> None:
    judged_ = judged([{OURS: {"value": 7.0}}], [Goal(OURS, Limit(5.0))], peer=PEER, unit="steps/s")
    assert judged_["ratios"] == {}
    assert judged_["goals"][OURS]["met"]


# --- The works ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WORKS)
def test_every_goal_is_of_a_side_that_is_measured(name: str) -> None:
    work = WORKS[name]
    assert work.goals
    for goal in work.goals:
        assert goal.side in work.sides
        assert not goal.ratio or PEER in work.sides
    rules = contest.Rules(1, Window(1.0, 0.0), against_itself=False, sb3_threads=0, quick=False)
    assert tuple(contest.sides_of(name, rules)) == work.sides


@pytest.mark.parametrize("name", TRAININGS)
def test_rlrun_knows_the_settings_and_trains_with_them(name: str, compose: Callable[..., dict[str, Any]]) -> None:
    work = WORKS[name]
    assert isinstance(work, Training)
    config = compose(*ours.training(work, Window(20.0, 5.0)))
    assert work.settings.items() <= config["algo"].items()
    assert work.env == "breakout" or not work.settings or config["network"]["hidden"] == list(work.hidden)
    assert float(config["stop"]["after_time"]) == 25.0


@pytest.mark.parametrize("name", [name for name, work in WORKS.items() if work.settings])
def test_stable_baselines3_gets_every_setting(name: str) -> None:
    work = WORKS[name]
    assert not isinstance(work, StartUp)
    table = {"ppo": sb3.PPO_NAMES, "dqn": sb3.DQN_NAMES, "sac": sb3.SAC_NAMES}[work.algo]
    by_other_means = {"num_envs", "share_torso", "epsilon_steps", "clip_value"}
    by_other_means |= {"learning_rate", "learning_rate_end", "clip_range", "clip_range_end"}
    assert set(work.settings) <= set(table) | by_other_means


def test_a_schedule_falls_from_its_start_to_its_end() -> None:
    falling = sb3.schedule({"clip_range": 0.2, "clip_range_end": 0.1}, "clip_range")
    assert [falling(left) for left in (1.0, 0.5, 0.0)] == pytest.approx([0.2, 0.15, 0.1])
    assert sb3.schedule({"clip_range": 0.2, "clip_range_end": 0.2}, "clip_range") == 0.2


# --- Speeds ---------------------------------------------------------------------------------------------


def test_the_warm_up_is_left_out() -> None:
    marks = [(0.0, 0), (4.0, 10), (6.0, 20), (8.0, 220)]
    assert steady_speed(marks, 5.0) == 100.0
    assert steady_speed(marks, 0.0) == 220 / 8


def test_a_window_without_a_whole_iteration_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        steady_speed([(0.0, 0), (6.0, 100)], 5.0)
    assert end.value.code == 2
    assert "give a larger --seconds" in capsys.readouterr().err


def test_runs_of_a_sweep_are_compared_while_all_of_them_train() -> None:
    def rows(begun: float, seconds_and_steps: list[tuple[float, int]]) -> list[dict[str, Any]]:
        return [{"time/unix": begun + s, "time/time_elapsed": s, "step": n} for s, n in seconds_and_steps]

    # The second begins 10 s later; the first is ten times as fast while it is alone.
    first = rows(100.0, [(5, 500), (10, 1000), (15, 1050), (20, 1100)])
    second = rows(110.0, [(5, 60), (10, 120), (15, 700)])
    assert common_speeds([first, second], 0.0) == [10.0, 12.0]


def test_the_overhead_of_a_sweep_is_what_a_process_is_busy_with_besides_its_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A process takes 4 s to import, and then 0.5 s for each run, of which 0.3 s are training.
    def timed(num_runs: int, launcher: list[str]) -> tuple[float, float]:
        processes = 2 if launcher else 1
        return 4.0 + 0.5 * num_runs / processes, 0.3

    monkeypatch.setattr(overhead, "timed_sweep", timed)
    monkeypatch.setattr(record, "machine", lambda: {"cores": 2})
    table = overhead.sweep(Size(quick=False, rounds=1, window=Window(1.0, 0.0)))
    assert [row["overhead per run, s"] for row in table.rows] == pytest.approx([0.2, 0.2])
    assert [row["met"] for row in table.rows] == [True, True]


# --- Reports --------------------------------------------------------------------------------------------


def test_a_row_shows_both_sides_their_ratios_and_whether_the_goal_is_met() -> None:
    rounds = [{PEER: {"value": 100.0, "memory_gb": 0.5}, OURS: {"value": v, "memory_gb": 0.25}} for v in (150.0, 170.0)]
    result = {
        "title": "T",
        "unit": "steps/s",
        **judged(rounds, [Goal(OURS, Limit(2.0), True)], peer=PEER, unit="steps/s"),
    }
    (row,) = benchmark.rows_of(result)
    assert row == [
        *("T (steps/s)", "160 (150 to 170)", "100", "1.50, 1.70", "1.60", ">= 2 x", "**no**", "0.25, 0.50"),
    ]


def test_what_never_ended_is_null_in_json_and_never_in_the_table(tmp_path: Path) -> None:
    report.write(tmp_path / "out.json", {"rounds": [{"value": math.inf}]}, report.number(math.inf))
    assert json.loads((tmp_path / "out.json").read_text()) == {"rounds": [{"value": None}]}
    assert (tmp_path / "out.md").read_text() == "never\n"


def test_the_row_that_others_are_held_against_is_not_judged() -> None:
    table = ScaleTable("T", "note", "of the first", "x", Limit(1.05, at_most=True))
    for grown in (None, 1.04, 1.06):
        table.add({"run": "r", "of the first": grown})
    assert [row["met"] for row in table.rows] == [None, True, False]
    assert "| r | 1.06 | <= 1.05 x | **no** |" in table.markdown()


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        (benchmark, ["--work=ppo_tetris"], "ppo_tetris is not one of ppo_breakout"),
        (benchmark, ["--pairs=0"], "0 must be above 0"),
        (benchmark, ["--seconds=no"], "invalid float value: 'no'"),
        (benchmark, ["--warm-up=-1"], "--warm-up=-1.0"),
        (benchmark, ["--out=speed.txt"], "speed.txt must be the path of a file that ends with .json"),
        (benchmark, ["--out=nowhere/speed.json"], "the folder nowhere does not exist; make it first"),
        (scale, ["--table=speed"], "speed is not one of neighbour"),
    ],
)
def test_bad_options_are_refused_with_a_remedy(
    program: Any,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["script", *arguments])
    with pytest.raises(SystemExit) as end:
        program.main()
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_a_missing_extra_is_named_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["script", "--work=q_learning_frozenlake,ppo_halfcheetah"])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert 'pip install "rlrun[bench,mujoco]"' in capsys.readouterr().err


def test_a_window_that_fails_ends_the_measurement_with_its_message(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run("rlrun", ["help", "me"], expected=3)
    assert end.value.code == 2
    assert "rlrun help me ended with code 0" in capsys.readouterr().err


def test_the_help_page_is_measured_and_written_by_the_command(tmp_path: Path) -> None:
    done = script("benchmark", "--quick", "--work=help", f"--out={tmp_path}/speed.json")
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "speed.json").read_text())
    assert written["work"]["help"]["rounds"][0][OURS]["value"] > 0
    assert "host" not in written["machine"]
    assert written["versions"]["torch"]
    assert (tmp_path / "speed.md").read_text() == done.stdout
    assert "| Start-up, `--help` (s) |" in done.stdout


@pytest.mark.slow
def test_rlrun_beside_itself_is_about_as_fast(tmp_path: Path) -> None:
    arguments = ["--quick", "--against-itself", "--work=ppo_cartpole_zoo", f"--out={tmp_path}/speed.json"]
    done = script("benchmark", *arguments)
    assert done.returncode == 0, done.stderr
    works = json.loads((tmp_path / "speed.json").read_text())["work"]
    (share,) = works["ppo_cartpole_zoo"]["ratios"][OURS]
    assert 0.1 < share < 10  # the machine of the test may be busy
    assert works["ppo_cartpole_zoo"]["goals"] == {}
    assert BF16 not in works["ppo_cartpole_zoo"]["sides"]


@pytest.mark.slow
def test_seconds_to_a_target_are_those_of_the_first_mean_of_100_episodes(tmp_path: Path) -> None:
    easy = Target(title="", algo="ppo", env="cartpole", settings={}, target=25.0, total_steps=6_000, goals=())
    reached = ours.seconds_to(easy, 6_000, seed=0)
    assert 0 < reached["value"] < 60
    assert 100 * 8 <= reached["steps"] <= 6_000  # no episode is shorter than 8 steps


@pytest.mark.slow
def test_the_tables_of_scale_are_written_by_the_command(tmp_path: Path) -> None:
    done = script("scale", "--quick", "--table=memory", f"--out={tmp_path}/scale.json")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "scale.json").read_text())["tables"]["memory"]["rows"]
    assert [row["steps"] >= mark for row, mark in zip(rows, [2_000, 6_000] * 2, strict=True)] == [True] * 4
    assert all(0 < row["own, MB"] < row["resident, MB"] for row in rows)
    assert "### Memory over steps" in (tmp_path / "scale.md").read_text()
