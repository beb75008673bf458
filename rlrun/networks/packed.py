"""Convolutional networks that stay as they are for a while, in the form in which oneDNN reads weights.

Otherwise each forward pass brings them into that form anew, which for a few frames takes a third of its time. What
follows a layer is computed with it. The results are those of the modules, but that a ReLU makes zeros of NaNs: the next
loss sees them.
"""

import platform
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from rlrun.device import Device
from rlrun.networks.images import Conv2d, Flatten, Image, does_more, is_plain
from rlrun.networks.linear import Linear

WORTH_PACKING = 32  # passes of a few frames, below which packing takes longer than it saves

Layer = Callable[[Tensor], Tensor]


def worth_packing(modules: Sequence[nn.Module], num_passes: int, device: Device) -> bool:
    """Say whether `Packed` knows all of the modules, convolutions among them, and saves time."""
    convolutions = [module for module in modules if isinstance(module, nn.Conv2d)]
    return (
        num_passes >= WORTH_PACKING
        and len(convolutions) > 0
        and device.kind == "cpu"
        and not device.compile
        and _has_onednn(device.precision)
        and all(type(module) in (Image, Flatten, Conv2d, nn.Conv2d, Linear, nn.Linear, nn.ReLU) for module in modules)
        and all(is_plain(convolution) for convolution in convolutions)
        and not any(does_more(module) for module in modules)
    )


class Packed:
    """obs [B, *obs] -> features [B, F] in float32, by the weights of the time when the first ones come.

    B and what the modules are must not change.
    """

    def __init__(self, modules: Sequence[nn.Module], device: Device) -> None:
        self.modules, self.dtype = modules, torch.bfloat16 if device.precision == "bf16" else torch.float32
        self.layers: list[Layer] = []

    @torch.no_grad()
    def __call__(self, obs: Tensor) -> Tensor:
        if not self.layers:
            return self._pack(obs).float()
        x = obs
        for layer in self.layers:
            x = layer(x)
        return x.float()

    def _pack(self, x: Tensor) -> Tensor:
        """Fill the layers, whose form depends on what they see, by the first observations; return their features."""
        modules = list(self.modules)
        while modules:
            module = modules.pop(0)
            activation = "none"
            if modules and isinstance(module, nn.Conv2d | nn.Linear) and isinstance(modules[0], nn.ReLU):
                activation = "relu"
                modules.pop(0)
            layer = self._layer(module, activation, x)
            self.layers.append(layer)
            x = layer(x)
        return x

    def _layer(self, module: nn.Module, activation: str, x: Tensor) -> Layer:
        ops = torch.ops.mkldnn
        if isinstance(module, Image):
            image, dtype = module, self.dtype
            return lambda obs: image(obs, dtype)
        if isinstance(module, nn.Conv2d):
            stride, padding, dilation = list(module.stride), list(module.padding), list(module.dilation)
            bias = self._cast(module.bias)
            weight = self._cast(module.scaled_weight() if isinstance(module, Conv2d) else module.weight)
            assert weight is not None
            form: tuple[Any, ...] = padding, stride, dilation, module.groups
            weight = torch.ops.aten.mkldnn_reorder_conv2d_weight(weight.to_mkldnn(), *form, list(x.shape))
            return lambda x: ops._convolution_pointwise(x, weight, bias, *form, activation, [], "")
        if isinstance(module, nn.Linear):
            weight, bias = self._cast(module.weight), self._cast(module.bias)
            weight = ops._reorder_linear_weight(weight, len(x))
            return lambda x: ops._linear_pointwise(x, weight, bias, activation, [], "")
        return module

    def _cast(self, weight: Tensor | None) -> Tensor | None:
        return None if weight is None else weight.detach().to(self.dtype, copy=True)


@cache
def _has_onednn(precision: str) -> bool:
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return False
    ops = torch.ops.mkldnn
    try:  # what torch promises nobody, and older versions did otherwise
        weight = ops._reorder_linear_weight(torch.ones(2, 3), 1)
        as_expected = ops._linear_pointwise(torch.ones(1, 3), weight, None, "relu", [], "").tolist() == [[3.0, 3.0]]
        return as_expected and (precision == "float32" or ops._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):
        return False
