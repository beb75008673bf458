"""Ctrl-C, SIGTERM and a cluster's warnings: the first asks the run to stop where it can go on later.

A run of a sweep that is in another process than the sweep's own cannot be reached by the terminal, and may be
on another machine: it is asked by a file, whose content is the signal.
"""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

STOPS = (signal.SIGINT, signal.SIGTERM)
WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)  # of a time limit or preemption: Slurm's --signal=USR2@300
STOP_FILE = "RLRUN_STOP_FILE"  # the environment variable that names the file, in processes of a sweep
LOOK_EVERY = 0.5  # seconds between looks at the file


class Signals:
    """While in use as a context, `received` is the first signal that came, or None."""

    HANDLED = (*STOPS, *WARNINGS)

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._received: int | None = None
        self._before: dict[int, Any] = {}
        self._stop_file = os.environ.get(STOP_FILE)
        self._parent = os.getppid()
        self._next_look = 0.0

    @property
    def received(self) -> int | None:
        if self._received is None and self._stop_file is not None and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + LOOK_EVERY
            orphaned = os.getppid() != self._parent
            self._received = signal.SIGTERM if orphaned else asked_to_stop(Path(self._stop_file)) or None
        return self._received

    def pass_on(self, number: int) -> None:
        """Take note of a signal that came to another process of the run; 0 is none."""
        self._received = self._received or number or None

    def __enter__(self) -> "Signals":
        for number in self.HANDLED:
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._received in STOPS and number in STOPS:
            os._exit(128 + number)
        first = self._received is None
        if first or number in WARNINGS:  # Slurm may send its warning after SIGTERM, and it is what asks for a requeue
            self._received = number
        if first and not self._quiet:
            hint = "; once more stops at once" if number in STOPS else ""
            os.write(2, f"\n{signal.Signals(number).name}: saving at the next step boundary{hint}\n".encode())


class SweepSignals:
    """While in use as a context, the first SIGINT or SIGTERM is handed to `tell`, the second interrupts.

    Without `tell` the first interrupts. An interruption is a KeyboardInterrupt, for SIGTERM, too.
    """

    def __init__(self, tell: Callable[[int], None] | None) -> None:
        self.received: int | None = None
        self._tell = tell
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "SweepSignals":
        for number in STOPS:
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first, self.received = self.received is None, self.received or number
        if self._tell is None or not first:
            raise KeyboardInterrupt
        self._tell(number)


def ask_to_stop(file: Path, number: int) -> None:
    """Tell the jobs of a sweep to stop by this signal; 0 keeps further ones from beginning, and no more."""
    if number == 0 and asked_to_stop(file) is not None:
        return
    beside = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    beside.write_text(str(number))
    os.replace(beside, file)


def asked_to_stop(file: Path) -> int | None:
    """Return the signal that the file asks to stop by, 0, or None; SIGTERM if its folder, the sweep, is gone."""
    try:
        return int(file.read_text())
    except FileNotFoundError:
        return None if file.parent.is_dir() else signal.SIGTERM
