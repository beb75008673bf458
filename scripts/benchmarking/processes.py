"""Windows as processes of their own, so that none lives with another's allocator, threads or environment variables."""

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
class Ended:
    """A process that has come to its end."""

    output: str
    seconds: float  # from its start to its end
    memory_gb: float  # the most that was resident

    @property
    def last_line(self) -> str:
        return self.output.splitlines()[-1]


def environment() -> dict[str, str]:
    """Return the variables of a window: it imports the rlrun and the scripts that this process has, and sees no GPU."""
    paths = [str(SCRIPTS), str(Path(rlrun.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path), "CUDA_VISIBLE_DEVICES": ""}


def run(module: str, arguments: Sequence[str], expected: int = 0) -> Ended:
    """Run a Python module to its end; end this program with the module's message if its exit code is another."""
    command = [sys.executable, "-m", module, *arguments]
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=errors, text=True, env=environment())
        with killed_in_the_end(process):
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - started
        output.seek(0)
        errors.seek(0)
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
    """End this program with an error."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
