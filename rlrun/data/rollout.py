"""Rows of what happened, written step by step and read at once. T steps."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

Batch = dict[str, Tensor]


class Rollout:
    """Columns [T, ...] of steps.

    What is on the CPU is written with NumPy, which takes a fraction of the time that torch needs for so few numbers.
    Tensors read from there share its memory, or are sent to the GPU in one piece each, out of pinned memory. What the
    policy left on the GPU is written there.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.columns: dict[str, Any] = {}  # arrays, and tensors on a GPU

    def write(self, t: int, room: int, row: Mapping[str, Any]) -> None:
        """Write row t of `room`: an array for each column, or a tensor that is on a GPU."""
        for name, value in row.items():
            column = self.columns.get(name)
            if column is None or len(column) != room:
                column = self.columns[name] = self._column(room, value)
            column[t] = value

    def read(self, num_steps: int) -> Batch:
        """Return the first rows as tensors, which the next ones overwrite."""
        return {name: self._tensor(column[:num_steps]) for name, column in self.columns.items()}

    def room(self) -> int:
        """Return how many rows there are, whether written or not."""
        return len(next(iter(self.columns.values()))) if self.columns else 0

    def double(self) -> None:
        """Make room for twice as many rows, keeping those that are written."""
        for name, column in self.columns.items():
            longer = self._column(2 * len(column), column[0])
            longer[: len(column)] = column
            self.columns[name] = longer

    def _column(self, room: int, value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.empty((room, *value.shape), dtype=value.dtype, device=value.device)
        if self.device.type == "cpu":
            return np.empty((room, *value.shape), value.dtype)
        like = torch.from_numpy(np.empty(0, value.dtype))
        return torch.empty((room, *value.shape), dtype=like.dtype, pin_memory=True).numpy()

    def _tensor(self, column: Any) -> Tensor:
        tensor = column if isinstance(column, Tensor) else torch.from_numpy(column)
        return tensor.to(self.device, non_blocking=True)
