"""What becomes of a replay's files when a run ends, is extended, or finds no room for them."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import killed_inside, rlrun_here, the_run

from rlrun.build import build_agent
from rlrun.errors import UserError
from rlrun.room import check_room, estimate

SHORT = [
    *("algo=dqn", "env=cartpole", "tuned=none", "network.hidden=[8]", "total_steps=300", "log.console=false"),
    *("algo.buffer_size=200", "algo.learning_starts=50", "eval.episodes=2", "eval.final_episodes=2"),
]


def test_a_finished_run_leaves_no_replay_and_says_so_when_it_is_to_be_extended(tmp_path: Path) -> None:
    assert rlrun_here(SHORT, tmp_path).returncode == 0
    run = the_run(tmp_path)
    assert not (run / "replay").exists()
    before = {name: (run / name).read_bytes() for name in ("result.json", "run.json", "config.yaml", "metrics.jsonl")}

    refused = rlrun_here(["resume", str(run), "total_steps=600"], tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.count("error:") == 1
    assert "checkpoint.keep_replay=true" in refused.stderr
    assert {name: (run / name).read_bytes() for name in before} == before  # its result is still one

    assert rlrun_here(["eval", str(run), "episodes=1"], tmp_path).returncode == 0  # to play it takes no replay


def contents(run: Path) -> dict[str, bytes]:
    """Return what a run folder holds, but for its replay and the console's record."""
    files = [p for p in run.rglob("*") if p.is_file() and "replay" not in p.parts and p.name != "run.log"]
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


def test_a_kept_replay_lets_a_finished_run_go_on_unless_it_is_damaged(tmp_path: Path) -> None:
    assert rlrun_here([*SHORT, "checkpoint.keep_replay=true"], tmp_path).returncode == 0
    run, damaged = the_run(tmp_path), tmp_path / "damaged"
    files = sorted(p.name for p in (run / "replay" / "0").iterdir())
    assert files == ["action.bin", "flags.bin", "frame.bin", "reward.bin"]

    shutil.copytree(run, damaged)
    with open(damaged / "replay" / "0" / "frame.bin", "r+b") as file:
        file.seek(4 * 4 * 250)
        file.write(b"\xff\xff")
    before = contents(damaged)
    refused = rlrun_here(["resume", str(damaged), "total_steps=600"], tmp_path)
    assert refused.returncode == 1
    assert "frame.bin" in refused.stderr
    assert "fresh=true" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert contents(damaged) == before  # finished, with its result and its total_steps

    extended = rlrun_here(["resume", str(run), "total_steps=600", "checkpoint.keep_replay=false"], tmp_path)
    assert extended.returncode == 0, extended.stderr
    assert "continuing from step 300 of 600" in extended.stderr
    assert json.loads((run / "result.json").read_text())["steps"] == 600
    assert not (run / "replay").exists()


def test_an_older_checkpoint_whose_records_were_overwritten_is_refused_by_its_step(tmp_path: Path) -> None:
    seldom = ["algo.train_every=50", "eval.every=5000", "total_steps=5000", "checkpoint.every=300"]  # 3,072 slots
    assert rlrun_here([*SHORT, *seldom, "checkpoint.keep=12", "checkpoint.keep_replay=true"], tmp_path).returncode == 0
    run = the_run(tmp_path)
    steps = sorted(int(p.stem.removeprefix("step-")) for p in run.glob("checkpoints/step-*.pt"))
    assert len(steps) == 12
    for step in steps[1:]:
        (run / "checkpoints" / f"step-{step}.pt").write_bytes(b"damaged")
    refused = rlrun_here(["resume", str(run), "total_steps=6000"], tmp_path)
    assert refused.returncode == 1
    assert f"checkpoint of step {steps[0]} cannot be gone on from" in refused.stderr
    assert "only the last two" in refused.stderr
    assert "Traceback" not in refused.stderr
    played = rlrun_here(["eval", str(run), f"checkpoint={steps[0]}", "episodes=1"], tmp_path)
    assert played.returncode == 0, played.stderr


@pytest.fixture(scope="module")
def killed_before_its_replay_was_removed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run that was killed when it had just said that it was finished."""
    folder = tmp_path_factory.mktemp("killed")
    assert killed_inside("removing the replay", 1, SHORT, folder) == -signal.SIGKILL
    run = the_run(folder)
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    assert (run / "replay" / "0" / "frame.bin").exists()
    return folder


@pytest.mark.parametrize("command", ["the same", "resume", "a sweep"])
def test_a_replay_that_a_kill_left_of_a_finished_run_goes_when_the_run_is_asked_for_again(
    command: str, killed_before_its_replay_was_removed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "again"
    shutil.copytree(killed_before_its_replay_was_removed, folder)
    run = the_run(folder)
    before = contents(run)
    commands = {"the same": SHORT, "resume": ["resume", str(run)], "a sweep": ["-m", *SHORT]}

    kept = rlrun_here([*commands[command], "checkpoint.keep_replay=true"], folder)
    assert kept.returncode == 0, kept.stderr
    assert (run / "replay" / "0" / "frame.bin").exists()  # who asks for it gets it

    again = rlrun_here(commands[command], folder)
    assert again.returncode == 0, again.stderr
    assert "removed its replay of" in again.stderr
    assert not (run / "replay").exists()
    assert contents(run) == before


def test_a_replay_that_was_asked_for_is_left_to_a_finished_run(tmp_path: Path) -> None:
    assert rlrun_here([*SHORT, "checkpoint.keep_replay=true"], tmp_path).returncode == 0
    assert rlrun_here(SHORT, tmp_path).returncode == 0
    assert (the_run(tmp_path) / "replay" / "0" / "frame.bin").exists()


@pytest.mark.parametrize("alpha", ["null", "0.5"])
def test_a_replay_that_the_disk_cannot_hold_is_refused_by_its_key(
    alpha: str, compose: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    huge = ("algo.buffer_size=1_000_000_000_000", f"algo.priority_alpha={alpha}")
    config = compose("algo=dqn", "env=cartpole", "device=cpu", *huge)
    with pytest.raises(UserError, match=r"algo\.buffer_size"):
        check_room(estimate(build_agent(config, tmp_path).algorithm, config), tmp_path)
    assert list(tmp_path.iterdir()) == []
