"""Convolutions with ReLUs between them as one operation, whose way back has two parts.

    g = gradient by the last output
    for l = L, ..., 1:
        g = g where the output x_l is positive, else 0
        gradient by W_l = x_(l-1) * g               whenever somebody has time: see jobs.py
        g = g * W_l turned round                    the gradient by x_(l-1), at once

The graph of the derivatives has one node instead of one for each layer, and the ReLUs take no memory of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules_of_all

from rlrun.networks.images import Conv2d, Flatten, Image, does_more, is_plain, scaled
from rlrun.networks.jobs import Jobs


class Convolved:
    """An `Image` layer, convolutions with a ReLU after each of them, and `Flatten`: x [B, ...] -> [B, F]."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules, self.image = modules, modules[0]
        self.convolutions = [module for module in modules if isinstance(module, nn.Conv2d)]

    @staticmethod
    def of(modules: Sequence[nn.Module]) -> "Convolved | None":
        """Return the modules as one operation, if this is what they are."""
        kinds, inner = [type(module) for module in modules], modules[1:-1]
        layers = [module for module in inner[::2] if isinstance(module, nn.Conv2d) and _is_simple(module)]
        pairs = (kind for layer in layers for kind in (type(layer), nn.ReLU))
        known = len(layers) > 0 and kinds == [Image, *pairs, Flatten]
        return Convolved(modules) if known and len({id(layer) for layer in layers}) == len(layers) else None

    def fits(self, x: Tensor) -> bool:
        """Say whether the operation does for x what the modules would do."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or x.device.type != "cpu" or x.requires_grad:
            return False
        if modules_of_all._has_any_global_hook() or any(does_more(module) for module in self.modules):
            return False
        if not all(_is_simple(module) for module in self.convolutions):
            return False
        deriving = torch.is_grad_enabled()
        return all(w.dtype == torch.float32 and (w.requires_grad or not deriving) for w in self.weights())

    def weights(self) -> list[Tensor]:
        """Return weight and bias of each convolution, one after the other."""
        return [tensor for module in self.convolutions for tensor in (module.weight, module.bias) if tensor is not None]

    def __call__(self, x: Tensor) -> Tensor:
        layers, weights = [_Layer.of(module) for module in self.convolutions], self.weights()
        if torch.is_grad_enabled():
            flat: Tensor = _Convolve.apply(self.image, layers, x, *weights)
            return flat
        return _forward(self.image(x), layers, weights)[0][-1].flatten(1)


@dataclass(frozen=True)
class _Layer:
    """A convolution without its weights. weight: as it enters the convolution, scaled and cast."""

    out_channels: int
    form: tuple[Any, ...]  # stride, padding, dilation, transposed, output padding, groups
    scale: float

    @staticmethod
    def of(module: nn.Conv2d) -> "_Layer":
        form = list(module.stride), list(module.padding), list(module.dilation), False, [0, 0], module.groups
        return _Layer(module.out_channels, form, module.scale if isinstance(module, Conv2d) else 1.0)

    def by_input(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return self._derived(grad, x, weight, [True, False, False])[0]

    def by_weight(self, grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients by weight and bias."""
        _, by_weight, by_bias = self._derived(grad, x, weight, [False, True, True])
        return scaled(by_weight.float(), self.scale), by_bias.float()

    def _derived(self, grad: Tensor, x: Tensor, weight: Tensor, wanted: list[bool]) -> Sequence[Tensor]:
        derive = torch.ops.aten.convolution_backward
        found: Sequence[Tensor] = derive(grad, x, weight, [self.out_channels], *self.form, wanted)
        return found


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: nn.Module, layers: Sequence[_Layer], x: Tensor, *weights: Tensor) -> Tensor:
        outputs, cast = _forward(image(x), layers, weights)
        ctx.image, ctx.layers = image, layers
        ctx.autocast = torch.get_autocast_dtype("cpu"), torch.is_autocast_enabled("cpu")
        ctx.save_for_backward(x, *weights, *outputs, *cast)
        return outputs[-1].flatten(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (grad,), count, (x, *saved) = grads, len(ctx.layers), ctx.saved_tensors
        weights, outputs, cast = saved[: 2 * count], saved[2 * count : 3 * count + 1], saved[3 * count + 1 :]
        if torch.is_grad_enabled():  # the derivatives are to be derived again
            dtype, enabled = ctx.autocast
            with torch.autocast("cpu", dtype, enabled=enabled, cache_enabled=False):
                y = ctx.image(x)
                for layer, weight, bias in zip(ctx.layers, weights[::2], weights[1::2], strict=True):
                    weight, bias = scaled(weight, layer.scale).to(y.dtype), bias.to(y.dtype)
                    y = torch.relu(torch.ops.aten.convolution(y, weight, bias, *layer.form))
            return None, None, None, *torch.autograd.grad(y.flatten(1), weights, grad, create_graph=True)
        # In the layout of images, without which the derivatives take thrice as long.
        grad = grad.reshape(outputs[-1].shape).contiguous(memory_format=torch.channels_last)
        return None, None, None, *_backward(grad, ctx.layers, outputs, cast)


@torch.no_grad()
def _forward(x: Tensor, layers: Sequence[_Layer], weights: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return x and the output of each layer, its ReLU included, and the weights as they enter the convolutions."""
    outputs, entered = [x], []
    for layer, weight, bias in zip(layers, weights[::2], weights[1::2], strict=True):
        entered.append(scaled(weight.detach(), layer.scale).to(x.dtype))
        x = torch.ops.aten.convolution(x, entered[-1], bias.to(x.dtype), *layer.form)
        outputs.append(torch.relu_(x))
    return outputs, entered


def _backward(
    grad: Tensor, layers: Sequence[_Layer], outputs: Sequence[Tensor], weights: Sequence[Tensor]
) -> list[Tensor]:
    """Return the gradients by weight and bias of each layer; grad: by the last output; weights: as they entered."""
    jobs: Jobs[tuple[Tensor, Tensor]] = Jobs()
    with jobs:
        for number in reversed(range(len(layers))):
            layer, x, weight = layers[number], outputs[number], weights[number]
            grad = torch.ops.aten.threshold_backward(grad, outputs[number + 1], 0)
            jobs.give(partial(layer.by_weight, grad, x, weight))
            if number > 0:
                grad = layer.by_input(grad, x, weight)
        return [gradient for both in reversed(jobs.results()) for gradient in both]


def _is_simple(module: nn.Conv2d) -> bool:
    """Say whether it is a plain layer with a weight and a bias of its own."""
    own = module._parameters.get("weight") is not None and module._parameters.get("bias") is not None
    return is_plain(module) and own
