"""Forked workers: what they report, and that nothing is left of them whoever ends how."""

import faulthandler
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from harness import children, gone
from torch import nn

from rlrun.errors import RunFailed
from rlrun.forked import SharedCounter, Workers, share


@contextmanager
def workers(count: int, make_work: Callable[[int], Callable[[int], object]]) -> Iterator[Workers[int, object]]:
    made: Workers[int, object] = Workers(count, make_work)
    try:
        yield made
    finally:
        made.close()


def test_each_worker_makes_its_own_and_reports_for_each_order() -> None:
    def make_work(number: int) -> Callable[[int], tuple[int, int, int]]:
        own = [number]

        def work(order: int) -> tuple[int, int, int]:
            own[0] += order
            return number, own[0], os.getpid()

        return work

    with workers(3, make_work) as pool:
        first, second = sorted(pool.run(10)), sorted(pool.run(100))
    assert [report[:2] for report in first] == [(0, 10), (1, 11), (2, 12)]
    assert [report[:2] for report in second] == [(0, 110), (1, 111), (2, 112)]
    assert [report[2] for report in first] == [report[2] for report in second]
    assert len({report[2] for report in first} | {os.getpid()}) == 4


def test_workers_that_count_together_count_every_piece_of_work_once() -> None:
    pieces, shared = SharedCounter(0), torch.zeros(200, dtype=torch.int64).share_memory_()

    def make_work(number: int) -> Callable[[int], int]:
        def work(order: int) -> int:
            done = 0
            while (piece := pieces.next()) < order:
                shared[piece] += 1
                done += 1
            return done

        return work

    with workers(3, make_work) as pool:
        for repetition in (1, 2):
            pieces.reset()
            assert sum(pool.run(200)) == 200  # type: ignore[arg-type]
            assert shared.tolist() == [repetition] * 200


def test_what_is_shared_keeps_its_values_and_its_layout_and_changes_for_all() -> None:
    matrix = nn.Parameter(torch.arange(6.0).view(2, 3).t())
    image = torch.arange(48, dtype=torch.uint8).view(1, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    part, nothing, number = torch.arange(10.0)[3:5], torch.empty(4, 0), torch.tensor(7.0)
    tensors = [matrix, image, part, nothing, number]
    values = [tensor.detach().clone() for tensor in tensors]
    layouts = [(tensor.shape, tensor.stride(), tensor.dtype, tensor.requires_grad) for tensor in tensors]
    share(tensors)
    assert all(torch.equal(tensor, value) for tensor, value in zip(tensors, values, strict=True))
    assert [(t.shape, t.stride(), t.dtype, t.requires_grad) for t in tensors] == layouts

    def work(order: int) -> None:
        with torch.no_grad():
            for tensor in tensors:
                tensor += order

    with workers(1, lambda number: work) as pool:
        pool.run(2)
        with torch.no_grad():
            number += 10
        pool.run(1)
    assert all(torch.equal(t, v + 3) for t, v in zip(tensors[:4], values[:4], strict=True))
    assert float(number) == 20


def test_workers_compute_on_one_thread_and_are_deaf_to_signals_to_the_group() -> None:
    def make_work(number: int) -> Callable[[int], object]:
        def work(order: int) -> object:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
                os.kill(os.getpid(), number)
            return torch.get_num_threads()

        return work

    torch.set_num_threads(2)
    with workers(2, make_work) as pool:
        assert pool.run(0) == [1, 1]


def test_what_is_raised_in_a_worker_is_raised_here_with_its_traceback() -> None:
    def make_work(number: int) -> Callable[[int], object]:
        def work(order: int) -> object:
            if number == order:
                raise FileNotFoundError("the map of level 3")
            return None

        return work

    with workers(2, make_work) as pool:
        assert pool.run(7) == [None, None]
        with pytest.raises(RunFailed, match=r"(?s)worker process 1 failed:.*FileNotFoundError: the map of level 3"):
            pool.run(1)
    assert not children(os.getpid())


def test_a_worker_that_cannot_even_begin_is_an_error_too() -> None:
    def make_work(number: int) -> Callable[[int], object]:
        raise ValueError(f"no screen for {number}")

    with workers(1, make_work) as pool, pytest.raises(RunFailed, match="no screen for 0"):
        pool.run(0)


@pytest.mark.parametrize(
    ("end", "cause"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "it was killed"),
        (lambda: (faulthandler.disable(), os.kill(os.getpid(), signal.SIGSEGV)), "SIGSEGV"),
        (lambda: os._exit(3), "its exit code is 3"),
    ],
)
def test_a_worker_that_dies_is_an_error_that_says_how(end: Callable[[], object], cause: str) -> None:
    with workers(2, lambda number: lambda order: end() if number == order else None) as pool:
        with pytest.raises(RunFailed, match=f"worker process 0 died: {cause}"):
            pool.run(0)
        with pytest.raises(RunFailed, match="worker process 0 died"):
            pool.run(1)


def test_closing_ends_workers_that_are_busy_or_stuck() -> None:
    def stuck(number: int) -> Callable[[int], object]:
        return lambda order: time.sleep(60) if number == order else None

    with workers(2, stuck) as pool:
        pool._workers[1].send(1)
        started = time.monotonic()
    assert time.monotonic() - started < 10
    assert not children(os.getpid())
    pool.close()  # again: nothing happens


PARENT = """
import os, sys, time
from rlrun.forked import Workers
pool = Workers(2, lambda number: lambda order: time.sleep(order) or os.getpid())
print(*pool.run(0), flush=True)
if sys.argv[1] == "idle": time.sleep(60)
if sys.argv[1] == "busy": pool.run(60)
if sys.argv[1] == "raise": raise RuntimeError
"""


@pytest.mark.crash
@pytest.mark.parametrize("state", ["idle", "busy", "raise", "exit"])
def test_no_worker_outlives_its_parent(state: str) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, state], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert parent.stdout is not None
    processes = [int(word) for word in parent.stdout.readline().split()]
    assert len(processes) == 2
    if state in ("idle", "busy"):
        parent.kill()
    parent.wait(timeout=20)
    parent.stdout.close()
    assert gone(processes, within=10)


def test_generators_of_workers_are_theirs_once_they_are_made_there() -> None:
    def make_work(number: int) -> Callable[[int], object]:
        generator = np.random.default_rng(number)
        return lambda order: generator.integers(2**60)

    with workers(2, make_work) as pool:
        assert len({*pool.run(0), *pool.run(0)}) == 4
