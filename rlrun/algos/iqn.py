"""Implicit quantile networks: learn the quantile function of the return at any probability.

    tau ~ U(0, 1) N times, tau' ~ U(0, 1) N' times
    a* = argmax_a' mean of Z_tau(s', a')
    step down the gradient of sum_i mean_j rho_tau_i(r + gamma Z_tau'_j(s', a*) - Z_tau_i(s, a))

Dabney et al. (2018), "Implicit Quantile Networks for Distributional Reinforcement Learning",
arXiv:1806.06923, Eq. (3) and (4). Deviation: where the paper averages over K random tau to choose an action, we
average over K evenly spaced ones, which estimate the same mean with less noise.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from rlrun.algos.algorithm import check_range
from rlrun.algos.dqn import DQN
from rlrun.algos.qr_dqn import midpoints
from rlrun.data.collector import Batch
from rlrun.math.distributional import quantile_huber_loss
from rlrun.networks.q_network import QNetwork


class ImplicitQuantileNetwork(nn.Module):
    """Z_tau(s, .): the features of the observation times an embedding of tau, then the head of a Q-network."""

    def __init__(self, q: QNetwork, num_cosines: int) -> None:
        super().__init__()
        self.q = q
        self.embedding = nn.Sequential(nn.Linear(num_cosines, q.num_features), nn.ReLU())
        self.num_cosines = num_cosines

    def forward(self, obs: Tensor, taus: Tensor) -> Tensor:
        """obs: [B, *obs], taus: [B, N] -> [B, A, N] float32."""
        order = torch.arange(self.num_cosines, device=taus.device)
        embedded = self.embedding((math.pi * taus[..., None] * order).cos())  # Eq. (4), [B, N, F]
        features = self.q.body(obs)[:, None, :] * embedded
        return self.q.head(features.flatten(0, 1)).squeeze(-1).unflatten(0, taus.shape).transpose(1, 2)


@dataclass(kw_only=True, eq=False)
class IQN(DQN):
    own_loss: ClassVar[str | None] = "the quantile Huber loss"

    num_taus: int
    num_target_taus: int
    num_acting_taus: int
    num_cosines: int
    kappa: float

    def __post_init__(self) -> None:
        for key in ("num_taus", "num_target_taus", "num_acting_taus", "num_cosines"):
            check_range(f"algo.{key}", getattr(self, key), 1)
        check_range("algo.kappa", self.kappa, 0)
        super().__post_init__()

    def make_network(self) -> nn.Module:
        return ImplicitQuantileNetwork(self.make_q_network(1), self.num_cosines)

    def q_values(self, net: nn.Module, obs: Tensor) -> Tensor:
        taus = midpoints(self.num_acting_taus, obs.device).expand(len(obs), -1)
        return net(obs, taus).mean(-1)

    @torch.no_grad()
    def targets(self, batch: Batch) -> Tensor:
        """Return numbers drawn from what the returns of (s, a) shall become, [M, N']."""
        next_action = self.greedy(batch["next_obs"], self.q_values(self.target_net, batch["next_obs"]))
        next_quantiles = self.target_net(batch["next_obs"], self.draw_taus(self.num_target_taus))
        rows = torch.arange(len(next_action), device=next_action.device)
        return batch["reward"][:, None] + batch["discount"][:, None] * next_quantiles[rows, next_action]

    def losses(self, batch: Batch, targets: Callable[[], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        taus = self.draw_taus(self.num_taus)
        quantiles = self.net(batch["obs"], taus)  # [M, A, N]
        chosen = quantiles[torch.arange(len(quantiles), device=quantiles.device), batch["action"]]
        target = targets()
        loss = quantile_huber_loss(chosen, target, taus, self.kappa)
        surprise = (target.mean(-1) - chosen.mean(-1)).abs()
        return loss, surprise, quantiles.mean()

    @property
    def apart(self) -> bool:
        return False  # its losses draw by the generator that acting draws by

    def draw_taus(self, count: int) -> Tensor:
        """Return [M, count] probabilities."""
        return torch.rand(self.batch_size, count, generator=self.generator, device=self.setup.device.torch)
