"""Scales: human for Atari, threshold where Gymnasium has one, min-max elsewhere."""

import gymnasium
import numpy as np
import pytest

from rlrun.analysis.normalize import HUMAN, scale
from rlrun.analysis.random_scores import RANDOM_AND_THRESHOLD, measure


def test_atari_is_normalised_by_the_human_score() -> None:
    unit = scale("breakout", {"game": "breakout"}, [0.0])
    assert unit.rule == "human"
    assert unit(np.array([1.7, 30.5, 59.3])) == pytest.approx([0.0, 1.0, 2.0])


@pytest.mark.parametrize("name", ["space_invaders", "SpaceInvaders", "spaceinvaders"])
def test_a_game_is_known_however_it_is_spelt(name: str) -> None:
    assert scale("x", {"game": name}, [0.0]).one == 1668.7
    assert scale(name, {}, [0.0]).one == 1668.7


@pytest.mark.parametrize("env_id", ["ALE/BeamRider-v5", "BeamRiderNoFrameskip-v4"])
def test_gymnasiums_ids_of_games_are_known(env_id: str) -> None:
    assert scale("x", {"game": env_id}, [0.0]).one == 16926.5


def test_every_game_that_the_rom_list_has_under_that_name_is_found() -> None:
    from ale_py import roms

    known = {rom.replace("_", "") for rom in roms.get_all_rom_ids()}
    assert set(HUMAN) <= known


def test_a_gymnasium_environment_that_bears_a_games_name_has_no_human_score() -> None:
    assert scale("breakout", {"id": "MinAtar/Breakout-v1"}, [0.0, 5.0]).rule == "min-max"


def test_cartpole_is_normalised_by_the_threshold() -> None:
    unit = scale("cartpole", {"id": "CartPole-v1"}, [500.0])
    assert (unit.rule, unit.threshold) == ("threshold", 475.0)
    assert unit(np.array([22.2, 475.0])) == pytest.approx([0.0, 1.0])


def test_without_a_threshold_the_compared_runs_are_the_scale() -> None:
    unit = scale("pendulum", {"id": "Pendulum-v1"}, [-200.0, -150.0])
    assert (unit.rule, unit.threshold) == ("min-max", None)
    assert unit(np.array([-200.0, -150.0])).tolist() == [0.0, 1.0]
    assert "min-max" in str(unit)


def test_equal_runs_all_are_the_best() -> None:
    assert scale("pendulum", {"id": "Pendulum-v1"}, [-150.0])(np.array([-150.0])).tolist() == [1.0]


@pytest.mark.parametrize("env_id", RANDOM_AND_THRESHOLD)
def test_thresholds_are_gymnasiums(env_id: str) -> None:
    assert RANDOM_AND_THRESHOLD[env_id][1] == gymnasium.spec(env_id).reward_threshold


def test_the_random_score_can_be_measured_again() -> None:
    assert measure("CartPole-v1", 200) == pytest.approx(RANDOM_AND_THRESHOLD["CartPole-v1"][0], abs=2.0)
