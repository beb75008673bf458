"""A replay whose frames lie in the device's memory, too: the same minibatches, before and after a kill."""

import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from harness import assert_identical, killed_inside, rlrun, rlrun_here, the_run
from naive_replay import GAMMA, NUMBERS, PICTURES, VECTORS, Experience, copied, make_replay, same

from rlrun.build import Agent, build_agent
from rlrun.data.replay import Replay
from rlrun.envs.normalizer import Normalizer
from rlrun.errors import UserError
from rlrun.room import check_room, estimate

WORLDS = [
    pytest.param(PICTURES, 4, id="stack of 4"),
    pytest.param(PICTURES, 1, id="pictures"),
    pytest.param(VECTORS, 1, id="vectors"),
    pytest.param(NUMBERS, 1, id="numbers"),
]


def learn(replay: Replay, rng: np.random.Generator) -> list[dict[str, torch.Tensor]]:
    """Draw minibatches and, where there are priorities, set some; return what was drawn."""
    drawn = []
    for _ in range(3):
        if len(replay) > 0:
            drawn.append(copied(replay.sample(8)))
            if hasattr(replay, "update"):
                replay.update(drawn[-1]["place"], torch.from_numpy(rng.exponential(size=8)))
    return drawn


@pytest.mark.parametrize("alpha", [None, 0.6], ids=["uniform", "prioritized"])
@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize(("space", "frame_stack"), WORLDS)
def test_the_same_is_drawn_from_the_device_as_from_the_files(
    space: spaces.Space,
    frame_stack: int,
    num_envs: int,
    n_steps: int,
    alpha: float | None,
    small_chunks: None,
    tmp_path: Path,
    through_disk: Callable[[Any], Any],
) -> None:
    """Over random histories that wrap around, and past a kill, after which the frames are read from the files again."""
    dice = random.Random(f"{space} {frame_stack} {num_envs} {n_steps} {alpha}")
    numbers: dict[str, Any] = {"num_envs": num_envs, "frame_stack": frame_stack, "n_steps": n_steps, "alpha": alpha}

    def make(name: str, on_device: bool) -> Replay:
        return make_replay(
            tmp_path / name, space, capacity=40 * num_envs, slack=60, seed=3, on_device=on_device, **numbers
        )

    world = Experience(num_envs, space, frame_stack, seed=dice.randrange(10**6))
    host, device = make("host", on_device=False), make("device", on_device=True)
    rngs, rounds = [np.random.default_rng(1), np.random.default_rng(1)], 0
    while host.ring.head.min() < 2.5 * host.ring.slots:
        if rounds % 9 == 5:  # killed: what comes after the checkpoint is lost
            state, lost = through_disk(device.state_dict()), copied(world.collect(3))
            host.state_dict()
            device.add(lost)
            learn(device, np.random.default_rng(2))
            device = make("device", on_device=True)
            device.load_state_dict(state)
        batch = copied(world.collect(dice.randint(1, 12)))
        host.add(batch)
        device.add(batch)
        assert same(learn(host, rngs[0]), learn(device, rngs[1]))
        rounds += 1
    assert rounds > 10


def test_vectors_leave_the_device_normalised_by_what_is_known_when_they_leave(tmp_path: Path) -> None:
    normalizer, rng = Normalizer((3,), GAMMA), np.random.default_rng(0)
    world = Experience(2, VECTORS, 1, seed=0)
    host, device = (
        make_replay(tmp_path / str(on_device), num_envs=2, normalizer=normalizer, on_device=on_device)
        for on_device in (False, True)
    )
    for _ in range(30):
        batch = copied(world.collect(7))
        normalizer.update_obs(rng.normal(5.0, 10.0 ** rng.integers(-6, 3), (4, 3)))  # some are clipped
        host.add(batch)
        device.add(batch)
        assert same([host.sample(32)], [device.sample(32)])


def test_the_frames_on_the_device_are_no_state_and_the_files_are(small_chunks: None, tmp_path: Path) -> None:
    world = Experience(1, PICTURES, 4, seed=0)
    host, device = (
        make_replay(tmp_path / str(on_device), PICTURES, frame_stack=4, on_device=on_device)
        for on_device in (False, True)
    )
    for replay in (host, device):
        replay.add(world.collect(9))
    assert host.state_dict().keys() == device.state_dict().keys()

    state = device.state_dict()
    either_way = make_replay(tmp_path / "True", PICTURES, frame_stack=4, on_device=False, seed=1)
    either_way.load_state_dict(state)
    assert same([copied(device.sample(8))], [either_way.sample(8)])


def test_what_is_added_at_once_is_sent_in_one_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replay, world = make_replay(tmp_path, num_envs=3, on_device=True), Experience(3, VECTORS, 1, seed=0)
    replay.add(world.collect(1))
    assert replay.device_frames is not None
    sent, read = [], replay.ring.read
    monkeypatch.setattr(replay.ring, "read", lambda name, at: sent.append((name, len(at))) or read(name, at))
    before = int(replay.ring.head.sum())
    replay.add(world.collect(10))
    assert sent == [("frame", int(replay.ring.head.sum()) - before)]


# --- By its key -----------------------------------------------------------------------------------------

DQN = ["algo=dqn", "env=cartpole", "tuned=none", "device=cpu"]


def test_the_next_run_of_a_sweep_finds_the_memory_free(make_agent: Callable[..., Agent]) -> None:
    agent = make_agent(*DQN, "device.replay_on_device=true")
    (replay,) = agent.algorithm.setup.replays
    agent.algorithm.step()
    assert replay.device_frames is not None
    agent.close()
    assert replay.device_frames is None


def test_an_algorithm_without_a_replay_refuses_it(make_agent: Callable[..., Agent]) -> None:
    with pytest.raises(UserError, match=r"device\.replay_on_device=true: .*PPO has no replay; leave it out"):
        make_agent("algo=ppo", "env=cartpole", "device.replay_on_device=true")


def test_frames_that_memory_cannot_hold_are_refused_before_anything_is_written(
    compose: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose(*DQN, "device.replay_on_device=true", "algo.buffer_size=1_000_000")
    monkeypatch.setattr("rlrun.room._available_bytes", lambda: 10_000_000)
    with pytest.raises(UserError) as refused:
        check_room(estimate(build_agent(config, tmp_path).algorithm, config), tmp_path)
    for part in ("device.replay_on_device=true needs 16", "10 MB are free", "lower algo.buffer_size", "=false"):
        assert part in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_of_a_gpu_its_own_memory_is_asked_and_some_of_it_is_left_to_updates(
    compose: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose(*DQN, "device.replay_on_device=true", "algo.buffer_size=1_000_000")
    agent = build_agent(config, tmp_path)
    frames = agent.algorithm.setup.replays[0].device_bytes
    assert 16e6 <= frames < 17e6  # four float32 a step, and the slack
    on_cpu = estimate(agent.algorithm, config)
    agent.device.kind = "cuda"
    gigabyte = 1 << 30
    monkeypatch.setattr("torch.cuda.memory_reserved", lambda: 3_000_000)  # of which the last run left 2 MB unused
    monkeypatch.setattr("torch.cuda.memory_allocated", lambda: 1_000_000)
    for free, fits in ((gigabyte + frames - 2_000_000, True), (gigabyte + frames - 2_000_001, False)):
        monkeypatch.setattr("torch.cuda.mem_get_info", lambda free=free: (free, 80 * gigabyte))
        needed = estimate(agent.algorithm, config)
        assert abs(on_cpu.memory - needed.memory - frames) < 10_000_000  # the process itself may have grown
        if fits:
            check_room(needed, tmp_path)
        else:
            with pytest.raises(UserError, match=r"device\.replay_on_device=true needs 16"):
                check_room(needed, tmp_path)


# --- Whole runs -----------------------------------------------------------------------------------------

REPLAY = ["tuned=none", "algo.buffer_size=300", "algo.learning_starts=100", "algo.batch_size=16", "algo.train_every=8"]
CADENCES = ["eval.episodes=2", "eval.final_episodes=3", "eval.every=700", "checkpoint.every=250", "log.every=100"]
FRAMES = ["env=breakout", "env.max_frames=1200", "env.image_size=36", "network.channels=[8,8,8]", "network.hidden=16"]
RUNS = {
    "rainbow on frames": ["algo=rainbow", *FRAMES, "algo.num_atoms=11", "total_steps=1500"],
    "sac": ["algo=sac", "env=pendulum", "env.normalize_obs=true", "network.hidden=[16]", "total_steps=2500"],
}


@pytest.mark.crash
@pytest.mark.parametrize("case", RUNS)
def test_a_killed_run_with_frames_on_the_device_ends_bit_identical_to_an_undisturbed_one_without(
    case: str, tmp_path: Path
) -> None:
    arguments = [*RUNS[case], *REPLAY, *CADENCES, "device=cpu", "log.console=false"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    done = rlrun_here(arguments, whole)
    assert done.returncode == 0, done.stderr

    arguments.append("device.replay_on_device=true")
    dice = random.Random(case)
    assert killed_inside("half a checkpoint", dice.randint(3, 5), arguments, broken) == -signal.SIGKILL
    assert killed_inside("evaluation", dice.randint(5, 60), arguments, broken) == -signal.SIGKILL
    last = rlrun(arguments, broken)
    assert last.returncode == 0, last.stderr
    assert "continuing from step" in last.stderr
    assert_identical(the_run(whole), the_run(broken))
