"""Who is imitated: a policy written by hand, or that of a stored run. B environments."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from rlrun.algos.algorithm import Setup
from rlrun.data.collector import State, to_policy
from rlrun.envs import scripts
from rlrun.envs.base import Array
from rlrun.errors import UserError
from rlrun.run_folder import RunFolder
from rlrun.seeding import preserved_rng

if TYPE_CHECKING:
    from rlrun.build import Agent

KEY, CHECKPOINT = "algo.expert", "algo.expert_checkpoint"


class Expert(Protocol):
    """What it takes to be imitated. It is state of the run that imitates it."""

    def begin(self, *, new: bool) -> dict[str, Any]:
        """See `Algorithm.begin`."""

    def act(self, obs: Array, state: State, first: Tensor) -> tuple[Tensor, State]:
        """obs: [B, *obs], raw; `state`: its own memory, None at first -> actions [B, *act], Discrete from 0."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class ScriptedExpert:
    """A policy of rlrun/envs/scripts.py, or a user's own function."""

    def __init__(self, name: str | None, env_id: str | None, setup: Setup) -> None:
        self.name, self.env_id, self.setup = name, env_id, setup
        self.policy: scripts.ScriptedPolicy | None = None

    def begin(self, *, new: bool) -> dict[str, Any]:
        try:
            script = scripts.find(self.name, self.env_id, KEY)
        except UserError as error:
            raise UserError(f"{error}; or it is the folder of a run") from error
        name = f"{KEY}={self.name or script.__name__}"
        self.policy = scripts.ScriptedPolicy(name, script, self.setup.action_space)
        self.policy.check(self.setup.collectors[0].obs)
        return {}

    def act(self, obs: Array, state: State, first: Tensor) -> tuple[Tensor, State]:
        if self.policy is None:
            self.begin(new=True)
        assert self.policy is not None
        return torch.from_numpy(self.policy.actions(obs)).to(first.device), state

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """There is nothing to restore: what it does depends on the observation alone."""


class StoredExpert:
    """The policy of a stored run, as it was when the run that imitates it began.

    That run is not needed again: its configuration and the policy's weights are state of this one.
    """

    def __init__(self, path: str, checkpoint: str, greedy: bool, setup: Setup) -> None:
        self.path, self.checkpoint, self.greedy, self.setup = path, checkpoint, greedy, setup
        self.rng = setup.seeds.numpy("expert")
        self.stored: dict[str, Any] = {}
        self.agent: Agent | None = None

    def begin(self, *, new: bool) -> dict[str, Any]:
        if not new:
            return {}
        from rlrun.inspect_run import load  # builds agents, and so imports the algorithms

        try:
            run = load(self.path, self.checkpoint, asdict(self.setup.device))
        except UserError as error:
            raise UserError(f"{KEY}={self.path} {CHECKPOINT}={self.checkpoint}: {error}") from error
        self._check_spaces(run.agent)
        self._check_samples(run.agent)
        algorithm, normalizer = run.agent.algorithm, run.agent.normalizer
        record = RunFolder(run.path).record()
        self.stored = {
            "config": run.config,
            "import_paths": record.get("import_paths", []),
            "policy": algorithm.policy_state_dict(),
            "normalizer": normalizer.state_dict(),
        }
        self._take(run.agent)
        return {KEY: run.origin(self.checkpoint)}

    def act(self, obs: Array, state: State, first: Tensor) -> tuple[Tensor, State]:
        if self.agent is None:
            self.begin(new=True)
        agent = self.agent
        assert agent is not None
        observed = to_policy(obs, agent.normalizer if agent.spec.normalize_obs else None, agent.device.torch)
        with torch.no_grad(), self._own_draws():
            return agent.algorithm.act(observed, state, first)

    def state_dict(self) -> dict[str, Any]:
        return {**self.stored, "rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        from rlrun.config import make_importable
        from rlrun.inspect_run import revived

        self.rng.bit_generator.state = state["rng"]
        self.stored = {name: value for name, value in state.items() if name != "rng"}
        make_importable(self.stored["import_paths"])
        # On this session's device: a run may go on on another one than it began on.
        stored = self.stored["config"]
        config = {**stored, "device": {**stored["device"], **asdict(self.setup.device)}}
        self._take(revived(config, self.stored))

    def _take(self, agent: "Agent") -> None:
        from rlrun.inspect_run import make_greedy

        if self.greedy:
            make_greedy(agent.algorithm)
        elif hasattr(agent.algorithm, "eval_greedy"):
            agent.algorithm.eval_greedy = False
        agent.close()  # its environments are not played
        self.agent = agent

    def _own_draws(self) -> AbstractContextManager[None]:
        """Let a policy that draws its actions draw them from generators of this expert's."""
        assert self.agent is not None
        draws = not self.greedy or not getattr(type(self.agent.algorithm), "eval_greedy", True)
        return preserved_rng(int(self.rng.integers(2**63))) if draws else nullcontext()

    def _check_samples(self, agent: "Agent") -> None:
        algorithm = agent.algorithm
        if not (self.greedy or hasattr(algorithm, "eval_greedy") or getattr(algorithm, "eval_epsilon", 0) > 0):
            raise UserError(
                f"algo.expert_greedy=false: the policy of {KEY}={self.path} ({type(algorithm).__name__}) draws nothing "
                "where it is evaluated, so there is only its greedy action to imitate: leave it out"
            )

    def _check_spaces(self, agent: "Agent") -> None:
        theirs, own = agent.algorithm.setup, self.setup
        if (theirs.obs_space, theirs.action_space) != (own.obs_space, own.action_space):
            raise UserError(
                f"{KEY}={self.path} was learned on env={agent.spec.name}, with {theirs.obs_space} and "
                f"{theirs.action_space}: expected {own.obs_space} and {own.action_space}"
            )


def make_expert(name: str | None, checkpoint: str, greedy: bool, env_id: str | None, setup: Setup) -> Expert:
    """Return the expert that is a run's folder, a name or dotted path of a script, or, for None, the env's script."""
    # A path with a slash is one of a run even if nothing is there (any more): no script is called so.
    if name is not None and ("/" in name or RunFolder(Path(name)).exists()):
        return StoredExpert(name, checkpoint, greedy, setup)
    return ScriptedExpert(name, env_id, setup)
