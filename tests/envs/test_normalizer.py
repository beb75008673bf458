from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rlrun.envs.normalizer import Normalizer, RunningMoments

Disk = Callable[[Any], Any]


def batches(seed: int, shape: tuple[int, ...]) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [rng.normal(3.0, 2.0, (int(rng.integers(1, 20)), *shape)) for _ in range(12)]


@pytest.mark.parametrize("shape", [(), (3,), (2, 4)])
@pytest.mark.parametrize("seed", range(3))
def test_running_moments_equal_numpy_over_the_concatenation(shape: tuple[int, ...], seed: int) -> None:
    rows = batches(seed, shape)
    moments = RunningMoments(shape)
    for batch in rows:
        moments.update(batch)
    # The first count of 1e-4 stands for a row of mean 0 and variance 1.
    everything = np.concatenate(rows)
    np.testing.assert_allclose(moments.mean, everything.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(moments.var, everything.var(axis=0), rtol=1e-3)
    assert moments.count == pytest.approx(len(everything), abs=1e-3)
    assert np.shape(moments.mean) == np.shape(moments.var) == shape


def test_running_moments_do_not_depend_on_how_the_rows_are_batched() -> None:
    rows = np.concatenate(batches(0, (3,)))
    at_once, one_by_one = RunningMoments((3,)), RunningMoments((3,))
    at_once.update(rows)
    for row in rows:
        one_by_one.update(row[None])
    np.testing.assert_allclose(at_once.mean, one_by_one.mean, rtol=1e-9)
    np.testing.assert_allclose(at_once.var, one_by_one.var, rtol=1e-9)


def test_normalised_observations_have_mean_0_and_variance_1() -> None:
    normalizer = Normalizer((2,), 0.99)
    rows = np.random.default_rng(0).normal([5, -3], [2, 0.1], (5000, 2))
    normalizer.update_obs(rows)
    scaled = normalizer.obs(rows)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(scaled.std(axis=0), 1, atol=1e-3)


def test_outliers_are_clipped_to_10_deviations() -> None:
    normalizer = Normalizer((1,), 0.99)
    normalizer.update_obs(np.random.default_rng(0).normal(0, 1, (1000, 1)))
    assert normalizer.obs(np.array([[1e6], [-1e6]])).tolist() == [[10.0], [-10.0]]


def test_normalising_an_observation_changes_nothing() -> None:
    normalizer = Normalizer((2,), 0.99)
    normalizer.update_obs(np.ones((4, 2)))
    moments = normalizer.obs_moments
    before = (moments.mean.copy(), moments.var.copy(), moments.count)
    obs = np.array([[1.0, 2.0]])
    normalizer.obs(obs)
    assert np.array_equal(moments.mean, before[0])
    assert np.array_equal(moments.var, before[1])
    assert moments.count == before[2]
    assert obs.tolist() == [[1.0, 2.0]]


def test_rewards_are_divided_by_the_deviation_of_the_discounted_return() -> None:
    """The hand-written twin follows VecNormalize: add to the return, then to its statistics, then divide."""
    rng, gamma = np.random.default_rng(0), 0.9
    normalizer, moments, returns, kept = Normalizer((1,), gamma), RunningMoments(()), np.zeros(3), np.zeros(3)
    for _ in range(50):
        reward, ended = rng.normal(1, 2, 3), rng.random(3) < 0.2
        returns = gamma * returns + reward
        moments.update(returns)
        expected = np.clip(reward / np.sqrt(moments.var + 1e-8), -10, 10)
        returns = np.where(ended, 0.0, returns)
        np.testing.assert_allclose(normalizer.reward(reward, ended, kept), expected, rtol=1e-12)
        np.testing.assert_allclose(kept, returns, rtol=1e-12)


def test_scaling_a_reward_does_not_write_into_it() -> None:
    reward = np.array([3.0, -2.0])
    Normalizer((1,), 0.9).reward(reward, np.array([True, False]), np.zeros(2))
    assert reward.tolist() == [3.0, -2.0]


def used_normalizer(seed: int) -> Normalizer:
    rng, normalizer, returns = np.random.default_rng(seed), Normalizer((3,), 0.9), np.zeros(4)
    for _ in range(20):
        go_on(normalizer, rng, returns)
    return normalizer


def go_on(normalizer: Normalizer, rng: np.random.Generator, returns: np.ndarray) -> tuple[bytes, bytes]:
    """Feed one step's observations and rewards; return what comes out."""
    obs = rng.normal(size=(4, 3))
    normalizer.update_obs(obs)
    reward = normalizer.reward(rng.normal(size=4), rng.random(4) < 0.2, returns)
    return normalizer.obs(obs).tobytes(), reward.tobytes()


def test_a_restored_normaliser_goes_on_bit_for_bit(through_disk: Disk) -> None:
    undisturbed = used_normalizer(0)
    stored = through_disk(undisturbed.state_dict())
    restored = used_normalizer(1)
    restored.load_state_dict(stored)
    outcomes = []
    for normalizer in (undisturbed, restored):
        rng, returns = np.random.default_rng(5), np.ones(4)
        outcomes.append([go_on(normalizer, rng, returns) for _ in range(10)])
    assert outcomes[0] == outcomes[1]


def test_the_state_of_a_restored_normaliser_is_the_state_it_was_restored_from(through_disk: Disk) -> None:
    stored = through_disk(used_normalizer(0).state_dict())
    restored = Normalizer((3,), 0.9)
    restored.load_state_dict(stored)

    def shapes(state: Any) -> Any:
        if isinstance(state, dict):
            return {key: shapes(value) for key, value in state.items()}
        return (type(state), tuple(state.shape)) if hasattr(state, "shape") else (type(state), state)

    assert shapes(restored.state_dict()) == shapes(stored)


def test_the_discount_is_configuration_that_a_restore_does_not_undo(through_disk: Disk) -> None:
    normalizer, returns = Normalizer((1,), 0.5), np.zeros(1)
    normalizer.load_state_dict(through_disk(Normalizer((1,), 0.9).state_dict()))
    for _ in range(2):
        normalizer.reward(np.array([2.0]), np.array([False]), returns)
    assert returns.tolist() == [2.0 * 0.5 + 2.0]


def test_statistics_that_were_stored_with_the_discounted_returns_are_taken_without(through_disk: Disk) -> None:
    stored = through_disk(used_normalizer(0).state_dict())
    restored = Normalizer((3,), 0.9)
    restored.load_state_dict({**stored, "discounted_return": np.ones(7)})
    assert through_disk(restored.state_dict()).keys() == stored.keys()
    obs = np.ones((2, 3))
    assert np.array_equal(restored.obs(obs), used_normalizer(0).obs(obs))
