"""A policy as a function of raw observations, and that function as ONNX."""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rlrun.build import Agent
from rlrun.data.collector import State
from rlrun.envs.normalizer import CLIP, EPSILON
from rlrun.errors import UserError
from rlrun.seeding import preserved_rng

PROBES = 64  # observations that tell what a policy does


class ExportedPolicy(nn.Module):
    """`act` of any algorithm as a function of raw observations, ending in what the environment's `step` takes.

    Observation normalisation is part of it. Raises UserError for a policy that is no such function: one that
    remembers, draws random numbers, or is no network.
    """

    def __init__(self, agent: Agent) -> None:
        super().__init__()
        self.algorithm, self.space = agent.algorithm, agent.algorithm.setup.action_space
        self.networks = nn.ModuleDict(agent.algorithm.acting_networks())
        self.normalized = agent.spec.normalize_obs
        moments = agent.normalizer.obs_moments
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.from_numpy(np.asarray(moments.mean)))
        self.register_buffer("deviation", torch.from_numpy(np.asarray(np.sqrt(moments.var + EPSILON))))
        self._check()
        self.names = ["action"]
        self.names = ["action", *self._score_names()]

    def forward(self, obs: Tensor) -> tuple[Tensor, ...]:
        """obs: [B, *obs] -> actions [B, *act] and, where it is chosen by them, the scores [B, A]."""
        with Argmaxes() as argmaxes, torch.no_grad():
            action, _ = self.act(obs)
        return (self.to_env(action), *argmaxes.scores[: len(self.names) - 1])

    def act(self, obs: Tensor) -> tuple[Tensor, State]:
        """Call the algorithm as evaluation does, on the first step of an episode."""
        if self.normalized:
            obs = ((obs.double() - self.mean) / self.deviation).clamp(-CLIP, CLIP).float()
        elif obs.dtype == torch.float64:
            obs = obs.float()
        return self.algorithm.act(obs, None, torch.ones(obs.shape[0], dtype=torch.bool))

    def to_env(self, action: Tensor) -> Tensor:
        """Shape actions for the environment: clipped where continuous, counted from the space's start."""
        if isinstance(self.space, spaces.Box):
            low, high = torch.from_numpy(self.space.low), torch.from_numpy(self.space.high)
            return action.reshape(-1, *self.space.shape).clamp(low, high)
        start = getattr(self.space, "start", 0)
        return action + torch.as_tensor(start, dtype=action.dtype) if np.any(start) else action

    def random_obs(self, count: int) -> Tensor:
        """Draw observations [count, *obs] from the observation space, the same each time."""
        space = self.algorithm.setup.obs_space
        space.seed(0)
        return torch.from_numpy(np.stack([np.asarray(space.sample()) for _ in range(count)]))

    def _check(self) -> None:
        name = type(self.algorithm).__name__
        if not self.networks:
            raise UserError(f"{name} cannot be exported: its policy is a table or a script, and ONNX is for networks")
        with preserved_rng(0), torch.no_grad():
            before = torch.get_rng_state()
            _, state = self.act(self.random_obs(PROBES))
            draws = not torch.equal(before, torch.get_rng_state())
        if state is not None:
            raise UserError(f"{name} cannot be exported: its policy is recurrent, and a graph of one step forgets")
        if draws:
            raise UserError(f"{name} cannot be exported: its evaluation draws random numbers, and a graph draws none")

    def _score_names(self) -> list[str]:
        """Return the names of what the action is the argmax of; none where it is not chosen that way."""
        if isinstance(self.space, spaces.Discrete):
            sizes, names = [int(self.space.n)], ["scores"]
        elif isinstance(self.space, spaces.MultiDiscrete) and self.space.nvec.ndim == 1:
            sizes = [int(n) for n in self.space.nvec]
            names = [f"scores_{i}" for i in range(len(sizes))]
        else:
            return []
        with Argmaxes() as argmaxes, torch.no_grad():
            action, _ = self.act(self.random_obs(PROBES))
        scores = argmaxes.scores
        if [tuple(s.shape) for s in scores] != [(PROBES, size) for size in sizes]:
            return []
        best = torch.stack([s.argmax(-1) for s in scores], dim=-1)
        return names if torch.equal(best.reshape(action.shape), action) else []


class Argmaxes(TorchFunctionMode):
    """Note what the block takes an argmax of: the log-probabilities or values that a greedy policy chooses by.

    So no algorithm has to say how it chooses.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scores: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") == "argmax":
            self.scores.append(args[0])
        return func(*args, **(kwargs or {}))


def as_onnx(policy: ExportedPolicy) -> bytes:
    """Return the policy as an ONNX file. Raises UserError for a network that ONNX cannot express."""
    example = policy.random_obs(3)  # 0 and 1 would be taken for fixed sizes
    batch = torch.export.Dim("B")
    try:
        with _silence():
            program = torch.onnx.export(
                policy.eval(),
                (example,),
                dynamo=True,
                input_names=["obs"],
                output_names=policy.names,
                dynamic_shapes=({0: batch},),
                verbose=False,
            )
            assert program is not None
            content: bytes = program.model_proto.SerializeToString()
    except Exception as error:  # torch raises of every kind
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{type(policy.algorithm).__name__} cannot be expressed as ONNX: {first_line}") from error
    return content


@contextmanager
def _silence() -> Iterator[None]:
    """Keep the exporter from telling about packages that are not needed and its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
