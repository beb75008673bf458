"""Overall numbers, thresholds, and the sentence that says which is better."""

from pathlib import Path

import numpy as np
import pytest
from synthetic import ACROBOT, BREAKOUT, PENDULUM, write_run

from rlrun.analysis import statistics as st
from rlrun.analysis.compare import comparison_of
from rlrun.analysis.curves import average_over_tasks
from rlrun.analysis.model import Estimate, Pair, Row
from rlrun.analysis.numbers import shown, steps
from rlrun.analysis.overall import OF_BUDGET, OF_LONGEST
from rlrun.analysis.verdict import verdict

NAN = float("nan")


def row(label: str, num_scored: int = 5, value: float = 1.0) -> Row:
    return Row(label, num_scored, num_scored, num_scored, {}, {"iqm": Estimate(value, value, value)})


def pair(better: str, than: str, value: float, low: float, high: float) -> Pair:
    return Pair(better, than, Estimate(value, low, high))


# --- Verdicts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("estimate", "word"),
    [
        ((0.9, 0.7, 1.0), "probability 0.900 [0.700, 1.000]: better."),
        ((0.6, 0.4, 0.8), "may be chance."),
        ((0.5, 0.4, 0.8), "may be chance."),
        ((0.3, 0.1, 0.4), "worse, though its IQM is higher."),
        ((1.0, NAN, NAN), "probability 1.000: one run says nothing about the next."),
    ],
)
def test_the_verdict_says_how_sure_one_may_be(estimate: tuple[float, float, float], word: str) -> None:
    text = verdict([row("ppo"), row("dqn")], [pair("ppo", "dqn", *estimate)])
    assert text.startswith("ppo has the highest IQM, 1.000 [1.000, 1.000]; a run of it beats one of dqn with ")
    assert text.endswith(word)


def test_equal_groups_are_said_to_be_alike() -> None:
    text = verdict([row("ppo"), row("a2c")], [pair("a2c", "ppo", 0.5, 0.5, 0.5000000000000001)])
    assert text == "all groups are alike, with an IQM of 1.000 [1.000, 1.000]."


def test_few_seeds_and_mixed_protocols_weaken_the_verdict() -> None:
    pairs = [pair("ppo", "dqn", 1.0, 1.0, 1.0)]
    assert "a hint, not a result" in verdict([row("ppo"), row("dqn", 4)], pairs)
    assert "a hint" not in verdict([row("ppo"), row("dqn")], pairs)
    assert "a hint" in verdict([row("ppo"), row("dqn")], pairs, num_tasks=2)
    assert "Protocols are mixed (total_steps)" in verdict([row("ppo"), row("dqn")], pairs, ["total_steps"])


def test_only_pairs_of_the_leader_are_in_the_verdict_and_many_are_cut() -> None:
    names = [f"g{i}" for i in range(8)]
    pairs = [pair(x, y, 0.9, 0.8, 1.0) for i, x in enumerate(names) for y in names[i + 1 :]]
    text = verdict([row(name) for name in names], pairs)
    assert text.count("one of") == 4
    assert text.endswith("and so on for 3 more.")


def test_of_one_environment_nothing_is_said_twice(tmp_path: Path) -> None:
    for algo in ("a2c", "ppo"):
        write_run(tmp_path, algo=algo)
    assert list(comparison_of([tmp_path]).verdicts) == ["cartpole"]
    for algo in ("a2c", "ppo"):
        write_run(tmp_path, "acrobot", algo, protocol=ACROBOT)
    assert list(comparison_of([tmp_path]).verdicts) == ["overall", "acrobot", "cartpole"]


# --- Numbers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        ((37.7, 9.35, 66.04), "37.7 [9.3, 66.0]"),  # all with the decimals of the largest
        ((0.5, -0.0001, 1.0), "0.500 [0.000, 1.000]"),
        ((12345.678, 1.0, 2e6), "12,345.7 [1.0, 2,000,000.0]"),
        ((5.0, NAN, NAN), "5.000"),
    ],
)
def test_estimates_are_shown_with_one_number_of_decimals(estimate: tuple[float, float, float], text: str) -> None:
    assert shown(Estimate(*estimate)) == text


def test_steps_are_a_range_where_runs_took_different_numbers(tmp_path: Path) -> None:
    write_run(tmp_path, seed=0)
    assert steps(comparison_of([tmp_path]).environments[0].rows[0]) == "1,000"
    write_run(tmp_path, seed=1, record={"steps": 1024})
    assert steps(comparison_of([tmp_path]).environments[0].rows[0]) == "1,000 to 1,024"


# --- Pairs ----------------------------------------------------------------------------------------------


def test_all_pairs_have_a_probability_and_an_interval(tmp_path: Path) -> None:
    for i, algo in enumerate(("a", "b", "c", "d")):
        for seed in range(5):
            write_run(tmp_path, algo=algo, seed=seed, final=100.0 * i + 70.0 * seed)
    found = comparison_of([tmp_path])
    pairs = found.environments[0].pairs
    assert [(p.better, p.than) for p in pairs] == [("d", x) for x in "cba"] + [("c", "b"), ("c", "a"), ("b", "a")]
    for one in pairs:
        assert 0.0 <= one.probability.low <= one.probability.value <= one.probability.high <= 1.0
        assert one.probability.value >= 0.5
    assert [p.probability for p in found.overall.pairs] == [p.probability for p in pairs]


# --- Thresholds -----------------------------------------------------------------------------------------


def test_steps_to_threshold_are_the_median_over_runs(tmp_path: Path) -> None:
    for seed, curve in enumerate(([480.0, 500.0], [100.0, 480.0], [1.0, 2.0])):
        write_run(tmp_path, seed=seed, curve=curve)
    (found,) = comparison_of([tmp_path]).environments[0].rows
    assert found.steps_to_threshold == Estimate(1000.0, 500.0, float("inf"))
    assert (found.num_reached, found.num_evaluated) == (2, 3)


def test_a_threshold_may_be_given_for_all_environments_and_for_one(tmp_path: Path) -> None:
    write_run(tmp_path, "cartpole", curve=[100.0, 200.0, 300.0])
    write_run(tmp_path, "pendulum", curve=[-900.0, -250.0, -150.0], protocol=PENDULUM)

    def found(**thresholds: float) -> dict[str, tuple[float | None, float | None]]:
        named = {key if key != "everywhere" else "": value for key, value in thresholds.items()}
        environments = comparison_of([tmp_path], thresholds=named).environments
        times = {env.name: env.rows[0].steps_to_threshold for env in environments}
        return {env.name: (env.threshold, t.value if (t := times[env.name]) else None) for env in environments}

    assert found() == {"cartpole": (475.0, float("inf")), "pendulum": (None, None)}
    assert found(pendulum=-250.0)["pendulum"] == (-250.0, 666.0)
    assert found(everywhere=150.0, pendulum=-200.0) == {"cartpole": (150.0, 666.0), "pendulum": (-200.0, 1000.0)}


def test_a_threshold_that_is_given_moves_no_normalised_score(tmp_path: Path) -> None:
    write_run(tmp_path)
    scales = [comparison_of([tmp_path], thresholds=t).environments[0].scale for t in ({}, {"": 200.0})]
    assert scales[0] == scales[1]


# --- Overall --------------------------------------------------------------------------------------------


def test_overall_estimates_are_the_statistics_of_normalised_scores(tmp_path: Path) -> None:
    finals = {"cartpole": [100.0, 475.0, 22.2, 300.0], "breakout": [30.5, 1.7, 59.3, 16.1]}
    for env, protocol in (("cartpole", None), ("breakout", BREAKOUT)):
        for seed, final in enumerate(finals[env]):
            write_run(tmp_path, env, seed=seed, final=final, protocol=protocol)
    (found,) = comparison_of([tmp_path]).overall.rows
    scores = [(np.array(finals["breakout"]) - 1.7) / 28.8, (np.array(finals["cartpole"]) - 22.2) / 452.8]
    for key, statistic in (("mean", st.mean), ("median", st.median), ("iqm", st.iqm)):
        assert found.estimates[key].value == pytest.approx(float(statistic(scores)))
    assert found.estimates["optimality_gap"].value == pytest.approx(
        np.mean([1 - np.minimum(task, 1).mean() for task in scores])
    )


def test_overall_curves_are_in_steps_where_budgets_are_equal_and_in_shares_elsewhere(tmp_path: Path) -> None:
    for algo, last in (("dqn", 200.0), ("ppo", 475.0)):
        write_run(tmp_path / "same", "cartpole", algo, curve=[22.2, last])
        write_run(tmp_path / "same", "acrobot", algo, curve=[-499.1, -100.0], protocol=ACROBOT)
    same = comparison_of([tmp_path / "same"]).overall
    assert (same.x_steps, same.x_clock) == ("environment steps", OF_LONGEST)
    assert same.over_steps["ppo"].x[[0, -1]].tolist() == [500.0, 1000.0]
    assert same.over_steps["ppo"].mean[[0, -1]] == pytest.approx([0.0, 1.0])
    for algo in ("dqn", "ppo"):
        write_run(tmp_path / "other", "cartpole", algo, total_steps=1000)
        write_run(tmp_path / "other", "acrobot", algo, total_steps=4000, protocol=ACROBOT)
    other = comparison_of([tmp_path / "other"]).overall
    assert other.x_steps == OF_BUDGET
    assert other.over_steps["ppo"].x[[0, -1]].tolist() == [0.25, 1.0]


def test_an_overall_curve_needs_every_task() -> None:
    rng = np.random.default_rng(0)
    line = np.array([[0.0, 0.0], [1.0, 1.0]])
    assert average_over_tasks([[line], []], rng) is None
    curve = average_over_tasks([[line, line + 1], [line]], rng)
    assert curve is not None
    assert (curve.x[0], curve.x[-1], curve.num_runs) == (1.0, 1.0, 3)
    assert average_over_tasks([[line], [line + 5]], rng) is None  # they are known nowhere together


def test_performance_profiles_fall_from_one_to_nothing(tmp_path: Path) -> None:
    for seed in range(5):
        write_run(tmp_path, seed=seed, final=100.0 * (seed + 1))
    together = comparison_of([tmp_path]).overall
    profile = together.profiles["ppo"]
    scores = (100.0 * np.arange(1, 6) - 22.2) / 452.8
    assert profile.fraction == pytest.approx([(scores > tau).mean() for tau in together.taus])
    assert (profile.low <= profile.fraction).all()
    assert (profile.fraction <= profile.high).all()
