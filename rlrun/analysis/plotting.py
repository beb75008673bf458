"""What all figures share: sizes, fonts, colours, the legend."""

from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlrun.analysis.palette import LIGHT, dash

PANEL = (3.1, 2.3)  # inches: three of them are as wide as a page
MOST_COLUMNS = 3
ROW_HEIGHT = 0.24  # inches of a group in plots that list them
MOST_LISTED = 30  # groups or pairs in one plot; more cannot be read
LONGEST_LABEL = 40  # characters; report.md has the whole name
BAND_ALPHA = 0.2
CHARACTERS = 13  # of a legend on an inch
HANDLE = 7  # characters that a legend's line and its gap take
STYLE: Any = {  # matplotlib types its keys by version
    "font.size": 8,
    "axes.titlesize": 9,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text, to search and to edit
    "svg.hashsalt": "rlrun",  # ids that do not change from one report to the next
    "pdf.fonttype": 42,  # TrueType: publishers refuse Type 3
    "figure.constrained_layout.use": True,
    "text.parse_math": False,  # a $ in a name is a $
}


class Look:
    """The colour, the dashes and the name of each group, the same in all figures."""

    def __init__(self, labels: Sequence[str], ranking: Sequence[str] = ()) -> None:
        """Take the labels in the order of their colours. Of too many, the first of the ranking are drawn."""
        self._position = {label: i for i, label in enumerate(labels)}
        best = {label: i for i, label in enumerate(ranking)}
        self._drawn = set(sorted(labels, key=lambda label: best.get(label, len(best)))[:MOST_LISTED])

    def position(self, name: str) -> int:
        """Return the place of a group's name in the order of colours."""
        return next((i for label, i in self._position.items() if self.name(label) == name), len(self._position))

    def drawn(self, labels: Iterable[str]) -> list[str]:
        """Return those of the labels that are drawn at all."""
        return [label for label in labels if label in self._drawn]

    @property
    def left_out(self) -> str:
        """Return what a legend says above its names where groups are left out."""
        total, drawn = len(self._position), len(self._drawn)
        return f"the {drawn} of {total} groups with the highest IQM" if drawn < total else ""

    def color(self, label: str) -> str:
        return LIGHT[self._position[label] % len(LIGHT)]

    def line(self, label: str) -> dict[str, Any]:
        """Return the keyword arguments of a line."""
        return {"color": self.color(label), "linestyle": dash(self._position[label]), "label": self.name(label)}

    def name(self, label: str) -> str:
        """Return the label cut to a figure's width; one that begins with an underscore would be hidden."""
        cut = label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 1] + "…"
        return f" {cut}" if cut.startswith("_") else cut


def panels(number: int, scale: float = 1.0) -> tuple[Figure, list[Axes], int]:
    """Return a figure with so many panels, the panels, and how many stand beside one another."""
    columns = 2 if number == 4 else min(MOST_COLUMNS, number)
    lines = -(-number // columns)
    size = (scale * PANEL[0] * columns, scale * PANEL[1] * lines + 0.3)
    figure, grid = plt.subplots(lines, columns, figsize=size, squeeze=False)
    axes = list(grid.flat)
    for axis in axes[number:]:
        axis.axis("off")
    return figure, axes[:number], columns


def legend(figure: Figure, axes: Sequence[Axes], look: Look) -> None:
    """Name each group once, below all panels, in as many columns as fit."""
    handles = {label: line for axis in axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    shown = sorted(handles.items(), key=lambda item: look.position(item[0]))
    widest = max((len(name) for name, _ in shown), default=1)
    fitting = int(figure.get_figwidth() * CHARACTERS / (widest + HANDLE))
    columns = max(1, min(fitting, len(shown)))
    figure.legend(
        [handle for _, handle in shown],
        [name for name, _ in shown],
        loc="outside lower center",
        ncols=columns,
        title=look.left_out or None,
    )


def steps(value: float, position: int) -> str:
    """Return 200k and 1.5M as people write steps on an axis."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:,g}{unit}"
    return f"{value:g}"


def count(value: float, position: int) -> str:
    """Return -1,200 and 2.5M as people write returns on an axis."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:,g}M"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"
