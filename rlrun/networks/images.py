"""Layers of networks that see images. B batch, C channels, H x W pixels."""

from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor, nn


class Image(nn.Module):
    """Images [B, C, H, W] or [B, H, W, C], bytes or floats -> float [B, C, H, W], bytes still in [0, 255].

    `scale` brings them into [0, 1]; the layer that follows applies it to its few weights. Every byte is a number of
    bfloat16 as well, so that with autocast they become that at once, without rounding.
    """

    def __init__(self, obs_space: spaces.Space) -> None:
        super().__init__()
        shape = obs_space.shape or ()
        if len(shape) != 3:
            raise ValueError(f"a convolutional network needs observations [C, H, W], not {shape}; try network=mlp")
        self.channels_last_input = shape[-1] in (1, 3, 4) and shape[0] > 4
        self.channels = shape[-1] if self.channels_last_input else shape[0]
        self.scale = 1 / 255 if obs_space.dtype == "uint8" else 1.0

    def forward(self, obs: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """dtype: None is the one that autocast has, or float32."""
        obs = obs.movedim(-1, -3) if self.channels_last_input else self.laid_out(obs)
        if dtype is None:
            kind = obs.device.type
            dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        return obs.contiguous(memory_format=torch.channels_last).to(dtype)

    def laid_out(self, obs: Tensor) -> Tensor:
        """Return the same observations, with what the convolutions read together lying together.

        What is seen several times is laid out once: it takes longer than to make floats of bytes.
        """
        together = torch.channels_last
        if self.channels_last_input or obs.dim() != 4 or obs.is_contiguous(memory_format=together):
            return obs
        if obs.dtype == torch.uint8:  # in half of the time that a copy takes, which moves single bytes
            return torch.stack(obs.unbind(1), dim=-1).movedim(-1, 1)
        return obs.contiguous(memory_format=together)


class Flatten(nn.Flatten):
    """Images [B, C, H, W] -> [B, C H W]."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        followed = torch.compiler.is_compiling() or torch.jit.is_tracing()  # what is compiled or exported
        if followed or x.dim() != 4 or x.is_contiguous() or not x.requires_grad:
            return super().forward(x)
        flat: Tensor = _Flatten.apply(x)
        return flat


class _Flatten(torch.autograd.Function):
    """Gives the gradient the layout of the images, without which the derivative of what comes before takes thrice as
    long.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape = x.shape
        return x.flatten(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].reshape(ctx.shape).contiguous(memory_format=torch.channels_last)


class Conv2d(nn.Conv2d):
    """torch's layer, of an input that is to be multiplied by `scale`."""

    def __init__(
        self, fan_in: int, fan_out: int, kernel: int, stride: int = 1, padding: int = 0, *, scale: float = 1.0
    ) -> None:
        super().__init__(fan_in, fan_out, kernel, stride, padding)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.scaled_weight(), self.bias)

    def scaled_weight(self) -> Tensor:
        return scaled(self.weight, self.scale)


def scaled(weight: Tensor, scale: float) -> Tensor:
    return weight if scale == 1.0 else weight * scale


def is_plain(convolution: nn.Conv2d) -> bool:
    """Say whether a layer is one of these or torch's, and pads with zeros if at all."""
    zeros = convolution.padding_mode == "zeros" and not isinstance(convolution.padding, str)
    return type(convolution) in (Conv2d, nn.Conv2d) and zeros


def does_more(module: nn.Module) -> bool:
    """Say whether somebody has added to what a layer does."""
    forward = module._forward_pre_hooks or module._forward_hooks or "forward" in vars(module)
    return bool(forward or module._backward_pre_hooks or module._backward_hooks)
