"""Convolutions with ReLUs between them as one operation, whose way back has two parts.

    g = gradient by the last output
    for l = L, ..., 1:
        g = g where the output x_l is positive, else 0
        gradient by W_l = x_(l-1) * g               whenever somebody has time: see jobs.py
        g = g * W_l turned round                    the gradient by x_(l-1), at once

The graph of the derivatives has one node instead of one for each layer, and the ReLUs take no memory of their own.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rlrun.networks.images import Conv2d, Flatten, Image
from rlrun.networks.jobs import Jobs

CONVOLUTIONS = (Conv2d, nn.Conv2d)


class Convolved:
    """An `Image` layer, convolutions with a ReLU after each of them, and `Flatten`: x [B, ...] -> [B, F]."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules, self.image = modules, modules[0]
        self.convolutions = [module for module in modules if isinstance(module, nn.Conv2d)]

    @staticmethod
    def of(modules: Sequence[nn.Module]) -> "Convolved | None":
        """Return the modules as one operation, if this is what they are."""
        kinds, inner = [type(module) for module in modules], modules[1:-1]
        layers = [module for module in inner[::2] if _is_simple(module)]
        known = len(layers) > 0 and kinds == [
            Image,
            *(kind for layer in layers for kind in (type(layer), nn.ReLU)),
            Flatten,
        ]
        return Convolved(modules) if known and len({id(layer) for layer in layers}) == len(layers) else None

    def fits(self, x: Tensor) -> bool:
        """Say whether the operation does for x what the modules would do."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or x.device.type != "cpu" or x.requires_grad:
            return False
        if any(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks for module in self.modules):
            return False
        if any(type(module) not in CONVOLUTIONS for module in self.convolutions):  # their weights are computed by now
            return False
        deriving = torch.is_grad_enabled()
        return all(w.dtype == torch.float32 and (w.requires_grad or not deriving) for w in self.weights())

    def weights(self) -> list[Tensor]:
        """Return weight and bias of each convolution, one after the other."""
        return [weight for module in self.convolutions for weight in module.parameters()]

    def __call__(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            flat: Tensor = _Convolve.apply(self, x, *self.weights())
            return flat
        return self.forward(x)[0][-1].flatten(1)

    @torch.no_grad()
    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the images and the output of each layer, its ReLU included, and the weights that they come from."""
        x = self.image(x)
        outputs, weights = [x], []
        for module in self.convolutions:
            weight, bias = _scaled(module, module.weight).to(x.dtype), module.bias
            x = torch.ops.aten.convolution(x, weight, None if bias is None else bias.to(x.dtype), *_form(module))
            outputs.append(torch.relu_(x))
            weights.append(weight)
        return outputs, weights

    def backward(self, grad: Tensor, outputs: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
        """Return the gradients by each weight and bias; grad: by the last output."""
        jobs: Jobs[tuple[Tensor, Tensor]] = Jobs()
        for number in reversed(range(len(weights))):
            grad = torch.ops.aten.threshold_backward(grad, outputs[number + 1], 0)
            step = self.convolutions[number], grad, outputs[number], weights[number]
            jobs.give(partial(_by_weight, *step))
            if number > 0:
                grad = _derive(*step, by_input=True)[0]
        return [gradient for both in reversed(jobs.results()) for gradient in both]


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, convolved: Convolved, x: Tensor, *leaves: Tensor) -> Tensor:
        outputs, weights = convolved.forward(x)
        ctx.convolved, ctx.casts = convolved, torch.is_autocast_enabled("cpu")
        ctx.save_for_backward(x, *leaves, *outputs, *weights)
        return outputs[-1].flatten(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (grad,), convolved = grads, ctx.convolved
        x, *saved = ctx.saved_tensors
        count = len(convolved.convolutions)
        leaves, outputs, weights = saved[: 2 * count], saved[2 * count : 3 * count + 1], saved[3 * count + 1 :]
        if torch.is_grad_enabled():  # the derivatives are to be derived again
            with torch.autocast("cpu", enabled=ctx.casts):
                for module in convolved.modules:
                    x = module(x)
            return None, None, *torch.autograd.grad(x, leaves, grad, create_graph=True)
        # In the layout of images, without which the derivatives take thrice as long.
        grad = grad.reshape(outputs[-1].shape).contiguous(memory_format=torch.channels_last)
        return None, None, *convolved.backward(grad, outputs, weights)


def _is_simple(module: nn.Module) -> bool:
    if type(module) not in CONVOLUTIONS:
        return False
    assert isinstance(module, nn.Conv2d)
    zeros = module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return zeros and [name for name, _ in module.named_parameters()] == ["weight", "bias"]


def _scaled(module: nn.Conv2d, weight: Tensor) -> Tensor:
    """Return the weight, or its gradient, times what the layer multiplies its weight with."""
    scale = module.scale if isinstance(module, Conv2d) else 1.0
    return weight if scale == 1.0 else weight * scale


def _by_weight(module: nn.Conv2d, grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    _, by_weight, by_bias = _derive(module, grad, x, weight, by_input=False)
    return _scaled(module, by_weight.float()), by_bias.float()


def _derive(module: nn.Conv2d, grad: Tensor, x: Tensor, weight: Tensor, *, by_input: bool) -> Sequence[Tensor]:
    """Return the gradients by the input, the weight and the bias: either the first one or the others."""
    wanted = [by_input, not by_input, not by_input]
    found: Sequence[Tensor] = torch.ops.aten.convolution_backward(
        grad, x, weight.detach(), [module.out_channels], *_form(module), wanted
    )
    return found


def _form(module: nn.Conv2d) -> tuple[Any, ...]:
    return list(module.stride), list(module.padding), list(module.dilation), False, [0, 0], module.groups
