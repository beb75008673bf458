"""Processes that do runs: each takes a job, and tells of each evaluation.

The runs of a worker are ordinary ones, launched as the command line launches them. A worker dies with its parent,
and a run survives whatever its worker dies of, so nothing here needs cleaning up.
"""

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from rlrun.errors import RunFailed, UserError
from rlrun.facts import FAILED, FINISHED, INTERRUPTED, PRUNED
from rlrun.launch import Names, Prune, launch
from rlrun.signals import Signals
from rlrun.sweep import CORES
from rlrun.sweep.outcomes import noting
from rlrun.tuning.budget import planned_steps

DIED = "died"  # besides what a run can end as
LOOK_EVERY = 0.2  # seconds between looks at whether a signal came

MAY_BEGIN = "may begin"  # what a worker asks before each run


@dataclass(frozen=True)
class Job:
    """Command lines of runs, to be done one after the other, or only to be checked for whether they can be."""

    key: Any
    runs: list[list[str]]
    check_only: bool = False
    most_steps: int | None = None  # a run that would take more is refused


@dataclass(frozen=True)
class Outcome:
    """What became of a job."""

    status: str
    error: str = ""
    scores: list[float] = field(default_factory=list)  # the last evaluation of each run that is finished


class Pool:
    """At most `size` workers, each started when it is first needed. Used as a context."""

    def __init__(self, size: int, signals: Signals, log: Path) -> None:
        self.size, self.signals, self.log = size, signals, log
        self.context = multiprocessing.get_context("spawn")
        all_cores = int(os.environ.get(CORES, len(os.sched_getaffinity(0))))
        self.cores = max(1, all_cores // size)  # of each worker
        self.told_to_stop = False
        self.workers: list[Worker] = []

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.close()

    def run(
        self,
        next_job: Callable[[], Job | None],
        evaluated: Callable[[Any, int, int, float], bool],
        done: Callable[[Any, Outcome], None],
    ) -> None:
        """Keep the workers busy until there are no more jobs, or a signal came and all have saved."""
        while True:
            if not self.signals.received:
                self._fill(next_job)
            busy = {worker.connection: worker for worker in self.workers if worker.job is not None}
            if not busy:
                return
            if self.signals.received and not self.told_to_stop:
                self.told_to_stop = True
                for worker in busy.values():
                    worker.signal(self.signals.received)
            for connection in wait(list(busy), LOOK_EVERY):
                assert isinstance(connection, Connection)
                self._receive(busy[connection], evaluated, done)

    def _fill(self, next_job: Callable[[], Job | None]) -> None:
        idle = [worker for worker in self.workers if worker.job is None]
        while idle or len(self.workers) < self.size:
            job = next_job()
            if job is None:
                return
            if not idle:
                idle.append(Worker(self.context, self.log, self.cores))
                self.workers.append(idle[0])
            idle.pop().start(job)

    def _receive(
        self,
        worker: "Worker",
        evaluated: Callable[[Any, int, int, float], bool],
        done: Callable[[Any, Outcome], None],
    ) -> None:
        assert worker.job is not None
        key = worker.job.key
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            self.workers.remove(worker)
            done(key, Outcome(DIED, f"the worker process died with exit code {worker.close()}"))
            return
        if isinstance(message, Outcome):
            worker.job = None
            done(key, message)
        elif message == MAY_BEGIN:
            worker.send(not self.signals.received)
        else:
            worker.send(evaluated(key, *message))


class Worker:
    """The parent's end of a worker process."""

    def __init__(self, context: Any, log: Path, cores: int) -> None:
        self.connection, theirs = context.Pipe()
        self.process: SpawnProcess = context.Process(target=_work, args=(theirs, log, cores), daemon=True)
        self.process.start()
        theirs.close()
        self.job: Job | None = None

    def start(self, job: Job) -> None:
        self.job = job
        self.send(job)

    def send(self, message: Any) -> None:
        with suppress(OSError):  # it has died, which the next look at it tells
            self.connection.send(message)

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.process.pid or 0, number)

    def close(self) -> int | None:
        """End the process and return its exit code."""
        if self.job is not None and self.process.is_alive():
            self.process.kill()  # which a run survives
        self.connection.close()
        self.process.join()
        return self.process.exitcode


def _work(connection: Connection, log: Path, cores: int) -> None:
    """Do the jobs that come, until the parent closes the connection. The body of a worker process."""
    os.environ[CORES] = str(cores)
    os.setsid()  # Ctrl-C goes to the parent alone, which passes it on
    threading.Thread(target=_die_with_parent, daemon=True).start()
    with Signals(), suppress(EOFError):
        while True:
            job = connection.recv()
            if not job.check_only:
                _redirect(log)
            connection.send(_done(job, connection))


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _redirect(log: Path) -> None:
    """Append what runs print to a file, so that it does not mix with what the parent shows."""
    with open(log, "ab") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())


def _done(job: Job, connection: Connection) -> Outcome:
    def ask(question: Any) -> bool:
        connection.send(question)
        return bool(connection.recv())

    def judge(run: int, step: int, mean_return: float) -> bool:
        return ask((run, step, mean_return))

    scores: list[float] = []
    try:
        for number, arguments in enumerate(job.runs):
            if job.check_only:
                check(arguments)
                continue
            if not ask(MAY_BEGIN):
                return Outcome(INTERRUPTED)
            outcome = play(arguments, partial(judge, number), job.most_steps)
            if outcome.status != FINISHED:
                return outcome
            scores += outcome.scores
    except (UserError, RunFailed) as error:
        return Outcome(FAILED, str(error))
    return Outcome(FINISHED, scores=scores)


def play(arguments: list[str], judge: Prune, most_steps: int | None) -> Outcome:
    """Do one run, or go on with it, as the command line would."""
    from rlrun.cli import with_hydra
    from rlrun.compose import planned

    outcomes: list[Outcome] = []
    with_hydra(arguments, lambda config: outcomes.append(_played(*planned(config), judge, most_steps)))
    return outcomes[0]


def _played(config: dict[str, Any], names: Names, judge: Prune, most_steps: int | None) -> Outcome:
    from rlrun.analysis.runs import evaluations

    if most_steps is not None and planned_steps(config) > most_steps:
        return Outcome(
            FAILED, f"rollouts would take it to {planned_steps(config):,} steps, of {config['total_steps']:,} wanted"
        )
    folder = names.folder(config["outputs"])
    told = folder.path / "evaluations.jsonl"
    # What a run has been evaluated at before is judged first: a kill may have come before the verdict was heard.
    hopeless = [judge(int(step), value) for step, value in evaluations(told).tolist()]
    if any(hopeless) and folder.status() != FINISHED:
        folder.update_record(status=PRUNED)
        return Outcome(PRUNED)
    errors: list[str] = []
    with noting(lambda end: errors.append(end.error)):
        code = launch(config, names, prune=judge)
    if code > 128:
        return Outcome(INTERRUPTED)
    if code:
        return Outcome(FAILED, errors[-1])
    if folder.status() == PRUNED:
        return Outcome(PRUNED)
    curve = evaluations(told)
    if not len(curve):
        return Outcome(FAILED, "the run ended before its first evaluation; lower eval.every")
    return Outcome(FINISHED, scores=[float(curve[-1, 1])])


def check(arguments: list[str]) -> None:
    """Build what a run needs and throw it away. Raises UserError if the run could not be made."""
    from rlrun.build import build_agent
    from rlrun.room import check_room, estimate
    from rlrun.trackers import check as check_trackers

    config, names = composed(arguments)
    check_trackers(config)
    agent = build_agent(config)
    check_room(estimate(agent.algorithm, config), names.folder(config["outputs"]).path)
    agent.close()


def composed(arguments: list[str]) -> tuple[dict[str, Any], Names]:
    """Return the validated configuration and the names of the run that a command line asks for."""
    from rlrun.cli import with_hydra
    from rlrun.compose import planned

    found: list[tuple[dict[str, Any], Names]] = []
    with_hydra(arguments, lambda config: found.append(planned(config)))
    return found[0]
