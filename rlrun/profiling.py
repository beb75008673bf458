"""Where the time of training goes: the share of each part, and the operations that take most."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from threading import get_ident
from time import perf_counter
from typing import Any

import torch

from rlrun.algos.algorithm import Algorithm
from rlrun.data.collector import Collector

PROFILE_SECONDS = 0.1  # one iteration at least; digesting the events takes far longer than recording them
PROFILE_ROWS = 15


Iteration = Callable[[], int]  # does a piece of work; returns the environment steps that it took


def learning(algorithm: Algorithm) -> int:
    before = algorithm.steps
    algorithm.step()
    return algorithm.steps - before


def window(iterate: Iteration, seconds: float) -> float:
    """Repeat the iteration for at least so long; return environment steps per second."""
    steps, started = 0, now()
    while True:
        steps += iterate()
        elapsed = now() - started
        if elapsed >= seconds:
            return steps / elapsed


def now() -> float:
    """Return the clock in seconds, once the GPU has done what it was asked for."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return perf_counter()


class Stopwatch:
    """Seconds that its own thread spends in each named part, without the parts that are entered from within it."""

    def __init__(self) -> None:
        self._thread = get_ident()
        self.seconds: dict[str, float] = {}
        self._entered: list[str] = []
        self._since = 0.0

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        if get_ident() != self._thread:  # what happens meanwhile costs no time
            yield
            return
        self._charge()
        self._entered.append(part)
        try:
            yield
        finally:
            self._charge()
            self._entered.pop()

    def _charge(self) -> None:
        time = now()
        if self._entered:
            part = self._entered[-1]
            self.seconds[part] = self.seconds.get(part, 0.0) + time - self._since
        self._since = time


def time_shares(algorithm: Algorithm, seconds: float) -> dict[str, float]:
    """Return the share of each part in the time of learning, largest first; they add up to 1.

    "update" is what the algorithm's step does besides collecting: returns, losses, gradients. Measured apart
    from the speeds: a clock around each call slows small environments down.
    """
    stopwatch = Stopwatch()
    with watched(algorithm, stopwatch):
        window(lambda: learning(algorithm), seconds)
    total = sum(stopwatch.seconds.values())
    shares = {part: spent / total for part, spent in stopwatch.seconds.items()}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


@contextmanager
def watched(algorithm: Algorithm, mark: Callable[[str], AbstractContextManager[Any]]) -> Iterator[None]:
    """Run the block with `mark(part)` around each call of the algorithm, its collectors and environments."""
    patched: list[tuple[Any, str]] = []

    def patch(owner: Any, name: str, part: str) -> None:
        setattr(owner, name, marked(getattr(owner, name), part, mark))
        patched.append((owner, name))

    patch(algorithm, "step", "update")
    for collector in algorithm.setup.collectors:
        if not isinstance(collector, Collector):
            continue  # steps of a table take less time than reading the clock
        patch(collector.envs.envs, "step", "environment steps")
        patch(collector.envs.envs, "reset", "environment resets")
        for name in ("collect", "collect_episodes"):
            setattr(collector, name, marks_policy(getattr(collector, name), mark))
            patched.append((collector, name))
    try:
        yield
    finally:
        for owner, name in patched:
            delattr(owner, name)  # the method of the class shows again


def marked(function: Callable[..., Any], part: str, mark: Callable[[str], AbstractContextManager[Any]]) -> Any:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with mark(part):
            return function(*args, **kwargs)

    return wrapper


def marks_policy(collect: Callable[..., Any], mark: Callable[[str], AbstractContextManager[Any]]) -> Any:
    """Wrap a collector's `collect` or `collect_episodes`: the policy that it is given counts as a part of its own."""

    def wrapper(policy: Callable[..., Any], number: int) -> Any:
        with mark("storing, statistics"):
            return collect(marked(policy, "policy", mark), number)

    return wrapper


def profile(algorithm: Algorithm) -> list[dict[str, Any]]:
    """Return the operations of some steps with the most time of their own: name, calls, ms, share."""
    from torch.profiler import ProfilerActivity, record_function
    from torch.profiler import profile as torch_profile

    on_gpu = torch.cuda.is_initialized()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with watched(algorithm, record_function), torch_profile(activities=activities) as profiler:
        window(lambda: learning(algorithm), PROFILE_SECONDS)
    self_time = "self_device_time_total" if on_gpu else "self_cpu_time_total"  # microseconds
    events = sorted(profiler.key_averages(), key=lambda event: -getattr(event, self_time))
    total = sum(getattr(event, self_time) for event in events)
    return [
        {
            "name": event.key,
            "calls": event.count,
            "self_ms": getattr(event, self_time) / 1000,
            "share": getattr(event, self_time) / total,
        }
        for event in events[:PROFILE_ROWS]
    ]
