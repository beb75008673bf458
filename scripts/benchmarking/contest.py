"""The sides of a work, and the rounds in which they take turns."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarking import ours, sb3
from benchmarking.goals import Goal, Sample, judged
from benchmarking.processes import Window
from benchmarking.works import BF16, OURS, PEER, WORKS, Target, Training

Side = Callable[[int], Sample]  # from the seed of a round
QUICK_STEPS = 2_000


@dataclass(frozen=True)
class Rules:
    """How all works are measured."""

    rounds: int
    window: Window
    against_itself: bool  # rlrun beside rlrun: how much of a ratio is chance
    sb3_threads: int
    quick: bool  # whether a training to a target is cut short


def contest(name: str, rules: Rules) -> dict[str, Any]:
    """Measure all sides of a work in turn, round by round; return samples, medians, ratios and verdicts."""
    work, sides, rounds = WORKS[name], sides_of(name, rules), []
    for seed in range(rules.rounds):
        load = os.getloadavg()[0]  # tells rounds with a busy neighbour
        played = {}
        for side, measure in sides.items():
            played[side] = measure(seed)
            value = f"{side} {played[side]['value']:,.4g} {work.unit}"
            print(f"{name} {seed + 1}/{rules.rounds}: {value}", file=sys.stderr, flush=True)
        rounds.append((load, played))
    goals: tuple[Goal, ...] = () if rules.against_itself else work.goals
    return {
        "title": work.title,
        "unit": work.unit,
        "settings": work.settings,
        "rounds": [{"load_before": load, **played} for load, played in rounds],
        **judged([played for _, played in rounds], goals, peer=PEER, unit=work.unit),
    }


def sides_of(name: str, rules: Rules) -> dict[str, Side]:
    """Return how each side of a work is measured, in the order of their turns."""
    work = WORKS[name]
    if isinstance(work, Training):
        sides = _of_training(name, work, rules)
    elif isinstance(work, Target):
        steps = QUICK_STEPS if rules.quick else work.total_steps
        sides = {
            PEER: lambda seed: sb3.seconds_to(name, steps, seed, rules.sb3_threads),
            OURS: lambda seed: ours.seconds_to(work, steps, seed),
        }
    else:
        sides = {PEER: sb3.first_step, OURS: ours.first_step if PEER in work.sides else ours.help_page}
    if rules.against_itself:
        sides[PEER] = sides[OURS]
    return {side: sides[side] for side in work.sides}


def _of_training(name: str, work: Training, rules: Rules) -> dict[str, Side]:
    return {
        PEER: lambda seed: sb3.speed(name, rules.window, seed, rules.sb3_threads),
        OURS: lambda seed: ours.speed(work, rules.window, seed),
        BF16: lambda seed: ours.speed(work, rules.window, seed, ["device.precision=bf16"]),
    }
