"""Where the jobs of a sweep run: in this process, in workers here (joblib), on Slurm (submitit), on Ray.

`hydra/launcher=...` chooses; its keys are those of Hydra's plugins, whose own launch is not used: it gives up at the
first job that dies, knows nothing of stopping, and composes every configuration anew.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from rlrun.errors import UserError
from rlrun.signals import WARNINGS, asked_to_stop
from rlrun.sweep import CORES
from rlrun.sweep.job import Job, Point

IDLE = 30  # seconds
Handle = Any


class Launcher:
    """Runs jobs; here, in the process that asks for them, one by one."""

    at_home = True  # whether jobs run in this process
    at_once: int | None = 1  # jobs that it takes at a time; None takes all, and queues them
    look_every = 0.0  # seconds between looks at whether jobs have ended

    def __init__(self, job: Job) -> None:
        self.job = job

    def submit(self, points: Sequence[Point]) -> list[Handle]:
        """Start the jobs of these points, at most `at_once` at a time."""
        return [self.job(point) for point in points]

    def ended(self, running: Mapping[int, Handle]) -> list[int]:
        """Return which of the jobs have ended, whatever way."""
        return list(running)

    def loss(self, handle: Handle) -> str:
        """Return what is known of how a job's process ended, if not by itself."""
        return ""

    def cancel(self, handle: Handle) -> None:
        """Take back a job that has not begun."""

    def kill(self) -> None:
        """End all jobs at once."""
        self.close()

    def close(self) -> None:
        """Let go of the processes, in which no job is left."""


class Joblib(Launcher):
    """Workers on this machine, reused for one run after the other.

    Each is a pool of its own: where one is killed, joblib's pool of several takes the others along.
    """

    at_home = False
    look_every = 0.02

    def __init__(self, config: dict[str, Any], job: Job, num_points: int, at_once: int | None) -> None:
        import joblib
        from hydra_plugins.hydra_joblib_launcher.config import JobLibLauncherConf

        defaults = asdict(JobLibLauncherConf())
        for key, value in config.items():
            if key != "n_jobs" and value != defaults.get(key):
                raise UserError(f"hydra.launcher.{key}={value}: of joblib's keys, a sweep takes n_jobs alone")
        if config["n_jobs"] == 0:
            raise UserError("hydra.launcher.n_jobs=0 runs nothing: expected at least 1, or -1 for all cores")
        workers = min(joblib.effective_n_jobs(config["n_jobs"]), num_points)
        self.at_once: int = min(workers, at_once or workers)
        super().__init__(_with_cores(job, _cores() // self.at_once))
        self.idle: list[Any] = []
        self.busy: dict[Any, Any] = {}  # future: the pool it runs in

    def submit(self, points: Sequence[Point]) -> list[Handle]:
        from joblib.externals.loky import ProcessPoolExecutor

        with _unheard_interrupts():
            handles = []
            for point in points:
                # A worker without work ends after a while: that of a sweep that was killed, too.
                pool = self.idle.pop() if self.idle else ProcessPoolExecutor(max_workers=1, timeout=IDLE)
                handles.append(pool.submit(self.job, point))
                self.busy[handles[-1]] = pool
        return handles

    def ended(self, running: Mapping[int, Handle]) -> list[int]:
        numbers = [number for number, future in running.items() if future.done()]
        for number in numbers:
            pool = self.busy.pop(running[number])
            if running[number].exception() is None:
                self.idle.append(pool)
            else:
                pool.shutdown(kill_workers=True)
        return numbers

    def loss(self, handle: Handle) -> str:
        error = handle.exception()
        killed = type(error).__name__ == "TerminatedWorkerError"  # whose message guesses at length
        return "" if error is None or killed else f"{type(error).__name__}: {error}"

    def close(self) -> None:
        for pool in self.idle:  # not killed, nor waited for: a run's tracker may still hand over what it has
            pool.shutdown(wait=False)
        for pool in self.busy.values():
            pool.shutdown(kill_workers=True)
        self.idle.clear()
        self.busy.clear()


class Submitit(Launcher):
    """Jobs of Slurm, or of submitit's stand-in for it on this machine, each in a process of its own."""

    at_home = False

    def __init__(self, cluster: str, config: dict[str, Any], job: Job, num_points: int, at_once: int | None) -> None:
        import submitit

        self.on_slurm = cluster == "slurm"
        self.look_every = 2.0 if self.on_slurm else 0.2
        workers = min(num_points, at_once or _cores())
        self.at_once = at_once if self.on_slurm else workers
        super().__init__(_with_cores(job, config["cpus_per_task"] if self.on_slurm else _cores() // workers))
        shared = submitit.AutoExecutor._typed_parameters()
        values = {key: value for key, value in config.items() if key not in ("_target_", "submitit_folder")}
        timeouts = {f"{cluster}_max_num_timeout": values.pop("max_num_timeout")} if "max_num_timeout" in values else {}
        try:
            self.executor = submitit.AutoExecutor(config["submitit_folder"], cluster=cluster, **timeouts)
        except RuntimeError as error:
            raise UserError(f"hydra/launcher: {error}; hydra/launcher=slurm_local stands in for Slurm here") from error
        self.executor.update_parameters(
            **{key if key in shared else f"{cluster}_{key}": value for key, value in values.items()}
        )
        self.call = Requeued(self.job, grace=config["signal_delay_s"] if self.on_slurm else 0)
        self.running: list[Any] = []

    def submit(self, points: Sequence[Point]) -> list[Handle]:
        from submitit.core.utils import FailedJobError

        try:
            with _unheard_interrupts():
                handles = self.executor.map_array(self.call, points)
        except FailedJobError as error:
            raise UserError(f"Slurm takes no such job: {_last_line(str(error))}") from error
        self.running += handles
        return handles

    def ended(self, running: Mapping[int, Handle]) -> list[int]:
        self.running = list(running.values())
        return [number for number, handle in running.items() if handle.done()]

    def loss(self, handle: Handle) -> str:
        return _last_line(handle.stderr() or "")

    def cancel(self, handle: Handle) -> None:
        if self.on_slurm:
            handle.cancel(check=False)

    def kill(self) -> None:
        for handle in self.running:
            if self.on_slurm:
                handle.cancel(check=False)
            else:
                with suppress(ProcessLookupError):  # a stand-in's number is that of its process
                    os.kill(int(handle.job_id), signal.SIGTERM)


@dataclass(frozen=True)
class Requeued:
    """A job that is interrupted by Slurm's warning of a time limit or preemption, and goes on in Slurm's next try."""

    job: Job
    grace: float  # seconds

    def __call__(self, point: Point) -> int:
        from submitit import JobEnvironment

        code = self.job(point)
        if code - 128 in WARNINGS:
            # Now that the run is saved, submitit gets the signal that it would have acted on in the midst of a step.
            signal.raise_signal(getattr(signal, f"SIG{JobEnvironment.USR_SIG}"))
        if code == 128 + signal.SIGTERM and self.grace and asked_to_stop(self.job.stop_file) is None:
            # Slurm preempts. It warns or kills next, and requeues what it has ended; what ends by itself is done.
            time.sleep(self.grace)
        return code

    def checkpoint(self, point: Point) -> Any:
        """Return what submitit is to run after a requeue."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, point)


class Ray(Launcher):
    """Tasks of a Ray cluster: one of this machine's cores, or any that `hydra.launcher.ray.init.address` names.

    Ray itself runs a task again whose process was killed, and the run goes on from its checkpoint.
    """

    at_home = False
    look_every = 0.1

    def __init__(self, config: dict[str, Any], job: Job, at_once: int | None) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        self.ray, self.at_once = ray, at_once
        init, remote = dict(config["ray"]["init"]), config["ray"]["remote"]
        if init.get("address") is None and "RAY_ADDRESS" not in os.environ:
            # A cluster of our own, also where another one runs; jobs store nothing in it.
            init = {"include_dashboard": False, "object_store_memory": 80_000_000, **init, "address": "local"}
        try:
            ray.init(**init)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(f"hydra.launcher.ray.init: {_last_line(str(error))}") from error
        self.job = _with_cores(job, int(remote.get("num_cpus", 1)))
        self.task = ray.remote(**remote)(_call) if remote else ray.remote(_call)

    def submit(self, points: Sequence[Point]) -> list[Handle]:
        return [self.task.remote(self.job, point) for point in points]

    def ended(self, running: Mapping[int, Handle]) -> list[int]:
        handles = list(running.values())
        ready = set(self.ray.wait(handles, num_returns=len(handles), timeout=0)[0]) if handles else set()
        return [number for number, handle in running.items() if handle in ready]

    def loss(self, handle: Handle) -> str:
        try:
            self.ray.get(handle)
        except self.ray.exceptions.RayError as error:
            return _last_line(str(error))
        return ""

    def cancel(self, handle: Handle) -> None:
        self.ray.cancel(handle)

    def close(self) -> None:
        self.ray.shutdown()


def make_launcher(config: dict[str, Any], job: Job, num_points: int, at_once: int | None) -> Launcher:
    """Return the launcher that hydra.launcher describes. Raises UserError if it cannot run here."""
    kind = config["_target_"].rpartition(".")[2]
    known: dict[str, Callable[[], Launcher]] = {
        "BasicLauncher": lambda: Launcher(job),
        "JoblibLauncher": lambda: Joblib(config, job, num_points, at_once),
        "LocalLauncher": lambda: Submitit("local", config, job, num_points, at_once),
        "SlurmLauncher": lambda: Submitit("slurm", config, job, num_points, at_once),
        "RayLauncher": lambda: Ray(config, job, at_once),
    }
    if kind not in known:
        raise UserError(f"hydra/launcher: {kind} is none that rlrun knows; `rlrun list` shows those")
    return known[kind]()


def _call(job: Job, point: Point) -> int:
    return job(point)


def _with_cores(job: Job, cores: int | None) -> Job:
    """Return the job for processes that may use so many cores, and whose output is mixed with that of others."""
    share = {} if cores is None else {CORES: str(max(1, cores))}
    return replace(job, environment={**job.environment, "TTY_COMPATIBLE": "0", **share})


def _cores() -> int:
    return len(os.sched_getaffinity(0))


@contextmanager
def _unheard_interrupts() -> Iterator[None]:
    """Let processes that the block starts ignore the terminal's Ctrl-C: the sweep hears it, and asks them to stop."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
