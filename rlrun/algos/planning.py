"""What value iteration and Q-value iteration have in common: a known model, swept until its values settle.

A sweep counts as a step: total_steps and all cadences are in sweeps. S states, A actions.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from rlrun.algos.algorithm import Algorithm, Metrics, check_range
from rlrun.data.collector import State
from rlrun.envs.base import Array
from rlrun.pictures import table_pictures


@dataclass(kw_only=True, eq=False)
class Planning(Algorithm):
    """The values so far, how much the last sweep changed them, and the policy that is greedy by them."""

    obs_spaces: ClassVar[tuple[str, ...] | None] = ("Discrete",)
    transient: ClassVar[frozenset[str]] = Algorithm.transient | {"model"}

    gamma: float
    theta: float | None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("algo.gamma", self.gamma, 0, 1)
        check_range("algo.theta", self.theta, 0)
        self.model = self.setup.make_model()
        self.values = torch.from_numpy(self.initial_values())
        self.delta = float("inf")
        self.sweeps = 0

    @abstractmethod
    def initial_values(self) -> Array: ...

    @abstractmethod
    def q_values(self) -> Array:
        """Return Q by the values so far, [S, A]; -inf for actions that a state does not have."""

    @property
    def steps(self) -> int:
        return self.sweeps

    def swept(self, values: Array) -> Metrics:
        """Put the values of a sweep in the place of those before it."""
        exists = np.isfinite(values)
        self.delta = float(np.abs(values[exists] - self.values.numpy()[exists]).max())
        self.values = torch.from_numpy(values)
        self.sweeps += 1
        return {"train/delta": self.delta}

    def converged(self) -> str | None:
        return "algo.theta" if self.theta is not None and self.delta < self.theta else None

    def act(self, obs: Tensor, state: State, first: Tensor) -> tuple[Tensor, State]:
        """Choose the first of the best actions."""
        return torch.from_numpy(self.q_values()).to(obs.device)[obs].argmax(dim=-1), state

    def policy_state_dict(self) -> dict[str, Any]:
        return {"values": self.values}

    def load_policy_state_dict(self, state: dict[str, Any]) -> None:
        self.values = state["values"]

    def pictures(self) -> dict[str, bytes]:
        return table_pictures(self.q_values(), self.model.maps)
