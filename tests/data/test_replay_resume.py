"""After a kill a replay samples what it would have sampled, and a checkpoint of it costs what is new."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from naive_replay import PICTURES, VECTORS, Batch, Experience, copied, make_replay, same

from rlrun.data.replay import Replay
from rlrun.errors import RunFailed

Disk = Callable[[Any], Any]


def use(replay: Replay, batches: list[Batch], seed: int) -> list[Batch]:
    """Add each batch and learn from a few samples; return what was sampled."""
    rng, sampled = np.random.default_rng(seed), []
    for batch in batches:
        replay.add(batch)
        for _ in range(3):
            sampled.append(copied(replay.sample(8)))
            if hasattr(replay, "update"):
                surprise = torch.from_numpy(rng.exponential(size=8))
                replay.update(sampled[-1]["place"], surprise)
    return sampled


@pytest.mark.parametrize("alpha", [None, 0.6], ids=["uniform", "prioritized"])
@pytest.mark.parametrize("warm_up", [2, 9, 40], ids=["filling", "full", "wrapped"])
@pytest.mark.parametrize(("frame_stack", "n_steps", "num_envs"), [(1, 1, 1), (4, 1, 1), (4, 3, 2), (1, 5, 3)])
def test_after_a_kill_the_same_is_sampled_as_without(
    frame_stack: int,
    n_steps: int,
    num_envs: int,
    warm_up: int,
    alpha: float | None,
    small_chunks: None,
    tmp_path: Path,
    through_disk: Disk,
) -> None:
    def make(name: str, seed: int) -> Replay:
        space = PICTURES if frame_stack == 4 else VECTORS
        settings: dict[str, Any] = {"num_envs": num_envs, "frame_stack": frame_stack, "n_steps": n_steps}
        return make_replay(tmp_path / name, space, capacity=50 * num_envs, slack=60, alpha=alpha, seed=seed, **settings)

    world = Experience(num_envs, PICTURES if frame_stack == 4 else VECTORS, frame_stack, seed=warm_up)
    batches = [copied(world.collect(7)) for _ in range(warm_up + 8)]
    undisturbed, killed = make("undisturbed", 0), make("killed", 0)
    assert same(use(undisturbed, batches[:warm_up], 1), use(killed, batches[:warm_up], 1))
    state = through_disk(killed.state_dict())
    use(killed, batches[warm_up : warm_up + 3], 2)  # lost: the kill comes before the next checkpoint
    del killed

    resumed = make("killed", 99)
    resumed.load_state_dict(state)
    assert len(resumed) == len(undisturbed)
    assert same(use(resumed, batches[warm_up:], 2), use(undisturbed, batches[warm_up:], 2))


def test_a_damaged_frame_that_only_the_oldest_stack_shows_is_found(
    small_chunks: None, tmp_path: Path, through_disk: Disk
) -> None:
    world = Experience(1, PICTURES, 4, seed=0)
    replay = make_replay(tmp_path, PICTURES, capacity=64, frame_stack=4)
    while int(replay.ring.tail[0]) % 16 or replay.ring.tail[0] < 16:  # the oldest step begins a chunk
        replay.add(world.collect(1))
    state = through_disk(replay.state_dict())
    record = int(replay.ring.tail[0]) - 3
    with open(tmp_path / "frame.bin", "r+b") as file:
        file.seek(record % replay.ring.slots * 9)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(RunFailed, match=r"frame\.bin"):
        make_replay(tmp_path, PICTURES, capacity=64, frame_stack=4).load_state_dict(state)


class EachStepAnEpisode(Experience):
    """Episodes of one step, cut short, some of the time: each brings as much padding as can be."""

    def end(self) -> tuple[bool, bool, bool]:
        over = sum(map(len, self.steps)) // 40 % 3 == 2
        return False, over, over


@pytest.mark.parametrize("num_steps", [1, 4])
def test_the_last_two_checkpoints_can_be_gone_back_to_whatever_is_padding(
    num_steps: int, small_chunks: None, tmp_path: Path, through_disk: Disk
) -> None:
    world, states = EachStepAnEpisode(1, PICTURES, 4, seed=0), []
    settings: dict[str, Any] = {"capacity": 50, "slack": 4 * 5 * num_steps, "frame_stack": 4, "num_steps": num_steps}
    replay, rounds = make_replay(tmp_path, PICTURES, **settings), 0
    while replay.ring.head[0] < 4 * replay.ring.slots:
        replay.add(world.collect(num_steps))
        rounds += 1
        for state in states[-2:]:
            make_replay(tmp_path, PICTURES, **settings).load_state_dict(state)
        if replay.ring.must_save():
            states.append(through_disk(replay.state_dict()))
    assert len(states) < rounds


def filled(folder: Path, count: int, alpha: float | None) -> Replay:
    """Return a replay that holds `count` steps, saved."""
    replay = make_replay(folder, VECTORS, capacity=count, slack=5_000, alpha=alpha)
    replay.ring.reserve()
    replay.ring.head[:] = count
    replay.starts[:] = False
    if alpha is not None:
        priorities = torch.zeros(replay.tree.num_leaves)
        priorities[:count] = 1.0
        replay.tree.load_state_dict({"priorities": priorities})
        replay.listed[:] = count - 1
    replay.state_dict()
    return replay


def seconds_of_a_checkpoint(replay: Replay, folder: Path) -> float:
    """Return the shortest of some checkpoints, each after 500 new steps."""
    world, shortest = Experience(1, VECTORS, 1, seed=0), float("inf")
    batch = world.collect(500)
    for _ in range(4):
        replay.add(batch)
        started = time.perf_counter()
        torch.save(replay.state_dict(), folder / "state.pt")
        shortest = min(shortest, time.perf_counter() - started)
    return shortest


@pytest.mark.parametrize("alpha", [None, 0.6], ids=["uniform", "prioritized"])
def test_a_checkpoint_of_a_million_steps_takes_at_most_100_ms_more_than_one_of_ten_thousand(
    alpha: float | None, tmp_path: Path
) -> None:
    few = seconds_of_a_checkpoint(filled(tmp_path / "few", 10_000, alpha), tmp_path)
    many = seconds_of_a_checkpoint(filled(tmp_path / "many", 1_000_000, alpha), tmp_path)
    assert many - few < 0.1
