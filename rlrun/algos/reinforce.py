"""REINFORCE: play whole episodes, and make each action more likely the more was won after it.

    for iteration = 1, 2, ...:
        play N episodes to their ends, all under the policy pi
        G_t = r_{t+1} + gamma r_{t+2} + gamma^2 r_{t+3} + ...
        ascend   1/N sum over all steps of   (G_t - b) grad log pi(a_t|s_t)

Williams (1992), "Simple statistical gradient-following algorithms for connectionist reinforcement learning";
Sutton and Barto (2018), "Reinforcement Learning: An Introduction", 2nd ed., sections 13.3 and 13.4. One gradient
step is made of the episodes, and no episode is broken off or carried over: a batch of so many steps would hold
too many short ones. So the estimate has the policy gradient as its mean, however long episodes are.

What is subtracted from the returns, `baseline`, lowers the variance: nothing, or their mean (and then they are
divided by their deviation, which, being taken over the same episodes, shifts the estimate a little), or a learned
value b = V(s_t). T steps, N episodes.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from rlrun.algos.algorithm import Algorithm, Metrics, check_range, descend, set_learning_rate
from rlrun.data.collector import Batch, State
from rlrun.math.returns import explained_variance, lambda_returns
from rlrun.math.schedules import linear
from rlrun.networks.actor_critic import make_actor, make_critic
from rlrun.networks.optimizers import Adam


@dataclass(kw_only=True, eq=False)
class Reinforce(Algorithm):
    action_spaces: ClassVar[tuple[str, ...]] = ("Discrete", "MultiDiscrete", "Box")

    episodes_per_update: int
    baseline: Literal["none", "standardize", "value"]
    learning_rate: float
    learning_rate_end: float
    value_learning_rate: float
    value_epochs: int
    gamma: float
    discount_updates: bool
    entropy_coef: float
    entropy_coef_end: float
    max_grad_norm: float | None
    optimizer_name: Literal["adam", "nadam"]
    optimizer_eps: float
    log_std_init: float
    eval_greedy: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check()
        setup = self.setup
        self.generator = setup.seeds.torch("reinforce", setup.device.torch)
        self.policy_net = setup.device.place(make_actor(setup.make_torso, setup.action_space, self.log_std_init))
        self.optimizer = self.make_optimizer(self.policy_net, self.learning_rate)
        if self.baseline == "value":
            self.value_net = setup.device.place(make_critic(setup.make_torso))
            self.value_optimizer = self.make_optimizer(self.value_net, self.value_learning_rate)
        self.collector = setup.make_collector(num_envs=1)
        self.num_updates = 0

    def make_optimizer(self, net: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
        if self.optimizer_name == "nadam":
            return torch.optim.NAdam(net.parameters(), lr=learning_rate, eps=self.optimizer_eps)
        return Adam(net.parameters(), lr=learning_rate, eps=self.optimizer_eps)

    def step(self) -> Metrics:
        learning_rate = linear(self.learning_rate, self.learning_rate_end, self.progress)
        entropy_coef = linear(self.entropy_coef, self.entropy_coef_end, self.progress)
        set_learning_rate(self.optimizer, learning_rate)

        batch = self.batch = self.collector.collect_episodes(self.policy, self.episodes_per_update)
        obs, action = batch["obs"].squeeze(1), batch["action"].squeeze(1)
        returns = self.returns(batch)
        advantage = self.advantages(obs, returns)

        with self.setup.device.autocast():
            policy = self.policy_net(obs)
        entropy = policy.entropy()
        objective = policy.log_prob(action) * advantage + entropy_coef * entropy
        if self.discount_updates:
            objective = objective * self.gamma ** time_in_episode(batch["first"].squeeze(1))
        loss = -objective.sum() / self.episodes_per_update
        descend(loss, self.optimizer, self.max_grad_norm)
        self.num_updates += 1
        metrics: Metrics = {
            "train/loss": loss.detach(),
            "train/entropy_loss": -entropy.detach().mean(),
            "train/learning_rate": learning_rate,
            "train/entropy_coef": entropy_coef,
            "train/n_updates": self.num_updates,
        }
        return metrics | (self.fit_value(obs, returns) if self.baseline == "value" else {})

    def policy(self, obs: Tensor, state: State, first: Tensor) -> tuple[Batch, State]:
        with self.setup.device.autocast():
            policy = self.policy_net(obs)
        return {"action": policy.sample(self.generator)}, state

    def act(self, obs: Tensor, state: State, first: Tensor) -> tuple[Tensor, State]:
        with self.setup.device.autocast():
            policy = self.policy_net(obs)
        return policy.mode() if self.eval_greedy else policy.sample(), state

    @torch.no_grad()
    def returns(self, batch: Batch) -> Tensor:
        """Return G_t, [T]. What a time limit cuts off is worth V, or nothing if no value is learned."""
        rest = torch.zeros_like(batch["reward"])
        if self.baseline == "value":
            rest.view(-1)[batch["final_index"]] = self.value(batch["final_obs"])
        ends = batch["terminated"], batch["truncated"]
        return lambda_returns(batch["reward"], rest, *ends, gamma=self.gamma, lam=1.0).squeeze(1)

    @torch.no_grad()
    def advantages(self, obs: Tensor, returns: Tensor) -> Tensor:
        """Return G_t - b, [T]."""
        if self.baseline == "standardize":
            return (returns - returns.mean()) / (returns.std(correction=0) + 1e-8)
        return returns - self.value(obs) if self.baseline == "value" else returns

    def value(self, obs: Tensor) -> Tensor:
        """obs: [T, *obs] -> V [T]."""
        with self.setup.device.autocast():
            return self.value_net(obs).float()

    def fit_value(self, obs: Tensor, returns: Tensor) -> Metrics:
        """Take steps of V towards the returns, after it has served as their baseline."""
        for epoch in range(self.value_epochs):
            value = self.value(obs)
            loss = (returns - value).square().mean()
            if epoch == 0:
                metrics: Metrics = {
                    "train/value_loss": loss.detach(),
                    "train/explained_variance": explained_variance(value.detach(), returns),
                }
            descend(loss, self.value_optimizer, self.max_grad_norm)
        return metrics

    def acting_networks(self) -> dict[str, nn.Module]:
        return {"policy_net": self.policy_net}

    def stored_steps(self) -> int:
        return self.episodes_per_update * 1_000  # a guess: how long episodes are, nobody knows before

    def _check(self) -> None:
        check_range("algo.episodes_per_update", self.episodes_per_update, 1)
        check_range("algo.learning_rate", self.learning_rate, 0)
        check_range("algo.learning_rate_end", self.learning_rate_end, 0)
        check_range("algo.value_learning_rate", self.value_learning_rate, 0)
        check_range("algo.value_epochs", self.value_epochs, 1)
        check_range("algo.gamma", self.gamma, 0, 1)
        check_range("algo.entropy_coef", self.entropy_coef, 0)
        check_range("algo.entropy_coef_end", self.entropy_coef_end, 0)
        check_range("algo.max_grad_norm", self.max_grad_norm, 0)
        check_range("algo.optimizer_eps", self.optimizer_eps, 0)


def time_in_episode(first: Tensor) -> Tensor:
    """Return how many steps of its episode came before each step, [T] int64. first: [T] bool."""
    time = torch.arange(len(first), device=first.device)
    return time - torch.where(first, time, 0).cummax(0).values
