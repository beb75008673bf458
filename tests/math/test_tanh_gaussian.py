import math

import pytest
import torch
from torch import Tensor
from torch import distributions as reference

from rlrun.math.distributions import TanhGaussian

# mean and deviation before squashing, low and high of the box
CASES = [
    (0.0, 1.0, -1.0, 1.0),
    (0.7, 0.3, -2.0, 2.0),
    (-1.5, 2.0, 0.0, 1.0),
    (3.0, 0.5, -0.4, 0.4),
    (0.0, 2.5, -30.0, 10.0),
]


def one_dimension(mean: float, std: float, low: float, high: float, count: int = 1) -> TanhGaussian:
    """Return the distribution of actions [count, 1], in float64."""
    full = torch.full((count, 1), 1.0, dtype=torch.float64)
    center, scale = (torch.tensor([x], dtype=torch.float64) for x in ((high + low) / 2, (high - low) / 2))
    return TanhGaussian(mean * full, math.log(std) * full, center, scale)


@pytest.mark.parametrize("case", CASES)
def test_the_density_integrates_to_the_probabilities_of_the_gaussian_and_to_one(
    case: tuple[float, float, float, float],
) -> None:
    noise = torch.linspace(-8, 8, 400_001, dtype=torch.float64).unsqueeze(-1)
    action, log_prob = one_dimension(*case, count=len(noise)).sample_with_log_prob(noise)
    below = torch.cumulative_trapezoid(log_prob.exp(), action.squeeze(-1))  # P(action <= a), in the box's units
    torch.testing.assert_close(below, reference.Normal(0.0, 1.0).cdf(noise[1:, 0]), atol=1e-6, rtol=0)
    assert float(below[-1]) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_the_log_prob_is_that_of_the_naive_formula(case: tuple[float, float, float, float]) -> None:
    mean, std, low, high = case
    noise = torch.linspace(-2, 2, 101, dtype=torch.float64).unsqueeze(-1)
    _, log_prob = one_dimension(*case, count=101).sample_with_log_prob(noise)
    u = mean + std * noise.squeeze(-1)
    slope = (high - low) / 2 * (1 - u.tanh().square())
    expected = reference.Normal(mean, std).log_prob(u) - slope.log()
    visible = slope > 1e-9  # where the naive one has digits left
    torch.testing.assert_close(log_prob[visible], expected[visible], atol=1e-5, rtol=1e-5)


def random_policy(dims: int = 3, rows: int = 6) -> TanhGaussian:
    generator = torch.Generator().manual_seed(0)
    mean, log_std = (torch.randn(rows, dims, generator=generator, dtype=torch.float64) for _ in range(2))
    return TanhGaussian(mean, log_std, torch.zeros(dims).double(), torch.ones(dims).double())


def test_dimensions_are_independent() -> None:
    policy, noise = random_policy(), torch.randn(6, 3, dtype=torch.float64)
    _, joint = policy.sample_with_log_prob(noise)
    each = [
        TanhGaussian(
            policy.mean[:, [d]], policy.log_std[:, [d]], policy.center[[d]], policy.scale[[d]]
        ).sample_with_log_prob(noise[:, [d]])[1]
        for d in range(3)
    ]
    torch.testing.assert_close(joint, torch.stack(each).sum(0))


def test_in_a_box_k_times_as_wide_the_density_is_k_times_as_low_in_each_dimension() -> None:
    policy, noise = random_policy(), torch.randn(6, 3, dtype=torch.float64)
    wide = TanhGaussian(policy.mean, policy.log_std, policy.center, 5 * policy.scale)
    action, log_prob = policy.sample_with_log_prob(noise)
    wide_action, wide_log_prob = wide.sample_with_log_prob(noise)
    torch.testing.assert_close(wide_action, 5 * action)
    torch.testing.assert_close(wide_log_prob, log_prob - 3 * math.log(5))


@pytest.mark.parametrize("mean", [-1e4, -100.0, -20.0, 20.0, 100.0, 1e4])
def test_extreme_actions_have_finite_densities_and_gradients(mean: float) -> None:
    mean_, log_std = torch.full((4, 2), mean, requires_grad=True), torch.tensor([-20.0, 2.0], requires_grad=True)
    policy = TanhGaussian(mean_, log_std.expand(4, 2), torch.tensor([1.0, 0.0]), torch.tensor([3.0, 0.5]))
    action, log_prob = policy.sample_with_log_prob(torch.zeros(4, 2))
    gaussian = 20.0 - 2.0 - math.log(2 * math.pi)
    slopes = 2 * (2 * math.log(2) - 2 * abs(mean)) + math.log(3.0) + math.log(0.5)  # log(1 - tanh^2 u) far out
    assert float(log_prob[0].detach()) == pytest.approx(gaussian - slopes, rel=1e-5)
    (action.sum() + log_prob.sum()).backward()
    assert mean_.grad is not None
    assert log_std.grad is not None
    assert bool(torch.isfinite(log_prob).all() & mean_.grad.isfinite().all() & log_std.grad.isfinite().all())
    assert bool((action[:, 0] >= -2).all() & (action[:, 0] <= 4).all() & (action[:, 1].abs() <= 0.5).all())


def test_gradients_are_those_of_the_function_of_mean_deviation_and_noise() -> None:
    noise = torch.randn(5, 2, dtype=torch.float64)
    center, scale = torch.tensor([1.0, -2.0]).double(), torch.tensor([0.5, 3.0]).double()

    def draw(mean: Tensor, log_std: Tensor) -> tuple[Tensor, Tensor]:
        return TanhGaussian(mean, log_std, center, scale).sample_with_log_prob(noise)

    inputs = tuple(torch.randn(5, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(draw, inputs)


def test_no_noise_is_the_mode_and_both_ways_to_draw_agree() -> None:
    policy, noise = random_policy(), torch.randn(6, 3, dtype=torch.float64)
    assert torch.equal(policy.sample(torch.zeros_like(noise)), policy.mode())
    assert torch.equal(policy.sample(noise), policy.sample_with_log_prob(noise)[0])
    torch.testing.assert_close(policy.mode(), policy.mean.tanh())
