"""Computing something while the caller computes something else, to the bits of one after the other."""

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from rlrun.device import Device, have_one_thread
from rlrun.networks.jobs import helped

Result = TypeVar("Result")

ELSEWHERE = (
    "This happened in a thread of its own, which acts while the network learns. What can be used only in the thread "
    "that made it, as some environments can, needs device.threads=1."
)


def traces(networks: Sequence[nn.Module]) -> tuple[Any, ...]:
    """Return what computing with networks could change besides weights: the global generators, and buffers.

    What leaves such traces cannot be done while something else is.
    """
    _, keys, place, *_ = np.random.get_state()
    tensors = [torch.get_rng_state(), *(buffer for network in networks for buffer in network.buffers())]
    return random.getstate(), place, np.asarray(keys).tobytes(), *(t.cpu().numpy().tobytes() for t in tensors)


class Meanwhile:
    """A thread that computes what shares nothing with the caller's computations but what neither changes.

    There is one where the device has a thread to spare, and nothing in the first round left traces. Otherwise each
    function is called here once its result is asked for.
    """

    def __init__(self, networks: Sequence[nn.Module], device: Device) -> None:
        self.networks, self.device = networks, device
        self.thread: ThreadPoolExecutor | None = None
        self.started: list[Future[Any]] = []  # in this round
        self.alone: bool | None = None  # whether there is to be no thread; not known before the first round

    @contextmanager
    def round(self) -> Iterator[None]:
        """Surround what is started and what is done meanwhile; nothing that was started goes on after the block."""
        if self.alone is not None:
            try:
                yield
            finally:
                wait(self.started)
                self.started.clear()
            return
        before = traces(self.networks)
        yield
        self.alone = self.device.spare_threads == 0 or traces(self.networks) != before

    def start(self, function: Callable[[], Result]) -> Callable[[], Result]:
        """Have the function computed, by the thread after what was started before; return what waits for its result."""
        if self.alone is not False:
            return lambda: self.computed_here(function)
        if self.thread is None:
            self.thread = ThreadPoolExecutor(1, "meanwhile", initializer=have_one_thread)
        self.started.append(self.thread.submit(_with_a_note, function))
        return self.started[-1].result

    def helping(self) -> AbstractContextManager[None]:
        """Return the context in which the thread, when it has nothing else to do, does jobs of the caller's."""
        return helped(self.thread)

    def computed_here(self, function: Callable[[], Result]) -> Result:
        """Compute with as many of torch's threads as the thread would, since the bits depend on that."""
        num_threads = torch.get_num_threads()
        torch.set_num_threads(1 if self.device.spare_threads else num_threads)
        try:
            return function()
        finally:
            torch.set_num_threads(num_threads)

    def close(self) -> None:
        if self.thread is not None:
            self.thread.shutdown()
            self.thread = None


def _with_a_note(function: Callable[[], Result]) -> Result:
    try:
        return function()
    except Exception as error:
        error.add_note(ELSEWHERE)
        raise
