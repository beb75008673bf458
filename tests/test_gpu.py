"""scripts/gpu.py: its rows are runs that rlrun knows, its goals, and that one failing row stops no other."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu
import pytest
from benchmarking import ours
from benchmarking.gpu_rows import TABLES, EnvironmentRow, How, SpeedRow, TrainingRow
from benchmarking.processes import Failed, Terms, Window, environment, run
from test_benchmark import script

WINDOW = Window(30.0, 20.0)
ROWS = {row.name + name: row for name, (_, rows) in TABLES.items() for row in rows}
RESULT = {"steps": 10_000_000, "time/wall_seconds": 600.0, "mean_return": 410.0}


def how(device: str = "cuda", *, quick: bool = False, total_steps: int = 10_000_000) -> How:
    return How(device, WINDOW, quick, total_steps)


def speed_row(name: str) -> SpeedRow:
    (row,) = [row for row in ROWS.values() if isinstance(row, SpeedRow) and row.name == name]
    return row


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("name", ROWS)
def test_rlrun_knows_what_every_row_asks_for(
    name: str, quick: bool, compose: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def note(module: str, arguments: list[str], terms: Terms) -> None:
        asked.append([a for a in arguments if a != "bench" and not a.startswith(("seconds=", "json="))])
        assert terms.gpu
        assert terms.seconds is not None
        raise Failed("not run")

    for module in ("ours", "growth", "gpu_rows"):
        monkeypatch.setattr(f"benchmarking.{module}.run", note)
    row = ROWS[name]
    with pytest.raises(Failed):
        row.measure(how(quick=quick))
    config = compose(*asked[0])
    assert config["device"]["kind"] == "cuda"
    assert config["device"]["replay_on_device"] == ("on the device" in name)
    assert config["device"]["compile"] == ("compiled" in name)
    if isinstance(row, SpeedRow) and not quick:
        assert row.work.settings.items() <= config["algo"].items()
    if isinstance(row, EnvironmentRow) and not quick:
        assert config["algo"]["num_envs"] == row.num_envs


def test_many_environments_are_held_against_half_of_the_best_that_they_reach_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_gpu, wide, published = how(), "PPO Breakout, 64 x 64, bf16", "PPO Breakout, 8 x 128, bf16"
    for count, speed in ((8, 9_000.0), (128, 20_000.0), (256, 18_000.0)):
        monkeypatch.setattr("benchmarking.gpu_rows.benched", lambda *given, speed=speed: {"environment": speed})
        EnvironmentRow(name="", num_envs=count).measure(on_gpu)
    assert speed_row(wide).goal(on_gpu) == ">= 10,000 steps/s"
    assert speed_row(published).goal(on_gpu) == ">= 6,809 steps/s"
    assert speed_row(wide).goal(how()) == ">= 6,809 steps/s"  # where the environment alone was not measured
    monkeypatch.setattr(ours, "speed", lambda *given: {"value": 9_000.0, "memory_gb": 1.0})
    assert speed_row(wide).measure(on_gpu)["met"] is False
    assert speed_row(published).measure(on_gpu)["met"] is True


@pytest.mark.parametrize("unjudged", [how("cpu"), how(quick=True)], ids=["cpu", "quick"])
def test_neither_a_cpu_nor_a_quick_run_is_judged(unjudged: How, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "speed", lambda *given: {"value": 10.0**6, "memory_gb": 1.0})
    assert speed_row("SAC HalfCheetah, replay on the host").measure(unjudged)["met"] is None
    (training,) = TABLES["train_ppo"][1]
    assert isinstance(training, TrainingRow)
    assert training.as_row(RESULT, 700.0, unjudged)["met"] is None


@pytest.mark.parametrize(
    ("changed", "met"),
    [
        ({}, True),
        ({"mean_return": 399.0}, False),
        ({"time/wall_seconds": 901.0}, False),
        ({"steps": 1_000_000}, None),  # fewer than the goal is about
    ],
)
def test_a_training_must_be_good_and_soon_enough(changed: dict[str, float], met: bool | None) -> None:
    (training,) = TABLES["train_ppo"][1]
    assert isinstance(training, TrainingRow)
    row = training.as_row({**RESULT, **changed}, 1_000.0, how())
    assert row["met"] is met
    assert row["steps/s"] == row["steps"] / (60 * row["training, min"])


@pytest.mark.parametrize(
    "error", [Failed("Traceback\n  a | b\nOutOfMemoryError: 5 GB | 3 GB\n"), ValueError("half a row")], ids=repr
)
def test_a_row_that_fails_is_reported_and_the_next_ones_are_measured(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def speed(work: Any, window: Window, seed: int, extra: list[str], terms: Terms) -> dict[str, float]:
        if "device.replay_on_device=true" in extra:
            raise error
        return {"value": 1_234.0, "memory_gb": 0.5}

    monkeypatch.setattr(ours, "speed", speed)
    out = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device=cpu", "--table=replay", f"--out={out}"])
    with pytest.raises(SystemExit) as end:
        gpu.main()
    assert end.value.code == 1
    rows = json.loads(out.read_text())["tables"]["replay"]["rows"]
    assert [row["failed"] is None for row in rows] == [True, False, True, False]
    last = "OutOfMemoryError: 5 GB / 3 GB" if isinstance(error, Failed) else "ValueError: half a row"
    assert last.replace("/", "|") in rows[1]["failed"]
    page = out.with_suffix(".md").read_text()
    assert "| DQN Breakout, replay on the host | 1,234 | 0.5 | - | - | - |" in page
    assert f"| DQN Breakout, replay on the device | - | - | - | - | {last} |" in page
    assert "device: the CPU" in page
    assert "Goals are for a GPU and are not judged here." in page


def test_a_process_that_takes_too_long_is_ended(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Failed, match="2"):
        run("timeit", ["-n", "1", "import time; time.sleep(60)"], terms=Terms(seconds=0.3))
    assert "was ended after 0.3 s" in capsys.readouterr().err


def test_only_who_asks_for_the_gpu_sees_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert environment()["CUDA_VISIBLE_DEVICES"] == ""
    assert environment(Terms(gpu=True))["CUDA_VISIBLE_DEVICES"] == "3"


def test_a_machine_without_a_gpu_is_told_what_it_can_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "gpu_name", lambda: None)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit) as end:
        gpu.main()
    assert end.value.code == 2
    assert "--device=cpu --quick" in capsys.readouterr().err


@pytest.mark.slow
def test_rows_are_measured_and_written_by_the_command(tmp_path: Path) -> None:
    done = script("gpu", "--device=cpu", "--quick", "--table=pqn,train_pqn", f"--out={tmp_path}/gpu.json")
    assert done.returncode == 0, done.stderr
    tables = json.loads((tmp_path / "gpu.json").read_text())["tables"]
    rows = [row for table in tables.values() for row in table["rows"]]
    assert [row["failed"] for row in rows] == [None, None]
    assert all(row["steps/s"] > 0 for row in rows)
    assert (tmp_path / "gpu.md").read_text() == done.stdout
    assert "**Quick: these numbers mean nothing.**" in done.stdout
