"""A thousand runs of a thousand points: a report in under 20 seconds and under 1 GB."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from synthetic import CARTPOLE, write_rows, write_run

ALGOS, SEEDS, POINTS = 20, 50, 1000
MOST_SECONDS, MOST_BYTES = 20.0, 1e9
TRAIN = ("approx_kl", "clip_fraction", "entropy_loss", "explained_variance", "learning_rate", "loss", "value_loss")


def write_runs(outputs: Path) -> None:
    """Write the runs. Rows are alike in all of them, so the disk holds them once."""
    curve = np.minimum(500, np.linspace(0, 600, POINTS)).tolist()
    steps = [1000 * (i + 1) for i in range(POINTS)]
    big = outputs / "big"
    evaluations = [
        {"step": s, "mean_return": y, "std_return": 0.0, "returns": [y] * 10, "lengths": [500] * 10}
        for s, y in zip(steps, curve, strict=True)
    ]
    metrics = [
        {"step": s, "rollout/ep_rew_mean": 1.0, "time/time_elapsed": s / 100, **{f"train/{k}": 0.12345 for k in TRAIN}}
        for s in steps
    ]
    big.mkdir(parents=True)
    write_rows(big / "evaluations.jsonl", evaluations)
    write_rows(big / "metrics.jsonl", metrics)
    for algo in range(ALGOS):
        for seed in range(SEEDS):
            options = {"final": 400.0 + algo + seed, "protocol": CARTPOLE, "total_steps": 1000 * POINTS, "rows": 1}
            run = write_run(outputs, algo=f"algo{algo}", seed=seed, curve=[0.0], **options)
            for name in ("evaluations.jsonl", "metrics.jsonl"):
                (run / name).unlink()
                os.link(big / name, run / name)


@pytest.mark.slow
def test_a_thousand_runs_of_a_thousand_points_are_reported_in_time_and_in_memory(tmp_path: Path) -> None:
    write_runs(tmp_path / "outputs")
    command = [sys.executable, "-m", "rlrun", "compare", "outputs"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert len(report["runs"]) == ALGOS * SEEDS
    assert len(report["environments"]["cartpole"]["curves"]["steps"]["algo0"]["x"]) == 100  # thinned from POINTS
    assert used.ru_utime + used.ru_stime < MOST_SECONDS  # of processor time: a busy neighbour is not our fault
    assert 1024 * used.ru_maxrss < MOST_BYTES
