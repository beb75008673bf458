"""Proximal policy optimisation: several epochs of minibatch ascent on a clipped surrogate objective.

    for iteration = 1, 2, ...:
        run the policy for T steps in B environments
        compute the advantages A_1 ... A_T
        optimise the surrogate L for K epochs, in minibatches of M <= T B

Schulman et al. (2017), "Proximal Policy Optimization Algorithms", arXiv:1707.06347. The details that the
paper leaves out follow Baselines' ppo2, as listed by Huang et al. (2022), "The 37 Implementation Details
of Proximal Policy Optimization". T time, B environments, M minibatch.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rlrun.algos.algorithm import (
    Algorithm,
    Metrics,
    check_minibatch,
    check_range,
    clip_gradients,
    set_learning_rate,
)
from rlrun.data.collector import Batch, State
from rlrun.errors import UserError
from rlrun.math.returns import advantages, explained_variance
from rlrun.math.schedules import linear
from rlrun.networks.optimizers import make_adam


@dataclass(kw_only=True, eq=False)
class PPO(Algorithm):
    action_spaces: ClassVar[tuple[str, ...]] = ("Discrete", "MultiDiscrete", "Box")
    recurrent: ClassVar[bool] = True

    num_envs: int
    num_steps: int
    batch_size: int
    num_epochs: int
    learning_rate: float
    learning_rate_end: float
    gamma: float
    gae_lambda: float
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
    log_std_init: float
    eval_greedy: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check()
        setup = self.setup
        self.generator = setup.seeds.torch("ppo", setup.device.torch)
        self.net = setup.device.place(
            setup.make_actor_critic(share_torso=self.share_torso, log_std_init=self.log_std_init)
        )
        self.optimizer = make_adam(self.net.parameters(), lr=self.learning_rate, eps=self.adam_eps)
        self.collector = setup.make_collector(self.num_envs)
        self.num_updates = 0

    def step(self) -> Metrics:
        learning_rate = linear(self.learning_rate, self.learning_rate_end, self.progress)
        clip_range = linear(self.clip_range, self.clip_range_end, self.progress)
        set_learning_rate(self.optimizer, learning_rate)

        self.batch = self.collector.collect(self.policy, self.num_steps)
        data = self.learning_data(self.batch)
        return self.update(data, clip_range) | {
            "train/learning_rate": learning_rate,
            "train/clip_range": clip_range,
            "train/n_updates": self.num_updates,
            "train/explained_variance": explained_variance(data["old_value"], data["target"]),
        }

    def policy(self, obs: Tensor, state: State, first: Tensor) -> tuple[Batch, State]:
        with self.setup.device.autocast():
            return self.net.step(obs, state, first, self.generator)

    def act(self, obs: Tensor, state: State, first: Tensor) -> tuple[Tensor, State]:
        with self.setup.device.autocast():
            policy, state = self.net.policy(obs, state, first)
        return policy.mode() if self.eval_greedy else policy.sample(), state

    @torch.no_grad()
    def learning_data(self, batch: Batch) -> Batch:
        """Return what the loss needs: of each of the T B steps, [T B, ...], or of B sequences, [B, T, ...]."""
        with self.setup.device.autocast():
            last_value, final_value = self.net.bootstrap_values(batch, self.collector.policy_state)
        advantage = advantages(batch, last_value, final_value, gamma=self.gamma, gae_lambda=self.gae_lambda)
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
        seen: list[dict[str, Tensor]] = []
        for _ in range(self.num_epochs):
            self.num_updates += 1
            for minibatch in self.minibatches(data):
                loss, parts = self.loss(minibatch, clip_range)
                seen.append(parts)
                if self.target_kl is not None and parts["train/approx_kl"] > 1.5 * self.target_kl:
                    return means(seen)
                self.optimizer.zero_grad()
                loss.backward()
                clip_gradients(self.net, self.max_grad_norm)
                self.optimizer.step()
        return means(seen)

    def minibatches(self, data: Batch) -> list[Batch]:
        """Split the data at random into minibatches of M = min(batch_size, T B) steps."""
        size, steps_each = len(data["advantage"]), data["advantage"][0].numel()
        order = torch.randperm(size, generator=self.generator, device=self.setup.device.torch)
        parts = order.split(max(1, self.batch_size // steps_each))
        return [{name: t.index_select(0, i) for name, t in data.items()} for i in parts]

    def loss(self, data: Batch, clip_range: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of one minibatch and its parts. All of data: M steps, [M, ...] or [M / T, T, ...]."""
        with self.setup.device.autocast():
            policy, value = self.net.unroll(data)
        advantage = data["advantage"]
        if self.normalize_advantage:
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)

        log_ratio = policy.log_prob(data["action"]) - data["old_log_prob"]
        ratio = log_ratio.exp()
        clipped_ratio = ratio.clamp(1 - clip_range, 1 + clip_range)
        policy_loss = -torch.min(ratio * advantage, clipped_ratio * advantage).mean()  # Eq. (7)

        error = (value - data["target"]).square()
        if self.clip_value:
            near_old = data["old_value"] + (value - data["old_value"]).clamp(-clip_range, clip_range)
            error = torch.max(error, (near_old - data["target"]).square())
        value_loss = 0.5 * error.mean()
        entropy = policy.entropy().mean()
        loss = policy_loss - self.entropy_coef * entropy + self.value_coef * value_loss  # Eq. (9)

        with torch.no_grad():
            parts = {
                "train/loss": loss.detach(),
                "train/policy_gradient_loss": policy_loss.detach(),
                "train/value_loss": value_loss.detach(),
                "train/entropy_loss": -entropy.detach(),
                # The estimator k3 of Schulman (2020), "Approximating KL Divergence": unbiased, never negative.
                "train/approx_kl": (ratio - 1 - log_ratio).mean(),
                "train/clip_fraction": ((ratio - 1).abs() > clip_range).float().mean(),
            }
        return loss, parts

    def stored_steps(self) -> int:
        return self.num_envs * self.num_steps

    def _check(self) -> None:
        check_range("algo.num_envs", self.num_envs, 1)
        check_range("algo.num_steps", self.num_steps, 1)
        check_range("algo.num_epochs", self.num_epochs, 1)
        check_range("algo.learning_rate", self.learning_rate, 0)
        check_range("algo.learning_rate_end", self.learning_rate_end, 0)
        check_range("algo.gamma", self.gamma, 0, 1)
        check_range("algo.gae_lambda", self.gae_lambda, 0, 1)
        check_range("algo.clip_range", self.clip_range, 0)
        check_range("algo.clip_range_end", self.clip_range_end, 0)
        check_range("algo.entropy_coef", self.entropy_coef, 0)
        check_range("algo.value_coef", self.value_coef, 0)
        check_range("algo.max_grad_norm", self.max_grad_norm, 0)
        check_range("algo.target_kl", self.target_kl, 0)
        check_range("algo.adam_eps", self.adam_eps, 0)
        rollout = self.num_envs * self.num_steps
        check_minibatch(self.batch_size, rollout, self.num_steps if self.setup.recurrent else 1)
        if self.normalize_advantage and min(self.batch_size, rollout) == 1:
            raise UserError(
                f"algo.batch_size={self.batch_size} of {rollout} steps leaves nothing to normalise; try 2 and at least "
                "2 steps, or algo.normalize_advantage=false"
            )


def means(rows: list[dict[str, Tensor]]) -> Metrics:
    """Return the mean of each entry over all rows."""
    return {name: torch.as_tensor(sum(row[name] for row in rows)) / len(rows) for name in rows[0]}
