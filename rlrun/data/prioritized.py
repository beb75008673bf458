"""Prioritized experience replay: steps that surprised are drawn more often.

    P(i) = p_i^alpha / sum_k p_k^alpha                  (1)
    w_i  = (N P(i))^-beta / max_j w_j                   Section 3.4

Schaul et al. (2016), "Prioritized Experience Replay", arXiv:1511.05952. M minibatch.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rlrun.data.collector import Batch
from rlrun.data.replay import PADDING, Replay
from rlrun.data.sum_tree import SumTree
from rlrun.envs.base import Array

SMALLEST = 1e-6  # epsilon of Section 3.3: no step is forgotten for ever


@dataclass(kw_only=True, eq=False)
class PrioritizedReplay(Replay):
    """A replay that draws steps in proportion to priority^alpha; new steps get the largest one yet."""

    alpha: float

    def __post_init__(self) -> None:
        super().__post_init__()
        self.tree = SumTree(self.num_envs * self.ring.slots)
        self.largest = 1.0  # p^alpha
        self.listed: Array = np.zeros(self.num_envs, np.int64)  # [B], records below this have had a priority

    @property
    def checkpoint_bytes(self) -> int:
        return super().checkpoint_bytes + self.tree.checkpoint_bytes

    def add(self, batch: Batch) -> None:
        out_before = self.ring.tail
        super().add(batch)
        _, high = self._drawable()
        for b in range(self.num_envs):
            stream = np.array(b)
            gone = np.arange(out_before[b], self.ring.tail[b])
            self.tree.set(self.ring.position(stream, gone), 0.0)
            new = np.arange(max(self.listed[b], self.ring.tail[b]), high[b])
            places = self.ring.position(stream, new)
            padding = self.ring.read("flags", places) & PADDING != 0
            self.tree.set(places, np.where(padding, 0.0, self.largest))
        self.listed = np.maximum(self.listed, high)

    def sample(self, batch_size: int, beta: float = 1.0) -> Batch:
        """Draw as `Replay.sample`, with weight: [M], at most 1, and place: [M], for `update`."""
        places = self._draw_places(batch_size)
        streams, records = places // self.ring.slots, self._record(places)
        priority = self.tree.get(places).astype(np.float64)
        # N and the sum of priorities cancel in the division by the largest weight of the batch.
        weight = (priority.min() / priority) ** beta
        return {
            **self.look_up(streams, records),
            "weight": torch.from_numpy(weight.astype(np.float32)).to(self.device),
            "place": torch.from_numpy(places),
        }

    def update(self, place: Tensor, surprise: Tensor) -> None:
        """Set the priorities of the steps at `place`: [M] from their absolute errors, surprise: [M]."""
        priority = (surprise.detach().cpu().numpy().astype(np.float64) + SMALLEST) ** self.alpha
        self.tree.set(place.numpy(), priority)
        self.largest = max(self.largest, float(priority.max()))

    def _draw_places(self, count: int) -> Array:
        """Draw one place from each of `count` equal parts of the whole mass (Appendix B.2.1)."""
        mass = (np.arange(count) + self.draws.random(count)) * (self.tree.total / count)
        return self.tree.find(mass)

    def _record(self, places: Array) -> Array:
        """Return the numbers of the records that lie at `places` now."""
        streams, slots = np.divmod(places, self.ring.slots)
        newest = self.ring.head[streams] - 1
        return newest - (newest - slots) % self.ring.slots
