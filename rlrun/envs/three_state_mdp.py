"""The three-state Markov decision process that Géron's chapter on reinforcement learning works through.

In s0 a little is earned for ever; the way through s1 costs 50 and leads to s2, where 40 are won on the way
back. Which is better depends on how far one looks ahead: with gamma .90 the best is to wait in s1 once
there, with .95 to go on. Not every state has every action.

Géron (2025), "Hands-On Machine Learning with Scikit-Learn and PyTorch", chapter 19 (18 in the editions with
TensorFlow), example of a Markov decision process.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

# P[state][action] = [(probability, next state, reward, terminated), ...], as in Gymnasium's toy text.
DYNAMICS: dict[int, dict[int, list[tuple[float, int, float, bool]]]] = {
    0: {
        0: [(0.7, 0, 10.0, False), (0.3, 1, 0.0, False)],
        1: [(1.0, 0, 0.0, False)],
        2: [(0.8, 0, 0.0, False), (0.2, 1, 0.0, False)],
    },
    1: {0: [(1.0, 1, 0.0, False)], 2: [(1.0, 2, -50.0, False)]},
    2: {1: [(0.8, 0, 40.0, False), (0.1, 1, 0.0, False), (0.1, 2, 0.0, False)]},
}


class ThreeStateMDP(gymnasium.Env):
    """Begins in s0 and never ends by itself. An action that the state does not have changes nothing.

    Staying put for nothing is never better than the best action here, so that the optimum is the book's for
    algorithms, too, that do not know which actions exist; `info["action_mask"]` tells.
    """

    observation_space = spaces.Discrete(3)
    action_space = spaces.Discrete(3)
    P = DYNAMICS
    initial_state_distrib = np.array([1.0, 0.0, 0.0])

    def __init__(self) -> None:
        self.state = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = 0
        return self.state, self._info()

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        outcomes = self.P[self.state].get(int(action), [(1.0, self.state, 0.0, False)])
        chosen = self.np_random.choice(len(outcomes), p=[p for p, *_ in outcomes])
        _, self.state, reward, terminated = outcomes[chosen]
        return self.state, reward, terminated, False, self._info()

    def _info(self) -> dict[str, Any]:
        return {"action_mask": np.array([a in self.P[self.state] for a in range(3)], np.int8)}


gymnasium.register("rlrun/ThreeStateMDP-v0", f"{__name__}:{ThreeStateMDP.__name__}", max_episode_steps=100)
