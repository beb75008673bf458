"""Value iteration: the best values of a known model, by sweeps of its Bellman optimality equation.

    V(s) = 0 for all s
    repeat:
        V(s) = max_a sum over s', r of p(s', r|s, a) [r + gamma V(s')]   for all s
    until V changes by less than theta
    pi(s) = argmax_a sum over s', r of p(s', r|s, a) [r + gamma V(s')]

Bellman (1957), "Dynamic Programming"; Sutton and Barto (2018), "Reinforcement Learning: An Introduction",
2nd ed., section 4.4, box on page 83, with two arrays instead of one: a sweep reads only the last one's values.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rlrun.algos.algorithm import Metrics
from rlrun.algos.planning import Planning
from rlrun.envs.base import Array


@dataclass(kw_only=True, eq=False)
class ValueIteration(Planning):
    action_spaces: ClassVar[tuple[str, ...]] = ("Discrete",)

    def initial_values(self) -> Array:
        return np.zeros(self.model.num_states)

    def step(self) -> Metrics:
        return self.swept(self.q_values().max(axis=1))  # Eq. (4.10)

    def q_values(self) -> Array:
        return self.model.lookahead(self.values.numpy(), self.gamma)
