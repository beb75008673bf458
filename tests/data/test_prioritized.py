from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from naive_replay import PICTURES, VECTORS, Experience, drawable, make_replay

from rlrun.data.prioritized import SMALLEST


def places_of(replay: Any) -> np.ndarray:
    """Return the places of all steps that can be drawn."""
    streams, records = drawable(replay)
    return replay.ring.position(streams, records)


def priorities(replay: Any) -> np.ndarray:
    """Return all priorities there are."""
    return replay.tree.get(np.arange(replay.tree.num_leaves))


def with_priorities(folder: Path, rounds: int, *, alpha: float = 0.7, **numbers: Any) -> Any:
    """Return a replay whose steps have priorities of all kinds."""
    world, rng = Experience(2, VECTORS, 1, seed=1), np.random.default_rng(0)
    replay = make_replay(folder, num_envs=2, capacity=100, alpha=alpha, **numbers)
    for _ in range(rounds):
        replay.add(world.collect(6))
        places = torch.from_numpy(places_of(replay))
        replay.update(places, torch.from_numpy(rng.exponential(size=len(places))))
    return replay


@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("frame_stack", [1, 4])
def test_what_can_be_drawn_has_a_priority_and_nothing_else(
    frame_stack: int, n_steps: int, small_chunks: None, tmp_path: Path
) -> None:
    """New steps get the largest priority yet, others keep theirs, padding and what is gone have none."""
    space, rng = PICTURES if frame_stack == 4 else VECTORS, np.random.default_rng(4)
    world = Experience(2, space, frame_stack, seed=2)
    settings: dict[str, Any] = {"num_envs": 2, "n_steps": n_steps, "frame_stack": frame_stack}
    replay = make_replay(tmp_path, space, capacity=80, slack=30, alpha=0.6, **settings)
    known: dict[tuple[int, int], float] = {}
    largest = 1.0
    while replay.ring.head.min() < 3 * replay.ring.slots:
        replay.add(world.collect(int(rng.integers(1, 12))))
        streams, records = drawable(replay)
        pairs = list(zip(streams.tolist(), records.tolist(), strict=True))
        known = {pair: known.get(pair, largest) for pair in pairs}
        expected = np.zeros(replay.tree.num_leaves, np.float32)
        expected[replay.ring.position(streams, records)] = [known[pair] for pair in pairs]
        assert np.array_equal(priorities(replay), expected)
        if len(replay) < 8:
            continue
        batch = replay.sample(8)
        surprise = rng.exponential(size=8)
        replay.update(batch["place"], torch.from_numpy(surprise))
        for place, error in zip(batch["place"].tolist(), surprise.tolist(), strict=True):
            stream, slot = divmod(place, replay.ring.slots)
            (record,) = [r for s, r in pairs if s == stream and r % replay.ring.slots == slot]
            known[stream, record] = (error + SMALLEST) ** 0.6
            largest = max(largest, known[stream, record])
    assert largest > 1


@pytest.mark.parametrize("frame_stack", [1, 4])
def test_the_step_at_a_place_is_the_one_that_is_returned(frame_stack: int, small_chunks: None, tmp_path: Path) -> None:
    space = PICTURES if frame_stack == 4 else VECTORS
    world = Experience(3, space, frame_stack, seed=5)
    replay = make_replay(tmp_path, space, num_envs=3, capacity=120, frame_stack=frame_stack, alpha=0.5, n_steps=3)
    for _ in range(60):
        replay.add(world.collect(4))
    batch = replay.sample(64)
    flat = replay.ring.read("action", batch["place"].numpy())
    assert torch.equal(batch["action"], torch.from_numpy(flat))
    for m, (place, action) in enumerate(zip(batch["place"].tolist(), batch["action"].tolist(), strict=True)):
        step = world.steps[place // replay.ring.slots][action]
        assert np.array_equal(batch["obs"][m].numpy(), step.obs)
        reward, discount, _ = world.n_step(place // replay.ring.slots, action, 3)
        assert (float(batch["reward"][m]), float(batch["discount"][m])) == (reward, discount)


@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0])
def test_steps_are_drawn_in_proportion_to_their_priorities(alpha: float, small_chunks: None, tmp_path: Path) -> None:
    replay = with_priorities(tmp_path, 40, alpha=alpha)
    places = places_of(replay)
    priority = replay.tree.get(places).astype(np.float64)
    counts: dict[int, int] = dict.fromkeys(places.tolist(), 0)
    for _ in range(200):
        for place in replay.sample(100)["place"].tolist():
            counts[place] += 1
    expected = 20_000 * priority / priority.sum()
    statistic = ((np.array(list(counts.values())) - expected) ** 2 / expected).sum()
    # Drawing one from each part varies less than drawing freely, never more.
    assert statistic < len(places) + 4 * np.sqrt(2 * len(places))
    if alpha == 0:
        assert (priority == 1).all()


def test_one_step_is_drawn_from_each_equal_part_of_the_mass(small_chunks: None, tmp_path: Path) -> None:
    replay = with_priorities(tmp_path, 40)
    running = np.cumsum(priorities(replay), dtype=np.float64)
    for _ in range(20):
        places = replay.sample(16)["place"].numpy()
        parts = np.arange(17) * running[-1] / 16
        low, high = np.where(places > 0, running[places - 1], 0), running[places]
        assert ((low <= parts[1:] + 1e-9) & (high >= parts[:-1] - 1e-9)).all()


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_weights_are_those_of_the_paper(beta: float, small_chunks: None, tmp_path: Path) -> None:
    replay = with_priorities(tmp_path, 40)
    total, count = priorities(replay).sum(dtype=np.float64), len(places_of(replay))
    batch = replay.sample(32, beta)
    probability = replay.tree.get(batch["place"].numpy()) / total
    weight = (count * probability) ** -beta
    np.testing.assert_allclose(batch["weight"].numpy(), weight / weight.max(), rtol=1e-5)
    assert batch["weight"].dtype == torch.float32
    assert float(batch["weight"].max()) == 1.0


def test_no_error_is_so_small_that_a_step_is_never_seen_again(small_chunks: None, tmp_path: Path) -> None:
    replay = with_priorities(tmp_path, 20)
    places = torch.from_numpy(places_of(replay))
    replay.update(places, torch.zeros(len(places)))
    assert (replay.tree.get(places.numpy()) > 0).all()
    batch = replay.sample(32)
    assert torch.isfinite(batch["weight"]).all()


def test_after_an_update_the_surprising_step_is_drawn_most(small_chunks: None, tmp_path: Path) -> None:
    replay = with_priorities(tmp_path, 20, alpha=1.0)
    places = torch.from_numpy(places_of(replay))
    surprise = torch.full((len(places),), 0.001)
    surprise[17] = 1000.0
    replay.update(places, surprise)
    drawn = replay.sample(200)["place"]
    assert (drawn == places[17]).float().mean() > 0.99
