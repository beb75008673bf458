"""Linear layers at the processor's full speed.

torch multiplies float32 matrices with MKL, which on AMD's processors takes AVX2 kernels even where there is AVX-512.
oneDNN, which torch brings along for convolutions, does not: on a Zen 5 it multiplies 256 x 256 matrices in half the
time, and the hidden layer of a Nature CNN in a third. Elsewhere torch's own choice stands.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rlrun.device import numpys_blas, processor
from rlrun.envs.base import Array

# Multiplications below which calling oneDNN from Python costs more than it gains: a minibatch of 256 on 64 x 64
# is less.
WORTH_ONEDNN = 1_200_000
# The same for NumPy's product instead of torch's, of which it has the speed, and on one thread alone.
WORTH_TORCH = 4_000_000
# The same where the weights are more than `MANY` and the rows more than one: NumPy's kernels for small matrices, which
# are what is fast, end there. 2 x 3136 x 512 takes it 1,150 microseconds and torch 320, 1 x 3136 x 512 100 and 160.
WORTH_TORCH_WITH_MANY, MANY = 400_000, 1 << 16
# The same without a bias, which costs NumPy another pass, and on one thread, where its kernels have AVX-512: with
# 256 x 256 x 256, both matrices transposed, it takes 154 microseconds and oneDNN 178; with 32 x 3136 x 512, as
# convolutions end, 605 and 465.
WORTH_TORCH_WITHOUT_BIAS = 32_000_000


class Linear(nn.Linear):
    """torch's layer with the product of this module."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class InFloat32(nn.Module):
    """A layer in float32 even with autocast.

    bfloat16 has 8 bits: it rounds a value of 100 to half a point, which is more than one update moves it by.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_autocast_enabled(x.device.type):
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


class Head(InFloat32, nn.Linear):
    """A network's last layer."""


class StackedLinear(nn.Module):
    """[E, B, in] -> [E, B, out], each with weights of its own."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))  # [E, out, in]
        self.bias = nn.Parameter(torch.stack([layer.bias.detach() for layer in layers]))  # [E, out]

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, first(self.weight, len(x)), first(self.bias, len(x)))


class StackedHead(InFloat32, StackedLinear):
    """The last layers of stacked networks."""


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return x W^T + b.

    x: [B, in], weight: [out, in], bias: [out] -> [B, out]; or E of each at once, [E, B, in] and so on -> [E, B, out].
    """
    if not torch.compiler.is_compiling() and x.dim() == weight.dim() and worth_onednn(x, weight):
        return _OneDNN.apply(x, weight, bias)
    if weight.dim() == 2:
        return nn.functional.linear(x, weight, bias)
    return torch.baddbmm(bias.unsqueeze(1), x, weight.mT)


def first(weights: Tensor, count: int) -> Tensor:
    """Return the weights of the first `count` networks; slicing off nothing would cost a copy on the way back."""
    return weights if count == len(weights) else weights[:count]


class _OneDNN(torch.autograd.Function):
    """The product by oneDNN. Its derivatives are products of the same kind, which can be derived again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        if weight.dim() == 2:
            return product(x, weight, bias)
        none = [None] * len(weight)
        return torch.stack([product(*one) for one in zip(x, weight, none if bias is None else bias, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (x, weight) = grads, ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            _OneDNN.apply(grad, weight.mT, None) if for_x else None,
            _OneDNN.apply(grad.mT, x.mT, None) if for_weight else None,
            grad.sum(-2) if for_bias else None,
        )


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x W^T + b without a graph, by oneDNN if that is worth it: [B, in], [out, in] -> [B, out]."""
    if x.shape[0] * weight.numel() >= WORTH_ONEDNN and _mkl_is_slow():
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return out
    return nn.functional.linear(x, weight, bias)


def array_product(x: Array, weight: Array, bias: Array | None = None, out: Array | None = None) -> Array:
    """Return x W^T + b, small ones by NumPy, which takes half of torch's time: [B, in], [out, in] -> [B, out].

    It is written into `out` if that is given.
    """
    on_par = bias is None and torch.get_num_threads() == 1 and _numpy_has_onednns_speed()
    many = bias is not None and weight.size >= MANY and x.shape[0] > 1
    worth = WORTH_TORCH_WITHOUT_BIAS if on_par else WORTH_TORCH_WITH_MANY if many else WORTH_TORCH
    if x.shape[0] * weight.size < worth:
        found = np.dot(x, weight.T, out=out)
        return found if bias is None else np.add(found, bias, out=found)
    offset = None if bias is None else torch.from_numpy(bias)
    found = product(torch.from_numpy(x), torch.from_numpy(weight), offset).numpy()
    if out is None:
        return found
    np.copyto(out, found)
    return out


def worth_onednn(x: Tensor, weight: Tensor) -> bool:
    """Say whether oneDNN multiplies x [..., B, in] with a weight [..., out, in] faster than torch's choice does."""
    return (
        x.shape[-2] * weight.shape[-2:].numel() >= WORTH_ONEDNN
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and _mkl_is_slow()
    )


@lru_cache
def _mkl_is_slow() -> bool:
    return (
        "AMD" in processor()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
    )


@lru_cache
def _numpy_has_onednns_speed() -> bool:
    avx512 = ("skylakex", "cooperlake", "sapphirerapids")
    return _mkl_is_slow() and any(kernels in numpys_blas().lower() for kernels in avx512)
