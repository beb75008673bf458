import pytest

from rlrun.math.schedules import linear


@pytest.mark.parametrize(("progress", "expected"), [(0.0, 4.0), (0.25, 3.5), (0.5, 3.0), (1.0, 2.0)])
def test_linear_is_a_straight_line(progress: float, expected: float) -> None:
    assert linear(4.0, 2.0, progress) == pytest.approx(expected)


@pytest.mark.parametrize(("progress", "expected"), [(-0.1, 1.0), (1.0003, 0.0), (7.0, 0.0)])
def test_linear_is_clamped_so_that_an_overshooting_run_never_extrapolates(progress: float, expected: float) -> None:
    assert linear(1.0, 0.0, progress) == expected


def test_linear_without_a_slope_is_exactly_constant() -> None:
    assert {linear(2.5e-4, 2.5e-4, i / 97) for i in range(98)} == {2.5e-4}
