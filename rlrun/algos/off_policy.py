"""The loop of algorithms that learn from a replay.

    for iteration = 1, 2, ...:
        act for k steps, at random while the replay is nearly empty, and store them in the replay D
        n times:
            draw a minibatch of M steps from D and learn from it

Lin (1992), "Self-improving reactive agents based on reinforcement learning, planning and teaching". M minibatch,
B environments.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from gymnasium import spaces
from torch import Tensor

from rlrun.algos.algorithm import Algorithm, Metrics, check_range
from rlrun.data.collector import Batch, State
from rlrun.data.replay import Replay
from rlrun.errors import UserError


@dataclass(kw_only=True, eq=False)
class OffPolicy(Algorithm):
    draws: ClassVar[str]  # the name of the random generator

    num_envs: int
    train_every: int
    num_updates: int
    batch_size: int
    buffer_size: int
    learning_starts: int
    gamma: float

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_loop()
        self.generator = self.setup.seeds.torch(self.draws, self.setup.device.torch)
        self.collector = self.setup.make_collector(self.num_envs, raw=True)
        self.replay = self.make_replay()
        self._check_buffer_size()
        self.updates = 0  # minibatches learned from

    @abstractmethod
    def update(self) -> Metrics:
        """Learn from one minibatch."""

    @abstractmethod
    def policy(self, obs: Tensor, state: State, first: Tensor) -> tuple[Batch, State]:
        """Choose actions [B, *act] as the learner does: at random while `warming_up`; otherwise as `act`."""

    def step(self) -> Metrics:
        self.replay.add(self.collect())
        metrics: Metrics = {}
        if self.ready:
            for _ in range(self.num_updates):
                metrics = self.update()
                self.updates += 1
        return metrics | {"train/n_updates": self.updates}

    def collect(self) -> Batch:
        """Act until the next update is due."""
        with self.setup.device.constant_weights():
            return self.collector.collect(self.policy, self.train_every // self.num_envs)

    @property
    def ready(self) -> bool:
        """Say whether there is enough to learn from."""
        return not self.warming_up and len(self.replay) >= self.batch_size

    def notices(self) -> list[str]:
        total_steps = self.setup.total_steps
        if self.learning_starts < total_steps:
            return []
        return [f"nothing will be learned: algo.learning_starts={self.learning_starts} and total_steps={total_steps}"]

    @property
    def warming_up(self) -> bool:
        return self.steps < self.learning_starts

    def random_actions(self, count: int, generator: torch.Generator | None) -> Tensor:
        """Draw [count, *act] uniformly from the action space."""
        space, device = self.setup.action_space, self.setup.device.torch
        if isinstance(space, spaces.Discrete):
            return torch.randint(int(space.n), (count,), generator=generator, device=device)
        assert isinstance(space, spaces.Box)
        low, high = (torch.from_numpy(bound).to(device, torch.float32) for bound in (space.low, space.high))
        return torch.lerp(low, high, torch.rand(count, *space.shape, generator=generator, device=device))

    def in_space(self, action: Tensor) -> Tensor:
        """action: [B, D] -> [B, *act], the form of the action space."""
        return action.view(-1, *(self.setup.action_space.shape or ()))

    def white_noise(self, like: Tensor) -> Tensor:
        """Draw standard normal noise of the shape of `like`."""
        return torch.empty_like(like).normal_(generator=self.generator)

    def make_replay(self) -> Replay:
        return self.replay_of_returns(n_steps=1, alpha=None)

    def replay_of_returns(self, n_steps: int, alpha: float | None) -> Replay:
        """Make a replay of n-step returns, prioritized with exponent alpha unless that is None."""
        return self.setup.make_replay(
            num_envs=self.num_envs,
            capacity=self.buffer_size,
            num_steps=self.train_every // self.num_envs,
            n_steps=n_steps,
            gamma=self.gamma,
            alpha=alpha,
        )

    def _check_loop(self) -> None:
        for key in ("num_envs", "train_every", "num_updates", "batch_size", "buffer_size"):
            check_range(f"algo.{key}", getattr(self, key), 1)
        check_range("algo.learning_starts", self.learning_starts, 0)
        check_range("algo.gamma", self.gamma, 0, 1)
        if self.train_every % self.num_envs:
            nearest = max(1, round(self.train_every / self.num_envs)) * self.num_envs
            raise UserError(
                f"algo.train_every={self.train_every} must be a multiple of num_envs = {self.num_envs}: that many "
                f"agent steps are taken at once; try {nearest}"
            )

    def _check_buffer_size(self) -> None:
        """Raise UserError for a replay that could never give a minibatch: nothing would be learned."""
        if self.buffer_size < self.train_every or self.replay.largest_length < self.batch_size:
            raise UserError(
                f"algo.buffer_size={self.buffer_size} must hold the {self.train_every} steps between updates, and a "
                f"minibatch of {self.batch_size} besides the newest {self.replay.n_steps} steps of each of "
                f"{self.num_envs} environments, which still wait for their returns: raise it"
            )
