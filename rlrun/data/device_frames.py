"""The frames of a replay once more, in a device's memory, so that minibatches are gathered there.

The ring's files stay the truth: after a kill this is made from them anew. M minibatch, S streams.
"""

import numpy as np
import torch
from torch import Tensor

from rlrun.data.ring import Ring
from rlrun.envs.base import Array

FRAME = "frame"


class DeviceFrames:
    """The frame of each record of a ring, at the ring's own flat positions."""

    def __init__(self, ring: Ring, device: torch.device) -> None:
        field = ring.fields[FRAME]
        dtype = torch.from_numpy(np.empty(0, field.dtype)).dtype
        self.ring = ring
        self.frames = torch.zeros((ring.num_streams * ring.slots, *field.shape), dtype=dtype, device=device)

    def fill(self) -> None:
        """Take over all that a reader of the ring may look into, out of its files."""
        for stream, first, rows in self.ring.stored(FRAME):
            start = int(self.ring.position(np.array(stream), np.array(first)))
            self.frames[start : start + len(rows)] = torch.from_numpy(rows)

    def add(self, before: Array) -> None:
        """Take over what the ring has got since its heads were at `before`: [S]; sent to the device in one piece."""
        counts = self.ring.head - before
        streams = np.repeat(np.arange(len(counts)), counts)
        # The newest counts[s] of each stream s, oldest first.
        records = self.ring.head[streams] - 1 - (np.cumsum(counts)[streams] - 1 - np.arange(len(streams)))
        positions = self.ring.position(streams, records)
        device = self.frames.device
        rows = torch.from_numpy(self.ring.read(FRAME, positions)).to(device)
        self.frames.index_copy_(0, torch.from_numpy(positions).to(device), rows)

    def take(self, positions: Array) -> Tensor:
        """Return the frames at flat positions: [...] int64 -> [..., *frame], in memory of their own."""
        chosen = torch.from_numpy(positions).to(self.frames.device)
        return self.frames.index_select(0, chosen.view(-1)).view(*positions.shape, *self.frames.shape[1:])
