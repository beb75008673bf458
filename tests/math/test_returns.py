from typing import Any

import pytest
import torch
from torch import Tensor

from rlrun.math.returns import advantages, explained_variance, gae, lambda_returns, next_values

T, B = 23, 5


def random_rollout(seed: int, p_terminated: float = 0.15, p_truncated: float = 0.15) -> dict[str, Tensor]:
    """Return a rollout in which episodes end in both ways, never in both at once."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def uniform() -> Tensor:
        return torch.rand(T, B, generator=generator)

    terminated = uniform() < p_terminated
    truncated = (uniform() < p_truncated) & ~terminated
    return {
        "reward": normal(T, B),
        "value": normal(T, B),
        "next_value": normal(T, B),
        "terminated": terminated,
        "truncated": truncated,
    }


def naive_gae(rollout: dict[str, Tensor], gamma: float, gae_lambda: float) -> Tensor:
    """Return sum_l (gamma lambda)^l delta_{t+l}, straight from Eq. (16), up to the episode's end."""
    r = {name: tensor.tolist() for name, tensor in rollout.items()}
    advantage = torch.zeros(T, B)
    for b in range(B):
        for t in range(T):
            weight = 1.0
            for k in range(t, T):
                bootstrap = 0.0 if r["terminated"][k][b] else r["next_value"][k][b]
                advantage[t, b] += weight * (r["reward"][k][b] + gamma * bootstrap - r["value"][k][b])
                if r["terminated"][k][b] or r["truncated"][k][b]:
                    break
                weight *= gamma * gae_lambda
    return advantage


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("gamma", "gae_lambda"), [(0.99, 0.95), (0.9, 0.5), (1.0, 1.0), (0.97, 0.0)])
def test_gae_equals_the_sum_of_its_definition(seed: int, gamma: float, gae_lambda: float) -> None:
    rollout = random_rollout(seed)
    expected = naive_gae(rollout, gamma, gae_lambda)
    torch.testing.assert_close(gae(**rollout, gamma=gamma, gae_lambda=gae_lambda), expected, atol=1e-5, rtol=1e-5)


def test_gae_with_lambda_0_is_the_td_error() -> None:
    r = random_rollout(0)
    td_error = r["reward"] + 0.9 * torch.where(r["terminated"], 0.0, r["next_value"]) - r["value"]
    torch.testing.assert_close(gae(**r, gamma=0.9, gae_lambda=0.0), td_error)


def test_gae_with_lambda_1_is_the_monte_carlo_return_minus_the_value() -> None:
    r = random_rollout(1, p_truncated=0.0)
    # With lambda 1 the values between cancel, if V(s_{t+1}) is the next row's value.
    last_value = torch.randn(B)
    r["next_value"] = torch.cat([r["value"][1:], last_value[None]])
    returns = torch.zeros(T, B)
    following = last_value
    for t in reversed(range(T)):
        following = r["reward"][t] + 0.9 * torch.where(r["terminated"][t], 0.0, following)
        returns[t] = following
    torch.testing.assert_close(gae(**r, gamma=0.9, gae_lambda=1.0), returns - r["value"], atol=1e-5, rtol=1e-5)


def one_step(*, terminated: bool, truncated: bool) -> float:
    """Return the advantage of the first of two steps: reward 1, value 0, V(s') 10, then a reward of 100."""
    advantage = gae(
        torch.tensor([[1.0], [100.0]]),
        torch.zeros(2, 1),
        torch.tensor([[10.0], [0.0]]),
        torch.tensor([[terminated], [False]]),
        torch.tensor([[truncated], [False]]),
        gamma=0.5,
        gae_lambda=1.0,
    )
    return float(advantage[0, 0])


def test_gae_bootstraps_through_truncation() -> None:
    assert one_step(terminated=False, truncated=True) == 1.0 + 0.5 * 10.0


def test_gae_does_not_bootstrap_through_termination() -> None:
    assert one_step(terminated=True, truncated=False) == 1.0


def test_gae_sums_on_within_an_episode() -> None:
    assert one_step(terminated=False, truncated=False) == 1.0 + 0.5 * 10.0 + 0.5 * 100.0


def test_no_reward_leaks_over_an_episode_end() -> None:
    before, after = random_rollout(2, 0.0, 0.0), random_rollout(2, 0.0, 0.0)
    for rollout in (before, after):
        rollout["terminated"][10, :2] = True
        rollout["truncated"][10, 2:] = True
    after["reward"][11:] += 100.0
    a, b = (gae(**rollout, gamma=0.99, gae_lambda=0.95) for rollout in (before, after))
    assert torch.equal(a[:11], b[:11])
    assert not torch.equal(a[11:], b[11:])


def test_gae_leaves_its_arguments_alone() -> None:
    rollout = random_rollout(3)
    before = {name: tensor.clone() for name, tensor in rollout.items()}
    gae(**rollout, gamma=0.99, gae_lambda=0.95)
    assert all(torch.equal(before[name], rollout[name]) for name in rollout)


@pytest.mark.parametrize("seed", range(3))
def test_next_values_shifts_by_a_step_except_where_an_episode_was_cut(seed: int) -> None:
    rollout = random_rollout(seed)
    value, truncated, last_value = rollout["value"], rollout["truncated"], torch.randn(B)
    final_index = truncated.flatten().nonzero().flatten()
    final_value = torch.randn(len(final_index))
    waiting: Any = iter(final_value.tolist())
    expected = torch.empty(T, B)
    for t in range(T):
        for b in range(B):
            following = value[t + 1, b] if t + 1 < T else last_value[b]
            expected[t, b] = next(waiting) if truncated[t, b] else following
    before = value.clone()
    assert torch.equal(next_values(value, last_value, final_value, final_index), expected)
    assert torch.equal(value, before)


def test_next_values_without_truncation_needs_no_final_values() -> None:
    value, last_value = torch.randn(T, B), torch.randn(B)
    nothing = torch.empty(0), torch.empty(0, dtype=torch.int64)
    assert torch.equal(next_values(value, last_value, *nothing), torch.cat([value[1:], last_value[None]]))


def test_explained_variance_is_1_for_a_perfect_and_0_for_a_constant_prediction() -> None:
    target = torch.randn(T, B)
    assert float(explained_variance(target, target)) == 1.0
    assert float(explained_variance(torch.full_like(target, 3.0), target)) == pytest.approx(0.0, abs=1e-5)


def test_explained_variance_of_a_constant_target_is_finite() -> None:
    assert torch.isfinite(explained_variance(torch.randn(8), torch.ones(8)))


@pytest.mark.parametrize("seed", range(3))
def test_the_advantages_of_a_collectors_batch_go_on_after_the_rollout_and_after_a_cut(seed: int) -> None:
    batch, last_value = random_rollout(seed), torch.randn(B)
    batch["final_index"] = batch["truncated"].flatten().nonzero().flatten()
    final_value = torch.randn(len(batch["final_index"]))
    next_value = torch.cat([batch["value"][1:], last_value[None]])
    next_value[batch["truncated"]] = final_value
    expected = naive_gae(batch | {"next_value": next_value}, 0.99, 0.9)
    del batch["next_value"]
    actual = advantages(batch, last_value, final_value, gamma=0.99, gae_lambda=0.9)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


# --- lambda-returns ---------------------------------------------------------------------------------------


def n_step_return(r: dict[str, Any], t: int, b: int, n: int, gamma: float) -> tuple[float, bool]:
    """Return the n-step return from step t, and whether the rollout or an episode ended before n steps."""
    total = 0.0
    for k in range(n):
        total += gamma**k * r["reward"][t + k][b]
        if r["terminated"][t + k][b]:
            return total, True
        last = k == n - 1
        if last or r["truncated"][t + k][b] or t + k == T - 1:
            return total + gamma ** (k + 1) * r["next_value"][t + k][b], not last
    raise AssertionError


def naive_lambda_return(r: dict[str, Any], t: int, b: int, gamma: float, lam: float) -> float:
    """Return (1 - lambda) sum_n lambda^(n-1) G_n, where the last return has all the weight that is left."""
    total, weight = 0.0, 1.0
    for n in range(1, T + 1):
        value, ended = n_step_return(r, t, b, n, gamma)
        if ended:
            return total + weight * value
        total += (1 - lam) * weight * value
        weight *= lam
    return total + weight * value


def lambda_return_arguments(rollout: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: rollout[name] for name in ("reward", "next_value", "terminated", "truncated")}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("gamma", "lam"), [(0.99, 0.65), (0.9, 0.95), (1.0, 1.0), (0.97, 0.0)])
def test_lambda_returns_are_the_weighted_sum_of_all_n_step_returns(seed: int, gamma: float, lam: float) -> None:
    rollout = random_rollout(seed)
    actual = lambda_returns(**lambda_return_arguments(rollout), gamma=gamma, lam=lam)
    lists = {name: tensor.tolist() for name, tensor in rollout.items()}
    expected = [[naive_lambda_return(lists, t, b, gamma, lam) for b in range(B)] for t in range(T)]
    torch.testing.assert_close(actual, torch.tensor(expected), atol=1e-4, rtol=1e-4)


def test_lambda_0_is_the_one_step_target() -> None:
    r = random_rollout(0)
    expected = r["reward"] + 0.9 * torch.where(r["terminated"], 0.0, r["next_value"])
    torch.testing.assert_close(lambda_returns(**lambda_return_arguments(r), gamma=0.9, lam=0.0), expected)


def test_lambda_1_is_the_discounted_sum_of_rewards_to_the_end() -> None:
    r = random_rollout(1, p_terminated=0.0, p_truncated=0.0)
    expected, following = torch.zeros(T, B), r["next_value"][-1]
    for t in reversed(range(T)):
        following = r["reward"][t] + 0.9 * following
        expected[t] = following
    torch.testing.assert_close(lambda_returns(**lambda_return_arguments(r), gamma=0.9, lam=1.0), expected)


def test_lambda_returns_are_the_generalised_advantage_plus_the_value() -> None:
    """Where the next value is that of the next row, both are the same sum."""
    r = random_rollout(2, p_truncated=0.0)
    r["next_value"] = torch.cat([r["value"][1:], torch.randn(1, B)])
    advantage = gae(**r, gamma=0.97, gae_lambda=0.8)
    returns = lambda_returns(**lambda_return_arguments(r), gamma=0.97, lam=0.8)
    torch.testing.assert_close(returns, advantage + r["value"], atol=1e-5, rtol=1e-5)


def test_an_episode_that_is_cut_and_terminates_at_once_is_not_bootstrapped() -> None:
    ends = torch.ones(1, 1, dtype=torch.bool)
    returns = lambda_returns(torch.ones(1, 1), torch.full((1, 1), 9.0), ends, ends, gamma=0.9, lam=0.5)
    assert returns.tolist() == [[1.0]]
