"""The numbers of a comparison: per environment in returns, overall in normalised scores."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from rlrun.analysis import statistics
from rlrun.analysis.curves import Curve, average, over_clock, over_steps, steps_to
from rlrun.analysis.groups import Group
from rlrun.analysis.normalize import Scale, scale
from rlrun.analysis.statistics import Array, Interval, Scores

SEED = 0  # of the bootstrap: the same runs give the same report
MOST_PAIRED = 20  # groups of which all pairs are compared; more pairs than these make is nothing one reads
NUM_TAUS = 101
NOT_PAIRED = f"probabilities of improvement are given for the {MOST_PAIRED} groups of highest IQM only"


@dataclass(frozen=True)
class Estimate:
    """A number and its 95% interval (NaN where one run a task leaves it unknown)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """What is said of one group, in one environment or overall."""

    label: str
    num_runs: int
    num_finished: int
    estimates: dict[str, Estimate]  # mean, median, iqm: returns per environment; optimality_gap: normalised
    steps_to_threshold: float | None = None  # median over finished runs; infinity: most never got there
    num_reached: int | None = None
    wall_seconds: float | None = None  # median over finished runs


@dataclass(frozen=True)
class Pair:
    """How probably a run of `better` beats one of `than`."""

    better: str
    than: str
    probability: Estimate


@dataclass(frozen=True)
class Profile:
    """The fraction of runs above each tau of the comparison, with its band: [T] each."""

    fraction: Array
    low: Array
    high: Array


@dataclass(frozen=True)
class Environment:
    """All that is said of one environment."""

    name: str
    scale: Scale
    groups: list[Group]
    rows: list[Row]
    pairs: list[Pair]
    over_steps: dict[str, Curve]
    over_clock: dict[str, Curve]


@dataclass(frozen=True)
class Comparison:
    """All that is said."""

    by: str
    metric: str
    notices: list[str]
    environments: list[Environment]
    tasks: list[str]  # environments that every group has finished runs in: those that `overall` is about
    overall: list[Row]
    pairs: list[Pair]
    taus: Array
    profiles: dict[str, Profile] = field(default_factory=dict)

    @property
    def labels(self) -> list[str]:
        """All groups, in the order that gives each its colour."""
        return sorted({group.label for env in self.environments for group in env.groups})


def summarize(groups: dict[str, list[Group]], by: str, metric: str, notices: Sequence[str]) -> Comparison:
    """Return the comparison of the groups of each environment."""
    environments = [_environment(name, members) for name, members in groups.items()]
    scored = {e.name: {g.label for g in e.groups if g.scored} for e in environments}
    labels = sorted(set().union(*scored.values()))
    tasks = [e for e in environments if scored[e.name] == set(labels)]
    notices = list(notices)
    left_out = sorted(set(scored) - {e.name for e in tasks})
    if left_out:
        notices.append(f"not every group has finished runs in {', '.join(left_out)}: left out of the overall numbers")
    if len(labels) > MOST_PAIRED:
        notices.append(NOT_PAIRED)
    scores = {label: [_normalised(e, label) for e in tasks] for label in labels} if tasks else {}
    overall = [_overall_row(label, tasks, values) for label, values in scores.items()]
    taus = _taus(scores)
    profiles = {label: _profile(values, taus) for label, values in scores.items()}
    names = [e.name for e in tasks]
    return Comparison(by, metric, notices, environments, names, overall, _pairs(scores), taus, profiles)


def _environment(name: str, groups: list[Group]) -> Environment:
    returns = np.concatenate([group.scores for group in groups])
    protocol = groups[0].runs[0].protocol
    # Without any finished run there is nothing to put on a scale.
    unit = scale(name, protocol, returns if len(returns) else [0.0])
    scored = [group for group in groups if group.scored]
    rng = np.random.default_rng(SEED)
    steps = {g.label: average([over_steps(run) for run in g.scored], rng) for g in scored}
    clock = {g.label: average([over_clock(run) for run in g.scored], rng) for g in scored}
    return Environment(
        name,
        unit,
        groups,
        [_row(group, unit) for group in groups],
        _pairs({group.label: [group.scores] for group in scored}),
        {label: curve for label, curve in steps.items() if curve is not None},
        {label: curve for label, curve in clock.items() if curve is not None},
    )


def _row(group: Group, unit: Scale) -> Row:
    if not group.scored:
        return Row(group.label, len(group.runs), 0, {})
    scores = [group.scores]
    estimates = {
        "mean": _estimate(statistics.mean, scores),
        "median": _estimate(statistics.median_run, scores),
        "iqm": _estimate(statistics.iqm, scores),
        "optimality_gap": _estimate(statistics.optimality_gap, [unit(group.scores)]),
    }
    steps, reached = None, None
    if unit.threshold is not None:
        each = [steps_to(unit.threshold, run.curve) for run in group.scored]
        # Not np.median: between two infinities it would find NaN.
        steps, reached = sorted(each)[len(each) // 2], int(np.isfinite(each).sum())
    walls = [run.wall_seconds for run in group.scored if run.wall_seconds is not None]
    wall = float(np.median(walls)) if walls else None
    return Row(group.label, len(group.runs), len(group.scored), estimates, steps, reached, wall)


def _overall_row(label: str, tasks: list[Environment], scores: Scores) -> Row:
    members = [group for env in tasks for group in env.groups if group.label == label]
    estimates = {
        "mean": _estimate(statistics.mean, scores),
        "median": _estimate(statistics.median, scores),
        "iqm": _estimate(statistics.iqm, scores),
        "optimality_gap": _estimate(statistics.optimality_gap, scores),
    }
    return Row(label, sum(len(g.runs) for g in members), sum(len(g.scored) for g in members), estimates)


def _estimate(statistic: Callable[[Scores], Array], scores: Scores) -> Estimate:
    interval = statistics.stratified_interval(statistic, scores, np.random.default_rng(SEED))
    return Estimate(float(statistic(scores)), *interval)


def _pairs(scores: Mapping[str, Scores]) -> list[Pair]:
    """Return all pairs, the group of higher IQM first."""
    ranked = sorted(scores, key=lambda label: (-float(statistics.iqm(scores[label])), label))[:MOST_PAIRED]
    return [_pair(x, y, scores) for x, y in combinations(ranked, 2)]


def _pair(x: str, y: str, scores: Mapping[str, Scores]) -> Pair:
    value = statistics.probability_of_improvement(scores[x], scores[y])
    interval: Interval = statistics.improvement_interval(scores[x], scores[y], np.random.default_rng(SEED))
    return Pair(x, y, Estimate(value, *interval))


def _normalised(env: Environment, label: str) -> Array:
    return env.scale(next(group.scores for group in env.groups if group.label == label))


def _taus(scores: Mapping[str, Scores]) -> Array:
    """Return the normalised scores at which profiles are taken, [T]: from 0, or lower where runs are, to the best."""
    pooled = np.concatenate([task for tasks in scores.values() for task in tasks]) if scores else np.array([1.0])
    # A single run far below random would leave the rest of the figure no room.
    low = min(0.0, max(-1.0, float(pooled.min())))
    return np.linspace(low, max(1.0, float(pooled.max())), NUM_TAUS)


def _profile(scores: Scores, taus: Array) -> Profile:
    low, high = statistics.profile_band(scores, taus, np.random.default_rng(SEED))
    return Profile(statistics.performance_profile(scores, taus), low, high)
