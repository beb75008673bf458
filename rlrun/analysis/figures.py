"""Figures fit for a paper, as PNG, SVG and PDF: curves, and the plots of Agarwal et al. (2021), arXiv:2108.13264."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from rlrun.analysis.curves import Curve, clock_unit
from rlrun.analysis.model import Comparison, Estimate
from rlrun.analysis.plotting import (
    BAND_ALPHA,
    MOST_LISTED,
    PANEL,
    ROW_HEIGHT,
    STYLE,
    Look,
    count,
    legend,
    panels,
    steps,
)
from rlrun.analysis.tables import ESTIMATES, value_name

MOST_PANELS = 30
KINDS: dict[str, Any] = {
    "png": {"dpi": 200},
    "svg": {"metadata": {"Date": None}},
    "pdf": {"metadata": {"CreationDate": None}},
}
NORMALISED = "normalised score"


def draw_all(comparison: Comparison, out: Path) -> list[str]:
    """Write all figures that there is something to show in; return their names."""
    drawings: dict[str, Callable[[Comparison, Look], Figure | None]] = {
        "sample_efficiency": _over_steps,
        "sample_efficiency_overall": _overall_steps,
        "wall_clock": _over_clock,
        "wall_clock_overall": _overall_clock,
        "performance_profiles": _profiles,
        "intervals": _intervals,
        "probability_of_improvement": _improvement,
    }
    names = []
    with matplotlib.rc_context(STYLE):
        ranked = sorted(comparison.overall.rows, key=lambda row: -row.estimates["iqm"].value)
        look = Look(comparison.labels, [row.label for row in ranked])
        for name, draw in drawings.items():
            figure = draw(comparison, look)
            if figure is None:
                for kind in KINDS:  # of an earlier report in this folder
                    (out / f"{name}.{kind}").unlink(missing_ok=True)
                continue
            figure.draw_without_rendering()
            figure.set_layout_engine("none")  # found once, for all files
            for kind, options in KINDS.items():
                figure.savefig(out / f"{name}.{kind}", **options)
            plt.close(figure)
            names.append(name)
    return names


def _over_steps(comparison: Comparison, look: Look) -> Figure | None:
    shown = {env.name: (env.over_steps, "environment steps", 1.0) for env in comparison.environments}
    return _environments(comparison, look, shown)


def _over_clock(comparison: Comparison, look: Look) -> Figure | None:
    shown = {}
    for env in comparison.environments:
        unit, seconds = clock_unit(max((float(curve.x[-1]) for curve in env.over_clock.values()), default=0.0))
        shown[env.name] = (env.over_clock, f"{unit} of training", seconds)
    return _environments(comparison, look, shown)


def _environments(
    comparison: Comparison, look: Look, curves: dict[str, tuple[dict[str, Curve], str, float]]
) -> Figure | None:
    """Draw the mean curve of each group with its 95% band, a panel for each environment.

    `curves` holds for each environment its curves, what their x-axis is, and the unit of it.
    """
    shown = [env for env in comparison.environments if curves[env.name][0]][:MOST_PANELS]
    if not shown:
        return None
    figure, axes, columns = panels(len(shown))
    for i, (axis, env) in enumerate(zip(axes, shown, strict=True)):
        of_env, xlabel, unit = curves[env.name]
        _draw(axis, of_env, look, unit)
        if env.threshold is not None:
            axis.axhline(env.threshold, color="0.5", linewidth=0.8, linestyle=":", zorder=1)
        axis.set(title=env.name, xlabel=xlabel, ylabel=value_name(comparison.metric) if i % columns == 0 else "")
    legend(figure, axes, look)
    return figure


def _overall_steps(comparison: Comparison, look: Look) -> Figure | None:
    return _together(comparison, look, comparison.overall.over_steps, comparison.overall.x_steps)


def _overall_clock(comparison: Comparison, look: Look) -> Figure | None:
    return _together(comparison, look, comparison.overall.over_clock, comparison.overall.x_clock)


def _together(comparison: Comparison, look: Look, curves: dict[str, Curve], xlabel: str) -> Figure | None:
    """Draw the IQM over environments of each group with its 95% band."""
    tasks = comparison.overall.tasks
    if len(tasks) < 2 or not curves:
        return None
    figure, axes, _ = panels(1, scale=1.3)
    _draw(axes[0], curves, look, 1.0)
    axes[0].set(title=f"{len(tasks)} environments", xlabel=xlabel, ylabel=f"IQM of {NORMALISED}s")
    legend(figure, axes, look)
    return figure


def _draw(axis: Axes, curves: dict[str, Curve], look: Look, unit: float) -> None:
    for label in look.drawn(curves):
        curve, x = curves[label], curves[label].x / unit
        # A curve that is a single point would not be seen as a line.
        marker = "o" if len(x) == 1 else None
        axis.plot(x, curve.mean, **look.line(label), linewidth=1.4, marker=marker, markersize=3)
        if curve.low is not None and curve.high is not None:
            axis.fill_between(x, curve.low, curve.high, color=look.color(label), alpha=BAND_ALPHA, linewidth=0)
    axis.xaxis.set_major_formatter(FuncFormatter(steps))
    axis.yaxis.set_major_formatter(FuncFormatter(count))


def _profiles(comparison: Comparison, look: Look) -> Figure | None:
    together = comparison.overall
    if not together.profiles:
        return None
    figure, axes, _ = panels(1, scale=1.3)
    for label in look.drawn(together.profiles):
        profile = together.profiles[label]
        # Fractions change at scores, not between them.
        axes[0].step(together.taus, profile.fraction, where="post", **look.line(label))
        axes[0].fill_between(
            together.taus,
            profile.low,
            profile.high,
            step="post",
            color=look.color(label),
            alpha=BAND_ALPHA,
            linewidth=0,
        )
    axes[0].set(xlabel=f"{NORMALISED} τ", ylabel="fraction of runs with score > τ", ylim=(-0.02, 1.02))
    legend(figure, axes, look)
    return figure


def _intervals(comparison: Comparison, look: Look) -> Figure | None:
    """Draw mean, median, IQM and optimality gap over the environments with their 95% intervals."""
    rows = sorted(comparison.overall.rows, key=lambda row: row.estimates["iqm"].value)[-MOST_LISTED:]
    if not rows:
        return None
    size = (4 * 1.7 + 0.6, 0.75 + ROW_HEIGHT * len(rows))
    figure, axes = plt.subplots(1, len(ESTIMATES), figsize=size, sharey=True)
    for axis, (key, title) in zip(axes, ESTIMATES.items(), strict=True):
        axis.use_sticky_edges = False  # else the outermost bars touch the frame, as if cut off
        for i, row in enumerate(rows):
            _bar(axis, i, row.estimates[key], look.color(row.label))
        axis.set(title=title)
        _list(axis, [look.name(row.label) for row in rows])
    figure.supxlabel(f"{NORMALISED}, with 95% intervals", fontsize=8)
    return figure


def _improvement(comparison: Comparison, look: Look) -> Figure | None:
    """Draw the probability that a run of X beats one of Y, for each pair."""
    pairs = comparison.overall.pairs[:MOST_LISTED][::-1]
    if not pairs:
        return None
    figure, axis = plt.subplots(figsize=(1.5 * PANEL[0], 0.8 + ROW_HEIGHT * len(pairs)))
    for i, pair in enumerate(pairs):
        _bar(axis, i, pair.probability, look.color(pair.better))
    axis.axvline(0.5, color="0.5", linewidth=0.8, linestyle=":")
    axis.set(xlim=(-0.01, 1.01), xlabel="P(X > Y), with 95% intervals")
    _list(axis, [f"{look.name(pair.better)} > {look.name(pair.than)}" for pair in pairs])
    return figure


def _list(axis: Axes, names: Sequence[str]) -> None:
    axis.set_ylim(-0.6, len(names) - 0.4)
    axis.set_yticks(range(len(names)), names)
    axis.tick_params(axis="y", length=0)
    axis.grid(False, axis="y")


def _bar(axis: Axes, position: float, estimate: Estimate, color: str) -> None:
    if not math.isnan(estimate.low):
        axis.barh(position, estimate.high - estimate.low, 0.6, estimate.low, color=color, alpha=0.55)
    axis.plot([estimate.value] * 2, [position - 0.3, position + 0.3], color="black", linewidth=1.2)
