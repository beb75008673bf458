"""Algorithms that learn from a replay at a size at which a test takes milliseconds."""

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


def check_exact_resume(make: Callable[[str, int], OffPolicy], through_disk: Callable[[Any], Any], before: int) -> None:
    """Kill a run some iterations after its checkpoint; the restored one must go on like an undisturbed one.

    make: (folder, seed) -> the algorithm, with a replay of less than 60 steps; before: iterations until the checkpoint.
    """

    def go_on(algorithm: OffPolicy, iterations: int) -> list[Any]:
        metrics = [{key: float(value) for key, value in algorithm.step().items()} for _ in range(iterations)]
        return [metrics, [weights(net).numpy().tobytes() for net in algorithm.networks().values()]]

    undisturbed, killed = make("undisturbed", 0), make("killed", 0)
    go_on(undisturbed, before)
    go_on(killed, before)
    state = through_disk(killed.state_dict())
    go_on(killed, 5)
    resumed = make("killed", 1)
    resumed.load_state_dict(state)
    assert resumed.steps == undisturbed.steps > 60  # the replay has gone round
    assert go_on(resumed, 20) == go_on(undisturbed, 20)
