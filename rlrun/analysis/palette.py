"""Colours that the colour-blind tell apart, the same in the figures and in the page.

Okabe and Ito (2008), "Color Universal Design", without black, which groups are outlined in. Beyond seven groups the
colours repeat, and dashes tell them apart.
"""

LIGHT = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8B8000")
DARK = ("#4AA3E0", "#F0B429", "#2BC79A", "#E39BC4", "#8FD0F5", "#FF8A4C", "#D6CB3A")  # brighter, for a dark page
DASHES = ("-", "--", "-.", ":")


def dash(index: int) -> str:
    """Return matplotlib's line style of a group."""
    return DASHES[index // len(LIGHT) % len(DASHES)]
