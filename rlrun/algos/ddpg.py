"""Deep deterministic policy gradient: Q-learning for continuous actions, whose maximum a second network finds.

    for each step:
        act by mu(s) + noise, store the step in the replay D, draw a minibatch from D
        y = r + gamma Q_target(s', mu_target(s'))
        step down the gradient of  (Q(s, a) - y)^2
        step up the gradient of    Q(s, mu(s)), by the policy's weights
        Q_target = tau Q + (1 - tau) Q_target, and mu_target likewise

Lillicrap et al. (2016), "Continuous control with deep reinforcement learning", arXiv:1509.02971, Algorithm 1.
Deviations: the critic sees the action in its first layer and has no weight decay, as in the DDPG of Fujimoto et al.
(2018), and the noise is white unless `noise_correlation` makes it the paper's Ornstein-Uhlenbeck process. The replay
holds actions in the environment's units. E critics (here 1), M minibatch, B environments, D dimensions of an action.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlrun.algos.algorithm import Metrics, check_range, descend
from rlrun.algos.off_policy import OffPolicy
from rlrun.data.collector import Batch, State
from rlrun.math.noise import ornstein_uhlenbeck
from rlrun.networks.bounded import DeterministicActor
from rlrun.networks.critics import ContinuousCritics
from rlrun.networks.optimizers import Adam
from rlrun.networks.target import frozen, make_target, polyak_update


@dataclass(kw_only=True, eq=False)
class DDPG(OffPolicy):
    draws: ClassVar[str] = "ddpg"
    action_spaces: ClassVar[tuple[str, ...]] = ("Box",)
    num_critics: ClassVar[int] = 1

    tau: float
    learning_rate: float
    critic_learning_rate: float
    exploration_noise: float
    noise_correlation: float

    def __post_init__(self) -> None:
        self._check()
        super().__post_init__()
        setup, space = self.setup, self.setup.action_space
        assert isinstance(space, spaces.Box)
        self.actor = setup.device.place(DeterministicActor(setup.make_torso(), space))
        critics = ContinuousCritics(setup.make_torso, setup.obs_space, space, self.num_critics)
        self.critics = setup.device.place(critics)
        self.target_actor, self.target_critics = make_target(self.actor), make_target(self.critics)
        self.actor_optimizer = Adam(self.actor.parameters(), self.learning_rate, eps=1e-8)
        self.critic_optimizer = Adam(self.critics.parameters(), self.critic_learning_rate, eps=1e-8)

    def update(self) -> Metrics:
        self.batch = self.replay.sample(self.batch_size)
        metrics = self.update_critics(self.batch) | self.update_actor(self.batch)
        self.update_targets()
        return metrics

    def update_critics(self, batch: Batch) -> Metrics:
        with torch.no_grad():
            target = batch["reward"] + batch["discount"] * self.next_value(batch["next_obs"])
        with self.setup.device.autocast():
            q = self.critics(batch["obs"], batch["action"])  # [E, M]
        loss = (q - target).square().mean(1).sum()
        descend(loss, self.critic_optimizer, max_grad_norm=None)
        return {"train/loss": loss.detach(), "train/critic_loss": loss.detach(), "train/q_value": q.detach().mean()}

    def next_value(self, next_obs: Tensor) -> Tensor:
        """next_obs: [M, *obs] -> what it is worth by the targets, [M]."""
        with self.setup.device.autocast():
            return self.target_critics(next_obs, self.target_actor(next_obs)).squeeze(0)

    def update_actor(self, batch: Batch) -> Metrics:
        with frozen(self.critics), self.setup.device.autocast():
            q = self.critics(batch["obs"], self.actor(batch["obs"]), count=1)
        loss = -q.mean()
        descend(loss, self.actor_optimizer, max_grad_norm=None)
        return {"train/actor_loss": loss.detach()}

    def update_targets(self) -> None:
        polyak_update(self.target_critics, self.critics, self.tau)
        polyak_update(self.target_actor, self.actor, self.tau)

    def policy(self, obs: Tensor, state: State, first: Tensor) -> tuple[Batch, State]:
        if self.warming_up:
            return {"action": self.random_actions(len(obs), self.generator)}, state
        with self.setup.device.autocast():
            action = self.actor(obs)
        noise = ornstein_uhlenbeck(state, self.white_noise(action), first, self.noise_correlation)
        return {"action": self.in_space(self.actor.bounds.add_noise(action, self.exploration_noise * noise))}, noise

    def act(self, obs: Tensor, state: State, first: Tensor) -> tuple[Tensor, State]:
        with self.setup.device.autocast():
            return self.actor(obs), state

    def acting_networks(self) -> dict[str, nn.Module]:
        return {"actor": self.actor}

    def _check(self) -> None:
        for key in ("learning_rate", "critic_learning_rate", "exploration_noise"):
            check_range(f"algo.{key}", getattr(self, key), 0)
        for key in ("tau", "noise_correlation"):
            check_range(f"algo.{key}", getattr(self, key), 0, 1)
