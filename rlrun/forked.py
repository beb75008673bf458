"""Worker processes that share memory with this one: they are forked, take orders, and report.

A fork has everything that this process has. What was moved to shared memory before, both see from then on; the rest
is a copy that goes its own way, generators included, so that whoever draws in a worker must make its own first.
"""

import atexit
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from mmap import mmap
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any, Generic, NoReturn, TypeVar

import torch
from torch import Tensor

from rlrun.errors import RunFailed
from rlrun.signals import Signals

LOOK_EVERY = 0.2  # seconds between looks at whether the parent still lives
ALIGNMENT = 64  # bytes, as torch's own memory has
PATIENCE = 2.0  # seconds that workers have for ending by themselves

Order = TypeVar("Order")
Report = TypeVar("Report")
Work = Callable[[Order], Report]


def can_fork() -> bool:
    return "fork" in multiprocessing.get_all_start_methods()


def share(tensors: Sequence[Tensor]) -> None:
    """Move tensors to memory that processes forked later share. Raises OSError if there is none.

    It is not a file, as torch's `share_memory_` would take for each, so that neither the number of open files nor the
    size of /dev/shm limits it.
    """
    places = [0, *accumulate(-(-tensor.untyped_storage().nbytes() // ALIGNMENT) * ALIGNMENT for tensor in tensors)]
    memory = mmap(-1, max(places[-1], 1))
    for tensor, place in zip(tensors, places, strict=False):
        size = tensor.untyped_storage().nbytes() // tensor.element_size()
        if size > 0:
            flat = torch.frombuffer(memory, dtype=tensor.dtype, count=size, offset=place)
            shared = flat.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
            shared.copy_(tensor.detach())
            tensor.data = shared


class SharedCounter:
    """A whole number that forked processes count up together."""

    def __init__(self, start: int) -> None:
        self._value = multiprocessing.get_context("fork").Value("q", start)

    def next(self) -> int:
        """Return the number, and count on."""
        with self._value.get_lock():
            number = self._value.value
            self._value.value = number + 1
        return number

    def reset(self) -> None:
        self._value.value = 0


@dataclass
class Failure:
    """What a worker sends instead of a report."""

    text: str


class Workers(Generic[Order, Report]):
    """Processes forked from this one. `make_work(number)` is called in each, and makes what does its orders."""

    def __init__(self, count: int, make_work: Callable[[int], Work[Order, Report]]) -> None:
        atexit.register(self.close)  # if nobody else does, they would wait for orders until this process is gone
        self._workers: list[_Worker] = []
        for number in range(count):
            self._workers.append(_Worker(number, make_work))

    def run(self, order: Order) -> list[Report]:
        """Give all workers an order; return their reports once all of them are idle again.

        Raises RunFailed if one of them has failed or died; then they can only be closed.
        """
        self.start(order)
        return self.finish()

    def start(self, order: Order) -> None:
        """Give all workers an order, which `finish` waits for."""
        for worker in self._workers:
            worker.send(order)

    def finish(self) -> list[Report]:
        """Return the reports of what was started, as `run` does."""
        waiting: dict[Any, _Worker] = {worker.connection: worker for worker in self._workers}
        reports: list[Report] = []
        while waiting:
            reports += [waiting.pop(connection).receive() for connection in wait(list(waiting))]
        return reports

    def close(self) -> None:
        """End the processes, by force if they do not within a moment."""
        atexit.unregister(self.close)
        deadline = time.monotonic() + PATIENCE
        for worker in self._workers:
            worker.send(None)
        for worker in self._workers:
            worker.end(deadline)
        self._workers = []


class _Worker:
    """This end of a worker process."""

    def __init__(self, number: int, make_work: Callable[[int], Work[Any, Any]]) -> None:
        self.number = number
        self.connection, theirs = Pipe()
        parent = os.getpid()
        sys.stdout.flush()  # or the worker would print it, too
        self._pid: int | None = os.fork()
        if self._pid == 0:
            _serve(theirs, parent, lambda: make_work(number))
        theirs.close()

    def send(self, order: Any) -> None:
        with suppress(OSError):  # it has died, which `receive` tells
            self.connection.send(order)

    def receive(self) -> Any:
        try:
            report = self.connection.recv()
        except (EOFError, OSError):
            code = self._wait(os.WNOHANG, time.monotonic() + PATIENCE)
            raise RunFailed(
                f"worker process {self.number} died: {_cause(code)}. The same command goes on from the last checkpoint"
            ) from None
        if isinstance(report, Failure):
            raise RunFailed(f"worker process {self.number} failed:\n{report.text}")
        return report

    def end(self, deadline: float) -> None:
        if self._wait(os.WNOHANG, deadline) is None and self._pid is not None:
            os.kill(self._pid, signal.SIGKILL)
            self._wait(0, deadline)
        self.connection.close()

    def _wait(self, options: int, deadline: float) -> int | None:
        """Return the process's exit code once it has ended, or None at the deadline or where that is known."""
        while self._pid is not None:
            ended, status = os.waitpid(self._pid, options)
            if ended:
                self._pid = None
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() >= deadline:
                break
            time.sleep(0.005)
        return None


def _cause(code: int | None) -> str:
    if code == -signal.SIGKILL:
        return "it was killed, as the system does where memory runs out"
    if code is not None and code < 0:
        return f"{signal.Signals(-code).name}, a crash in compiled code"
    return f"its exit code is {code}"


def _serve(connection: Connection, parent: int, make_work: Callable[[], Work[Any, Any]]) -> NoReturn:
    """Do what is ordered until there is no more, or no parent. The body of a worker process."""
    # The parent saves and ends its workers: a signal to the whole group must not take them from under it.
    for number in Signals.HANDLED:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=end_after, args=(parent,), daemon=True).start()
    torch.set_num_threads(1)
    try:
        work = make_work()
        while (order := connection.recv()) is not None:
            connection.send(work(order))
            sys.stdout.flush()
    except BaseException:
        with suppress(OSError):  # the parent may be what is gone
            connection.send(Failure(traceback.format_exc()))
    os._exit(0)  # what the parent wants done at its exit is not this process's business


def end_after(parent: int) -> None:
    """End this process once its parent has ended, whatever it is doing then."""
    while os.getppid() == parent:
        time.sleep(LOOK_EVERY)
    os._exit(1)
