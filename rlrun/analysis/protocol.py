"""Which runs may be compared: those that were given the same task, the same budget and the same exam."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from rlrun.analysis.runs import Run
from rlrun.errors import UserError

BUDGET = ("stop.at_return", "stop.after_time")  # they end a run before total_steps
EXAM = ("eval.episodes", "eval.final_episodes", "eval.max_steps")
PER_ALGO = "protocol.policy"  # greedy or sampled is part of a method: it may differ between algorithms only
MOST_EXAMPLES = 3


def facts(run: Run, metric: str) -> dict[str, Any]:
    """Return what has to be equal among compared runs of one environment.

    How often a run was evaluated matters only where the metric is made of those evaluations: the best of
    more evaluations is higher.
    """
    keys = [*BUDGET, *EXAM, *(() if metric == "final" else ("eval.every",))]
    return {
        **{f"protocol.{key}": value for key, value in run.protocol.items()},
        "total_steps": run.total_steps,
        **{key: run.config[key] for key in keys if key in run.config},
    }


def check_same(runs: Sequence[Run], metric: str, mix: bool) -> list[str]:
    """Return notices about runs of one environment that differ in protocol. Raises UserError unless `mix`."""
    refused: list[str] = []
    notices: list[str] = []
    by_env: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_env[run.env].append(run)
    for env, members in by_env.items():
        for key, values in _differing(members, metric).items():
            if key != PER_ALGO:
                refused.append(_line(env, key, values))
                continue
            mixed = [algo for algo in {run.algo for run in members} if len(_values(members, algo)) > 1]
            (refused if mixed else notices).append(_line(env, key, values))
    if refused and not mix:
        raise UserError(
            "these runs were not made under one protocol, so their numbers do not compare:\n"
            + "\n".join(refused)
            + "\nGive fewer PATHS, or mix=true to compare them all the same"
        )
    return [f"mixed protocols: {line.strip()}" for line in refused] + [
        f"algorithms act differently in evaluation, each as its paper does: {line.strip()}" for line in notices
    ]


def _values(members: Iterable[Run], algo: str) -> set[str]:
    return {str(run.protocol.get("policy")) for run in members if run.algo == algo}


def _differing(members: Sequence[Run], metric: str) -> dict[str, dict[str, list[Run]]]:
    """Return {key: {value: runs}} of the keys that have several values.

    A key that one stamp lacks is a difference: the stamps are of different kinds. One that a configuration
    lacks is not: the run is older than the key.
    """
    stamps = [facts(run, metric) for run in members]
    found = {}
    for key in sorted({key for stamp in stamps for key in stamp}):
        values: dict[str, list[Run]] = defaultdict(list)
        for run, stamp in zip(members, stamps, strict=True):
            if key in stamp or key.startswith("protocol."):
                values[str(stamp.get(key, "not recorded"))].append(run)
        if len(values) > 1:
            found[key] = dict(values)
    return found


def _line(env: str, key: str, values: dict[str, list[Run]]) -> str:
    shown = [
        f"{value} in {len(runs)} run{'s' if len(runs) > 1 else ''} ({runs[0].path})"
        for value, runs in list(values.items())[:MOST_EXAMPLES]
    ]
    more = "" if len(values) <= MOST_EXAMPLES else f", and {len(values) - MOST_EXAMPLES} more values"
    return f"  {env}: {key} is {', '.join(shown)}{more}"
