"""Observation and reward normalisation, above the environments, with statistics that are saved state."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlrun.distributed import LONE, World
from rlrun.envs.base import Array
from rlrun.stateful import Stateful

CLIP = 10.0  # in standard deviations, as in Baselines' VecNormalize
EPSILON = 1e-8


class RunningMoments(Stateful):
    """Mean and variance of all rows seen so far, by the parallel update of Chan et al. (1979)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.mean: Array = np.zeros(shape)
        self.var: Array = np.ones(shape)
        self.count = 1e-4

    def update(self, rows: Array) -> None:
        """rows: [B, *shape]."""
        # Sums by hand: for a single row NumPy's mean and var take several times as long.
        count, total = len(rows), self.count + len(rows)
        mean = np.add.reduce(rows, axis=0) / count
        deviation, delta = rows - mean, mean - self.mean
        self.mean = self.mean + delta * (count / total)
        within = np.add.reduce(deviation * deviation, axis=0)
        between = delta * delta * (self.count * count / total)
        self.var, self.count = (self.var * self.count + within + between) / total, total


class Normalizer(Stateful):
    """Shift and scale observations; scale rewards by the deviation of the discounted return.

    The statistics are those of all collectors and processes together; each collector keeps the discounted returns of
    its own environments. In evaluation only `obs` is called, which changes nothing: the statistics stay those of
    training.
    """

    transient = frozenset({"discount", "world"})  # configuration

    def __init__(self, obs_shape: tuple[int, ...], gamma: float, world: World = LONE) -> None:
        self.obs_moments = RunningMoments(obs_shape)
        self.return_moments = RunningMoments(())
        self.discount, self.world = gamma, world

    def update_obs(self, obs: Array) -> None:
        self.obs_moments.update(self.world.whole_array(obs.astype(np.float64)))

    def obs(self, obs: Array) -> Array:
        """obs: [B, *obs] -> float32, mean 0 and variance 1 over training so far."""
        scaled = (obs - self.obs_moments.mean) / np.sqrt(self.obs_moments.var + EPSILON)
        return clipped(scaled).astype(np.float32)

    def obs_tensor(self, obs: Tensor) -> Tensor:
        """Do as `obs` where the tensor is: in float64 each of these operations has one right result."""
        mean, deviation = self.obs_moments.mean, np.sqrt(self.obs_moments.var + EPSILON)
        shift, scale = (torch.as_tensor(moment).to(obs.device) for moment in (mean, deviation))
        return ((obs.double() - shift) / scale).clamp(-CLIP, CLIP).float()

    def reward(self, reward: Array, ended: Array, discounted_return: Array) -> Array:
        """Scale reward: [B], after adding it to the statistics.

        discounted_return: [B], up to the step before, is brought forward in place; ended: [B] bool sets it to zero.
        """
        discounted_return *= self.discount
        discounted_return += reward
        self.return_moments.update(self.world.whole_array(discounted_return))
        discounted_return[ended] = 0.0
        return self.scaled_reward(reward)

    def scaled_reward(self, reward: Array) -> Array:
        """Divide rewards by the deviation of the discounted return over training so far."""
        return clipped(reward / np.sqrt(self.return_moments.var + EPSILON))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        # Earlier versions kept the discounted returns here, which playing a stored policy does not need.
        super().load_state_dict({name: value for name, value in state.items() if name != "discounted_return"})


def clipped(values: Array) -> Array:
    """Return values within CLIP deviations."""
    return np.minimum(np.maximum(values, -CLIP), CLIP)  # np.clip takes three times as long for a few
