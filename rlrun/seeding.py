"""Randomness with an owner: a named generator for each component, all derived from one seed."""

import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

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

    def entropy(self, name: str) -> int:
        """Return 64 bits that depend on the seed and the name alone."""
        sequence = np.random.SeedSequence([self.seed, zlib.crc32(name.encode())])
        return int(sequence.generate_state(1, np.uint64)[0])

    def numpy(self, name: str) -> np.random.Generator:
        return np.random.default_rng(self.entropy(name))

    def torch(self, name: str, device: torch.device | str = "cpu") -> torch.Generator:
        return torch.Generator(device).manual_seed(self.entropy(name))

    def episodes(self, name: str, seeds: range, count: int) -> list[int]:
        """Return `count` different environment seeds out of the range `seeds`."""
        start = int(self.numpy(name).integers(len(seeds) - count))
        return list(seeds[start : start + count])


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
