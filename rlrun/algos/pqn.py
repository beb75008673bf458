"""Parallelised Q-network: Q-learning without a replay and without a target network.

    for iteration = 1, 2, ...:
        act epsilon-greedily for T steps in B environments
        compute the lambda-returns R of max_a Q
        for K epochs, in minibatches of M: step down the gradient of (R - Q(s, a))^2

Gallici et al. (2024), "Simplifying Deep Temporal Difference Learning", arXiv:2407.04811, Algorithm 1. Layer
normalisation in the network takes the place of the target network; many environments that of the replay.
T time, B environments, M minibatch.
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
    descend,
    set_learning_rate,
)
from rlrun.algos.on_policy import minibatches
from rlrun.data.collector import Batch, State
from rlrun.math.returns import lambda_returns, next_values
from rlrun.math.schedules import linear
from rlrun.networks.q_network import QNetwork
from rlrun.seeding import drawn


@dataclass(kw_only=True, eq=False)
class PQN(Algorithm):
    action_spaces: ClassVar[tuple[str, ...]] = ("Discrete",)
    distributed: ClassVar[bool] = True

    num_envs: int
    num_steps: int
    batch_size: int
    num_epochs: int
    learning_rate: float
    learning_rate_end: float
    gamma: float
    q_lambda: float
    epsilon_start: float
    epsilon_end: float
    epsilon_fraction: float
    eval_epsilon: float
    max_grad_norm: float | None
    dueling: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check()
        setup = self.setup
        self.generator = setup.seeds.torch("pqn", setup.device.torch)
        self.net = setup.device.place(
            QNetwork(setup.make_torso, self.num_actions, 1, dueling=self.dueling, noisy_sigma=None)
        )
        self.optimizer = torch.optim.RAdam(self.net.parameters(), lr=self.learning_rate)
        self.collector = setup.make_collector(self.num_envs)

    def step(self) -> Metrics:
        learning_rate = linear(self.learning_rate, self.learning_rate_end, self.progress)
        set_learning_rate(self.optimizer, learning_rate)
        metrics: Metrics = {"rollout/exploration_rate": self.epsilon(), "train/learning_rate": learning_rate}

        self.batch = self.collect()
        data = self.learning_data(self.batch)
        losses, world = [], self.setup.world
        share = world.share_of_rows(self.batch_size)
        for _ in range(self.num_epochs):
            for minibatch in minibatches(data, share, self.generator):
                loss = self.loss(minibatch)
                descend(loss, self.optimizer, self.max_grad_norm, world)
                losses.append(loss.detach())
        return metrics | {"train/loss": torch.stack(losses).mean(), "train/q_value": self.batch["value"].mean()}

    @torch.no_grad()
    def learning_data(self, batch: Batch) -> Batch:
        """Return observations, actions and their lambda-returns, flat: [T B, ...]."""
        value = batch["value"]
        target = lambda_returns(
            batch["reward"],
            next_values(value, self.value(batch["next_obs"]), self.value(batch["final_obs"]), batch["final_index"]),
            batch["terminated"],
            batch["truncated"],
            gamma=self.gamma,
            lam=self.q_lambda,
        )
        data = {"obs": batch["obs"], "action": batch["action"], "target": target}
        return {name: tensor.flatten(0, 1) for name, tensor in data.items()}

    def loss(self, data: Batch) -> Tensor:
        with self.setup.device.autocast():
            q = self.net(data["obs"]).squeeze(-1)
        chosen = q.gather(1, data["action"][:, None]).squeeze(1)
        return 0.5 * (data["target"] - chosen).square().mean()

    def value(self, obs: Tensor) -> Tensor:
        """obs: [B, *obs] -> max_a Q(s, a): [B]. B may be 0."""
        if len(obs) == 0:
            return torch.empty(0, device=obs.device)
        with self.setup.device.autocast():
            return self.net(obs).squeeze(-1).amax(1)

    def collect(self) -> Batch:
        """Act for T steps in B environments."""
        return self.collector.collect(self.policy, self.num_steps)

    def policy(self, obs: Tensor, state: State, first: Tensor) -> tuple[Batch, State]:
        with self.setup.device.autocast():
            value, greedy = self.net(obs).squeeze(-1).max(1)
        return {"action": self.explore(greedy, self.epsilon(), self.generator), "value": value}, state

    def act(self, obs: Tensor, state: State, first: Tensor) -> tuple[Tensor, State]:
        with self.setup.device.autocast():
            greedy = self.net(obs).squeeze(-1).argmax(1)
        return self.explore(greedy, self.eval_epsilon, None), state

    def explore(self, greedy: Tensor, epsilon: float, generator: torch.Generator | None) -> Tensor:
        """Replace each action by a random one with probability epsilon: [B] -> [B]."""
        if epsilon == 0:
            return greedy
        coin = drawn(greedy.float(), generator, lambda empty: empty.uniform_(generator=generator))
        random = drawn(greedy, generator, lambda empty: empty.random_(self.num_actions, generator=generator))
        return torch.where(coin < epsilon, random, greedy)

    def epsilon(self) -> float:
        return linear(self.epsilon_start, self.epsilon_end, self.progress / max(self.epsilon_fraction, 1e-9))

    def stored_steps(self) -> int:
        return self.num_envs * self.num_steps // self.setup.world.size

    def _check(self) -> None:
        for key in ("num_envs", "num_steps", "num_epochs"):
            check_range(f"algo.{key}", getattr(self, key), 1)
        for key in ("learning_rate", "learning_rate_end", "max_grad_norm"):
            check_range(f"algo.{key}", getattr(self, key), 0)
        for key in ("gamma", "q_lambda", "epsilon_start", "epsilon_end", "epsilon_fraction", "eval_epsilon"):
            check_range(f"algo.{key}", getattr(self, key), 0, 1)
        check_minibatch(self.batch_size, self.num_envs * self.num_steps, processes=self.setup.world.size)
