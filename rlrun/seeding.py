"""Randomness with an owner: a named generator for each component, all derived from one seed."""

import random
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlrun.distributed import LONE, World

# Environment seeds are drawn from three ranges that do not meet, so that no policy is ever selected or
# reported on an episode it was trained on. They end at 2^31 because the Arcade Learning Environment
# takes 32-bit seeds.
TRAINING_SEEDS = range(2**30)
SELECTION_SEEDS = range(2**30, 2**30 + 2**29)
REPORT_SEEDS = range(2**30 + 2**29, 2**31 - 1)


@dataclass(frozen=True)
class Seeds:
    """Make the generator of a component from the run's seed and the component's name."""

    seed: int
    world: World = LONE

    def entropy(self, name: str) -> int:
        """Return 64 bits that depend on the seed and the name alone."""
        sequence = np.random.SeedSequence([self.seed, zlib.crc32(name.encode())])
        return int(sequence.generate_state(1, np.uint64)[0])

    def numpy(self, name: str) -> np.random.Generator:
        return np.random.default_rng(self.entropy(name))

    def torch(self, name: str, device: torch.device | str = "cpu") -> torch.Generator:
        generator = torch.Generator(device) if self.world.size == 1 else SharedGenerator(device)
        if isinstance(generator, SharedGenerator):
            generator.world = self.world
        return generator.manual_seed(self.entropy(name))

    def episodes(self, name: str, seeds: range, count: int) -> list[int]:
        """Return `count` different environment seeds out of the range `seeds`."""
        start = int(self.numpy(name).integers(len(seeds) - count))
        return list(seeds[start : start + count])


class SharedGenerator(torch.Generator):
    """A generator that stays the same in all processes of a split run: each draws for all, and takes its own rows."""

    world: World

    def own_rows(self, rows: Tensor) -> Tensor:
        """Return this process's part of rows that were drawn for all: [P N, ...] -> [N, ...]."""
        return rows.chunk(self.world.size)[self.world.rank]

    def own_order(self, num_rows: int) -> Tensor:
        """Return a random order of this process's rows: of all rows, without those of the others. [N] int64."""
        order = torch.randperm(num_rows * self.world.size, generator=self, device=self.device)
        return order[order // num_rows == self.world.rank] % num_rows


def drawn(like: Tensor, generator: torch.Generator | None, fill: Callable[[Tensor], Tensor]) -> Tensor:
    """Return random numbers in the shape of `like`, [N, ...], by a `fill` that draws in place from the generator."""
    if not isinstance(generator, SharedGenerator):
        return fill(torch.empty_like(like))
    return generator.own_rows(fill(like.new_empty(len(like) * generator.world.size, *like.shape[1:])))


def random_order(num_rows: int, generator: torch.Generator) -> Tensor:
    """Return a random order of rows, [N] int64, on the generator's device."""
    if isinstance(generator, SharedGenerator):
        return generator.own_order(num_rows)
    return torch.randperm(num_rows, generator=generator, device=generator.device)


def seed_global_generators(seed: int) -> None:
    """Seed Python's, numpy's and torch's global generators (weight initialisation draws from torch's)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


class GlobalGenerators:
    """The global generators' state, as a thing that can be saved."""

    def state_dict(self) -> dict[str, Any]:
        name, keys, position, has_gauss, cached = np.random.get_state()
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        return {
            "python": random.getstate(),
            "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
            "torch": torch.get_rng_state(),
            "cuda": cuda,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        version, internal, gauss = state["python"]
        random.setstate((version, tuple(internal), gauss))
        name, keys, *rest = state["numpy"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
        torch.set_rng_state(state["torch"])
        if state["cuda"] and torch.cuda.is_available():
            for device, generator in zip(range(torch.cuda.device_count()), state["cuda"], strict=False):
                torch.cuda.set_rng_state(generator, device)


@contextmanager
def preserved_rng(seed: int) -> Iterator[None]:
    """Run the block on global generators seeded with `seed`, then put the old ones back.

    Whatever runs inside (an evaluation, a video) leaves training untouched.
    """
    generators = GlobalGenerators()
    before = generators.state_dict()
    seed_global_generators(seed)
    try:
        yield
    finally:
        generators.load_state_dict(before)
