"""Losses whose gradient is a policy gradient. N steps."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlrun.math.distributions import Distribution


def actor_critic_loss(
    policy: Distribution,
    value: Tensor,
    action: Tensor,
    advantage: Tensor,
    target: Tensor,
    *,
    entropy_coef: float,
    value_coef: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of advantage actor-critic, and its parts for the log.

    Mnih et al. (2016), arXiv:1602.01783, Section 4: the gradient of log pi(a|s) A + beta H(pi(s)), and of the squared
    error of V(s). Means over the steps, as in Baselines' a2c, where the paper has sums: so a learning rate does not
    depend on how many there are.

    policy and value: [N], to be differentiated; action: [N, *act]; advantage, target: [N], given numbers. Sequences,
    [B, T] in the place of [N], do as well.
    """
    policy_loss = -(policy.log_prob(action) * advantage).mean()
    value_loss = (target - value).square().mean()
    entropy = policy.entropy().mean()
    loss = policy_loss - entropy_coef * entropy + value_coef * value_loss
    return loss, {
        "train/loss": loss.detach(),
        "train/policy_loss": policy_loss.detach(),
        "train/value_loss": value_loss.detach(),
        "train/entropy_loss": -entropy.detach(),
    }


def clipped_surrogate(log_ratio: Tensor, advantage: Tensor, clip_range: float) -> Tensor:
    """Return -L^CLIP: minus the mean of min(r A, clip(r, 1 - clip_range, 1 + clip_range) A), r = exp(log_ratio).

    Schulman et al. (2017), arXiv:1707.06347, Eq. (7). log_ratio: log pi(a|s) - log pi_old(a|s), of any shape, to be
    differentiated once; advantage: of the same shape, given numbers.
    """
    out: Tensor = _ClippedSurrogate.apply(log_ratio, advantage, clip_range)
    return out


class _ClippedSurrogate(torch.autograd.Function):
    """One operation, since the seven that it is made of take three times as long, forward and back.

    Where r A is the smaller one, its derivative by log r is r A; where it is the clipped one, that is flat.
    """

    @staticmethod
    def forward(ctx: Any, log_ratio: Tensor, advantage: Tensor, clip_range: float) -> Tensor:
        ratio = log_ratio.exp()
        gain, clipped_gain = ratio * advantage, ratio.clamp(1 - clip_range, 1 + clip_range) * advantage
        ctx.save_for_backward(torch.where(gain > clipped_gain, 0.0, gain).div_(-gain.numel()))
        return torch.min(gain, clipped_gain).mean().neg_()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (derivative,) = ctx.saved_tensors
        return derivative * grad, None, None
