"""Launchers: each runs real sweeps here, loses no job over another one, and comes back after a stop."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_slurm import install
from harness import assert_identical, environment, rlrun, start
from stub_job import StubJob

from rlrun.device import Device
from rlrun.sweep.launchers import Joblib, Launcher

COMMAND = [
    *("algo=ppo", "env=cartpole", "total_steps=6000", "algo.num_envs=4", "algo.num_steps=32", "algo.batch_size=64"),
    *("algo.num_epochs=2", "name=run", "eval.episodes=2", "eval.final_episodes=2", "log.console=false"),
]
RUN = Path("outputs/cartpole/ppo/run")


@pytest.fixture
def joblib() -> Iterator[Callable[[int], Joblib]]:
    """Return the function that makes a launcher of so many workers, for jobs that stand in for runs."""
    from hydra_plugins.hydra_joblib_launcher.config import JobLibLauncherConf

    made: list[Joblib] = []

    def make(n_jobs: int, num_points: int = 99, at_once: int | None = None) -> Joblib:
        config = {**asdict(JobLibLauncherConf()), "n_jobs": n_jobs}
        made.append(Joblib(config, StubJob(), num_points, at_once))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for launcher in made:
        launcher.close()


def result(launcher: Launcher, point: str) -> Any:
    """Run one job to its end and return its handle."""
    (handle,) = launcher.submit([point])  # type: ignore[list-item]
    while not launcher.ended({0: handle}):
        time.sleep(0.01)
    return handle


Make = Callable[..., Joblib]


def test_joblibs_workers_are_reused(joblib: Make) -> None:
    launcher = joblib(1)
    first, second = result(launcher, "pid").result(), result(launcher, "pid").result()
    assert first == second != os.getpid()


def test_a_killed_worker_takes_no_other_along(joblib: Make) -> None:
    launcher = joblib(2)
    busy = result(launcher, "pid")
    (other,) = launcher.submit(["pid"])  # type: ignore[list-item]
    killed = result(launcher, "die")
    assert killed.exception() is not None
    assert launcher.loss(killed) == ""  # what the sweep says of such a job fits all launchers
    assert busy.result() == other.result()
    assert launcher.loss(result(launcher, "raise")) == "OSError: no such machine"
    assert result(launcher, "pid").result()


def test_workers_do_not_hear_the_terminals_ctrl_c(joblib: Make) -> None:
    before = signal.getsignal(signal.SIGINT)
    assert not result(joblib(1), "hears Ctrl-C").result()
    assert signal.getsignal(signal.SIGINT) is before


def test_the_cores_are_shared_out(joblib: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(12)))
    for n_jobs, num_points, at_once, cores in ((4, 99, None, 3), (5, 99, None, 2), (99, 3, None, 4), (6, 99, 2, 6)):
        launcher = joblib(n_jobs, num_points, at_once)
        assert launcher.job.environment["RLRUN_CORES"] == str(cores)
    assert joblib(99).job.environment["RLRUN_CORES"] == "1"


def test_a_run_takes_no_more_threads_than_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    def threads(num_weights: int, chosen: int | None = None) -> int:
        device = Device(
            kind="cpu", threads=chosen, precision="float32", compile=False, deterministic=True, replay_on_device=False
        )
        device.choose_threads(num_weights)
        return torch.get_num_threads()

    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3})
    assert threads(10_000_000) == 4
    monkeypatch.setenv("RLRUN_CORES", "2")
    assert threads(10_000_000) == 2
    assert threads(1000) == 1
    assert threads(10_000_000, chosen=3) == 3


@pytest.mark.parametrize(
    ("launcher", "extra"),
    [("joblib", "joblib"), ("submitit_local", "slurm"), ("slurm_gpu", "slurm"), ("ray", "ray")],
)
def test_a_missing_extra_is_named(launcher: str, extra: str, tmp_path: Path) -> None:
    # A package in the way of the plugins' namespace stands in for plugins that are not installed.
    (tmp_path / "shadow" / "hydra_plugins").mkdir(parents=True)
    (tmp_path / "shadow" / "hydra_plugins" / "__init__.py").touch()
    done = subprocess.run(
        [sys.executable, "-m", "rlrun", "-m", "seed=0,1", f"hydra/launcher={launcher}"],
        cwd=tmp_path,
        env=environment(PYTHONPATH=os.pathsep.join([str(tmp_path / "shadow"), os.environ.get("PYTHONPATH", "")])),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert f'pip install "rlrun[{extra}]"' in done.stderr
    assert not (tmp_path / "outputs").exists()


def test_what_slurm_says_of_a_job_that_it_does_not_take_is_passed_on(tmp_path: Path) -> None:
    install(tmp_path)
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: gpu' >&2\nexit 1\n")
    done = subprocess.run(
        [sys.executable, "-m", "rlrun", "-m", "seed=0,1", "hydra/launcher=slurm_gpu"],
        cwd=tmp_path,
        env=environment(PATH=f"{tmp_path}:{os.environ['PATH']}", FAKE_SLURM=str(tmp_path)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "error: Slurm takes no such job: sbatch: error: invalid partition specified: gpu" in done.stderr
    assert "0 of 2 points finished, 2 not run" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "outputs").exists()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run, seed 1, of a process of its own."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = rlrun([*COMMAND, "seed=1"], folder)
    assert done.returncode == 0, done.stderr
    return folder / RUN / "seed=1"


def wait_for(pattern: str, folder: Path, process: subprocess.Popen[str], count: int = 1) -> list[Path]:
    """Return the files that match, once there are so many."""
    deadline = time.monotonic() + 120
    while len(found := list(folder.rglob(pattern))) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"no {pattern} in {folder}"
        time.sleep(0.01)
    return found


def process_of(run: Path) -> int:
    """Return the number of the process that has a run's lock open."""
    lock = str((run / ".lock").resolve())
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):  # processes and files come and go, and some are not ours to look at
            if os.readlink(link) == lock:
                return int(link.parts[2])
    raise AssertionError(f"nobody holds {run}")


@pytest.mark.crash
def test_joblib_goes_on_after_a_kill_and_a_stop_and_its_runs_are_those_of_their_own_process(
    undisturbed: Path, tmp_path: Path
) -> None:
    command = ["-m", *COMMAND, "seed=range(4)", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    process = start(command, tmp_path)
    wait_for("seed=1/checkpoints/step-*.json", tmp_path, process)
    os.kill(process_of(tmp_path / RUN / "seed=1"), signal.SIGKILL)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output
    assert "failed: cartpole/ppo/run/seed=1: its process is gone without a word" in output
    assert "3 of 4 points finished; the same command" in output

    process = start([*command, "seed=range(6)"], tmp_path)
    wait_for("seed=4/checkpoints/step-*.json", tmp_path, process)
    process.send_signal(signal.SIGTERM)  # which reaches the sweep alone
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    assert "interrupted at step" in output
    assert "runs are finished already" in output

    done = rlrun([*command, "seed=range(6)"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "6 of 6 points finished" in done.stderr
    assert_identical(undisturbed, tmp_path / RUN / "seed=1")
    assert not (tmp_path / "outputs" / ".sweeps").exists()


@pytest.mark.crash
def test_a_run_in_a_reused_worker_is_that_of_a_fresh_process(undisturbed: Path, tmp_path: Path) -> None:
    command = ["-m", *COMMAND, "seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=1"]
    done = rlrun(command, tmp_path)
    assert done.returncode == 0, done.stderr
    assert_identical(undisturbed, tmp_path / RUN / "seed=1")


@pytest.mark.crash
def test_a_job_that_slurm_warns_is_saved_requeued_and_finishes_in_its_own_folder(
    undisturbed: Path, tmp_path: Path
) -> None:
    process = start(["-m", *COMMAND, "seed=0,1", "hydra/launcher=slurm_local"], tmp_path)
    wait_for("seed=1/checkpoints/step-*.json", tmp_path, process)
    os.kill(process_of(tmp_path / RUN / "seed=1"), signal.SIGUSR2)
    (log,) = wait_for("seed=1/run.log", tmp_path, process)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    notices = log.read_text()
    assert "interrupted at step" in notices
    assert "continuing from step" in notices
    assert_identical(undisturbed, tmp_path / RUN / "seed=1")


@pytest.mark.crash
def test_slurm_preempts_a_job_and_its_sweep_knows_nothing_of_it(undisturbed: Path, tmp_path: Path) -> None:
    slurm, work = tmp_path / "slurm", tmp_path / "work"
    slurm.mkdir()
    work.mkdir()
    install(slurm)
    process = subprocess.Popen(
        [sys.executable, "-m", "rlrun", "-m", *COMMAND, "seed=0,1", "hydra/launcher=slurm_cpu"],
        cwd=work,
        env=environment(PATH=f"{slurm}:{os.environ['PATH']}", FAKE_SLURM=str(slurm)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for("seed=1/checkpoints/step-*.json", work, process)
    preempted = process_of(work / RUN / "seed=1")
    os.kill(preempted, signal.SIGTERM)  # as Slurm does, before its warning
    os.kill(preempted, signal.SIGUSR2)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "2 of 2 points finished" in output
    assert len(list(slurm.glob("requeued.77_1.*"))) == 1
    assert_identical(undisturbed, work / RUN / "seed=1")
    script = (slurm / "script").read_text()
    for flag in ("--time=1440", "--signal=USR2@300", "--requeue", "--cpus-per-task=1", "--mem=4GB"):
        assert f"#SBATCH {flag}\n" in script


@pytest.mark.crash
def test_ray_runs_a_sweep_and_again_what_was_killed(undisturbed: Path, tmp_path: Path) -> None:
    command = ["-m", *COMMAND, "seed=0,1", "hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2"]
    process = start(command, tmp_path)
    wait_for("seed=1/checkpoints/step-*.json", tmp_path, process)
    os.kill(process_of(tmp_path / RUN / "seed=1"), signal.SIGKILL)
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output
    assert "2 of 2 points finished" in output
    assert_identical(undisturbed, tmp_path / RUN / "seed=1")
