"""Run folders read into records, whatever state they are in."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from synthetic import write_run

from rlrun.analysis.curves import average, steps_to, thinned
from rlrun.analysis.runs import elapsed, evaluations, read_runs
from rlrun.errors import UserError


def test_a_run_folder_becomes_a_record(tmp_path: Path) -> None:
    write_run(tmp_path, seed=3, final=321.0, curve=[1.0, 2.5])
    (run,), notices = read_runs([tmp_path])
    assert not notices
    assert (run.env, run.algo, run.variant, run.seed, run.status) == ("cartpole", "ppo", "default", 3, "finished")
    assert run.result is not None
    assert (run.result["mean_return"], run.result["episodes"]) == (321.0, 100)
    assert run.curve.tolist() == [[500.0, 1.0], [1000.0, 2.5]]
    assert run.config["algo.learning_rate"] == 0.001
    assert run.wall_seconds == 2000.0
    assert run.seconds_at(np.array([10.0, 500.0])) == pytest.approx([20.0, 1000.0])  # the first row is at step 50


def test_an_unfinished_run_keeps_what_it_has(tmp_path: Path) -> None:
    folder = write_run(tmp_path, final=None, status="running")
    with open(folder / "evaluations.jsonl", "a") as file:
        file.write('{"step": 1200, "mean_ret')  # killed inside the row
    (run,), _ = read_runs([folder])
    assert run.status == "interrupted"  # nobody holds its lock
    assert not run.finished
    assert len(run.curve) == 4
    assert run.wall_seconds == 2000.0  # of the metrics


def test_a_run_without_any_row_is_read(tmp_path: Path) -> None:
    folder = write_run(tmp_path, final=None, status="failed")
    (folder / "metrics.jsonl").unlink()
    (folder / "evaluations.jsonl").write_text("")
    (run,), _ = read_runs([folder])
    assert run.curve.shape == run.clock.shape == (0, 2)
    assert run.wall_seconds is None


def test_the_same_run_given_twice_counts_once(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    assert len(read_runs([tmp_path, folder])[0]) == 1


def test_a_damaged_run_is_left_out_and_named(tmp_path: Path) -> None:
    write_run(tmp_path, seed=0)
    (write_run(tmp_path, seed=1) / "run.json").write_text("{")
    runs, notices = read_runs([tmp_path])
    assert len(runs) == 1
    assert "seed=1" in notices[0]


def test_an_unknown_path_and_a_folder_without_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_runs([tmp_path / "nowhere"])
    with pytest.raises(UserError, match="no runs"):
        read_runs([tmp_path])


def test_rows_that_another_hand_wrote_are_read_as_well(tmp_path: Path) -> None:
    rows = [
        {"mean_return": 1.5, "step": 10},
        {"step": 20, "mean_return": None},
        {"step": 30, "mean_return": float("nan")},
        {"step": 40, "mean_return": -2e-05, "lengths": [3]},
        {"step": 50, "mean_return": 7},
    ]
    path = tmp_path / "evaluations.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "not json\n")
    assert evaluations(path).tolist() == [[10.0, 1.5], [40.0, -2e-05], [50.0, 7.0]]


def test_the_clock_is_thinned_and_keeps_its_ends(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": i, **({"time/time_elapsed": i / 2} if i % 2 else {})} for i in range(1, 1001)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    clock = elapsed(path)
    assert len(clock) <= 100
    assert clock[0].tolist() == [1.0, 0.5]
    assert clock[-1].tolist() == [999.0, 499.5]


def test_a_mean_curve_spans_what_all_runs_know() -> None:
    short, long = np.array([[10.0, 0.0], [20.0, 10.0]]), np.array([[15.0, 4.0], [25.0, 4.0], [30.0, 4.0]])
    curve = average([short, long], np.random.default_rng(0))
    assert curve is not None
    assert curve.x.tolist() == [15.0, 20.0]
    assert curve.mean.tolist() == [4.5, 7.0]
    assert average([short[:1], long], np.random.default_rng(0)) is None


def test_steps_to_a_threshold_are_those_of_the_first_evaluation_there() -> None:
    curve = np.array([[1.0, 0.0], [2.0, 5.0], [3.0, 1.0], [4.0, 6.0]])
    assert steps_to(5.0, curve) == 2.0
    assert steps_to(7.0, curve) == float("inf")


def test_thinning_keeps_both_ends() -> None:
    curve = np.column_stack([np.arange(1000.0), np.arange(1000.0)])
    assert thinned(curve, 7)[[0, -1], 0].tolist() == [0.0, 999.0]


def test_reading_and_comparing_imports_neither_torch_nor_matplotlib_before_it_draws() -> None:
    code = "import sys, rlrun.analysis.compare; print(sorted({'torch', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
