"""DQN and its extensions at a size at which a test takes milliseconds."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rlrun.algos.dqn import DQN
from rlrun.build import Agent

MakeAgent = Callable[..., Agent]
Compose = Callable[..., dict[str, Any]]
SMALL = (
    "tuned=none",
    "device=cpu",
    "device.threads=1",
    "network.hidden=[16]",
    "network.activation=relu",
    "algo.buffer_size=500",
    "algo.batch_size=16",
    "algo.learning_starts=40",
    "algo.learning_rate=1e-3",
)
ALGOS = ("dqn", "c51", "qr_dqn", "iqn")


def make_dqn(make_agent: MakeAgent, *overrides: str, algo: str = "dqn", env: str = "cartpole") -> DQN:
    algorithm = make_agent(*SMALL, f"algo={algo}", f"env={env}", *overrides).algorithm
    assert isinstance(algorithm, DQN)
    return algorithm


def run(dqn: DQN, steps: int) -> DQN:
    while dqn.steps < steps:
        dqn.step()
    return dqn


def weights(module: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])
