"""The gradient of one loss, computed beside that of another.

    at the same time:  d_1 = gradient of L_1 by theta_1 at (theta_1, theta_2)
                       d_2 = gradient of L_2 by theta_2 at (theta_1, theta_2)
    then:              move theta_1 by d_1 and theta_2 by d_2

Where a core is idle, a second process computes d_2: not a thread, as two threads of small operations mostly wait for
the interpreter. Elsewhere this process computes one after the other, to the same bits.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from weakref import finalize

import torch
from torch import Tensor, nn

from rlrun.algos.meanwhile import traces
from rlrun.data.collector import Batch
from rlrun.device import Device
from rlrun.forked import Workers, share

Loss = Callable[[Batch], tuple[Tensor, dict[str, Tensor]]]


class Aside:
    """A loss whose gradient by the weights of a network is computed aside.

    loss: of tensors whose shapes never change -> the loss and what is worth logging, tensors of one number all. It
    computes with `net` and with `others`, whose weights may change between two calls, and with nothing else that does,
    and draws nothing at random by itself.
    """

    def __init__(self, loss: Loss, net: nn.Module, others: Sequence[nn.Module | nn.Parameter], device: Device) -> None:
        self.loss, self.device = loss, device
        self.weights = list(net.parameters())
        self.modules = [module for module in (net, *others) if isinstance(module, nn.Module)]
        self.seen = [weight for module in self.modules for weight in module.parameters()]
        self.seen += [other for other in others if isinstance(other, nn.Parameter)]
        self.inputs: Batch = {}  # the memory that inputs are copied to, and with a process also that of gradients
        self.gradients: list[Tensor] = []
        self.alone: bool | None = None  # whether no process is to be started; not known before the first loss
        self.process: Workers[bool, dict[str, float]] | None = None

    @contextmanager
    def computed(self, **inputs: Tensor) -> Iterator[dict[str, Tensor]]:
        """Compute the loss of these inputs while the block runs, which changes no weight.

        When it ends, the weights have their gradients, and the metrics that it was given are filled.
        """
        metrics: dict[str, Tensor] = {}
        for name, value in inputs.items():
            if name not in self.inputs:
                self.inputs[name] = torch.empty(value.shape, dtype=value.dtype, device=value.device)
            self.inputs[name].copy_(value)
        if self.alone is False and self.process is None:
            self.process = self.start()
        if self.process is None:
            yield metrics
            metrics |= self.compute() if self.alone else self.compute_watched()
            return
        self.process.start(True)
        try:
            yield metrics
        finally:
            (report,) = self.process.finish()
        metrics |= {name: torch.tensor(value) for name, value in report.items()}
        for weight, gradient in zip(self.weights, self.gradients, strict=True):
            weight.grad = gradient

    def compute(self) -> dict[str, Tensor]:
        loss, metrics = self.loss(self.inputs)
        found = torch.autograd.grad(loss, self.weights, allow_unused=True, materialize_grads=True)
        for weight, gradient in zip(self.weights, found, strict=True):
            weight.grad = gradient
        return {name: value.detach().float() for name, value in metrics.items()}

    def compute_watched(self) -> dict[str, Tensor]:
        """Compute here, and see whether another process could."""
        before = traces(self.modules)
        metrics = self.compute()
        # Elsewhere than on Linux a process that only forks may find the system's own libraries in any state.
        idle = self.device.idle_cores > 0 and sys.platform == "linux" and not self.device.compile
        self.alone = not idle or traces(self.modules) != before
        return metrics

    # --- The process ------------------------------------------------------------------------------------

    def start(self) -> Workers[bool, dict[str, float]] | None:
        """Fork the process, once what both see lies in memory that they share, if the system has what it takes."""
        self.gradients = [torch.empty_like(weight) for weight in self.weights]
        try:
            share([*self.seen, *self.inputs.values(), *self.gradients])
            process: Workers[bool, dict[str, float]] = Workers(1, lambda number: self.work)
        except OSError:
            self.alone = True
            return None
        finalize(self, process.close)
        return process

    def work(self, order: bool) -> dict[str, float]:
        """Compute in the process."""
        metrics = self.compute()
        for gradient, weight in zip(self.gradients, self.weights, strict=True):
            assert weight.grad is not None
            gradient.copy_(weight.grad)
        return {name: float(value) for name, value in metrics.items()}

    def close(self) -> None:
        if self.process is not None:
            self.process.close()
            self.process = None
