"""Environments whose state can be saved although no simulator here can save its own.

An environment is a deterministic function of its seed and the actions since. So that is the state: the
seed of each environment's last fresh start, and the log of its actions. Restoring replays the log on a
fresh start. To keep the log short, an environment starts afresh, with a new seed, at the first episode's
end after `reseed_after` logged steps; the rule looks at the log alone, so that an undisturbed run follows
it too.
"""

import hashlib
from typing import Any

import numpy as np
import torch

from rlrun.envs.base import NO_SEED, Array, Envs, Transition

RESEED_AFTER = 4_000  # logged steps; 18,000 of 8 Breakouts replay in 10 s on 2 cores


class ReplayedEnvs:
    """Envs plus `state_dict` and `load_state_dict`. `rng` draws the seeds of fresh starts from `seeds`."""

    def __init__(self, envs: Envs, rng: np.random.Generator, seeds: range, reseed_after: int = RESEED_AFTER) -> None:
        self.envs, self.rng, self.seeds, self.reseed_after = envs, rng, seeds, reseed_after
        self.num_envs, self.obs_space, self.action_space = envs.num_envs, envs.obs_space, envs.action_space
        self.drift: str | None = None  # what a restore found different, if anything
        self._seed = np.zeros(self.num_envs, np.int64)
        self._log: list[list[Array]] = [[] for _ in range(self.num_envs)]
        self._obs: Array = np.zeros(0)

    def start(self) -> Array:
        """Start every environment afresh; return the observations [B, *obs]."""
        everyone = np.ones(self.num_envs, bool)
        return self._fresh_start(everyone)

    def step(self, action: Array) -> Transition:
        """Step all with action: [B, *act]. Environments whose episode is over wait for `next_episode`."""
        action = np.array(action)  # a copy: a policy may reuse the buffer that it returned
        for log, a in zip(self._log, action, strict=True):
            log.append(a)
        transition = self.envs.step(action)
        self._obs = transition.obs
        return transition

    def next_episode(self, over: Array) -> Array:
        """Begin the next episode where over: [B] bool; return all observations [B, *obs]."""
        stale = over & np.array([len(log) >= self.reseed_after for log in self._log])
        if (over & ~stale).any():
            self._obs = self.envs.reset(over & ~stale, np.full(self.num_envs, NO_SEED))
        return self._fresh_start(stale) if stale.any() else self._obs

    def close(self) -> None:
        self.envs.close()

    def _fresh_start(self, mask: Array) -> Array:
        for i in np.flatnonzero(mask):
            self._seed[i] = self.seeds[int(self.rng.integers(len(self.seeds)))]
            self._log[i] = []
        self._obs = self.envs.reset(mask, np.where(mask, self._seed, NO_SEED))
        return self._obs

    def state_dict(self) -> dict[str, Any]:
        return {
            "rng": self.rng.bit_generator.state,
            "seed": self._seed.tolist(),
            "log": [torch.from_numpy(np.array(log)) for log in self._log],
            "obs_sha256": _digest(self._obs),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rng.bit_generator.state = state["rng"]
        self._seed = np.array(state["seed"], np.int64)
        self._log = [list(log.numpy()) for log in state["log"]]
        self._replay()
        if _digest(self._obs) != state["obs_sha256"]:
            self.drift = (
                "replaying its actions led this environment to another observation than the one it was "
                "stopped at: it does not depend on its seed and actions alone"
            )

    def _replay(self) -> None:
        """Bring every environment to the end of its log. The logs end together, so they start staggered."""
        lengths = np.array([len(log) for log in self._log])
        longest = int(lengths.max())
        starts = longest - lengths
        idle = self._log[int(lengths.argmax())][0] * 0 if longest else np.zeros(())
        self._obs = self.envs.reset(starts == 0, np.where(starts == 0, self._seed, NO_SEED))
        for t in range(longest):
            active = starts <= t
            rows = [log[t - s] if s <= t else idle for log, s in zip(self._log, starts, strict=True)]
            transition = self.envs.step(np.array(rows), active)
            self._obs = transition.obs
            if transition.over.any():
                self._obs = self.envs.reset(transition.over, np.full(self.num_envs, NO_SEED))
            begin = starts == t + 1
            if begin.any():
                self._obs = self.envs.reset(begin, np.where(begin, self._seed, NO_SEED))


def _digest(obs: Array) -> str:
    return hashlib.sha256(np.ascontiguousarray(obs).tobytes()).hexdigest()
