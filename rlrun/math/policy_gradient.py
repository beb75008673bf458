"""Losses whose gradient is a policy gradient. N steps."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
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


class ClippedLoss(NamedTuple):
    """The loss of PPO without its entropy, to be differentiated once, and what it is made of, given numbers."""

    loss: Tensor
    policy_loss: Tensor
    value_loss: Tensor
    log_ratio: Tensor  # log pi(a|s) - log pi_old(a|s), of each step


def clipped_loss(
    log_prob: Tensor,
    value: Tensor,
    data: Mapping[str, Tensor],
    *,
    clip_range: float,
    clip_value: bool,
    value_coef: float,
) -> ClippedLoss:
    """Return -L^CLIP + value_coef L^VF, Schulman et al. (2017), arXiv:1707.06347, Eq. (9).

    L^CLIP is the mean of min(r A, clip(r, 1 - clip_range, 1 + clip_range) A), Eq. (7), where r = pi(a|s) / pi_old(a|s),
    and L^VF half the mean squared error of V; with `clip_value`, as in Baselines, each step's is the larger one of V's
    and of old V's after no more than clip_range towards V.

    log_prob, value: [N], or more dimensions, N > 0, to be differentiated; data: old_log_prob, advantage, target and
    old_value of that shape, given numbers. One operation, since torch takes longer to begin each of the twenty that it
    is made of, and of their derivatives, than to compute it; on the CPU they are NumPy's.
    """
    given = [data[name] for name in ("old_log_prob", "advantage", "old_value", "target")]
    return ClippedLoss(*_ClippedLoss.apply(log_prob, value, given, clip_range, clip_value, value_coef))


class _ClippedLoss(torch.autograd.Function):
    @staticmethod
    @np.errstate(all="ignore")  # what is not a number is reported where it is looked at
    def forward(
        ctx: Any,
        log_prob: Tensor,
        value: Tensor,
        given: list[Tensor],
        clip_range: float,
        clip_value: bool,
        value_coef: float,
    ) -> tuple[Tensor, ...]:
        xp = _arithmetic(log_prob.device)
        tensors = [tensor.detach() for tensor in (log_prob, value, *given)]
        lp, v, old_lp, advantage, old_v, target = [t.numpy() for t in tensors] if xp is np else tensors
        count = log_prob.numel()

        log_ratio = lp - old_lp
        ratio = xp.exp(log_ratio)
        gain, clipped_gain = ratio * advantage, xp.clip(ratio, 1 - clip_range, 1 + clip_range) * advantage
        policy_loss = -xp.minimum(gain, clipped_gain).sum() / count
        # Where r A is the smaller one, its derivative by log r is r A; where it is the clipped one, that is flat. NaNs
        # are kept: 0 times NaN is one.
        by_log_prob = xp.where(gain > clipped_gain, 0.0 * gain, gain) / -count

        error = v - target
        if clip_value:
            change = v - old_v
            near_old = old_v + xp.clip(change, -clip_range, clip_range) - target
            flat = xp.abs(change) > clip_range
            far = error * error < near_old * near_old
            slope = xp.where(far, xp.where(flat, 0.0 * error, near_old), error)
            error = xp.where(far, near_old, error)
        else:
            slope = error
        value_loss = 0.5 * (error * error).sum() / count

        ctx.derivatives = by_log_prob, slope * (value_coef / count)
        out = [policy_loss + value_coef * value_loss, policy_loss, value_loss]
        if xp is np:
            out = [torch.tensor(number, dtype=log_prob.dtype) for number in out]
            log_ratio = torch.from_numpy(log_ratio)
        ctx.mark_non_differentiable(*out[1:], log_ratio)
        return *out, log_ratio

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        by_log_prob, by_value = map(torch.as_tensor, ctx.derivatives)
        return by_log_prob * grad, by_value * grad, None, None, None, None


def _arithmetic(device: torch.device) -> Any:
    """Return the library that calculates with what lies on this device."""
    return np if device.type == "cpu" else torch
