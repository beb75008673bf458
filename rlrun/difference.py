"""Where two runs differ. A difference is one of bits: there is no tolerance."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Difference:
    """The first place where two nested values differ, and what each holds there."""

    where: str  # keys and indices on the way to it
    one: Any
    other: Any
    step: int | None = None  # of the row or checkpoint that it is in

    def __str__(self) -> str:
        return f"{self.where}: {self.one} and {self.other}"


def first_difference(one: Any, other: Any, where: str = "") -> Difference | None:
    """Return where two nested values of plain data and tensors differ in any bit, or None."""
    if type(one) is not type(other):
        return Difference(where, f"{_shown(one)} ({type(one).__name__})", f"{_shown(other)} ({type(other).__name__})")
    if isinstance(one, Tensor):
        return _tensor_difference(one, other, where)
    if isinstance(one, dict):
        if list(one) != list(other):
            lacking = [key for key in one if key not in other], [key for key in other if key not in one]
            return Difference(where, f"keys {lacking[0] or list(one)}", f"keys {lacking[1] or list(other)}")
        return _first(first_difference(one[key], other[key], _inside(where, key)) for key in one)
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return Difference(where, f"{len(one)} values", f"{len(other)} values")
        return _first(
            first_difference(a, b, _inside(where, i)) for i, (a, b) in enumerate(zip(one, other, strict=True))
        )
    both_nan = one != one and other != other
    return None if one == other or both_nan else Difference(where, one, other)


def first_row_difference(one: list[dict[str, Any]], other: list[dict[str, Any]], where: str) -> Difference | None:
    """Return where the rows of two logs first differ; a row that only one of them has is a difference."""
    for a, b in zip_longest(one, other):
        if a is None or b is None:
            return Difference(where, a or "no row", b or "no row", (a or b)["step"])
        if found := first_difference(a, b, where):
            return replace(found, step=min(a["step"], b["step"]))
    return None


def rows(path: Path) -> list[dict[str, Any]]:
    """Return the whole rows of a JSONL file without what depends on the clock."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [timeless(json.loads(line)) for line in lines]


def timeless(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not key.startswith("time/")}


def num_tensors(state: Any) -> int:
    """Return how many tensors a nested value holds."""
    if isinstance(state, dict):
        return sum(map(num_tensors, state.values()))
    return sum(map(num_tensors, state)) if isinstance(state, list | tuple) else int(isinstance(state, Tensor))


def _tensor_difference(one: Tensor, other: Tensor, where: str) -> Difference | None:
    if one.shape != other.shape or one.dtype != other.dtype:
        return Difference(where, _kind(one), _kind(other))
    if one.numel() == 0:
        return None
    bits = [t.detach().cpu().contiguous().flatten().view(torch.uint8) for t in (one, other)]
    if torch.equal(*bits):
        return None
    differing = (bits[0] != bits[1]).view(one.numel(), -1).any(dim=1).nonzero().flatten()
    i = int(differing[0])
    place = f"{where}[{i}] (first of {len(differing):,} in {one.numel():,})"
    return Difference(place, one.flatten()[i].item(), other.flatten()[i].item())


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"


def _inside(where: str, key: object) -> str:
    return f"{where} > {key}" if where else str(key)


def _first(found: Iterable[Difference | None]) -> Difference | None:
    return next((difference for difference in found if difference), None)


def _shown(value: Any) -> str:
    return "a tensor" if isinstance(value, Tensor) else str(value)[:100]
