"""What becomes of a replay's files when a run ends, is extended, or finds no room for them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import rlrun, the_run

from rlrun.build import build_agent, check_room, estimate
from rlrun.errors import UserError

SHORT = [
    *("algo=dqn", "env=cartpole", "tuned=none", "network.hidden=[8]", "total_steps=300", "log.console=false"),
    *("algo.buffer_size=200", "algo.learning_starts=50", "eval.episodes=2", "eval.final_episodes=2"),
]


def test_a_finished_run_leaves_no_replay_and_says_so_when_it_is_to_be_extended(tmp_path: Path) -> None:
    assert rlrun(SHORT, tmp_path).returncode == 0
    run = the_run(tmp_path)
    assert not (run / "replay").exists()
    before = {name: (run / name).read_bytes() for name in ("result.json", "run.json", "config.yaml", "metrics.jsonl")}

    refused = rlrun(["resume", str(run), "total_steps=600"], tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.count("error:") == 1
    assert "checkpoint.keep_replay=true" in refused.stderr
    assert {name: (run / name).read_bytes() for name in before} == before  # its result is still one

    assert rlrun(["eval", str(run), "episodes=1"], tmp_path).returncode == 0  # to play it takes no replay


def test_a_kept_replay_lets_a_finished_run_go_on_unless_it_is_damaged(tmp_path: Path) -> None:
    assert rlrun([*SHORT, "checkpoint.keep_replay=true"], tmp_path).returncode == 0
    run, damaged = the_run(tmp_path), tmp_path / "damaged"
    files = sorted(p.name for p in (run / "replay" / "0").iterdir())
    assert files == ["action.bin", "flags.bin", "frame.bin", "reward.bin"]

    shutil.copytree(run, damaged)
    with open(damaged / "replay" / "0" / "frame.bin", "r+b") as file:
        file.seek(4 * 4 * 250)
        file.write(b"\xff\xff")
    refused = rlrun(["resume", str(damaged), "total_steps=600"], tmp_path)
    assert refused.returncode == 1
    assert "frame.bin" in refused.stderr
    assert "fresh=true" in refused.stderr
    assert "Traceback" not in refused.stderr

    extended = rlrun(["resume", str(run), "total_steps=600", "checkpoint.keep_replay=false"], tmp_path)
    assert extended.returncode == 0, extended.stderr
    assert "continuing from step 300 of 600" in extended.stderr
    assert json.loads((run / "result.json").read_text())["steps"] == 600
    assert not (run / "replay").exists()


@pytest.mark.parametrize("alpha", ["null", "0.5"])
def test_a_replay_that_the_disk_cannot_hold_is_refused_by_its_key(
    alpha: str, compose: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    huge = ("algo.buffer_size=1_000_000_000_000", f"algo.priority_alpha={alpha}")
    config = compose("algo=dqn", "env=cartpole", "device=cpu", *huge)
    with pytest.raises(UserError, match=r"algo\.buffer_size"):
        check_room(estimate(build_agent(config, tmp_path), config), tmp_path)
    assert list(tmp_path.iterdir()) == []
