"""Run folders as plain records, without torch, and fast: a thousand runs of a thousand rows in seconds."""

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rlrun.config import flatten
from rlrun.errors import UserError
from rlrun.run_folder import RunFolder, find_runs

VIDEOS = (".mp4", ".webm", ".gif")
# As the logger writes a row; any other spelling of the same JSON is read by the slow way.
EVALUATION = re.compile(rb'\{"step": (\d+), "mean_return": (-?[\d.]+(?:[eE][-+]?\d+)?)[,}]')
ELAPSED = b'"time/time_elapsed"'
CLOCK_ROWS = 100

Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml is ten times as fast, where it is there


@dataclass(frozen=True)
class Run:
    """What a run folder says. Curves: [N, 2]."""

    path: Path
    env: str
    algo: str
    variant: str
    seed: int
    tuned: str
    status: str  # running, finished, interrupted or failed
    steps: int
    total_steps: int
    protocol: dict[str, Any]
    config: dict[str, Any]  # dotted keys
    result: dict[str, Any] | None
    curve: np.ndarray  # step, mean return of each evaluation
    clock: np.ndarray  # step, seconds of training since the start, over all sessions
    lineage: list[dict[str, Any]] = field(default_factory=list)
    videos: list[Path] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        return self.status == "finished" and self.result is not None

    @property
    def wall_seconds(self) -> float | None:
        """Seconds the run took: as the result says, else as far as the metrics go."""
        if self.result is not None and "time/wall_seconds" in self.result:
            return float(self.result["time/wall_seconds"])
        return float(self.clock[-1, 1]) if len(self.clock) else None

    def seconds_at(self, steps: np.ndarray) -> np.ndarray | None:
        """Return the seconds at the given steps, between step 0 and the logged ones by interpolation."""
        if not len(self.clock):
            return None
        clock = np.concatenate([np.zeros((1, 2)), self.clock])
        return np.interp(steps, clock[:, 0], clock[:, 1])


def read_runs(paths: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """Return the runs at or below the paths, each once, and a notice for each that cannot be read.

    Raises UserError if a path does not exist or no run is found.
    """
    folders: dict[Path, RunFolder] = {}
    paths = list(paths)
    for path in paths:
        if not path.exists():
            raise UserError(f"PATHS: {path} does not exist; give run folders or folders of runs, such as outputs")
        found = find_runs(path)
        if not found:
            raise UserError(f"PATHS: there are no runs at or below {path}; `rlrun ls {path}` shows what is there")
        folders.update({folder.path.resolve(): folder for folder in found})
    runs, notices = [], []
    for folder in folders.values():
        try:
            runs.append(read_run(folder))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
            notices.append(f"{folder.path} cannot be read and is left out ({type(error).__name__}: {error})")
    if not runs:
        raise UserError("\n".join(notices))
    return sorted(runs, key=lambda run: (run.env, run.algo, run.variant, run.seed, str(run.path))), notices


def read_run(folder: RunFolder) -> Run:
    """Read one folder. A run that was killed inside a row keeps the rows before."""
    record = folder.record()
    config = yaml.load((folder.path / "config.yaml").read_bytes(), Loader)
    stored = record["status"]
    return Run(
        path=folder.path,
        env=str(record["env"]),
        algo=str(record["algo"]),
        variant=str(record["variant"]),
        seed=int(record["seed"]),
        tuned=str(record.get("tuned", "none")),
        status=folder.status() if stored == "running" else stored,  # only a running one has to ask the lock
        steps=int(record.get("steps", 0)),
        total_steps=int(record["total_steps"]),
        protocol=dict(record.get("protocol") or {}),
        config=dict(flatten(config)),
        result=_result(folder),
        curve=evaluations(folder.path / "evaluations.jsonl"),
        clock=elapsed(folder.path / "metrics.jsonl"),
        lineage=list(record.get("lineage") or []),
        videos=sorted(p for p in folder.path.glob("videos/*") if p.suffix in VIDEOS and p.name[0] != "."),
    )


def evaluations(path: Path) -> np.ndarray:
    """Return [N, 2]: step and mean return of each evaluation that has one."""
    points = []
    for line in _lines(path):
        found = EVALUATION.match(line)
        if found:
            points.append((float(found[1]), float(found[2])))
        elif (row := _row(line)) and _is_number(row.get("mean_return")):
            points.append((float(row["step"]), float(row["mean_return"])))
    return np.array(points, dtype=float).reshape(-1, 2)


def elapsed(path: Path) -> np.ndarray:
    """Return [N, 2]: step and seconds of training, of at most CLOCK_ROWS rows of metrics that have them."""
    lines = [line for line in _lines(path) if ELAPSED in line]
    # Rows hold hundreds of bytes of other numbers, and between two of so many the speed hardly changes.
    chosen = np.linspace(0, len(lines) - 1, min(len(lines), CLOCK_ROWS)).round().astype(int)
    rows = [row for i in chosen if (row := _row(lines[i])) and _is_number(row.get("time/time_elapsed"))]
    return np.array([(row["step"], row["time/time_elapsed"]) for row in rows], dtype=float).reshape(-1, 2)


def _lines(path: Path) -> list[bytes]:
    """Return the whole lines of a file; an unfinished last one is left out."""
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _result(folder: RunFolder) -> dict[str, Any] | None:
    """Return result.json with the number of its episodes in place of their lists, which nothing here needs."""
    result = folder.result()
    if result is None:
        return None
    float(result["mean_return"])  # what else would it be reported for
    episodes = len(result.get("returns", ()))
    kept = {key: value for key, value in result.items() if key not in ("returns", "lengths", "seeds")}
    return {**kept, "episodes": episodes}
