"""What a reader has to know before believing the numbers."""

from collections import Counter
from collections.abc import Sequence

from rlrun.analysis.groups import Group
from rlrun.analysis.metric import is_return, is_tag
from rlrun.analysis.provenance import named
from rlrun.analysis.runs import Run

FEW_SEEDS = 5
FEW_EVALUATIONS = 0.5  # of what the fullest run of the group has
MOST_NAMED = 4


def group_notices(groups: dict[str, list[Group]], by: str, metric: str) -> list[str]:
    """Return the notices about groups; `groups` is {environment: groups}."""
    members = [(f"{env} {group.label}", group) for env, found in groups.items() for group in found]
    notices = _about_metric(metric)
    if unfinished := [
        f"{name}: {group.num_finished} of {len(group.runs)} finished ({_counts(group)})"
        for name, group in members
        if group.others
    ]:
        notices.append(
            f"only finished runs count, which flatters groups whose runs fail because they diverge; {_some(unfinished)}"
        )
    notices += _without_score(members, metric)
    if few := [f"{name} ({len(group.scored)})" for name, group in members if len(group.scored) < FEW_SEEDS]:
        notices.append(f"intervals from fewer than {FEW_SEEDS} seeds are too narrow to trust: {_some(few)}")
    for name, group in members:
        notices += _about_group(name, group, by)
    return notices + _about_clocks(groups)


def _counts(group: Group) -> str:
    return ", ".join(f"{count} {status}" for status, count in group.others.items())


def _some(parts: Sequence[str]) -> str:
    more = f", and {len(parts) - MOST_NAMED} more" if len(parts) > MOST_NAMED else ""
    return ", ".join(parts[:MOST_NAMED]) + more


def _about_metric(metric: str) -> list[str]:
    if not is_tag(metric):
        return []
    notices = [f"{metric} is compared as it was logged: the higher value ranks first, whether or not that is better"]
    if is_return(metric):
        notices.append(f"{metric} is measured on episodes of training or of selection; metric=final is not")
    return notices


def _without_score(members: Sequence[tuple[str, Group]], metric: str) -> list[str]:
    """Return a notice about finished runs that have no score."""
    why = {
        "final": "their return is not a number",
        "best": "no `rlrun eval RUN checkpoint=best` has reported their best policy",
        "auc": "they were not evaluated during training",
    }.get(metric, "they never logged it")
    lost = [f"{name}: {group.num_finished - len(group.scored)}" for name, group in members if _num_lost(group)]
    return [f"finished runs left out because {why}, which may flatter their group: {_some(lost)}"] if lost else []


def _num_lost(group: Group) -> int:
    return group.num_finished - len(group.scored)


def _about_group(name: str, group: Group, by: str) -> list[str]:
    notices = []
    variants = sorted({run.variant for run in group.runs})
    if len(variants) > 1 and by == "algo":
        notices.append(
            f"{name}: pools {len(variants)} configurations ({', '.join(variants[:MOST_NAMED])}); "
            "by=algo,variant tells them apart"
        )
    elif twice := [run for run, count in Counter(map(_identity, group.runs)).items() if count > 1]:
        notices.append(
            f"{name}: {len(twice)} runs are there twice, with the same configuration and seed, so they are not "
            "independent and intervals are too narrow; give fewer PATHS, or by=algo,outputs to tell folders apart"
        )
    changed = [run for run in group.runs if any("total_steps" in event.get("changed", {}) for event in run.lineage)]
    if changed:
        notices.append(
            f"{name}: total_steps was changed on the way in {len(changed)} runs ({changed[0].path}), which is not "
            "equivalent to fresh runs of that length"
        )
    return notices + _about_curves(name, group)


def _identity(run: Run) -> tuple[str, str, int]:
    return run.algo, run.variant, run.seed


def _about_curves(name: str, group: Group) -> list[str]:
    """Return a notice where the mean curve is cut short by runs that lack evaluations."""
    lengths = {run.path: len(run.curve) for run in group.scored}
    most = max(lengths.values(), default=0)
    short = [f"{path} has {length} of {most}" for path, length in lengths.items() if length < FEW_EVALUATIONS * most]
    return [f"{name}: points of a curve are missing: {_some(short)}"] if short else []


def _about_clocks(groups: dict[str, list[Group]]) -> list[str]:
    """Return a notice about environments whose runs were timed on different machines."""
    notices = []
    for env, members in groups.items():
        machines = {run.made.machine for group in members for run in group.scored} - {""}
        if len(machines) > 1:
            notices.append(f"{env}: wall clocks do not compare, runs were made on {named(machines)}")
    return notices
