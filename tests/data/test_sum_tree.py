from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rlrun.data.sum_tree import WIDTH, SumTree

SIZES = [1, 2, WIDTH - 1, WIDTH, WIDTH + 1, WIDTH**2, WIDTH**2 + 1, 40_000]


def tree_of(priorities: np.ndarray) -> SumTree:
    tree = SumTree(len(priorities))
    tree.set(np.arange(len(priorities)), priorities)
    return tree


def whole_numbers(size: int, seed: int = 0, zeros: float = 0.5) -> np.ndarray:
    """Return priorities of which every sum is exact in float32, half of them zero."""
    rng = np.random.default_rng(seed)
    priorities = rng.integers(1, 9, size) * (rng.random(size) >= zeros)
    priorities[rng.integers(size)] = 1
    return priorities.astype(np.float64)


@pytest.mark.parametrize("size", SIZES)
def test_find_is_a_search_in_the_running_sum(size: int) -> None:
    priorities = whole_numbers(size)
    tree = tree_of(priorities)
    running = priorities.cumsum()
    edges = np.unique(np.concatenate([[0.0], running[:-1]]))
    edges = edges[edges < running[-1]]
    masses = np.concatenate([edges, edges + 0.5, np.nextafter(running[running > 0], 0)])
    masses = masses[:: max(1, len(masses) // 5000)]
    assert tree.total == running[-1]
    assert np.array_equal(tree.find(masses), np.searchsorted(running, masses, side="right"))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("size", SIZES)
def test_a_priority_of_zero_is_never_found_even_where_sums_are_rounded(size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    spread = 10.0 ** rng.uniform(-7, 3, size)  # ten orders of magnitude: sums lose the small ones
    priorities = np.where(rng.random(size) < 0.7, 0.0, spread).astype(np.float32)
    priorities[rng.integers(size)] = 1.0
    tree = tree_of(priorities)
    running = np.cumsum(priorities, dtype=np.float64)
    some = rng.permutation(len(running))[:2000]
    masses = np.concatenate(
        [[0.0, tree.total, np.nextafter(tree.total, 0)], running[some], rng.random(2000) * tree.total]
    )
    for nudged in (masses, np.nextafter(masses, 0), np.nextafter(masses, np.inf)):
        found = tree.find(np.clip(nudged, 0, tree.total))
        assert (tree.get(found) > 0).all()
        # And the leaf is the right one, but for the rounding of sums in another order.
        before, after = running[found] - priorities[found], running[found]
        slip = 1e-9 * tree.total
        assert ((before - slip <= nudged) & (nudged <= after + slip)).all()


def test_leaves_are_found_in_proportion_to_their_priorities() -> None:
    priorities = whole_numbers(3000, zeros=0.3)
    tree = tree_of(priorities)
    draws, rng = 60_000, np.random.default_rng(1)
    masses = rng.random((60, 1000)) * tree.total
    found = np.bincount(np.concatenate([tree.find(mass) for mass in masses]), minlength=3000)
    expected = draws * priorities / priorities.sum()
    live = expected > 0
    degrees = live.sum() - 1
    statistic = ((found[live] - expected[live]) ** 2 / expected[live]).sum()
    assert abs(statistic - degrees) < 4 * np.sqrt(2 * degrees)
    assert not found[~live].any()


@pytest.mark.parametrize("size", SIZES)
def test_sums_do_not_drift(size: int) -> None:
    """After any changes the tree is that which is built from its leaves at once."""
    rng = np.random.default_rng(2)
    tree, leaves = SumTree(size), np.zeros(size, np.float32)
    for _ in range(300):
        some = rng.integers(size, size=rng.integers(1, 40))
        priorities = 10.0 ** rng.uniform(-6, 6, len(some)) * (rng.random(len(some)) < 0.8)
        tree.set(some, priorities)
        leaves[some] = priorities
    assert np.array_equal(tree.get(np.arange(size)), leaves)
    fresh = tree_of(leaves)
    assert tree.total == fresh.total
    assert tree.total == pytest.approx(leaves.sum(dtype=np.float64))
    masses = rng.random(500) * tree.total
    assert np.array_equal(tree.find(masses), fresh.find(masses))


def test_of_a_leaf_that_is_named_twice_the_last_priority_counts() -> None:
    tree = SumTree(300)
    tree.set(np.array([7, 299, 7, 7]), np.array([1.0, 4.0, 2.0, 3.0]))
    assert tree.get(np.array([7, 299])).tolist() == [3.0, 4.0]
    assert tree.total == 7.0


def test_one_number_for_many_leaves_and_none_for_no_leaf() -> None:
    tree = SumTree(300)
    tree.set(np.arange(100, 200), 0.5)
    assert tree.total == 50.0
    tree.set(np.arange(0), 9.0)
    tree.set(np.arange(100, 150), 0.0)
    assert tree.total == 25.0


@pytest.mark.parametrize("size", SIZES)
def test_a_restored_tree_is_the_same_to_the_bit(size: int, through_disk: Callable[[Any], Any]) -> None:
    rng = np.random.default_rng(3)
    tree, restored = tree_of(rng.random(size)), SumTree(5)  # a replay of another slack has other slots
    restored.load_state_dict(through_disk(tree.state_dict()))
    assert restored.num_leaves == size
    assert restored.total == tree.total
    for round in range(3):
        masses = rng.random(200) * tree.total
        found = tree.find(masses)
        assert np.array_equal(restored.find(masses), found), round
        for t in (tree, restored):
            t.set(found, (found + 1) / size)
    assert restored.total == tree.total


def test_the_state_is_a_copy() -> None:
    tree = tree_of(np.ones(10))
    state = tree.state_dict()
    tree.set(np.arange(10), 5.0)
    assert state["priorities"].tolist() == [1.0] * 10
    other = SumTree(10)
    other.load_state_dict(state)
    other.set(np.arange(10), 7.0)
    assert state["priorities"].tolist() == [1.0] * 10
