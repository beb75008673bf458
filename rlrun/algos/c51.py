"""Categorical DQN: learn the distribution of returns, as probabilities of fixed atoms.

    p(s, a) = softmax over atoms z_1 ... z_N from v_min to v_max
    a* = argmax_a' sum_i z_i p_i(s', a')
    m = the distribution of r + gamma Z(s', a*), projected onto the atoms
    step down the gradient of the cross-entropy -sum_i m_i log p_i(s, a)

Bellemare et al. (2017), "A Distributional Perspective on Reinforcement Learning", arXiv:1707.06887,
Algorithm 1. With all switches of `DQN` on it is Rainbow: Hessel et al. (2018), "Rainbow: Combining
Improvements in Deep Reinforcement Learning", arXiv:1710.02298 (conf/algo/rainbow.yaml).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from rlrun.algos.algorithm import check_range
from rlrun.algos.dqn import DQN
from rlrun.data.collector import Batch
from rlrun.errors import UserError
from rlrun.math.distributional import categorical_projection


@dataclass(kw_only=True, eq=False)
class C51(DQN):
    own_loss: ClassVar[str | None] = "the cross entropy"

    num_atoms: int
    v_min: float
    v_max: float

    def __post_init__(self) -> None:
        check_range("algo.num_atoms", self.num_atoms, 2)
        if not self.v_min < self.v_max:
            raise UserError(f"algo.v_min={self.v_min} must be smaller than algo.v_max={self.v_max}")
        super().__post_init__()

    def make_network(self) -> nn.Module:
        return self.make_q_network(self.num_atoms)

    def q_values(self, net: nn.Module, obs: Tensor) -> Tensor:
        return self.mean(net(obs).softmax(-1))

    def mean(self, probabilities: Tensor) -> Tensor:
        """probabilities: [..., Z] -> their mean [...]."""
        return probabilities @ torch.linspace(self.v_min, self.v_max, self.num_atoms, device=probabilities.device)

    @torch.no_grad()
    def targets(self, batch: Batch) -> Tensor:
        """Return the distributions that those of (s, a) shall become, [M, Z]."""
        next_p = self.target_net(batch["next_obs"]).softmax(-1)
        next_action = self.greedy(batch["next_obs"], self.mean(next_p))
        rows = torch.arange(len(next_p), device=next_p.device)
        return categorical_projection(
            next_p[rows, next_action], batch["reward"], batch["discount"], self.v_min, self.v_max
        )

    def losses(self, batch: Batch, targets: Callable[[], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        log_p = self.net(batch["obs"]).log_softmax(-1)  # [M, A, Z]
        rows = torch.arange(len(log_p), device=log_p.device)
        target = targets()
        with torch.no_grad():
            q = self.mean(log_p.exp())
        cross_entropy = -(target * log_p[rows, batch["action"]]).sum(-1)
        surprise = cross_entropy - torch.special.entr(target).sum(-1)  # the KL divergence: Hessel et al., Section 3
        return cross_entropy, surprise.clamp(min=0), q.mean()
