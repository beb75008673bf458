"""What the tests of whole runs share: the CLI as a process, and the comparison of two run folders."""

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlrun.difference import first_difference, rows, timeless

__all__ = ["first_difference", "rows"]  # for the tests that compare runs

TESTS = Path(__file__).parent


def rlrun(arguments: list[str], folder: Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run the command line in `folder` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "rlrun", *arguments], cwd=folder, capture_output=True, text=True, timeout=timeout
    )


def rlrun_here(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line in `folder`, in this process: as `rlrun` does, without seconds of imports.

    For what takes no process of its own to be proved: signals, kills, and what happens at import do.
    """
    from rlrun.cli import main

    typed, out, err = ["rlrun", *arguments], io.StringIO(), io.StringIO()
    threads = torch.get_num_threads()
    with (
        chdir(folder),
        redirect_stdout(out),
        redirect_stderr(err),
        mock.patch.object(sys, "argv", typed),
        mock.patch.object(sys, "path", [*sys.path]),
        mock.patch.dict(os.environ),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code
    torch.set_num_threads(threads)
    return subprocess.CompletedProcess(typed, int(code or 0), out.getvalue(), err.getvalue())


def start(arguments: list[str], folder: Path) -> subprocess.Popen[str]:
    """Start the command line in `folder`."""
    return subprocess.Popen(
        [sys.executable, "-m", "rlrun", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def killed_inside(place: str, occasion: int, arguments: list[str], folder: Path) -> int:
    """Run until the process kills itself at the given occasion of being in `place`; return its exit code."""
    done = subprocess.run(
        [sys.executable, str(TESTS / "kill_inside.py"), place, str(occasion), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode


def total_steps(arguments: list[str]) -> int:
    """Return the steps that the arguments ask for, of which the last counts."""
    return int([a for a in arguments if a.startswith("total_steps=")][-1].partition("=")[2])


def saved_step(folder: Path) -> int:
    """Return the step of the newest checkpoint below `folder`, -1 without one."""
    # Not by rglob, which fails where a folder goes while it looks.
    found = folder.glob("outputs/*/*/*/*/checkpoints/step-*.json")
    return max((int(p.stem.removeprefix("step-")) for p in found), default=-1)


def kill_underway(dice: random.Random, low: float, high: float, arguments: list[str], folder: Path) -> int:
    """SIGKILL a run that is so far, of its steps, at a random moment between two checkpoints; return the newest's step.

    It goes by the run's own progress, since a machine may be ten times as fast as another, or stand still for a while;
    a run that was past `high` before the signal came is given up and begun anew.
    """
    total = total_steps(arguments)
    for _ in range(10):
        wanted = dice.uniform(low, high) * total
        process = start(arguments, folder)
        seen, times = -1, list[float]()
        while seen < wanted and process.poll() is None:
            time.sleep(0.002)
            if (newest := saved_step(folder)) > seen:
                seen = newest
                times.append(time.monotonic())
        if len(times) > 1:
            time.sleep(dice.random() * (times[-1] - times[-2]))
        process.send_signal(signal.SIGKILL)
        output, _ = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), output
        if process.returncode == -signal.SIGKILL and 0 <= saved_step(folder) <= high * total:
            return saved_step(folder)
        shutil.rmtree(folder)
        folder.mkdir()
    raise AssertionError("the run was always through before it could be killed")


def the_run(folder: Path) -> Path:
    """Return the only run folder below `folder`."""
    (record,) = [p for p in folder.rglob("run.json") if ".aside" not in p.parts]
    return record.parent


def final_state(run: Path) -> dict[str, Any]:
    """Return the state in the newest checkpoint."""
    newest = max(run.glob("checkpoints/step-*.pt"), key=lambda p: int(p.stem.removeprefix("step-")))
    state: dict[str, Any] = torch.load(newest, weights_only=True)
    state = dict(state)
    # Offsets into files whose rows hold clock readings of varying width; the rows themselves are compared.
    del state["logger"]
    return state


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Return TensorBoard's scalars, {tag: [(step, value)]}, without what depends on the clock."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("time/")]
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}


def assert_identical(one: Path, other: Path, *, tensorboard: bool = True) -> None:
    """Assert that two finished runs hold the same, their clocks aside."""
    assert first_difference(final_state(one), final_state(other)) is None
    for name in ("metrics.jsonl", "episodes.jsonl", "evaluations.jsonl"):
        assert first_difference(rows(one / name), rows(other / name), name) is None
    if tensorboard:
        assert first_difference(scalars(one), scalars(other)) is None
    results = [timeless(json.loads((run / "result.json").read_text())) for run in (one, other)]
    assert first_difference(*results) is None
    best = [sorted(p.name for p in run.glob("checkpoints/best-*.pt"))[-1:] for run in (one, other)]
    assert best[0] == best[1]


def environment(**changes: str) -> dict[str, str]:
    return {**os.environ, **changes}


def children(pid: int) -> list[int]:
    """Return the processes whose parent `pid` is, those aside that have ended and not been waited for."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == pid and state != "Z":
            found.append(int(path.parent.name))
    return found


def gone(pids: list[int], within: float) -> bool:
    """Say whether all of the processes have ended, or do within so many seconds."""
    deadline = time.monotonic() + within
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
