"""The random policy: what a score is worth that was reached without looking.

    for iteration = 1, 2, ...:
        step the environments with actions drawn as `space.sample()` draws them; learn nothing

A baseline that every comparison should hold. In `--cfg job` and in folders it is called `random`.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from rlrun.algos.algorithm import Algorithm, Metrics, check_range
from rlrun.data.collector import Batch, State
from rlrun.envs.random_actions import random_actions


@dataclass(kw_only=True, eq=False)
class Random(Algorithm):
    action_spaces: ClassVar[tuple[str, ...]] = ("Discrete", "MultiDiscrete", "MultiBinary", "Box")
    eval_greedy: ClassVar[bool] = False  # the protocol's stamp says that evaluation samples

    num_envs: int
    num_steps: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("algo.num_envs", self.num_envs, 1)
        check_range("algo.num_steps", self.num_steps, 1)
        self.rng = self.setup.seeds.numpy("random")
        self.collector = self.setup.make_collector(self.num_envs)

    def step(self) -> Metrics:
        self.batch = self.collector.collect(self.policy, self.num_steps)
        return {}

    def policy(self, obs: Tensor, state: State, first: Tensor) -> tuple[Batch, State]:
        return {"action": self.draw(obs, self.rng)}, state

    def act(self, obs: Tensor, state: State, first: Tensor) -> tuple[Tensor, State]:
        # Seeded from torch's global generator, which is the one that evaluation lends.
        return self.draw(obs, np.random.default_rng(int(torch.randint(2**62, ())))), state

    def draw(self, obs: Tensor, rng: np.random.Generator) -> Tensor:
        """Return an action for each observation, [B, *act]."""
        return torch.from_numpy(random_actions(self.setup.action_space, len(obs), rng)).to(obs.device)

    def stored_steps(self) -> int:
        return self.num_envs * self.num_steps
