"""Exact answers about finite Markov decision processes, by linear algebra and finite horizons. S states, A actions."""

import numpy as np

from rlrun.envs.base import Array
from rlrun.envs.tabular import Model


def uniform(model: Model) -> Array:
    """Return the policy that draws among the actions of a state, [S, A]."""
    return model.available / model.available.sum(axis=1, keepdims=True)


def greedy(q: Array) -> Array:
    """Return the policy that takes the first of the best actions, [S, A]."""
    return np.eye(q.shape[1])[q.argmax(axis=1)]


def dynamics(model: Model, policy: Array) -> tuple[Array, Array]:
    """Return p(s'|s), [S, S], of the steps that do not terminate, and r(s), [S], both under a policy [S, A]."""
    transition, reward = np.zeros((model.num_states, model.num_states)), np.zeros(model.num_states)
    for s, actions in enumerate(model.outcomes):
        for a, outcomes in enumerate(actions):
            for p, s2, r, terminated in outcomes:
                reward[s] += policy[s, a] * p * r
                transition[s, s2] += policy[s, a] * p * (not terminated)
    return transition, reward


def exact_values(model: Model, policy: Array, gamma: float) -> Array:
    """Solve V = r + gamma P V, [S]."""
    transition, reward = dynamics(model, policy)
    return np.linalg.solve(np.eye(model.num_states) - gamma * transition, reward)


def exact_q(model: Model, policy: Array, gamma: float) -> Array:
    """Return the action values of a policy, [S, A]; -inf for actions that a state does not have."""
    return model.lookahead(exact_values(model, policy, gamma), gamma)


def policy_iteration(model: Model, gamma: float) -> Array:
    """Return the optimal Q, [S, A], by another way than value iteration."""
    policy = uniform(model)
    while True:
        q = exact_q(model, policy, gamma)
        # A new action must be better by more than rounding, or equally good ones take turns for ever.
        better = q.max(axis=1) > (np.where(policy > 0, q, 0) * policy).sum(axis=1) + 1e-12
        if not better.any():
            return q
        policy[better] = greedy(q)[better]


def expected_return(model: Model, policy: Array) -> float:
    """Return the mean undiscounted return of an episode, cut where the environment's limit cuts it."""
    assert model.max_episode_steps is not None
    transition, reward = dynamics(model, policy)
    value = np.zeros(model.num_states)
    for _ in range(model.max_episode_steps):
        value = reward + transition @ value
    return float(model.start @ value)
