"""What a person sees while a search goes on: lines that stay, and one that says where it stands."""

import sys
import time

from rich.console import Console
from rich.status import Status

from rlrun.console import PLAIN_EVERY


class Board:
    """Notices and the present state, on the error stream. Used as a context."""

    def __init__(self) -> None:
        self._console = Console(file=sys.stderr)
        self._status: Status | None = None
        self._last = time.monotonic()

    def __enter__(self) -> "Board":
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()
        self._status = None

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def show(self, text: str) -> None:
        """Show where things stand: live in a terminal, a line now and then elsewhere."""
        if self._console.is_terminal:
            if self._status is None:
                self._status = self._console.status("")
                self._status.start()
            self._status.update(text.replace("[", "\\["))
        elif time.monotonic() - self._last >= PLAIN_EVERY:
            self._last = time.monotonic()
            self.say(text)
