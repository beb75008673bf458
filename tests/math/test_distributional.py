import math

import numpy as np
import pytest
import torch
from torch import Tensor

from rlrun.math.distributional import categorical_projection, quantile_huber_loss


def algorithm_1(p: list[float], r: float, discount: float, v_min: float, v_max: float) -> list[float]:
    """Return the projection as Bellemare et al. print it, for one sample."""
    n = len(p)
    spacing = (v_max - v_min) / (n - 1)
    m = [0.0] * n
    for j in range(n):
        moved = min(max(r + discount * (v_min + j * spacing), v_min), v_max)
        b = (moved - v_min) / spacing
        lower, upper = math.floor(b), math.ceil(b)
        if lower == upper:  # the paper's formula loses the mass of an atom that falls on another
            m[lower] += p[j]
        else:
            m[lower] += p[j] * (upper - b)
            m[upper] += p[j] * (b - lower)
    return m


def random_case(seed: int, num_atoms: int, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    p = torch.randn(32, num_atoms, generator=generator).mul(2).softmax(-1)
    reward = torch.randn(32, generator=generator) * scale
    discount = torch.rand(32, generator=generator) * (torch.rand(32, generator=generator) < 0.8)
    return p, reward, discount


@pytest.mark.parametrize("scale", [0.1, 3.0, 100.0])
@pytest.mark.parametrize(("num_atoms", "v_min", "v_max"), [(51, -10.0, 10.0), (2, 0.0, 1.0), (7, -3.0, 0.5)])
def test_the_projection_is_algorithm_1(num_atoms: int, v_min: float, v_max: float, scale: float) -> None:
    p, reward, discount = random_case(num_atoms, num_atoms, scale)
    projected = categorical_projection(p, reward, discount, v_min, v_max)
    for m in range(32):
        expected = algorithm_1(p[m].double().tolist(), float(reward[m]), float(discount[m]), v_min, v_max)
        assert projected[m].tolist() == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("scale", [0.1, 3.0, 1e6])
def test_the_projection_keeps_the_mass_and_makes_no_negative_one(scale: float) -> None:
    p, reward, discount = random_case(1, 51, scale)
    projected = categorical_projection(p, reward, discount, -10.0, 10.0)
    torch.testing.assert_close(projected.sum(-1), torch.ones(32))
    assert (projected >= 0).all()


def test_the_projection_keeps_the_mean_where_nothing_is_clipped() -> None:
    p, reward, discount = random_case(2, 51, 0.2)
    reward, discount = reward.clamp(-1, 1), discount * 0.9  # |r + 0.9 z| <= 10
    atoms = torch.linspace(-10, 10, 51)
    projected = categorical_projection(p, reward, discount, -10.0, 10.0)
    torch.testing.assert_close(projected @ atoms, reward + discount * (p @ atoms), atol=1e-4, rtol=1e-4)


def test_what_lies_outside_falls_on_the_outermost_atoms() -> None:
    p = torch.full((2, 5), 0.2)
    projected = categorical_projection(p, torch.tensor([100.0, -100.0]), torch.full((2,), 0.9), -2.0, 2.0)
    assert projected.tolist() == [
        [0, 0, 0, 0, pytest.approx(1.0)],
        [pytest.approx(1.0), 0, 0, 0, 0],
    ]


def test_by_hand() -> None:
    # Atoms 0, 1, 2 move to 0.5, 1, 1.5.
    p = torch.tensor([[0.2, 0.6, 0.2]])
    projected = categorical_projection(p, torch.tensor([0.5]), torch.tensor([0.5]), 0.0, 2.0)
    assert projected[0].tolist() == pytest.approx([0.1, 0.1 + 0.6 + 0.1, 0.1])


def test_after_a_termination_the_return_is_the_reward() -> None:
    p = torch.rand(3, 11).softmax(-1)
    projected = categorical_projection(p, torch.tensor([0.0, 0.3, 1.0]), torch.zeros(3), -1.0, 1.0)
    assert projected[0].tolist() == pytest.approx([0] * 5 + [1] + [0] * 5, abs=1e-5)
    assert projected[1].tolist() == pytest.approx([0] * 6 + [0.5, 0.5] + [0] * 3, abs=1e-5)
    assert projected[2].tolist() == pytest.approx([0] * 10 + [1], abs=1e-5)


def test_nothing_moves_without_reward_and_discount_1() -> None:
    p = torch.rand(4, 51).softmax(-1)
    projected = categorical_projection(p, torch.zeros(4), torch.ones(4), -10.0, 10.0)
    torch.testing.assert_close(projected, p, atol=1e-5, rtol=0)


# --- Quantiles --------------------------------------------------------------------------------------------


def naive_loss(quantiles: list[float], targets: list[float], taus: list[float], kappa: float) -> float:
    """Return Eq. (10) of Dabney et al. by its own loops."""
    total = 0.0
    for theta, tau in zip(quantiles, taus, strict=True):
        for target in targets:
            u = target - theta
            if kappa == 0:
                rho = abs(u)
            elif abs(u) <= kappa:
                rho = 0.5 * u * u / kappa
            else:
                rho = abs(u) - 0.5 * kappa
            total += abs(tau - (u < 0)) * rho / len(targets)
    return total


@pytest.mark.parametrize("kappa", [0.0, 0.1, 1.0, 5.0])
@pytest.mark.parametrize("own_taus", [False, True])
def test_the_quantile_loss_is_its_equation(own_taus: bool, kappa: float) -> None:
    generator = torch.Generator().manual_seed(0)
    quantiles, targets = torch.randn(8, 5, generator=generator), 2 * torch.randn(8, 9, generator=generator)
    taus = torch.rand(8, 5, generator=generator) if own_taus else (torch.arange(5) + 0.5) / 5
    loss = quantile_huber_loss(quantiles, targets, taus, kappa)
    assert loss.shape == (8,)
    for m in range(8):
        of_sample = taus[m] if own_taus else taus
        expected = naive_loss(quantiles[m].tolist(), targets[m].tolist(), of_sample.tolist(), kappa)
        assert float(loss[m]) == pytest.approx(expected, rel=1e-5)


def test_the_loss_without_kappa_is_least_at_the_true_quantiles() -> None:
    samples = np.random.default_rng(0).exponential(size=2001)
    targets = torch.from_numpy(samples).float()[None]
    taus = torch.tensor([0.1, 0.5, 0.9])
    truth = torch.from_numpy(np.quantile(samples, taus.numpy())).float()

    def loss(quantiles: Tensor) -> float:
        return float(quantile_huber_loss(quantiles[None], targets, taus, 0.0))

    least = loss(truth)
    for i in range(3):
        for shift in (-0.3, -0.03, 0.03, 0.3):
            moved = truth.clone()
            moved[i] += shift
            assert loss(moved) > least


@pytest.mark.parametrize("kappa", [0.0, 0.01])
def test_descending_the_loss_leads_to_the_quantiles(kappa: float) -> None:
    rng = np.random.default_rng(1)
    taus = (torch.arange(5) + 0.5) / 5
    theta = torch.zeros(1, 5, requires_grad=True)
    optimizer = torch.optim.Adam([theta], lr=0.02)
    for i in range(1500):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - i / 1500)
        samples = torch.from_numpy(rng.normal(3.0, 2.0, size=(1, 64))).float()
        loss = quantile_huber_loss(theta, samples, taus, kappa).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    normal = torch.distributions.Normal(3.0, 2.0)
    torch.testing.assert_close(theta.detach()[0], normal.icdf(taus), atol=0.15, rtol=0)


def test_no_gradient_goes_into_the_weights_of_the_loss() -> None:
    """|tau - 1{u < 0}| is constant between the samples: the gradient at kappa 0 is that weight alone."""
    theta = torch.tensor([[0.0]], requires_grad=True)
    quantile_huber_loss(theta, torch.tensor([[1.0, -1.0, 2.0, 3.0]]), torch.tensor([0.3]), 0.0).sum().backward()
    assert theta.grad is not None
    assert float(theta.grad) == pytest.approx((3 * -0.3 + 0.7) / 4)
