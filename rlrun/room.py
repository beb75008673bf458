"""What a run needs of disk and memory, found out before it begins."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlrun.algos.algorithm import Algorithm
from rlrun.device import Device
from rlrun.errors import UserError
from rlrun.files import human_bytes

BYTES_PER_ENV = 5_000  # the smallest Gymnasium environments with their wrappers
LOG_BYTES_PER_STEP = 5  # all logs together, generously
BESIDE_FRAMES = 1 << 30  # bytes of a GPU that a replay's frames leave to updates: a guess
PICTURES_GROW = 7  # times, as a table fills with numbers: 1.4 to 6.2 were measured, the most with grid worlds


@dataclass
class Estimate:
    """What a run will need, in bytes, and where."""

    checkpoint: int
    disk: int
    memory: int
    replay: int = 0  # of the disk
    frames: int = 0  # of a replay in the device's memory, which for the CPU is a part of `memory`
    frames_room: int | None = None  # what the device has free for them; None: not known, or none asked for

    def __str__(self) -> str:
        return f"needs about {human_bytes(self.disk)} of disk and {human_bytes(self.memory)} of memory"


def estimate(algorithm: Algorithm, config: dict[str, Any]) -> Estimate:
    """Return what the run will need, from the sizes of what was built."""
    weights = sum(p.nbytes for m in algorithm.networks().values() for p in m.parameters())
    found = sum(r.checkpoint_bytes for r in algorithm.setup.replays)
    copies = algorithm.copies() * weights
    per_step = sum(c.bytes_per_step() for c in algorithm.setup.collectors)
    ahead = per_step * algorithm.saved_steps()
    checkpoint = 3 * weights + ahead + copies + sum(c.obs.nbytes for c in algorithm.setup.collectors) + found + 200_000
    replay = sum(r.ring.missing_bytes() for r in algorithm.setup.replays)
    logs = config["total_steps"] * LOG_BYTES_PER_STEP + _picture_bytes(algorithm, config)
    disk = checkpoint * (config["checkpoint"]["keep"] + 2) + logs + replay
    stored = per_step * algorithm.stored_steps()
    # Weights, gradients, two moments and a checkpoint in the making; copies without the moments; a rollout and its
    # minibatches; what finds a replay's records again, and three copies of it while a checkpoint is made.
    memory = _resident_bytes() + 6 * weights + 3 * copies + 3 * stored + 2 * ahead + 4 * found
    frames = sum(r.device_bytes for r in algorithm.setup.replays)
    if algorithm.setup.device.kind == "cpu":
        memory += frames
    room = _free_bytes(algorithm.setup.device) if frames else None
    return Estimate(checkpoint, disk, memory, replay, frames, room)


def _picture_bytes(algorithm: Algorithm, config: dict[str, Any]) -> int:
    """Return what the pictures of all evaluations will take; TensorBoard's file has them once more."""
    drawn = sum(map(len, algorithm.pictures().values())) * PICTURES_GROW
    occasions = config["total_steps"] // config["eval"]["every"] + 1
    return drawn * occasions * (2 if config["log"]["tensorboard"] else 1)


def check_room(needed: Estimate, folder: Path) -> None:
    """Raise UserError if the run folder's disk or memory cannot hold the run."""
    existing = next(path for path in [folder, *folder.resolve().parents] if path.exists())
    free = shutil.disk_usage(existing).free
    if needed.disk > free:
        lower = ", lower algo.buffer_size" if needed.replay > needed.disk / 2 else ""
        raise UserError(
            f"outputs: {folder} has {human_bytes(free)} free and the run needs about {human_bytes(needed.disk)}: "
            f"make room{lower}, or choose another folder with outputs=..."
        )
    if needed.frames_room is not None and needed.frames > needed.frames_room:
        raise UserError(
            f"device.replay_on_device=true needs {human_bytes(needed.frames)} of the device's memory, and "
            f"{human_bytes(max(needed.frames_room, 0))} are free for it: lower algo.buffer_size, or leave the frames "
            "on the disk alone with device.replay_on_device=false"
        )
    available = _available_bytes()
    if available is not None and needed.memory - _resident_bytes() > available:
        leave = ", or leave out device.replay_on_device=true" if needed.frames else ""
        raise UserError(
            f"the run needs about {human_bytes(needed.memory)} of memory and {human_bytes(available)} are "
            f"available: lower algo.num_envs, algo.num_steps or the network's sizes{leave}"
        )


def check_num_envs(num_envs: int, obs_space: Any) -> None:
    """Raise UserError before so many environments are made that memory could not hold them."""
    available = _available_bytes()
    needed = num_envs * (BYTES_PER_ENV + int(np.prod(obs_space.shape or (1,))) * obs_space.dtype.itemsize * 3)
    if available is not None and needed > available:
        raise UserError(
            f"algo.num_envs={num_envs} needs at least {human_bytes(needed)} of memory and {human_bytes(available)} "
            "are available: lower it"
        )


def _free_bytes(device: Device) -> int | None:
    """Return what the device has free for a replay's frames."""
    if device.kind == "cpu":
        return _available_bytes()
    unused = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()  # torch keeps what it had, for the next one
    return torch.cuda.mem_get_info()[0] + unused - BESIDE_FRAMES


def _resident_bytes() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _available_bytes() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
