"""What is said of several environments together: everything is normalised first."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from rlrun.analysis import statistics
from rlrun.analysis.curves import Axis, Curve, average_over_tasks, over_clock, over_steps
from rlrun.analysis.estimates import SEED, overall_row, pairs
from rlrun.analysis.groups import Group, natural
from rlrun.analysis.model import Environment, Overall, Profile
from rlrun.analysis.statistics import Array, Scores

NUM_TAUS = 101
LOWEST_TAU = -1.0  # a single run far below random would leave the rest of a figure no room
OF_BUDGET = "share of each environment's budget"
OF_LONGEST = "share of each environment's longest run"


def overall(tasks: Sequence[Environment], labels: Iterable[str], mixed: list[str]) -> Overall:
    """Return the numbers over `tasks`, environments that all the labels have scores in."""
    if not tasks:
        return Overall(mixed=mixed)
    members = {label: [_group(task, label) for task in tasks] for label in sorted(labels, key=natural)}
    scores = {
        label: [task.scale(group.scores) for task, group in zip(tasks, groups, strict=True)]
        for label, groups in members.items()
    }
    taus = _taus(scores)
    x_steps, step_units = _step_units(tasks)
    x_clock, clock_units = _clock_units(tasks)
    return Overall(
        tasks=[task.name for task in tasks],
        mixed=sorted(set(mixed)),
        rows=[overall_row(members[label], scores[label]) for label in members],
        pairs=pairs(scores),
        taus=taus,
        profiles={label: _profile(values, taus) for label, values in scores.items()},
        over_steps=_curves(tasks, members, over_steps, step_units),
        over_clock=_curves(tasks, members, over_clock, clock_units),
        x_steps=x_steps,
        x_clock=x_clock,
    )


def _group(task: Environment, label: str) -> Group:
    return next(group for group in task.groups if group.label == label)


def _curves(
    tasks: Sequence[Environment], members: Mapping[str, list[Group]], axis: Axis, units: Sequence[float]
) -> dict[str, Curve]:
    """Return the IQM of the normalised curves of each label; x is in the unit of each task."""
    if any(task.scale.zero == task.scale.one for task in tasks):
        return {}  # scores that are all equal say nothing about where 0 and 1 are on a curve
    found = {}
    for label, groups in members.items():
        curves = [
            [_normalised(axis(run), task, unit) for run in group.scored]
            for task, group, unit in zip(tasks, groups, units, strict=True)
        ]
        curve = average_over_tasks(curves, np.random.default_rng(SEED))
        if curve is not None:
            found[label] = curve
    return found


def _normalised(curve: Array, task: Environment, unit: float) -> Array:
    return np.column_stack([curve[:, 0] / unit, task.scale(curve[:, 1])])


def _step_units(tasks: Sequence[Environment]) -> tuple[str, list[float]]:
    """Return what the axis shows and each task's unit: steps where all budgets are one, else the budgets."""
    budgets = [float(max(run.total_steps for group in task.groups for run in group.scored)) for task in tasks]
    return ("environment steps", [1.0] * len(tasks)) if len(set(budgets)) == 1 else (OF_BUDGET, budgets)


def _clock_units(tasks: Sequence[Environment]) -> tuple[str, list[float]]:
    """Return what the axis shows and each task's unit: seconds of one task; of several, that of its longest run."""
    if len(tasks) == 1:
        return "seconds", [1.0]
    ends = [[run.clock[-1, 1] for group in task.groups for run in group.scored if len(run.clock)] for task in tasks]
    return OF_LONGEST, [float(max(task, default=0.0)) or 1.0 for task in ends]


def _taus(scores: Mapping[str, Scores]) -> Array:
    """Return the normalised scores at which profiles are taken, [T]: from 0, or lower where runs are, to the best."""
    pooled = np.concatenate([task for tasks in scores.values() for task in tasks])
    low = min(0.0, max(LOWEST_TAU, float(pooled.min())))
    return np.linspace(low, max(1.0, float(pooled.max())), NUM_TAUS)


def _profile(scores: Scores, taus: Array) -> Profile:
    low, high = statistics.profile_band(scores, taus, np.random.default_rng(SEED))
    return Profile(statistics.performance_profile(scores, taus), low, high)
