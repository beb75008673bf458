"""Advantage actor-critic: the synchronous form of A3C, one gradient step on each short rollout.

    for iteration = 1, 2, ...:
        run the policy for n steps in B environments
        R_t = r_t + gamma r_{t+1} + ... + gamma^k V(s_{t+k})
        ascend   log pi(a_t|s_t) (R_t - V(s_t)) + beta H(pi(s_t)) - c (R_t - V(s_t))^2

Mnih et al. (2016), "Asynchronous Methods for Deep Reinforcement Learning", arXiv:1602.01783, Algorithm S3
with all workers in step; defaults as in Baselines' a2c. T time, B environments.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from rlrun.algos.algorithm import Metrics, check_range, descend, set_learning_rate
from rlrun.algos.on_policy import OnPolicy, normalized
from rlrun.errors import UserError
from rlrun.math.policy_gradient import actor_critic_loss
from rlrun.math.returns import explained_variance
from rlrun.math.schedules import linear
from rlrun.networks.actor_critic import ActorCritic
from rlrun.networks.optimizers import Adam, RMSpropTF


@dataclass(kw_only=True, eq=False)
class A2C(OnPolicy):
    draws: ClassVar[str] = "a2c"
    recurrent: ClassVar[bool] = True
    distributed: ClassVar[bool] = True

    learning_rate: float
    learning_rate_end: float
    normalize_advantage: bool
    entropy_coef: float
    value_coef: float
    max_grad_norm: float | None
    optimizer_name: Literal["rmsprop", "adam"]
    optimizer_eps: float
    rmsprop_alpha: float
    share_torso: bool

    def make_net(self) -> ActorCritic:
        return self.setup.make_actor_critic(share_torso=self.share_torso, log_std_init=self.log_std_init)

    def make_optimizer(self) -> torch.optim.Optimizer:
        params = self.net.parameters()
        if self.optimizer_name == "adam":
            return Adam(params, lr=self.learning_rate, eps=self.optimizer_eps)
        return RMSpropTF(params, lr=self.learning_rate, alpha=self.rmsprop_alpha, eps=self.optimizer_eps)

    def step(self) -> Metrics:
        learning_rate = linear(self.learning_rate, self.learning_rate_end, self.progress)
        set_learning_rate(self.optimizer, learning_rate)

        world = self.setup.world
        batch = self.batch = self.rollout()
        advantage = self.advantages(batch)
        target = advantage + batch["value"]
        if self.normalize_advantage:
            advantage = normalized(advantage, world)

        columns = {"action": batch["action"], "advantage": advantage, "target": target}
        data = self.net.samples(batch, columns)
        with self.setup.device.autocast():
            policy, value = self.net.unroll(data)
        loss, parts = actor_critic_loss(
            policy,
            value,
            data["action"],
            data["advantage"],
            data["target"],
            entropy_coef=self.entropy_coef,
            value_coef=self.value_coef,
        )
        descend(loss, self.optimizer, self.max_grad_norm, world)
        self.num_updates += 1
        return {
            **parts,
            "train/explained_variance": explained_variance(world.whole(batch["value"]), world.whole(target)),
            "train/learning_rate": learning_rate,
            "train/n_updates": self.num_updates,
        }

    def _check(self) -> None:
        super()._check()
        if self.normalize_advantage and self.num_envs * self.num_steps == 1:
            raise UserError("algo.num_envs * algo.num_steps = 1 leaves nothing to normalise; try algo.num_steps=5")
        check_range("algo.learning_rate", self.learning_rate, 0)
        check_range("algo.learning_rate_end", self.learning_rate_end, 0)
        check_range("algo.entropy_coef", self.entropy_coef, 0)
        check_range("algo.value_coef", self.value_coef, 0)
        check_range("algo.max_grad_norm", self.max_grad_norm, 0)
        check_range("algo.optimizer_eps", self.optimizer_eps, 0)
        check_range("algo.rmsprop_alpha", self.rmsprop_alpha, 0, 1)
