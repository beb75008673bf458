"""Episodes side by side, on an environment that never ends one."""

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from rlrun.envs.base import Array, Transition
from rlrun.envs.gym import Gym
from rlrun.episodes import play_episodes


class Endless(gymnasium.Env):
    """Shows its seed and the steps since its reset, and pays the action."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.seed, self.t = seed, 0
        return np.array([seed, 0.0]), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return np.array([self.seed, self.t], float), float(action), False, False, {}


@pytest.fixture
def endless(gym_spec: Any) -> Iterator[Gym]:
    gymnasium.register("Endless-v0", Endless)
    yield gym_spec("Endless-v0")
    del gymnasium.registry["Endless-v0"]


def test_an_episode_that_is_cut_ends_for_the_policy_too(endless: Gym) -> None:
    begun: list[float] = []

    def act(obs: Array, state: Any, first: Array) -> tuple[Array, Any]:
        begun.extend(obs[first, 0])
        assert (obs[first, 1] == 0).all()
        # What a recurrent policy has: a memory of the episode that it must drop at the next.
        steps = np.where(first, 0, 0 if state is None else state) + 1
        return np.minimum(steps, 3) - 2 > 0, steps

    result = play_episodes(endless.make(4), act, list(range(10)), max_steps=5)
    assert result is not None
    assert sorted(begun) == list(range(10))
    assert result.lengths == [5] * 10
    assert result.returns == [3.0] * 10  # paid from the third step of each episode on


def test_a_lost_life_is_the_beginning_of_an_episode_to_the_policy_and_not_to_the_game() -> None:
    class Lives:
        """A game of six steps with a life lost in the third."""

        num_envs = 1

        def reset(self, which: Array, seeds: Array) -> Array:
            self.t = 0
            return np.zeros(1)

        def step(self, action: Array, active: Array | None = None) -> Transition:
            self.t += 1
            over = np.array([self.t == 6])
            return Transition(np.full(1, self.t), np.ones(1), over | (self.t == 3), np.zeros(1, bool), over)

    begun: list[float] = []

    def act(obs: Array, state: Any, first: Array) -> tuple[Array, Any]:
        begun.extend(obs[first])
        return np.zeros(1), state

    result = play_episodes(Lives(), act, [1, 2], max_steps=9)  # type: ignore[arg-type]
    assert result is not None
    assert result.lengths == [6, 6]
    assert begun == [0, 3, 0, 3]
