"""Run folders as plain records, without torch."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rlrun.analysis.provenance import Made, made
from rlrun.analysis.rows import elapsed, evaluations, is_number, lines_of, row_of, series
from rlrun.config import flatten
from rlrun.errors import UserError
from rlrun.run_folder import RunFolder, find_runs

VIDEOS = (".mp4", ".webm", ".gif")
LISTS = ("returns", "lengths", "seeds")  # of a result's episodes: nothing here needs them all

Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml is ten times as fast, where it is there


@dataclass(frozen=True)
class Best:
    """What `rlrun eval RUN checkpoint=best` reported, on episodes other than those that chose that policy."""

    step: int
    mean_return: float
    episodes: int


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
    curve: np.ndarray  # step, mean return of each evaluation (or the logged tag that was asked for)
    clock: np.ndarray  # step, seconds of training since the start, over all sessions
    made: Made
    versions: dict[str, str] = field(default_factory=dict)  # of the environment: the hash of a ROM
    best: Best | None = None
    lineage: list[dict[str, Any]] = field(default_factory=list)
    videos: list[Path] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        return self.status == "finished" and self.result is not None

    @property
    def outputs(self) -> str:
        """Return the folder that holds <env>/<algo>/<variant>/seed=<n>."""
        return str(self.path.resolve().parents[3])

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


def read_runs(paths: Iterable[Path], *, tag: str | None = None, best: bool = False) -> tuple[list[Run], list[str]]:
    """Return the runs at or below the paths, each once, and a notice for each that cannot be read.

    `tag` names a logged number to take as the curve in place of the evaluations; `best` reads reports of the
    best policy as well. Raises UserError if a path does not exist or no run is found.
    """
    folders: dict[Path, RunFolder] = {}
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
            runs.append(read_run(folder, tag=tag, best=best))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
            notices.append(f"{folder.path} cannot be read and is left out ({type(error).__name__}: {error})")
    if not runs:
        raise UserError("\n".join(notices))
    return sorted(runs, key=lambda run: (run.env, run.algo, run.variant, run.seed, str(run.path))), notices


def read_run(folder: RunFolder, *, tag: str | None = None, best: bool = False) -> Run:
    """Read one folder. A run that was killed inside a row keeps the rows before."""
    record = folder.record()
    config = yaml.load((folder.path / "config.yaml").read_bytes(), Loader)
    stored = record["status"]
    metrics = folder.path / "metrics.jsonl"
    curve = evaluations(folder.path / "evaluations.jsonl") if tag is None else series(metrics, tag)
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
        curve=curve,
        clock=elapsed(metrics),
        made=made(record),
        versions=dict(record.get("environment") or {}),
        best=best_report(folder.path) if best else None,
        lineage=list(record.get("lineage") or []),
        videos=sorted(p for p in folder.path.glob("videos/*") if p.suffix in VIDEOS and p.name[0] != "."),
    )


def best_report(path: Path) -> Best | None:
    """Return the report of the policy that the evaluations of a run chose; None where there is none to trust.

    A report on episodes that took part in the choice is not one. Of several that of the most episodes counts.
    """
    lines = lines_of(path / "evaluations.jsonl")
    rows = [row for line in lines if (row := row_of(line)) and is_number(row.get("mean_return"))]
    if not rows:
        return None
    chosen = max(rows, key=lambda row: row["mean_return"])  # the first of equals, as the run itself decides
    choosing = {seed for row in rows for seed in row.get("seeds", ())}
    files = sorted(path.glob(f"evaluations/step-{chosen['step']}-*.json"))
    reports = [json.loads(file.read_text()) for file in files if "-first-seed-" not in file.name]
    usable = [report for report in reports if choosing.isdisjoint(report["seeds"])]
    if not usable:
        return None
    stored = max(usable, key=lambda report: len(report["returns"]))
    return Best(chosen["step"], float(stored["mean_return"]), len(stored["returns"]))


def _result(folder: RunFolder) -> dict[str, Any] | None:
    """Return result.json with the number of its episodes in place of their lists."""
    result = folder.result()
    if result is None:
        return None
    float(result["mean_return"])  # what else would it be reported for
    episodes = len(result.get("returns", ()))
    return {**{key: value for key, value in result.items() if key not in LISTS}, "episodes": episodes}
