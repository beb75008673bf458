"""Collecting the next rollout while the learner is busy with the last one.

    D_1 = rollout of pi_0
    for k = 1, 2, ...:
        at the same time:  pi_k = improve pi_(k-1) on D_k;  D_(k+1) = rollout of pi_(k-1)

So every rollout is the work of a policy that is one update old, never more, and the last one is learned from by nobody.
Espeholt et al. (2018), "IMPALA", arXiv:1802.01561, call it the policy lag; there it is any number of updates.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, ClassVar

import torch

from rlrun.algos.on_policy import OnPolicy
from rlrun.data.collector import Batch
from rlrun.networks.target import make_target
from rlrun.stateful import Stateful


class Ahead(Stateful):
    """The rollout that is ahead, and a copy of the networks that it is collected with.

    A thread collects it while the caller's block learns; the copy and a generator of its own are all that it draws on,
    and what the learner has in hands stays where it is. The block ends when both are done, so a checkpoint finds whole
    rollouts, and no result depends on which of the two was faster.
    """

    transient: ClassVar[frozenset[str]] = frozenset({"algorithm"})

    def __init__(self, algorithm: OnPolicy) -> None:
        setup = algorithm.setup
        self.algorithm = algorithm
        self.net = make_target(algorithm.net)
        self.generator = setup.seeds.torch(f"{algorithm.draws} ahead", setup.device.torch)
        self.batch: Batch = {}

    def take(self) -> Batch:
        """Return the rollout that is ahead; the first one is collected now."""
        if not self.batch:
            self.copy_net()
            return self.collect()
        batch, self.batch = self.batch, {}
        return batch

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Collect the next rollout, by the policy as it is now, while the block changes it."""
        self.copy_net()
        with ThreadPoolExecutor(1) as thread:
            # A new thread takes over the number of torch's threads once it is asked for it: before anybody changes it.
            thread.submit(torch.get_num_threads).result()
            rollout = thread.submit(self.collect)
            yield
            self.batch = rollout.result()

    def collect(self) -> Batch:
        self.algorithm.collector.keep_rollout()
        return self.algorithm.judged(self.net, self.algorithm.collected(self.net, self.generator))

    @torch.no_grad()
    def copy_net(self) -> None:
        torch._foreach_copy_(list(self.net.parameters()), list(self.algorithm.net.parameters()))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        # A checkpoint is read on the CPU.
        device = self.algorithm.setup.device.torch
        self.batch = {name: column.to(device) for name, column in self.batch.items()}
