"""Noise that explores for longer than a step."""

from math import sqrt

import torch
from torch import Tensor


def ornstein_uhlenbeck(previous: Tensor | None, white: Tensor, first: Tensor, correlation: float) -> Tensor:
    """Return the next value of an Ornstein-Uhlenbeck process of variance 1, [B, D].

    Uhlenbeck and Ornstein (1930), "On the Theory of the Brownian Motion", seen at steps of equal length: neighbours
    in time have the given correlation in [0, 1), those n steps apart correlation^n. It begins anew with an episode.

    previous: [B, D], the value before, None at the start; white: [B, D] standard normal; first: [B] bool.
    """
    if previous is None:
        return white
    following = correlation * previous.to(white.device) + sqrt(1 - correlation**2) * white
    return torch.where(first.unsqueeze(-1), white, following)
