"""Linear layers with ReLUs or tanhs between them as one operation: small networks spend less time between products.

The activation is applied in place, and the graph of the derivatives has one node instead of one for each layer and
activation. On the CPU tanh is NumPy's, which takes a tenth of the time of torch's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rlrun.networks.linear import StackedLinear, product, worth_onednn

FEW_ROWS = 32  # below which oneDNN is not worth its call
MANY_ROWS = 128  # from which what tanh costs less is more than what a function in Python costs

Layers = Sequence[tuple[Tensor, Tensor]]  # weight and bias of each


@dataclass(frozen=True)
class Activation:
    """What stands between layers, and how its derivative follows from its output."""

    function: Callable[[Tensor], Tensor]
    in_place: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]  # (gradient by the output, output) -> gradient by the input

    def worth_a_chain(self, x: Tensor, layers: Layers) -> bool:
        """Say whether a chain of layers with it takes less time than the layers one by one; x: [B, in]."""
        if torch.compiler.is_compiling() or x.dim() != 2:
            return False
        if self is TANH:
            return _is_plain(x, layers[0][0]) and (len(x) >= MANY_ROWS or not torch.is_grad_enabled())
        return len(x) >= FEW_ROWS and any(worth_onednn(x, weight) for weight, _ in layers)


def _numpy_tanh_(x: Tensor) -> Tensor:
    array = x.numpy()
    np.tanh(array, out=array)
    return x


# Not oneDNN's own ReLU, which makes zeros of NaNs: a run that has diverged would go on as if nothing were.
RELU = Activation(torch.relu, torch.relu_, lambda grad, out: torch.ops.aten.threshold_backward(grad, out, 0))
TANH = Activation(torch.tanh, _numpy_tanh_, torch.ops.aten.tanh_backward)
ACTIVATIONS: dict[type[nn.Module], Activation] = {nn.ReLU: RELU, nn.Tanh: TANH}


@dataclass(frozen=True)
class Run:
    """Linear layers that follow each other with one activation between them; `activated`: after the last one, too."""

    linears: list[Any]
    activation: Activation
    activated: bool

    @staticmethod
    def first_of(modules: Sequence[nn.Module]) -> "Run | None":
        """Return the longest run that the modules begin with, if there is one of a layer and an activation at least."""
        if len(modules) < 2 or not _is_linear(modules[0]) or type(modules[1]) not in ACTIVATIONS:
            return None
        kind, length = type(modules[1]), 2
        while length < len(modules) and (type(modules[length]) is kind if length % 2 else _is_linear(modules[length])):
            length += 1
        return Run(list(modules[:length:2]), ACTIVATIONS[kind], length % 2 == 0)

    def __len__(self) -> int:
        return 2 * len(self.linears) - (not self.activated)


class Chained(nn.Sequential):
    """Modules in turn, x: [B, ...], with what are runs of linear layers as one operation where that is faster."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__(*modules)
        rest, self.parts = list(modules), list[nn.Module | Run]()
        while rest:
            part = Run.first_of(rest) or rest[0]
            self.parts.append(part)
            rest = rest[len(part) if isinstance(part, Run) else 1 :]

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # what is compiled or exported is so for any number of rows
            return super().forward(x)
        for part in self.parts:
            x = self._through(part, x) if isinstance(part, Run) else part(x)
        return x

    def _through(self, run: Run, x: Tensor) -> Tensor:
        layers: Layers = [(linear.weight, linear.bias) for linear in run.linears]
        if run.activation.worth_a_chain(x, layers):
            return chain(x, layers, run.activation, activated=run.activated)
        for linear in run.linears[:-1]:
            x = run.activation.function(linear(x))
        x = run.linears[-1](x)
        return run.activation.function(x) if run.activated else x


def chain(x: Tensor, layers: Layers, activation: Activation, *, activated: bool) -> Tensor:
    """Return W_n f(... f(W_1 x + b_1) ...) + b_n, or f of it if `activated`.

    x: [B, in], weights: [out, in], biases: [out] -> [B, out]; weights: [E, out, in], biases: [E, out] -> [E, B, out].
    """
    if not torch.is_grad_enabled() and layers[0][0].dim() == 2:
        return _forward(x, layers, activation, activated)[-1]
    out: Tensor = _Chain.apply(activation, activated, x, *(tensor for layer in layers for tensor in layer))
    return out


class _Chain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, activation: Activation, activated: bool, x: Tensor, *flat: Tensor) -> Tensor:
        ctx.activation, ctx.activated = activation, activated
        members = [_forward(x, layers, activation, activated) for layers in _members(flat)]
        ctx.save_for_backward(x, *flat, *(hidden for outputs in members for hidden in outputs))
        return _stacked([outputs[-1] for outputs in members], flat)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        needed = ctx.needs_input_grad[2:]
        num_flat = len(needed) - 1
        x, *others = ctx.saved_tensors
        flat, outputs = others[:num_flat], others[num_flat:]
        if torch.is_grad_enabled():  # the derivatives are to be derived again
            return None, None, *_derivable(x, flat, ctx.activation.function, ctx.activated, grad, needed)
        grads, count = grad if flat[0].dim() == 3 else [grad], num_flat // 2
        hidden = [[x, *outputs[e : e + count]] for e in range(0, len(outputs), count)]
        members = zip(grads, hidden, _members(flat), strict=True)
        rows = [_backward(*member, ctx.activation, ctx.activated, needed) for member in members]
        for_x, *columns = zip(*rows, strict=True)
        stacked = (
            _stacked(list(column), flat) if need else None for column, need in zip(columns, needed[1:], strict=True)
        )
        return None, None, sum(for_x) if needed[0] else None, *stacked


def _members(flat: Sequence[Tensor]) -> list[Layers]:
    """Return the layers of each network: of the only one, or of each of the stacked ones."""
    if flat[0].dim() == 2:
        return [list(zip(flat[::2], flat[1::2], strict=True))]
    unstacked = zip(*(tensor.unbind() for tensor in flat), strict=True)
    return [list(zip(tensors[::2], tensors[1::2], strict=True)) for tensors in unstacked]


def _stacked(members: list[Tensor], flat: Sequence[Tensor]) -> Tensor:
    return members[0] if flat[0].dim() == 2 else torch.stack(members)


def _forward(x: Tensor, layers: Layers, activation: Activation, activated: bool) -> list[Tensor]:
    """Return the output of each layer, its activation included."""
    outputs = []
    for i, (weight, bias) in enumerate(layers):
        x = product(x, weight, bias)
        if activated or i < len(layers) - 1:
            x = activation.in_place(x)
        outputs.append(x)
    return outputs


def _backward(
    grad: Tensor,
    hidden: Sequence[Tensor],
    layers: Layers,
    activation: Activation,
    activated: bool,
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """Return the gradients by x and by each weight and bias, None for those that are not `needed`.

    hidden: x and the output of each layer.
    """
    grads: list[Tensor | None] = []
    for i in reversed(range(len(layers))):
        if activated or i < len(layers) - 1:
            grad = activation.backward(grad, hidden[i + 1])
        of_weight, of_bias = needed[1 + 2 * i : 3 + 2 * i]
        grads.append(grad.sum(0) if of_bias else None)
        grads.append(product(grad.mT, hidden[i].mT) if of_weight else None)
        if i > 0 or needed[0]:
            grad = product(grad, layers[i][0].mT)
    return [grad if needed[0] else None, *grads[::-1]]


def _derivable(
    x: Tensor,
    flat: Sequence[Tensor],
    function: Callable[[Tensor], Tensor],
    activated: bool,
    grad: Tensor,
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """Return the same gradients by operations that torch can derive again."""
    with torch.enable_grad():
        outputs = []
        for layers in _members(flat):
            y = x
            for i, (weight, bias) in enumerate(layers):
                y = nn.functional.linear(y, weight, bias)
                y = function(y) if activated or i < len(layers) - 1 else y
            outputs.append(y)
        inputs = [tensor for tensor, need in zip([x, *flat], needed, strict=True) if need]
        found = iter(torch.autograd.grad(_stacked(outputs, flat), inputs, grad, create_graph=True))
    return [next(found) if need else None for need in needed]


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | StackedLinear)


def _is_plain(x: Tensor, weight: Tensor) -> bool:
    """Say whether the arithmetic is the CPU's, in float32."""
    on_cpu = x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    return on_cpu and x.dtype == weight.dtype == torch.float32
