"""Schedules as pure functions of progress, so that there is no scheduler to save."""


def linear(start: float, end: float, progress: float) -> float:
    """Return the value at `progress` (0 at the start, 1 at the end, clamped) of a straight line."""
    return start + (end - start) * min(max(progress, 0.0), 1.0)


def crossed(every: int, before: int, now: int) -> bool:
    """Say whether a multiple of `every` lies in (before, now]. Pure: there is no counter to save."""
    return now // every > before // every
