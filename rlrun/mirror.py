"""Trackers get what metrics.jsonl gets, from a process of their own.

In this process they could do harm: their libraries draw from the global generators, start threads, wait for
networks. In the other one they can not. All that training does is put a line into a socket that is never waited for.
When training is killed, the other process finds the socket closed, hands over what it has, and ends, too.

On resume the other process is given the part of metrics.jsonl that was kept, and sends what a tracker lacks of it.
"""

import fcntl
import json
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlrun.facts import INTERRUPTED, Facts
from rlrun.trackers import KINDS, Tracker

BUFFER_BYTES = 1 << 20  # of rows that wait while the other process starts
FLUSH_SECONDS = 30.0  # that the end of a run waits for its trackers
LOG = "trackers.log"  # what the trackers' libraries print
NOT_SHOWN = ("step", "time/unix")


class Mirror:
    """This end: what the logger of a run talks to."""

    def __init__(
        self, folder: Path, facts: Facts, options: Mapping[str, Mapping[str, Any]], notice: Callable[[str], None]
    ) -> None:
        """`options`: {tracker: its section of the configuration}."""
        self._folder, self._facts, self._options, self._notice = folder, facts, options, notice
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._unread = b""

    def start(self, rows: Path, num_bytes: int) -> None:
        """Start the other process and offer it the first bytes of a file of rows."""
        here, there = socket.socketpair()
        try:
            with there, open(self._folder / LOG, "ab") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "rlrun.mirror", str(there.fileno())],
                    pass_fds=[there.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C is meant for training, which tells the other process
                )
        except OSError as error:
            here.close()
            self._notice(f"trackers: off, their process cannot be started ({error})")
            return
        here.setblocking(False)
        here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        self._socket = here
        first = {"folder": str(self._folder), "facts": asdict(self._facts), "options": self._options}
        self._send({**first, "rows": str(rows), "num_bytes": num_bytes})

    def row(self, row: Mapping[str, Any]) -> None:
        self._send({"row": row})
        self._pass_on_notices()

    def finish(self, status: str) -> None:
        """Say how the session ended, and wait for a while until the trackers have all of it."""
        self._send({"status": status})
        if self._socket is None or self._process is None:
            return
        self._socket.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + FLUSH_SECONDS
        while self._process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        self._pass_on_notices()
        if self._process.poll():
            self._notice(f"trackers: their process failed; see {self._folder / LOG}")
        if self._process.poll() is None:
            self._notice(f"trackers: still sending, which goes on in the background; see {self._folder / LOG}")
        self._socket.close()

    def _send(self, message: Mapping[str, Any]) -> None:
        if self._socket is None:
            return
        line = json.dumps(message).encode() + b"\n"
        try:
            if self._socket.send(line) == len(line):
                return
            why = "it does not keep up"
        except OSError as error:
            why = str(error)
        self._pass_on_notices()
        self._notice(f"trackers: off from here on, their process is lost ({why}); see {self._folder / LOG}")
        self._socket.close()
        self._socket = None

    def _pass_on_notices(self) -> None:
        if self._socket is None:
            return
        with suppress(OSError):
            while received := self._socket.recv(65536):
                self._unread += received
        *lines, self._unread = self._unread.split(b"\n")
        for line in lines:
            self._notice(line.decode())


class Sender:
    """The other end: gives each tracker what it does not have yet, and goes on without those that fail."""

    def __init__(self, trackers: Mapping[str, Tracker], notice: Callable[[str], None]) -> None:
        self._trackers, self._notice = dict(trackers), notice
        self._held: dict[str, Any] = {}  # of the latest step: a second row may follow

    def start(self, facts: Facts) -> None:
        for name in list(self._trackers):
            where = self._guarded(name, lambda tracker: tracker.start(facts))
            if where:
                self._notice(f"{name}: {where}")

    def row(self, row: Mapping[str, Any]) -> None:
        if self._held and row["step"] != self._held["step"]:
            self.flush()
        self._held |= row

    def flush(self) -> None:
        """Hand over the step that is held."""
        row, self._held = self._held, {}
        if not row:
            return
        numbers = {tag: value for tag, value in row.items() if tag not in NOT_SHOWN and value is not None}

        def give(tracker: Tracker) -> None:
            new = {tag: value for tag, value in numbers.items() if not tracker.has(row["step"], tag)}
            if new:
                tracker.row(row["step"], new, row["time/unix"])

        for name in list(self._trackers):
            self._guarded(name, give)

    def finish(self, status: str) -> None:
        """End the session. What is held after an interruption may be half a step: the next session sends it whole."""
        if status != INTERRUPTED:
            self.flush()
        for name in list(self._trackers):
            self._guarded(name, lambda tracker: tracker.finish(status))

    def _guarded(self, name: str, call: Callable[[Tracker], Any]) -> Any:
        try:
            return call(self._trackers[name])
        except Exception as error:
            traceback.print_exc()
            first_line = (str(error).splitlines() or [""])[0]
            self._notice(f"{name}: off from here on, training goes on ({type(error).__name__}: {first_line})")
            del self._trackers[name]
            return None


def main() -> None:
    """Be the other process: take messages from the socket given by its number until it is closed."""
    for number in (signal.SIGINT, signal.SIGTERM):  # it ends with training, and after it
        signal.signal(number, signal.SIG_IGN)
    connection = socket.socket(fileno=int(sys.argv[1]))
    messages: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    # Reads on while a tracker waits for its server, so that training never waits.
    threading.Thread(target=_receive, args=(connection, messages), daemon=True).start()

    def notice(text: str) -> None:
        with suppress(OSError):  # training was killed
            connection.sendall(text.encode() + b"\n")

    first = messages.get()
    if first is None:
        return
    folder = Path(first["folder"])
    trackers = {name: KINDS[name](folder, options) for name, options in first["options"].items()}
    with _alone(folder):
        sender = Sender(trackers, notice)
        sender.start(Facts(**first["facts"]))
        serve(sender, [*_rows(Path(first["rows"]), first["num_bytes"])], iter(messages.get, None))


def serve(sender: Sender, stored: Sequence[Mapping[str, Any]], messages: Iterator[Mapping[str, Any] | None]) -> None:
    """Hand over the rows stored before, then those that arrive; an end without a word is an interruption."""
    for row in stored:
        sender.row(row)
    status = INTERRUPTED
    for message in messages:
        assert message is not None
        if "row" in message:
            sender.row(message["row"])
        else:
            status = message["status"]
    sender.finish(status)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait for the process of a session that was killed: it may have something left to send."""
    with open(folder / ".trackers.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _receive(connection: socket.socket, messages: "queue.SimpleQueue[dict[str, Any] | None]") -> None:
    with suppress(OSError, ValueError), connection.makefile("rb") as lines:
        for line in lines:
            messages.put(json.loads(line))
    messages.put(None)


def _rows(path: Path, num_bytes: int) -> Iterator[dict[str, Any]]:
    with open(path, "rb") as file:
        # The session after this one may have cut the file back already.
        whole, _, _ = file.read(num_bytes).rpartition(b"\n")
        yield from map(json.loads, whole.splitlines())


if __name__ == "__main__":
    main()
