"""The statistics against rliable's published values, closed forms, and sums written out."""

import math

import numpy as np
import pytest

from rlrun.analysis import statistics as st

# rliable's own test (google-research/rliable, tests/rliable/metrics_test.py): [runs, tasks].
PUBLISHED_X = np.array([[1, 2], [2, 2], [1, 1], [2, 1]])
PUBLISHED_Y = np.array([[1, 1], [2, 2], [3, 3]])

# What rliable 1.2.0 returned here, with scipy 1.x, for these two tables; intervals with 20,000 resamples
# (10,000 for the last two), so that they are known to about one part in a hundred.
Z = ((np.arange(60) * 37) % 61).reshape(10, 6) / 30.0
W = ((np.arange(48) * 23) % 53).reshape(8, 6) / 25.0
STATISTICS = (st.mean, st.median, st.iqm, st.optimality_gap)
GOLDEN = {
    "Z": (Z, [1.0033333333333332, 1.0033333333333332, 1.0066666666666666, 0.255]),
    "W": (W, [1.0383333333333333, 1.075, 1.035, 0.2466666666666667]),
}
GOLDEN_INTERVALS = {
    "Z": [(0.85556, 1.15278), (0.83333, 1.17667), (0.79778, 1.21778), (0.17333, 0.34056)],
    "W": [(0.87167, 1.20667), (0.84, 1.255), (0.80333, 1.27167), (0.16, 0.34)],
}
GOLDEN_IMPROVEMENT = (0.475, 0.36458, 0.5875)
TAUS = np.array([0.0, 0.25, 0.5, 1.0, 1.5, 2.0])
GOLDEN_PROFILE = [0.98333, 0.86667, 0.73333, 0.5, 0.25, 0.0]
GOLDEN_BAND = [[0.95, 0.78333, 0.61667, 0.36667, 0.15, 0.0], [1.0, 0.95, 0.83333, 0.63333, 0.36667, 0.0]]


def tasks(table: np.ndarray) -> list[np.ndarray]:
    return list(table.T.astype(float))


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize(("table", "expected"), [(PUBLISHED_X, 1.5), (PUBLISHED_Y, 2.0)])
def test_aggregates_equal_those_of_rliables_own_test(table: np.ndarray, expected: float) -> None:
    assert [float(f(tasks(table))) for f in (st.mean, st.median, st.iqm)] == [expected] * 3


def test_probability_of_improvement_equals_that_of_rliables_own_test() -> None:
    assert st.probability_of_improvement(tasks(PUBLISHED_X), tasks(PUBLISHED_Y)) == pytest.approx(1 / 3)


@pytest.mark.parametrize("name", GOLDEN)
def test_aggregates_equal_rliables(name: str) -> None:
    table, expected = GOLDEN[name]
    assert [float(f(tasks(table))) for f in STATISTICS] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", GOLDEN)
def test_stratified_intervals_agree_with_rliables(name: str) -> None:
    for statistic, expected in zip(STATISTICS, GOLDEN_INTERVALS[name], strict=True):
        found = st.stratified_interval(statistic, tasks(GOLDEN[name][0]), rng(), 20_000)
        assert found == pytest.approx(expected, abs=0.012)


def test_improvement_and_its_interval_agree_with_rliables() -> None:
    value, low, high = GOLDEN_IMPROVEMENT
    assert st.probability_of_improvement(tasks(Z), tasks(W)) == pytest.approx(value)
    assert st.improvement_interval(tasks(Z), tasks(W), rng(), 10_000) == pytest.approx((low, high), abs=0.012)


def test_performance_profile_and_its_band_agree_with_rliables() -> None:
    assert st.performance_profile(tasks(Z), TAUS) == pytest.approx(GOLDEN_PROFILE, abs=1e-5)
    band = np.array(st.profile_band(tasks(Z), TAUS, rng(), 10_000))
    assert band == pytest.approx(np.array(GOLDEN_BAND), abs=0.02)


def test_iqm_of_eight_scores_is_the_mean_of_the_middle_four() -> None:
    assert float(st.iqm([np.array([100.0, 1, 2, 3]), np.array([-100.0, 4, 5, 6])])) == pytest.approx(3.5)


def test_tasks_may_have_different_numbers_of_runs() -> None:
    scores = [np.array([0.0, 1.0]), np.array([2.0, 2.0, 2.0, 2.0])]
    assert float(st.mean(scores)) == 1.25  # each task counts once
    assert float(st.iqm(scores)) == pytest.approx(7 / 4)  # of 0 1 2 2 2 2, without the first and the last
    low, high = st.stratified_interval(st.mean, scores, rng())
    assert (low, high) == (1.0, 1.5)


def test_optimality_gap_ignores_what_exceeds_one() -> None:
    assert float(st.optimality_gap([np.array([0.5, 7.0])])) == 0.25


def test_median_over_tasks_and_median_over_runs_are_two_things() -> None:
    scores = [np.array([0.0, 0.0, 3.0])]
    assert float(st.median(scores)) == 1.0
    assert float(st.median_run(scores)) == 0.0


def test_improvement_equals_a_count_over_all_pairs() -> None:
    x, y = rng().integers(0, 5, 7).astype(float), rng().integers(0, 6, 4).astype(float)
    wins = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a in x for b in y)
    assert st.probability_of_improvement([x], [y]) == pytest.approx(wins / 28)


def test_improvement_of_a_group_over_itself_is_a_half() -> None:
    assert st.probability_of_improvement(tasks(Z), tasks(Z)) == 0.5


def test_one_run_has_no_interval() -> None:
    assert all(math.isnan(end) for end in st.stratified_interval(st.mean, [np.array([1.0])], rng()))
    for other in ([2.0], [2.0, 3.0]):  # however many runs there are on the other side
        assert all(math.isnan(end) for end in st.improvement_interval([np.array([1.0])], [np.array(other)], rng()))


def test_the_same_seed_gives_the_same_interval() -> None:
    first, second = (st.stratified_interval(st.iqm, tasks(Z), rng()) for _ in range(2))
    assert first == second


def test_a_bootstrap_interval_covers_the_true_mean_about_95_times_in_100() -> None:
    generator, hits = rng(), 0
    for _ in range(300):
        low, high = st.stratified_interval(st.mean, [generator.normal(3.0, 1.0, 30)], generator, 400)
        hits += low <= 3.0 <= high
    assert 0.90 <= hits / 300 <= 0.98


def test_the_band_of_a_mean_curve_is_the_bootstrap_of_each_point() -> None:
    curves = rng().normal(size=(6, 3))
    low, high = st.mean_band(curves, rng(), 20_000)
    for t in range(3):
        expected = st.stratified_interval(st.mean, [curves[:, t]], rng(), 20_000)
        assert (low[t], high[t]) == pytest.approx(expected, abs=0.02)


def test_the_iqm_of_curves_is_the_iqm_at_each_point_and_its_band_the_bootstrap_there() -> None:
    curves = [rng().normal(size=(6, 3)), rng().normal(2.0, 1.0, size=(5, 3))]
    value, low, high = st.iqm_band(curves, rng(), 20_000)
    for t in range(3):
        at_t = [curve[:, t] for curve in curves]
        assert value[t] == pytest.approx(float(st.iqm(at_t)))
        assert (low[t], high[t]) == pytest.approx(st.stratified_interval(st.iqm, at_t, rng(), 20_000), abs=0.03)


def test_a_run_that_never_got_there_counts_as_the_slowest() -> None:
    never = math.inf
    assert float(st.median_of_times(np.array([5.0, 1.0, never]))) == 5.0
    assert float(st.median_of_times(np.array([1.0, 3.0, 5.0, never]))) == 4.0
    assert float(st.median_of_times(np.array([1.0, 3.0, never, never]))) == never
    assert float(st.median_of_times(np.array([never, never]))) == never  # no NaN between two infinities


def test_the_interval_of_a_median_time_may_end_in_never() -> None:
    low, high = st.time_interval(np.array([1.0, 2.0, 3.0, math.inf, math.inf]), rng())
    assert (low, high) == (1.0, math.inf)
    assert all(math.isnan(end) for end in st.time_interval(np.array([1.0]), rng()))


def test_the_interval_of_a_median_time_covers_about_95_times_in_100() -> None:
    generator, hits = rng(), 0
    for _ in range(300):
        low, high = st.time_interval(generator.exponential(size=31), generator, 400)
        hits += low <= math.log(2) <= high
    assert 0.90 <= hits / 300 <= 0.99


def test_improvement_over_other_tasks_is_refused() -> None:
    with pytest.raises(ValueError, match="2 tasks"):
        st.probability_of_improvement(tasks(PUBLISHED_X), [np.array([1.0])])
