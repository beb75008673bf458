"""`rlrun compare` as a person meets it: the real command on made-up run folders."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from harness import rlrun_here
from synthetic import ACROBOT, write_run, write_study

FIGURES = ("performance_profiles", "intervals", "probability_of_improvement", "sample_efficiency", "wall_clock")
OF_LONGEST = "share of each environment's longest run"
MACHINE = "Abacus 3000, 2 cores, cpu, 1 thread"
FIGURES += ("sample_efficiency_overall", "wall_clock_overall")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return the folder in which a study of three algorithms was compared, and what was printed."""
    folder = tmp_path_factory.mktemp("study")
    write_study(folder / "outputs")
    unfinished = {"final": None, "status": "interrupted", "protocol": ACROBOT, "total_steps": 100_000}
    write_run(folder / "outputs", "acrobot", "ppo", seed=9, **unfinished)
    done = rlrun_here(["compare", "outputs"], folder)
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
    done = rlrun_here(["compare", *arguments], folder)
    assert done.returncode == 2, done.stdout
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert not (folder / "report").exists()
    return done.stderr


def test_the_table_says_how_good_how_sure_and_how_many(study: tuple[Path, str]) -> None:
    text = study[1]
    for expected in ("5 of 6, 1 interrupted", "IQM", "optimality gap", "human-normalised", "threshold-normalised"):
        assert expected in text
    assert "P(ppo > dqn) = 1.000" in text
    assert "acrobot ppo: 5 of 6 finished" in text


def test_the_verdict_stands_at_the_top(study: tuple[Path, str]) -> None:
    _, first, *_ = study[1].splitlines()
    assert first.startswith("overall: ppo has the highest IQM, ")
    assert "a run of it beats one of dqn with probability 1.000 [1.000, 1.000]: better" in first


def test_all_files_are_written(study: tuple[Path, str]) -> None:
    report = study[0] / "report"
    expected = {f"report.{kind}" for kind in ("json", "csv", "md", "html")}
    expected |= {f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg", "pdf")}
    assert {path.name for path in report.iterdir()} == expected
    assert all((report / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in FIGURES)
    assert "<svg" in (report / "intervals.svg").read_text()
    assert (report / "intervals.pdf").read_bytes().startswith(b"%PDF")


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
    assert rlrun_here(["compare", "outputs", "out=again"], folder).returncode == 0
    for name in ("report.json", "report.csv", "report.md", "report.html", "intervals.svg", "intervals.pdf"):
        assert (folder / "again" / name).read_bytes() == (folder / "report" / name).read_bytes(), name


def test_json_has_the_curves_and_where_they_come_from(study: tuple[Path, str]) -> None:
    stored = json.loads((study[0] / "report" / "report.json").read_text())
    curve = stored["environments"]["cartpole"]["curves"]["steps"]["ppo"]
    assert curve["runs"] == 5
    assert len(curve["x"]) == len(curve["y"]) == len(curve["low"]) == 40
    assert stored["overall"]["axes"] == {"steps": "environment steps", "clock": OF_LONGEST}
    assert stored["overall"]["curves"]["clock"]["ppo"]["x"][-1] == pytest.approx(1.0)
    assert (stored["runs"][0]["machine"], stored["runs"][0]["rlrun"]) == (MACHINE, "commit abcdef012345")


def test_fewer_than_five_seeds_are_warned_of(tmp_path: Path) -> None:
    write_run(tmp_path / "outputs")
    report = compared(tmp_path)  # without PATHS it is outputs
    assert any("fewer than 5 seeds" in notice and "cartpole ppo (1)" in notice for notice in report["notices"])
    assert report["environments"]["cartpole"]["groups"]["ppo"]["mean"] == {"value": 400.0, "low": None, "high": None}


def test_marks_of_mixed_protocols_are_in_all_outputs(tmp_path: Path) -> None:
    write_run(tmp_path / "outputs", algo="a2c", total_steps=2000)
    write_run(tmp_path / "outputs", algo="ppo")
    assert "total_steps is 2000 in 1 run" in refused(tmp_path, "outputs")
    report = compared(tmp_path, "outputs", "mix=true")
    assert report["mixed_protocols"] is True
    assert report["environments"]["cartpole"]["mixed_protocols"] == ["total_steps"]
    assert report["overall"]["mixed_protocols"] == ["total_steps"]
    assert "Protocols are mixed (total_steps)" in report["verdicts"]["cartpole"]
    assert any(notice.startswith("mixed protocols: cartpole: total_steps") for notice in report["notices"])
    texts = {kind: (tmp_path / f"report/report.{kind}").read_text() for kind in ("csv", "md", "html")}
    assert "cartpole,a2c,final,threshold,total_steps," in texts["csv"]
    assert "### cartpole (mixed protocols)" in texts["md"]
    assert "<div class='chip warn'><b>mixed</b><span>protocols</span></div>" in texts["html"]
    assert "cartpole (mixed protocols): threshold 475" in report["stdout"]


def test_runs_without_any_training_curve_are_compared(tmp_path: Path) -> None:
    """A random policy and a scripted one train nothing: they have results and nothing else."""
    for algo, final in (("random", 22.0), ("scripted", 500.0)):
        for seed in range(5):
            run = write_run(tmp_path / "outputs", algo=algo, seed=seed, final=final + seed)
            (run / "evaluations.jsonl").unlink()
            (run / "metrics.jsonl").unlink()
    done = rlrun_here(["compare", "outputs"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "beats one of random with probability 1.000" in done.stdout
    assert "steps to threshold" not in done.stdout
    assert not (tmp_path / "report" / "sample_efficiency.png").exists()
    assert "no evaluations during training" in (tmp_path / "report" / "report.html").read_text()


def test_run_folders_are_paths_although_they_hold_an_equals_sign(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / "outputs", seed=seed) for seed in range(3)]
    assert len(compared(tmp_path, *map(str, paths[:2]))["runs"]) == 2
    inside = rlrun_here(["compare", "seed=0", f"out={tmp_path}/other"], paths[0].parent)
    assert inside.returncode == 0, inside.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nowhere"], ["nowhere", "does not exist"]),
        (["outputs/seed=7"], ["outputs/seed=7", "does not exist"]),
        (["outputs", "by=algo.learning_rat"], ["algo.learning_rat", "algo.learning_rate"]),
        (["outputs", "metric=finl"], ["metric=finl", "final"]),
        (["outputs", "metric=train/los"], ["metric=train/los", "train/loss", "rollout/ep_rew_mean"]),
        (["outputs", "metric=best"], ["rlrun eval", "checkpoint=best", "metric=final"]),
        (["outputs", "by=env"], ["by=env", "table of its own"]),
        (["outputs", "threshold=high"], ["threshold=high", "threshold=475"]),
        (["outputs", "threshold.cartpol=475"], ["threshold.cartpol", "cartpole"]),
        (["outputs", "into=results.md"], ["into=results.md", "<!-- rlrun compare: results -->"]),
        (["outputs", "section=cartpole"], ["section=cartpole", "into="]),
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


def test_the_help_of_the_verb_names_all_its_keys(tmp_path: Path) -> None:
    text = rlrun_here(["compare", "--help"], tmp_path).stdout
    assert all(f"{key}=" in text for key in ("by", "metric", "threshold", "mix", "out", "into", "section"))


def test_nothing_finished_is_one_clear_message(tmp_path: Path) -> None:
    write_run(tmp_path / "outputs", final=None, status="failed")
    assert "none of the 1 runs has a result" in refused(tmp_path, "outputs")


def test_without_paths_and_outputs_there_is_one_clear_message(tmp_path: Path) -> None:
    assert "needs PATHS" in refused(tmp_path)
