"""Numbers as people read them."""

import math

from rlrun.analysis.model import Estimate, Pair, Row

LARGE = 10.0


def number(value: float, size: float | None = None) -> str:
    """Return three decimals of small numbers, one of large ones; `size`, if given, decides which it is."""
    text = f"{value:,.1f}" if abs(value if size is None else size) >= LARGE else f"{value:.3f}"
    return text.lstrip("-") if not text.strip("-0.") else text


def shown(estimate: Estimate | None) -> str:
    """Return "473.1 [460.2, 490.0]"; without the interval where there is none."""
    if estimate is None:
        return "-"
    if math.isnan(estimate.low):
        return number(estimate.value)
    size = max(abs(end) for end in (estimate.value, estimate.low, estimate.high))
    value, low, high = (number(end, size) for end in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}]"


def probability(pair: Pair) -> str:
    """Return "P(ppo > dqn) = 0.980 [0.910, 1.000]"."""
    return f"P({pair.better} > {pair.than}) = {shown(pair.probability)}"


def finished(row: Row) -> str:
    """Return "5 of 8, 2 failed, 1 interrupted"."""
    return ", ".join(
        [f"{row.num_finished} of {row.num_runs}", *(f"{count} {status}" for status, count in row.others.items())]
    )


def steps(row: Row) -> str:
    """Return "100,096", or "100,096 to 500,000" of runs of different lengths."""
    if row.steps is None:
        return "-"
    fewest, most = row.steps
    return f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"


def times(row: Row) -> str:
    """Return "20,224 [18,000, 25,000] (9 of 10)": median steps to the threshold, and how many runs got there."""
    median = row.steps_to_threshold
    if median is None:
        return "-"
    reached = f"({row.num_reached} of {row.num_evaluated})"
    if math.isnan(median.low) or math.isinf(median.low):
        return f"{_time(median.value)} {reached}"
    return f"{_time(median.value)} [{_time(median.low)}, {_time(median.high)}] {reached}"


def _time(time: float) -> str:
    return "never" if math.isinf(time) else f"{time:,.0f}"
