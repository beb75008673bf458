"""Running a stored run again: what counts as the same, and what is said where it is not."""

import json
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from harness import killed_inside, rlrun, rlrun_here, rows, the_run

from rlrun.checkpoint import Checkpoints
from rlrun.errors import UserError
from rlrun.reproduce import Comparison, Scope, own_code, record_differences, reproduce, scope_of
from rlrun.run_folder import RunFolder

SHORT = [
    *("algo=ppo", "env=cartpole", "total_steps=1500", "algo.num_envs=4", "algo.num_steps=32", "algo.batch_size=64"),
    *("eval.every=400", "eval.episodes=2", "eval.final_episodes=3", "checkpoint.every=300", "log.every=100"),
    *("log.console=false", "device.threads=1"),
]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stored")
    done = rlrun(SHORT, folder)
    assert done.returncode == 0, done.stderr
    return the_run(folder)


@pytest.fixture
def run(stored: Path, tmp_path: Path) -> Path:
    """A copy of the stored run, which a test may change."""
    return Path(shutil.copytree(stored, tmp_path / "seed=0"))


def edit_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def edit_row(path: Path, index: int, **changes: Any) -> dict[str, Any]:
    """Change one row of a log; return it as it was."""
    lines = path.read_text().splitlines()
    row = json.loads(lines[index])
    lines[index] = json.dumps({**row, **changes})
    path.write_text("\n".join(lines) + "\n")
    return dict(row)


def compared(one: Path, other: Path, until: int | None = None, looks: list[str] | None = None) -> Comparison:
    return Comparison(RunFolder(one), RunFolder(other), Scope(until, looks or []))


# --- The command ----------------------------------------------------------------------------------------


def test_a_run_is_reproduced_bit_for_bit_and_nothing_is_left_behind(stored: Path, tmp_path: Path) -> None:
    before = {p: p.read_bytes() for p in stored.rglob("*") if p.is_file()}
    done = rlrun_here(["reproduce", str(stored)], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"bit-identical: {stored}, the whole run")
    for name in ("metrics", "episodes", "evaluations"):
        assert f"equal: {len(rows(stored / f'{name}.jsonl'))} rows of {name}.jsonl" in done.stdout
    assert re.search(r"equal: [1-9]\d* tensors of the checkpoint of step 1,536", done.stdout)
    assert "equal: result.json" in done.stdout
    assert list(tmp_path.iterdir()) == []
    assert {p: p.read_bytes() for p in stored.rglob("*") if p.is_file()} == before


def test_another_result_is_placed_at_its_first_step_and_explained_by_the_record(run: Path, tmp_path: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["algo"]["learning_rate"] *= 1.5
    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    edit_json(run / "run.json", lambda record: record["packages"].update(numpy="1.0"))
    edit_json(run / "run.json", lambda record: record["fingerprint"].update(threads=7))
    done = rlrun_here(["reproduce", str(run), f"into={tmp_path / 'again'}"], tmp_path)
    assert done.returncode == 1, done.stderr
    again = tmp_path / "again" / "run"
    first = next(a["step"] for a, b in zip(*(rows(r / "metrics.jsonl") for r in (run, again)), strict=True) if a != b)
    assert f"first at step {first}, metrics.jsonl > train/" in done.stdout
    assert "packages.numpy: 1.0 then" in done.stdout
    assert "fingerprint.threads: 7 then, 1 now" in done.stdout
    # What was asked for is a run like any other.
    assert json.loads((again / "run.json").read_text())["reproduces"] == str(run)
    assert rlrun_here(["eval", str(again), "episodes=1"], tmp_path).returncode == 0


def test_a_beginning_can_be_reproduced_under_the_schedules_of_the_whole(stored: Path, tmp_path: Path) -> None:
    done = rlrun_here(["reproduce", str(stored), "steps=700"], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "up to step 768" in done.stdout  # an iteration of 128 steps is finished
    earlier = sum(row["step"] < 768 for row in rows(stored / "metrics.jsonl"))
    assert f"equal: {earlier} rows of metrics.jsonl" in done.stdout


@pytest.mark.crash
def test_a_killed_run_is_reproduced_up_to_its_last_checkpoint(tmp_path: Path) -> None:
    assert killed_inside("half a checkpoint", 3, SHORT, tmp_path) == -signal.SIGKILL
    run = the_run(tmp_path)
    last = Checkpoints(run, keep=1).steps()[-1]
    done = rlrun_here(["reproduce", str(run)], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"tensors of the checkpoint of step {last:,}" in done.stdout


def test_a_repetition_that_fails_is_a_difference(run: Path, tmp_path: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["algo"]["learning_rate"] = 1e30
    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    done = rlrun_here(["reproduce", str(run)], tmp_path)
    assert done.returncode == 1
    assert "train/loss=nan" in done.stderr
    assert done.stdout.startswith("different:")


# --- Comparison -----------------------------------------------------------------------------------------


def test_a_copy_is_identical(stored: Path, run: Path) -> None:
    assert compared(stored, run).first() is None


def test_the_clock_does_not_count(stored: Path, run: Path) -> None:
    edit_row(run / "metrics.jsonl", 2, **{"time/fps": 1.0})
    edit_json(run / "result.json", lambda result: result.update({"time/wall_seconds": 0}))
    assert compared(stored, run).first() is None


def test_of_several_differences_the_earliest_is_named(stored: Path, run: Path) -> None:
    edit_row(run / "metrics.jsonl", 5, **{"train/loss": 0.0})
    old = edit_row(run / "episodes.jsonl", 1, **{"return": -1.0})
    found = compared(stored, run).first()
    assert found is not None
    assert (found.where, found.step, found.one, found.other) == (
        "episodes.jsonl > return",
        old["step"],
        old["return"],
        -1.0,
    )


def test_a_single_weight_is_a_difference(stored: Path, run: Path) -> None:
    checkpoints = Checkpoints(run, keep=2)
    state, manifest = checkpoints.load(1536)
    weight = state["algorithm"]["net"]["value_head.bias"]
    weight[0] = torch.nextafter(weight[0], torch.tensor(1e9))
    checkpoints.save(1536, state, {"fingerprint": manifest["fingerprint"]})
    found = compared(stored, run).first()
    assert found is not None
    assert found.step == 1536
    assert "net > value_head.bias[0]" in found.where


def test_another_score_or_a_missing_row_is_a_difference(stored: Path, run: Path) -> None:
    edit_json(run / "result.json", lambda result: result.update(mean_return=0.0))
    found = compared(stored, run).first()
    assert found is not None
    assert found.where == "result.json > mean_return"
    lines = (run / "evaluations.jsonl").read_text().splitlines(keepends=True)
    (run / "evaluations.jsonl").write_text("".join(lines[:-1]))
    found = compared(stored, run).first()
    assert found is not None
    assert (found.where, found.other) == ("evaluations.jsonl", "no row")


def test_where_cadences_were_changed_on_the_way_only_what_is_learned_is_compared(stored: Path, run: Path) -> None:
    edit_row(run / "metrics.jsonl", 2, **{"train/loss": 0.0})
    comparison = compared(stored, run, looks=["log.every"])
    assert comparison.first() is None
    assert any("log.every" in line for line in comparison.left_out)
    edit_row(run / "episodes.jsonl", 1, **{"return": -1.0})
    assert compared(stored, run, looks=["log.every"]).first() is not None


# --- What can be reproduced -----------------------------------------------------------------------------


def test_a_run_that_was_extended_is_refused_with_the_reason(run: Path) -> None:
    event = {"event": "continued", "changed": {"total_steps": [1000, 1500]}}
    edit_json(run / "run.json", lambda record: record["lineage"].append(event))
    with pytest.raises(UserError, match="went on with total_steps=1500 after it had begun with 1000"):
        reproduce([str(run)])


def test_a_run_that_the_clock_ended_is_reproduced_up_to_where_it_came(run: Path) -> None:
    edit_json(run / "result.json", lambda result: result.update(stopped_early="stop.after_time"))
    assert scope_of(RunFolder(run), 0).until == 1536
    edit_json(run / "result.json", lambda result: result.update(stopped_early="stop.at_return"))
    assert scope_of(RunFolder(run), 0).until is None


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("steps=-1", "steps=-1 is out of range"),
        ("steps=9999", "steps=9999 is beyond what is stored .* at most 1536"),
        ("step=3", "Did you mean steps"),
        ("into=.", "into=. exists and is not an empty folder"),
    ],
)
def test_bad_input_is_refused_with_a_remedy(
    run: Path, argument: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run)
    with pytest.raises(UserError, match=message):
        reproduce([str(run), argument])


def test_a_run_without_anything_to_compare_says_so(run: Path) -> None:
    edit_json(run / "run.json", lambda record: record.update(status="interrupted"))
    shutil.rmtree(run / "checkpoints")
    (run / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="neither a checkpoint nor a row"):
        reproduce([str(run)])


# --- Records --------------------------------------------------------------------------------------------


def test_records_differ_by_what_can_change_a_bit_and_not_by_the_name_of_the_host() -> None:
    then: dict[str, Any] = {
        "code": {"sha256": "a" * 64, "commit": "one", "dirty_diff": ""},
        "packages": {"torch": "2.11.0"},
        "python": "3.11.7",
        "machine": {"host": "here", "cores": 2, "memory_bytes": 1},
        "environment": {"rom_sha256": "x"},
        "fingerprint": {"threads": 1, "code": "a", "packages": {"torch": "2.11.0"}, "python": "3.11.7"},
    }
    now = json.loads(json.dumps(then))
    now["machine"] |= {"host": "there", "memory_bytes": 2}
    now["fingerprint"]["code"] = "b"
    assert record_differences(then, now) == {}
    now["packages"]["torch"] = "2.13.0"
    now["environment"]["rom_sha256"] = "y"
    now["code"] |= {"commit": "two", "dirty_diff": "one line\nanother"}
    found = record_differences(then, now)
    assert found["packages.torch"] == ("2.11.0", "2.13.0")
    assert found["environment.rom_sha256"] == ("x", "y")
    assert found["code.commit"] == ("one", "two")
    assert found["code.dirty_diff"][0] == "none"
    assert found["code.dirty_diff"][1].startswith("2 lines")


def test_code_that_no_record_holds_is_named() -> None:
    config = {"algo": {"_target_": "rlrun.algos.ppo.PPO"}, "env": {"_target_": "rlrun.envs.gym.Gym", "module": None}}
    assert own_code(config) == ""
    config["algo"]["_target_"] = "my.Own"
    assert "my.Own" in own_code(config)
