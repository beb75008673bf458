"""A tree of sums over priorities: draw an index in proportion to its priority, in a few array operations.

Schaul et al. (2016), "Prioritized Experience Replay", arXiv:1511.05952, Appendix B.2.1. Their tree is
binary; here a node has WIDTH children, which makes three levels out of twenty and lets numpy do the work.
A node is always computed anew from its children, so the sums cannot drift, and the leaves alone are state.
"""

from typing import Any

import numpy as np
import torch

from rlrun.envs.base import Array

WIDTH = 128


class SumTree:
    """`num_leaves` priorities, all zero at first."""

    def __init__(self, num_leaves: int) -> None:
        self.num_leaves = num_leaves
        self._levels: list[Array] = []  # the leaves first; each [nodes, WIDTH]
        nodes = num_leaves
        while not self._levels or nodes > 1:
            nodes = -(-nodes // WIDTH)
            dtype = np.float64 if self._levels else np.float32
            self._levels.append(np.zeros((nodes, WIDTH), dtype))

    @property
    def total(self) -> float:
        return float(np.cumsum(self._levels[-1][0], dtype=np.float64)[-1])

    @property
    def checkpoint_bytes(self) -> int:
        """Return what a checkpoint holds: the leaves."""
        return self.num_leaves * self._levels[0].itemsize

    def get(self, leaves: Array) -> Array:
        """Return the priorities of leaves: [N] -> [N] float32."""
        return self._levels[0].reshape(-1)[leaves]

    def set(self, leaves: Array, priorities: Array | float) -> None:
        """Give leaves: [N] new priorities; of a leaf named twice the last counts."""
        self._levels[0].reshape(-1)[leaves] = priorities
        nodes = leaves // WIDTH
        for below, above in zip(self._levels, self._levels[1:], strict=False):
            # The last of the running sums, not sum(): `find` walks the same running sums.
            above.reshape(-1)[nodes] = np.cumsum(below[nodes], axis=1, dtype=np.float64)[:, -1]
            nodes = nodes // WIDTH

    def find(self, mass: Array) -> Array:
        """Return the leaves [N] at which the running sum of priorities passes mass: [N], in [0, total)."""
        node = np.zeros(len(mass), np.int64)
        rest = mass.astype(np.float64)
        for level in reversed(self._levels):
            sums = np.cumsum(level[node], axis=1, dtype=np.float64)
            # Rounding on the way down must not carry `rest` past the node's own sum.
            rest = np.minimum(rest, np.nextafter(sums[:, -1], 0))
            child = (sums <= rest[:, None]).sum(axis=1)
            before = np.take_along_axis(sums, np.maximum(child - 1, 0)[:, None], axis=1)[:, 0]
            rest = np.where(child > 0, rest - before, rest)
            node = node * WIDTH + child
        return node

    def state_dict(self) -> dict[str, Any]:
        return {"priorities": torch.from_numpy(self._levels[0].reshape(-1)[: self.num_leaves].copy())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        priorities = state["priorities"].numpy()
        self.__init__(len(priorities))  # type: ignore[misc]
        self._levels[0].reshape(-1)[: len(priorities)] = priorities
        for below, above in zip(self._levels, self._levels[1:], strict=False):
            above.reshape(-1)[: len(below)] = np.cumsum(below, axis=1, dtype=np.float64)[:, -1]
