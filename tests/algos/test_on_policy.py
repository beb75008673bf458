"""Minibatches, of which every on-policy algorithm makes several out of one rollout."""

import pytest
import torch

from rlrun.algos.algorithm import clip_gradients
from rlrun.algos.on_policy import minibatches, normalized


@pytest.mark.parametrize(("size", "lengths"), [(4, [4, 4, 4, 4]), (6, [6, 6, 4]), (20, [16])])
def test_minibatches_hold_every_row_exactly_once(size: int, lengths: list[int]) -> None:
    data = {"advantage": torch.arange(16.0), "tag": torch.arange(16)}
    generator = torch.Generator().manual_seed(0)
    orders = []
    for _ in range(2):
        parts = list(minibatches(data, size, generator))
        assert [len(part["tag"]) for part in parts] == lengths
        assert all(torch.equal(part["advantage"], part["tag"].float()) for part in parts)
        orders.append(torch.cat([part["tag"] for part in parts]).tolist())
        assert sorted(orders[-1]) == list(range(16))
    assert orders[0] != orders[1]


def test_minibatches_of_images_lie_in_memory_as_the_rollout_does() -> None:
    images = torch.arange(6 * 4 * 3 * 2).view(6, 3, 2, 4).movedim(-1, 1)  # [6, 4, 3, 2], channels last
    for part in minibatches({"obs": images, "row": torch.arange(6)}, 4, torch.Generator().manual_seed(0)):
        assert part["obs"].is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(part["obs"], images[part["row"]])


def test_normalized_advantages_have_mean_0_and_deviation_1() -> None:
    advantage = normalized(torch.tensor([1.0, 2.0, 6.0]))
    assert float(advantage.mean()) == pytest.approx(0, abs=1e-6)
    assert float(advantage.std()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("number", [0.1, 1000.3, -3e25])
@pytest.mark.parametrize("count", [1, 2, 100])
def test_equal_advantages_are_normalized_to_nothing(number: float, count: int) -> None:
    assert not normalized(torch.full((count,), number)).any()


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (1e-3, 1e2), (1e25, 0.0), (1e-12, 0.0)])
def test_advantages_of_any_size_are_normalized_as_by_the_formula(scale: float, offset: float) -> None:
    torch.manual_seed(0)
    advantage = torch.randn(6, 10) * scale + offset
    wide = advantage.double()
    expected = (wide - wide.mean()) / (wide.std() + 1e-8)
    found = normalized(advantage)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected.float())


@pytest.mark.parametrize("max_norm", [0.5, 1e3, 0.0, None])
def test_gradients_are_clipped_as_torch_clips_them(max_norm: float | None) -> None:
    torch.manual_seed(0)
    ours, theirs = ([torch.zeros(4, 3, requires_grad=True), torch.zeros(3, requires_grad=True)] for _ in range(2))
    without = torch.zeros(2, requires_grad=True)
    for p, q in zip(ours, theirs, strict=True):
        p.grad = 3 * torch.randn_like(p)
        q.grad = p.grad.clone()
    clip_gradients([*ours, without], max_norm)
    if max_norm is not None:
        torch.nn.utils.clip_grad_norm_(theirs, max_norm)
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(ours, theirs, strict=True))  # type: ignore[arg-type]
    assert without.grad is None
    clip_gradients([without], max_norm)  # nothing to clip
