"""What algorithms share that learn from what their present policy has just done.

    for iteration = 1, 2, ...:
        run the policy for T steps in B environments
        compute the advantages A_1 ... A_T
        improve the policy and V

Sutton and Barto (2018), "Reinforcement Learning: An Introduction", ch. 13. T time, B environments, M minibatch.
"""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from rlrun.algos.algorithm import Algorithm, Metrics, check_range
from rlrun.data.collector import Batch, State
from rlrun.distributed import LONE, World
from rlrun.math.returns import advantages
from rlrun.networks.actor_critic import ActorCritic
from rlrun.seeding import random_order


@dataclass(kw_only=True, eq=False)
class OnPolicy(Algorithm):
    """A policy and a state value, the environments that they act in, and how both are used until the update."""

    action_spaces: ClassVar[tuple[str, ...]] = ("Discrete", "MultiDiscrete", "Box")
    draws: ClassVar[str]  # the name of the random generator

    num_envs: int
    num_steps: int
    gamma: float
    gae_lambda: float
    log_std_init: float
    eval_greedy: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check()
        self.generator = self.setup.seeds.torch(self.draws, self.setup.device.torch)
        self.net = self.setup.device.place(self.make_net())
        self.optimizer = self.make_optimizer()
        self.collector = self.setup.make_collector(self.num_envs)
        self.num_updates = 0

    @abstractmethod
    def make_net(self) -> ActorCritic:
        """Make the networks of policy and value."""

    @abstractmethod
    def make_optimizer(self) -> torch.optim.Optimizer:
        """Make the optimizer of the networks."""

    def collect(self) -> Batch:
        """Run the policy for T steps in B environments; return what a collector does."""
        return self.collected(self.net, self.generator)

    def rollout(self) -> Batch:
        """Run the policy for T steps in B environments; return what `judged` does."""
        return self.judged(self.net, self.collect())

    @torch.no_grad()
    def collected(self, net: ActorCritic, generator: torch.Generator) -> Batch:
        """Run the policy of a network for T steps, by draws from a generator."""
        device = self.setup.device
        with device.constant_weights():
            policy = net.player(self.num_steps, self.collector.num_envs, generator, device)
            return self.collector.collect(policy, self.num_steps)

    @torch.no_grad()
    def judged(self, net: ActorCritic, batch: Batch) -> Batch:
        """Return a rollout and what the network that played it thinks of it.

        That is log_prob and value: [T, B], and V of next_obs and final_obs: last_value [B] and final_value [K].
        """
        with self.setup.device.autocast():
            batch = net.judged(batch)
            last_value, final_value = net.bootstrap_values(batch, self.collector.policy_state)
        return {**batch, "last_value": last_value, "final_value": final_value}

    def act(self, obs: Tensor, state: State, first: Tensor) -> tuple[Tensor, State]:
        with self.setup.device.autocast():
            policy, state = self.net.policy(obs, state, first)
        return policy.mode() if self.eval_greedy else policy.sample(), state

    def advantages(self, batch: Batch) -> Tensor:
        """Return GAE's advantages [T, B]; at gae_lambda = 1 those are n-step returns less V."""
        values = batch["last_value"], batch["final_value"]
        return advantages(batch, *values, gamma=self.gamma, gae_lambda=self.gae_lambda)

    def stored_steps(self) -> int:
        return self.num_envs * self.num_steps // self.setup.world.size

    def _check(self) -> None:
        check_range("algo.num_envs", self.num_envs, 1)
        check_range("algo.num_steps", self.num_steps, 1)
        check_range("algo.gamma", self.gamma, 0, 1)
        check_range("algo.gae_lambda", self.gae_lambda, 0, 1)


def normalized(advantage: Tensor, world: World = LONE) -> Tensor:
    """Return advantages with mean 0 and standard deviation 1 over all processes' shares; 0 if all are equal."""
    whole = world.whole(advantage)
    correction = min(1, whole.numel() - 1)
    if whole.device.type != "cpu":
        deviation, mean = torch.std_mean(whole, correction=correction)
        return (advantage - mean) / (deviation + 1e-8)
    # By NumPy, which for so few numbers takes a third of the time; a mean in float32 would make noise of equal numbers.
    with np.errstate(all="ignore"):
        wide = whole.numpy().astype(np.float64)
        mean = wide.sum() / wide.size
        deviation = np.sqrt(np.square(wide - mean).sum() / (wide.size - correction))
        own = (advantage.numpy() - mean) / (deviation + 1e-8)
    return torch.from_numpy(own).to(advantage.dtype)


def minibatches(data: Batch, size: int, generator: torch.Generator) -> Iterator[Batch]:
    """Split data, [N, ...] each, at random into minibatches of `size` rows; the last one may be smaller."""
    order = random_order(len(next(iter(data.values()))), generator)
    for rows in order.split(size):
        yield {name: taken(column, rows) for name, column in data.items()}


def taken(column: Tensor, rows: Tensor) -> Tensor:
    """Return rows of a column, [N, ...], that lie in memory as the column does."""
    if column.dim() == 4 and column.is_contiguous(memory_format=torch.channels_last):
        return column.movedim(1, -1).index_select(0, rows).movedim(-1, 1)
    return column.index_select(0, rows)


def means(rows: list[dict[str, Tensor]]) -> Metrics:
    """Return the mean of each entry over all rows."""
    return {name: torch.stack([row[name] for row in rows]).mean() for name in rows[0]}
