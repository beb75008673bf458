"""TD(0): learn how good each state is under a policy that does not change.

    V(s) = V_0 for all s
    for step t = 1, 2, ...:
        A = action given by pi for S
        take A, observe R, S'
        V(S) += alpha [R + gamma V(S') - V(S)]
        S = S', or the start of an episode if S' is terminal

Sutton (1988), "Learning to Predict by the Methods of Temporal Differences"; Sutton and Barto (2018),
"Reinforcement Learning: An Introduction", 2nd ed., section 6.1, box on page 120. S states, A actions.
"""

import random
from bisect import bisect
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from rlrun.algos.algorithm import Algorithm, Metrics, Setup, check_range
from rlrun.data.collector import State
from rlrun.data.tabular_collector import Table, cumulative
from rlrun.envs.base import Array
from rlrun.errors import UserError
from rlrun.pictures import value_pictures
from rlrun.run_folder import RunFolder


@dataclass(kw_only=True, eq=False)
class TD(Algorithm):
    action_spaces: ClassVar[tuple[str, ...]] = ("Discrete",)
    obs_spaces: ClassVar[tuple[str, ...] | None] = ("Discrete",)
    eval_greedy: ClassVar[bool] = False  # evaluation plays the policy, which may be random

    policy: str | list[int]
    num_steps: int
    gamma: float
    learning_rate: float
    learning_rate_power: float
    learning_rate_decay: float
    learning_rate_min: float
    initial_value: float

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check()
        self.collector = self.setup.make_tabular_collector()
        available = self.collector.available
        # State, so that a run that goes on has its policy even if the one it came from has learned more since.
        self.pi = Table(fixed_policy(self.policy, available, self.setup))
        self.v = [self.initial_value] * len(available)
        self.visits = [0] * len(available)
        self.rng = random.Random(self.setup.seeds.entropy("policy"))

    def step(self) -> Metrics:
        v, env = self.v, self.collector
        thresholds = cumulative(self.pi.array())
        td_errors = 0.0
        for _ in range(self.num_steps):
            state = env.state
            action = bisect(thresholds[state], self.rng.random())
            next_state, reward, terminated, _ = env.step(action)
            target = reward if terminated else reward + self.gamma * v[next_state]
            td_error = target - v[state]
            alpha = self.step_size(state)
            v[state] += alpha * td_error  # Eq. (6.2)
            td_errors += abs(td_error)
        return {"train/td_error": td_errors / self.num_steps, "train/learning_rate": alpha}

    def step_size(self, state: int) -> float:
        """Count an update of V(s) and return its alpha: alpha_0 / (N(s)^power (1 + decay t)), not below its minimum."""
        self.visits[state] += 1
        slower = self.visits[state] ** self.learning_rate_power * (1 + self.learning_rate_decay * self.collector.steps)
        return max(self.learning_rate / slower, self.learning_rate_min)

    def act(self, obs: Tensor, state: State, first: Tensor) -> tuple[Tensor, State]:
        pi = torch.from_numpy(self.pi.array()).to(obs.device)
        return torch.multinomial(pi[obs - self.setup.obs_space.start], 1).squeeze(1), state  # type: ignore[attr-defined]

    def policy_state_dict(self) -> dict[str, Any]:
        return {"pi": self.pi.state_dict()}

    def load_policy_state_dict(self, state: dict[str, Any]) -> None:
        self.pi.load_state_dict(state["pi"])

    def pictures(self) -> dict[str, bytes]:
        return value_pictures(np.array(self.v), self.pi.array(), self.collector.maps)

    def check(self) -> None:
        check_range("algo.num_steps", self.num_steps, 1)
        for key in ("gamma", "learning_rate", "learning_rate_min"):
            check_range(f"algo.{key}", getattr(self, key), 0, 1)
        check_range("algo.learning_rate_power", self.learning_rate_power, 0)
        check_range("algo.learning_rate_decay", self.learning_rate_decay, 0)


# --- The policy that is evaluated -----------------------------------------------------------------------


def fixed_policy(policy: str | list[int], available: Array, setup: Setup) -> Array:
    """Return pi(a|s), [S, A], of "random", of an action for each state, or of a stored run's folder."""
    if policy == "random":
        return available / available.sum(axis=1, keepdims=True)
    actions = _actions_of_run(policy, setup) if isinstance(policy, str) else policy
    num_states, num_actions = available.shape
    if len(actions) != num_states:
        raise UserError(
            f"algo.policy={policy} has {len(actions)} actions: expected one for each of the {num_states} states"
        )
    for state, action in enumerate(actions):
        if not 0 <= action < num_actions or not available[state, action]:
            having = ", ".join(map(str, np.flatnonzero(available[state])))
            raise UserError(f"algo.policy: state {state} has no action {action}: expected one of {having}")
    return np.eye(num_actions)[actions]


def _actions_of_run(path: str, setup: Setup) -> list[int]:
    """Return what a stored run's best policy does in each state. Raises UserError if it does not fit or is random."""
    from rlrun.inspect_run import load  # builds agents, and so imports the algorithms

    if not RunFolder(Path(path)).exists():
        raise UserError(
            f'algo.policy={path} is neither "random" nor a run folder; a list, algo.policy=[0,1,...], gives the '
            "action of each state"
        )
    run = load(path)
    other = run.agent.algorithm.setup
    if (other.obs_space, other.action_space) != (setup.obs_space, setup.action_space):
        raise UserError(
            f"algo.policy={path} was learned on env={run.agent.spec.name}, with {other.obs_space} and "
            f"{other.action_space}: expected {setup.obs_space} and {setup.action_space}"
        )
    if not getattr(run.agent.algorithm, "eval_greedy", True):
        raise UserError(f"algo.policy={path} draws its actions at random: expected a run with a greedy policy")
    actions = []
    first_state, first_action = other.obs_space.start, other.action_space.start  # type: ignore[attr-defined]
    for state in range(other.obs_space.n):  # type: ignore[attr-defined]
        run.reset()
        actions.append(run.act(state + first_state) - first_action)
    run.agent.close()
    return actions
