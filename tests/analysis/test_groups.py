"""Groups, their scores, and what is said about runs that have none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import ACROBOT, REPORT, SELECTION, write_best, write_rows, write_run

from rlrun.analysis.compare import comparison_of
from rlrun.analysis.groups import natural
from rlrun.analysis.metric import area
from rlrun.analysis.model import Comparison, Row
from rlrun.errors import UserError


def rows_of(comparison: Comparison) -> dict[str, Row]:
    return {row.label: row for row in comparison.environments[0].rows}


def mean_of(comparison: Comparison) -> float:
    (row,) = comparison.environments[0].rows
    return row.estimates["mean"].value


def said(comparison: Comparison, *parts: str) -> bool:
    return any(all(part in notice for part in parts) for notice in comparison.notices)


# --- Labels ---------------------------------------------------------------------------------------------


def test_groups_by_variant_by_a_key_and_by_both(tmp_path: Path) -> None:
    for seed, rate in ((0, 0.001), (1, 0.01)):
        write_run(tmp_path, variant=f"v{seed}", seed=seed, config={"algo.learning_rate": rate})
    for by, labels in (
        ("variant", ["v0", "v1"]),
        ("algo,variant", ["ppo, v0", "ppo, v1"]),
        ("algo.learning_rate", ["learning_rate=0.001", "learning_rate=0.01"]),
        ("eval.episodes", ["episodes=10"]),
    ):
        assert list(rows_of(comparison_of([tmp_path], by=by))) == labels
    assert said(comparison_of([tmp_path]), "pools 2 configurations")


def test_groups_by_a_section_are_named_by_its_class_and_by_what_differs(tmp_path: Path) -> None:
    for seed, (target, hidden) in enumerate((("torsos.MLP", [64, 64]), ("torsos.MLP", [256]), ("torsos.CNN", None))):
        network: dict[str, Any] = {"network._target_": target, "network.activation": "tanh"}
        if hidden is not None:
            network["network.hidden"] = hidden
        write_run(tmp_path, variant=f"v{seed}", config=network)
    assert list(rows_of(comparison_of([tmp_path], by="network"))) == ["CNN", "MLP hidden=[64, 64]", "MLP hidden=[256]"]


def test_the_same_variant_in_two_outputs_folders_is_pooled_with_a_warning_or_told_apart(tmp_path: Path) -> None:
    for folder, final in (("old", 100.0), ("new", 300.0)):
        write_run(tmp_path / folder / "outputs", final=final)
    pooled = comparison_of([tmp_path])
    assert mean_of(pooled) == 200.0
    assert said(pooled, "1 runs are there twice", "by=algo,outputs")
    apart = comparison_of([tmp_path], by="outputs")
    assert {label: row.estimates["mean"].value for label, row in rows_of(apart).items()} == {
        "new/outputs": 300.0,
        "old/outputs": 100.0,
    }


def test_labels_are_sorted_by_their_numbers() -> None:
    labels = ["lr=0.001", "lr=1e-05", "lr=0.01", "seed=10", "seed=2", "ppo2", "ppo"]
    assert sorted(labels, key=natural) == ["lr=1e-05", "lr=0.001", "lr=0.01", "ppo", "ppo2", "seed=2", "seed=10"]


# --- Scores ---------------------------------------------------------------------------------------------


def test_final_is_the_result_and_auc_the_area_under_the_evaluations(tmp_path: Path) -> None:
    write_run(tmp_path, final=50.0, curve=[10.0, 90.0, 20.0, 40.0])
    assert mean_of(comparison_of([tmp_path])) == 50.0
    assert mean_of(comparison_of([tmp_path], metric="auc")) == pytest.approx((50.0 + 55.0 + 30.0) / 3)


def test_the_area_does_not_depend_on_where_evaluations_fall() -> None:
    x = np.array([0.0, 1.0, 2.0, 10.0])
    assert area(np.column_stack([x, 3 * x + 1])) == pytest.approx(16.0)
    assert area(np.array([[5.0, 7.0]])) == 7.0


def test_best_is_what_eval_reports_of_the_policy_that_the_evaluations_chose(tmp_path: Path) -> None:
    run = write_run(tmp_path, final=50.0, curve=[10.0, 90.0, 90.0, 40.0])
    write_best(run, 750, 12.0)  # of an equal, later evaluation: the run itself keeps the first
    write_best(run, 500, 77.0)
    assert mean_of(comparison_of([tmp_path], metric="best")) == 77.0


def test_of_several_reports_of_the_best_policy_the_one_of_most_episodes_counts(tmp_path: Path) -> None:
    run = write_run(tmp_path, curve=[10.0, 90.0])
    for episodes, mean in ((9, 1.0), (100, 77.0), (30, 2.0)):
        write_best(run, 1000, mean, episodes=episodes)
    assert mean_of(comparison_of([tmp_path], metric="best")) == 77.0


def test_episodes_that_chose_the_best_policy_never_report_it(tmp_path: Path) -> None:
    run = write_run(tmp_path, seed=0, curve=[10.0, 90.0])
    write_best(run, 1000, 90.0, first_seed=SELECTION + 5, episodes=1)  # it chose against the loser, too
    with pytest.raises(UserError, match="checkpoint=best"):
        comparison_of([tmp_path], metric="best")
    write_best(write_run(tmp_path, seed=1, curve=[10.0, 90.0]), 1000, 70.0)
    some = comparison_of([tmp_path], metric="best")
    assert mean_of(some) == 70.0
    assert said(some, "left out", "rlrun eval RUN checkpoint=best", "cartpole ppo: 1")


def test_reports_of_best_policies_over_different_numbers_of_episodes_are_refused(tmp_path: Path) -> None:
    for seed, episodes in ((0, 100), (1, 10)):
        run = write_run(tmp_path, seed=seed, curve=[10.0, 90.0])
        write_best(run, 1000, 70.0, first_seed=REPORT, episodes=episodes)
    with pytest.raises(UserError, match="episodes of rlrun eval is 100"):
        comparison_of([tmp_path], metric="best")


def test_any_logged_tag_is_a_metric(tmp_path: Path) -> None:
    for seed in range(2):
        run = write_run(tmp_path, seed=seed)
        rows = [{"step": s, "train/loss": s / 100 + seed, "time/time_elapsed": s} for s in (100, 200)]
        write_rows(run / "metrics.jsonl", [*rows, {"step": 300, "train/loss": None}])
    found = comparison_of([tmp_path], metric="train/loss")
    env = found.environments[0]
    assert mean_of(found) == 2.5
    assert (env.scale.rule, env.threshold) == ("min-max", None)
    assert env.over_steps["ppo"].mean.tolist() == [1.5, 2.5]
    assert said(found, "higher value ranks first")


def test_a_logged_return_keeps_its_threshold_and_is_said_to_be_one_of_training(tmp_path: Path) -> None:
    write_run(tmp_path)
    found = comparison_of([tmp_path], metric="rollout/ep_rew_mean")
    assert found.environments[0].threshold == 475.0
    assert said(found, "episodes of training")


# --- Runs that do not count -----------------------------------------------------------------------------


def test_runs_that_failed_or_were_stopped_are_counted_and_left_out(tmp_path: Path) -> None:
    for seed, (status, final) in enumerate(
        (("finished", 100.0), ("finished", 300.0), ("failed", None), ("interrupted", None), ("running", None))
    ):
        write_run(tmp_path, seed=seed, status=status, final=final)
    found = comparison_of([tmp_path])
    (row,) = found.environments[0].rows
    assert (row.num_runs, row.num_finished, row.num_scored) == (5, 2, 2)
    assert row.others == {"failed": 1, "interrupted": 2}  # nobody holds the lock of the one that says running
    assert mean_of(found) == 200.0
    assert said(found, "only finished runs count", "cartpole ppo: 2 of 5 finished (1 failed, 2 interrupted)")


def test_a_finished_run_whose_return_is_no_number_is_left_out_and_said_so(tmp_path: Path) -> None:
    write_run(tmp_path, seed=0, final=100.0)
    write_run(tmp_path, seed=1, final=float("nan"))
    found = comparison_of([tmp_path])
    (row,) = found.environments[0].rows
    assert (row.num_finished, row.num_scored, mean_of(found)) == (2, 1, 100.0)
    assert said(found, "left out because their return is not a number", "cartpole ppo: 1")


def test_a_run_that_lacks_evaluations_is_said_to_shorten_the_curve(tmp_path: Path) -> None:
    write_run(tmp_path, seed=0, curve=[1.0] * 10)
    run = write_run(tmp_path, seed=1, curve=[1.0] * 10)
    lines = (run / "evaluations.jsonl").read_text().splitlines(keepends=True)
    (run / "evaluations.jsonl").write_text("".join(lines[:3]))
    found = comparison_of([tmp_path])
    assert found.environments[0].over_steps["ppo"].x.tolist() == [100.0, 200.0, 300.0]
    assert said(found, "points of a curve are missing", "seed=1 has 3 of 10")


def test_wall_clocks_of_different_machines_are_warned_of(tmp_path: Path) -> None:
    write_run(tmp_path, seed=0)
    write_run(tmp_path, seed=1, record={"fingerprint": {"processor": "Slide Rule", "device": "cpu", "threads": 2}})
    assert said(
        comparison_of([tmp_path]), "wall clocks do not compare", "Abacus 3000", "Slide Rule, 2 cores, cpu, 2 threads"
    )


def test_overall_numbers_are_over_what_all_groups_have_played(tmp_path: Path) -> None:
    for algo in ("a2c", "ppo"):
        write_run(tmp_path, "cartpole", algo)
    write_run(tmp_path, "acrobot", "ppo", protocol=ACROBOT, final=-100.0)
    found = comparison_of([tmp_path])
    assert found.overall.tasks == ["cartpole"]
    assert said(found, "acrobot", "left out of the overall")


def test_without_a_common_environment_there_are_no_overall_numbers(tmp_path: Path) -> None:
    write_run(tmp_path, "cartpole", "a2c")
    write_run(tmp_path, "acrobot", "ppo", protocol=ACROBOT, final=-100.0)
    found = comparison_of([tmp_path])
    assert found.overall.rows == []
    assert found.verdicts == {}
    assert said(found, "there are no overall numbers")
