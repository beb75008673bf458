"""`rlrun compare` as a person meets it: the real command on made-up run folders."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from harness import rlrun
from synthetic import ACROBOT, BREAKOUT, CARTPOLE, write_run, write_study

FIGURES = ("sample_efficiency", "wall_clock", "performance_profiles", "intervals", "probability_of_improvement")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return the folder in which a study of three algorithms was compared, and what was printed."""
    folder = tmp_path_factory.mktemp("study")
    write_study(folder / "outputs")
    unfinished = {"final": None, "status": "interrupted", "protocol": ACROBOT, "total_steps": 100_000}
    write_run(folder / "outputs", "acrobot", "ppo", seed=9, **unfinished)
    done = rlrun(["compare", "outputs"], folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def compared(folder: Path, *arguments: str) -> dict[str, Any]:
    """Compare without figures and return report.json with what was printed under "stdout"."""
    # matplotlib is hidden: drawing takes most of the time, and has a test of its own.
    code = "import sys; sys.modules['matplotlib'] = None; from rlrun.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "compare", *arguments], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "rlrun[plot]" in done.stderr
    return {**json.loads((folder / "report/report.json").read_text()), "stdout": done.stdout}


def refused(folder: Path, *arguments: str) -> str:
    done = rlrun(["compare", *arguments], folder)
    assert done.returncode == 2, done.stdout
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert not (folder / "report").exists()
    return done.stderr


def test_the_table_says_how_good_how_sure_and_how_many(study: tuple[Path, str]) -> None:
    text = study[1]
    for expected in ("5 of 6", "IQM", "optimality gap", "human-normalised", "threshold-normalised", "overall"):
        assert expected in text
    assert "P(ppo > dqn) = 1.000" in text
    assert "acrobot ppo: 5 of 6 finished" in text


def test_all_files_are_written(study: tuple[Path, str]) -> None:
    report = study[0] / "report"
    expected = {f"report.{kind}" for kind in ("json", "csv", "md", "html")}
    expected |= {f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg")}
    assert {path.name for path in report.iterdir()} == expected
    assert all((report / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in FIGURES)
    assert "<svg" in (report / "intervals.svg").read_text()


def test_json_csv_and_markdown_agree(study: tuple[Path, str]) -> None:
    report = study[0] / "report"
    stored = json.loads((report / "report.json").read_text())
    rows = list(csv.DictReader((report / "report.csv").read_text().splitlines()))
    mean = stored["environments"]["cartpole"]["groups"]["ppo"]["mean"]
    row = next(row for row in rows if (row["environment"], row["group"]) == ("cartpole", "ppo"))
    assert float(row["mean"]) == mean["value"]
    assert float(row["mean_low"]) == mean["low"] < mean["value"] < mean["high"]
    assert f"| {mean['value']:.1f} [{mean['low']:.1f}, {mean['high']:.1f}] |" in (report / "report.md").read_text()
    assert len(stored["runs"]) == 46
    assert (report / stored["runs"][0]["path"] / "run.json").exists()
    assert stored["overall"]["environments"] == ["acrobot", "breakout", "cartpole"]


def test_the_same_runs_give_the_same_report(study: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = study
    assert rlrun(["compare", "outputs", "out=again"], folder).returncode == 0
    for name in ("report.json", "report.csv", "report.md", "report.html", "intervals.svg"):
        assert (folder / "again" / name).read_bytes() == (folder / "report" / name).read_bytes(), name


def test_fewer_than_five_seeds_are_warned_of(tmp_path: Path) -> None:
    write_run(tmp_path / "outputs")
    report = compared(tmp_path)  # without PATHS it is outputs
    assert any("fewer than 5 seeds" in notice and "cartpole ppo (1)" in notice for notice in report["notices"])
    assert report["environments"]["cartpole"]["groups"]["ppo"]["mean"] == {"value": 400.0, "low": None, "high": None}


@pytest.mark.parametrize(
    ("other", "key", "values"),
    [
        ({"protocol": {**BREAKOUT, "repeat_action_probability": 0.25}}, "repeat_action_probability", ("0.0", "0.25")),
        ({"protocol": {**BREAKOUT, "life_loss": False}}, "life_loss", ("True", "False")),
        ({"total_steps": 2000}, "total_steps", ("1000", "2000")),
        ({"config": {"eval.final_episodes": 10}}, "eval.final_episodes", ("100", "10")),
        ({"config": {"stop.at_return": 30}}, "stop.at_return", ("None", "30")),
    ],
)
def test_mixed_protocols_are_refused_unless_told(
    tmp_path: Path, other: dict[str, Any], key: str, values: tuple[str, str]
) -> None:
    write_run(tmp_path / "outputs", "breakout", "a2c", protocol=BREAKOUT)
    write_run(tmp_path / "outputs", "breakout", "dqn", **{"protocol": BREAKOUT, **other})
    message = refused(tmp_path, "outputs")
    for expected in (key, *values, "mix=true", "breakout/a2c"):
        assert expected in message
    report = compared(tmp_path, "outputs", "mix=true")
    assert any("mixed protocols" in notice and key in notice for notice in report["notices"])


def test_greedy_and_sampled_policies_may_differ_between_algorithms_only(tmp_path: Path) -> None:
    sampled = {**CARTPOLE, "policy": "last, sampled"}
    write_run(tmp_path / "outputs", algo="ppo", protocol=sampled)
    write_run(tmp_path / "outputs", algo="dqn")
    assert any("sampled" in notice for notice in compared(tmp_path, "outputs")["notices"])
    write_run(tmp_path / "outputs", algo="ppo", variant="greedy")
    (tmp_path / "report").rename(tmp_path / "old")
    assert "policy" in refused(tmp_path, "outputs")


def test_a_key_that_is_newer_than_a_run_tells_nothing_against_it(tmp_path: Path) -> None:
    write_run(tmp_path / "outputs", seed=0)
    write_run(tmp_path / "outputs", seed=1, config={"eval.max_steps": 30_000})
    compared(tmp_path, "outputs")
    write_run(tmp_path / "outputs", seed=2, config={"eval.max_steps": 100})
    (tmp_path / "report").rename(tmp_path / "old")
    assert "eval.max_steps" in refused(tmp_path, "outputs")


def test_how_often_was_evaluated_matters_only_to_metrics_of_evaluations(tmp_path: Path) -> None:
    write_run(tmp_path / "outputs", seed=0)
    write_run(tmp_path / "outputs", seed=1, config={"eval.every": 5})
    assert "eval.every" in refused(tmp_path, "outputs", "metric=best")
    compared(tmp_path, "outputs")


def test_each_metric_reads_its_own_episodes(tmp_path: Path) -> None:
    write_run(tmp_path / "outputs", final=50.0, curve=[10.0, 90.0, 20.0, 40.0])
    for metric, expected in (("final", 50.0), ("best", 90.0), ("auc", 40.0)):
        report = compared(tmp_path, "outputs", f"metric={metric}")
        assert report["environments"]["cartpole"]["groups"]["ppo"]["mean"]["value"] == expected
        assert any("flatters" in notice for notice in report["notices"]) == (metric == "best")


def test_groups_by_variant_by_a_key_and_by_both(tmp_path: Path) -> None:
    for seed, rate in ((0, 0.001), (1, 0.01)):
        write_run(tmp_path / "outputs", variant=f"v{seed}", seed=seed, config={"algo.learning_rate": rate})
    for by, labels in (
        ("variant", {"v0", "v1"}),
        ("algo,variant", {"ppo, v0", "ppo, v1"}),
        ("algo.learning_rate", {"learning_rate=0.001", "learning_rate=0.01"}),
    ):
        report = compared(tmp_path, "outputs", f"by={by}")
        assert set(report["environments"]["cartpole"]["groups"]) == labels
    assert any("pools 2 configurations" in notice for notice in compared(tmp_path, "outputs")["notices"])


def test_steps_to_threshold_are_the_median_over_runs(tmp_path: Path) -> None:
    for seed, curve in enumerate(([480.0, 500.0], [100.0, 480.0], [1.0, 2.0])):
        write_run(tmp_path / "outputs", seed=seed, curve=curve)
    group = compared(tmp_path, "outputs")["environments"]["cartpole"]["groups"]["ppo"]
    assert (group["steps_to_threshold"], group["reached_threshold"]) == (1000.0, 2)


def test_overall_numbers_are_over_what_all_groups_have_played(tmp_path: Path) -> None:
    for algo in ("a2c", "ppo"):
        write_run(tmp_path / "outputs", "cartpole", algo)
    write_run(tmp_path / "outputs", "acrobot", "ppo", protocol=ACROBOT, final=-100.0)
    report = compared(tmp_path, "outputs")
    assert report["overall"]["environments"] == ["cartpole"]
    assert any("acrobot" in notice and "left out of the overall" in notice for notice in report["notices"])


def test_run_folders_are_paths_although_they_hold_an_equals_sign(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / "outputs", seed=seed) for seed in range(3)]
    assert len(compared(tmp_path, *map(str, paths[:2]))["runs"]) == 2
    inside = rlrun(["compare", "seed=0", f"out={tmp_path}/other"], paths[0].parent)
    assert inside.returncode == 0, inside.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nowhere"], ["nowhere", "does not exist"]),
        (["outputs/seed=7"], ["outputs/seed=7", "does not exist"]),
        (["outputs", "by=algo.learning_rat"], ["algo.learning_rat", "algo.learning_rate"]),
        (["outputs", "metric=finl"], ["metric=finl", "final"]),
        (["outputs", "metrc=final"], ["metrc", "metric"]),
        (["outputs", "mix=maybe"], ["mix=maybe", "bool"]),
        (["outputs", "out=file/report"], ["out=file/report", "cannot be written"]),
    ],
)
def test_bad_input_gets_one_clear_message(tmp_path: Path, arguments: list[str], expected: list[str]) -> None:
    write_run(tmp_path / "outputs")
    (tmp_path / "file").touch()
    message = refused(tmp_path, *arguments)
    assert all(text in message for text in expected), message


def test_nothing_finished_is_one_clear_message(tmp_path: Path) -> None:
    write_run(tmp_path / "outputs", final=None, status="failed")
    assert "none of the 1 runs has a result" in refused(tmp_path, "outputs")


def test_without_paths_and_outputs_there_is_one_clear_message(tmp_path: Path) -> None:
    assert "needs PATHS" in refused(tmp_path)
