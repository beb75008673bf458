"""Actions drawn as Gymnasium's `space.sample()` draws them, for B environments at once. Imports no torch."""

import numpy as np
from gymnasium import spaces

from rlrun.envs.base import Array


def random_actions(space: spaces.Space, num_envs: int, rng: np.random.Generator) -> Array:
    """Return [B, *act]: uniform where the space is bounded. Discrete actions are counted from 0, as policies do."""
    if isinstance(space, spaces.Discrete):
        return rng.integers(space.n, size=num_envs)
    shape = (num_envs, *(space.shape or ()))
    if isinstance(space, spaces.MultiDiscrete):
        return rng.integers(space.nvec, size=shape)
    if isinstance(space, spaces.MultiBinary):
        return rng.integers(2, size=shape, dtype=np.int8)
    assert isinstance(space, spaces.Box), space
    if space.dtype.kind in "iu":
        return rng.integers(space.low, space.high, size=shape, dtype=space.dtype, endpoint=True)
    return _from_box(space, shape, rng).astype(space.dtype)


def _from_box(space: spaces.Box, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Return float64 coordinates: a normal one where there is no bound, an exponential one beyond a single bound."""
    low, high = space.bounded_below, space.bounded_above
    bounded = low & high
    uniform = rng.uniform(np.where(bounded, space.low, 0), np.where(bounded, space.high, 0), shape)
    if bounded.all():
        return uniform
    beyond = rng.exponential(size=shape)
    one_sided = np.where(low, space.low + beyond, space.high - beyond)
    return np.select([bounded, low | high], [uniform, one_sided], rng.normal(size=shape))
