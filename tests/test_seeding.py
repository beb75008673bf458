import random
from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch

from rlrun.seeding import (
    REPORT_SEEDS,
    SELECTION_SEEDS,
    TRAINING_SEEDS,
    GlobalGenerators,
    Seeds,
    preserved_rng,
    seed_global_generators,
)


def draw_globally() -> list[float]:
    """Draw from every global generator, odd numbers of Gaussians included (both libraries cache one)."""
    return [
        random.random(),
        random.gauss(0, 1),
        float(np.random.random()),
        float(np.random.normal()),
        float(torch.rand(())),
        float(torch.randn(3).sum()),
    ]


def test_the_seeds_of_training_selection_and_report_never_meet() -> None:
    for a, b in combinations([TRAINING_SEEDS, SELECTION_SEEDS, REPORT_SEEDS], 2):
        assert range(max(a.start, b.start), min(a.stop, b.stop)) == range(0)


def test_environment_seeds_fit_the_32_bits_of_the_arcade_learning_environment() -> None:
    assert all(seeds[0] >= 0 and seeds[-1] < 2**31 for seeds in (TRAINING_SEEDS, SELECTION_SEEDS, REPORT_SEEDS))


def test_a_generator_depends_on_seed_and_name_alone() -> None:
    def draws(seed: int, name: str) -> list[int]:
        return Seeds(seed).numpy(name).integers(2**62, size=4).tolist()

    assert draws(3, "ppo") == draws(3, "ppo")
    assert draws(3, "ppo") != draws(3, "a2c")
    assert draws(3, "ppo") != draws(4, "ppo")


def test_making_one_generator_does_not_disturb_another() -> None:
    seeds = Seeds(0)
    alone = seeds.torch("ppo").initial_seed()
    seeds.numpy("other"), seeds.torch("another")
    assert seeds.torch("ppo").initial_seed() == alone


def test_entropy_is_the_same_in_every_version_and_process() -> None:
    # Python's own hash of a string differs between processes; a stored run would not continue.
    assert Seeds(0).entropy("ppo") == 13645443220438846229


@pytest.mark.parametrize("count", [1, 10, 1000])
def test_episode_seeds_differ_and_lie_in_the_range(count: int) -> None:
    for seed in range(20):
        seeds = Seeds(seed).episodes("report", REPORT_SEEDS, count)
        assert len(set(seeds)) == count
        assert all(s in REPORT_SEEDS for s in seeds)


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**63 - 1])
def test_seed_global_generators_takes_every_seed_and_repeats_itself(seed: int) -> None:
    seed_global_generators(seed)
    first = draw_globally()
    seed_global_generators(seed)
    assert draw_globally() == first


def test_global_generators_come_back_as_they_were(through_disk: Callable[[Any], Any]) -> None:
    seed_global_generators(7)
    draw_globally()
    state = through_disk(GlobalGenerators().state_dict())
    expected = [draw_globally() for _ in range(3)]
    seed_global_generators(8)
    GlobalGenerators().load_state_dict(state)
    assert [draw_globally() for _ in range(3)] == expected


def test_preserved_rng_leaves_no_trace() -> None:
    seed_global_generators(7)
    draw_globally()
    with preserved_rng(1):
        pass
    expected = draw_globally()
    seed_global_generators(7)
    draw_globally()
    with preserved_rng(1):
        draw_globally()
    assert draw_globally() == expected


def test_preserved_rng_gives_the_block_the_same_numbers_each_time() -> None:
    inside = []
    for outside in (1, 2):
        seed_global_generators(outside)
        with preserved_rng(5):
            inside.append(draw_globally())
    assert inside[0] == inside[1]


def test_preserved_rng_puts_the_generators_back_when_the_block_fails() -> None:
    seed_global_generators(7)
    expected = draw_globally()
    seed_global_generators(7)

    def fail() -> None:
        with preserved_rng(5):
            draw_globally()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert draw_globally() == expected
