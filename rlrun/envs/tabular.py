"""Environments whose dynamics are known: finitely many states and actions, and a table of what may follow.

Gymnasium's toy-text environments bring that table as `P`. S states, A actions, K outcomes in all.
"""

from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

from rlrun.envs.base import Array
from rlrun.envs.grid_maps import GridMap, maps_of
from rlrun.errors import UserError

Outcome = tuple[float, int, float, bool]  # probability, next state, reward, terminated: an entry of P[s][a]

# Wrappers that leave the dynamics as they are, apart from the limit, which a model has as well.
TRANSPARENT = (TimeLimit, OrderEnforcing, PassiveEnvChecker)


@dataclass(kw_only=True, eq=False)
class Model:
    """p(s', r | s, a) of a finite Markov decision process, how its episodes begin, and when they are cut."""

    outcomes: list[list[list[Outcome]]]  # [state][action]; none for an action that the state does not have
    start: Array  # [S], the probabilities of first states
    max_episode_steps: int | None
    maps: list[GridMap] = field(default_factory=list)  # its states on paper; empty where they lie on no grid

    def __post_init__(self) -> None:
        self.num_states, self.num_actions = len(self.outcomes), len(self.outcomes[0])
        rows = [
            (s * self.num_actions + a, p, next_state, reward, not terminated)
            for s, actions in enumerate(self.outcomes)
            for a, outcomes in enumerate(actions)
            for p, next_state, reward, terminated in outcomes
        ]
        pair, probability, next_state, reward, goes_on = zip(*rows, strict=True)
        self.pair: Array = np.array(pair)  # [K], which (s, a) an outcome belongs to: s * A + a
        self.probability: Array = np.array(probability)  # [K]
        self.next_state: Array = np.array(next_state)  # [K]
        self.reward: Array = np.array(reward)  # [K]
        self.goes_on: Array = np.array(goes_on, np.float64)  # [K], 0 where the episode terminates
        self.available: Array = np.array([[bool(outcomes) for outcomes in actions] for actions in self.outcomes])

    def lookahead(self, value: Array, gamma: float) -> Array:
        """Return sum over s', r of p(s', r | s, a) [r + gamma V(s')], [S, A]; -inf for actions that do not exist.

        value: [S]. What terminates has no value beyond its reward.
        """
        target = self.reward + gamma * self.goes_on * value[self.next_state]
        expected = np.bincount(self.pair, self.probability * target, self.num_states * self.num_actions)
        return np.where(self.available, expected.reshape(self.num_states, self.num_actions), -np.inf)


def model_of(env: gymnasium.Env) -> Model | None:
    """Return the model that the environment brings with it, or None. Raises UserError for an inconsistent one."""
    inner: Any = env.unwrapped
    table, start = getattr(inner, "P", None), getattr(inner, "initial_state_distrib", None)
    if table is None or start is None or not _counts_from_zero(env) or not _is_all_there_is(env):
        return None
    num_states, num_actions = int(env.observation_space.n), int(env.action_space.n)  # type: ignore[attr-defined]
    outcomes = [[_outcomes(table, s, a) for a in range(num_actions)] for s in range(num_states)]
    for s, actions in enumerate(outcomes):
        _check_probabilities(env, s, actions)
        if not any(actions):  # a final state, written without a way out
            actions[:] = [[(1.0, s, 0.0, True)] for _ in actions]
    limit = env.spec.max_episode_steps if env.spec else None
    return Model(outcomes=outcomes, start=np.array(start, np.float64), max_episode_steps=limit, maps=maps_of(env))


def _counts_from_zero(env: gymnasium.Env) -> bool:
    both = (env.observation_space, env.action_space)
    return all(isinstance(space, spaces.Discrete) and space.start == 0 for space in both)


def _is_all_there_is(env: gymnasium.Env) -> bool:
    """Say whether the table alone decides what happens: no wrapper and no hidden state has a part in it."""
    while isinstance(env, gymnasium.Wrapper):
        if not isinstance(env, TRANSPARENT):
            return False
        env = env.env
    # Taxi's passenger changes their mind outside of P.
    return not getattr(env, "fickle_passenger", False)


def _outcomes(table: Any, state: int, action: int) -> list[Outcome]:
    try:
        rows = table[state][action]
    except (KeyError, IndexError):
        return []
    return [(float(p), int(next_state), float(reward), bool(end)) for p, next_state, reward, end in rows or () if p]


def _check_probabilities(env: gymnasium.Env, state: int, actions: list[list[Outcome]]) -> None:
    for action, outcomes in enumerate(actions):
        total = sum(outcome[0] for outcome in outcomes)
        if outcomes and abs(total - 1) > 1e-6:
            name = env.spec.id if env.spec else type(env.unwrapped).__name__
            raise UserError(f"env.id={name}: the probabilities in P[{state}][{action}] add up to {total:g}, not to 1")
