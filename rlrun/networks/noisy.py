"""Noisy networks: exploration by learned noise on the weights.

    y = (mu_w + sigma_w * eps_w) x + mu_b + sigma_b * eps_b            (9)
    eps_w = f(eps_out) f(eps_in)^T,  f(x) = sgn(x) sqrt(|x|)           (10), (11): factorised

Fortunato et al. (2018), "Noisy Networks for Exploration", arXiv:1706.10295.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class NoisyLinear(nn.Module):
    """A linear layer with factorised Gaussian noise, drawn by `resample` and off where `quiet` is set."""

    def __init__(self, in_features: int, out_features: int, sigma: float) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        bound = 1 / math.sqrt(in_features)  # Section 3.2
        self.weight = nn.Parameter(torch.empty(out_features, in_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(out_features).uniform_(-bound, bound))
        self.weight_sigma = nn.Parameter(torch.full((out_features, in_features), sigma * bound))
        self.bias_sigma = nn.Parameter(torch.full((out_features,), sigma * bound))
        self.noise_in: Tensor
        self.noise_out: Tensor
        self.register_buffer("noise_in", torch.zeros(in_features))
        self.register_buffer("noise_out", torch.zeros(out_features))
        self.quiet = False

    def forward(self, x: Tensor) -> Tensor:
        if self.quiet:
            return nn.functional.linear(x, self.weight, self.bias)
        weight = self.weight + self.weight_sigma * torch.outer(self.noise_out, self.noise_in)
        return nn.functional.linear(x, weight, self.bias + self.bias_sigma * self.noise_out)

    def resample(self, generator: torch.Generator) -> None:
        """Draw new noise."""
        for noise in (self.noise_in, self.noise_out):
            noise.normal_(generator=generator)
            noise.copy_(noise.sign() * noise.abs().sqrt())


def resample(module: nn.Module, generator: torch.Generator) -> None:
    """Draw new noise for all noisy layers of a network."""
    for layer in module.modules():
        if isinstance(layer, NoisyLinear):
            layer.resample(generator)


@contextmanager
def quiet(module: nn.Module) -> Iterator[None]:
    """Run the block without the noise of a network: evaluation plays the mean weights."""
    layers = [layer for layer in module.modules() if isinstance(layer, NoisyLinear)]
    for layer in layers:
        layer.quiet = True
    try:
        yield
    finally:
        for layer in layers:
            layer.quiet = False
