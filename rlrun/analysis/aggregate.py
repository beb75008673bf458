"""`rlrun aggregate`: the mean over seeds and its interval, as TensorBoard runs beside those of the seeds.

TensorBoard draws runs and averages none. So each folder <env>/<algo>/<variant>/ gets three more of them:

    5_seeds/mean    5_seeds/lower95    5_seeds/upper95      (3_of_5_seeds where two have not finished)

They hold event files and nothing else, so nothing takes them for runs of ours. All of it is derived: it is made
anew whenever the seeds have changed, and what no longer holds is removed. Imports no torch.
"""

import io
import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlrun import event_file
from rlrun.analysis.runs import Run, read_runs
from rlrun.analysis.statistics import mean_band
from rlrun.arguments import key_values, split_paths, with_defaults
from rlrun.config import is_learning_key
from rlrun.console import table_console
from rlrun.errors import RunFailed, UserError
from rlrun.files import write_atomically
from rlrun.logger import METRICS, RESULT, read_rows
from rlrun.run_folder import find_runs

DEFAULT_PATH = Path("outputs")
SUFFIX = "_seeds"
MEAN, LOWER, UPPER = "mean", "lower95", "upper95"
ABOUT = "aggregate"  # the tag of the text that says what was averaged
FEW_SEEDS = 5
MOST_POINTS = 1000  # of a curve: TensorBoard keeps no more
RESAMPLES = 1000  # an interval is looked at, not read off to the third digit
SEED = 0  # of the bootstrap: the same runs give the same bytes

Curves = Mapping[str, np.ndarray]  # {tag: [N, 2]}, step and value


@dataclass(frozen=True)
class Aggregate:
    """What became of the runs of one folder."""

    folder: Path
    seeds: str  # "3", or "3 of 5"
    num_tags: int  # none: there was nothing to average
    notice: str = ""


def aggregate(arguments: list[str]) -> int:
    """rlrun aggregate [PATHS ...]: write mean and 95% interval over seeds for TensorBoard, beside the seeds."""
    paths, rest = split_paths(arguments, ())
    with_defaults(key_values(rest), {}, "aggregate")
    if not paths and not DEFAULT_PATH.is_dir():
        raise UserError("rlrun aggregate needs PATHS: folders of runs, such as outputs")
    paths = paths or [DEFAULT_PATH]
    found = write_aggregates(paths)
    print_table(found)
    print(f"tensorboard --logdir {paths[0]} shows them as .../*{SUFFIX}/{MEAN}, {LOWER} and {UPPER}")
    return 0


def print_table(found: Sequence[Aggregate]) -> None:
    from rich.table import Table

    table = Table("runs", "seeds", "curves", box=None, pad_edge=False)
    for one in found:
        table.add_row(str(one.folder), one.seeds, str(one.num_tags or ""))
    table_console().print(table)
    for one in found:
        if one.notice:
            print(f"note: {one.folder}: {one.notice}", file=sys.stderr)


def write_aggregates(paths: Iterable[Path]) -> list[Aggregate]:
    """Bring the aggregates of all runs at, below, or beside the paths up to date.

    Raises UserError if a path does not exist or holds no runs.
    """
    paths = list(paths)
    runs, notices = read_runs(paths)
    for notice in notices:
        print(f"note: {notice}", file=sys.stderr)
    folders = sorted({run.path.parent for run in runs})
    for path in paths:
        for stale in path.rglob(f"*{SUFFIX}"):
            if stale.is_dir() and not find_runs(stale.parent):
                _remove(stale)
    return [_aggregate(folder) for folder in folders]


def refresh(folders: Iterable[Path]) -> None:
    """Bring <env>/<algo>/<variant> folders up to date at the end of a sweep, whose outcome this must not change."""
    present = [folder for folder in folders if find_runs(folder)]
    try:
        if present:
            write_aggregates(present)
    except (OSError, RunFailed, UserError) as error:
        print(f"note: no means over seeds for TensorBoard: {error}", file=sys.stderr)


def _aggregate(folder: Path) -> Aggregate:
    runs = [run for run in read_runs([folder])[0] if run.path.parent == folder]
    finished = [run for run in runs if run.finished]
    seeds = str(len(runs)) if len(finished) == len(runs) else f"{len(finished)} of {len(runs)}"
    differing = _differing(finished)
    if len(finished) < 2 or differing:
        _replace(folder, {})
        why = f"not averaged, its runs differ in {', '.join(differing)}" if differing else "fewer than 2 finished seeds"
        return Aggregate(folder, seeds, 0, why)
    contents, num_tags = _contents(finished, seeds)
    name = seeds.replace(" ", "_") + SUFFIX
    _replace(folder, {folder / name / kind: content for kind, content in contents.items()})
    few = f"an interval from fewer than {FEW_SEEDS} seeds is too narrow to trust" if len(finished) < FEW_SEEDS else ""
    return Aggregate(folder, seeds, num_tags, few)


def _differing(runs: Sequence[Run]) -> list[str]:
    """Return the keys, but for the seed, in which runs that shall be averaged differ."""
    stamps = [
        {k: v for k, v in run.config.items() if is_learning_key(k) and k != "seed"}
        | {f"protocol.{k}": v for k, v in run.protocol.items()}
        for run in runs
    ]
    keys = sorted({key for stamp in stamps for key in stamp})
    return [key for key in keys if any(stamp.get(key, "-") != stamps[0].get(key, "-") for stamp in stamps)]


# --- Numbers ----------------------------------------------------------------------------------------


def _contents(runs: Sequence[Run], seeds: str) -> tuple[dict[str, bytes], int]:
    """Return {run name: the bytes of its event file}, and how many tags they have."""
    rows = [read_rows(run.path / METRICS) for run in runs]
    curves = [_curves(run, of_run) for run, of_run in zip(runs, rows, strict=True)]
    clocks = [np.array([(row["step"], row["time/unix"]) for row in of_run], dtype=float) for of_run in rows]
    tags = sorted(set.intersection(*(set(of_run) for of_run in curves)))
    events: dict[str, dict[int, dict[str, float]]] = {MEAN: {}, LOWER: {}, UPPER: {}}
    for tag in tags:
        steps, *band = average([of_run[tag] for of_run in curves])
        for kind, values in zip(events, band, strict=True):
            for step, value in zip(steps, values, strict=True):
                events[kind].setdefault(int(step), {})[tag] = float(value)
    about = (
        f"Means and pointwise 95% intervals (percentile bootstrap over seeds, {RESAMPLES} resamples) of {seeds} seeds: "
        f"{', '.join(str(run.seed) for run in runs)}. Only finished runs count; curves end with the shortest."
    )
    return {kind: _event_file(by_step, clocks, about) for kind, by_step in events.items()}, len(tags)


def _curves(run: Run, rows: Sequence[Mapping[str, Any]]) -> Curves:
    """Return what was logged, and the result, but for what depends on the clock."""
    points: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for tag, value in row.items():
            if tag != "step" and not tag.startswith("time/") and value is not None:
                points.setdefault(tag, []).append((row["step"], value))
    assert run.result is not None
    points[RESULT] = [(run.result["steps"], run.result["mean_return"])]
    return {tag: np.array(of_tag, dtype=float) for tag, of_tag in points.items()}


def average(curves: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return steps, mean, and the ends of its 95% interval, [T] each, of curves [N, 2] where all are known.

    Where one has no point at a step that another has, it is interpolated; none is carried past its end.
    """
    begin, end = max(c[0, 0] for c in curves), min(c[-1, 0] for c in curves)
    steps = np.unique(np.concatenate([c[:, 0] for c in curves]))
    steps = steps[(steps >= begin) & (steps <= end)]
    if len(steps) > MOST_POINTS:
        steps = steps[np.linspace(0, len(steps) - 1, MOST_POINTS).round().astype(int)]
    values = np.stack([np.interp(steps, c[:, 0], c[:, 1]) for c in curves])
    return steps, values.mean(axis=0), *mean_band(values, np.random.default_rng(SEED), RESAMPLES)


# --- Files --------------------------------------------------------------------------------------------


def _event_file(events: Mapping[int, Mapping[str, float]], clocks: Sequence[np.ndarray], about: str) -> bytes:
    """Return an event file. Its times are when the last run was at the step: they must be reproducible.

    So TensorBoard, which sorts runs by their beginnings, lists these after those of the seeds.
    """
    steps = sorted(events)
    times = np.max([np.interp(steps, clock[:, 0], clock[:, 1]) for clock in clocks], axis=0)
    buffer = io.BytesIO()
    records = event_file.writer(buffer, times[0])
    event_file.write_event(records, 0, event_file.text(ABOUT, about), times[0])
    for step, unix in zip(steps, times, strict=True):
        event_file.write_event(records, step, event_file.scalars(events[step]), unix)
    return buffer.getvalue()


def _replace(folder: Path, wanted: Mapping[Path, bytes]) -> None:
    """Make the aggregates of a folder those that are wanted, {run folder: event file}; leave alone what is so."""
    for run, content in wanted.items():
        same = [path for path in run.glob(event_file.PATTERN) if path.read_bytes() == content]
        if not same:
            run.mkdir(parents=True, exist_ok=True)
            # TensorBoard reads whatever has "tfevents" in its name, also half of it, and newer names after older ones.
            same = [run / f"events.out.tfevents.{time.time_ns()}.rlrun"]
            write_atomically(run / "written", content)
            (run / "written").rename(same[0])
        for old in run.glob(event_file.PATTERN):
            if old != same[0]:
                old.unlink()
    for other in folder.glob(f"*{SUFFIX}"):
        if other.is_dir() and not any(run.parent == other for run in wanted):
            _remove(other)


def _remove(aggregates: Path) -> None:
    """Remove a folder of aggregates, if it holds nothing else."""
    inside = [path for path in aggregates.rglob("*") if path.is_file()]
    if all(path.parent.parent == aggregates and path.parent.name in (MEAN, LOWER, UPPER) for path in inside):
        shutil.rmtree(aggregates)
