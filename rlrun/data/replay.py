"""Experience replay: what happened, kept on disk, sampled in any order.

Lin (1992), "Self-improving reactive agents based on reinforcement learning, planning and teaching". T time,
B environments, M minibatch, n steps of a return.

A record is one step: the newest frame of the observation, the action, the reward and what ended. Frames of
a stack are stored once and put together again on sampling. So that this needs no special cases, a stream
holds every frame that the agent has seen, in order: before an episode's first step come the older frames
of its first stack, after a truncated episode's last step its last observation. These are PADDING: never
drawn, only looked at.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rlrun.data.collector import Batch, to_policy
from rlrun.data.device_frames import FRAME, DeviceFrames
from rlrun.data.ring import Field, Ring
from rlrun.envs.base import Array
from rlrun.envs.normalizer import Normalizer
from rlrun.stateful import Stateful

TERMINATED, TRUNCATED, PADDING = 1, 2, 4


@dataclass(kw_only=True, eq=False)
class Replay(Stateful):
    """The last `capacity` records of B = num_envs environments together, drawn uniformly.

    frame_stack: an observation's first axis shows so many frames, oldest first; 1 stores observations whole.
    num_steps: the most steps of each environment that are added at once.
    slack: records of each environment that may be added between two checkpoints, twice (see `Ring`).
    Observations and rewards are stored raw and leave normalised by what `normalizer` knows when they leave.
    on_device: keep the frames in the device's memory, too, and gather minibatches there; they are the same.
    """

    transient: ClassVar[frozenset[str]] = frozenset({"buffers", "device_frames"})

    folder: Path | None
    obs_space: spaces.Space
    action_space: spaces.Space
    num_envs: int
    capacity: int
    num_steps: int
    slack: int
    n_steps: int
    gamma: float
    frame_stack: int
    generator: np.random.Generator
    device: torch.device
    normalizer: Normalizer | None
    normalize_obs: bool
    normalize_reward: bool
    on_device: bool = False

    def __post_init__(self) -> None:
        fields = {
            FRAME: _frame_field(self.obs_space, self.frame_stack),
            "action": _action_field(self.action_space),
            "reward": Field(np.dtype(np.float32)),
            "flags": Field(np.dtype(np.uint8)),
        }
        self.draws = self.generator  # a generator is state, and a field is not
        self.ring = Ring(
            self.folder,
            fields,
            self.num_envs,
            capacity=max(self.capacity // self.num_envs, 1),
            reach=self.frame_stack,
            slack=self.slack,
            burst=most_records(self.num_steps, self.frame_stack),
        )
        self.starts: Array = np.ones(self.num_envs, bool)  # [B], the next step is an episode's first
        self.buffers: dict[tuple[str, int], Array] = {}
        self.device_frames: DeviceFrames | None = None  # made with the first record

    def __len__(self) -> int:
        """Return how many records can be drawn from, less what may be the padding of one episode.

        No more than `frame_stack` records in a row are padding: if any are left, there is a step to draw.
        """
        low, high = self._drawable()
        return int(np.maximum(high - low - self.frame_stack, 0).sum())

    @property
    def largest_length(self) -> int:
        """Return the length of a full replay."""
        return self.num_envs * max(self.ring.capacity - self.n_steps - self.frame_stack, 0)

    @property
    def checkpoint_bytes(self) -> int:
        """Return what each checkpoint holds of it besides its records, which stay where they are."""
        return self.ring.checkpoint_bytes

    @property
    def device_bytes(self) -> int:
        """Return what its frames take of the device's memory."""
        frames = self.num_envs * self.ring.slots * self.ring.fields[FRAME].nbytes
        return frames if self.on_device else 0

    def close(self) -> None:
        """Give the device's memory back."""
        self.device_frames = None

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.close()  # the ring may have another size now
        if self.on_device and self.ring.head.any():
            self._frames_on_device().fill()

    # --- In ---------------------------------------------------------------------------------------------

    def add(self, batch: Batch) -> None:
        """Store what a collector returned: T steps of B environments, unnormalised."""
        obs, action = batch["obs"].cpu().numpy(), batch["action"].cpu().numpy()
        reward, over = batch["reward"].cpu().numpy(), batch["over"].cpu().numpy()
        terminated, truncated = batch["terminated"].cpu().numpy(), batch["truncated"].cpu().numpy()
        finals = iter(batch["final_obs"].cpu().numpy())
        everyone, before = np.arange(self.num_envs), self.ring.head.copy()
        for t in range(len(obs)):
            if self.starts.any():
                self._pad(np.flatnonzero(self.starts), self._older_frames(obs[t][self.starts]))
            self.ring.append(
                everyone,
                frame=self._newest_frame(obs[t]),
                action=action[t],
                reward=reward[t],
                flags=TERMINATED * terminated[t] + TRUNCATED * truncated[t],
            )
            for b in np.flatnonzero(truncated[t]):
                self._pad(np.array([b]), [self._newest_frame(next(finals)[None])])
            self.starts = over[t].copy()
        if self.on_device:
            self._frames_on_device().add(before)

    def _frames_on_device(self) -> DeviceFrames:
        if self.device_frames is None:
            self.device_frames = DeviceFrames(self.ring, self.device)
        return self.device_frames

    def _pad(self, streams: Array, frames: list[Array]) -> None:
        for frame in frames:
            self.ring.append(streams, frame=frame, action=0, reward=0.0, flags=PADDING)

    def _newest_frame(self, obs: Array) -> Array:
        """obs: [K, *obs] -> the frame of it that is stored, [K, *frame]."""
        return obs if self.frame_stack == 1 else obs[:, -1]

    def _older_frames(self, obs: Array) -> list[Array]:
        return [obs[:, i] for i in range(self.frame_stack - 1)]

    # --- Out --------------------------------------------------------------------------------------------

    def sample(self, batch_size: int) -> Batch:
        """Draw M = batch_size steps, each with its n-step return.

        obs, next_obs: [M, *obs], the observations at the step and k <= n steps later, where the episode
        ended or the return stops; action: [M, *act]; reward: [M], sum of gamma^i r_i over the k steps;
        discount: [M], gamma^k, or 0 where the episode terminated: what the value of next_obs counts.

        The tensors are overwritten by the next call.
        """
        streams, records = self.draw(batch_size)
        return self.look_up(streams, records)

    def draw(self, batch_size: int) -> tuple[Array, Array]:
        """Return the streams and the numbers [M] of steps drawn uniformly."""
        streams, records = self._uniform(batch_size)
        while (padding := self._is_padding(streams, records)).any():
            streams[padding], records[padding] = self._uniform(int(padding.sum()))
        return streams, records

    def look_up(self, streams: Array, records: Array) -> Batch:
        """Return the batch of `sample` for given steps."""
        reward, discount, steps = self._returns(streams, records)
        obs, next_obs = self._observations(streams, records, steps)
        return {
            "obs": obs,
            "action": torch.from_numpy(self.ring.read("action", self.ring.position(streams, records))).to(self.device),
            "reward": torch.from_numpy(reward).to(self.device),
            "next_obs": next_obs,
            "discount": torch.from_numpy(discount).to(self.device),
        }

    def _drawable(self) -> tuple[Array, Array]:
        """Return the range of records, [B] each, whose n-step future is stored."""
        low = self.ring.tail
        return low, np.maximum(self.ring.head - self.n_steps, low)

    def _uniform(self, count: int) -> tuple[Array, Array]:
        low, high = self._drawable()
        ends = np.cumsum(high - low)
        place = self.draws.integers(ends[-1], size=count)
        streams = np.searchsorted(ends, place, side="right")
        return streams, high[streams] - (ends[streams] - place)

    def _is_padding(self, streams: Array, records: Array) -> Array:
        return self.ring.read("flags", self.ring.position(streams, records)) & PADDING != 0

    def _returns(self, streams: Array, records: Array) -> tuple[Array, Array, Array]:
        """Return sum of gamma^i r_i, the discount of what follows, and the number k of steps summed: [M] each."""
        ahead = np.arange(self.n_steps)
        window = self.ring.position(streams[:, None], records[:, None] + ahead)  # [M, n]
        reward, flags = self.ring.read("reward", window), self.ring.read("flags", window)
        ended = flags & (TERMINATED | TRUNCATED) != 0
        # A step counts if none before it ended the episode.
        counts = np.cumsum(ended, axis=1) - ended == 0
        steps = counts.sum(axis=1)
        if self.normalize_reward:
            assert self.normalizer is not None
            reward = self.normalizer.scaled_reward(reward)
        total = (reward * counts * self.gamma**ahead).sum(axis=1)
        terminated = (flags & TERMINATED != 0) & counts
        discount = self.gamma**steps * ~terminated.any(axis=1)
        return total.astype(np.float32), discount.astype(np.float32), steps

    def _observations(self, streams: Array, records: Array, steps: Array) -> tuple[Tensor, Tensor]:
        """Return the observations at the records and `steps` later, [M, *obs] both."""
        if self.device_frames is not None:
            windows = [self._window(streams, newest, self.frame_stack) for newest in (records, records + steps)]
            both = self.device_frames.take(np.stack(windows))
            return self._from_device(both[0]), self._from_device(both[1])
        if self.n_steps == 1:  # the two stacks share all but one frame
            frames = self._frames("both", streams, records + 1, self.frame_stack + 1)
            return self._observation(frames[:, :-1]), self._observation(frames[:, 1:])
        obs = self._frames("obs", streams, records, self.frame_stack)
        next_obs = self._frames("next_obs", streams, records + steps, self.frame_stack)
        return self._observation(obs), self._observation(next_obs)

    def _window(self, streams: Array, newest: Array, count: int) -> Array:
        """Return where the `count` records up to `newest` lie: [M] -> [M, count], oldest first."""
        return self.ring.position(streams[:, None], newest[:, None] + np.arange(1 - count, 1))

    def _frames(self, name: str, streams: Array, newest: Array, count: int) -> Array:
        """Return the `count` frames up to the records `newest`: [M] -> [M, count, *frame], oldest first."""
        window = self._window(streams, newest, count)
        field = self.ring.fields[FRAME]
        buffer = self.buffers.get((name, len(newest)))
        if buffer is None:
            buffer = self.buffers[name, len(newest)] = np.empty((window.size, *field.shape), field.dtype)
        self.ring.read_into(FRAME, window.reshape(-1), buffer)
        return buffer.reshape(*window.shape, *field.shape)

    def _observation(self, frames: Array) -> Tensor:
        obs = frames[:, 0] if self.frame_stack == 1 else frames
        return to_policy(obs, self.normalizer if self.normalize_obs else None, self.device)

    def _from_device(self, frames: Tensor) -> Tensor:
        obs = frames[:, 0] if self.frame_stack == 1 else frames
        return self.normalizer.obs_tensor(obs) if self.normalizer is not None and self.normalize_obs else obs


def most_records(num_steps: int, frame_stack: int) -> int:
    """Return how many records so many steps are at most: each an episode, with all of its padding."""
    return num_steps * (frame_stack + 1)


def _frame_field(space: spaces.Space, frame_stack: int) -> Field:
    shape = space.shape or ()
    if frame_stack > 1 and shape[0] != frame_stack:
        raise ValueError(f"observations {shape} do not begin with {frame_stack} frames")
    # The networks compute in float32: to keep more on disk would change nothing.
    dtype = np.dtype(np.float32) if space.dtype == np.float64 else np.dtype(space.dtype)
    return Field(dtype, shape if frame_stack == 1 else shape[1:])


def _action_field(space: spaces.Space) -> Field:
    dtype = np.float32 if isinstance(space, spaces.Box) else np.int64
    return Field(np.dtype(dtype), space.shape or ())
