"""Quantile regression DQN: learn the distribution of returns, as N quantiles of equal probability.

    theta(s, a) = the quantiles at tau_i = (i - 1/2) / N
    a* = argmax_a' mean_j theta_j(s', a')
    step down the gradient of sum_i mean_j rho_tau_i(r + gamma theta_j(s', a*) - theta_i(s, a))

Dabney et al. (2018), "Distributional Reinforcement Learning with Quantile Regression", arXiv:1710.10044,
Algorithm 1. rho is the quantile Huber loss.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from rlrun.algos.algorithm import check_range
from rlrun.algos.dqn import DQN
from rlrun.data.collector import Batch
from rlrun.math.distributional import quantile_huber_loss


@dataclass(kw_only=True, eq=False)
class QRDQN(DQN):
    own_loss: ClassVar[str | None] = "the quantile Huber loss"

    num_quantiles: int
    kappa: float

    def __post_init__(self) -> None:
        check_range("algo.num_quantiles", self.num_quantiles, 1)
        check_range("algo.kappa", self.kappa, 0)
        super().__post_init__()

    def make_network(self) -> nn.Module:
        return self.make_q_network(self.num_quantiles)

    def q_values(self, net: nn.Module, obs: Tensor) -> Tensor:
        return net(obs).mean(-1)

    @torch.no_grad()
    def targets(self, batch: Batch) -> Tensor:
        """Return numbers drawn, in effect, from what the returns of (s, a) shall become, [M, Z]."""
        next_quantiles = self.target_net(batch["next_obs"])
        next_action = self.greedy(batch["next_obs"], next_quantiles.mean(-1))
        rows = torch.arange(len(next_action), device=next_action.device)
        return batch["reward"][:, None] + batch["discount"][:, None] * next_quantiles[rows, next_action]

    def losses(self, batch: Batch, targets: Callable[[], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        quantiles = self.net(batch["obs"])  # [M, A, Z]
        chosen = quantiles[torch.arange(len(quantiles), device=quantiles.device), batch["action"]]
        target = targets()
        loss = quantile_huber_loss(chosen, target, midpoints(self.num_quantiles, chosen.device), self.kappa)
        surprise = (target.mean(-1) - chosen.mean(-1)).abs()
        return loss, surprise, quantiles.mean()


def midpoints(count: int, device: torch.device) -> Tensor:
    """Return the middles of `count` equal parts of [0, 1]."""
    return (torch.arange(count, device=device) + 0.5) / count
