"""Convolutions of a batch in as many parts as there are threads, each part with a thread of its own.

OpenMP splits each operation instead, and its threads meet after each one. These meet once on the way forward and once
on the way back. They sleep while they wait, where oneDNN's own spin in the backward pass in bfloat16, and lose most of
their time beside a busy process.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rlrun.device import have_one_thread
from rlrun.networks.convolved import Convolved

ROWS_OF_A_PART = 16  # at least: threads are woken and parts put together in less than a tenth of the time of so many
MOST_THREADS = 256

Item = TypeVar("Item")
Result = TypeVar("Result")


class Trunk:
    """The layers of a network before its first linear one, with convolutions among them: x [B, ...] -> [B, F].

    The result depends on the number of threads in the last bits, as it does with OpenMP.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules, self.convolved = modules, Convolved.of(modules)

    @staticmethod
    def first_of(modules: Sequence[nn.Module]) -> "Trunk | None":
        linear = next((i for i, module in enumerate(modules) if isinstance(module, nn.Linear)), len(modules))
        own = list(modules[:linear])
        return Trunk(own) if any(isinstance(module, nn.Conv2d) for module in own) else None

    def __len__(self) -> int:
        return len(self.modules)

    def __call__(self, x: Tensor) -> Tensor:
        count = min(torch.get_num_threads(), x.shape[0] // ROWS_OF_A_PART)
        if count < 2 or x.device.type != "cpu" or x.requires_grad:
            return self.whole(x)
        if not torch.is_grad_enabled():
            return torch.cat(at_once(self.whole, x.chunk(count)))
        weights = [weight for module in self.modules for weight in module.parameters()]
        out: Tensor = _InParts.apply(self, count, x, *weights)
        return out

    def whole(self, x: Tensor) -> Tensor:
        if self.convolved is not None and self.convolved.fits(x):
            return self.convolved(x)
        for module in self.modules:
            x = module(x)
        return x


class _InParts(torch.autograd.Function):
    """The parts keep graphs of their own, which are gone through at the same time as well.

    A hook on a weight sees the gradient of each part, and then their sum.
    """

    @staticmethod
    def forward(ctx: Any, trunk: Trunk, count: int, x: Tensor, *weights: Tensor) -> Tensor:
        with torch.enable_grad():
            outputs = at_once(trunk.whole, x.chunk(count))
        ctx.trunk, ctx.count = trunk, len(outputs)
        ctx.save_for_backward(*outputs, x, *weights)  # which frees their graphs with the one that this is in
        return torch.cat([output.detach() for output in outputs])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (grad,), saved = grads, ctx.saved_tensors
        outputs, x, weights = saved[: ctx.count], saved[ctx.count], saved[ctx.count + 1 :]
        needed = [weight for weight in weights if weight.requires_grad]
        if torch.is_grad_enabled():  # the derivatives are to be derived again
            found = torch.autograd.grad(ctx.trunk.whole(x), needed, grad, create_graph=True)
        else:
            parts = list(zip(outputs, grad.split([len(output) for output in outputs]), strict=True))
            rows = at_once(lambda part: torch.autograd.grad(part[0], needed, part[1], retain_graph=True), parts)
            found = tuple(sum(column[1:], column[0]) for column in zip(*rows, strict=True))
        each = iter(found)
        return None, None, None, *(next(each) if weight.requires_grad else None for weight in weights)


_pool: ThreadPoolExecutor | None = None


def at_once(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Return [function(item) for item in items], each in a thread of its own, the first one in the caller's.

    Gradients are recorded and types are cast there as they are here.
    """
    graph, cast = torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")
    dtype, keep = torch.get_autocast_dtype("cpu"), torch.is_autocast_cache_enabled()

    def elsewhere(item: Item) -> Result:
        with torch.set_grad_enabled(graph), torch.autocast("cpu", dtype, enabled=cast, cache_enabled=keep):
            return function(item)

    all_threads = torch.get_num_threads()
    futures = [_threads().submit(elsewhere, item) for item in items[1:]]
    torch.set_num_threads(1)
    try:
        return [function(items[0]), *(future.result() for future in futures)]
    finally:
        wait(futures)
        torch.set_num_threads(all_threads)


def _threads() -> ThreadPoolExecutor:
    """Return threads that are started where none is idle."""
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(MOST_THREADS, "part", initializer=_begin)
    return _pool


def _begin() -> None:
    have_one_thread()
    # A thread that leaves its outermost autocast clears the casts of all threads. This one never does.
    torch.autocast_increment_nesting()


def _forget() -> None:
    global _pool
    _pool = None


os.register_at_fork(after_in_child=_forget)  # threads stay behind
