"""Jobs that are done by whoever is free: the thread that has them to do, or one that helps it."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, wait
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
    """Jobs whose results do not depend on which thread does them when, and which change nothing that others see.

    A block, at whose end none of them is under way, whatever went wrong.
    """

    def __init__(self) -> None:
        # Bits depend on the number of torch's threads, and the one that helps has one.
        self.helper = _helper() if torch.get_num_threads() == 1 else None
        self.jobs: list[tuple[Callable[[], Result], Future[Result] | None]] = []

    def __enter__(self) -> "Jobs[Result]":
        return self

    def __exit__(self, *problem: object) -> None:
        begun = [future for _, future in self.jobs if future is not None and not future.cancel()]
        wait(begun)

    def give(self, job: Callable[[], Result]) -> None:
        """Have a job done; the caller, which has more to do first, has to ask for the results."""
        self.jobs.append((job, None if self.helper is None else self.helper.submit(job)))

    def results(self) -> list[Result]:
        """Do what nobody else has begun, from the last one on, and return the results of all in their order. Once."""
        found: dict[int, Result] = {}
        begun: dict[int, Future[Result]] = {}
        for place, (job, future) in reversed([*enumerate(self.jobs)]):
            if future is None or future.cancel():
                found[place] = job()
            else:
                begun[place] = future
        found |= {place: future.result() for place, future in begun.items()}
        return [found[place] for place in range(len(self.jobs))]


def _helper() -> Executor | None:
    return getattr(_here, "helper", None)
