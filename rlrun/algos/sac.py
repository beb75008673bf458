"""Soft actor-critic: a policy that earns much and stays as random as it may be, learned from a replay.

    V(s) = E_a~pi[min_i Q_i(s, a) - alpha log pi(a|s)]                 the soft value, (3)
    for each step:
        act by pi, store the step in the replay D, draw a minibatch from D
        y = r + gamma V_target(s')
        at the same time:
            step down the gradient of  sum_i (Q_i(s, a) - y)^2         (5)
            step up the gradient of    V(s), by the policy's weights   (9)
        alpha grows where pi is less random than wanted                (18)
        Q_target = tau Q + (1 - tau) Q_target

Haarnoja et al. (2018), "Soft Actor-Critic Algorithms and Applications", arXiv:1812.05905, Algorithm 1. Continuous
actions are tanh(u), u ~ N(mean(s), std(s)), stretched to the bounds of the space; discrete ones are all weighed by
their probability: Christodoulou (2019), "Soft Actor-Critic for Discrete Action Settings", arXiv:1910.07207. The replay
holds actions in the environment's units. E critics, M minibatch, B environments, A actions, D dimensions of an action.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlrun.algos.algorithm import Algorithm, Metrics, check_range, derive
from rlrun.algos.aside import Aside
from rlrun.algos.off_policy import OffPolicy
from rlrun.data.collector import Batch, State
from rlrun.errors import UserError
from rlrun.math.distributions import Categorical
from rlrun.math.noise import ornstein_uhlenbeck
from rlrun.networks.actor_critic import make_actor
from rlrun.networks.bounded import GaussianActor
from rlrun.networks.critics import ContinuousCritics, DiscreteCritics
from rlrun.networks.optimizers import Adam
from rlrun.networks.target import frozen, make_target, polyak_update


@dataclass(kw_only=True, eq=False)
class SAC(OffPolicy):
    draws: ClassVar[str] = "sac"
    action_spaces: ClassVar[tuple[str, ...]] = ("Discrete", "Box")
    transient: ClassVar[frozenset[str]] = Algorithm.transient | {"actor_gradient"}

    tau: float
    learning_rate: float
    critic_learning_rate: float
    alpha_learning_rate: float
    alpha: float
    auto_alpha: bool
    target_entropy: float | None
    target_entropy_fraction: float
    log_std_min: float
    log_std_max: float
    noise_correlation: float

    def __post_init__(self) -> None:
        self._check()
        super().__post_init__()
        place = self.setup.device.place
        self.actor = place(self.make_actor())
        self.critics = place(self.make_critics())
        self.target_critics = make_target(self.critics)
        self.log_alpha = nn.Parameter(torch.tensor(self.alpha, device=self.setup.device.torch).log())
        self.actor_optimizer = Adam(self.actor.parameters(), self.learning_rate, eps=1e-8)
        self.critic_optimizer = Adam(self.critics.parameters(), self.critic_learning_rate, eps=1e-8)
        self.alpha_optimizer = Adam([self.log_alpha], self.alpha_learning_rate, eps=1e-8)
        # Both losses are taken at the same weights, where the authors' code takes the policy's at the new critics.
        self.actor_gradient = Aside(self.actor_loss, self.actor, [self.critics, self.log_alpha], self.setup.device)

    def make_actor(self) -> nn.Module:
        setup, space = self.setup, self.setup.action_space
        if isinstance(space, spaces.Box):
            return GaussianActor(setup.make_torso(), space, self.log_std_min, self.log_std_max)
        return make_actor(setup.make_torso, space, log_std_init=0.0)

    def make_critics(self) -> nn.Module:
        setup, space = self.setup, self.setup.action_space
        if isinstance(space, spaces.Box):
            return ContinuousCritics(setup.make_torso, setup.obs_space, space, num_critics=2)
        return DiscreteCritics(setup.make_torso, self.num_actions, num_critics=2)

    def update(self) -> Metrics:
        batch = self.batch = self.replay.sample(self.batch_size)
        next_noise, noise = self.noise(), self.noise()
        with self.actor_gradient.computed(obs=batch["obs"], noise=noise) as actor_metrics:
            loss, metrics = self.critic_loss(batch, next_noise)
            derive(loss, self.critic_optimizer)
        self.critic_optimizer.step()
        self.actor_optimizer.step()
        if self.auto_alpha:
            self.update_alpha(actor_metrics["train/entropy"])
        polyak_update(self.target_critics, self.critics, self.tau)
        return {**metrics, **actor_metrics, "train/ent_coef": self.log_alpha.detach().exp()}

    def critic_loss(self, batch: Batch, noise: Tensor) -> tuple[Tensor, Metrics]:
        with torch.no_grad():
            next_value, _ = self.soft_value(self.target_critics, batch["next_obs"], noise)
            target = batch["reward"] + batch["discount"] * next_value
        q = self.q_values(batch["obs"], batch["action"])
        loss = 0.5 * (q - target).square().mean(1).sum()
        return loss, {
            "train/loss": loss.detach(),
            "train/critic_loss": loss.detach(),
            "train/q_value": q.detach().mean(),
        }

    def actor_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        with frozen(self.critics):
            value, entropy = self.soft_value(self.critics, batch["obs"], batch["noise"])
        loss = -value.mean()
        return loss, {"train/actor_loss": loss, "train/entropy": entropy.mean()}

    def soft_value(self, critics: nn.Module, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return V(s) and the policy's entropy, [M] both: exact for discrete actions, else from one that is drawn.

        What is drawn is a function of the policy's output and of noise [M, D], so that gradients reach the policy
        through it.
        """
        with self.setup.device.autocast():
            policy = self.actor(obs)
            if isinstance(policy, Categorical):
                expected_q = (policy.log_probs.exp() * critics(obs).amin(0)).sum(-1)
                entropy = policy.entropy()
            else:
                action, log_prob = policy.sample_with_log_prob(noise)
                expected_q, entropy = critics(obs, action).amin(0), -log_prob
        return expected_q + self.log_alpha.detach().exp() * entropy, entropy

    def noise(self) -> Tensor:
        """Draw what an action is drawn by for each step of a minibatch, [M, D]; nothing for discrete actions: D = 0."""
        num_dims = self.actor.bounds.num_dims if isinstance(self.actor, GaussianActor) else 0
        return self.white_noise(torch.empty(self.batch_size, num_dims, device=self.setup.device.torch))

    def q_values(self, obs: Tensor, action: Tensor) -> Tensor:
        """obs: [M, *obs], action: [M, *act] -> [E, M]."""
        with self.setup.device.autocast():
            if isinstance(self.critics, ContinuousCritics):
                return self.critics(obs, action)
            q = self.critics(obs)  # [E, M, A]
            return q.gather(-1, action.expand(len(q), -1).unsqueeze(-1)).squeeze(-1)

    def update_alpha(self, entropy: Tensor) -> None:
        """Step down the gradient of log alpha (H - H_wanted): as (18), by log alpha, as in the authors' code."""
        self.log_alpha.grad = entropy - self.wanted_entropy()
        self.alpha_optimizer.step()

    def wanted_entropy(self) -> float:
        """Return the target entropy: -D with actions in [-1, 1], for other bounds what is the same there."""
        if self.target_entropy is not None:
            return self.target_entropy
        if isinstance(self.actor, GaussianActor):
            return self.actor.bounds.log_volume - self.actor.bounds.num_dims
        return self.target_entropy_fraction * math.log(self.num_actions)

    def policy(self, obs: Tensor, state: State, first: Tensor) -> tuple[Batch, State]:
        if self.warming_up:
            return {"action": self.random_actions(len(obs), self.generator)}, state
        with self.setup.device.autocast():
            policy = self.actor(obs)
        if isinstance(policy, Categorical):
            return {"action": policy.sample(self.generator)}, state
        noise = ornstein_uhlenbeck(state, self.white_noise(policy.mean), first, self.noise_correlation)
        return {"action": self.in_space(policy.sample(noise))}, noise

    def act(self, obs: Tensor, state: State, first: Tensor) -> tuple[Tensor, State]:
        with self.setup.device.autocast():
            return self.actor(obs).mode(), state

    def close(self) -> None:
        self.actor_gradient.close()

    def acting_networks(self) -> dict[str, nn.Module]:
        return {"actor": self.actor}

    def _check(self) -> None:
        for key in ("learning_rate", "critic_learning_rate", "alpha_learning_rate", "alpha"):
            check_range(f"algo.{key}", getattr(self, key), 0)
        for key in ("tau", "target_entropy_fraction"):
            check_range(f"algo.{key}", getattr(self, key), 0, 1)
        if self.auto_alpha and self.alpha == 0:
            raise UserError("algo.alpha=0 can never become larger: start above, or fix it with algo.auto_alpha=false")
        if not self.log_std_min <= self.log_std_max:
            raise UserError(f"algo.log_std_min={self.log_std_min} must not exceed algo.log_std_max={self.log_std_max}")
        check_range("algo.noise_correlation", self.noise_correlation, 0, 1)
        if self.noise_correlation and isinstance(self.setup.action_space, spaces.Discrete):
            raise UserError(
                f"algo.noise_correlation={self.noise_correlation} is for continuous actions, and these are "
                f"{self.setup.action_space}: leave it out"
            )
