"""Returns of different environments on one scale, so that they can be averaged.

Atari: (x - random) / (human - random), with the human scores of Wang et al. (2016), "Dueling Network
Architectures for Deep Reinforcement Learning", arXiv:1511.06581. Elsewhere 0 is a random policy and 1
Gymnasium's reward threshold; where there is no threshold, 0 and 1 are the worst and the best compared run.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlrun.analysis.human_scores import HUMAN
from rlrun.analysis.random_scores import RANDOM_AND_THRESHOLD


@dataclass(frozen=True)
class Scale:
    """Where 0 and 1 lie, in returns, and by which rule: human, threshold or min-max."""

    rule: str
    zero: float
    one: float

    def __call__(self, returns: np.ndarray) -> np.ndarray:
        """Return the normalised scores. Where the compared runs are all alike, none misses the best: 1."""
        if self.one == self.zero:
            return np.ones_like(returns, dtype=float)
        return (returns - self.zero) / (self.one - self.zero)

    @property
    def threshold(self) -> float | None:
        """The return to reach, human's or Gymnasium's; the best of the compared runs is no such goal."""
        return None if self.rule == "min-max" else self.one

    def __str__(self) -> str:
        zero, one = {
            "human": ("a random policy", "a human"),
            "threshold": ("a random policy", "Gymnasium's reward threshold"),
            "min-max": ("the worst compared run", "the best compared run"),
        }[self.rule]
        return f"{self.rule}-normalised: 0 is {zero} ({self.zero:g}), 1 is {one} ({self.one:g})"


def scale(env: str, protocol: Mapping[str, Any], returns: Iterable[float]) -> Scale:
    """Return the scale of an environment, known by its protocol stamp or its name; else that of the returns."""
    env_id, game = protocol.get("id"), protocol.get("game")
    # A Gymnasium environment may bear a game's name: only what is Atari by its stamp has a human score.
    if (game or str(env_id).startswith("ALE/") or not env_id) and (pair := HUMAN.get(_key(game or env_id or env))):
        return Scale("human", *pair)
    # Other arguments make another task: FrozenLake without ice is no 0.014 for a random policy.
    if env_id in RANDOM_AND_THRESHOLD and not protocol.get("kwargs"):
        return Scale("threshold", *RANDOM_AND_THRESHOLD[str(env_id)])
    return min_max(returns)


def min_max(values: Iterable[float]) -> Scale:
    """Return the scale on which the lowest of the values is 0 and the highest 1."""
    values = list(values)
    return Scale("min-max", float(min(values)), float(max(values)))


def _key(name: Any) -> str:
    """Return "spaceinvaders" for space_invaders, SpaceInvaders, ALE/SpaceInvaders-v5 and spaceinvaders."""
    bare = re.sub(r"(NoFrameskip)?-v\d+$", "", str(name).rpartition("/")[2])
    return re.sub(r"[^a-z0-9]", "", bare.lower())
