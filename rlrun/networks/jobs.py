"""Jobs that are done by whoever is free: the thread that has them to do, or one that helps it."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch

Result = TypeVar("Result")

_here = threading.local()


@contextmanager
def helped(by: Executor | None) -> Iterator[None]:
    """Let a thread of `by` do jobs of this thread's in the block, when it has nothing else to do; None: nobody does."""
    before = _helper()
    _here.helper = by
    try:
        yield
    finally:
        _here.helper = before


class Jobs(Generic[Result]):
    """Jobs whose results do not depend on which thread does them when, and which change nothing that others see."""

    def __init__(self) -> None:
        # Bits depend on the number of torch's threads, and the one that helps has one.
        self.helper = _helper() if torch.get_num_threads() == 1 else None
        self.jobs: list[Callable[[], Result]] = []
        self.futures: list[Future[Result]] = []

    def give(self, job: Callable[[], Result]) -> None:
        """Have a job done; the caller, which has more to do first, has to ask for the results."""
        self.jobs.append(job)
        if self.helper is not None:
            self.futures.append(self.helper.submit(job))

    def results(self) -> list[Result]:
        """Do what nobody else has begun, from the last one on, and return the results of all in their order."""
        done: dict[int, Result] = {}
        for place in reversed(range(len(self.jobs))):
            if self.helper is None or self.futures[place].cancel():
                done[place] = self.jobs[place]()
        return [done[place] if place in done else self.futures[place].result() for place in range(len(self.jobs))]


def _helper() -> Executor | None:
    return getattr(_here, "helper", None)
