"""Distributions of returns. M minibatch, A actions, Z atoms or quantiles."""

import torch
from torch import Tensor


def categorical_projection(
    probabilities: Tensor, reward: Tensor, discount: Tensor, v_min: float, v_max: float
) -> Tensor:
    """Return the distribution of reward + discount * Z on the atoms of Z, [M, Z].

    Bellemare et al. (2017), "A Distributional Perspective on Reinforcement Learning", arXiv:1707.06887,
    Algorithm 1: each atom moves, and its mass goes to its two new neighbours in proportion to nearness.

    probabilities: [M, Z] over atoms evenly spaced from v_min to v_max; reward, discount: [M].
    """
    num_atoms = probabilities.shape[-1]
    atoms = torch.linspace(v_min, v_max, num_atoms, device=probabilities.device)
    moved = (reward[:, None] + discount[:, None] * atoms).clamp(v_min, v_max)
    place = (moved - v_min) * ((num_atoms - 1) / (v_max - v_min))  # [M, Z], in units of the spacing
    lower = place.long()
    to_upper = place - lower
    upper = (lower + 1).clamp(max=num_atoms - 1)  # of the last atom the upper neighbour gets nothing
    projected = torch.zeros_like(probabilities)
    projected.scatter_add_(1, lower, probabilities * (1 - to_upper))
    return projected.scatter_add_(1, upper, probabilities * to_upper)


def quantile_huber_loss(quantiles: Tensor, targets: Tensor, taus: Tensor, kappa: float) -> Tensor:
    """Return the quantile regression loss of each sample, [M].

    Dabney et al. (2018), "Distributional Reinforcement Learning with Quantile Regression", arXiv:1710.10044,
    Eq. (10): summed over the N predicted quantiles, averaged over the N' samples of the target. kappa is
    where the squared error turns into the absolute one; 0 leaves the absolute one alone.

    quantiles: [M, N]; targets: [M, N']; taus: [M, N] or [N], the probabilities of the quantiles.
    """
    error = targets[:, None, :] - quantiles[:, :, None]  # [M, N, N']
    weight = (taus[..., None] - (error.detach() < 0).float()).abs()
    if kappa == 0:
        return (weight * error.abs()).mean(2).sum(1)
    huber = torch.where(error.abs() <= kappa, 0.5 * error.square(), kappa * (error.abs() - 0.5 * kappa))
    return (weight * huber / kappa).mean(2).sum(1)
