"""Ctrl-C and SIGTERM: the first asks the run to stop where it can go on later, the second ends it."""

import os
import signal
from types import FrameType
from typing import Any


class Signals:
    """While in use as a context, `received` is the first signal that came, or None."""

    HANDLED = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        for number in self.HANDLED:
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            os._exit(128 + number)
        self.received = number
        name = signal.Signals(number).name
        os.write(2, f"\n{name}: saving at the next step boundary; once more stops at once\n".encode())
