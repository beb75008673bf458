"""Returns and advantages over a rollout. T time, B environments."""

import torch
from torch import Tensor


def next_values(value: Tensor, last_value: Tensor, final_value: Tensor, final_index: Tensor) -> Tensor:
    """Return V(s_{t+1}) for each step of a rollout, [T, B].

    The next row of `value` is the value of the observation that followed, except where an episode was
    cut short: there the row holds the first observation of the next episode, and the value to bootstrap
    from is that of the last observation of the old one.

    value: [T, B]; last_value: [B], V of the observation after the rollout; final_value: [K], V of the
    last observation of the K truncated episodes, which ended at the flat positions final_index: [K].
    """
    following = torch.cat([value[1:], last_value.unsqueeze(0)])
    return following.view(-1).index_copy(0, final_index, final_value).view_as(value)


def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    *,
    gamma: float,
    gae_lambda: float,
) -> Tensor:
    """Return the generalised advantage estimate, [T, B].

    Schulman et al. (2016), "High-Dimensional Continuous Control Using Generalized Advantage Estimation",
    arXiv:1506.02438, Eq. (16). Termination stops the bootstrap; truncation only stops the sum, because
    the state after it is worth V, not zero.

    reward, value, next_value: [T, B] float; terminated, truncated: [T, B] bool.
    """
    td_error = reward + gamma * next_value * ~terminated - value
    discount = gamma * gae_lambda * ~(terminated | truncated)
    advantage = [torch.zeros_like(reward[0])]  # the last one first
    for error, factor in zip(reversed(td_error.unbind()), reversed(discount.unbind()), strict=True):
        advantage.append(torch.addcmul(error, factor, advantage[-1]))
    return torch.stack(advantage[:0:-1])


def advantages(
    batch: dict[str, Tensor], last_value: Tensor, final_value: Tensor, *, gamma: float, gae_lambda: float
) -> Tensor:
    """Return `gae` over what a collector returned, which must hold the values under "value"; others as in next_values.

    It is a mean of the n-step advantages, with gae_lambda = 1 the longest of them.
    """
    value = batch["value"]
    return gae(
        batch["reward"],
        value,
        next_values(value, last_value, final_value, batch["final_index"]),
        batch["terminated"],
        batch["truncated"],
        gamma=gamma,
        gae_lambda=gae_lambda,
    )


def explained_variance(prediction: Tensor, target: Tensor) -> Tensor:
    """Return 1 - Var(target - prediction) / Var(target): 1 is perfect, 0 no better than the mean; NaN of one number."""
    if target.numel() < 2:
        return torch.full((), torch.nan, device=target.device)
    return 1 - (target - prediction).var() / target.var().clamp(min=1e-8)


def lambda_returns(
    reward: Tensor, next_value: Tensor, terminated: Tensor, truncated: Tensor, *, gamma: float, lam: float
) -> Tensor:
    """Return the lambda-returns, [T, B].

    Sutton and Barto (2018), "Reinforcement Learning", Section 12.1, in the recursive form of Eq. (12.18).
    After a truncation, and after the last step, the return goes on with the value of what followed.

    reward, next_value: [T, B] float; terminated, truncated: [T, B] bool.
    """
    returns = torch.empty_like(reward)
    following = next_value[-1]
    for t in range(len(reward) - 1, -1, -1):
        mixed = torch.where(truncated[t], next_value[t], lam * following + (1 - lam) * next_value[t])
        returns[t] = following = reward[t] + gamma * mixed * ~terminated[t]
    return returns
