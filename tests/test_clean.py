"""Freeing disk: what goes, what never goes, and what still works afterwards."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import rlrun_here, the_run

from rlrun.checkpoint import Checkpoints
from rlrun.clean import clean, freeable
from rlrun.errors import UserError
from rlrun.files import scratch_prefix
from rlrun.run_folder import RunFolder


@pytest.fixture(autouse=True)
def scratch(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of temporary files of the test's own."""
    folder = tmp_path_factory.mktemp("scratch")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def make_run(path: Path, status: str = "finished") -> Path:
    """Make a run with three checkpoints, two best policies, a replay, and what killed processes leave."""
    path.mkdir(parents=True)
    (path / "config.yaml").write_text("seed: 0\n")
    (path / "run.json").write_text(json.dumps({"status": status, "lineage": [], "steps": 30}))
    if status == "finished":
        (path / "result.json").write_text('{"mean_return": 1.0}')
    checkpoints = Checkpoints(path, keep=3)
    for step in (10, 20, 30):
        checkpoints.save(step, {"steps": step, "weights": torch.zeros(1000)}, {})
    for step in (5, 25):
        checkpoints.save_best(step, {"steps": step}, {})
    for leftover in ("step-7.pt.corrupt", "step-7.json.corrupt", "step-40.pt.tmp", "step-50.pt"):
        (path / "checkpoints" / leftover).write_bytes(b"x" * 5000)
    (path / "run.json.tmp").write_bytes(b"{")
    (path / "replay" / "0").mkdir(parents=True)
    (path / "replay" / "0" / "frame.bin").write_bytes(b"x" * 50_000)
    return path


def files(path: Path) -> set[str]:
    return {str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()}


def kept(path: Path) -> tuple[list[int], list[int]]:
    """Return the steps of the checkpoints and of the best policies that there are and can be loaded."""
    checkpoints = Checkpoints(path, keep=3)
    for step in checkpoints.steps():
        assert checkpoints.load(step)[0]["steps"] == step
    if checkpoints.best_steps():
        checkpoints.load_best()
    return checkpoints.steps(), checkpoints.best_steps()


# --- What goes ------------------------------------------------------------------------------------------


def test_a_finished_run_keeps_its_last_checkpoint_and_its_best_policy(tmp_path: Path) -> None:
    run = make_run(tmp_path / "outputs/run")
    assert clean([str(tmp_path / "outputs"), "yes=true"]) == 0
    assert kept(run) == ([30], [25])
    assert files(run) - {".lock"} == {
        *("config.yaml", "run.json", "result.json"),
        *(f"checkpoints/{name}.{suffix}" for name in ("step-30", "best-25") for suffix in ("pt", "json")),
    }


@pytest.mark.parametrize("status", ["interrupted", "failed", "running"])  # running, without a process: killed
def test_an_unfinished_run_keeps_what_it_needs_to_go_on(status: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", status)
    assert clean([str(run), "yes=true"]) == 0
    assert kept(run) == ([10, 20, 30], [5, 25])
    assert (run / "replay/0/frame.bin").exists()
    assert not [name for name in files(run) if name.endswith((".tmp", ".corrupt"))]


def test_a_run_that_goes_on_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run")
    before = files(run)
    with RunFolder(run).lock():
        assert clean([str(tmp_path), "yes=true"]) == 0
    assert files(run) - {".lock"} == before
    assert "1 of 1 runs are going on" in capsys.readouterr().err


def test_a_run_that_is_taken_up_after_the_table_was_shown_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run")
    monkeypatch.setattr(RunFolder, "locked", lambda self: False)
    with RunFolder(run).lock():
        assert clean([str(run), "yes=true"]) == 1
    assert kept(run)[0] == [10, 20, 30]
    assert "another process" in capsys.readouterr().err


def test_older_checkpoints_stay_where_the_last_one_is_damaged(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "checkpoints/step-30.pt").write_bytes(b"half")
    assert clean([str(run), "yes=true"]) == 0
    assert Checkpoints(run, keep=3).steps() == [10, 20, 30]


def test_the_manifest_of_a_step_saved_twice_stays_until_a_reader_has_put_it_in_its_place(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "interrupted")
    manifest = run / "checkpoints/step-30.json"
    right = manifest.read_text()
    manifest.write_text(json.dumps({**json.loads(right), "sha256": "of the file before"}))
    (run / "checkpoints/step-30.json.tmp").write_text(right)
    assert clean([str(run), "yes=true"]) == 0
    assert kept(run)[0] == [10, 20, 30]


def test_runs_set_aside_go_and_what_they_were_replaced_by_stays(tmp_path: Path) -> None:
    make_run(tmp_path / "outputs/.aside/cartpole/ppo/default/seed=0-1")
    run = make_run(tmp_path / "outputs/cartpole/ppo/default/seed=0")
    assert clean([str(tmp_path / "outputs"), "yes=true", "keep=checkpoints"]) == 0
    assert not (tmp_path / "outputs/.aside").exists()
    assert kept(run)[0] == [10, 20, 30]


@pytest.mark.parametrize(("paths", "looked_at"), [([], True), (["outputs"], False), (["scratch"], True)])
def test_temporary_folders_go_once_their_process_is_dead_unless_they_are_outside_of_what_was_asked_for(
    paths: list[str], looked_at: bool, tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    names = {
        "dead": f"rlrun-sweep-{process.pid}-abc",
        "living": f"{scratch_prefix('replay')}abc",
        "another's": "rlrun-notes",
    }
    for name in names.values():
        (scratch / name).mkdir()
    (tmp_path / "outputs").mkdir()
    (tmp_path / "scratch").symlink_to(scratch)
    monkeypatch.chdir(tmp_path)
    assert clean([*paths, "yes=true"]) == 0
    assert (scratch / names["dead"]).exists() != looked_at
    assert {p.name for p in scratch.iterdir()} - {names["dead"]} == {names["living"], names["another's"]}


def test_the_notes_of_a_killed_sweep_go_after_a_week(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    notes = tmp_path / "outputs/.sweeps"
    names = {age: f"20260101-000000-{process.pid}-{age}" for age in ("old", "new")}
    names["living"] = f"20260101-000000-{os.getpid()}-old"
    for name in names.values():
        (notes / name).mkdir(parents=True)
        (notes / name / "0.json").write_text("{}")
    for name in (names["old"], names["living"]):
        for path in (notes / name / "0.json", notes / name):
            os.utime(path, (0, 0))
    assert clean([str(tmp_path / "outputs"), "yes=true"]) == 0
    assert {p.name for p in notes.iterdir()} == {names["new"], names["living"]}


# --- Asking ---------------------------------------------------------------------------------------------


def test_without_a_yes_nothing_goes_and_the_table_says_what_would(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run")
    before = files(run)
    assert clean([str(run)]) == 0
    shown = capsys.readouterr().out
    assert files(run) == before
    assert "yes=true" in shown
    counts = {line.split()[0]: int(line.split()[1]) for line in shown.splitlines()[1:-1]}
    # Three leftovers: the half-written checkpoint, the one without a manifest, and run.json.tmp.
    assert counts == {"checkpoints": 3, "replay": 1, "corrupt": 2, "temporary": 3, "all": 9}


@pytest.mark.parametrize(("answer", "goes"), [("y", True), ("yes", True), ("", False), ("n", False), (None, False)])
def test_at_a_terminal_only_a_yes_frees(
    answer: str | None, goes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run")

    def reply(prompt: str) -> str:
        if answer is None:
            raise EOFError
        return answer

    monkeypatch.setattr("builtins.input", reply)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert clean([str(run)]) == 0
    assert (kept(run)[0] == [30]) is goes


def test_what_is_kept_by_name_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run")
    assert clean([str(run), "keep=[replay, temporary]", "yes=true"]) == 0
    assert (run / "replay/0/frame.bin").exists()
    assert (run / "run.json.tmp").exists()
    assert kept(run)[0] == [30]
    assert clean([str(run), "keep=replay,temporary", "yes=true"]) == 0
    assert "nothing to free" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["keep=replays"], "keep=replays names nothing to keep. Did you mean replay"),
        (["nowhere/at/all"], "nowhere/at/all is not a folder"),
        (["yes=maybe"], "yes=maybe has the wrong type"),
        (["force=true"], "no key force"),
    ],
)
def test_bad_input_is_refused_with_a_remedy(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "outputs/run")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        clean(arguments)


# --- Kills ----------------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


@pytest.mark.parametrize("occasion", range(12))
def test_a_kill_at_any_removal_leaves_a_valid_run_and_the_next_clean_finishes(
    occasion: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run")
    count = 0

    def killing(function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            if count == occasion:
                raise Killed
            count += 1
            return function(*arguments, **options)

        return call

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", killing(Path.unlink))
        patched.setattr(shutil, "rmtree", killing(shutil.rmtree))
        with pytest.raises(Killed):
            clean([str(run), "yes=true"])
    steps, best = kept(run)
    assert steps[-1] == 30
    assert best[-1] == 25
    assert RunFolder(run).status() == "finished"
    # A replay is there as a whole, or not at all.
    assert (run / "replay/0/frame.bin").exists() or not (run / "replay").exists()
    assert clean([str(run), "yes=true"]) == 0
    assert freeable(RunFolder(run)) == []
    assert kept(run) == ([30], [25])


# --- A real run -----------------------------------------------------------------------------------------


def test_a_cleaned_run_is_still_finished_evaluated_and_extended(tmp_path: Path) -> None:
    command = ["env=cartpole", "total_steps=1000", "eval.final_episodes=2", "eval.episodes=2", "log.console=false"]
    assert rlrun_here(command, tmp_path).returncode == 0
    run = the_run(tmp_path)
    assert len(Checkpoints(run, keep=2).steps()) == 2
    done = rlrun_here(["clean", "yes=true"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "freed" in done.stdout
    assert len(Checkpoints(run, keep=2).steps()) == 1
    assert "is finished" in rlrun_here(command, tmp_path).stderr
    assert rlrun_here(["eval", str(run), "episodes=2", "checkpoint=best"], tmp_path).returncode == 0
    assert rlrun_here(["resume", str(run), "total_steps=1500"], tmp_path).returncode == 0


def test_looking_needs_no_torch(tmp_path: Path) -> None:
    make_run(tmp_path / "outputs/run")
    program = (
        "import sys\nfrom rlrun.clean import clean\nclean(['outputs'])\n"
        "print([m for m in ('torch', 'gymnasium') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr
