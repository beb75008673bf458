"""Windows as processes of their own, so that none lives with another's allocator, threads or environment variables."""

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import rlrun

SCRIPTS = Path(__file__).parent.parent
Mark = tuple[float, int]  # (seconds, steps so far)


@dataclass(frozen=True)
class Window:
    """How long is measured, after how long a warm-up [s]."""

    seconds: float
    warm_up: float


@dataclass(frozen=True)
class Terms:
    """What a process may use: the GPU, if there is one, and so much time [s]."""

    gpu: bool = False
    seconds: float | None = None


ON_CPU = Terms()


class Failed(SystemExit):
    """Ends this program with exit code 2, unless it goes on with other measurements."""

    def __init__(self, message: str) -> None:
        super().__init__(2)
        self.message = message


@dataclass(frozen=True)
class Ended:
    """A process that has come to its end."""

    output: str
    seconds: float  # from its start to its end
    memory_gb: float  # the most that was resident

    @property
    def last_line(self) -> str:
        return self.output.splitlines()[-1]


def environment(terms: Terms = ON_CPU) -> dict[str, str]:
    """Return the variables of a window: it imports the rlrun and the scripts that this process has."""
    paths = [str(SCRIPTS), str(Path(rlrun.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    no_gpu = {} if terms.gpu else {"CUDA_VISIBLE_DEVICES": ""}
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path), **no_gpu}


def run(module: str, arguments: Sequence[str], expected: int = 0, terms: Terms = ON_CPU) -> Ended:
    """Run a Python module to its end; fail with the module's message if its exit code is another, or time is up."""
    command = [sys.executable, "-m", module, *arguments]
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=errors, text=True, env=environment(terms))
        with killed_in_the_end(process), killed_after(process, terms.seconds) as late:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - started
        output.seek(0)
        errors.seek(0)
        if late.is_set():
            fail(f"{shlex.join(command)} was ended after {terms.seconds:g} s")
        if process.returncode != expected:
            fail(f"{shlex.join(command)} ended with code {process.returncode}:\n{errors.read()}")
        return Ended(output.read(), seconds, usage.ru_maxrss * 1024 / 1e9)


@contextmanager
def killed_in_the_end(process: subprocess.Popen[str]) -> Iterator[None]:
    """Let no process outlive the block."""
    try:
        yield
    finally:
        if process.returncode is None:
            process.kill()
            process.wait()


@contextmanager
def killed_after(process: subprocess.Popen[str], seconds: float | None) -> Iterator[threading.Event]:
    """Kill the process if the block takes longer; the event then is set."""
    late = threading.Event()

    def kill() -> None:
        late.set()
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)

    timer = threading.Timer(seconds or 0.0, kill)
    if seconds is not None:
        timer.start()
    try:
        yield late
    finally:
        timer.cancel()


def steady_speed(marks: Sequence[Mark], warm_up: float) -> float:
    """Return steps per second after the warm-up; marks: (seconds since the start, steps so far), first (0, 0)."""
    after = [mark for mark in marks if mark[0] >= warm_up]
    if len(after) < 2:
        fail(f"no whole iteration fits after {warm_up:g} s of warm-up: give a larger --seconds")
    (start, first), (end, last) = after[0], after[-1]
    return (last - first) / (end - start)


def end_on_sigterm() -> None:
    """Let SIGTERM end this program as Ctrl-C does, so that it leaves no window behind."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def fail(message: str) -> NoReturn:
    """Print an error and end this program with it, or the measurement if the program catches `Failed`."""
    print(f"error: {message}", file=sys.stderr)
    raise Failed(message)
