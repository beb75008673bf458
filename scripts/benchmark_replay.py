"""Sampling from the replay, beside Stable-Baselines3's and torchrl's. What checkpoints of it cost, scale.py measures.

    pip install "rlrun[bench]" torchrl tensordict
    python scripts/benchmark_replay.py --steps 50000 --rounds 5 --out replay.json

It draws minibatches of 32 x 4 x 84 x 84 observations with their successors, as DQN does, out of the same
stored steps; the buffers take turns, and the ratio is taken round by round. Stable-Baselines3 has no
prioritized replay.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from rlrun.data.prioritized import PrioritizedReplay
from rlrun.data.replay import Replay
from rlrun.device import _keep_freed_memory

OBS, ACTIONS = spaces.Box(0, 255, (4, 84, 84), np.uint8), spaces.Discrete(4)
BATCH, EPISODE = 32, 200
NOWHERE = torch.zeros((0, 4, 84, 84), dtype=torch.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50_000, help="stored steps")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each buffer in each round")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--folder", type=Path, help="where replays lie (default: a temporary folder)")
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    _keep_freed_memory()
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        report = sampling(options, Path(scratch))
    print(json.dumps(report, indent=2))
    if options.out:
        options.out.write_text(json.dumps(report, indent=2) + "\n")


def sampling(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Return minibatches per second of each buffer, round by round, and our ratio to the others."""
    ours, prioritized = make_replay(scratch / "a", options.steps), make_replay(scratch / "b", options.steps, alpha=0.6)
    for replay in (ours, prioritized):
        fill(replay, options.steps)
    buffers = {
        "rlrun": lambda: ours.sample(BATCH),
        "stable-baselines3": stable_baselines3(options.steps),
        "torchrl": torchrl_buffer(options.steps, scratch / "c", prioritized=False),
        "rlrun prioritized": lambda: use(prioritized),
    }
    missing = ""
    try:
        buffers["torchrl prioritized"] = torchrl_buffer(options.steps, scratch / "d", prioritized=True)
    except RuntimeError as error:  # its compiled sum tree fits only the torch that it was built for
        missing = str(error)
    rounds: dict[str, list[float]] = {name: [] for name in buffers}
    for _ in range(options.rounds):
        for name, draw in buffers.items():
            rounds[name].append(round(speed(draw, options.seconds), 1))

    def ratio(a: str, b: str) -> float | str:
        if b not in rounds:
            return missing
        return round(statistics.median(x / y for x, y in zip(rounds[a], rounds[b], strict=True)), 2)

    return {
        "minibatches_per_second": {name: statistics.median(values) for name, values in rounds.items()},
        "rounds": rounds,
        "uniform_to_stable_baselines3": ratio("rlrun", "stable-baselines3"),
        "uniform_to_torchrl": ratio("rlrun", "torchrl"),
        "prioritized_to_torchrl": ratio("rlrun prioritized", "torchrl prioritized"),
    }


def speed(draw: Callable[[], Any], seconds: float) -> float:
    for _ in range(10):
        draw()
    count, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        draw()
        count += 1
    return count / elapsed


def make_replay(folder: Path, steps: int, alpha: float | None = None) -> Replay:
    numbers: dict[str, Any] = {
        "folder": folder,
        "obs_space": OBS,
        "action_space": ACTIONS,
        "num_envs": 1,
        "capacity": steps,
        "num_steps": 100,
        "slack": 20_000,
        "n_steps": 1,
        "gamma": 0.99,
        "frame_stack": 4,
        "generator": np.random.default_rng(0),
        "device": torch.device("cpu"),
        "normalizer": None,
        "normalize_obs": False,
        "normalize_reward": False,
    }
    return Replay(**numbers) if alpha is None else PrioritizedReplay(**numbers, alpha=alpha)


def fill(replay: Replay, steps: int) -> None:
    """Store so many steps of noise, in episodes of 200, in pieces of 100."""
    rng = np.random.default_rng(1)
    obs = torch.from_numpy(rng.integers(256, size=(100, 1, 4, 84, 84), dtype=np.uint8))
    never = torch.zeros((100, 1), dtype=torch.bool)
    for start in range(0, steps, 100):
        ended = never.clone()
        ended[-1] = (start + 100) % EPISODE == 0
        replay.add(
            {
                "obs": obs,
                "action": torch.from_numpy(rng.integers(4, size=(100, 1))),
                "reward": torch.zeros(100, 1),
                "terminated": ended,
                "truncated": never,
                "over": ended,
                "final_obs": NOWHERE,
            }
        )


def use(replay: Replay) -> None:
    """Draw and set priorities, as an update does."""
    assert isinstance(replay, PrioritizedReplay)
    batch = replay.sample(BATCH, 0.4)
    replay.update(batch["place"], batch["weight"])


def stable_baselines3(steps: int) -> Callable[[], Any]:
    from stable_baselines3.common.buffers import ReplayBuffer

    buffer = ReplayBuffer(steps, OBS, ACTIONS, device="cpu", n_envs=1, handle_timeout_termination=False)
    rng = np.random.default_rng(1)
    obs = rng.integers(256, size=(1, 4, 84, 84), dtype=np.uint8)
    for _ in range(steps):
        buffer.add(obs, obs, np.zeros(1), np.zeros(1), np.zeros(1), [{}])
    return lambda: buffer.sample(BATCH)


def torchrl_buffer(steps: int, folder: Path, *, prioritized: bool) -> Callable[[], Any]:
    from tensordict import TensorDict
    from torchrl.data import LazyMemmapStorage, PrioritizedSampler, RandomSampler, ReplayBuffer

    sampler = PrioritizedSampler(steps, alpha=0.6, beta=0.4) if prioritized else RandomSampler()
    storage = LazyMemmapStorage(steps, scratch_dir=str(folder))
    buffer = ReplayBuffer(storage=storage, sampler=sampler, batch_size=BATCH)
    frames = torch.randint(256, (100, 4, 84, 84), dtype=torch.uint8)
    for _ in range(0, steps, 100):
        zeros = torch.zeros(100)
        step = {"obs": frames, "next_obs": frames, "action": zeros.long(), "reward": zeros, "terminated": zeros.bool()}
        buffer.extend(TensorDict(step, batch_size=[100]))
    if not prioritized:
        return buffer.sample

    def draw() -> None:
        _, info = buffer.sample(return_info=True)
        buffer.update_priority(info["index"], torch.rand(BATCH))

    return draw


if __name__ == "__main__":
    main()
