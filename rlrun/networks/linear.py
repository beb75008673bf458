"""Linear layers at the processor's full speed.

torch multiplies float32 matrices with MKL, which on AMD's processors takes AVX2 kernels even where there is AVX-512.
oneDNN, which torch brings along for convolutions, does not: on a Zen 5 it multiplies 256 x 256 matrices in half the
time, and the hidden layer of a Nature CNN in a third. Elsewhere torch's own choice stands.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from rlrun.device import processor

# Multiplications below which calling oneDNN from Python costs more than it gains: a minibatch of 256 on 64 x 64
# is half of it.
WORTH_ONEDNN = 2**21


class Linear(nn.Linear):
    """torch's layer with the product of this module."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return x W^T + b.

    x: [B, in], weight: [out, in], bias: [out] -> [B, out]; or E of each at once, [E, B, in] and so on -> [E, B, out].
    """
    if not torch.compiler.is_compiling() and _worth_onednn(x, weight):
        return _OneDNN.apply(x, weight, bias)
    if weight.dim() == 2:
        return nn.functional.linear(x, weight, bias)
    return torch.baddbmm(bias.unsqueeze(1), x, weight.mT)


class _OneDNN(torch.autograd.Function):
    """The product by oneDNN. Its derivatives are products of the same kind, which can be derived again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (x, weight) = grads, ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            _OneDNN.apply(grad, weight.mT, None) if for_x else None,
            _OneDNN.apply(grad.mT, x.mT, None) if for_weight else None,
            grad.sum(-2) if for_bias else None,
        )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if weight.dim() == 2:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return torch.stack([_product(x[e], weight[e], None if bias is None else bias[e]) for e in range(len(weight))])


def _worth_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        x.dim() == weight.dim()
        and x.numel() * weight.shape[-2] >= WORTH_ONEDNN
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
