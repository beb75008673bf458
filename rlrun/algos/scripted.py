"""A policy written by hand: the bar that learning has to clear where people know what to do.

    for iteration = 1, 2, ...:
        step the environments with a = script(s); learn nothing

The policies are in rlrun/envs/scripts.py, or yours: algo.script=module.function, a function from raw
observations [B, *obs] to actions [B, *act] that depends on its argument alone. B environments.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rlrun.algos.algorithm import Algorithm, Metrics, check_range
from rlrun.data.collector import Batch, State
from rlrun.envs import scripts
from rlrun.envs.base import Array
from rlrun.errors import UserError


@dataclass(kw_only=True, eq=False)
class Scripted(Algorithm):
    action_spaces: ClassVar[tuple[str, ...]] = ("Discrete", "MultiDiscrete", "MultiBinary", "Box")
    transient: ClassVar[frozenset[str]] = Algorithm.transient | {"by_hand"}

    script: str | None
    env_id: str | None
    num_envs: int
    num_steps: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("algo.num_envs", self.num_envs, 1)
        check_range("algo.num_steps", self.num_steps, 1)
        self.by_hand = scripts.find(self.script, self.env_id)
        self.collector = self.setup.make_collector(self.num_envs)
        if self.collector.normalize_obs:
            raise UserError(
                "env.normalize_obs=true hides from algo=scripted what it was written for: leave env.normalize_obs=false"
            )
        self.check_script()

    def step(self) -> Metrics:
        self.batch = self.collector.collect(self.policy, self.num_steps)
        return {}

    def policy(self, obs: Tensor, state: State, first: Tensor) -> tuple[Batch, State]:
        return {"action": self.actions(obs)}, state

    def act(self, obs: Tensor, state: State, first: Tensor) -> tuple[Tensor, State]:
        return self.actions(obs), state

    def actions(self, obs: Tensor) -> Tensor:
        """Return actions as policies give them: Discrete ones are counted from 0."""
        space: Any = self.setup.action_space
        action = self.as_written(obs.cpu().numpy())
        if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
            action = action - space.start
        return torch.from_numpy(action).to(obs.device)

    def as_written(self, obs: Array) -> Array:
        """Return the script's actions, [B, *act], in the action space's type."""
        # A copy: these are the collector's own observations, and a script may change what it is given.
        action = np.asarray(self.by_hand(obs.copy()))
        space = self.setup.action_space
        if isinstance(space, spaces.Box):
            return action.astype(space.dtype)
        return action.astype(np.int64) if action.dtype.kind == "b" else action

    def stored_steps(self) -> int:
        return self.num_envs * self.num_steps

    def check_script(self) -> None:
        """Raise UserError unless the script takes the first observations and returns actions of the space."""
        obs, space = self.collector.obs, self.setup.action_space
        name = f"algo.script={self.script or self.by_hand.__name__}"
        expected = f"expected {len(obs)} actions of {space} for observations of shape {obs.shape}"
        try:
            action = self.as_written(obs)
        except Exception as error:  # whatever the script makes of them
            raise UserError(f"{name} fails: {type(error).__name__}: {error}; {expected}") from error
        shape = (len(obs), *(space.shape or ()))
        # A continuous action may lie outside of the bounds: the environment clips it.
        continuous = isinstance(space, spaces.Box)
        if action.shape != shape or not (np.isfinite(action).all() if continuous else all(map(space.contains, action))):
            raise UserError(f"{name} returned {action.dtype} {action.tolist()}; {expected}")
