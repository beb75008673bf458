"""Linear layers with ReLUs between them as one operation: small and wide networks spend less time between products.

The ReLU is applied in place, and the graph of the derivatives has one node instead of one for each layer and ReLU.
"""

from collections.abc import Iterable, Sequence
from itertools import cycle, takewhile
from typing import Any

import torch
from torch import Tensor, nn

from rlrun.networks.linear import StackedLinear, product, worth_onednn

FEW_ROWS = 32

Layers = Sequence[tuple[Tensor, Tensor]]  # weight and bias of each


def through(modules: Iterable[nn.Module], x: Tensor) -> Tensor:
    """Apply modules in turn, x: [B, ...], those that are linear layers with ReLUs between them as one."""
    modules = list(modules)
    i = 0
    while i < len(modules):
        length = linear_run(modules[i:])
        layers: Layers = [(m.weight, m.bias) for m in modules[i : i + length] if isinstance(m, nn.Linear)]
        if length > 1 and worth_a_chain(x, layers):
            x = chain(x, layers, last_relu=length % 2 == 0)
            i += length
        else:
            x = modules[i](x)
            i += 1
    return x


def linear_run(modules: Iterable[nn.Module]) -> int:
    """Return how many of the first modules are linear layers with ReLUs between them."""
    kinds = cycle([(nn.Linear, StackedLinear), (nn.ReLU,)])
    return sum(1 for _ in takewhile(lambda pair: isinstance(*pair), zip(modules, kinds, strict=False)))


def chain(x: Tensor, layers: Layers, *, last_relu: bool) -> Tensor:
    """Return W_n relu(... relu(W_1 x + b_1) ...) + b_n, or its ReLU.

    x: [B, in], weights: [out, in], biases: [out] -> [B, out]; weights: [E, out, in], biases: [E, out] -> [E, B, out].
    """
    out: Tensor = _Chain.apply(last_relu, x, *(tensor for layer in layers for tensor in layer))
    return out


def worth_a_chain(x: Tensor, layers: Layers) -> bool:
    """Say whether oneDNN multiplies faster than torch's choice does in one of the layers at least."""
    if torch.compiler.is_compiling() or x.dim() != 2 or len(x) < FEW_ROWS:
        return False
    return any(worth_onednn(x, weight) for weight, _ in layers)


class _Chain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, last_relu: bool, x: Tensor, *flat: Tensor) -> Tensor:
        ctx.last_relu = last_relu
        members = [_forward(x, layers, last_relu) for layers in _members(flat)]
        ctx.save_for_backward(x, *flat, *(hidden for outputs in members for hidden in outputs))
        return _stacked([outputs[-1] for outputs in members], flat)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        num_flat = len(ctx.needs_input_grad) - 2
        x, *others = ctx.saved_tensors
        flat, outputs = others[:num_flat], others[num_flat:]
        if torch.is_grad_enabled():  # the derivatives are to be derived again
            return None, *_derivable(x, flat, ctx.last_relu, grad, ctx.needs_input_grad[1:])
        members, count = _members(flat), num_flat // 2
        for_x: list[Tensor] = []
        rows = []
        for e, (layers, g) in enumerate(zip(members, grad if flat[0].dim() == 3 else [grad], strict=True)):
            hidden = [x, *outputs[e * count : (e + 1) * count]]
            rows.append(_backward(g, hidden, layers, ctx.last_relu, ctx.needs_input_grad[1:], for_x))
        columns = (
            _stacked(list(column), flat) if needed else None
            for column, needed in zip(zip(*rows, strict=True), ctx.needs_input_grad[2:], strict=True)
        )
        return None, sum(for_x) if for_x else None, *columns


def _members(flat: Sequence[Tensor]) -> list[Layers]:
    """Return the layers of each network: of the only one, or of each of the stacked ones."""
    if flat[0].dim() == 2:
        return [list(zip(flat[::2], flat[1::2], strict=True))]
    unstacked = zip(*(tensor.unbind() for tensor in flat), strict=True)
    return [list(zip(tensors[::2], tensors[1::2], strict=True)) for tensors in unstacked]


def _stacked(members: list[Tensor], flat: Sequence[Tensor]) -> Tensor:
    return members[0] if flat[0].dim() == 2 else torch.stack(members)


def _forward(x: Tensor, layers: Layers, last_relu: bool) -> list[Tensor]:
    """Return the output of each layer, its ReLU included."""
    outputs = []
    for i, (weight, bias) in enumerate(layers):
        x = product(x, weight, bias, relu=last_relu or i < len(layers) - 1)
        outputs.append(x)
    return outputs


def _backward(
    grad: Tensor, hidden: Sequence[Tensor], layers: Layers, last_relu: bool, needed: Sequence[bool], for_x: list[Tensor]
) -> list[Tensor | None]:
    """Return the gradients by the weights and biases that need them; add that by x, if needed, to `for_x`.

    hidden: x and the output of each layer; needed: of x, then of each weight and bias.
    """
    grads: list[Tensor | None] = []
    for i in reversed(range(len(layers))):
        if last_relu or i < len(layers) - 1:
            grad = torch.ops.aten.threshold_backward(grad, hidden[i + 1], 0)
        of_weight, of_bias = needed[1 + 2 * i : 3 + 2 * i]
        grads.append(grad.sum(0) if of_bias else None)
        grads.append(product(grad.mT, hidden[i].mT) if of_weight else None)
        if i > 0 or needed[0]:
            grad = product(grad, layers[i][0].mT)
    if needed[0]:
        for_x.append(grad)
    return grads[::-1]


def _derivable(
    x: Tensor, flat: Sequence[Tensor], last_relu: bool, grad: Tensor, needed: Sequence[bool]
) -> list[Tensor | None]:
    """Return the same gradients by operations that torch can derive again."""
    with torch.enable_grad():
        outputs = []
        for layers in _members(flat):
            y = x
            for i, (weight, bias) in enumerate(layers):
                y = nn.functional.linear(y, weight, bias)
                y = y.relu() if last_relu or i < len(layers) - 1 else y
            outputs.append(y)
        inputs = [tensor for tensor, need in zip([x, *flat], needed, strict=True) if need]
        found = iter(torch.autograd.grad(_stacked(outputs, flat), inputs, grad, create_graph=True))
    return [next(found) if need else None for need in needed]
