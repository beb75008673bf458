"""A comparison for other programs: report.csv and report.json."""

import csv
import io
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlrun.analysis.curves import Curve
from rlrun.analysis.metric import score
from rlrun.analysis.model import Comparison, Environment, Estimate, Overall, Pair, Profile, Row
from rlrun.analysis.runs import Run
from rlrun.analysis.statistics import Array
from rlrun.analysis.tables import ESTIMATES

OVERALL = "overall"


def as_csv(comparison: Comparison) -> str:
    """Return report.csv: one line for each group of each environment and one for each overall."""
    keys = [f"{key}{end}" for key in (*ESTIMATES, "steps_to_threshold") for end in ("", "_low", "_high")]
    fixed = [
        "environment",
        "group",
        "metric",
        "normalisation",
        "mixed_protocols",
        "runs",
        "finished",
        "scored",
        "steps",
    ]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*fixed, *keys, "reached_threshold", "wall_seconds"])
    parts = [(env.name, env.scale.rule, env.mixed, env.rows) for env in comparison.environments]
    parts.append((OVERALL, "per environment", comparison.overall.mixed, comparison.overall.rows))
    for name, rule, mixed, rows in parts:
        for row in rows:
            values = _flat(row)
            writer.writerow(
                [name, row.label, comparison.metric, rule, " ".join(mixed), row.num_runs, row.num_finished]
                + [row.num_scored, "" if row.steps is None else row.steps[1], *(values.get(key, "") for key in keys)]
                + ["" if value is None else value for value in (row.num_reached, row.wall_seconds)]
            )
    return out.getvalue()


def as_json(comparison: Comparison, out: Path) -> dict[str, Any]:
    """Return report.json: all numbers, and the runs that they come from; paths are relative to `out`."""
    return {
        "metric": comparison.metric,
        "by": comparison.by,
        "verdicts": comparison.verdicts,
        "notices": comparison.notices,
        "mixed_protocols": comparison.mixed,
        "environments": {env.name: _environment(env) for env in comparison.environments},
        OVERALL: _overall(comparison.overall),
        "runs": [
            _run(run, group.label, comparison.metric, out)
            for env in comparison.environments
            for group in env.groups
            for run in group.runs
        ],
    }


def _environment(env: Environment) -> dict[str, Any]:
    return {
        "normalisation": {"rule": env.scale.rule, "zero": env.scale.zero, "one": env.scale.one},
        "threshold": env.threshold,
        "mixed_protocols": env.mixed,
        "groups": {row.label: _row(row) for row in env.rows},
        "probability_of_improvement": [_pair(pair) for pair in env.pairs],
        "curves": {"steps": _curves(env.over_steps), "clock": _curves(env.over_clock)},  # clock: seconds
    }


def _overall(together: Overall) -> dict[str, Any]:
    return {
        "environments": together.tasks,
        "mixed_protocols": together.mixed,
        "groups": {row.label: _row(row) for row in together.rows},
        "probability_of_improvement": [_pair(pair) for pair in together.pairs],
        "performance_profile": {
            "tau": together.taus.tolist(),
            **{label: _profile(profile) for label, profile in together.profiles.items()},
        },
        "curves": {"steps": _curves(together.over_steps), "clock": _curves(together.over_clock)},
        "axes": {"steps": together.x_steps, "clock": together.x_clock},
    }


def _profile(profile: Profile) -> dict[str, list[float]]:
    return {"fraction": profile.fraction.tolist(), "low": profile.low.tolist(), "high": profile.high.tolist()}


def _curves(curves: Mapping[str, Curve]) -> dict[str, Any]:
    return {
        label: {"x": c.x.tolist(), "y": c.mean.tolist(), "low": _list(c.low), "high": _list(c.high), "runs": c.num_runs}
        for label, c in curves.items()
    }


def _list(values: Array | None) -> list[float] | None:
    return None if values is None else values.tolist()


def _run(run: Run, label: str, metric: str, out: Path) -> dict[str, Any]:
    return {
        "path": os.path.relpath(run.path, out),
        "environment": run.env,
        "group": label,
        "algo": run.algo,
        "variant": run.variant,
        "seed": run.seed,
        "tuned": run.tuned,
        "status": run.status,
        "steps": run.steps,
        "total_steps": run.total_steps,
        "score": score(run, metric),
        "wall_seconds": run.wall_seconds,
        "protocol": run.protocol,
        "machine": run.made.machine,
        "versions": run.made.versions,
        "rlrun": run.made.commit,
        "command": run.made.command,
    }


def _row(row: Row) -> dict[str, Any]:
    return {
        "runs": row.num_runs,
        "finished": row.num_finished,
        "scored": row.num_scored,
        "steps": row.steps,
        **row.others,
        **{key: _estimate(estimate) for key, estimate in row.estimates.items()},
        "steps_to_threshold": None if row.steps_to_threshold is None else _estimate(row.steps_to_threshold),
        "reached_threshold": row.num_reached,
        "wall_seconds": row.wall_seconds,
    }


def _pair(pair: Pair) -> dict[str, Any]:
    return {"x": pair.better, "y": pair.than, **_estimate(pair.probability)}


def _estimate(estimate: Estimate) -> dict[str, float | None]:
    return {"value": _finite(estimate.value), "low": _finite(estimate.low), "high": _finite(estimate.high)}


def _finite(value: float) -> float | None:
    """Return None for what JSON has no number for: unknown, or never."""
    return value if math.isfinite(value) else None


def _flat(row: Row) -> dict[str, float | None]:
    """Return {"mean": 1.5, "mean_low": 1.2, ...}."""
    found = dict(row.estimates)
    if row.steps_to_threshold is not None:
        found["steps_to_threshold"] = row.steps_to_threshold
    flat = {}
    for key, estimate in found.items():
        for end, value in (("", estimate.value), ("_low", estimate.low), ("_high", estimate.high)):
            flat[f"{key}{end}"] = _finite(value)
    return flat
