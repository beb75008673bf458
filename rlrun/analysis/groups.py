"""Runs in groups: what is compared with what, and by which number."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlrun.analysis.runs import Run
from rlrun.errors import UserError, nearest

METRICS = {
    "final": "mean return of the last policy on episodes that nothing was chosen by",
    "best": "highest mean return among the evaluations during training",
    "auc": "mean over the evaluations during training",
}
FIELDS = ("algo", "variant", "tuned", "status")  # of a run; any other `by` is a dotted key of its configuration
FEW_SEEDS = 5


@dataclass(frozen=True)
class Group:
    """The runs of one environment that share a label, and the scores [N] of those that have one."""

    label: str
    runs: list[Run]
    scored: list[Run]
    scores: np.ndarray

    @property
    def finished(self) -> str:
        return f"{len(self.scored)} of {len(self.runs)}"


def score(run: Run, metric: str) -> float | None:
    """Return the metric of a finished run; None for others, whose budget was another one."""
    if not run.finished or run.result is None:
        return None
    if metric == "final":
        value = float(run.result["mean_return"])
    elif not len(run.curve):
        return None
    else:
        value = float(run.curve[:, 1].max() if metric == "best" else run.curve[:, 1].mean())
    return value if np.isfinite(value) else None


def grouped(runs: Sequence[Run], by: str, metric: str) -> dict[str, list[Group]]:
    """Return {environment: groups}, sorted by name. Raises UserError if nothing has been finished."""
    keys = [key.strip() for key in by.split(",") if key.strip()]
    _check_keys(runs, keys)
    found: dict[str, dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        found[run.env][_label(run, keys)].append(run)
    groups = {
        env: [_group(label, members, metric) for label, members in sorted(labels.items())]
        for env, labels in sorted(found.items())
    }
    if not any(group.scored for members in groups.values() for group in members):
        states = sorted({run.status for run in runs})
        raise UserError(
            f"none of the {len(runs)} runs has a result for metric={metric} (they are {', '.join(states)}); "
            "give the commands that started them again to finish them, or give other PATHS"
        )
    return groups


def group_notices(groups: dict[str, list[Group]], by: str, metric: str) -> list[str]:
    """Return what a reader has to know before believing the numbers."""
    notices = []
    if metric == "best":
        notices.append(
            "metric=best reports the very episodes that chose the best policy, which flatters every run; "
            "metric=final does not"
        )
    named = [(f"{env} {group.label}", group) for env, members in groups.items() for group in members]
    if unfinished := [f"{name}: {g.finished} finished" for name, g in named if len(g.scored) < len(g.runs)]:
        notices.append(f"only finished runs count; {', '.join(unfinished)}")
    if few := [f"{name} ({len(g.scored)})" for name, g in named if len(g.scored) < FEW_SEEDS]:
        notices.append(f"intervals from fewer than {FEW_SEEDS} seeds are too narrow to trust: {', '.join(few)}")
    for name, group in named:
        notices += _notices(name, group, by)
    return notices


def _notices(name: str, group: Group, by: str) -> list[str]:
    notices = []
    variants = sorted({run.variant for run in group.runs})
    if len(variants) > 1 and by == "algo":
        notices.append(
            f"{name}: pools {len(variants)} configurations ({', '.join(variants[:4])}); "
            "by=algo,variant tells them apart"
        )
    elif len({(run.algo, run.variant, run.seed) for run in group.runs}) < len(group.runs):
        notices.append(f"{name}: some runs have the same configuration and seed, so they are not independent")
    changed = [run for run in group.runs if any("total_steps" in event.get("changed", {}) for event in run.lineage)]
    if changed:
        notices.append(
            f"{name}: total_steps was changed on the way in {len(changed)} runs ({changed[0].path}), which is not "
            "equivalent to fresh runs of that length"
        )
    return notices


def _group(label: str, runs: list[Run], metric: str) -> Group:
    pairs = [(run, value) for run in runs if (value := score(run, metric)) is not None]
    return Group(label, runs, [run for run, _ in pairs], np.array([value for _, value in pairs], dtype=float))


def _check_keys(runs: Sequence[Run], keys: list[str]) -> None:
    known = {key for run in runs for key in run.config}
    for key in keys:
        if key not in FIELDS and key not in known:
            raise UserError(
                f"by={key} is no key of these runs.{nearest(key, [*FIELDS, *known])} Known: {', '.join(FIELDS)} and "
                "the keys of config.yaml, such as algo.learning_rate"
            )
    if not keys:
        raise UserError("by= names nothing to group by; expected algo, variant, algo,variant or algo.learning_rate")


def _label(run: Run, keys: list[str]) -> str:
    """Return "ppo", "ppo, default" or "learning_rate=0.001"."""
    parts = []
    for key in keys:
        if key in FIELDS:
            parts.append(str(getattr(run, key)))
        else:
            value = run.config.get(key, "-")
            shown = f"{value:g}" if isinstance(value, float) else str(value)
            parts.append(f"{key.rpartition('.')[2]}={shown}")
    return ", ".join(parts)
