"""Rounds of measurements, what is made of them, and whether a goal is met."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

Sample = Mapping[str, float]  # "value", and what else was seen: "memory_gb", "steps"
Round = Mapping[str, Sample]  # side: its sample


@dataclass(frozen=True)
class Limit:
    """A number that a measurement must reach, or must not exceed."""

    value: float
    at_most: bool = False

    def verdict(self, measured: float, unit: str) -> dict[str, Any]:
        """Return, as plain values, what was asked for, what was measured, and whether that is enough."""
        met = measured <= self.value if self.at_most else measured >= self.value
        goal = f"{'<=' if self.at_most else '>='} {self.value:,g} {unit}"
        return {"goal": goal, "limit": self.value, "measured": measured, "met": met}


@dataclass(frozen=True)
class Goal:
    """What the median of a side must be, or the median of its ratios to the peer."""

    side: str
    limit: Limit
    ratio: bool = False


def summary(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}


def ratio(side: float, peer: float, *, faster_is_more: bool) -> float:
    """Return how many times as fast as the peer a side is. A time that is infinite is of what never ended."""
    if not faster_is_more:
        side, peer = 1 / side, 1 / peer
    if peer == 0:
        return math.inf if side > 0 else 1.0
    return side / peer


def judged(rounds: Sequence[Round], goals: Sequence[Goal], *, peer: str, unit: str) -> dict[str, Any]:
    """Return the medians of all sides, their ratios to the peer, round by round, and the verdicts."""
    sides = list(rounds[0])
    report: dict[str, Any] = {
        "sides": {side: _summaries([played[side] for played in rounds]) for side in sides},
        "ratios": {},
    }
    for side in sides:
        if side != peer and peer in sides:
            pairs = [(played[side]["value"], played[peer]["value"]) for played in rounds]
            report["ratios"][side] = [ratio(a, b, faster_is_more=unit == "steps/s") for a, b in pairs]
    report["goals"] = {}
    for goal in goals:
        if goal.ratio and goal.side in report["ratios"]:
            measured = median(report["ratios"][goal.side])
            report["goals"][goal.side] = goal.limit.verdict(measured, "x")
        elif not goal.ratio and goal.side in sides:
            report["goals"][goal.side] = goal.limit.verdict(report["sides"][goal.side]["value"]["median"], unit)
    return report


def _summaries(samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """Return the summary of each number that the samples of one side hold."""
    return {key: summary([sample[key] for sample in samples]) for key in samples[0]}
