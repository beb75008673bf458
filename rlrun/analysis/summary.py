"""The numbers of a comparison: per environment in returns, overall in normalised scores."""

from collections.abc import Mapping

import numpy as np

from rlrun.analysis.curves import average, over_clock, over_steps
from rlrun.analysis.estimates import MOST_PAIRED, SEED, environment_row, pairs
from rlrun.analysis.groups import Group
from rlrun.analysis.metric import is_return
from rlrun.analysis.model import Comparison, Environment
from rlrun.analysis.normalize import min_max, scale
from rlrun.analysis.overall import overall
from rlrun.analysis.protocol import Checked
from rlrun.analysis.verdict import verdicts
from rlrun.errors import UserError, nearest

NOT_PAIRED = f"probabilities of improvement are given for the {MOST_PAIRED} groups of highest IQM only"
EVERYWHERE = ""  # the key of a threshold that is meant for all environments


def summarize(
    groups: dict[str, list[Group]],
    by: str,
    metric: str,
    checked: Checked = Checked(),  # noqa: B008, it is frozen
    thresholds: Mapping[str, float] | None = None,
    mix: bool = False,
) -> Comparison:
    """Return the comparison of the groups of each environment.

    `thresholds` are values to reach, {environment: value}, in place of the known ones.
    """
    thresholds = thresholds or {}
    _check_thresholds(thresholds, groups)
    environments = [
        _environment(name, members, metric, checked.mixed.get(name, []), thresholds) for name, members in groups.items()
    ]
    notices = list(checked.notices)
    scored = {e.name: {g.label for g in e.groups if g.scored} for e in environments}
    labels = set().union(*scored.values())
    tasks = [e for e in environments if scored[e.name] == labels]
    if checked.mixed_games and not mix:
        tasks = [e for e in tasks if not e.groups[0].runs[0].protocol.get("game")]
    elif left_out := sorted(set(scored) - {e.name for e in tasks}):
        where = ", ".join(left_out)
        notices.append(
            f"not every group has finished runs in {where}: left out of the overall numbers"
            if tasks
            else f"there are no overall numbers: no environment has finished runs of every group ({where})"
        )
    if len(labels) > MOST_PAIRED:
        notices.append(NOT_PAIRED)
    together = overall(tasks, labels, [*checked.mixed_games, *(key for e in tasks for key in e.mixed)])
    return Comparison(by, metric, verdicts(environments, together), notices, environments, together)


def _check_thresholds(thresholds: Mapping[str, float], groups: Mapping[str, list[Group]]) -> None:
    for env in thresholds:
        if env != EVERYWHERE and env not in groups:
            raise UserError(
                f"threshold.{env}={thresholds[env]:g}: {env} is not among the compared environments."
                f"{nearest(env, groups)} Known: {', '.join(groups)}"
            )


def _environment(
    name: str, groups: list[Group], metric: str, mixed: list[str], thresholds: Mapping[str, float]
) -> Environment:
    scores = np.concatenate([group.scores for group in groups])
    values = scores if len(scores) else np.zeros(1)  # without any finished run there is nothing to put on a scale
    unit = scale(name, groups[0].runs[0].protocol, values) if is_return(metric) else min_max(values)
    goal = thresholds.get(name, thresholds.get(EVERYWHERE, unit.threshold))
    scored = [group for group in groups if group.scored]
    rng = np.random.default_rng(SEED)
    steps = {g.label: average([over_steps(run) for run in g.scored], rng) for g in scored}
    clock = {g.label: average([over_clock(run) for run in g.scored], rng) for g in scored}
    return Environment(
        name,
        unit,
        goal,
        mixed,
        groups,
        [environment_row(group, unit, goal) for group in groups],
        pairs({group.label: [group.scores] for group in scored}),
        {label: curve for label, curve in steps.items() if curve is not None},
        {label: curve for label, curve in clock.items() if curve is not None},
    )
