"""Numbers of a group with their intervals, and of pairs of groups."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from rlrun.analysis import statistics
from rlrun.analysis.curves import steps_to
from rlrun.analysis.groups import Group
from rlrun.analysis.model import Estimate, Pair, Row
from rlrun.analysis.normalize import Scale
from rlrun.analysis.runs import Run
from rlrun.analysis.statistics import Array, Scores

SEED = 0  # of the bootstrap: the same runs give the same report
MOST_PAIRED = 40  # groups of which all pairs are compared; more pairs than these make is nothing one reads

Statistic = Callable[[Scores], Array]


def environment_row(group: Group, unit: Scale, threshold: float | None) -> Row:
    """Return what is said of a group in one environment."""
    scores, goal = [group.scores], None
    if not group.scored:
        return _row([group], {})
    estimates = _estimates(statistics.median_run, scores, [unit(group.scores)])
    curves = [run.curve for run in group.scored if len(run.curve)]
    if threshold is not None and curves:
        goal = np.array([steps_to(threshold, curve) for curve in curves])
    taken = [run.steps for run in group.scored]
    row = _row([group], estimates, goal)
    return replace(row, steps=(min(taken), max(taken)), wall_seconds=_median_seconds(group.scored))


def overall_row(groups: Sequence[Group], scores: Scores) -> Row:
    """Return what is said of a group over its tasks; `scores` are normalised."""
    return _row(groups, _estimates(statistics.median, scores, scores))


def pairs(scores: Mapping[str, Scores]) -> list[Pair]:
    """Return all pairs, the group of higher IQM first."""
    ranked = sorted(scores, key=lambda label: (-float(statistics.iqm(scores[label])), label))[:MOST_PAIRED]
    return [_pair(x, y, scores) for x, y in combinations(ranked, 2)]


def _row(groups: Sequence[Group], estimates: dict[str, Estimate], times: Array | None = None) -> Row:
    runs = [run for group in groups for run in group.runs]
    others: dict[str, int] = {}
    for group in groups:
        for status, count in group.others.items():
            others[status] = others.get(status, 0) + count
    return Row(
        label=groups[0].label,
        num_runs=len(runs),
        num_finished=sum(group.num_finished for group in groups),
        num_scored=sum(len(group.scored) for group in groups),
        others=others,
        estimates=estimates,
        steps_to_threshold=None if times is None else _time(times),
        num_reached=None if times is None else int(np.isfinite(times).sum()),
        num_evaluated=None if times is None else len(times),
    )


def _estimates(median: Statistic, scores: Scores, normalised: Scores) -> dict[str, Estimate]:
    return {
        "mean": _estimate(statistics.mean, scores),
        "median": _estimate(median, scores),
        "iqm": _estimate(statistics.iqm, scores),
        "optimality_gap": _estimate(statistics.optimality_gap, normalised),
    }


def _estimate(statistic: Statistic, scores: Scores) -> Estimate:
    interval = statistics.stratified_interval(statistic, scores, np.random.default_rng(SEED))
    return Estimate(float(statistic(scores)), *interval)


def _time(times: Array) -> Estimate:
    interval = statistics.time_interval(times, np.random.default_rng(SEED))
    return Estimate(float(statistics.median_of_times(times)), *interval)


def _pair(x: str, y: str, scores: Mapping[str, Scores]) -> Pair:
    value = statistics.probability_of_improvement(scores[x], scores[y])
    interval = statistics.improvement_interval(scores[x], scores[y], np.random.default_rng(SEED))
    return Pair(x, y, Estimate(value, *interval))


def _median_seconds(runs: Sequence[Run]) -> float | None:
    seconds = [run.wall_seconds for run in runs if run.wall_seconds is not None]
    return float(np.median(seconds)) if seconds else None
