"""Run the command line with a GPU that is none: pretended_gpu.py REPORT ARGUMENTS.

Its tensors hold ordinary numbers in ordinary memory, and behave as those on a GPU do in what a program can get wrong
without one at hand: they mix with no tensor of the CPU's, draw from generators of their own, NumPy does not take them,
and who looks at a number waits. How fast a GPU is, its kernels, bfloat16 and runs split by torchrun are nothing that
this could show; torch's own optimizers move weights one by one here, and all at once on CUDA.

REPORT is where it writes as JSON how often each function waited for a number, and how often it sent some, for which
CUDA waits, too, unless they are sent `non_blocking`: {"waits": {place: count}, "sends": {place: count}}.
KILL_INSIDE=PLACE:OCCASION in the environment is for kill_inside.py.
"""

import json
import os
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kill_inside import arm
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend


class Backend:
    """What torch asks of the module of a kind of device."""

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def manual_seed_all(self, seed: int) -> None:
        pass

    def _is_in_bad_fork(self) -> bool:
        return False

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


KIND = "pretended"
_setup_privateuseone_for_python_backend(KIND, backend_module=Backend())
GPU = torch.device(KIND, 0)
PACKAGE = str(Path(__file__).parents[1] / "rlrun")
# What may take indices that lie elsewhere, and what carries numbers from one place to another.
INDEXING = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
COPYING = ("aten::_to_copy", "aten::copy_")
# What must know numbers to go on.
LOOKING = (
    *("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::allclose"),
    *("aten::_unique2", "aten::unique_consecutive", "aten::unique_dim", "aten::bincount", "aten::multinomial"),
)

seeds: set[int] = set()  # of that GPU's generators
waits: Counter[str] = Counter()
sends: Counter[str] = Counter()


class OnGpu(Tensor):
    """A tensor on that GPU."""

    held: Tensor  # its numbers

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnGpu":
        form = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        tensor: OnGpu = Tensor._make_wrapper_subclass(cls, held.shape, device=GPU, **form)
        tensor.held = held
        return tensor

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(function, args, kwargs or {})

    @property
    def data(self) -> Tensor:
        data: Tensor = Tensor.data.__get__(self)
        return data

    @data.setter
    def data(self, value: "OnGpu") -> None:
        Tensor.data.__set__(self, value)
        self.held = value.held

    # torch refuses these for all classes of one's own.

    def numpy(self, *, force: bool = False) -> np.ndarray:
        if not force:
            raise TypeError(f"can't convert a tensor on {GPU} to numpy: use Tensor.cpu() first")
        return self.detach().cpu().numpy()

    def tolist(self) -> Any:
        return self.detach().cpu().tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.held.__reduce_ex__(protocol)  # a checkpoint is read on the CPU

    def __repr__(self, **_: Any) -> str:
        return f"OnGpu({self.held!r})"


class Pretence(TorchDispatchMode):
    """Within, the GPU is there."""

    def __enter__(self) -> "Pretence":
        # torch.tensor(..., device=...) then makes the tensor on the CPU and sends it, which can be seen from here.
        torch._C._set_only_lift_cpu_tensors(True)
        super().__enter__()
        return self

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(function, args, kwargs or {})


def computed(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Return what an operation makes of its arguments; raise RuntimeError where a GPU would not take them together."""
    name = function._schema.name
    device = kwargs.get("device")
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    on_gpu = [isinstance(tensor, OnGpu) for tensor in tensors]
    stays = any(on_gpu) if device is None else torch.device(device).type == KIND
    if name == "aten::copy_":
        stays = on_gpu[0]
    if any(on_gpu) and name not in COPYING:
        check_places(function, args, kwargs, tensors)
    generator = kwargs.get("generator")
    if generator is not None and (generator.initial_seed() in seeds) != stays:
        raise RuntimeError(f"{name}: expected a generator on the device of what it fills")
    by_mask = name in INDEXING and any(i is not None and i.dtype == torch.bool for i in args[1])
    if any(on_gpu) and (name in LOOKING or by_mask or (name in COPYING and not stays)):
        waits[_place()] += 1
    if stays and name in COPYING and not all(on_gpu):
        sends[_place()] += not (kwargs.get("non_blocking") or (name == "aten::copy_" and len(args) > 2 and args[2]))

    inner_args, inner_kwargs = tree_map_only(OnGpu, lambda tensor: tensor.held, (args, kwargs))
    inner_kwargs = {key: value for key, value in inner_kwargs.items() if key != "pin_memory"}
    if device is not None:
        inner_kwargs["device"] = torch.device("cpu")
    out = EMULATED.get(name, function)(*inner_args, **inner_kwargs)
    if not stays:
        return out
    if name == "aten::copy_":
        return args[0]
    out = tree_map_only(Tensor, OnGpu, out)
    return return_and_correct_aliasing(function, args, kwargs, out)


def check_places(function: Any, args: Any, kwargs: dict[str, Any], tensors: list[Tensor]) -> None:
    """Raise RuntimeError where tensors on the GPU meet others than CUDA takes: indices, and numbers in arithmetic."""
    name = function._schema.name
    indices = args[1] if name in INDEXING else []
    written = [args[0]] if name.endswith("_") and isinstance(args[0], Tensor) else []
    written += [value for key, value in kwargs.items() if key == "out"]
    arithmetic = torch.Tag.pointwise in function.tags or name.startswith("aten::_foreach")
    for tensor in tensors:
        number = arithmetic and tensor.dim() == 0 and all(tensor is not each for each in written)
        if not (isinstance(tensor, OnGpu) or number or any(tensor is index for index in indices)):
            raise RuntimeError(f"{name}: expected all tensors to be on one device, but found {GPU} and cpu")


def _place() -> str:
    frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(PACKAGE)]
    return f"{Path(frames[-1].filename).stem}.{frames[-1].name}" if frames else "elsewhere"


def lstm_cell(of_input: Tensor, of_hidden: Tensor, cell: Tensor, *biases: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Do what a GPU has a kernel for, and the CPU has not."""
    i, f, g, o = sum(biases, of_input + of_hidden).chunk(4, 1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    after = f * cell + i * g
    return o * after.tanh(), after, torch.cat([i, f, g, o], 1)


def lstm_cell_backward(
    by_hidden: Tensor | None, by_after: Tensor | None, cell: Tensor, after: Tensor, gates: Tensor, has_bias: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    i, f, g, o = gates.chunk(4, 1)
    by_hidden = torch.zeros_like(after) if by_hidden is None else by_hidden
    by_cell = by_hidden * o * (1 - after.tanh() ** 2)
    by_cell = by_cell if by_after is None else by_cell + by_after
    parts = [by_cell * g * i * (1 - i), by_cell * cell * f * (1 - f), by_cell * i * (1 - g**2)]
    by_gates = torch.cat([*parts, by_hidden * after.tanh() * o * (1 - o)], 1)
    return by_gates, by_cell * f, by_gates.sum(0) if has_bias else None


EMULATED: dict[str, Callable[..., Any]] = {
    "aten::_thnn_fused_lstm_cell": lstm_cell,
    "aten::_thnn_fused_lstm_cell_backward_impl": lstm_cell_backward,
}


class Generator(torch.Generator):
    """A generator for that GPU."""

    @property
    def device(self) -> torch.device:
        return GPU


def pretend() -> None:
    """Have rlrun find a GPU where it looks for CUDA's."""
    from rlrun.device import Device
    from rlrun.seeding import Seeds

    torch.cuda.is_available = lambda: True
    torch.cuda.get_device_name = lambda *_: KIND
    torch.cuda.memory_reserved = torch.cuda.memory_allocated = lambda *_: 0
    torch.cuda.mem_get_info = lambda *_: (1 << 36, 1 << 36)
    Device.torch = property(lambda self: GPU if self.kind == "cuda" else torch.device("cpu"))  # type: ignore[assignment]

    def generator(self: Seeds, name: str, device: torch.device | str = "cpu") -> torch.Generator:
        on_gpu, seed = torch.device(device).type == KIND, self.entropy(name)
        if on_gpu:
            seeds.add(seed)
        return (Generator() if on_gpu else torch.Generator()).manual_seed(seed)

    Seeds.torch = generator  # type: ignore[method-assign]
    submit = ThreadPoolExecutor.submit

    def submit_pretending(self: ThreadPoolExecutor, function: Any, *args: Any, **kwargs: Any) -> Future[Any]:
        def pretending() -> Any:
            with Pretence():
                return function(*args, **kwargs)

        return submit(self, pretending)

    ThreadPoolExecutor.submit = submit_pretending  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    report, sys.argv[1:] = Path(sys.argv[1]), sys.argv[2:]
    pretend()
    if "KILL_INSIDE" in os.environ:
        place, _, occasion = os.environ["KILL_INSIDE"].partition(":")
        arm(place, int(occasion))
    from rlrun.cli import main

    try:
        with Pretence():
            main()
    finally:
        report.write_text(json.dumps({"waits": waits, "sends": sends}))
