"""Learning curves: of one run, thinned; of several, their mean and its band on a common axis."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rlrun.analysis.runs import Run
from rlrun.analysis.statistics import iqm_band, mean_band

MOST_POINTS = 100  # of a mean curve: a panel of a figure shows no more
OVERALL_POINTS = 50
BAND_RESAMPLES = 1000  # a band is looked at, not read off to the third digit
OVERALL_RESAMPLES = 500

Axis = Callable[[Run], np.ndarray]  # a run's curve [N, 2] over steps or over seconds


@dataclass(frozen=True)
class Curve:
    """The average of several curves, each [T], with its pointwise 95% bootstrap band where there are several."""

    x: np.ndarray
    mean: np.ndarray  # overall it is the interquartile mean
    low: np.ndarray | None
    high: np.ndarray | None
    num_runs: int


def over_steps(run: Run) -> np.ndarray:
    """Return [N, 2]: environment steps and mean return of each evaluation."""
    return run.curve


def over_clock(run: Run) -> np.ndarray:
    """Return [N, 2]: seconds of training and mean return of each evaluation; [0, 2] where no clock was kept."""
    seconds = run.seconds_at(run.curve[:, 0])
    return np.empty((0, 2)) if seconds is None else np.column_stack([seconds, run.curve[:, 1]])


def average(curves: Sequence[np.ndarray], rng: np.random.Generator) -> Curve | None:
    """Return the mean of curves [N, 2] where all of them are known, or None where that is nowhere.

    Evaluations fall on other steps where iterations are of other lengths, so values in between are
    interpolated; none is carried past the end of a curve.
    """
    curves = [curve for curve in curves if len(curve)]
    span = common_span(curves)
    if span is None:
        return None
    begin, end = span
    x = np.unique(np.concatenate([c[:, 0] for c in curves]))
    x = x[(x >= begin) & (x <= end)]
    if len(x) > MOST_POINTS:
        x = np.linspace(begin, end, MOST_POINTS)
    values = np.stack([np.interp(x, c[:, 0], c[:, 1]) for c in curves])
    low, high = mean_band(values, rng, BAND_RESAMPLES) if len(curves) > 1 else (None, None)
    return Curve(x, values.mean(axis=0), low, high, len(curves))


def average_over_tasks(tasks: Sequence[Sequence[np.ndarray]], rng: np.random.Generator) -> Curve | None:
    """Return the IQM over tasks and runs of normalised curves [N, 2] where all are known.

    None where that is nowhere, or where a task has no curve: another set of tasks would be another number.
    """
    tasks = [[curve for curve in curves if len(curve)] for curves in tasks]
    span = common_span([curve for curves in tasks for curve in curves]) if all(tasks) else None
    if span is None:
        return None
    x = np.linspace(*span, OVERALL_POINTS if span[0] < span[1] else 1)
    values = [np.stack([np.interp(x, c[:, 0], c[:, 1]) for c in curves]) for curves in tasks]
    mean, low, high = iqm_band(values, rng, OVERALL_RESAMPLES)
    several = any(len(curves) > 1 for curves in tasks)
    return Curve(x, mean, low if several else None, high if several else None, sum(map(len, tasks)))


def common_span(curves: Sequence[np.ndarray]) -> tuple[float, float] | None:
    """Return where all curves [N, 2], none of them empty, are known; None where that is nowhere."""
    if not curves:
        return None
    begin, end = max(c[0, 0] for c in curves), min(c[-1, 0] for c in curves)
    return (float(begin), float(end)) if begin <= end else None


def thinned(curve: np.ndarray, most: int) -> np.ndarray:
    """Return at most `most` of the points [N, 2], evenly chosen, the first and the last among them."""
    if len(curve) <= most:
        return curve
    return curve[np.linspace(0, len(curve) - 1, most).round().astype(int)]


def steps_to(threshold: float, curve: np.ndarray) -> float:
    """Return the steps [env steps] of the first evaluation that reached the threshold; infinity if none did."""
    reached = np.flatnonzero(curve[:, 1] >= threshold)
    return float(curve[reached[0], 0]) if len(reached) else float("inf")


def clock_unit(longest: float) -> tuple[str, float]:
    """Return the unit in which so many seconds are a readable number, and its seconds."""
    units = (("hours", 3600.0), ("minutes", 60.0))
    return next(((name, size) for name, size in units if longest >= 2 * size), ("seconds", 1.0))
