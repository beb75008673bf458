"""Episodes played by a policy, side by side. Imports no torch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlrun.envs.base import NO_SEED, Array, Envs

State = Any  # a recurrent policy's memory; None for the others
Act = Callable[
    [Array, State, Array], tuple[Array, State]
]  # obs [B, *obs], state, first [B] -> actions [B, *act], state

MAX_PARALLEL = 10  # episodes played side by side


@dataclass
class Evaluation:
    """The episodes of one evaluation, in the order of their seeds."""

    seeds: list[int]
    returns: list[float]
    lengths: list[int]

    @property
    def mean_return(self) -> float:
        return float(np.mean(self.returns))

    @property
    def std_return(self) -> float:
        return float(np.std(self.returns))

    @property
    def mean_length(self) -> float:
        return float(np.mean(self.lengths))

    def row(self) -> dict[str, Any]:
        return {
            "mean_return": self.mean_return,
            "std_return": self.std_return,
            "returns": self.returns,
            "lengths": self.lengths,
            "seeds": self.seeds,
        }


def play_episodes(
    envs: Envs, act: Act, seeds: list[int], max_steps: int, interrupted: Callable[[], bool] = lambda: False
) -> Evaluation | None:
    """Play one episode for each seed and return them all, or None if interrupted.

    Each environment takes the next seed when it is free, and every episode begun is played to its end, or cut
    after `max_steps` agent steps: stopping at the first so many that finish would favour short episodes. There
    may be no more environments than seeds.
    """
    num_envs, state = envs.num_envs, None
    result = Evaluation(seeds, [0.0] * len(seeds), [0] * len(seeds))
    episode = np.arange(num_envs)  # which one each environment plays
    waiting = iter(range(num_envs, len(seeds)))
    active, first = np.ones(num_envs, bool), np.ones(num_envs, bool)
    obs = envs.reset(active, np.array(seeds[:num_envs]))
    while active.any():
        if interrupted():
            return None
        action, state = act(obs, state, first)
        transition = envs.step(action, active)
        obs = transition.obs
        begin = np.zeros(num_envs, bool)
        for b in np.flatnonzero(active):
            result.returns[episode[b]] += float(transition.reward[b])
            result.lengths[episode[b]] += 1
            if transition.over[b] or result.lengths[episode[b]] >= max_steps:
                following = next(waiting, None)
                active[b] = begin[b] = following is not None
                episode[b] = episode[b] if following is None else following
        # Games that have no episode left still step along where environments step together.
        restart = begin | (transition.over & ~active)
        first = restart | transition.terminated  # as in training: a lost life may begin an episode
        if restart.any():
            new = [seeds[e] if fresh else NO_SEED for e, fresh in zip(episode, begin, strict=True)]
            obs = envs.reset(restart, np.array(new))
    return result
