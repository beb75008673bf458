"""What Q-learning, Sarsa and Expected Sarsa have in common: a table of action values and an epsilon-greedy policy.

S states, A actions. The algorithms differ in the target of their update, which each of them states itself.

Sutton and Barto (2018), "Reinforcement Learning: An Introduction", 2nd ed., sections 2.2 and 6.4 to 6.6.
"""

import random
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from rlrun.algos.algorithm import Algorithm, Metrics, check_range
from rlrun.data.collector import State
from rlrun.data.tabular_collector import Table
from rlrun.math.schedules import linear
from rlrun.pictures import table_pictures


@dataclass(kw_only=True, eq=False)
class TabularControl(Algorithm):
    """Q [S, A], how often each of its entries was updated, and one environment."""

    obs_spaces: ClassVar[tuple[str, ...] | None] = ("Discrete",)
    transient: ClassVar[frozenset[str]] = Algorithm.transient | {"actions"}

    num_steps: int
    gamma: float
    learning_rate: float
    learning_rate_power: float
    learning_rate_decay: float
    learning_rate_min: float
    epsilon_start: float
    epsilon_end: float
    epsilon_steps: int
    initial_value: float

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check()
        self.collector = self.setup.make_tabular_collector()
        available = self.collector.available
        self.actions = [np.flatnonzero(row).tolist() for row in available]  # [S], those that a state has
        self.q = Table(np.where(available, self.initial_value, -np.inf))
        self.visits = Table(np.zeros(available.shape))
        self.rng = random.Random(self.setup.seeds.entropy("epsilon-greedy"))

    def epsilon(self) -> float:
        """Return the probability of a random action: a straight line over the first `epsilon_steps`."""
        return linear(self.epsilon_start, self.epsilon_end, self.steps / self.epsilon_steps)

    def epsilon_greedy(self, state: int, values: list[float], epsilon: float) -> int:
        """Choose an action of the state at random with probability epsilon, else a best one by its values [A].

        Ties are broken at random: with the first of them, an agent whose table is still level would go
        nowhere but left.
        """
        if self.rng.random() < epsilon:
            return self.rng.choice(self.actions[state])
        best = max(values)
        if values.count(best) > 1:
            return self.rng.choice([a for a, value in enumerate(values) if value == best])
        return values.index(best)

    def step_size(self, state: int, action: int) -> float:
        """Count an update of Q(s, a) and return its alpha.

        alpha = alpha_0 / (N(s, a)^power (1 + decay t)), but not below its minimum, after N updates of this
        entry and t steps in all. Power 0 and decay 0 keep alpha_0; a power in (0.5, 1] is what convergence
        with probability 1 asks for (Sutton and Barto, Eq. 2.7).
        """
        visits = self.visits.rows[state]
        visits[action] += 1
        slower = visits[action] ** self.learning_rate_power * (1 + self.learning_rate_decay * self.collector.steps)
        return max(self.learning_rate / slower, self.learning_rate_min)

    def metrics(self, td_errors: float, epsilon: float, alpha: float) -> Metrics:
        """Return what is logged after `num_steps` updates with a sum of absolute errors and a last step size."""
        return {
            "train/td_error": td_errors / self.num_steps,
            "train/learning_rate": alpha,
            "rollout/exploration_rate": epsilon,
        }

    def act(self, obs: Tensor, state: State, first: Tensor) -> tuple[Tensor, State]:
        """Choose the first of the best actions."""
        q = torch.from_numpy(self.q.array()).to(obs.device)
        return q[obs - self.setup.obs_space.start].argmax(dim=-1), state  # type: ignore[attr-defined]

    def policy_state_dict(self) -> dict[str, Any]:
        return {"q": self.q.state_dict()}

    def load_policy_state_dict(self, state: dict[str, Any]) -> None:
        self.q.load_state_dict(state["q"])

    def pictures(self) -> dict[str, bytes]:
        return table_pictures(self.q.array(), self.collector.maps)

    def check(self) -> None:
        check_range("algo.num_steps", self.num_steps, 1)
        check_range("algo.epsilon_steps", self.epsilon_steps, 1)
        for key in ("gamma", "learning_rate", "learning_rate_min", "epsilon_start", "epsilon_end"):
            check_range(f"algo.{key}", getattr(self, key), 0, 1)
        check_range("algo.learning_rate_power", self.learning_rate_power, 0)
        check_range("algo.learning_rate_decay", self.learning_rate_decay, 0)
