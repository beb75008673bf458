"""Losses whose gradient is a policy gradient. N steps."""

from torch import Tensor

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
