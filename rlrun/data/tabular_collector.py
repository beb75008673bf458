"""Stepping one environment whose states are numbers, for learning with a table. S states, A actions.

Python numbers throughout: a loop over single steps costs an array several times as much. An environment that
brings its model is played from that, which is the same dynamics without the layers of the real one.
"""

import random
import sys
from bisect import bisect
from collections import deque
from itertools import accumulate
from typing import Any, ClassVar

import numpy as np
import torch

from rlrun.data.collector import RECENT
from rlrun.envs.base import Array, EnvSpec
from rlrun.envs.grid_maps import GridMap
from rlrun.envs.replayed import ReplayedEnvs
from rlrun.envs.shaping import Shaping
from rlrun.envs.tabular import Model, Outcome
from rlrun.seeding import TRAINING_SEEDS, Seeds
from rlrun.stateful import Stateful, StateMismatch

Step = tuple[int, float, bool, bool]  # next state, reward, terminated, truncated


class Table:
    """A number for each state and action, in rows of Python floats: `rows[state][action]`."""

    def __init__(self, values: Array) -> None:
        self.rows: list[list[float]] = values.tolist()  # [S][A]

    def array(self) -> Array:
        return np.array(self.rows)

    def state_dict(self) -> dict[str, Any]:
        return {"values": torch.tensor(self.rows, dtype=torch.float64)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        values, shape = state["values"], (len(self.rows), len(self.rows[0]))
        if tuple(values.shape) != shape:
            raise StateMismatch(f"the stored table is {tuple(values.shape)}, expected {shape}")
        for row, stored in zip(self.rows, values.tolist(), strict=True):
            row[:] = stored


class PlayedModel(Stateful):
    """An environment played from its model, time limit included."""

    transient: ClassVar[frozenset[str]] = frozenset({"model", "outcomes", "first_states", "limit"})
    drift: ClassVar[None] = None  # its state is all there is to it

    def __init__(self, model: Model, rng: random.Random) -> None:
        self.model, self.rng = model, rng
        self.outcomes = [[_by_chance(outcomes) for outcomes in actions] for actions in model.outcomes]
        self.first_states = cumulative(model.start[None])[0]
        self.limit = model.max_episode_steps or sys.maxsize
        self.state = self.length = 0

    def start(self) -> int:
        return self.next_episode()

    def next_episode(self) -> int:
        self.state, self.length = bisect(self.first_states, self.rng.random()), 0
        return self.state

    def step(self, action: int) -> Step:
        cumulative, outcomes = self.outcomes[self.state][action]
        self.state, reward, terminated = outcomes[bisect(cumulative, self.rng.random())]
        self.length += 1
        return self.state, reward, terminated, self.length >= self.limit

    def close(self) -> None:
        """There is nothing to close."""


class PlayedEnv:
    """A real environment, one of it, under the same face."""

    def __init__(self, envs: ReplayedEnvs) -> None:
        self.envs = envs
        self._first_number = int(envs.obs_space.start)  # type: ignore[attr-defined]

    @property
    def drift(self) -> str | None:
        return self.envs.drift

    def start(self) -> int:
        return int(self.envs.start()[0]) - self._first_number

    def next_episode(self) -> int:
        return int(self.envs.next_episode(np.ones(1, bool))[0]) - self._first_number

    def step(self, action: int) -> Step:
        t = self.envs.step(np.array([action]))
        state = int(t.obs[0]) - self._first_number
        return state, float(t.reward[0]), bool(t.terminated[0]), bool(t.truncated[0])

    def close(self) -> None:
        self.envs.close()

    def state_dict(self) -> dict[str, Any]:
        return self.envs.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.envs.load_state_dict(state)


class TableShaping:
    """Potential-based shaping, with Phi of every state in a list."""

    def __init__(self, shaping: Shaping, states: Array) -> None:
        """states: [S], as the environment numbers them. Raises UserError where the potential is not a number."""
        self.gamma = shaping.gamma
        self.phi: list[float] = shaping.check(states).tolist()

    def shaped(self, state: int, outcome: Step) -> Step:
        """Return what came of a step from `state`, with the learner's reward."""
        next_state, reward, terminated, truncated = outcome
        following = 0.0 if terminated else self.gamma * self.phi[next_state]
        return next_state, reward + following - self.phi[state], terminated, truncated


class TabularCollector(Stateful):
    """One environment, the state that it is in, and the statistics of its episodes.

    It is to a table what `Collector` is to a network: the one counter of environment steps, too.
    """

    transient: ClassVar[frozenset[str]] = frozenset({"available", "maps", "shaping"})

    def __init__(
        self, envs: PlayedModel | PlayedEnv, available: Array, maps: list[GridMap], shaping: TableShaping | None = None
    ) -> None:
        self.envs = envs
        self.available = available  # [S, A] bool, which actions a state has
        self.maps = maps
        self.shaping = shaping
        self.steps = 0
        self.state = self.envs.start()
        self.episode_return = 0.0
        self.episode_length = 0
        self.recent_returns: deque[float] = deque(maxlen=RECENT)
        self.recent_lengths: deque[int] = deque(maxlen=RECENT)
        self.episodes: list[dict[str, float]] = []

    def step(self, action: int) -> Step:
        """Take the action; return what came of it.

        Afterwards `state` is the next state, or the first one of the next episode if this one is over.
        """
        state = self.state
        self.state, reward, terminated, truncated = outcome = self.envs.step(action)
        self.steps += 1
        self.episode_return += reward
        self.episode_length += 1
        if terminated or truncated:
            self._finish_episode()
        return outcome if self.shaping is None else self.shaping.shaped(state, outcome)

    def pop_episodes(self) -> list[dict[str, float]]:
        """Return the episodes that ended since the last call: step, env, return and length of each."""
        episodes, self.episodes = self.episodes, []
        return episodes

    @property
    def obs(self) -> Array:
        """The present observation, [1]."""
        return np.array([self.state])

    def bytes_per_step(self) -> int:
        """Return the memory that one stored environment step takes: none is stored."""
        return 0

    def _finish_episode(self) -> None:
        score, length = self.episode_return, self.episode_length
        self.recent_returns.append(score)
        self.recent_lengths.append(length)
        self.episodes.append({"step": self.steps, "env": 0, "return": score, "length": length})
        self.episode_return, self.episode_length = 0.0, 0
        self.state = self.envs.next_episode()


def make_tabular_collector(spec: EnvSpec, seeds: Seeds, name: str, shaping: Shaping | None = None) -> TabularCollector:
    """Return a collector for an environment with Discrete spaces; `name` is that of its generator."""
    model = spec.model()
    if model is not None:
        table = None if shaping is None else TableShaping(shaping, np.arange(model.num_states))
        played = PlayedModel(model, random.Random(seeds.entropy(name)))
        return TabularCollector(played, model.available, model.maps, table)
    envs = ReplayedEnvs(spec.make(1), seeds.numpy(name), TRAINING_SEEDS)
    shape = (int(envs.obs_space.n), int(envs.action_space.n))  # type: ignore[attr-defined]
    states = np.arange(shape[0]) + envs.obs_space.start  # type: ignore[attr-defined]
    table = None if shaping is None else TableShaping(shaping, states)
    return TabularCollector(PlayedEnv(envs), np.ones(shape, bool), [], table)


def cumulative(probabilities: Array) -> list[list[float]]:
    """Return, for each row [N, M], the M - 1 numbers that `bisect` tells from a uniform one which index is drawn."""
    sums = np.cumsum(probabilities, axis=1)
    # Rounding must leave nothing for the indices of probability 0 at the end.
    return (sums / sums[:, -1:])[:, :-1].tolist()


def _by_chance(outcomes: list[Outcome]) -> tuple[list[float], list[tuple[int, float, bool]]]:
    """Return what `bisect` draws an index by, and the outcomes of the indices."""
    return list(accumulate(p for p, *_ in outcomes))[:-1], [(s, r, end) for _, s, r, end in outcomes]
