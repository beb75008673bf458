"""Runs in groups: what is compared with what."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlrun.analysis.metric import score
from rlrun.analysis.runs import Run
from rlrun.errors import UserError, nearest

# Of a run; any other `by` is a dotted key of its configuration, or a section of it.
FIELDS = ("algo", "variant", "tuned", "status", "outputs")


@dataclass(frozen=True)
class Group:
    """The runs of one environment that share a label, and the scores [N] of those that have one."""

    label: str
    runs: list[Run]
    scored: list[Run]
    scores: np.ndarray

    @property
    def num_finished(self) -> int:
        return sum(run.finished for run in self.runs)

    @property
    def others(self) -> dict[str, int]:
        """Return how many runs failed, were interrupted, or are running."""
        return dict(sorted(Counter(run.status for run in self.runs if not run.finished).items()))


def grouped(runs: Sequence[Run], by: str, metric: str) -> dict[str, list[Group]]:
    """Return {environment: groups}, sorted by name. Raises UserError if no run has a score."""
    keys = [key.strip() for key in by.split(",") if key.strip()]
    _check_keys(runs, keys)
    label = _labeller(runs, keys)
    found: dict[str, dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        found[run.env][label(run)].append(run)
    groups = {
        env: [_group(name, labels[name], metric) for name in sorted(labels, key=natural)]
        for env, labels in sorted(found.items())
    }
    if not any(group.scored for members in groups.values() for group in members):
        raise _nothing(runs, metric)
    return groups


def natural(label: str) -> list[tuple[int, float, str]]:
    """Return the sort key that puts learning_rate=1e-05 before 0.001, and seed=2 before seed=10."""
    parts = re.split(r"(?<![\w.])(-?\d+(?:\.\d+)?(?:e[-+]?\d+)?)(?![\w.])", label)
    return [(0, float(part), "") if i % 2 else (1, 0.0, part) for i, part in enumerate(parts)]


def _nothing(runs: Sequence[Run], metric: str) -> UserError:
    finished = [run for run in runs if run.finished]
    if metric == "best" and finished:
        return UserError(
            f"metric=best: none of the {len(finished)} finished runs has a report of its best policy on episodes "
            "that did not choose it; make one for each with\n"
            f"  rlrun eval '{finished[0].path}' checkpoint=best\nor take metric=final"
        )
    states = ", ".join(f"{count} {status}" for status, count in sorted(Counter(r.status for r in runs).items()))
    return UserError(
        f"none of the {len(runs)} runs has a result for metric={metric} ({states}); "
        "give the commands that started them again to finish them, or give other PATHS"
    )


def _group(label: str, runs: list[Run], metric: str) -> Group:
    pairs = [(run, value) for run in runs if (value := score(run, metric)) is not None]
    return Group(label, runs, [run for run, _ in pairs], np.array([value for _, value in pairs], dtype=float))


def _check_keys(runs: Sequence[Run], keys: list[str]) -> None:
    known = {key for run in runs for key in run.config}
    sections = {key.rpartition(".")[0] for key in known} - {""}
    for key in keys:
        if key == "env":
            raise UserError("by=env: each environment has a table of its own already; expected algo, or another key")
        if key not in FIELDS and key not in known and key not in sections:
            raise UserError(
                f"by={key} is no key of these runs.{nearest(key, [*FIELDS, *known])} Known: {', '.join(FIELDS)} and "
                "the keys of config.yaml, such as algo.learning_rate or network"
            )
    if not keys:
        raise UserError("by= names nothing to group by; expected algo, variant, algo,variant or algo.learning_rate")


def _labeller(runs: Sequence[Run], keys: list[str]) -> Callable[[Run], str]:
    """Return the function from a run to "ppo", "ppo, default", "learning_rate=0.001" or "NatureCNN"."""
    parts = [_part(runs, key) for key in keys]
    return lambda run: ", ".join(part(run) for part in parts)


def _part(runs: Sequence[Run], key: str) -> Callable[[Run], str]:
    if key == "outputs":
        return _outputs(runs)
    if key in FIELDS:
        return lambda run: str(getattr(run, key))
    if any(key in run.config for run in runs):
        return lambda run: f"{key.rpartition('.')[2]}={_shown(run.config.get(key, '-'))}"
    return _section(runs, key)


def _outputs(runs: Sequence[Run]) -> Callable[[Run], str]:
    """Return the function from a run to its outputs folder, as short as tells all of them apart."""
    folders = {run.outputs for run in runs}
    common = os.path.commonpath(folders) if len(folders) > 1 else str(Path(next(iter(folders))).parent)
    return lambda run: os.path.relpath(run.outputs, common)


def _section(runs: Sequence[Run], section: str) -> Callable[[Run], str]:
    """Return the function from a run to what a section of its configuration builds, and with what.

    Only keys that differ among the runs are named.
    """
    found: dict[str, set[str]] = defaultdict(set)
    keys = sorted({key for run in runs for key in run.config if key.startswith(f"{section}.")})
    for run in runs:
        for key in keys:
            found[key].add(_shown(run.config.get(key, "-")))
    target = f"{section}._target_"
    varying = [key for key in keys if key != target and len(found[key]) > 1]

    def label(run: Run) -> str:
        name = str(run.config.get(target, section)).rpartition(".")[2]
        values = [
            f"{key.removeprefix(section + '.')}={_shown(run.config[key])}" for key in varying if key in run.config
        ]
        return " ".join([name, *values])

    return label


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
