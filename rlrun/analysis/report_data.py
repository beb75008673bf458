"""What the interactive curves of report.html are drawn from."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from rlrun.analysis.curves import Curve, clock_unit, over_clock, over_steps, thinned
from rlrun.analysis.model import Comparison, Environment
from rlrun.analysis.palette import LIGHT

RUN_POINTS = 60  # of one run in the interactive curves: a thousand runs must stay a small file
DIGITS = 6  # significant ones, of the curves in the page
TAU = "normalised score τ"


def chart_data(comparison: Comparison) -> str:
    """Return the data as JSON that cannot end the script element it stands in."""
    names = comparison.labels
    charts = [
        *_overall(comparison, names),
        *(_environment(env, names) for env in comparison.environments if env.over_steps),
        *_profile(comparison, names),
    ]
    data = {"groups": names, "colors": len(LIGHT), "charts": charts}
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _overall(comparison: Comparison, names: list[str]) -> list[dict[str, Any]]:
    together = comparison.overall
    if len(together.tasks) < 2 or not together.over_steps:
        return []
    return [
        {
            "title": f"overall, {len(together.tasks)} environments",
            "label": {"steps": together.x_steps, "clock": together.x_clock},
            "steps": _means(together.over_steps, names, 1.0),
            "clock": _means(together.over_clock, names, 1.0),
        }
    ]


def _environment(env: Environment, names: list[str]) -> dict[str, Any]:
    ends = [float(run.clock[-1, 1]) for group in env.groups for run in group.runs if len(run.clock)]
    unit, seconds = clock_unit(max(ends, default=0.0))
    runs = [
        {
            "group": names.index(group.label),
            "seed": run.seed,
            "steps": _line(over_steps(run), 1.0),
            "clock": _line(over_clock(run), seconds),
        }
        for group in env.groups
        for run in group.runs
    ]
    return {
        "title": env.name,
        "label": {"steps": "environment steps", "clock": f"{unit} of training"},
        "threshold": env.threshold,
        "steps": _means(env.over_steps, names, 1.0),
        "clock": _means(env.over_clock, names, seconds),
        "runs": runs,
    }


def _profile(comparison: Comparison, names: list[str]) -> list[dict[str, Any]]:
    together = comparison.overall
    if not together.profiles:
        return []
    lines = [
        {
            "group": names.index(label),
            "x": _rounded(together.taus),
            "y": _rounded(profile.fraction),
            "low": _rounded(profile.low),
            "high": _rounded(profile.high),
        }
        for label, profile in together.profiles.items()
    ]
    title = "performance profile: fraction of runs above τ"
    return [{"title": title, "label": {"steps": TAU, "clock": TAU}, "steps": lines, "clock": lines}]


def _means(curves: Mapping[str, Curve], names: list[str], unit: float) -> list[dict[str, Any]]:
    return [_mean(names.index(label), curve, unit) for label, curve in curves.items()]


def _mean(group: int, curve: Curve, unit: float) -> dict[str, Any]:
    line: dict[str, Any] = {"group": group, "x": _rounded(curve.x / unit), "y": _rounded(curve.mean)}
    if curve.low is not None and curve.high is not None:
        line |= {"low": _rounded(curve.low), "high": _rounded(curve.high)}
    return line


def _line(curve: np.ndarray, unit: float) -> dict[str, Any]:
    few = thinned(curve, RUN_POINTS)
    return {"x": _rounded(few[:, 0] / unit), "y": _rounded(few[:, 1])}


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in values]
