"""Episodes made up at random, and the replay as one would write it without a thought for memory: a list."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rlrun.data.prioritized import PrioritizedReplay
from rlrun.data.replay import PADDING, Replay
from rlrun.data.ring import Ring
from rlrun.envs.normalizer import Normalizer

Batch = dict[str, Tensor]
GAMMA = 0.5  # and rewards are small integers: sums are exact, whatever their order
CPU = torch.device("cpu")


@dataclass
class Step:
    """One transition; `obs` and `next_obs` are whole observations."""

    obs: np.ndarray
    action: int
    reward: float
    terminated: bool
    truncated: bool
    next_obs: np.ndarray


class Experience:
    """Environments that do as they like: episodes end in every way that any environment's can.

    `steps[b]` lists all that environment b went through; an action is the number of its step in that list.
    With `frame_stack` the frames of an episode's first stack are of any kind, as environments differ in that.
    """

    def __init__(self, num_envs: int, obs_space: spaces.Space, frame_stack: int, seed: int) -> None:
        self.num_envs, self.space, self.frame_stack = num_envs, obs_space, frame_stack
        self.rng = np.random.default_rng(seed)
        self.steps: list[list[Step]] = [[] for _ in range(num_envs)]
        self.obs = [self.first_obs() for _ in range(num_envs)]

    def first_obs(self) -> np.ndarray:
        if isinstance(self.space, spaces.Discrete):
            return np.array(self.rng.integers(self.space.n))
        if self.space.dtype == np.uint8:
            return self.rng.integers(256, size=self.space.shape, dtype=np.uint8)
        return self.rng.normal(size=self.space.shape).astype(np.float32)

    def next_obs(self, obs: np.ndarray) -> np.ndarray:
        new = self.first_obs()
        return new if self.frame_stack == 1 else np.concatenate([obs[1:], new[-1:]])

    def collect(self, num_steps: int) -> Batch:
        """Return what a raw collector returns for so many steps."""
        rows: dict[str, list[list[Any]]] = {
            name: [] for name in ("obs", "action", "reward", "terminated", "truncated", "over")
        }
        finals = []
        for _ in range(num_steps):
            row: dict[str, list[Any]] = {name: [] for name in rows}
            for b in range(self.num_envs):
                terminated, truncated, over = self.end()
                after = self.next_obs(self.obs[b])
                step = Step(
                    self.obs[b],
                    len(self.steps[b]),
                    float(self.rng.integers(-8, 9)),
                    terminated,
                    truncated,
                    after,
                )
                self.steps[b].append(step)
                for name in ("obs", "action", "reward", "terminated", "truncated"):
                    row[name].append(getattr(step, name))
                row["over"].append(over)
                if truncated:
                    finals.append(after)
                self.obs[b] = self.first_obs() if over else after
            for name, values in row.items():
                rows[name].append(values)
        batch = {name: torch.from_numpy(np.array(values)) for name, values in rows.items()}
        batch["reward"] = batch["reward"].float()
        shape = self.space.shape or ()
        batch["final_obs"] = torch.from_numpy(np.array(finals)) if finals else batch["obs"][:0].reshape(0, *shape)
        return batch

    def end(self) -> tuple[bool, bool, bool]:
        """Return terminated, truncated and over: nothing ends, the game does, a life does, or time is up."""
        kinds = {
            (False, False, False): 0.72,
            (True, False, True): 0.08,
            (False, True, True): 0.08,
            (True, True, True): 0.04,
            (True, False, False): 0.08,
        }
        return list(kinds)[self.rng.choice(len(kinds), p=list(kinds.values()))]

    def n_step(self, b: int, i: int, n: int, gamma: float = GAMMA) -> tuple[float, float, np.ndarray]:
        """Return the return over at most n steps from step i of environment b, the discount, and what follows."""
        total, k = 0.0, 0
        while True:
            step = self.steps[b][i + k]
            total += gamma**k * step.reward
            k += 1
            if step.terminated:
                return total, 0.0, step.next_obs
            if step.truncated or k == n:
                return total, gamma**k, step.next_obs


PICTURES = spaces.Box(0, 255, (4, 3, 3), np.uint8)
VECTORS = spaces.Box(-np.inf, np.inf, (3,), np.float64)
NUMBERS = spaces.Discrete(1000)


def make_replay(
    folder: Path | None,
    obs_space: spaces.Space = VECTORS,
    *,
    num_envs: int = 1,
    capacity: int = 60,
    num_steps: int = 12,
    slack: int = 40,
    n_steps: int = 1,
    gamma: float = GAMMA,
    frame_stack: int = 1,
    alpha: float | None = None,
    seed: int = 0,
    normalizer: Normalizer | None = None,
    action_space: spaces.Space | None = None,
    on_device: bool = False,
) -> Any:
    """Return a Replay, or a PrioritizedReplay with `alpha`."""
    fields: dict[str, Any] = {
        "folder": folder,
        "obs_space": obs_space,
        "action_space": action_space or spaces.Discrete(10**9),
        "num_envs": num_envs,
        "capacity": capacity,
        "num_steps": num_steps,
        "slack": slack,
        "n_steps": n_steps,
        "gamma": gamma,
        "frame_stack": frame_stack,
        "generator": np.random.default_rng(seed),
        "device": CPU,
        "normalizer": normalizer,
        "normalize_obs": normalizer is not None,
        "normalize_reward": normalizer is not None,
        "on_device": on_device,
    }
    return Replay(**fields) if alpha is None else PrioritizedReplay(**fields, alpha=alpha)


def drawable(replay: Replay) -> tuple[np.ndarray, np.ndarray]:
    """Return the streams and numbers of all steps within the capacity whose n-step future is stored."""
    ring: Ring = replay.ring
    streams, records = [], []
    for b in range(replay.num_envs):
        for record in range(int(ring.tail[b]), int(ring.head[b]) - replay.n_steps):
            if not ring.read("flags", ring.position(np.array(b), np.array(record))) & PADDING:
                streams.append(b)
                records.append(record)
    return np.array(streams, int), np.array(records, int)


def copied(batch: Batch) -> Batch:
    """Return the batch in memory of its own: what a replay returns is overwritten by its next sample."""
    return {name: tensor.clone() for name, tensor in batch.items()}


def same(one: Sequence[Batch], other: Sequence[Batch]) -> bool:
    """Say whether two lists of batches are equal bit for bit."""
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) for a, b in zip(one, other, strict=True)
    )
