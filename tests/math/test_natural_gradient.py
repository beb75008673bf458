from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from rlrun.math.distributions import Categorical, DiagGaussian, Distribution, MultiCategorical
from rlrun.math.natural_gradient import assign, conjugate_gradient, fisher_vector_product, flatten

N = 7  # states


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def positive_definite(size: int, seed: int) -> Tensor:
    root = torch.randn(size, size, generator=generator(seed), dtype=torch.float64)
    return root @ root.T + 0.1 * torch.eye(size, dtype=torch.float64)


@pytest.mark.parametrize("size", [1, 2, 10, 40])
@pytest.mark.parametrize("seed", range(3))
def test_conjugate_gradient_solves_a_positive_definite_system(size: int, seed: int) -> None:
    a, b = positive_definite(size, seed), torch.randn(size, generator=generator(seed + 10), dtype=torch.float64)
    x = conjugate_gradient(lambda v: a @ v, b, num_iterations=5 * size, tolerance=1e-24)
    torch.testing.assert_close(x, torch.linalg.solve(a, b), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_each_iteration_comes_nearer_in_the_norm_of_the_matrix(seed: int) -> None:
    a, b = positive_definite(20, seed), torch.randn(20, generator=generator(seed + 10), dtype=torch.float64)
    solution = torch.linalg.solve(a, b)
    errors = [conjugate_gradient(lambda v: a @ v, b, n, tolerance=0.0) - solution for n in range(12)]
    distances = [float(error @ a @ error) for error in errors]
    assert all(after < before for before, after in pairwise(distances))


@pytest.mark.parametrize("num_eigenvalues", [1, 2, 3])
def test_it_needs_as_many_iterations_as_there_are_different_eigenvalues(num_eigenvalues: int) -> None:
    diagonal = torch.arange(12, dtype=torch.float64) % num_eigenvalues + 1
    calls: list[Tensor] = []

    def product(v: Tensor) -> Tensor:
        calls.append(v)
        return diagonal * v

    b = torch.ones(12, dtype=torch.float64)
    torch.testing.assert_close(conjugate_gradient(product, b, num_iterations=100), b / diagonal)
    assert len(calls) == num_eigenvalues


def test_the_solution_for_zero_is_zero_and_is_not_looked_for() -> None:
    def product(v: Tensor) -> Tensor:
        raise AssertionError

    assert torch.equal(conjugate_gradient(product, torch.zeros(4), num_iterations=10), torch.zeros(4))


class Softmax(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5))

    def forward(self, obs: Tensor) -> Distribution:
        return Categorical(self.layers(obs))


class TwoChoices(Softmax):
    def forward(self, obs: Tensor) -> Distribution:
        return MultiCategorical(self.layers(obs), [2, 3])


class Gaussian(Softmax):
    def __init__(self) -> None:
        super().__init__()
        self.log_std = nn.Parameter(torch.tensor([-0.5, 0.0, 0.3, 0.1, -0.2]))

    def forward(self, obs: Tensor) -> Distribution:
        return DiagGaussian(self.layers(obs), self.log_std)


def make_policy(kind: type[Softmax]) -> tuple[Softmax, Tensor]:
    torch.manual_seed(0)
    return kind().double(), torch.randn(N, 3, dtype=torch.float64)


def score(policy: Softmax, obs: Tensor, action: Tensor) -> Tensor:
    """Return grad log pi(action|obs), [P]."""
    log_prob = policy(obs[None]).log_prob(action[None]).squeeze()
    return flatten(torch.autograd.grad(log_prob, list(policy.parameters())))


def all_actions(kind: type[Softmax]) -> Tensor:
    if kind is TwoChoices:
        return torch.cartesian_prod(torch.arange(2), torch.arange(3))
    return torch.arange(5)


@pytest.mark.parametrize("kind", [Softmax, TwoChoices])
@pytest.mark.parametrize("damping", [0.0, 0.25])
def test_the_product_is_that_with_the_expected_outer_product_of_scores(kind: type[Softmax], damping: float) -> None:
    """F = E[grad log pi grad log pi^T], summed over all states and actions."""
    policy, obs = make_policy(kind)
    fisher = damping * torch.eye(sum(p.numel() for p in policy.parameters()), dtype=torch.float64)
    for state in obs:
        for action in all_actions(kind):
            with torch.no_grad():
                probability = policy(state[None]).log_prob(action[None]).exp().squeeze()
            g = score(policy, state, action)
            fisher += probability * torch.outer(g, g) / N
    torch.testing.assert_close(explicit(policy, obs, damping), fisher, atol=1e-9, rtol=1e-7)


def test_the_product_of_a_gaussian_is_that_with_its_fisher_matrix_in_closed_form() -> None:
    """F = E_s[J^T diag(1 / sigma^2) J] for what moves the means, J their Jacobian, and 2 I for the log sigmas."""
    policy, obs = make_policy(Gaussian)
    weights = [p for name, p in policy.named_parameters() if name != "log_std"]
    variance = (2 * policy.get_parameter("log_std").detach()).exp()
    block = torch.zeros(sum(w.numel() for w in weights), sum(w.numel() for w in weights), dtype=torch.float64)
    for mean in policy.layers(obs):
        jacobian = torch.stack([flatten(torch.autograd.grad(m, weights, retain_graph=True)) for m in mean])
        block += jacobian.T @ torch.diag(1 / variance) @ jacobian / N
    expected = torch.block_diag(2 * torch.eye(5, dtype=torch.float64), block)  # log_std is the first parameter
    torch.testing.assert_close(explicit(policy, obs, 0.0), expected, atol=1e-9, rtol=1e-7)


def test_the_products_of_a_gaussian_are_the_mean_outer_product_of_sampled_scores() -> None:
    policy, obs = make_policy(Gaussian)
    vector = torch.randn(sum(p.numel() for p in policy.parameters()), dtype=torch.float64, generator=generator(1))
    with torch.no_grad():
        actions = [policy(obs).sample(generator(seed)) for seed in range(300)]
    scores = torch.stack([score(policy, s, a) for sample in actions for s, a in zip(obs, sample, strict=True)])
    estimate = (scores @ vector).square().mean()  # v F v
    exact = vector @ explicit(policy, obs, 0.0) @ vector
    assert float(estimate) == pytest.approx(float(exact), rel=0.15)


def explicit(policy: Softmax, obs: Tensor, damping: float) -> Tensor:
    """Return the matrix that the products are with, from its products with unit vectors."""
    with torch.no_grad():
        old = policy(obs)
    params = list(policy.parameters())
    product: Callable[[Tensor], Tensor] = fisher_vector_product(old.kl(policy(obs)).mean(), params, damping)
    return torch.stack([product(unit) for unit in torch.eye(sum(p.numel() for p in params), dtype=torch.float64)])


def test_a_flat_vector_goes_back_where_it_came_from_and_nothing_moves_in_memory() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Linear(4, 2)).to(memory_format=torch.channels_last)
    params = list(net.parameters())
    before, places = flatten(params).detach(), [p.data_ptr() for p in params]
    strides = [p.stride() for p in params]
    assign(params, 2 * before)
    assert torch.equal(flatten(params), 2 * before)
    assign(params, before)
    assert torch.equal(flatten(params), before)
    assert [p.data_ptr() for p in params] == places
    assert [p.stride() for p in params] == strides
    assert all(p.requires_grad for p in params)
