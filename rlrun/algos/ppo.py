"""Proximal policy optimisation: several epochs of minibatch ascent on a clipped surrogate objective.

    for iteration = 1, 2, ...:
        run the policy for T steps in B environments
        compute the advantages A_1 ... A_T
        optimise the surrogate L for K epochs, in minibatches of M <= T B

Schulman et al. (2017), "Proximal Policy Optimization Algorithms", arXiv:1707.06347. The details that the
paper leaves out follow Baselines' ppo2, as listed by Huang et al. (2022), "The 37 Implementation Details
of Proximal Policy Optimization". T time, B environments, M minibatch.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rlrun.algos.ahead import Ahead
from rlrun.algos.algorithm import Metrics, check_minibatch, check_range, descend, set_learning_rate
from rlrun.algos.on_policy import OnPolicy, means, minibatches, normalized
from rlrun.data.collector import Batch
from rlrun.errors import UserError
from rlrun.math.policy_gradient import clipped_loss
from rlrun.math.returns import explained_variance
from rlrun.math.schedules import linear
from rlrun.networks.actor_critic import ActorCritic
from rlrun.networks.optimizers import Adam


@dataclass(kw_only=True, eq=False)
class PPO(OnPolicy):
    draws: ClassVar[str] = "ppo"
    recurrent: ClassVar[bool] = True
    distributed: ClassVar[bool] = True

    batch_size: int
    num_epochs: int
    learning_rate: float
    learning_rate_end: float
    clip_range: float
    clip_range_end: float
    clip_value: bool
    normalize_advantage: bool
    entropy_coef: float
    value_coef: float
    max_grad_norm: float | None
    target_kl: float | None
    adam_eps: float
    share_torso: bool
    overlap: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        self.ahead = Ahead(self) if self.overlap else None

    def make_net(self) -> ActorCritic:
        return self.setup.make_actor_critic(share_torso=self.share_torso, log_std_init=self.log_std_init)

    def make_optimizer(self) -> torch.optim.Optimizer:
        return Adam(self.net.parameters(), lr=self.learning_rate, eps=self.adam_eps)

    def step(self) -> Metrics:
        learning_rate = linear(self.learning_rate, self.learning_rate_end, self.progress)
        clip_range = linear(self.clip_range, self.clip_range_end, self.progress)
        set_learning_rate(self.optimizer, learning_rate)

        self.batch = self.rollout() if self.ahead is None else self.ahead.take()
        data = self.learning_data(self.batch)
        world = self.setup.world
        with nullcontext() if self.ahead is None else self.ahead.collecting():
            metrics = self.update(data, clip_range)
        return metrics | {
            "train/learning_rate": learning_rate,
            "train/clip_range": clip_range,
            "train/n_updates": self.num_updates,
            "train/explained_variance": explained_variance(world.whole(data["old_value"]), world.whole(data["target"])),
        }

    def learning_data(self, batch: Batch) -> Batch:
        """Return what the loss needs: of each of the T B steps, [T B, ...], or of B sequences, [B, T, ...]."""
        advantage = self.advantages(batch)
        columns = {
            "action": batch["action"],
            "old_log_prob": batch["log_prob"],
            "old_value": batch["value"],
            "advantage": advantage,
            "target": advantage + batch["value"],
        }
        return self.net.samples(batch, columns)

    def update(self, data: Batch, clip_range: float) -> Metrics:
        """Ascend the surrogate for K epochs, or until the policy has moved too far; return means over minibatches."""
        world = self.setup.world
        seen: list[dict[str, Tensor]] = []
        for _ in range(self.num_epochs):
            self.num_updates += 1
            for minibatch in minibatches(data, self.minibatch_rows(data), self.generator):
                loss, parts = self.loss(minibatch, clip_range)
                seen.append(parts)
                if self.target_kl is not None and world.mean(divergence(parts["log_ratio"])) > 1.5 * self.target_kl:
                    return summary(seen, clip_range)
                descend(loss, self.optimizer, self.max_grad_norm, world)
        return summary(seen, clip_range)

    def minibatch_rows(self, data: Batch) -> int:
        """Return how many rows of the data, which are steps or sequences, make this process's share of batch_size."""
        return self.setup.world.share_of_rows(self.batch_size // data["advantage"][0].numel())

    def loss(self, data: Batch, clip_range: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of one minibatch, and its parts for `summary`.

        All of data: M steps, [M, ...] or [M / T, T, ...].
        """
        with self.setup.device.autocast():
            policy, value = self.net.unroll(data)
        if self.normalize_advantage:
            data = {**data, "advantage": normalized(data["advantage"], self.setup.world)}
        clipped = clipped_loss(
            policy.log_prob(data["action"]),
            value,
            data,
            clip_range=clip_range,
            clip_value=self.clip_value,
            value_coef=self.value_coef,
        )
        with torch.set_grad_enabled(self.entropy_coef > 0):  # a gradient times 0 costs time, too
            entropy = policy.entropy().mean()
        # Eq. (9)
        loss = clipped.loss - self.entropy_coef * entropy if self.entropy_coef else clipped.loss
        return loss, {
            "train/loss": loss.detach(),
            "train/policy_gradient_loss": clipped.policy_loss,
            "train/value_loss": clipped.value_loss,
            "entropy": entropy.detach(),
            "log_ratio": clipped.log_ratio,
        }

    def copies(self) -> int:
        return 1 if self.overlap else 0

    def stored_steps(self) -> int:
        return super().stored_steps() * (2 if self.overlap else 1)

    def saved_steps(self) -> int:
        return self.num_envs * self.num_steps if self.overlap else 0

    def threads_at_once(self) -> int:
        return 2 if self.overlap else 1

    def _check(self) -> None:
        super()._check()
        check_range("algo.num_epochs", self.num_epochs, 1)
        check_range("algo.learning_rate", self.learning_rate, 0)
        check_range("algo.learning_rate_end", self.learning_rate_end, 0)
        check_range("algo.clip_range", self.clip_range, 0)
        check_range("algo.clip_range_end", self.clip_range_end, 0)
        check_range("algo.entropy_coef", self.entropy_coef, 0)
        check_range("algo.value_coef", self.value_coef, 0)
        check_range("algo.max_grad_norm", self.max_grad_norm, 0)
        check_range("algo.target_kl", self.target_kl, 0)
        check_range("algo.adam_eps", self.adam_eps, 0)
        if self.overlap and self.setup.world.size > 1:
            raise UserError(
                "algo.overlap=true collects and learns at the same time, and a split run has its processes "
                "exchange messages in one order: leave it out"
            )
        if self.overlap and self.setup.device.compile:
            raise UserError(
                "algo.overlap=true acts while device.compile=true compiles, and which is faster would decide the bits: "
                "leave one of them out"
            )
        rollout = self.num_envs * self.num_steps
        sequence = self.num_steps if self.setup.recurrent else 1
        check_minibatch(self.batch_size, rollout, sequence, self.setup.world.size)
        if self.normalize_advantage and min(self.batch_size, rollout) == 1:
            raise UserError(
                f"algo.batch_size={self.batch_size} of {rollout} steps leaves nothing to normalise; try 2 and at least "
                "2 steps, or algo.normalize_advantage=false"
            )


def summary(seen: list[dict[str, Tensor]], clip_range: float) -> Metrics:
    """Return the means of what `loss` said of some minibatches."""
    log_ratio = torch.cat([parts["log_ratio"].flatten() for parts in seen])
    logged = means([{name: part for name, part in parts.items() if name != "log_ratio"} for parts in seen])
    return {
        "train/entropy_loss": -logged.pop("entropy"),
        **logged,
        "train/approx_kl": divergence(log_ratio),
        "train/clip_fraction": (log_ratio.expm1().abs() > clip_range).float().mean(),
    }


def divergence(log_ratio: Tensor) -> Tensor:
    """Estimate the mean of D_KL(pi_old || pi) by the estimator k3, which is unbiased and never negative.

    Schulman (2020), "Approximating KL Divergence".
    """
    return (log_ratio.expm1() - log_ratio).mean()
