"""Where tensors live and how arithmetic is done there."""

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from threadpoolctl import ThreadpoolController
from torch import nn

from rlrun.errors import UserError
from rlrun.sweep import CORES

Module = TypeVar("Module", bound=nn.Module)

# Below this many weights a second thread costs more to wake than it computes: PPO on CartPole is three times as fast
# on one thread as on two, SAC on HalfCheetah (0.4M weights) nearly twice, PPO on Breakout (1.7M) two thirds as fast.
WORTH_SEVERAL_THREADS = 1_000_000


@dataclass(kw_only=True)
class Device:
    """A device and its arithmetic. Results are bit-identical only for equal values of all of these."""

    kind: Literal["auto", "cpu", "cuda"]  # auto: cuda where there is one
    threads: int | None  # CPU threads for torch; null chooses by the size of the networks
    precision: Literal["float32", "bf16"]  # bf16: autocast for forward passes; weights and last layers are float32
    compile: bool  # torch.compile the networks: faster after some tens of seconds
    deterministic: bool  # refuse nondeterministic CUDA kernels (the CPU's are deterministic)
    replay_on_device: bool  # a replay's frames lie in its memory, too: the same minibatches, gathered there

    def __post_init__(self) -> None:
        self.spare_threads = 0  # besides torch's, for what is computed meanwhile; `choose_threads` sets both
        self.idle_cores = 0  # that no thread computes on, if it is this device's to choose
        if self.kind == "cuda" and not torch.cuda.is_available():
            raise UserError("device=cuda, but torch finds no CUDA device here; use device=cpu or device=auto")
        if self.threads is not None and self.threads < 1:
            raise UserError(
                f"device.threads={self.threads} must be at least 1, or null to choose by the networks' size"
            )
        if self.kind == "auto":
            self.kind = "cuda" if torch.cuda.is_available() else "cpu"

    def activate(self) -> None:
        """Set torch's process-wide switches."""
        # Networks are made on one thread, so that their first weights do not depend on the number.
        torch.set_num_threads(1)
        # Set either way: in a sweep the run before this one may have had the other.
        strict = self.kind == "cuda" and self.deterministic
        if self.kind == "cuda":
            # Which determinism asks for. Not for strict runs alone: a process looks at it once, at its first product.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        if self.compile:
            torch.use_deterministic_algorithms(strict)
        else:  # the same, without importing a compiler, which takes as long as the rest of torch
            torch.set_deterministic_debug_mode("error" if strict else "default")
            _spare_optimizers_the_compiler()
        # Deterministic mode also fills every new tensor, which costs time and hides nothing here.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        _keep_freed_memory()
        for library in _numpys_blas():
            library.set_num_threads(1)  # what is worth several threads is multiplied by torch

    def choose_threads(self, num_weights: int, at_once: int = 1, meanwhile: int = 0) -> None:
        """Set the number of CPU threads for training networks of this size in all.

        `at_once`: so many computations run at the same time, and each gets its part of them. `meanwhile`: so many
        threads besides torch's are of use.
        """
        share = os.environ.get(CORES)  # in a sweep that runs several at once
        all_cores = int(share) if share else len(os.sched_getaffinity(0))
        num_threads = self.threads or (all_cores if num_weights >= WORTH_SEVERAL_THREADS else 1)
        self.spare_threads = min(meanwhile, max(0, num_threads // at_once - 1)) if self.kind == "cpu" else 0
        torch.set_num_threads(max(1, num_threads // at_once - self.spare_threads))
        self.idle_cores = 0 if self.threads or self.kind != "cpu" else max(0, all_cores - num_threads)

    @property
    def torch(self) -> torch.device:
        return torch.device(self.kind)

    def place(self, module: Module) -> Module:
        """Move a network here and compile it if asked. In place, so its parameters keep their names."""
        # Convolutions on pixels that lie together take a tenth to a sixth less time.
        module.to(self.torch)
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # which the stubs lack
        if self.compile:
            module.compile()
        return module

    def autocast(self, keep_casts: bool = True) -> AbstractContextManager[Any]:
        """Return the context for forward passes.

        keep_casts: cast each weight once. All threads look for them in one place, and where one has cast a weight
        without recording gradients, another must not take that for its own.
        """
        if self.precision == "bf16":
            return torch.autocast(self.kind, torch.bfloat16, cache_enabled=keep_casts)
        return nullcontext()

    @contextmanager
    def constant_weights(self) -> Iterator[None]:
        """Let autocast cast each weight once in this block instead of in each forward pass; no weight may change."""
        torch.autocast_increment_nesting()
        try:
            yield
        finally:
            if torch.autocast_decrement_nesting() == 0:
                torch.clear_autocast_cache()

    def fingerprint(self) -> dict[str, Any]:
        """Return what, besides code and configuration, decides the bits of a result."""
        facts: dict[str, Any] = {
            "device": self.kind,
            "precision": self.precision,
            "compile": self.compile,
            "deterministic": self.deterministic,
            "threads": torch.get_num_threads(),
            "processor": processor(),
            "vector_instructions": torch.backends.cpu.get_cpu_capability(),
            "numpy_blas": numpys_blas(),
        }
        if self.kind == "cuda":
            facts["gpu"] = torch.cuda.get_device_name()
        return facts


def have_one_thread() -> None:
    """Keep torch in this thread to one thread, from the thread's beginning on."""
    # A thread takes over the number that another has set last once torch first looks for it, which is to be now.
    torch.get_num_threads()
    torch.set_num_threads(1)


def processor() -> str:
    """Return the processor's model name."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def numpys_blas() -> str:
    """Return what multiplies matrices for NumPy, and by the kernels of which processor."""
    return ", ".join(f"{blas.internal_api} {blas.architecture}" for blas in _numpys_blas())


@cache
def _numpys_blas() -> list[Any]:
    """Return the controllers of the OpenBLAS that came with NumPy; where none did, of all but torch's."""
    found = sorted(ThreadpoolController().lib_controllers, key=lambda one: str(one.filepath))
    libraries = {Path(one.filepath): one for one in found if one.internal_api == "openblas"}
    numpys, torchs = Path(np.__file__).parent, Path(torch.__file__).parent
    own = [one for path, one in libraries.items() if {numpys, numpys.with_name("numpy.libs")} & {*path.parents}]
    return own or [one for path, one in libraries.items() if torchs not in path.parents]


def _spare_optimizers_the_compiler() -> None:
    """Let torch's optimizers be made without importing the compiler, which their methods are to be hidden from.

    torch keeps what hides a method on the method itself, and imports the compiler only where that is missing.
    """
    for method in vars(torch.optim.Optimizer).values():
        hidden = getattr(method, "__wrapped__", None)
        if hidden is not None and not hasattr(hidden, "__dynamo_disable"):
            hidden.__dynamo_disable = hidden


def _keep_freed_memory() -> None:
    """Tell glibc to keep large freed buffers.

    It hands them back to the kernel after each operation otherwise, and the page faults of getting them
    anew cost a convolutional update a quarter to a third of its time on the CPU.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    top_pad, trim_threshold, mmap_threshold = -2, -1, -3
    libc.mallopt(mmap_threshold, 1 << 30)
    libc.mallopt(trim_threshold, 2**31 - 1)
    libc.mallopt(top_pad, 64 << 20)
