"""The table of single runs in report.html: their numbers, a sparkline of each, links to folders and videos."""

import os
from collections.abc import Iterable
from html import escape
from pathlib import Path
from urllib.parse import quote

import numpy as np

from rlrun.analysis.curves import thinned
from rlrun.analysis.metric import score
from rlrun.analysis.model import Comparison
from rlrun.analysis.numbers import number
from rlrun.analysis.palette import LIGHT
from rlrun.analysis.runs import Run
from rlrun.files import human_seconds

SPARK_POINTS, SPARK_WIDTH, SPARK_HEIGHT = 40, 96, 24  # points; pixels


def run_rows(comparison: Comparison, out: Path) -> Iterable[str]:
    """Yield a row for each run; its links are relative to the folder `out`."""
    colors = {label: i % len(LIGHT) for i, label in enumerate(comparison.labels)}
    for env in comparison.environments:
        values = [run.curve[:, 1] for group in env.groups for run in group.runs if len(run.curve)]
        pooled = np.concatenate(values) if values else np.zeros(1)
        bounds = float(pooled.min()), float(pooled.max())
        for group in env.groups:
            for run in group.runs:
                yield _row(run, group.label, comparison.metric, _spark(run, bounds, colors[group.label]), out)


def _row(run: Run, label: str, metric: str, spark: str, out: Path) -> str:
    value = score(run, metric)
    sort = "" if value is None else f" data-sort={value!r}"
    wall = run.wall_seconds
    videos = " ".join(_link(video, out, f"▶ {video.name}") for video in run.videos)
    return (
        f"<tr><td>{escape(run.env)}</td><td>{escape(label)}</td><td data-sort={run.seed}>{run.seed}</td>"
        f"<td class='status {escape(run.status)}'>{escape(run.status)}</td>"
        f"<td{sort}>{'-' if value is None else number(value)}</td><td>{spark}</td>"
        f"<td data-sort={run.steps}>{run.steps:,}</td>"
        f"<td{'' if wall is None else f' data-sort={wall!r}'}>{'-' if wall is None else human_seconds(wall)}</td>"
        f"<td>{_link(run.path, out, 'folder')}</td><td>{videos}</td></tr>\n"
    )


def _link(path: Path, out: Path, text: str) -> str:
    # quote() leaves no colon, so a folder's name cannot become another scheme.
    target = quote(os.path.relpath(path, out), safe="/=")
    return f'<a href="{target}">{escape(text)}</a>'


def _spark(run: Run, bounds: tuple[float, float], color: int) -> str:
    """Return the run's curve as a small line; all runs of an environment share the vertical scale."""
    points = thinned(run.curve, SPARK_POINTS)
    if not len(points):
        return ""
    low, high = bounds
    x = points[:, 0] / max(run.total_steps, points[-1, 0], 1) * (SPARK_WIDTH - 4) + 2
    y = SPARK_HEIGHT - 2 - (points[:, 1] - low) / ((high - low) or 1.0) * (SPARK_HEIGHT - 4)
    line = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    size = f"width={SPARK_WIDTH} height={SPARK_HEIGHT} viewBox='0 0 {SPARK_WIDTH} {SPARK_HEIGHT}'"
    text = f"{len(run.curve)} points, the last {number(float(run.curve[-1, 1]))}"
    return (
        f"<svg class=spark {size} role=img aria-label='{text}'><title>{text}</title>"
        f"<polyline points='{line}' style='stroke:var(--c{color})'/></svg>"
    )
