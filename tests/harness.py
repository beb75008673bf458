"""What the tests of whole runs share: the CLI as a process, and the comparison of two run folders."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TESTS = Path(__file__).parent


def rlrun(arguments: list[str], folder: Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run the command line in `folder` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "rlrun", *arguments], cwd=folder, capture_output=True, text=True, timeout=timeout
    )


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


def kill_after(seconds: float, arguments: list[str], folder: Path) -> bool:
    """SIGKILL a run `seconds` after its first row of metrics; say whether it was still running."""
    process = start(arguments, folder)
    deadline = time.monotonic() + 60
    while not list(folder.rglob("metrics.jsonl")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return True
    process.communicate()
    return False


def the_run(folder: Path) -> Path:
    """Return the only run folder below `folder`."""
    (record,) = [p for p in folder.rglob("run.json") if ".aside" not in p.parts]
    return record.parent


def rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSONL file without what depends on the clock."""
    return [timeless(json.loads(line)) for line in path.read_text().splitlines()]


def timeless(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not key.startswith("time/")}


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


def first_difference(a: Any, b: Any, path: str = "") -> str | None:
    """Return where two nested values differ in any bit, or None."""
    if type(a) is not type(b):
        return f"{path}: {type(a).__name__} and {type(b).__name__}"
    if isinstance(a, torch.Tensor):
        same = (
            a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))
            if (a.numel() and a.dim())
            else torch.equal(a, b)
        )
        return None if same else f"{path}: tensors differ"
    if isinstance(a, dict):
        if list(a) != list(b):
            return f"{path}: keys {list(a)} and {list(b)}"
        return next((d for k in a if (d := first_difference(a[k], b[k], f"{path}/{k}"))), None)
    if isinstance(a, list | tuple):
        if len(a) != len(b):
            return f"{path}: lengths {len(a)} and {len(b)}"
        return next((d for i in range(len(a)) if (d := first_difference(a[i], b[i], f"{path}/{i}"))), None)
    return None if a == b or (a != a and b != b) else f"{path}: {a} and {b}"


def assert_identical(one: Path, other: Path) -> None:
    """Assert that two finished runs hold the same, their clocks aside."""
    assert first_difference(final_state(one), final_state(other)) is None
    for name in ("metrics.jsonl", "episodes.jsonl", "evaluations.jsonl"):
        assert first_difference(rows(one / name), rows(other / name), name) is None
    assert first_difference(scalars(one), scalars(other)) is None
    results = [timeless(json.loads((run / "result.json").read_text())) for run in (one, other)]
    assert first_difference(*results) is None
    best = [sorted(p.name for p in run.glob("checkpoints/best-*.pt"))[-1:] for run in (one, other)]
    assert best[0] == best[1]


def environment(**changes: str) -> dict[str, str]:
    return {**os.environ, **changes}
