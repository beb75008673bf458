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

from rlrun.analysis.random_scores import RANDOM_AND_THRESHOLD

# game: (random, human); keys as `_key` writes ROM names, Gymnasium's ids and our environments' names.
HUMAN: dict[str, tuple[float, float]] = {
    "alien": (227.8, 7127.7),
    "amidar": (5.8, 1719.5),
    "assault": (222.4, 742.0),
    "asterix": (210.0, 8503.3),
    "bankheist": (14.2, 753.1),
    "battlezone": (2360.0, 37187.5),
    "beamrider": (363.9, 16926.5),
    "boxing": (0.1, 12.1),
    "breakout": (1.7, 30.5),
    "choppercommand": (811.0, 7387.8),
    "crazyclimber": (10780.5, 35829.4),
    "demonattack": (152.1, 1971.0),
    "enduro": (0.0, 860.5),
    "freeway": (0.0, 29.6),
    "frostbite": (65.2, 4334.7),
    "gopher": (257.6, 2412.5),
    "hero": (1027.0, 30826.4),
    "jamesbond": (29.0, 302.8),
    "kangaroo": (52.0, 3035.0),
    "krull": (1598.0, 2665.5),
    "kungfumaster": (258.5, 22736.3),
    "mspacman": (307.3, 6951.6),
    "pong": (-20.7, 14.6),
    "privateeye": (24.9, 69571.3),
    "qbert": (163.9, 13455.0),
    "roadrunner": (11.5, 7845.0),
    "seaquest": (68.4, 42054.7),
    "spaceinvaders": (148.0, 1668.7),
    "upndown": (533.4, 11693.2),
}


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
    if env_id in RANDOM_AND_THRESHOLD:
        return Scale("threshold", *RANDOM_AND_THRESHOLD[str(env_id)])
    values = list(returns)
    return Scale("min-max", min(values), max(values))


def _key(name: Any) -> str:
    """Return "spaceinvaders" for space_invaders, SpaceInvaders, ALE/SpaceInvaders-v5 and spaceinvaders."""
    bare = re.sub(r"(NoFrameskip)?-v\d+$", "", str(name).rpartition("/")[2])
    return re.sub(r"[^a-z0-9]", "", bare.lower())
