"""Action distributions whose draws come from a generator that the caller owns.

`torch.distributions` samples from the global generator only, which training and evaluation would share.
B is any leading shape.
"""

import math
from collections.abc import Sequence
from typing import Protocol, Self

import torch
from torch import Tensor
from torch.nn.functional import softplus

from rlrun.seeding import drawn


class Distribution(Protocol):
    def noise(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw what, added to the distribution's parameters, makes an action of it: see `perturbed`."""

    def perturbed(self, noise: Tensor) -> Tensor:
        """Return the actions that such noise leads to."""

    def sample(self, generator: torch.Generator | None = None) -> Tensor: ...
    def mode(self) -> Tensor: ...
    def log_prob(self, action: Tensor) -> Tensor: ...
    def entropy(self) -> Tensor: ...
    def kl(self, other: Self) -> Tensor:
        """Return D_KL(self || other), [B]; other is of the same kind."""


class Categorical:
    """One of A actions. logits: [B, A]; actions: [B] int64."""

    def __init__(self, logits: Tensor) -> None:
        self.log_probs = torch.log_softmax(logits, dim=-1)

    def noise(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw Gumbel noise, -log E, E ~ Exp(1), [B, A].

        The index of the largest log p_i + G_i is distributed as p: Gumbel (1954). It takes half the time of
        torch.multinomial, and does not depend on p, so that it may be drawn beforehand.
        """
        return drawn(self.log_probs, generator, lambda empty: empty.exponential_(generator=generator)).log_().neg_()

    def perturbed(self, noise: Tensor) -> Tensor:
        return (self.log_probs + noise).argmax(dim=-1)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return self.perturbed(self.noise(generator))

    def mode(self) -> Tensor:
        return self.log_probs.argmax(dim=-1)

    def log_prob(self, action: Tensor) -> Tensor:
        return self.log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        return -(self.log_probs.exp() * self.log_probs).sum(dim=-1)

    def kl(self, other: "Categorical") -> Tensor:
        return (self.log_probs.exp() * (self.log_probs - other.log_probs)).sum(dim=-1)


class MultiCategorical:
    """Several independent choices. logits: [B, A_1 + ... + A_n]; actions: [B, n] int64."""

    def __init__(self, logits: Tensor, sizes: Sequence[int]) -> None:
        self.parts = [Categorical(part) for part in logits.split(list(sizes), dim=-1)]

    def noise(self, generator: torch.Generator | None = None) -> Tensor:
        return torch.cat([part.noise(generator) for part in self.parts], dim=-1)

    def perturbed(self, noise: Tensor) -> Tensor:
        noises = noise.split([part.log_probs.shape[-1] for part in self.parts], dim=-1)
        return torch.stack([part.perturbed(own) for part, own in zip(self.parts, noises, strict=True)], dim=-1)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return self.perturbed(self.noise(generator))

    def mode(self) -> Tensor:
        return torch.stack([part.mode() for part in self.parts], dim=-1)

    def log_prob(self, action: Tensor) -> Tensor:
        return sum_of([part.log_prob(a) for part, a in zip(self.parts, action.unbind(-1), strict=True)])

    def entropy(self) -> Tensor:
        return sum_of([part.entropy() for part in self.parts])

    def kl(self, other: "MultiCategorical") -> Tensor:
        return sum_of([part.kl(others) for part, others in zip(self.parts, other.parts, strict=True)])


class DiagGaussian:
    """A Gaussian with independent coordinates. mean, log_std: [B, D]; actions: [B, D] float."""

    def __init__(self, mean: Tensor, log_std: Tensor) -> None:
        self.mean, self.log_std = mean, log_std.expand_as(mean)

    def noise(self, generator: torch.Generator | None = None) -> Tensor:
        return drawn(self.mean, generator, lambda empty: empty.normal_(generator=generator)) * self.log_std.exp()

    def perturbed(self, noise: Tensor) -> Tensor:
        return self.mean + noise

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return self.perturbed(self.noise(generator))

    def mode(self) -> Tensor:
        return self.mean

    def log_prob(self, action: Tensor) -> Tensor:
        z = (action - self.mean) * (-self.log_std).exp()
        return (-0.5 * z.square() - self.log_std - 0.5 * math.log(2 * math.pi)).sum(dim=-1)

    def entropy(self) -> Tensor:
        return (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(dim=-1)

    def kl(self, other: "DiagGaussian") -> Tensor:
        log_ratio = other.log_std - self.log_std
        distance = (self.mean - other.mean) * (-other.log_std).exp()
        return (log_ratio + 0.5 * ((-2 * log_ratio).exp() + distance.square() - 1)).sum(dim=-1)


class TanhGaussian:
    """A Gaussian squashed into a box: a = center + scale tanh(u), u ~ N(mean, std^2).

    mean, log_std: [B, D]; center, scale: [D]; actions: [B, D], inside the box up to rounding.
    Densities are those of actions in the units of the box. There is no closed form of the entropy.
    """

    def __init__(self, mean: Tensor, log_std: Tensor, center: Tensor, scale: Tensor) -> None:
        self.mean, self.log_std, self.center, self.scale = mean, log_std, center, scale

    def mode(self) -> Tensor:
        """Return the squashed mean, [B, D]: the median of each dimension rather than the action of largest density."""
        return self.squash(self.mean)

    def sample(self, noise: Tensor) -> Tensor:
        """Return the actions [B, D] that standard normal noise [B, D] stands for."""
        return self.squash(self.mean + noise * self.log_std.exp())

    def sample_with_log_prob(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return the actions [B, D] of standard normal noise and log pi(a|s) [B], both differentiable.

        Haarnoja et al. (2018), "Soft Actor-Critic Algorithms and Applications", arXiv:1812.05905, Appendix C, here
        with the scale. log(1 - tanh^2 u) = 2 (log 2 - u - log(1 + exp(-2u))) is exact where 1 - tanh^2 u rounds to 0.
        """
        u = self.mean + noise * self.log_std.exp()
        gaussian = -0.5 * noise.square() - self.log_std - 0.5 * math.log(2 * math.pi)
        log_slope = 2 * (math.log(2) - u - softplus(-2 * u)) + self.scale.log()
        return self.squash(u), (gaussian - log_slope).sum(dim=-1)

    def squash(self, u: Tensor) -> Tensor:
        return torch.addcmul(self.center, u.tanh(), self.scale)


def sum_of(tensors: Sequence[Tensor]) -> Tensor:
    """Return the element-wise sum of tensors of one shape."""
    return torch.stack(list(tensors)).sum(dim=0)
