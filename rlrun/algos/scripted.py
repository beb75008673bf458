"""A policy written by hand: the bar that learning has to clear where people know what to do.

    for iteration = 1, 2, ...:
        step the environments with a = script(s); learn nothing

The policies are in rlrun/envs/scripts.py, or yours: algo.script=module.function, a function from raw
observations [B, *obs] to actions [B, *act] that depends on its argument alone. B environments.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rlrun.algos.algorithm import Algorithm, Metrics, check_range
from rlrun.data.collector import Batch, State
from rlrun.envs import scripts
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
        script = scripts.find(self.script, self.env_id)
        name = f"algo.script={self.script or script.__name__}"
        self.by_hand = scripts.ScriptedPolicy(name, script, self.setup.action_space)
        self.collector = self.setup.make_collector(self.num_envs)
        if self.collector.normalize_obs:
            raise UserError(
                "env.normalize_obs=true hides from algo=scripted what it was written for: leave env.normalize_obs=false"
            )
        self.by_hand.check(self.collector.obs)

    def step(self) -> Metrics:
        self.batch = self.collector.collect(self.policy, self.num_steps)
        return {}

    def policy(self, obs: Tensor, state: State, first: Tensor) -> tuple[Batch, State]:
        return {"action": self.actions(obs)}, state

    def act(self, obs: Tensor, state: State, first: Tensor) -> tuple[Tensor, State]:
        return self.actions(obs), state

    def actions(self, obs: Tensor) -> Tensor:
        return torch.from_numpy(self.by_hand.actions(obs.cpu().numpy())).to(obs.device)

    def stored_steps(self) -> int:
        return self.num_envs * self.num_steps
