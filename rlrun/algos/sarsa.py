"""Sarsa: learn the values of what is done, exploration included.

    Q(s, a) = Q_0 for all s, a; choose A in S by a policy derived from Q (epsilon-greedy)
    for step t = 1, 2, ...:
        take A, observe R, S'
        choose A' in S' by the same policy
        Q(S, A) += alpha [R + gamma Q(S', A') - Q(S, A)]
        S, A = S', A', or the start of an episode if S' is terminal

Rummery and Niranjan (1994), "On-line Q-learning using connectionist systems"; Sutton and Barto (2018),
"Reinforcement Learning: An Introduction", 2nd ed., section 6.4, box on page 130.
"""

from dataclasses import dataclass
from typing import ClassVar

from rlrun.algos.algorithm import Metrics
from rlrun.algos.tabular_control import TabularControl


@dataclass(kw_only=True, eq=False)
class Sarsa(TabularControl):
    action_spaces: ClassVar[tuple[str, ...]] = ("Discrete",)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.action = self.choose(self.collector.state, self.epsilon())  # the one that comes next

    def step(self) -> Metrics:
        q, env, epsilon = self.q.rows, self.collector, self.epsilon()
        td_errors = 0.0
        for _ in range(self.num_steps):
            state, action = env.state, self.action
            next_state, reward, terminated, truncated = env.step(action)
            next_action = self.choose(next_state, epsilon)
            target = reward if terminated else reward + self.gamma * q[next_state][next_action]
            td_error = target - q[state][action]
            alpha = self.step_size(state, action)
            q[state][action] += alpha * td_error  # Eq. (6.7)
            td_errors += abs(td_error)
            self.action = self.choose(env.state, epsilon) if terminated or truncated else next_action
        return self.metrics(td_errors, epsilon, alpha)

    def choose(self, state: int, epsilon: float) -> int:
        return self.epsilon_greedy(state, self.q.rows[state], epsilon)
