"""An algorithm, an environment and a network as somebody else would add them: no line of rlrun changes."""

from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlrun.algos.algorithm import Algorithm, Metrics
from rlrun.data.collector import Batch, State
from rlrun.networks.torsos import Torso


@dataclass(kw_only=True, eq=False)
class HillClimbing(Algorithm):
    """Keep a linear policy; try a disturbed one for some steps; keep whichever collected more reward."""

    action_spaces: ClassVar[tuple[str, ...]] = ("Discrete",)

    num_envs: int
    num_steps: int
    noise: float

    def __post_init__(self) -> None:
        super().__post_init__()
        self.collector = self.setup.make_collector(self.num_envs)
        self.generator = self.setup.seeds.torch("hill climbing")
        torso = self.setup.make_torso()
        self.net = nn.Sequential(torso, nn.Linear(torso.out_features, int(self.setup.action_space.n)))
        self.best_score = -float("inf")

    @torch.no_grad()
    def step(self) -> Metrics:
        before = [p.clone() for p in self.net.parameters()]
        for p in self.net.parameters():
            p += self.noise * torch.empty_like(p).normal_(generator=self.generator)
        score = self.collector.collect(self.policy, self.num_steps)["terminated"].float().mean().neg().item()
        if score < self.best_score:
            for p, old in zip(self.net.parameters(), before, strict=True):
                p.copy_(old)
        self.best_score = max(score, self.best_score)
        return {"train/score": score}

    def policy(self, obs: Tensor, state: State, first: Tensor) -> tuple[Batch, State]:
        return {"action": self.net(obs).argmax(-1)}, state

    def act(self, obs: Tensor, state: State, first: Tensor) -> tuple[Tensor, State]:
        return self.net(obs).argmax(-1), state


class Corridor(gymnasium.Env[np.ndarray, int]):
    """Walk right to the end of a corridor. `break_at` raises after so many steps of one environment."""

    observation_space = spaces.Box(0.0, 1.0, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, length: int = 5, break_at: int | None = None) -> None:
        self.length, self.break_at = length, break_at
        self.position = self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.position = 0
        return self._obs(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.steps += 1
        if self.steps == self.break_at:
            raise RuntimeError("the corridor collapsed")
        self.position = max(0, self.position + (1 if action == 1 else -1))
        return self._obs(), -1.0, self.position >= self.length, False, {}

    def _obs(self) -> np.ndarray:
        return np.array([self.position / self.length], np.float32)


gymnasium.register("Corridor-v0", Corridor, max_episode_steps=50)


class Tiny(Torso):
    """One narrow layer."""

    def __init__(self, obs_space: spaces.Space, width: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(spaces.flatdim(obs_space), width), nn.Tanh())
        self.out_features = width
