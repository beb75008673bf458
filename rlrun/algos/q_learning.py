"""Q-learning: learn the values of the best actions while trying others.

    Q(s, a) = Q_0 for all s, a
    for step t = 1, 2, ...:
        choose A in S by a policy derived from Q (epsilon-greedy)
        take A, observe R, S'
        Q(S, A) += alpha [R + gamma max_a Q(S', a) - Q(S, A)]
        S = S', or the start of an episode if S' is terminal

Watkins (1989), "Learning from Delayed Rewards"; Sutton and Barto (2018), "Reinforcement Learning: An
Introduction", 2nd ed., section 6.5, box on page 131.
"""

from dataclasses import dataclass
from typing import ClassVar

from rlrun.algos.algorithm import Metrics, check_range
from rlrun.algos.tabular_control import TabularControl


@dataclass(kw_only=True, eq=False)
class QLearning(TabularControl):
    action_spaces: ClassVar[tuple[str, ...]] = ("Discrete",)

    exploration_bonus: float
    bonus_in_target: bool

    def step(self) -> Metrics:
        q, env, epsilon = self.q.rows, self.collector, self.epsilon()
        td_errors = 0.0
        for _ in range(self.num_steps):
            state = env.state
            action = self.epsilon_greedy(state, self.with_bonus(state), epsilon)
            next_state, reward, terminated, _ = env.step(action)
            future = self.with_bonus(next_state) if self.bonus_in_target else q[next_state]
            target = reward if terminated else reward + self.gamma * max(future)
            td_error = target - q[state][action]
            alpha = self.step_size(state, action)
            q[state][action] += alpha * td_error  # Eq. (6.8)
            td_errors += abs(td_error)
        return self.metrics(td_errors, epsilon, alpha)

    def with_bonus(self, state: int) -> list[float]:
        """Return f(Q, N) = Q(s, a) + kappa / (1 + N(s, a)) for all a: what was seldom tried looks better.

        In the choice of actions: Russell and Norvig, "Artificial Intelligence: A Modern Approach", section on
        active Q-learning. In the target, too, where it draws the agent through known states to unknown ones:
        Géron (2025), "Hands-On Machine Learning with Scikit-Learn and PyTorch", Eq. (19-6).
        """
        values = self.q.rows[state]
        if not self.exploration_bonus:
            return values
        kappa = self.exploration_bonus
        return [value + kappa / (1 + n) for value, n in zip(values, self.visits.rows[state], strict=True)]

    def check(self) -> None:
        super().check()
        check_range("algo.exploration_bonus", self.exploration_bonus, 0)
