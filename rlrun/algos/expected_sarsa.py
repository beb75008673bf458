"""Expected Sarsa: Sarsa without the chance in the choice of the next action.

    Q(s, a) = Q_0 for all s, a
    for step t = 1, 2, ...:
        choose A in S by a policy pi derived from Q (epsilon-greedy)
        take A, observe R, S'
        Q(S, A) += alpha [R + gamma sum_a pi(a|S') Q(S', a) - Q(S, A)]
        S = S', or the start of an episode if S' is terminal

van Seijen et al. (2009), "A Theoretical and Empirical Analysis of Expected Sarsa"; Sutton and Barto (2018),
"Reinforcement Learning: An Introduction", 2nd ed., section 6.6.
"""

from dataclasses import dataclass
from typing import ClassVar

from rlrun.algos.algorithm import Metrics
from rlrun.algos.tabular_control import TabularControl


@dataclass(kw_only=True, eq=False)
class ExpectedSarsa(TabularControl):
    action_spaces: ClassVar[tuple[str, ...]] = ("Discrete",)

    def step(self) -> Metrics:
        q, env, epsilon = self.q.rows, self.collector, self.epsilon()
        td_errors = 0.0
        for _ in range(self.num_steps):
            state = env.state
            action = self.epsilon_greedy(state, q[state], epsilon)
            next_state, reward, terminated, _ = env.step(action)
            target = reward if terminated else reward + self.gamma * self.expected_value(next_state, epsilon)
            td_error = target - q[state][action]
            alpha = self.step_size(state, action)
            q[state][action] += alpha * td_error  # Eq. (6.9)
            td_errors += abs(td_error)
        return self.metrics(td_errors, epsilon, alpha)

    def expected_value(self, state: int, epsilon: float) -> float:
        """Return sum_a pi(a|s) Q(s, a): with probability epsilon the mean, else the best."""
        values = self.q.rows[state]
        actions = self.actions[state]
        mean = sum([values[a] for a in actions]) / len(actions)
        return epsilon * mean + (1 - epsilon) * max(values)
