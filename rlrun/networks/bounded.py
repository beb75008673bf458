"""Policies that keep within the bounds of a Box. B batch, D dimensions of an action."""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlrun.math.distributions import TanhGaussian
from rlrun.networks.chain import SideBySide
from rlrun.networks.linear import Head
from rlrun.networks.torsos import Torso, is_its_layers, orthogonal


class ActionBounds(nn.Module):
    """Where a Box lies, as center and half width of each dimension: [D] both."""

    def __init__(self, space: spaces.Box) -> None:
        super().__init__()
        low, high = (bound.astype(np.float64).reshape(-1) for bound in (space.low, space.high))
        if not (np.isfinite(high - low).all() and (high > low).all()):
            raise ValueError(
                f"its actions are squashed between bounds, and {space} has no low < high in each dimension; algo=ppo "
                "does without bounds"
            )
        self.center: Tensor
        self.scale: Tensor
        self.register_buffer("center", torch.from_numpy((high + low) / 2).float(), persistent=False)
        self.register_buffer("scale", torch.from_numpy((high - low) / 2).float(), persistent=False)
        self.log_volume = float(np.log((high - low) / 2).sum())  # of the box, against that of [-1, 1]^D

    @property
    def num_dims(self) -> int:
        return len(self.scale)

    def to_unit(self, action: Tensor) -> Tensor:
        """action: [B, *act] in the environment's units -> [B, D] in [-1, 1]."""
        return (action.reshape(-1, self.num_dims) - self.center) / self.scale

    def from_unit(self, action: Tensor) -> Tensor:
        """action: [B, D] in [-1, 1] -> [B, D] in the environment's units."""
        return torch.addcmul(self.center, action, self.scale)

    def add_noise(self, action: Tensor, noise: Tensor) -> Tensor:
        """Add noise, in half widths, to actions in the environment's units and keep them within bounds: [B, D] all."""
        noisy = torch.addcmul(action, noise, self.scale)
        return noisy.clamp(self.center - self.scale, self.center + self.scale)


class BoundedActor(nn.Module):
    """A torso with a linear head, whose outputs stand for actions within bounds."""

    def __init__(self, torso: Torso, space: spaces.Box, outputs_per_dim: int) -> None:
        super().__init__()
        self.bounds, self.torso = ActionBounds(space), torso
        self.head = orthogonal(Head(torso.out_features, outputs_per_dim * self.bounds.num_dims), gain=0.01)
        # Networks of linear layers alone may be one operation: see chain.py, which says when.
        self.as_one = SideBySide.of([[*torso, self.head]]) if is_its_layers(torso) else None

    def compile(self, *args: Any, **kwargs: Any) -> None:
        self.as_one = None
        super().compile(*args, **kwargs)

    def outputs(self, obs: Tensor) -> Tensor:
        """obs: [B, *obs] -> [B, K D] float32."""
        if self.as_one is not None and (outputs := self.as_one(obs)) is not None:
            return outputs[0].float()
        return self.head(self.torso(obs)).float()


class GaussianActor(BoundedActor):
    """pi(a|s): a Gaussian whose mean and deviation depend on the state, squashed into the bounds."""

    def __init__(self, torso: Torso, space: spaces.Box, log_std_min: float, log_std_max: float) -> None:
        super().__init__(torso, space, outputs_per_dim=2)
        self.log_std_min, self.log_std_max = log_std_min, log_std_max

    def forward(self, obs: Tensor) -> TanhGaussian:
        mean, log_std = self.outputs(obs).chunk(2, dim=-1)
        log_std = log_std.clamp(self.log_std_min, self.log_std_max)
        return TanhGaussian(mean, log_std, self.bounds.center, self.bounds.scale)


class DeterministicActor(BoundedActor):
    """mu(s), within the bounds."""

    def __init__(self, torso: Torso, space: spaces.Box) -> None:
        super().__init__(torso, space, outputs_per_dim=1)

    def forward(self, obs: Tensor) -> Tensor:
        """obs: [B, *obs] -> [B, D] float32 in the environment's units."""
        return self.bounds.from_unit(self.outputs(obs).tanh())
