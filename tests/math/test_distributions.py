import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch import distributions as reference

from rlrun.math.distributions import Categorical, DiagGaussian, Distribution, MultiCategorical, sum_of

SIZES = [3, 2, 4]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def categorical() -> Distribution:
    return Categorical(torch.randn(6, 5, generator=seeded()))


def multi_categorical() -> Distribution:
    return MultiCategorical(torch.randn(6, sum(SIZES), generator=seeded()), SIZES)


def diag_gaussian() -> Distribution:
    return DiagGaussian(torch.randn(6, 3, generator=seeded()), torch.tensor([-1.0, 0.0, 0.5]))


ALL = [categorical, multi_categorical, diag_gaussian]


def chi_square(counts: Tensor, probabilities: Tensor) -> float:
    expected = probabilities * counts.sum()
    return float(((counts - expected).square() / expected).sum())


@pytest.mark.parametrize("seed", range(3))
def test_categorical_samples_with_the_probabilities_of_its_logits(seed: int) -> None:
    logits = torch.tensor([2.0, 0.0, -1.0, 1.0, -3.0])
    draws = Categorical(logits.expand(100_000, 5)).sample(seeded(seed))
    # 18.47 is the .999 quantile of chi-square with 4 degrees of freedom.
    assert chi_square(draws.bincount(minlength=5).double(), logits.double().softmax(0)) < 18.47


def test_categorical_never_draws_an_impossible_action() -> None:
    logits = torch.tensor([0.0, -math.inf, 0.0]).expand(10_000, 3)
    assert set(Categorical(logits).sample(seeded()).tolist()) == {0, 2}


def test_multi_categorical_samples_its_parts_independently() -> None:
    logits = torch.tensor([1.0, 0.0, 0.5, -0.5])
    draws = MultiCategorical(logits.expand(100_000, 4), [2, 2]).sample(seeded())
    joint = torch.outer(logits[:2].double().softmax(0), logits[2:].double().softmax(0)).flatten()
    # 16.27 is the .999 quantile of chi-square with 3 degrees of freedom.
    assert chi_square((2 * draws[:, 0] + draws[:, 1]).bincount(minlength=4).double(), joint) < 16.27


def test_diag_gaussian_samples_have_its_mean_and_deviation() -> None:
    mean, std = torch.tensor([3.0, -1.0]), torch.tensor([0.5, 2.0])
    draws = DiagGaussian(mean.expand(100_000, 2), std.log()).sample(seeded())
    torch.testing.assert_close(draws.mean(0), mean, atol=0.03, rtol=0)
    torch.testing.assert_close(draws.std(0), std, atol=0.03, rtol=0)


def test_categorical_agrees_with_torch() -> None:
    logits = torch.randn(7, 5)
    ours, theirs = Categorical(logits), reference.Categorical(logits=logits)
    action = theirs.sample()
    torch.testing.assert_close(ours.log_prob(action), theirs.log_prob(action))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    assert torch.equal(ours.mode(), theirs.mode)


def test_multi_categorical_agrees_with_torch_part_by_part() -> None:
    logits = torch.randn(7, sum(SIZES))
    ours = MultiCategorical(logits, SIZES)
    parts = [reference.Categorical(logits=part) for part in logits.split(SIZES, dim=-1)]
    action = torch.stack([part.sample() for part in parts], dim=-1)
    log_prob = sum_of([part.log_prob(action[:, i]) for i, part in enumerate(parts)])
    torch.testing.assert_close(ours.log_prob(action), log_prob)
    torch.testing.assert_close(ours.entropy(), sum_of([part.entropy() for part in parts]))
    assert torch.equal(ours.mode(), torch.stack([part.mode for part in parts], dim=-1))


def test_diag_gaussian_agrees_with_torch() -> None:
    mean, log_std = torch.randn(7, 3), torch.randn(3)
    ours = DiagGaussian(mean, log_std)
    theirs = reference.Independent(reference.Normal(mean, log_std.exp().expand_as(mean)), 1)
    action = theirs.sample()
    torch.testing.assert_close(ours.log_prob(action), theirs.log_prob(action))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    assert torch.equal(ours.mode(), mean)


@pytest.mark.parametrize("make", ALL)
def test_samples_depend_on_the_given_generator_alone(make: Callable[[], Distribution]) -> None:
    torch.manual_seed(1)
    first = make().sample(seeded(5))
    before = torch.get_rng_state()
    torch.testing.assert_close(make().sample(seeded(5)), first, atol=0, rtol=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(make().sample(seeded(6)), first)


@pytest.mark.parametrize("make", ALL)
def test_samples_without_a_generator_follow_torchs_global_one(make: Callable[[], Distribution]) -> None:
    torch.manual_seed(1)
    first = make().sample()
    torch.manual_seed(1)
    assert torch.equal(make().sample(), first)


@pytest.mark.parametrize("make", ALL)
def test_sampling_twice_does_not_change_the_distribution(make: Callable[[], Distribution]) -> None:
    distribution = make()
    action, entropy = distribution.mode(), distribution.entropy().clone()
    log_prob = distribution.log_prob(action).clone()
    distribution.sample(seeded())
    distribution.sample(seeded())
    assert torch.equal(distribution.log_prob(action), log_prob)
    assert torch.equal(distribution.entropy(), entropy)


def test_the_gradient_of_categorical_log_prob_is_onehot_minus_probabilities() -> None:
    logits = torch.randn(4, 5, requires_grad=True)
    action = torch.tensor([0, 4, 2, 2])
    Categorical(logits).log_prob(action).sum().backward()
    assert logits.grad is not None
    expected = torch.nn.functional.one_hot(action, 5) - logits.detach().softmax(-1)
    torch.testing.assert_close(logits.grad, expected)


# --- divergence -------------------------------------------------------------------------------------------


def pairs() -> list[tuple[Distribution, Distribution]]:
    """Return two distributions of each kind over the same actions, [6] of them."""
    logits = torch.randn(2, 6, 9, generator=seeded(1))
    log_std = torch.tensor([[-1.0, 0.0, 0.5], [-0.3, 0.4, 0.0]])
    return [
        (Categorical(logits[0]), Categorical(logits[1])),
        (MultiCategorical(logits[0], SIZES), MultiCategorical(logits[1], SIZES)),
        (DiagGaussian(logits[0, :, :3], log_std[0]), DiagGaussian(logits[1, :, :3], log_std[1])),
    ]


def test_the_divergence_of_gaussians_is_the_integral_of_its_definition() -> None:
    p, q = pairs()[2]
    assert isinstance(p, DiagGaussian)
    assert isinstance(q, DiagGaussian)
    x = torch.linspace(-20, 20, 40_001, dtype=torch.float64)

    def log_density(d: DiagGaussian, b: int, i: int) -> Tensor:
        one = DiagGaussian(d.mean[b, i].double(), d.log_std[b, i].double())
        return one.log_prob(x[:, None])

    for b in range(6):
        integral = 0.0
        for i in range(3):  # independent coordinates: the divergences add up
            log_p, log_q = log_density(p, b, i), log_density(q, b, i)
            integral += float(torch.trapezoid(log_p.exp() * (log_p - log_q), x))
        assert float(p.kl(q)[b]) == pytest.approx(integral, rel=1e-4)


def test_the_divergence_of_categoricals_is_the_sum_of_its_definition() -> None:
    p, q = pairs()[0]
    expected = torch.zeros(6)
    for action in range(9):
        log_p, log_q = (d.log_prob(torch.full((6,), action)) for d in (p, q))
        expected += log_p.exp() * (log_p - log_q)
    torch.testing.assert_close(p.kl(q), expected)


def test_the_divergence_of_several_choices_is_the_sum_over_all_combinations() -> None:
    p, q = pairs()[1]
    expected = torch.zeros(6)
    for action in torch.cartesian_prod(*(torch.arange(size) for size in SIZES)):
        log_p, log_q = (d.log_prob(action.expand(6, 3)) for d in (p, q))
        expected += log_p.exp() * (log_p - log_q)
    torch.testing.assert_close(p.kl(q), expected)


@pytest.mark.parametrize(("p", "q"), pairs(), ids=lambda d: type(d).__name__)
def test_the_divergence_is_the_mean_log_ratio_of_samples(p: Distribution, q: Distribution) -> None:
    ratios = torch.stack([p.log_prob(a) - q.log_prob(a) for a in (p.sample(seeded(s)) for s in range(4000))])
    error = ratios.std(0) / math.sqrt(4000)
    assert (ratios.mean(0) - p.kl(q)).abs().lt(4 * error).all()


@pytest.mark.parametrize(("p", "q"), pairs(), ids=lambda d: type(d).__name__)
def test_the_divergence_is_zero_from_itself_and_positive_and_another_one_backwards(
    p: Distribution, q: Distribution
) -> None:
    assert torch.equal(p.kl(p), torch.zeros(6))
    assert (p.kl(q) > 0).all()
    assert not torch.allclose(p.kl(q), q.kl(p))
