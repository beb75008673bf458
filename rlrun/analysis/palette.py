"""Colours that the colour-blind tell apart, the same in the figures and in the page.

Okabe and Ito (2008), "Color Universal Design", without black, which is invisible in dark mode.
"""

OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8B8000")
DASHES = ("-", "--", "-.", ":")


def colors(count: int) -> list[str]:
    """Return a colour for each group; beyond seven they repeat, and `dash` tells them apart."""
    return [OKABE_ITO[i % len(OKABE_ITO)] for i in range(count)]


def dash(index: int) -> str:
    """Return matplotlib's line style of a group."""
    return DASHES[index // len(OKABE_ITO) % len(DASHES)]
