"""Runs in company: beside a busy process, and beside each other in a sweep."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarking import ours
from benchmarking.goals import Limit
from benchmarking.processes import Window, fail, killed_in_the_end, run
from benchmarking.tables import ScaleTable, Size
from benchmarking.works import WORKS, Training

KEPT_BESIDE_A_NEIGHBOUR = Limit(0.5)  # of the lone speed
KEPT_IN_A_SWEEP = Limit(0.8)  # of a lone run on one thread
ONE_THREAD = "device.threads=1"
STAGGER = 10.0  # seconds: workers that begin together are not through with their imports together


def neighbour(size: Size) -> ScaleTable:
    """Measure runs with the machine to themselves and beside one busy process, in turn."""
    made = ScaleTable(
        "Beside a busy neighbour",
        "Steps per second alone and beside one process that never waits, in turn; medians, and the median of the "
        "ratios round by round.",
        "of lone speed",
        "x",
        KEPT_BESIDE_A_NEIGHBOUR,
    )
    for name in _works(size):
        alone, beside = [], []
        for seed in range(size.rounds):
            alone.append(ours.speed(_training(name), size.window, seed)["value"])
            with busy_process():
                beside.append(ours.speed(_training(name), size.window, seed)["value"])
        kept = median(b / a for a, b in zip(alone, beside, strict=True))
        made.add(
            {
                "work": WORKS[name].title,
                "alone, steps/s": median(alone),
                "beside, steps/s": median(beside),
                "of lone speed": kept,
            }
        )
    return made


@contextmanager
def busy_process() -> Iterator[None]:
    """Keep one core busy."""
    spinning = subprocess.Popen([sys.executable, "-c", "while True: pass"], text=True)
    with killed_in_the_end(spinning):
        yield


def parallel(size: Size) -> ScaleTable:
    """Measure a lone run on one thread and a sweep with a run on each core, in turn."""
    from rlrun import record

    cores = record.machine()["cores"]
    made = ScaleTable(
        "Parallel runs of a sweep",
        f"Steps per second of a lone run on one thread, and of each of {cores} runs of a sweep on {cores} cores, while "
        "all of them train; in turn, medians over the rounds. The slowest run of each round is held against the lone "
        "one.",
        "slowest, of lone speed",
        "x",
        KEPT_IN_A_SWEEP,
    )
    for name in _works(size):
        lone, swept = [], []
        for seed in range(size.rounds):
            lone.append(ours.speed(_training(name), size.window, seed, [ONE_THREAD])["value"])
            swept.append(sweep_speeds(_training(name), size.window, cores))
        slowest = median(min(speeds) / alone for alone, speeds in zip(lone, swept, strict=True))
        made.add(
            {
                "work": WORKS[name].title,
                "runs": cores,
                "lone, steps/s": median(lone),
                "each, steps/s": median(speed for speeds in swept for speed in speeds),
                "slowest, of lone speed": slowest,
            }
        )
    return made


def sweep_speeds(work: Training, window: Window, num_runs: int) -> list[float]:
    """Train so many runs at once in joblib's workers; return their speeds while all of them train."""
    launcher = ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={num_runs}"]
    longer = Window(window.seconds + STAGGER, window.warm_up)
    with tempfile.TemporaryDirectory() as folder:
        task = [*ours.training(work, longer), ONE_THREAD, f"seed=range({num_runs})", *launcher]
        run("rlrun", ["-m", *task, f"outputs={folder}"])
        runs = [ours.metrics(path.parent) for path in sorted(Path(folder).rglob("metrics.jsonl"))]
    return common_speeds(runs, window.warm_up)


def common_speeds(runs: Sequence[Sequence[dict[str, Any]]], warm_up: float) -> list[float]:
    """Return the steps per second of each run in the time that all of them trained, by their rows of metrics."""
    marks = []  # of each run: (seconds since the epoch, steps), from its start
    for rows in runs:
        begun = rows[0]["time/unix"] - rows[0]["time/time_elapsed"]
        marks.append([(begun, 0), *((row["time/unix"], row["step"]) for row in rows)])
    start, end = max(run[0][0] for run in marks) + warm_up, min(run[-1][0] for run in marks)
    speeds = []
    for run_marks in marks:
        inside = [mark for mark in run_marks if start <= mark[0] <= end]
        if len(inside) < 2:
            fail("no whole iteration fits into the time that all runs trained: give a larger --seconds")
        (first_time, first), (last_time, last) = inside[0], inside[-1]
        speeds.append((last - first) / (last_time - first_time))
    return speeds


def _works(size: Size) -> list[str]:
    several = ["ppo_breakout", "dqn_breakout", "sac_halfcheetah", "ppo_cartpole_zoo"]
    return several[-1:] if size.quick else several


def _training(name: str) -> Training:
    work = WORKS[name]
    assert isinstance(work, Training)
    return work
