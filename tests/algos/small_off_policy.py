"""SAC, DDPG and TD3 at a size at which a test takes milliseconds."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from rlrun.algos.off_policy import OffPolicy
from rlrun.build import Agent

MakeAgent = Callable[..., Agent]
Compose = Callable[..., dict[str, Any]]
A = TypeVar("A", bound=OffPolicy)
SMALL = (
    "tuned=none",
    "device=cpu",
    "device.threads=1",
    "network.hidden=[16]",
    "network.activation=relu",
    "algo.buffer_size=500",
    "algo.batch_size=16",
    "algo.learning_starts=40",
)
ALGOS = {"sac": "pendulum", "discrete sac": "cartpole", "ddpg": "pendulum", "td3": "pendulum"}


def make(make_agent: MakeAgent, name: str, *overrides: str) -> OffPolicy:
    """Return an algorithm of the table above."""
    algorithm = make_agent(*SMALL, f"algo={name.split()[-1]}", f"env={ALGOS[name]}", *overrides).algorithm
    assert isinstance(algorithm, OffPolicy)
    return algorithm


def run(algorithm: A, steps: int) -> A:
    while algorithm.steps < steps:
        algorithm.step()
    return algorithm


def weights(module: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def first(count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.bool)
