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
from rlrun.networks.trunk import Trunk

FEW_ROWS = 32  # below which oneDNN is not worth its call
MANY_ROWS = 128  # of all networks, from which NumPy's tanh saves more than a derivative written in Python costs

Layers = Sequence[tuple[Tensor, Tensor]]  # weight and bias of each


@dataclass(frozen=True)
class Activation:
    """What stands between layers, and how its derivative follows from its output."""

    function: Callable[[Tensor], Tensor]
    in_place: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]  # (gradient by the output, output) -> gradient by the input

    def __deepcopy__(self, memo: dict[int, Any]) -> "Activation":
        return self  # as functions are

    def worth_a_chain(self, x: Tensor, layers: Layers, networks: int = 1) -> bool:
        """Say whether chains of layers with it, x: [B, in], take less time than the layers of each one by one."""
        if torch.compiler.is_compiling() or x.dim() != 2:
            return False
        if self is TANH:
            enough = x.shape[0] * networks >= MANY_ROWS or not torch.is_grad_enabled()
            return enough and _is_plain(x, layers[0][0])
        return x.shape[0] >= FEW_ROWS and any(worth_onednn(x, weight) for weight, _ in layers)


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

    def layers(self) -> Layers:
        return [(linear.weight, linear.bias) for linear in self.linears]

    def __len__(self) -> int:
        return 2 * len(self.linears) - (not self.activated)


class Chained(nn.Sequential):
    """Modules in turn, x: [B, ...], with runs of linear layers as one operation where that is faster.

    Convolutions at the beginning are computed in parts, see `Trunk`. The modules stay those that it was made of.
    """

    def __init__(self, *modules: Any) -> None:
        super().__init__(*modules)
        rest = list(self)
        trunk = Trunk.first_of(rest)
        self.parts: list[nn.Module | Run | Trunk] = [] if trunk is None else [trunk]
        rest = rest[0 if trunk is None else len(trunk) :]
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
        layers = run.layers()
        if run.activation.worth_a_chain(x, layers):
            return chain(x, layers, run.activation, activated=run.activated)
        for linear in run.linears[:-1]:
            x = run.activation.function(linear(x))
        x = run.linears[-1](x)
        return run.activation.function(x) if run.activated else x


class SideBySide:
    """Networks of one form that see the same, as one operation where that is faster."""

    def __init__(self, entry: Chained, runs: Sequence[Run]) -> None:
        self.entry, self.runs = entry, runs

    @staticmethod
    def of(networks: Sequence[Sequence[nn.Module]]) -> "SideBySide | None":
        """Return the networks as one, if each is a run of linear layers after the same layers without weights."""
        parts = [Chained(*modules).parts for modules in networks]
        entries, runs = [each[:-1] for each in parts], [each[-1] for each in parts if isinstance(each[-1], Run)]
        forms = {(run.activation, run.activated, len(run)) for run in runs}
        if len(runs) < len(networks) or len(forms) > 1 or len({repr(entry) for entry in entries}) > 1:
            return None
        before = [module for module in entries[0] if isinstance(module, nn.Module)]
        if len(before) < len(entries[0]) or any(list(module.parameters()) for module in before):
            return None
        return SideBySide(Chained(*before), runs)

    def __call__(self, inputs: Tensor) -> tuple[Tensor, ...] | None:
        """Return the output of each, or None if they had better be asked one by one; inputs: [B, ...]."""
        if torch.compiler.is_compiling() or inputs.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return None
        form = Form(self.runs[0].activation, self.runs[0].activated, len(self.runs))
        if form.activation is RELU and inputs.shape[0] < FEW_ROWS:
            return None
        x, networks = self.entry(inputs), [run.layers() for run in self.runs]
        if not form.activation.worth_a_chain(x, networks[0], len(networks)):
            return None
        if not torch.is_grad_enabled():
            return tuple(_forward(x, layers, form)[-1] for layers in networks)
        out: tuple[Tensor, ...] = _Chain.apply(form, x, *(t for layers in networks for layer in layers for t in layer))
        return out


def chain(x: Tensor, layers: Layers, activation: Activation, *, activated: bool) -> Tensor:
    """Return W_n f(... f(W_1 x + b_1) ...) + b_n, or f of it if `activated`.

    x: [B, in], weights: [out, in], biases: [out] -> [B, out]; weights: [E, out, in], biases: [E, out] -> [E, B, out].
    """
    stacked = layers[0][0].dim() == 3
    form = Form(activation, activated, None if stacked else 1)
    if not torch.is_grad_enabled() and not stacked:
        return _forward(x, layers, form)[-1]
    out: tuple[Tensor, ...] = _Chain.apply(form, x, *(tensor for layer in layers for tensor in layer))
    return out[0]


@dataclass(frozen=True)
class Form:
    """What networks have in common. Their tensors come one network after the other, or stacked if `count` is None."""

    activation: Activation
    activated: bool
    count: int | None

    def members(self, flat: Sequence[Tensor]) -> list[Layers]:
        """Return the layers of each network."""
        if self.count is None:
            parts = list(zip(*(tensor.unbind() for tensor in flat), strict=True))
        else:
            size = len(flat) // self.count
            parts = [tuple(flat[e * size : (e + 1) * size]) for e in range(self.count)]
        return [list(zip(part[::2], part[1::2], strict=True)) for part in parts]

    def outputs(self, members: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the outputs of the networks as they are handed out."""
        return (torch.stack(list(members)),) if self.count is None else tuple(members)

    def flat(self, members: Sequence[Sequence[Tensor | None]]) -> list[Tensor | None]:
        """Undo `members`: of each network's tensors, some of which may be None, make those of all."""
        if self.count is not None:
            return [tensor for part in members for tensor in part]
        columns = zip(*members, strict=True)
        return [torch.stack(column) if column[0] is not None else None for column in columns]


class _Chain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, form: Form, x: Tensor, *flat: Tensor) -> tuple[Tensor, ...]:
        ctx.form = form
        ctx.set_materialize_grads(False)
        hidden = [_forward(x, layers, form) for layers in form.members(flat)]
        ctx.save_for_backward(x, *flat, *(tensor for outputs in hidden for tensor in outputs))
        return form.outputs([outputs[-1] for outputs in hidden])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        form: Form = ctx.form
        needed = ctx.needs_input_grad[1:]
        x, *others = ctx.saved_tensors
        flat, outputs = others[: len(needed) - 1], others[len(needed) - 1 :]
        if torch.is_grad_enabled():  # the derivatives are to be derived again
            return None, *_derivable(x, flat, form, grads, needed)
        members, rows = form.members(flat), list[list[Any]]()
        size = len(outputs) // len(members)
        if form.count is None:
            (grad,) = grads
            grads = tuple(grad.unbind()) if grad is not None else (None,) * len(members)
        for e, grad in enumerate(grads):
            if grad is None:  # of what was left out of the loss
                rows.append([None] * (1 + 2 * size))
                continue
            of_weights = needed[1:] if form.count is None else needed[1 + 2 * size * e : 1 + 2 * size * (e + 1)]
            hidden = [x, *outputs[size * e : size * (e + 1)]]
            rows.append(_backward(grad, hidden, members[e], form, (needed[0], *of_weights)))
        for_x = [row[0] for row in rows if row[0] is not None]
        return None, sum(for_x[1:], for_x[0]) if for_x else None, *form.flat([row[1:] for row in rows])


def _forward(x: Tensor, layers: Layers, form: Form) -> list[Tensor]:
    """Return the output of each layer, its activation included."""
    outputs = []
    for i, (weight, bias) in enumerate(layers):
        x = product(x, weight, bias)
        if form.activated or i < len(layers) - 1:
            x = form.activation.in_place(x)
        outputs.append(x)
    return outputs


def _backward(grad: Tensor, hidden: Sequence[Tensor], layers: Layers, form: Form, needed: Sequence[bool]) -> list[Any]:
    """Return the gradients by x and by each weight and bias, None for those that are not `needed`.

    hidden: x and the output of each layer.
    """
    grads: list[Tensor | None] = []
    for i in reversed(range(len(layers))):
        if form.activated or i < len(layers) - 1:
            grad = form.activation.backward(grad, hidden[i + 1])
        of_weight, of_bias = needed[1 + 2 * i : 3 + 2 * i]
        grads.append(grad.sum(0) if of_bias else None)
        grads.append(product(grad.mT, hidden[i].mT) if of_weight else None)
        if i > 0 or needed[0]:
            grad = product(grad, layers[i][0].mT)
    return [grad if needed[0] else None, *grads[::-1]]


def _derivable(
    x: Tensor, flat: Sequence[Tensor], form: Form, grads: Sequence[Tensor | None], needed: Sequence[bool]
) -> list[Tensor | None]:
    """Return the same gradients by operations that torch can derive again."""
    with torch.enable_grad():
        outputs = []
        for layers in form.members(flat):
            y = x
            for i, (weight, bias) in enumerate(layers):
                y = nn.functional.linear(y, weight, bias)
                y = form.activation.function(y) if form.activated or i < len(layers) - 1 else y
            outputs.append(y)
        inputs = [tensor for tensor, need in zip([x, *flat], needed, strict=True) if need]
        both = zip(form.outputs(outputs), grads, strict=True)
        asked = [(out, grad) for out, grad in both if grad is not None and out.requires_grad]
        outs, given = zip(*asked, strict=True)
        found = iter(torch.autograd.grad(outs, inputs, given, create_graph=True, allow_unused=True))
    return [next(found) if need else None for need in needed]


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | StackedLinear)


def _is_plain(x: Tensor, weight: Tensor) -> bool:
    """Say whether the arithmetic is the CPU's, in float32."""
    on_cpu = x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    return on_cpu and x.dtype == weight.dtype == torch.float32
