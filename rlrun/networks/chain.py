"""Linear layers with ReLUs or tanhs between them as one operation: small networks spend less time between products.

The graph of the derivatives has one node instead of one for each layer and activation. The arithmetic is NumPy's on the
memory of the tensors, which is on its way in half of torch's time; its tanh takes a tenth of the time of torch's. Large
products are torch's or oneDNN's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rlrun.envs.base import Array
from rlrun.networks.linear import InFloat32, Linear, StackedLinear, array_product
from rlrun.networks.trunk import Trunk

FEW_ROWS = 16  # of all networks, below which a derivative written in Python costs more than it saves
WORTH_NO_CAST = 1 << 20  # weights, which autocast casts in more time than float32 takes to multiply them with one row

Layers = Sequence[tuple[Array, Array]]  # weight and bias of each


@dataclass(frozen=True)
class Activation:
    """What stands between layers, and how its derivative follows from its output."""

    function: Callable[[Tensor], Tensor]
    in_place: Callable[[Array], Array]
    backward: Callable[[Array, Array], Array]  # (gradient by the output, output) -> gradient by the input

    def __deepcopy__(self, memo: dict[int, Any]) -> "Activation":
        return self  # as functions are


def _tanh_(x: Array) -> Array:
    return np.tanh(x, out=x)


def _tanh_backward(grad: Array, out: Array) -> Array:
    slope = np.multiply(out, out)
    np.subtract(1, slope, out=slope)
    return np.multiply(slope, grad, out=slope)


def _relu_(x: Array) -> Array:
    # torch's, which is faster than NumPy's, and not oneDNN's, which makes zeros of NaNs: a run that has diverged would
    # go on as if nothing were.
    torch.relu_(torch.from_numpy(x))
    return x


def _relu_backward(grad: Array, out: Array) -> Array:
    array: Array = torch.ops.aten.threshold_backward(torch.from_numpy(grad), torch.from_numpy(out), 0).numpy()
    return array


RELU = Activation(torch.relu, _relu_, _relu_backward)
TANH = Activation(torch.tanh, _tanh_, _tanh_backward)
ACTIVATIONS: dict[type[nn.Module], Activation] = {nn.ReLU: RELU, nn.Tanh: TANH}


@dataclass(frozen=True)
class Form:
    """What networks have in common. Their weights come one network after the other, or stacked if `count` is None.

    activated: the activation stands after the last layer, too.
    """

    activation: Activation
    activated: bool
    count: int | None

    def members(self, flat: Sequence[Any]) -> list[list[tuple[Any, Any]]]:
        """Return weight and bias of each layer of each network, tensors or arrays."""
        if self.count is None:
            parts = list(zip(*flat, strict=True))
        else:
            size = len(flat) // self.count
            parts = [tuple(flat[e * size : (e + 1) * size]) for e in range(self.count)]
        return [list(zip(part[::2], part[1::2], strict=True)) for part in parts]

    def outputs(self, members: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the outputs of the networks as they are handed out."""
        return (torch.stack(list(members)),) if self.count is None else tuple(members)

    def room(
        self, members: Sequence[Layers], needed: Sequence[bool], given: Sequence[bool]
    ) -> tuple[list[Array | None], list[list[Array | None]]]:
        """Return arrays for the gradients by weights: as they are handed out, and those of each network.

        needed: by weight, given: by network; None where one of them is false. Stacked ones are views of one array, so
        that nothing has to be put together afterwards.
        """
        count = len(members)
        shapes = [array.shape for member in members for layer in member for array in layer]
        if self.count is None:
            shapes, given = [(count, *shape) for shape in shapes[: len(needed)]], given[:1]
        size = len(needed) // len(given)
        flat = [
            np.empty(shape, np.float32) if need and given[i // size] else None
            for i, (shape, need) in enumerate(zip(shapes, needed, strict=True))
        ]
        if self.count is None:
            return flat, [[None if array is None else array[e] for array in flat] for e in range(count)]
        return flat, [flat[e * size : (e + 1) * size] for e in range(count)]


class Views:
    """The memory of networks' weights as arrays, which are made anew only where a weight has got another memory."""

    def __init__(self, form: Form) -> None:
        self.form = form
        # Addresses, and arrays, which keep that memory from being given to anybody else. In one, for threads' sake.
        self.known: tuple[list[int], list[list[tuple[Array, Array]]]] = [], []

    def of(self, weights: Sequence[Tensor]) -> list[list[tuple[Array, Array]]]:
        """Return the layers of each network; weights: the same ones, with the same shapes and strides, each time."""
        places = [weight.data_ptr() for weight in weights]
        known, networks = self.known
        if places != known:
            networks = self.form.members([weight.detach().numpy() for weight in weights])
            self.known = places, networks
        return networks

    def __deepcopy__(self, memo: dict[int, Any]) -> "Views":
        return Views(self.form)  # a copy of a network has weights of its own

    def __reduce__(self) -> tuple[Any, ...]:
        return Views, (self.form,)


@dataclass(frozen=True)
class Run:
    """Linear layers that follow each other with one activation between them; `activated`: after the last one, too."""

    linears: list[Any]
    activation: Activation
    activated: bool
    views: Views

    @staticmethod
    def first_of(modules: Sequence[nn.Module]) -> "Run | None":
        """Return the longest run that the modules begin with, if there is one of a layer and an activation at least."""
        if len(modules) < 2 or not _is_linear(modules[0]) or type(modules[1]) not in ACTIVATIONS:
            return None
        kind, length = type(modules[1]), 2
        while length < len(modules) and (type(modules[length]) is kind if length % 2 else _is_linear(modules[length])):
            length += 1
        activation, activated = ACTIVATIONS[kind], length % 2 == 0
        return Run(list(modules[:length:2]), activation, activated, Views(Form(activation, activated, 1)))

    def weights(self) -> list[Tensor]:
        """Return weight and bias of each layer, one after the other."""
        try:  # out of the dictionaries themselves, since a module's attribute takes ten times as long
            return [linear._parameters[name] for linear in self.linears for name in ("weight", "bias")]
        except KeyError:  # of weights that are computed, such as those of torch's spectral norm
            return [getattr(linear, name) for linear in self.linears for name in ("weight", "bias")]

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
        weights = run.weights()
        if _is_one_row_to_cast(x, weights):
            with torch.autocast("cpu", enabled=False):
                return self._through(run, x.float())
        if worth_a_chain(x, weights):
            return chains(x, weights, run.views)[0]
        for linear in run.linears[:-1]:
            x = run.activation.function(linear(x))
        x = run.linears[-1](x)
        return run.activation.function(x) if run.activated else x


class SideBySide:
    """Networks of one form that see the same, as one operation where that is faster."""

    def __init__(self, entry: Sequence[Any], runs: Sequence[Run]) -> None:
        self.entry, self.runs = entry, runs
        self.views = Views(Form(runs[0].activation, runs[0].activated, len(runs)))

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
        return SideBySide(before, runs)

    def __call__(self, inputs: Tensor) -> tuple[Tensor, ...] | None:
        """Return the output of each, or None if they had better be asked one by one; inputs: [B, ...]."""
        x, weights = inputs, [weight for run in self.runs for weight in run.weights()]
        for module in self.entry:
            x = module(x)
        return chains(x, weights, self.views) if worth_a_chain(x, weights, len(self.runs)) else None

    def fixed(self) -> Callable[[Tensor], list[Array]] | None:
        """Return what computes the outputs with the weights as they are, as long as none changes; None if torch must.

        It does not look at weights and settings each time, which takes as long as the products of a few rows.
        """
        weights = [weight for run in self.runs for weight in run.weights()]
        if not all(_is_plain(weight, weight) for weight in weights):
            return None
        networks, form = self.views.of(weights), self.views.form

        def outputs(inputs: Tensor) -> list[Array]:
            x = inputs
            for module in self.entry:
                x = module(x)
            return [_forward(x.numpy(), layers, form)[-1] for layers in networks]

        return outputs


def worth_a_chain(x: Tensor, weights: Sequence[Tensor], networks: int = 1) -> bool:
    """Say whether chains of layers take less time than the layers of each network one by one; x: [B, in]."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or x.dim() != 2 or not _is_plain(x, weights[0]):
        return False
    return x.shape[0] * networks >= FEW_ROWS or not torch.is_grad_enabled()


@np.errstate(all="ignore")  # what is not a number is reported where it is looked at
def chains(x: Tensor, weights: Sequence[Tensor], views: Views) -> tuple[Tensor, ...]:
    """Return W_n f(... f(W_1 x + b_1) ...) + b_n, or f of it if the form is `activated`, of each network.

    x: [B, in]; weights: [out, in] and [out] of each layer -> [B, out] of each network; stacked ones: [E, out, in] and
    [E, out] -> [E, B, out] alone. views: of these weights.
    """
    if torch.is_grad_enabled():
        out: tuple[Tensor, ...] = _Chain.apply(views, x, *weights)
        return out
    array, form = x.detach().numpy(), views.form
    return form.outputs([torch.from_numpy(_forward(array, layers, form)[-1]) for layers in views.of(weights)])


class _Chain(torch.autograd.Function):
    """What it needs on the way back is kept in arrays, since torch takes long to keep so many tensors."""

    @staticmethod
    def forward(ctx: Any, views: Views, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        form, members, array = views.form, views.of(weights), x.detach().numpy()
        hidden = [_forward(array, layers, form) for layers in members]
        outputs = form.outputs([torch.from_numpy(arrays.pop()) for arrays in hidden])
        ctx.form, ctx.inputs, ctx.members, ctx.hidden = form, (x, *weights), members, hidden
        ctx.versions = [tensor._version for tensor in ctx.inputs]
        if form.activated:
            ctx.save_for_backward(*outputs)
        return outputs

    @staticmethod
    @np.errstate(all="ignore")
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        form: Form = ctx.form
        needed = ctx.needs_input_grad[1:]
        if [tensor._version for tensor in ctx.inputs] != ctx.versions:
            raise RuntimeError("what the gradient is computed from was changed in place before backward was called")
        if torch.is_grad_enabled():  # the derivatives are to be derived again
            return None, *_derivable(ctx.inputs[0], ctx.inputs[1:], form, grads, needed)
        last = ctx.saved_tensors  # nothing unless `activated`, but torch refuses a second time of going back here
        if form.count is None:
            (grad,) = grads
            grads = tuple(grad.unbind()) if grad is not None else (None,) * len(ctx.members)
            last = last[0].unbind() if last else ()
        given = [grad is not None for grad in grads]  # not those of what was left out of the loss
        flat, rooms = form.room(ctx.members, needed[1:], given)
        for_x: Array | None = None
        for e, (grad, room) in enumerate(zip(grads, rooms, strict=True)):
            if grad is None:
                continue
            hidden = [*ctx.hidden[e], last[e].detach().numpy()] if last else ctx.hidden[e]
            through = _backward(grad.numpy(), hidden, ctx.members[e], form, room, needed[0])
            for_x = through if for_x is None else for_x + through
        return None, *(None if array is None else torch.from_numpy(array) for array in (for_x, *flat))


def _forward(x: Array, layers: Layers, form: Form) -> list[Array]:
    """Return x and the output of each layer, its activation included."""
    outputs = [x]
    for i, (weight, bias) in enumerate(layers):
        x = array_product(x, weight, bias)
        if form.activated or i < len(layers) - 1:
            x = form.activation.in_place(x)
        outputs.append(x)
    return outputs


def _backward(
    grad: Array, hidden: Sequence[Array], layers: Layers, form: Form, room: Sequence[Array | None], for_x: bool
) -> Any:
    """Write the gradients by each weight and bias where there is room for them; return that by x, None if not wanted.

    hidden: x and the output of each layer, without the last one's if it has no activation.
    """
    for i in reversed(range(len(layers))):
        if form.activated or i < len(layers) - 1:
            grad = form.activation.backward(grad, hidden[i + 1])
        of_weight, of_bias = room[2 * i : 2 * i + 2]
        if of_bias is not None:
            np.dot(_ones(len(grad)), grad, out=of_bias)
        if of_weight is not None:
            array_product(grad.T, hidden[i].T, out=of_weight)
        if i > 0 or for_x:
            grad = array_product(grad, layers[i][0].T)
    return grad if for_x else None


@lru_cache(maxsize=64)
def _ones(count: int) -> Array:
    """Return ones, with which a product adds up rows in a fourth of the time of a sum."""
    return np.ones(count, np.float32)


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
    own = type(module).forward in (nn.Linear.forward, Linear.forward, InFloat32.forward, StackedLinear.forward)
    return own and isinstance(module, nn.Linear | StackedLinear) and module.bias is not None


def _is_one_row_to_cast(x: Tensor, weights: Sequence[Tensor]) -> bool:
    """Say whether autocast would cast many weights for one row alone."""
    return (
        x.dim() == 2
        and x.shape[0] == 1
        and weights[0].numel() >= WORTH_NO_CAST
        and all(weight.dtype == torch.float32 for weight in weights)
        and x.device.type == "cpu"
        and torch.is_autocast_enabled("cpu")
        and not torch.is_grad_enabled()
        and not torch.jit.is_tracing()
    )


def _is_plain(x: Tensor, weight: Tensor) -> bool:
    """Say whether the arithmetic is the CPU's, in float32."""
    on_cpu = x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    return on_cpu and x.dtype == weight.dtype == torch.float32
