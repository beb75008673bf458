import pytest
import torch
from torch import Tensor

from rlrun.math.noise import ornstein_uhlenbeck


def series(correlation: float, steps: int, rows: int = 20_000) -> list[Tensor]:
    generator, first = torch.Generator().manual_seed(0), torch.zeros(rows, dtype=torch.bool)
    values: list[Tensor] = []
    for _ in range(steps):
        white = torch.randn(rows, 1, generator=generator)
        values.append(ornstein_uhlenbeck(values[-1] if values else None, white, first, correlation))
    return [value.squeeze(-1) for value in values]


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.95, 1.0])
def test_it_stays_a_standard_normal_with_the_correlation_asked_for(correlation: float) -> None:
    values = series(correlation, 12)
    for value in values:
        assert float(value.mean()) == pytest.approx(0, abs=0.03)
        assert float(value.std()) == pytest.approx(1, abs=0.03)
    for lag in (1, 3, 8):
        together = float((values[3] * values[3 + lag]).mean())
        assert together == pytest.approx(correlation**lag, abs=0.03)


def test_without_correlation_it_is_the_white_noise_itself() -> None:
    white, first = torch.randn(5, 2), torch.zeros(5, dtype=torch.bool)
    assert torch.equal(ornstein_uhlenbeck(torch.full((5, 2), 9.0), white, first, 0.0), white)
    assert torch.equal(ornstein_uhlenbeck(None, white, first, 0.9), white)


def test_it_begins_anew_with_each_episode_and_with_no_other() -> None:
    white, first = torch.randn(2, 3), torch.tensor([True, False])
    value = ornstein_uhlenbeck(torch.full((2, 3), 100.0), white, first, 0.9)
    assert torch.equal(value[0], white[0])
    assert bool((value[1] > 50).all())
