"""JSONL files of runs, fast: a thousand files of a thousand rows in seconds."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

# As the logger writes a row; any other spelling of the same JSON is read by the slow way.
NUMBER = rb"(-?[\d.]+(?:[eE][-+]?\d+)?)[,}]"
STEP = re.compile(rb'\{"step": (\d+)[,}]')
EVALUATION = re.compile(rb'\{"step": (\d+), "mean_return": ' + NUMBER)
ELAPSED = "time/time_elapsed"
CLOCK_ROWS = 100
ROWS_LOOKED_AT = 20  # at each end of a file, for the tags that it has


def evaluations(path: Path) -> np.ndarray:
    """Return [N, 2]: step and mean return of each evaluation that has one, in the order of steps."""
    points = []
    for line in lines_of(path):
        found = EVALUATION.match(line)
        if found:
            points.append((float(found[1]), float(found[2])))
        elif (row := row_of(line)) and is_number(row.get("mean_return")):
            points.append((float(row["step"]), float(row["mean_return"])))
    return _curve(points)


def series(path: Path, tag: str) -> np.ndarray:
    """Return [N, 2]: step and value of each row of metrics that has a number under the tag, in the order of steps."""
    key = json.dumps(tag).encode()
    pattern = re.compile(re.escape(key) + b": " + NUMBER)
    points = []
    for line in lines_of(path):
        if key not in line:
            continue
        step, value = STEP.match(line), pattern.search(line)
        if step and value:
            points.append((float(step[1]), float(value[1])))
        elif (row := row_of(line)) and is_number(row.get(tag)):
            points.append((float(row["step"]), float(row[tag])))
    return _curve(points)


def elapsed(path: Path) -> np.ndarray:
    """Return [N, 2]: step and seconds of training, of at most CLOCK_ROWS rows of metrics that have them."""
    key = json.dumps(ELAPSED).encode()
    lines = [line for line in lines_of(path) if key in line]
    # Rows hold hundreds of bytes of other numbers, and between two of so many the speed hardly changes.
    chosen = np.linspace(0, len(lines) - 1, min(len(lines), CLOCK_ROWS)).round().astype(int)
    rows = [row for i in chosen if (row := row_of(lines[i])) and is_number(row.get(ELAPSED))]
    return _curve([(float(row["step"]), float(row[ELAPSED])) for row in rows])


def tags(path: Path) -> set[str]:
    """Return tags of a file of metrics: those in its first and last rows."""
    lines = lines_of(path)
    rows = [row_of(line) for line in lines[:ROWS_LOOKED_AT] + lines[-ROWS_LOOKED_AT:]]
    return {key for row in rows if row for key in row if key != "step"}


def lines_of(path: Path) -> list[bytes]:
    """Return the whole lines of a file; an unfinished last one is left out."""
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


def row_of(line: bytes) -> dict[str, Any] | None:
    """Return the row that a line holds; None if it holds none."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and is_number(row.get("step")) else None


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _curve(points: list[tuple[float, float]]) -> np.ndarray:
    curve = np.array(points, dtype=float).reshape(-1, 2)
    return curve[np.argsort(curve[:, 0], kind="stable")]
