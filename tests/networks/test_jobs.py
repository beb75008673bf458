"""Jobs are done once each, by whoever is free, and their results are in order whoever did them."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from rlrun.networks.jobs import Jobs, helped


@pytest.fixture
def helper() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1, "helper") as pool:
        yield pool


def named(number: int, done: list[str]) -> Callable[[], int]:
    def job() -> int:
        done.append(f"{number} {'helper' if threading.current_thread().name.startswith('helper') else 'caller'}")
        return number

    return job


def given(count: int) -> tuple[Jobs[int], list[str]]:
    done: list[str] = []
    jobs: Jobs[int] = Jobs()
    for number in range(count):
        jobs.give(named(number, done))
    return jobs, done


def test_without_a_helper_the_caller_does_all_of_them() -> None:
    jobs, done = given(3)
    assert jobs.results() == [0, 1, 2]
    assert sorted(done) == ["0 caller", "1 caller", "2 caller"]
    assert Jobs[int]().results() == []


def test_a_busy_helper_does_none_and_is_not_waited_for(helper: ThreadPoolExecutor) -> None:
    free = threading.Event()
    busy = helper.submit(free.wait, 60)
    with helped(helper):
        jobs, done = given(3)
        assert jobs.results() == [0, 1, 2]
    assert not busy.done()
    free.set()
    helper.submit(int).result()  # what was taken from it is not done again
    assert done == ["2 caller", "1 caller", "0 caller"]


def test_an_idle_helper_begins_while_the_caller_has_more_to_do(helper: ThreadPoolExecutor) -> None:
    with helped(helper):
        jobs, done = given(3)
        helper.submit(int).result()
        assert jobs.results() == [0, 1, 2]
    assert done == ["0 helper", "1 helper", "2 helper"]


def test_each_takes_what_the_other_has_not_begun(helper: ThreadPoolExecutor) -> None:
    with helped(helper):
        jobs: Jobs[int] = Jobs()
        done: list[str] = []
        begun, free = threading.Event(), threading.Event()

        def long() -> int:
            begun.set()
            assert free.wait(60)
            return named(0, done)()

        def last() -> int:
            assert begun.wait(60)
            free.set()
            return named(2, done)()

        jobs.give(long)
        jobs.give(named(1, done))
        jobs.give(last)
        assert jobs.results() == [0, 1, 2]
    assert "2 caller" in done
    assert "0 helper" in done
    assert len(done) == 3


@pytest.mark.parametrize("place", [0, 2])
def test_what_goes_wrong_is_told_to_who_asks(helper: ThreadPoolExecutor, place: int) -> None:
    def wrong() -> int:
        raise ValueError("no")

    with helped(helper):
        jobs: Jobs[int] = Jobs()
        for number in range(3):
            jobs.give(wrong if number == place else named(number, []))
        with pytest.raises(ValueError, match="no"):
            jobs.results()


def test_only_the_thread_that_asked_for_help_has_it_and_only_in_the_block(helper: ThreadPoolExecutor) -> None:
    with helped(helper):
        assert Jobs[int]().helper is helper
        assert helper.submit(lambda: Jobs[int]().helper).result() is None
        with helped(None):
            assert Jobs[int]().helper is None
        assert Jobs[int]().helper is helper
    assert Jobs[int]().helper is None


def test_nobody_helps_a_thread_that_has_several_of_torchs(helper: ThreadPoolExecutor) -> None:
    torch.set_num_threads(2)
    try:
        with helped(helper):
            assert Jobs[int]().helper is None
    finally:
        torch.set_num_threads(1)
    with helped(helper):
        assert Jobs[int]().helper is helper


def test_nothing_is_under_way_after_the_block_whatever_went_wrong(helper: ThreadPoolExecutor) -> None:
    done: list[str] = []
    begun = threading.Event()

    def long() -> int:
        begun.set()
        time.sleep(0.1)
        return named(0, done)()

    def fails() -> None:
        with helped(helper), Jobs[int]() as jobs:
            jobs.give(long)
            jobs.give(named(1, done))
            assert begun.wait(60)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert done == ["0 helper"]
    helper.submit(int).result()
    assert done == ["0 helper"]
