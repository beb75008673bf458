"""One run over several processes, on one machine or several, as `torchrun` starts them.

Each process steps its share of the environments and learns from its share of each minibatch; the gradient is
averaged. All else is kept as one process has it: weights, optimizer, generators and normalisation are the same
everywhere, and a draw is made for the environments of all processes, of which each takes its own (see
`seeding.Draws`). So what is learned does not depend on the number of processes but for rounding and for how
minibatches are drawn: each takes as many rows from every process.

Importing this imports no torch. P processes; with P = 1 every function here returns what it is given.
"""

import os
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rlrun.errors import RunFailed, UserError
from rlrun.sweep import CORES

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from torch.distributed import Store

TIMEOUT = timedelta(hours=24)  # that processes wait for one another: the others wait while the first one evaluates
LOOK_EVERY = 0.05  # seconds between looks at whether the first process has come
NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets for each process


class ProcessLost(RunFailed):
    """Another process of the run has ended, so that this one cannot go on."""


@dataclass(eq=False)
class World:
    """The place of this process among all that one run is split over."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # its number on this machine
    local_size: int = 1
    store: Any = None  # torch's, which all processes read and write; what it holds outlives them

    @classmethod
    def of_environment(cls) -> "World":
        """Return the place that torchrun has given this process; without torchrun it is the only one."""
        given = os.environ
        if not all(name in given for name in NEEDED) or int(given["WORLD_SIZE"]) == 1:
            return LONE
        local = int(given.get("LOCAL_RANK", 0)), int(given.get("LOCAL_WORLD_SIZE", 1))
        return cls(int(given["RANK"]), int(given["WORLD_SIZE"]), *local)

    # --- Coming and going ---------------------------------------------------------------------------------

    def join(self) -> None:
        """Meet the others. From here on, this process ends when torchrun's own does, even if that was killed."""
        import torch
        from torch import distributed

        from rlrun.forked import end_after

        threading.Thread(target=end_after, args=(os.getppid(),), daemon=True).start()
        cores = len(os.sched_getaffinity(0)) // self.local_size
        os.environ.setdefault(CORES, str(max(1, cores)))
        on_gpus = torch.cuda.is_available() and distributed.is_nccl_available()
        with self._or_lost():
            store, _, _ = next(iter(distributed.rendezvous("env://", timeout=TIMEOUT)))
            self.store = distributed.PrefixStore(self._meet(store), store)
            distributed.init_process_group(
                "cpu:gloo,cuda:nccl" if on_gpus else "gloo",
                store=self.store,
                rank=self.rank,
                world_size=self.size,
                timeout=TIMEOUT,
            )

    def _meet(self, store: "Store") -> str:
        """Return a word that the processes of this start have in common, and none of an earlier one had.

        torchrun keeps one store while it restarts processes, in which torch would find the addresses of those that
        are gone, and wait for them.
        """
        own = uuid.uuid4().hex
        if self.rank > 0:
            while not store.check([own]):  # which a first process that is alive sets once it has seen it
                store.set(f"{store.get('start').decode()}: {self.rank}", own)
                time.sleep(LOOK_EVERY)
            return store.get(own).decode()
        store.set("start", own)
        for rank in range(1, self.size):
            store.set(store.get(f"{own}: {rank}").decode(), own)
        return own

    def leave(self) -> None:
        from torch import distributed

        distributed.destroy_process_group()

    def take_gpu(self) -> None:
        """Make this process's own GPU the one that "cuda" means. Raises UserError if there is none left for it."""
        import torch

        if self.size == 1:
            return
        if self.local_rank >= torch.cuda.device_count():
            raise UserError(
                f"torchrun started {self.local_size} processes on a machine with {torch.cuda.device_count()} GPUs: "
                "each needs one of its own; lower --nproc-per-node, or give device=cpu"
            )
        torch.cuda.set_device(self.local_rank)

    # --- Shares -------------------------------------------------------------------------------------------

    def share(self, key: str, number: int) -> int:
        """Return what each process gets of a number. Raises UserError, with the number's key, unless it is whole."""
        if number % self.size:
            below = number - number % self.size
            raise UserError(
                f"{key}={number} cannot be shared by {self.size} processes: expected a multiple of {self.size}, such "
                f"as {below or self.size}"
            )
        return number // self.size

    def share_of_rows(self, number: int) -> int:
        """Return how many of the rows of a minibatch each process has: 1 at least."""
        return max(1, number // self.size)

    # --- Numbers ------------------------------------------------------------------------------------------

    def whole(self, part: "Tensor") -> "Tensor":
        """Return the rows of all processes one after the other, [P N, ...], of parts [N, ...]."""
        if self.size == 1:
            return part
        import torch
        from torch import distributed

        parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(self.size)]
        with self._or_lost():
            distributed.all_gather(parts, part.contiguous())
        return torch.cat(parts)

    def whole_array(self, part: "np.ndarray") -> "np.ndarray":
        """Return what `whole` does, of arrays."""
        if self.size == 1:
            return part
        import torch

        return self.whole(torch.from_numpy(part)).numpy()

    def mean(self, tensor: "Tensor") -> "Tensor":
        """Return the mean over processes of a tensor of the same shape everywhere."""
        if self.size == 1:
            return tensor
        from torch import distributed

        total = tensor.detach().clone()
        with self._or_lost():
            distributed.all_reduce(total)
        return total / self.size

    def average_gradients(self, weights: "Iterable[Tensor]") -> None:
        """Replace each gradient by its mean over processes, which is that of the mean loss, in one message."""
        if self.size == 1:
            return
        import torch

        grads = [weight.grad for weight in weights if weight.grad is not None]
        means = self.mean(torch.cat([grad.flatten() for grad in grads])).split([grad.numel() for grad in grads])
        for grad, mean in zip(grads, means, strict=True):
            grad.copy_(mean.view_as(grad))

    def averaged(self, metrics: "Mapping[str, float | Tensor]") -> "dict[str, float | Tensor]":
        """Return metrics with the means over processes of those that are tensors; numbers are the same everywhere."""
        tensors = {name: value for name, value in metrics.items() if not isinstance(value, float | int)}
        if self.size == 1 or not tensors:
            return dict(metrics)
        import torch

        means = self.mean(torch.stack([value.double() for value in tensors.values()]))
        return {**metrics, **dict(zip(tensors, means.unbind(), strict=True))}

    # --- Messages -----------------------------------------------------------------------------------------

    def largest(self, *numbers: int) -> list[int]:
        """Return the largest that any process gives, of each of some numbers."""
        import torch
        from torch import distributed

        tensor = torch.tensor(numbers)
        with self._or_lost():
            distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
        return tensor.tolist()

    def broadcast(self, value: Any = None) -> Any:
        """Return the first process's value, of plain data and tensors on the CPU."""
        from torch import distributed

        box = [value]
        with self._or_lost():
            distributed.broadcast_object_list(box, src=0)
        return box[0]

    def everyones(self, value: Any) -> list[Any]:
        """Return the values of all processes, by rank."""
        if self.size == 1:
            return [value]
        from torch import distributed

        values: list[Any] = [None] * self.size
        with self._or_lost():
            distributed.all_gather_object(values, value)
        return values

    def report_failure(self, text: str) -> None:
        """Leave word for the others of what ends this process."""
        with suppress(RuntimeError):  # the store may be what is gone
            self.store.set(f"failure {self.rank}", text)

    def failures(self) -> list[str]:
        """Return what has ended other processes, as far as they could say."""
        found = []
        with suppress(RuntimeError):
            for rank in range(self.size):
                if self.store.check([f"failure {rank}"]):
                    found.append(f"process {rank}: {self.store.get(f'failure {rank}').decode()}")
        return found

    @contextmanager
    def _or_lost(self) -> Iterator[None]:
        """Raise ProcessLost where torch finds that another process does not answer any more."""
        try:
            yield
        except RuntimeError as error:  # of gloo, and the base of what NCCL and the store raise
            raise ProcessLost(
                "\n".join(self.failures())
                or "another process of this run has ended or cannot be reached; the same command goes on from the last "
                f"checkpoint ({str(error).partition('. ')[0].strip()})"
            ) from error


LONE = World()
