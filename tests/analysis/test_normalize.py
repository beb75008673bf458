"""Scales: human for Atari, threshold where Gymnasium has one, min-max elsewhere."""

import gymnasium
import numpy as np
import pytest

from rlrun.analysis import statistics as st
from rlrun.analysis.human_scores import HUMAN
from rlrun.analysis.normalize import scale
from rlrun.analysis.random_scores import RANDOM_AND_THRESHOLD, measure

# Nature DQN's scores from no-op starts in the order of HUMAN, and what Wang et al. (2016), arXiv:1511.06581, made of
# them: table 1, in percent of a human.
# fmt: off
DQN = [
    1620.0, 978.0, 4280.4, 4359.0, 1364.5, 279987.0, 455.0, 29900.0, 8627.5, 585.6, 50.4, 88.0, 385.5, 4657.7, 6126.0,
    110763.0, 23633.0, 12149.4, -6.6, 729.0, -4.9, 30.8, 797.4, 8777.4, 473.0, 20437.8, -1.9, 768.5, 7259.0, 8422.3,
    26059.0, 0.0, 3085.6, 8207.8, 8485.2, -286.1, 19.5, 146.7, 13117.3, 7377.6, 39544.0, 63.9, 5860.6, -13062.3,
    3482.8, 1692.3, 54282.0, -5.6, 12.2, 4870.0, 68.1, 9989.9, 163.0, 196760.4, 2704.0, 18098.9, 5363.0,
]
# fmt: on
PUBLISHED_MEAN, PUBLISHED_MEDIAN = 227.9, 79.1


def test_human_normalised_scores_of_57_games_have_the_published_mean_and_median() -> None:
    scores = [scale(game, {"game": game}, [0.0])(np.array([score])) for game, score in zip(HUMAN, DQN, strict=True)]
    assert 100 * float(st.median(scores)) == pytest.approx(PUBLISHED_MEDIAN, abs=0.05)
    # Scores are published with one digit, which a game whose human is 2.2 above random (Double Dunk) magnifies.
    assert 100 * float(st.mean(scores)) == pytest.approx(PUBLISHED_MEAN, abs=0.3)


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


def test_all_57_games_are_in_the_rom_list_under_that_name() -> None:
    from ale_py import roms

    known = {rom.replace("_", "") for rom in roms.get_all_rom_ids()}
    assert len(HUMAN) == 57
    assert set(HUMAN) <= known


def test_a_gymnasium_environment_that_bears_a_games_name_has_no_human_score() -> None:
    assert scale("breakout", {"id": "MinAtar/Breakout-v1"}, [0.0, 5.0]).rule == "min-max"


def test_cartpole_is_normalised_by_the_threshold() -> None:
    unit = scale("cartpole", {"id": "CartPole-v1"}, [500.0])
    assert (unit.rule, unit.threshold) == ("threshold", 475.0)
    assert unit(np.array([22.2, 475.0])) == pytest.approx([0.0, 1.0])


def test_an_environment_made_with_other_arguments_is_another_task() -> None:
    assert scale("x", {"id": "FrozenLake-v1", "kwargs": {"is_slippery": False}}, [0.0, 1.0]).rule == "min-max"


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
