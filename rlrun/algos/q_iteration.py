"""Q-value iteration: value iteration on the values of actions, from which the policy can be read off.

    Q(s, a) = 0 for all s and the actions a that it has
    repeat:
        Q(s, a) = sum over s', r of p(s', r|s, a) [r + gamma max_a' Q(s', a')]   for all s, a
    until Q changes by less than theta
    pi(s) = argmax_a Q(s, a)

Sutton and Barto (2018), "Reinforcement Learning: An Introduction", 2nd ed., Eq. (4.2); Géron (2025), "Hands-On
Machine Learning with Scikit-Learn and PyTorch", Eq. (19-3).
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rlrun.algos.algorithm import Metrics
from rlrun.algos.planning import Planning
from rlrun.envs.base import Array


@dataclass(kw_only=True, eq=False)
class QIteration(Planning):
    action_spaces: ClassVar[tuple[str, ...]] = ("Discrete",)

    def initial_values(self) -> Array:
        return np.where(self.model.available, 0.0, -np.inf)

    def step(self) -> Metrics:
        q = self.q_values()
        return self.swept(self.model.lookahead(q.max(axis=1), self.gamma))

    def q_values(self) -> Array:
        return self.values.numpy()
