"""The one-step actor-critic: after each step the critic says how much better it went than expected.

    I = 1 at the start of each episode
    for step t = 1, 2, ...:
        A ~ pi(.|S); take A, observe R, S'
        delta = R + gamma V(S') - V(S)            (V of a terminal state is 0)
        critic:  w     += alpha_w delta grad V(S)
        actor:   theta += alpha_theta I delta grad log pi(A|S)
        I = gamma I,  S = S'

Sutton and Barto (2018), "Reinforcement Learning: An Introduction", 2nd ed., section 13.5, box on page 332; Barto,
Sutton and Anderson (1983) before them. Here I stays 1 unless `discount_updates` is set, as is usual, an entropy
bonus may be added, and the two gradients may go through Adam or RMSProp. With B environments each step of them all
is one update, by the mean over them.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from rlrun.algos.algorithm import Algorithm, Metrics, check_range, descend, set_learning_rate
from rlrun.data.collector import Batch, State
from rlrun.math.schedules import linear
from rlrun.networks.actor_critic import make_actor, make_critic
from rlrun.networks.optimizers import Adam, RMSpropTF


@dataclass(kw_only=True, eq=False)
class OneStepActorCritic(Algorithm):
    action_spaces: ClassVar[tuple[str, ...]] = ("Discrete", "MultiDiscrete", "Box")

    num_envs: int
    learning_rate: float
    learning_rate_end: float
    value_learning_rate: float
    value_learning_rate_end: float
    gamma: float
    discount_updates: bool
    entropy_coef: float
    max_grad_norm: float | None
    optimizer_name: Literal["sgd", "adam", "rmsprop"]
    optimizer_eps: float
    log_std_init: float
    eval_greedy: bool

    num_steps: ClassVar[int] = 1  # of each environment between updates

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check()
        setup = self.setup
        self.generator = setup.seeds.torch("actor_critic", setup.device.torch)
        self.actor = setup.device.place(make_actor(setup.make_torso, setup.action_space, self.log_std_init))
        self.critic = setup.device.place(make_critic(setup.make_torso))
        self.actor_optimizer = self.make_optimizer(self.actor, self.learning_rate)
        self.critic_optimizer = self.make_optimizer(self.critic, self.value_learning_rate)
        self.collector = setup.make_collector(self.num_envs)
        self.discount = torch.ones(self.num_envs, device=setup.device.torch)  # I
        self.num_updates = 0

    def make_optimizer(self, net: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
        if self.optimizer_name == "sgd":
            return torch.optim.SGD(net.parameters(), lr=learning_rate)
        if self.optimizer_name == "adam":
            return Adam(net.parameters(), lr=learning_rate, eps=self.optimizer_eps)
        return RMSpropTF(net.parameters(), lr=learning_rate, alpha=0.99, eps=self.optimizer_eps)

    def step(self) -> Metrics:
        learning_rate = linear(self.learning_rate, self.learning_rate_end, self.progress)
        value_learning_rate = linear(self.value_learning_rate, self.value_learning_rate_end, self.progress)
        set_learning_rate(self.actor_optimizer, learning_rate)
        set_learning_rate(self.critic_optimizer, value_learning_rate)

        batch = self.batch = self.collector.collect(self.policy, self.num_steps)
        with self.setup.device.autocast():
            policy, value = self.actor(batch["obs"][0]), self.critic(batch["obs"][0]).float()
        td_error = self.targets(batch) - value
        weight = self.next_weight(batch["first"][0])

        entropy = policy.entropy()
        objective = policy.log_prob(batch["action"][0]) * td_error.detach() + self.entropy_coef * entropy
        actor_loss = -(weight * objective).mean()
        critic_loss = 0.5 * td_error.square().mean()
        descend(critic_loss, self.critic_optimizer, self.max_grad_norm)
        descend(actor_loss, self.actor_optimizer, self.max_grad_norm)
        self.num_updates += 1
        return {
            "train/loss": (actor_loss + critic_loss).detach(),
            "train/policy_loss": actor_loss.detach(),
            "train/value_loss": critic_loss.detach(),
            "train/entropy_loss": -entropy.detach().mean(),
            "train/td_error": td_error.detach().mean(),
            "train/value": value.detach().mean(),
            "train/learning_rate": learning_rate,
            "train/n_updates": self.num_updates,
        }

    def policy(self, obs: Tensor, state: State, first: Tensor) -> tuple[Batch, State]:
        with self.setup.device.autocast():
            policy = self.actor(obs)
        return {"action": policy.sample(self.generator)}, state

    def act(self, obs: Tensor, state: State, first: Tensor) -> tuple[Tensor, State]:
        with self.setup.device.autocast():
            policy = self.actor(obs)
        return policy.mode() if self.eval_greedy else policy.sample(), state

    @torch.no_grad()
    def targets(self, batch: Batch) -> Tensor:
        """Return R + gamma V(S'), [B]; S' of an episode that was cut short is its own last observation."""
        with self.setup.device.autocast():
            last_value, final_value = self.critic(batch["next_obs"]).float(), self.critic(batch["final_obs"]).float()
        next_value = last_value.index_copy(0, batch["final_index"], final_value)
        return batch["reward"][0] + self.gamma * next_value * ~batch["terminated"][0]

    def next_weight(self, first: Tensor) -> Tensor:
        """Return I of this step, [B], which is 1 in an episode's first one; first: [B] bool."""
        if self.discount_updates:
            self.discount = torch.where(first, 1.0, self.gamma * self.discount)
        return self.discount

    def acting_networks(self) -> dict[str, nn.Module]:
        return {"actor": self.actor}

    def stored_steps(self) -> int:
        return self.num_envs

    def _check(self) -> None:
        check_range("algo.num_envs", self.num_envs, 1)
        check_range("algo.learning_rate", self.learning_rate, 0)
        check_range("algo.learning_rate_end", self.learning_rate_end, 0)
        check_range("algo.value_learning_rate", self.value_learning_rate, 0)
        check_range("algo.value_learning_rate_end", self.value_learning_rate_end, 0)
        check_range("algo.gamma", self.gamma, 0, 1)
        check_range("algo.entropy_coef", self.entropy_coef, 0)
        check_range("algo.max_grad_norm", self.max_grad_norm, 0)
        check_range("algo.optimizer_eps", self.optimizer_eps, 0)
