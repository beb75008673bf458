"""report.html: one file that needs no network. Names come from run folders, so all of them are escaped."""

import json
import os
import re
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from rlrun.analysis.curves import Curve, clock_unit, over_clock, over_steps, thinned
from rlrun.analysis.groups import METRICS, score
from rlrun.analysis.palette import colors
from rlrun.analysis.runs import Run
from rlrun.analysis.summary import Comparison, Environment
from rlrun.analysis.tables import HEADER, cells, number, probability, sections, shown, used_columns
from rlrun.files import human_seconds

TEMPLATE = Path(__file__).with_name("report_template.html")
SPARK_POINTS, SPARK_WIDTH, SPARK_HEIGHT = 40, 96, 24  # points; pixels
RUN_POINTS = 60  # of one run in the interactive curves: a thousand runs must stay a small file
DIGITS = 6  # significant ones, of the curves in the page
PROFILE_KEYS = {"y": "fraction", "low": "low", "high": "high"}
MOST_PAIRS = 30  # in the page; report.json has all


def page(comparison: Comparison, out: Path) -> str:
    """Return the page; its links are relative to the folder `out`."""
    parts = {
        "chips": _chips(comparison),
        "notices": "".join(f"<li>{escape(text)}</li>" for text in comparison.notices),
        "metric": escape(f"metric={comparison.metric}: {METRICS[comparison.metric]}"),
        "tables": "".join(_table(*section) for section in sections(comparison)),
        "runs": "".join(_run_rows(comparison, out)),
        "data": _json(_data(comparison)),
    }
    # In one pass, so that what a run folder says is never taken for a place to fill.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], TEMPLATE.read_text())


def _json(value: Any) -> str:
    """Return JSON that cannot end the script element it stands in."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _chips(comparison: Comparison) -> str:
    groups = [group for env in comparison.environments for group in env.groups]
    num_runs, num_finished = sum(len(g.runs) for g in groups), sum(len(g.scored) for g in groups)
    chips = [
        ("runs finished", f"{num_finished} of {num_runs}"),
        ("environments", str(len(comparison.environments))),
        ("groups", str(len(comparison.labels))),
    ]
    if comparison.overall:
        best = max(comparison.overall, key=lambda row: row.estimates["iqm"].value)
        chips.append(("highest IQM", f"{best.label}: {shown(best.estimates['iqm'])}"))
    if comparison.pairs:
        chips.append(("probability of improvement", probability(comparison.pairs[0])))
    seconds = sum(run.wall_seconds or 0 for group in groups for run in group.runs)
    chips.append(("training time", human_seconds(seconds)))
    return "".join(f"<div class=chip><b>{escape(value)}</b><span>{escape(name)}</span></div>" for name, value in chips)


def _table(title: str, text: str, rows: list[Any], pairs: list[Any]) -> str:
    used = used_columns(rows)
    head = "".join(f"<th>{escape(HEADER[i])}</th>" for i in used)
    body = "".join("<tr>" + "".join(f"<td>{escape(cells(row)[i])}</td>" for i in used) + "</tr>" for row in rows)
    items = "".join(f"<li>{escape(probability(pair))}</li>" for pair in pairs[:MOST_PAIRS])
    more = f"<li>{len(pairs) - MOST_PAIRS} more pairs in report.json</li>" if len(pairs) > MOST_PAIRS else ""
    improvement = f"<details><summary>probability of improvement</summary><ul>{items}{more}</ul></details>"
    return (
        f"<h3>{escape(title)}</h3><p class=quiet>{escape(text)}</p><div class=wide><table class=numbers>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{improvement if pairs else ''}"
    )


def _run_rows(comparison: Comparison, out: Path) -> Iterable[str]:
    color = dict(zip(comparison.labels, colors(len(comparison.labels)), strict=True))
    for env in comparison.environments:
        values = [run.curve[:, 1] for group in env.groups for run in group.runs if len(run.curve)]
        pooled = np.concatenate(values) if values else np.zeros(1)
        bounds = float(pooled.min()), float(pooled.max())
        for group in env.groups:
            for run in group.runs:
                yield _run_row(run, group.label, comparison.metric, _spark(run, bounds, color[group.label]), out)


def _run_row(run: Run, label: str, metric: str, spark: str, out: Path) -> str:
    value = score(run, metric)
    sort = "" if value is None else f" data-sort={value!r}"
    videos = " ".join(_link(video, out, video.name) for video in run.videos)
    wall = "-" if run.wall_seconds is None else human_seconds(run.wall_seconds)
    return (
        f"<tr><td>{escape(run.env)}</td><td>{escape(label)}</td><td data-sort={run.seed}>{run.seed}</td>"
        f"<td class='status {escape(run.status)}'>{escape(run.status)}</td>"
        f"<td{sort}>{'-' if value is None else number(value)}</td><td>{spark}</td>"
        f"<td data-sort={run.steps}>{run.steps:,}</td><td data-sort={run.wall_seconds or 0!r}>{wall}</td>"
        f"<td>{_link(run.path, out, 'folder')}</td><td>{videos}</td></tr>\n"
    )


def _link(path: Path, out: Path, text: str) -> str:
    # quote() leaves no colon, so a folder's name cannot become another scheme.
    target = quote(os.path.relpath(path, out))
    return f'<a href="{target}">{escape(text)}</a>'


def _spark(run: Run, bounds: tuple[float, float], color: str) -> str:
    """Return the run's evaluations as a small line; all runs of an environment share the vertical scale."""
    points = thinned(run.curve, SPARK_POINTS)
    if not len(points):
        return ""
    low, high = bounds
    x = points[:, 0] / max(run.total_steps, points[-1, 0]) * (SPARK_WIDTH - 4) + 2
    y = SPARK_HEIGHT - 2 - (points[:, 1] - low) / ((high - low) or 1.0) * (SPARK_HEIGHT - 4)
    line = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    size = f"width={SPARK_WIDTH} height={SPARK_HEIGHT} viewBox='0 0 {SPARK_WIDTH} {SPARK_HEIGHT}'"
    text = f"{len(run.curve)} evaluations, the last {number(float(run.curve[-1, 1]))}"
    return (
        f"<svg class=spark {size} role=img aria-label='{text}'><title>{text}</title>"
        f"<polyline points='{line}' stroke='{color}'/></svg>"
    )


def _data(comparison: Comparison) -> dict[str, Any]:
    """Return what the interactive curves are drawn from."""
    ends = [
        float(run.clock[-1, 1]) for e in comparison.environments for g in e.groups for run in g.runs if len(run.clock)
    ]
    unit, seconds = clock_unit(max(ends, default=0.0))
    names = comparison.labels
    charts = [_chart(env, names, seconds) for env in comparison.environments]
    profile = [
        {
            "group": names.index(label),
            "x": _rounded(comparison.taus),
            **{key: _rounded(getattr(p, attribute)) for key, attribute in PROFILE_KEYS.items()},
        }
        for label, p in comparison.profiles.items()
    ]
    return {"groups": names, "colors": colors(len(names)), "unit": unit, "charts": charts, "profile": profile}


def _chart(env: Environment, names: list[str], unit: float) -> dict[str, Any]:
    runs = [
        {
            "group": names.index(group.label),
            "seed": run.seed,
            "steps": _line(over_steps(run), 1.0),
            "clock": _line(over_clock(run), unit),
        }
        for group in env.groups
        for run in group.runs
    ]
    return {
        "title": env.name,
        "threshold": env.scale.threshold,
        "steps": [_mean_line(names.index(label), curve, 1.0) for label, curve in env.over_steps.items()],
        "clock": [_mean_line(names.index(label), curve, unit) for label, curve in env.over_clock.items()],
        "runs": runs,
    }


def _mean_line(group: int, curve: Curve, unit: float) -> dict[str, Any]:
    line: dict[str, Any] = {"group": group, "x": _rounded(curve.x / unit), "y": _rounded(curve.mean)}
    if curve.low is not None and curve.high is not None:
        line |= {"low": _rounded(curve.low), "high": _rounded(curve.high)}
    return line


def _line(curve: np.ndarray, unit: float) -> dict[str, Any]:
    few = thinned(curve, RUN_POINTS)
    return {"x": _rounded(few[:, 0] / unit), "y": _rounded(few[:, 1])}


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in values]
