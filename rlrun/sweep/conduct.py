"""A sweep from its command line to its exit code: plan, skip what is finished, launch the rest, print the table."""

import os
import shutil
import signal
import sys
import time
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlrun.errors import UserError
from rlrun.launch import EXIT_FAILED, drop_replay
from rlrun.signals import SweepSignals, ask_to_stop, asked_to_stop
from rlrun.sweep.job import HERE, Job, Point
from rlrun.sweep.launchers import Launcher, make_launcher
from rlrun.sweep.outcomes import (
    FAILED,
    INTERRUPTED,
    NOT_RUN,
    RUNNING,
    SKIPPED,
    Outcome,
    read_outcome,
    report,
)
from rlrun.sweep.points import Plan, plan

SCRATCH = ".sweeps"  # below outputs
INHERITED = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "RLRUN_CONFIG_DIR")  # environment variables that jobs get


def sweep(overrides: Sequence[str]) -> int:
    """Run what a sweep's points are missing; return its exit code."""
    planned = plan(overrides)
    stored = [point for point in planned.points if point.is_finished()]
    for point in stored:
        drop_replay(point.folder, point.config)
    finished = {point.number: Outcome(*point.names.place, SKIPPED, 0) for point in stored}
    todo = [point for point in planned.points if point.number not in finished]
    if finished:
        print(f"{len(finished)} of {len(planned.points)} runs are finished already", file=sys.stderr)
    settled = planned.refused | finished
    if not todo:
        return report(list(settled.values()))
    with scratch_folder(Path(todo[0].config["outputs"])) as scratch:
        code = _launch(planned, todo, settled, scratch)
    _average(todo)
    return code


def _average(points: Sequence[Point]) -> None:
    """Let TensorBoard show means over the seeds that there are now."""
    from rlrun.analysis.aggregate import refresh  # numpy and more, which a sweep does not wait for at its start

    refresh(sorted({point.folder.path.parent for point in points if point.config["log"]["tensorboard"]}))


@contextmanager
def scratch_folder(outputs: Path) -> Iterator[Path]:
    """Give a sweep a folder beside its runs, where every machine that takes part sees it."""
    folder = outputs.absolute() / SCRATCH / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"outputs: {outputs} cannot be written ({error}); choose another with outputs=...") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # not empty: another sweep, or runs
            folder.parent.rmdir()
            outputs.rmdir()


def _launch(planned: Plan, todo: Sequence[Point], settled: dict[int, Outcome], scratch: Path) -> int:
    environment = {key: os.environ[key] for key in INHERITED if key in os.environ}
    job = Job(scratch, Path.cwd(), tuple(sys.argv[1:]), environment | planned.environment, HERE)
    launcher = make_launcher(planned.launcher(scratch), job, len(todo), planned.at_once)
    conductor = Conductor(launcher, job, todo)
    tell = None if launcher.at_home else conductor.stop
    signals = SweepSignals(tell)
    try:
        with signals:
            conductor.run()
    except KeyboardInterrupt:
        launcher.kill()
    finally:  # the table comes after a failure of the launcher, too
        launcher.close()
        ends = {point.number: conductor.end(point, stopped=signals.received is not None) for point in todo}
        code = report([end for _, end in sorted((settled | ends).items())])
    return 128 + signals.received if signals.received else code


class Conductor:
    """Hands points to a launcher as it has room for them, and sees each of them end."""

    def __init__(self, launcher: Launcher, job: Job, points: Sequence[Point]) -> None:
        self.launcher, self.job, self.points = launcher, job, points
        self.losses: dict[int, str] = {}  # what is known of processes that ended badly

    def run(self) -> None:
        """Run all points; when asked to stop, begin no more and wait for those that have begun."""
        waiting = deque(self.points)
        running: dict[int, Any] = {}
        while waiting or running:
            if asked_to_stop(self.job.stop_file) is not None:
                waiting.clear()
                self._cancel(running)
            room = len(waiting) if self.launcher.at_once is None else self.launcher.at_once - len(running)
            if waiting and room > 0:
                batch = [waiting.popleft() for _ in range(min(room, len(waiting)))]
                running.update(zip((p.number for p in batch), self.launcher.submit(batch), strict=True))
            for number in self.launcher.ended(running):
                self.losses[number] = self.launcher.loss(running.pop(number))
                self._tell_of(number)
            if running:
                time.sleep(self.launcher.look_every)

    def stop(self, number: int) -> None:
        """Ask all jobs to stop by this signal."""
        ask_to_stop(self.job.stop_file, number)
        name = signal.Signals(number).name
        print(f"\n{name}: runs that have begun are saved, and no more begin; once more stops at once", file=sys.stderr)

    def end(self, point: Point, *, stopped: bool) -> Outcome:
        """Return what became of a point, once nothing runs any more."""
        outcome, loss = read_outcome(self.job.outcome_file(point.number)), self.losses.get(point.number, "")
        if outcome is None:
            lost = bool(loss) and not stopped
            status = FAILED if lost else NOT_RUN
            return Outcome(*point.names.place, status, EXIT_FAILED if lost else 0, loss if lost else "")
        if outcome.status != RUNNING:
            return outcome
        if stopped:
            return replace(outcome, status=INTERRUPTED)
        gone = "its process is gone without a word: killed, or out of memory"
        return replace(outcome, status=FAILED, error=f"{gone} ({loss})" if loss else gone)

    def _cancel(self, running: dict[int, Any]) -> None:
        for number, handle in list(running.items()):
            if not self.job.outcome_file(number).exists():  # and if it begins now, it will see that it must not
                self.launcher.cancel(handle)
                del running[number]

    def _tell_of(self, number: int) -> None:
        """Say how a job ended that does not print here."""
        outcome = read_outcome(self.job.outcome_file(number))
        if outcome is not None and not self.launcher.at_home:
            print(f"{len(self.losses)} of {len(self.points)}: {outcome.where} {outcome.status}", file=sys.stderr)
