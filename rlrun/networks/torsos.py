"""Torsos: observation [B, *obs] -> features [B, F]. Each takes the observation space first.

Weights start orthogonal with gain sqrt 2 and zero bias, as in the Baselines implementation of PPO
(Huang et al. 2022, "The 37 Implementation Details of Proximal Policy Optimization", detail 2).
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, TypeVar

import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlrun.networks.chain import Chained
from rlrun.networks.images import Conv2d, Flatten, Image
from rlrun.networks.linear import Linear

Layer = TypeVar("Layer", bound=nn.Linear | nn.Conv2d)
Activation = Literal["tanh", "relu", "elu", "silu", "gelu"]
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}


def orthogonal(layer: Layer, gain: float = math.sqrt(2)) -> Layer:
    """Start the layer with an orthogonal weight of the given gain and a zero bias."""
    nn.init.orthogonal_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class Torso(Chained):
    """A stack of layers that says how wide its output is."""

    out_features: int

    def laid_out(self, obs: Tensor) -> Tensor:
        """Return the same observations [B, *obs], as they are seen fastest."""
        entry = next(iter(self), None)
        return entry.laid_out(obs) if isinstance(entry, Image) else obs

    def split(self) -> tuple[nn.Sequential, list[nn.Module]]:
        """Return the layers before the last linear one, and that one with what follows it (none: an empty list)."""
        layers = list(self)
        linear = [i for i, layer in enumerate(layers) if isinstance(layer, nn.Linear)]
        last = linear[-1] if linear else len(layers)
        return Chained(*layers[:last]), layers[last:]


def is_its_layers(torso: nn.Module) -> bool:
    """Say whether a torso does what its layers do in turn: one of somebody else's may do more."""
    return isinstance(torso, Torso) and type(torso).forward is Chained.forward


class MLP(Torso):
    """Fully connected layers. A discrete observation enters as a one-hot vector, any other flattened."""

    def __init__(self, obs_space: spaces.Space, hidden: list[int], activation: Activation, layer_norm: bool) -> None:
        _check_sizes("hidden", hidden)
        widths = [spaces.flatdim(obs_space), *hidden]
        layers: list[nn.Module] = [entry(obs_space)]
        for fan_in, fan_out in pairwise(widths):
            layers += _layer(Linear(fan_in, fan_out), (fan_out,), activation, layer_norm)
        super().__init__(*layers)
        self.out_features = widths[-1]


class NatureCNN(Torso):
    """The network of Mnih et al. (2015), "Human-level control through deep reinforcement learning"."""

    def __init__(
        self,
        obs_space: spaces.Space,
        channels: list[int],
        kernels: list[int],
        strides: list[int],
        hidden: int,
        activation: Activation,
        layer_norm: bool,
    ) -> None:
        for key, sizes in (("channels", channels), ("kernels", kernels), ("strides", strides), ("hidden", [hidden])):
            _check_sizes(key, sizes)
        image = Image(obs_space)
        layers: list[nn.Module] = [image]
        fan_in, scale = image.channels, image.scale
        for fan_out, kernel, stride in zip(channels, kernels, strides, strict=True):
            convolution = Conv2d(fan_in, fan_out, kernel, stride, scale=scale)
            shape = _output_shape([*layers, convolution], obs_space)
            layers += _layer(convolution, shape, activation, layer_norm)
            fan_in, scale = fan_out, 1.0
        layers += _to_features(layers, obs_space, hidden, activation, layer_norm)
        super().__init__(*layers)
        self.out_features = hidden


class ImpalaCNN(Torso):
    """The deep residual network of Espeholt et al. (2018), "IMPALA", arXiv:1802.01561, Fig. 3 (right)."""

    def __init__(
        self, obs_space: spaces.Space, channels: list[int], hidden: int, activation: Activation, layer_norm: bool
    ) -> None:
        _check_sizes("channels", channels)
        _check_sizes("hidden", [hidden])
        image = Image(obs_space)
        layers: list[nn.Module] = [image]
        fan_in, scale = image.channels, image.scale
        for fan_out in channels:
            convolution = orthogonal(Conv2d(fan_in, fan_out, 3, padding=1, scale=scale))
            layers += [convolution, nn.MaxPool2d(3, stride=2, padding=1)]
            shape = _output_shape(layers, obs_space)
            layers += [Residual(shape, activation, layer_norm), Residual(shape, activation, layer_norm)]
            fan_in, scale = fan_out, 1.0
        layers += _activated(_output_shape(layers, obs_space), activation, layer_norm)
        layers += _to_features(layers, obs_space, hidden, activation, layer_norm)
        super().__init__(*layers)
        self.out_features = hidden


class Residual(nn.Module):
    """x + conv(act(conv(act(x)))), both 3 x 3, on images [C, H, W] = shape."""

    def __init__(self, shape: tuple[int, ...], activation: Activation, layer_norm: bool) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            *_activated(shape, activation, layer_norm),
            orthogonal(nn.Conv2d(shape[0], shape[0], 3, padding=1)),
            *_activated(shape, activation, layer_norm),
            orthogonal(nn.Conv2d(shape[0], shape[0], 3, padding=1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class OneHot(nn.Module):
    """Integers [B] -> one-hot float [B, n], counted from `start`."""

    def __init__(self, n: int, start: int) -> None:
        super().__init__()
        self.n, self.start = n, start

    def forward(self, obs: Tensor) -> Tensor:
        return nn.functional.one_hot(obs.long() - self.start, self.n).float()


class Flat(nn.Module):
    """[B, *obs] -> float [B, D], bytes scaled to [0, 1]."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, obs: Tensor) -> Tensor:
        obs = obs.flatten(1).float()
        return obs if self.scale == 1.0 else obs * self.scale


def _check_sizes(key: str, sizes: list[int]) -> None:
    if any(size < 1 for size in sizes):
        raise ValueError(f"network.{key}={sizes} is out of range: expected sizes of at least 1")


def entry(obs_space: spaces.Space) -> nn.Module:
    """Return the layer that makes vectors of observations: [B, *obs] -> float [B, D]."""
    if isinstance(obs_space, spaces.Discrete):
        return OneHot(int(obs_space.n), int(obs_space.start))
    if isinstance(obs_space, spaces.Box):
        return Flat(1 / 255 if obs_space.dtype == "uint8" else 1.0)
    raise ValueError(f"network=mlp takes Box and Discrete observations, not {type(obs_space).__name__}")


def _to_features(
    convolutions: Sequence[nn.Module], obs_space: spaces.Space, hidden: int, activation: Activation, layer_norm: bool
) -> list[nn.Module]:
    """Return flatten, linear and activation, sized by a dry run through the convolutions."""
    size = math.prod(_output_shape(convolutions, obs_space))
    return [Flatten(), *_layer(nn.Linear(size, hidden), (hidden,), activation, layer_norm)]


def _layer(weights: Layer, shape: tuple[int, ...], activation: Activation, layer_norm: bool) -> list[nn.Module]:
    """Return weights and activation, with a layer norm over `shape` between them if asked."""
    return [orthogonal(weights), *_activated(shape, activation, layer_norm)]


def _activated(shape: tuple[int, ...], activation: Activation, layer_norm: bool) -> list[nn.Module]:
    """Return the activation, after the layer norm of Ba et al. (2016) over `shape` if asked."""
    norm: list[nn.Module] = [nn.LayerNorm(shape)] if layer_norm else []
    return [*norm, ACTIVATIONS[activation]()]


def _output_shape(layers: Sequence[nn.Module], obs_space: spaces.Space) -> tuple[int, ...]:
    with torch.no_grad():
        return tuple(nn.Sequential(*layers)(torch.zeros(1, *(obs_space.shape or ()))).shape[1:])
