"""Figures fit for a paper, as PNG and SVG: the plots of Agarwal et al. (2021), arXiv:2108.13264, and curves."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlrun.analysis.curves import Curve, clock_unit
from rlrun.analysis.palette import colors, dash
from rlrun.analysis.summary import Comparison, Environment
from rlrun.analysis.tables import ESTIMATES

PANEL = (3.1, 2.3)  # inches: three of them are as wide as a page
ROW_HEIGHT = 0.24  # inches of a group in plots that list them
MOST_LISTED = 30  # groups or pairs in one plot; more cannot be read
MOST_PANELS = 30
LONGEST_LABEL = 40  # characters; report.md has the whole name
BAND_ALPHA = 0.2
STYLE: Any = {  # matplotlib types its keys by version
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text, to search and to edit
    "svg.hashsalt": "rlrun",  # ids that do not change from one report to the next
    "figure.constrained_layout.use": True,
    "text.parse_math": False,  # a $ in a name is a $
}


def draw_all(comparison: Comparison, out: Path) -> list[str]:
    """Write all figures that there is something to show in; return their names."""
    drawings: dict[str, Callable[[Comparison], Figure | None]] = {
        "sample_efficiency": lambda c: _curves(c, lambda env: env.over_steps, "environment steps"),
        "wall_clock": _clock_curves,
        "performance_profiles": _profiles,
        "intervals": _intervals,
        "probability_of_improvement": _improvement,
    }
    names = []
    with matplotlib.rc_context(STYLE):
        for name, draw in drawings.items():
            figure = draw(comparison)
            if figure is None:
                for kind in ("png", "svg"):  # of an earlier report in this folder
                    (out / f"{name}.{kind}").unlink(missing_ok=True)
                continue
            figure.draw_without_rendering()
            figure.set_layout_engine("none")  # found once, for both files
            figure.savefig(out / f"{name}.png", dpi=200)
            figure.savefig(out / f"{name}.svg", metadata={"Date": None})
            plt.close(figure)
            names.append(name)
    return names


def _clock_curves(comparison: Comparison) -> Figure | None:
    ends = [float(c.x[-1]) for env in comparison.environments for c in env.over_clock.values()]
    unit, seconds = clock_unit(max(ends, default=0.0))
    return _curves(comparison, lambda env: env.over_clock, f"{unit} of training", seconds)


def _curves(
    comparison: Comparison, of: Callable[[Environment], dict[str, Curve]], xlabel: str, unit: float = 1.0
) -> Figure | None:
    """Draw the mean evaluation return of each group with its 95% band, a panel for each environment."""
    shown = [env for env in comparison.environments if of(env)][:MOST_PANELS]
    if not shown:
        return None
    with _panels(len(shown)) as (figure, axes):
        for axis, env in zip(axes, shown, strict=True):
            for label, curve in of(env).items():
                color, style = _look(comparison, label)
                axis.plot(curve.x / unit, curve.mean, color=color, linestyle=style, linewidth=1.4, label=_short(label))
                if curve.low is not None and curve.high is not None:
                    axis.fill_between(curve.x / unit, curve.low, curve.high, color=color, alpha=BAND_ALPHA, linewidth=0)
            if env.scale.threshold is not None:
                axis.axhline(env.scale.threshold, color="0.5", linewidth=0.8, linestyle=":")
            axis.set(title=env.name, xlabel=xlabel, ylabel="return in evaluation")
            axis.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(_steps))
        _legend(figure, axes)
    return figure


def _profiles(comparison: Comparison) -> Figure | None:
    if not comparison.profiles:
        return None
    figure, axis = plt.subplots(figsize=(1.4 * PANEL[0], 1.3 * PANEL[1]))
    for label, profile in list(comparison.profiles.items())[:MOST_LISTED]:
        color, style = _look(comparison, label)
        # Fractions change at scores, not between them.
        axis.step(comparison.taus, profile.fraction, where="post", color=color, linestyle=style, label=_short(label))
        axis.fill_between(
            comparison.taus, profile.low, profile.high, step="post", color=color, alpha=BAND_ALPHA, linewidth=0
        )
    axis.set(xlabel=r"normalised score τ", ylabel="fraction of runs with score > τ", ylim=(-0.02, 1.02))
    _legend(figure, [axis])
    return figure


def _intervals(comparison: Comparison) -> Figure | None:
    """Draw mean, median, IQM and optimality gap over the environments with their 95% intervals."""
    rows = sorted(comparison.overall, key=lambda row: row.estimates["iqm"].value)[-MOST_LISTED:]
    if not rows:
        return None
    size = (4 * 1.7 + 0.6, 0.75 + ROW_HEIGHT * len(rows))
    figure, axes = plt.subplots(1, len(ESTIMATES), figsize=size, sharey=True)
    for axis, (key, title) in zip(axes, ESTIMATES.items(), strict=True):
        axis.use_sticky_edges = False  # else the outermost bars touch the frame, as if cut off
        for i, row in enumerate(rows):
            _bar(axis, i, row.estimates[key], _look(comparison, row.label)[0])
        axis.set(title=title, ylim=(-0.6, len(rows) - 0.4))
        axis.set_yticks(range(len(rows)), [_short(row.label) for row in rows])
        axis.grid(False, axis="y")
    figure.supxlabel("normalised score", fontsize=8)
    return figure


def _improvement(comparison: Comparison) -> Figure | None:
    pairs = comparison.pairs[:MOST_LISTED][::-1]
    if not pairs:
        return None
    figure, axis = plt.subplots(figsize=(1.5 * PANEL[0], 0.8 + ROW_HEIGHT * len(pairs)))
    for i, pair in enumerate(pairs):
        _bar(axis, i, pair.probability, _look(comparison, pair.better)[0])
    axis.axvline(0.5, color="0.5", linewidth=0.8, linestyle=":")
    axis.set(xlim=(-0.01, 1.01), ylim=(-0.6, len(pairs) - 0.4), xlabel="P(X > Y)")
    axis.set_yticks(range(len(pairs)), [f"{_short(pair.better)} > {_short(pair.than)}" for pair in pairs])
    axis.grid(False, axis="y")
    return figure


def _bar(axis: Axes, position: float, estimate: Any, color: str) -> None:
    if not math.isnan(estimate.low):
        axis.barh(position, estimate.high - estimate.low, 0.6, estimate.low, color=color, alpha=0.55)
    axis.plot([estimate.value] * 2, [position - 0.3, position + 0.3], color="black", linewidth=1.2)


@contextmanager
def _panels(count: int) -> Iterator[tuple[Figure, list[Axes]]]:
    columns = min(3, count)
    lines = -(-count // columns)
    figure, grid = plt.subplots(lines, columns, figsize=(PANEL[0] * columns, PANEL[1] * lines + 0.3), squeeze=False)
    axes = list(grid.flat)
    for axis in axes[count:]:
        axis.axis("off")
    yield figure, axes[:count]


def _legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """Name each group once, below all panels."""
    handles = {label: line for axis in axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    shown = list(handles.items())[:MOST_LISTED]
    columns = max(1, min(4, len(shown)))
    figure.legend([h for _, h in shown], [name for name, _ in shown], loc="outside lower center", ncols=columns)


def _look(comparison: Comparison, label: str) -> tuple[str, str]:
    i = comparison.labels.index(label)
    return colors(len(comparison.labels))[i], dash(i)


def _short(label: str) -> str:
    """Return the label cut to a figure's width; one that begins with an underscore would be hidden."""
    cut = label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 1] + "…"
    return f" {cut}" if cut.startswith("_") else cut


def _steps(value: float, position: int) -> str:
    """Return 200k and 1.5M as people write steps."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
