"""Potential-based reward shaping: a hint to the learner that leaves the best policy the best.

    r' = r + gamma Phi(s') - Phi(s)        with Phi = 0 in a terminal state

Over an episode the extra rewards telescope to gamma^T Phi(s_T) - Phi(s_0), which no policy can change but by where
it is cut short. The better Phi resembles the optimal value function, the less is left to be learned; in particular
it should be near 0 where an episode terminates well, or the last step takes back all that was given.

Ng, Harada and Russell (1999), "Policy Invariance Under Reward Transformations: Theory and Application to Reward
Shaping". B environments, S states.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlrun.envs.base import Array, Envs
from rlrun.errors import RunFailed, UserError
from rlrun.imports import imported

Potential = Callable[[Array], Array]  # raw observations [B, *obs] -> Phi [B]


@dataclass(frozen=True)
class Shaping:
    """A potential and the discount of the algorithm that learns with it."""

    path: str  # module.function
    potential: Potential
    gamma: float

    @classmethod
    def of(cls, path: str, algo: Mapping[str, Any], envs: Envs) -> "Shaping":
        """Return the shaping by the function that `env.potential` names, for an algorithm with such a configuration.

        Raises UserError if there is no such function, if it does not take the observations of `envs`, or if the
        algorithm does not learn from discounted rewards.
        """
        if "gamma" not in algo:
            raise UserError(
                f"env.potential={path} shapes discounted rewards, and algo={algo['_target_']} has no gamma to discount "
                "them with: leave it out"
            )
        shaping = cls(path, imported("env.potential", path), algo["gamma"])
        obs = envs.reset(np.ones(envs.num_envs, bool), np.zeros(envs.num_envs, np.int64))
        shaping.check(np.repeat(obs, 2, axis=0))  # of one row, a number for all would look like one for each
        return shaping

    def shaped(self, reward: Array, obs: Array, next_obs: Array, terminated: Array) -> Array:
        """Return the rewards that the learner gets, [B].

        reward: [B]; obs, next_obs: [B, *obs], before and after the step and before any reset; terminated: [B] bool.
        """
        return reward + self.gamma * self.phi(next_obs, counts=~terminated) - self.phi(obs)

    def phi(self, obs: Array, counts: Array | None = None) -> Array:
        """Return Phi(s), [B] float64, and 0 where it does not count.

        Raises RunFailed if the function fails or returns anything else than B finite numbers.
        """
        try:
            # A copy: these are the collector's own observations, and a function may change what it is given.
            values = np.asarray(self.potential(obs.copy()), np.float64)
        except Exception as error:  # whatever the function makes of them
            raise RunFailed(f"env.potential={self.path} fails: {type(error).__name__}: {error}") from error
        expected = f"expected {len(obs)} finite numbers for observations of shape {obs.shape}"
        if values.shape != (len(obs),):
            raise RunFailed(f"env.potential={self.path} returned an array of shape {values.shape}; {expected}")
        if counts is not None:
            values = np.where(counts, values, 0.0)
        if not np.isfinite(values).all():
            wrong = int(np.flatnonzero(~np.isfinite(values))[0])
            where = np.array2string(obs[wrong].ravel(), threshold=8)
            raise RunFailed(f"env.potential={self.path} returned {values[wrong]} at {where}; {expected}")
        return values

    def check(self, obs: Array) -> Array:
        """Return Phi(s) of observations, [B]. Raises UserError where `phi` would stop a run."""
        try:
            return self.phi(obs)
        except RunFailed as error:
            raise UserError(str(error)) from error
