"""Environments that other processes step, as the process sees them that counts and reports."""

from collections import deque
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from rlrun.data.collector import RECENT
from rlrun.envs.base import Array
from rlrun.stateful import Stateful


class Elsewhere:
    """The environments of other processes, of which nothing is restored or closed from here."""

    drift: str | None = None

    def close(self) -> None:
        """Whoever steps them closes them."""


class RemoteCollector(Stateful):
    """The counter of steps and the statistics of episodes that were played in other processes.

    To the experiment it is what `Collector` is; it is told what happened afterwards.
    """

    transient: ClassVar[frozenset[str]] = frozenset({"envs", "obs"})

    def __init__(self) -> None:
        self.envs = Elsewhere()
        self.obs: Array = np.zeros(0)
        self.steps = 0
        self.recent_returns: deque[float] = deque(maxlen=RECENT)
        self.recent_lengths: deque[int] = deque(maxlen=RECENT)
        self.episodes: list[dict[str, float]] = []

    def add(self, steps: int, episodes: Sequence[dict[str, float]]) -> None:
        """Count steps, and the episodes that ended during them; those are dated with the last of the steps."""
        self.steps += steps
        for episode in episodes:
            self.recent_returns.append(episode["return"])
            self.recent_lengths.append(int(episode["length"]))
            self.episodes.append({**episode, "step": self.steps})

    def pop_episodes(self) -> list[dict[str, float]]:
        """Return the episodes that ended since the last call: step, env, return and length of each."""
        episodes, self.episodes = self.episodes, []
        return episodes

    def bytes_per_step(self) -> int:
        """Return the memory that one stored environment step takes here: none is stored."""
        return 0
