"""Sweeps: which points a command line has, what is told of them, and that the same command runs what is missing."""

import json
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from harness import assert_identical, rlrun, rlrun_here, start

from rlrun.config import conf_folder, options, register_resolvers
from rlrun.errors import UserError
from rlrun.launch import Names
from rlrun.signals import STOP_FILE, Signals, SweepSignals, ask_to_stop, asked_to_stop
from rlrun.sweep import outcomes
from rlrun.sweep.conduct import Conductor, scratch_folder
from rlrun.sweep.job import HERE, Job, Point
from rlrun.sweep.launchers import Launcher
from rlrun.sweep.outcomes import (
    FAILED,
    FINISHED,
    INTERRUPTED,
    NOT_RUN,
    RUNNING,
    SKIPPED,
    Outcome,
    note_outcome,
    noting,
    read_outcome,
    report,
    write_outcome,
)
from rlrun.sweep.points import plan

SHORT = ["algo=ppo", "env=cartpole", "total_steps=1000", "eval.final_episodes=2", "eval.episodes=2"]


@pytest.fixture(autouse=True)
def resolvers() -> None:
    register_resolvers()


@pytest.fixture
def config_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Return the function that writes a user's own study."""
    monkeypatch.setenv("RLRUN_CONFIG_DIR", str(tmp_path))
    (tmp_path / "study").mkdir()

    def write(name: str, text: str) -> None:
        (tmp_path / "study" / f"{name}.yaml").write_text(f"# @package _global_\n{text}")

    return write


# --- Points ---------------------------------------------------------------------------------------------


def test_a_sweep_has_the_product_of_its_values_in_order() -> None:
    points = plan(["algo=ppo,a2c", "env=cartpole", "seed=range(2)"]).points
    assert [p.overrides for p in points] == [
        ("algo=ppo", "env=cartpole", "seed=0"),
        ("algo=ppo", "env=cartpole", "seed=1"),
        ("algo=a2c", "env=cartpole", "seed=0"),
        ("algo=a2c", "env=cartpole", "seed=1"),
    ]
    assert [p.number for p in points] == [0, 1, 2, 3]
    assert [p.config["total_steps"] for p in points] == [100_000, 100_000, 500_000, 500_000]


LARGE = ("small_budget",)  # it composes forty configurations


@pytest.mark.parametrize(
    "study", [pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else []) for name in options("study")]
)
def test_every_study_has_points_and_their_folders_are_those_of_the_same_command_by_hand(study: str) -> None:
    swept = plan([f"+study={study}"]).points
    first, last = swept[0], swept[-1]
    for point in (first, last):
        (by_hand,) = plan(list(point.overrides)).points
        assert by_hand.folder.path == point.folder.path
        assert by_hand.config == point.config
        assert not any("study" in override for override in point.overrides)


def test_what_is_typed_wins_over_the_study() -> None:
    points = plan(["+study=small_budget", "algo=a2c", "env=acrobot", "seed=range(2)", "total_steps=300"]).points
    assert len(points) == 2
    assert {(p.names.algo, p.names.env, p.config["total_steps"]) for p in points} == {("a2c", "acrobot", 300)}


def test_a_key_of_the_studys_algorithm_can_be_typed_although_the_default_one_lacks_it() -> None:
    (point,) = plan(["+study=cartpole_baselines", "algo=a2c", "seed=0", "algo.rmsprop_alpha=0.9"]).points
    assert point.config["algo"]["rmsprop_alpha"] == 0.9


def test_points_that_share_their_composition_are_those_of_their_own(config_dir: Callable[[str, str], None]) -> None:
    for extra in ([], ["checkpoint.keep=${seed}"]):
        swept = plan(["algo=ppo", "seed=range(1,4)", *extra]).points
        for point in swept:
            (alone,) = plan(["algo=ppo", f"seed={point.names.seed}", *extra]).points
            assert (point.config, point.names) == (alone.config, alone.names)
    assert [p.config["checkpoint"]["keep"] for p in swept] == [1, 2, 3]


def test_studies_of_the_users_own_are_found(config_dir: Callable[[str, str], None]) -> None:
    config_dir("mine", "hydra:\n  sweeper:\n    params:\n      seed: 1,2,3\n      total_steps: 500\n")
    assert [p.names.variant for p in plan(["+study=mine"]).points] == ["total_steps=500"] * 3


REFUSED_STUDIES = {
    "a value outside of the parameters": (
        "total_steps: 500\nhydra:\n  sweeper:\n    params:\n      seed: 1,2\n",
        ["total_steps: 500", "hydra.sweeper.params"],
    ),
    "an option outside of the parameters": (
        "defaults:\n  - override /algo: a2c\nhydra:\n  sweeper:\n    params:\n      seed: 1,2\n",
        ["study=mine sets total_steps", "500000"],
    ),
    "no parameters": ("hydra:\n  job:\n    name: x\n", ["study=mine", "nothing to run"]),
}


@pytest.mark.parametrize("case", REFUSED_STUDIES)
def test_a_study_whose_runs_would_not_be_those_of_the_command_by_hand_is_refused(
    case: str, config_dir: Callable[[str, str], None]
) -> None:
    text, fragments = REFUSED_STUDIES[case]
    config_dir("mine", text)
    with pytest.raises(UserError) as caught:
        plan(["+study=mine"])
    for fragment in fragments:
        assert fragment in str(caught.value)


REFUSED_SWEEPS = {
    "no points": (["seed=range(0)"], ["no points"]),
    "a point twice": (["seed=1,2,1"], ["seed=1", "twice"]),
    "a point twice, spelt differently": (["algo.gamma=0.9,0.90"], ["twice"]),
    "one name": (["name=x", "algo.gamma=0.9,0.8"], ["name=", "algo.gamma"]),
    "a cadence": (["log.every=10,20"], ["log.every=10", "log.every=20", "nothing that is learned"]),
    "nothing but refused points": (["seed=1,2", "algo.num_envs=x"], ["algo.num_envs=x"]),
    "two studies": (["+study=[ppo_atari,ppo_mujoco]"], ["one study"]),
    "several studies": (["+study=ppo_atari,ppo_mujoco"], ["one study"]),
    "another sweeper's parameters": (["hydra.sweeper.params.seed=1"], ["seed=1,2"]),
    "no run at a time": (
        ["seed=1,2", "hydra.sweeper.max_batch_size=0"],
        ["hydra.sweeper.max_batch_size=0", "at least 1"],
    ),
    "fewer than none": (["seed=1,2", "hydra.sweeper.max_batch_size=-2"], ["hydra.sweeper.max_batch_size=-2"]),
    "callbacks": (["+hydra.callbacks.x._target_=y.Z"], ["hydra.callbacks.x"]),
}


@pytest.mark.parametrize("case", REFUSED_SWEEPS)
def test_a_sweep_that_cannot_be_meant_is_refused(case: str) -> None:
    overrides, fragments = REFUSED_SWEEPS[case]
    with pytest.raises(UserError) as caught:
        plan(overrides)
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_one_refused_point_leaves_the_others() -> None:
    planned = plan(["env=cartpole,breakout", "protocol=machado"])
    assert [p.names.env for p in planned.points] == ["breakout"]
    assert planned.refused[0].where == "env=cartpole protocol=machado"
    assert "protocol=machado" in planned.refused[0].error


def test_the_shipped_studies_say_what_they_are() -> None:
    for path in (conf_folder() / "study").glob("*.yaml"):
        assert path.read_text().splitlines()[1].startswith("# "), path


# --- Outcomes -------------------------------------------------------------------------------------------


def outcome(status: str, seed: int = 0, **fields: Any) -> Outcome:
    return Outcome("cartpole", "ppo", "default", seed, status, fields.pop("exit_code", 0), **fields)


def test_the_table_counts_seeds_and_the_exit_code_tells(capsys: pytest.CaptureFixture[str]) -> None:
    assert report([outcome(FINISHED, 0), outcome(SKIPPED, 1)]) == 0
    assert "2 of 2 points finished\n" in capsys.readouterr().err
    ends = [outcome(FINISHED, 0), outcome(FAILED, 1, exit_code=1, error="first line\nsecond"), outcome(NOT_RUN, 2)]
    assert report(ends) == 1
    shown = capsys.readouterr().err
    assert "1 of 3 " in shown
    assert "failed: cartpole/ppo/default/seed=1: first line\n" in shown
    assert "second" not in shown
    assert "1 not run; the same command" in shown
    assert report([outcome(INTERRUPTED, exit_code=143), outcome(FAILED, exit_code=1)]) == 143
    assert report([outcome(NOT_RUN)]) == 1


def test_one_error_of_many_points_is_one_line_and_many_errors_are_cut(capsys: pytest.CaptureFixture[str]) -> None:
    report([outcome(FAILED, seed, exit_code=1, error="out of memory") for seed in range(7)])
    assert "failed: cartpole/ppo/default/seed=0 and 6 more: out of memory" in capsys.readouterr().err
    report([outcome(FAILED, seed, exit_code=1, error=f"error {seed}") for seed in range(50)])
    shown = capsys.readouterr().err
    assert f"and {50 - outcomes.MOST_ERRORS} other errors" in shown
    assert shown.count("failed: ") == outcomes.MOST_ERRORS


def test_an_outcome_is_told_to_whoever_listens(tmp_path: Path) -> None:
    place, heard = ("cartpole", "ppo", "default", 3), list[Outcome]()
    note_outcome(place, FINISHED, 0)
    with noting(heard.append):
        note_outcome(place, FAILED, 1, "why")
    note_outcome(place, FINISHED, 0)
    assert heard == [Outcome(*place, FAILED, 1, "why")]


def test_the_last_outcome_of_a_job_is_in_its_file(tmp_path: Path) -> None:
    file = tmp_path / "5.json"
    assert read_outcome(file) is None
    for end in (outcome(RUNNING), outcome(FAILED, exit_code=1, error="why")):
        write_outcome(file, end)
        assert read_outcome(file) == end
    assert list(tmp_path.iterdir()) == [file]
    write_outcome(tmp_path / "gone" / "5.json", end)  # the sweep has ended, and a late job must not fail over that


# --- Signals --------------------------------------------------------------------------------------------


def test_a_run_of_a_sweep_is_asked_to_stop_by_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STOP_FILE, str(tmp_path / "stop"))
    monkeypatch.setattr("rlrun.signals.LOOK_EVERY", 0.0)
    with Signals() as signals:
        assert signals.received is None
        ask_to_stop(tmp_path / "stop", 0)  # on_error=stop: those that have begun go on
        assert signals.received is None
        ask_to_stop(tmp_path / "stop", signal.SIGINT)
        assert signals.received == signal.SIGINT
    ask_to_stop(tmp_path / "stop", 0)
    assert asked_to_stop(tmp_path / "stop") == signal.SIGINT


def test_a_run_stops_when_its_sweep_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STOP_FILE, str(tmp_path / "removed" / "stop"))
    assert Signals().received == signal.SIGTERM
    monkeypatch.setenv(STOP_FILE, str(tmp_path / "stop"))
    orphan = Signals()
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert orphan.received == signal.SIGTERM


def test_a_run_by_itself_outlives_the_shell_that_started_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(STOP_FILE, raising=False)
    lonely = Signals()
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert lonely.received is None


def test_slurms_warning_after_sigterm_counts_and_ends_nothing_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    with Signals() as signals:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGUSR2)
        signal.raise_signal(signal.SIGUSR2)
        assert signals.received == signal.SIGUSR2
    assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL
    assert capfd.readouterr().err.count("saving at the next step boundary") == 1


def test_a_sweep_tells_its_jobs_of_the_first_signal_and_is_interrupted_by_the_second() -> None:
    told: list[int] = []
    with SweepSignals(told.append) as signals:
        signal.raise_signal(signal.SIGTERM)
        assert told == [signal.SIGTERM]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert signals.received == signal.SIGTERM
    with SweepSignals(None), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)


# --- Conducting -----------------------------------------------------------------------------------------


class Scripted(Launcher):
    """Ends each job after the number of looks that its script says, writing the outcome that it says, if any."""

    at_home = False

    def __init__(self, job: Job, script: Mapping[int, tuple[int, str | None]], at_once: int | None) -> None:
        super().__init__(job)
        self.script, self.at_once = script, at_once
        self.most, self.looks, self.cancelled = 0, 0, list[int]()
        self.on_look: Callable[[int], None] = lambda look: None

    def submit(self, points: Sequence[Point]) -> list[Any]:
        handles = []
        for point in points:
            looks, status = self.script[point.number]
            if status is not None:
                end = Outcome(*point.names.place, status, 1 if status == RUNNING else 0)
                write_outcome(self.job.outcome_file(point.number), end)
            handles.append([point.number, looks])
        return handles

    def ended(self, running: Mapping[int, Any]) -> list[int]:
        self.looks += 1
        self.on_look(self.looks)
        self.most = max(self.most, len(running))
        for handle in running.values():
            handle[1] -= 1
        return [number for number, handle in running.items() if handle[1] <= 0]

    def loss(self, handle: Any) -> str:
        return "no such machine" if self.script[handle[0]][1] is None else ""

    def cancel(self, handle: Any) -> None:
        self.cancelled.append(handle[0])


@pytest.fixture
def conducted(tmp_path: Path) -> Callable[..., tuple[Scripted, Conductor]]:
    def conduct(script: dict[int, tuple[int, str | None]], at_once: int | None) -> tuple[Scripted, Conductor]:
        job = Job(tmp_path, tmp_path, (), {}, HERE)
        launcher = Scripted(job, script, at_once)
        points = [Point(n, (), {}, Names("ppo", "cartpole", "default", n, "none")) for n in script]
        return launcher, Conductor(launcher, job, points)

    return conduct


def ends(conductor: Conductor, *, stopped: bool = False) -> dict[int, str]:
    return {p.number: conductor.end(p, stopped=stopped).status for p in conductor.points}


Conduct = Callable[..., tuple[Scripted, Conductor]]


def test_a_launcher_gets_no_more_jobs_at_a_time_than_it_takes(conducted: Conduct) -> None:
    launcher, conductor = conducted({n: (1 + n % 3, FINISHED) for n in range(9)}, at_once=2)
    conductor.run()
    assert launcher.most == 2
    assert set(ends(conductor).values()) == {FINISHED}


def test_a_killed_job_is_failed_and_the_others_run(conducted: Conduct) -> None:
    _, conductor = conducted({0: (1, FINISHED), 1: (1, RUNNING), 2: (1, None), 3: (1, FINISHED)}, at_once=1)
    conductor.run()
    assert ends(conductor) == {0: FINISHED, 1: FAILED, 2: FAILED, 3: FINISHED}
    assert "killed" in conductor.end(conductor.points[1], stopped=False).error
    assert conductor.end(conductor.points[2], stopped=False).error == "no such machine"


def test_a_stop_lets_those_that_have_begun_end_and_takes_back_the_rest(conducted: Conduct) -> None:
    script: dict[int, tuple[int, str | None]] = {0: (3, INTERRUPTED), 1: (10_000, None), 2: (1, FINISHED)}
    launcher, conductor = conducted(script, at_once=None)
    launcher.on_look = lambda look: conductor.stop(signal.SIGINT) if look == 2 else None
    conductor.run()
    assert launcher.cancelled == [1]
    assert ends(conductor, stopped=True) == {0: INTERRUPTED, 1: NOT_RUN, 2: FINISHED}


def test_a_stop_begins_no_more(conducted: Conduct) -> None:
    launcher, conductor = conducted(dict.fromkeys(range(5), (1, FINISHED)), at_once=1)
    launcher.on_look = lambda look: conductor.stop(signal.SIGINT) if look == 2 else None
    conductor.run()
    assert list(ends(conductor, stopped=True).values()) == [FINISHED, FINISHED, NOT_RUN, NOT_RUN, NOT_RUN]


def test_a_job_that_the_sweeps_end_overtakes_does_not_begin(tmp_path: Path) -> None:
    job = Job(tmp_path, tmp_path, (), {}, HERE)
    ask_to_stop(job.stop_file, 0)
    assert job(Point(0, (), {}, Names("ppo", "cartpole", "default", 0, "none"))) == 0
    assert not job.outcome_file(0).exists()


def test_a_sweeps_scratch_folder_lies_beside_its_runs_and_leaves_nothing(tmp_path: Path) -> None:
    with scratch_folder(tmp_path / "outputs") as folder:
        assert folder.is_relative_to(tmp_path / "outputs")
    assert list(tmp_path.iterdir()) == []


# --- The command line -----------------------------------------------------------------------------------


def test_a_sweep_is_idempotent_and_one_failing_point_stops_no_other(tmp_path: Path) -> None:
    command = ["-m", *SHORT, "algo.gamma=0.9,2,0.95"]
    done = rlrun_here(command, tmp_path)
    assert done.returncode == 2
    assert "failed: cartpole/ppo/gamma=2_total_steps=1000/seed=0: algo.gamma=2" in done.stderr
    assert "2 of 3 points finished" in done.stderr
    assert len(list(tmp_path.rglob("result.json"))) == 2
    assert [p.name for p in (tmp_path / "outputs").iterdir()] == ["cartpole"]
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("result.json")}
    again = rlrun_here(command, tmp_path)
    assert again.returncode == 2
    assert "2 of 3 runs are finished already" in again.stderr
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("result.json")} == before


def test_a_study_runs_without_m_and_its_runs_are_shared_with_those_by_hand(tmp_path: Path) -> None:
    (tmp_path / "my" / "study").mkdir(parents=True)
    (tmp_path / "my" / "study" / "tiny.yaml").write_text(
        "# @package _global_\n# Small.\nhydra:\n  sweeper:\n    params:\n"
        + "".join(f"      {key}: {value}\n" for key, value in (argument.split("=") for argument in SHORT))
        + "      seed: 0,1\n"
    )
    by_hand = rlrun_here([*SHORT, "seed=1"], tmp_path)
    assert by_hand.returncode == 0
    swept = rlrun_here(["--config-dir", "my", "+study=tiny"], tmp_path)
    assert swept.returncode == 0, swept.stderr
    assert "1 of 2 runs are finished already" in swept.stderr
    record = json.loads((tmp_path / "outputs/cartpole/ppo/total_steps=1000/seed=0/run.json").read_text())
    assert record["command"] == "rlrun --config-dir my +study=tiny"


UNKNOWN = {
    "study": (["+study=cartpole_baseline"], ["study=cartpole_baseline", "cartpole_baselines"]),
    "study without its plus": (["-m", "study=ppo_atari"], ["+study="]),
    "launcher": (["-m", "seed=1,2", "hydra/launcher=joblb"], ["hydra/launcher=joblb", "joblib", "slurm_gpu"]),
    "Slurm": (["-m", "seed=1,2", "hydra/launcher=slurm_cpu"], ["srun", "slurm_local"]),
    "no workers": (["-m", "seed=1,2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=0"], ["n_jobs=0"]),
    "key of joblib's": (
        ["-m", "seed=1,2", "hydra/launcher=joblib", "hydra.launcher.batch_size=7"],
        ["hydra.launcher.batch_size=7", "n_jobs"],
    ),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_bad_input_to_a_sweep_gets_one_clear_message_and_leaves_nothing_behind(case: str, tmp_path: Path) -> None:
    arguments, fragments = UNKNOWN[case]
    done = rlrun_here(arguments, tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("error:") == 1
    assert "Traceback" not in done.stderr
    for fragment in fragments:
        assert fragment in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.crash
def test_an_interrupted_sweep_has_its_table_and_goes_on_where_it_was(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    arguments = [*SHORT[:2], "total_steps=6000", "eval.final_episodes=2", "eval.episodes=2", "log.console=false"]
    process = start(["-m", *arguments, "seed=0,1"], broken)
    while not list(broken.rglob("checkpoints/step-*.json")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    assert "0 of 2 points finished, 1 not run; the same command runs what is missing" in output
    again = rlrun(["-m", *arguments, "seed=0,1"], broken)
    assert again.returncode == 0
    assert "continuing from step" in again.stderr
    assert rlrun([*arguments, "seed=0"], whole).returncode == 0
    run = Path("outputs/cartpole/ppo/total_steps=6000/seed=0")
    assert_identical(whole / run, broken / run)
