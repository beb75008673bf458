import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from rlrun.networks.optimizers import Adam, RMSpropTF


def optimizer_of(*params: torch.Tensor, **options: float) -> RMSpropTF:
    return RMSpropTF(params, **{"lr": 0.1, "alpha": 0.9, "eps": 0.01, **options})


def test_one_step_by_hand() -> None:
    p = torch.tensor([1.0, -2.0], requires_grad=True)
    p.grad = torch.tensor([0.5, -3.0])
    optimizer_of(p).step()
    # square = 0.9 * 1 + 0.1 * g^2; p -= 0.1 * g / sqrt(square + 0.01)
    expected = [1.0 - 0.1 * 0.5 / math.sqrt(0.925 + 0.01), -2.0 + 0.1 * 3.0 / math.sqrt(1.8 + 0.01)]
    assert p.tolist() == pytest.approx(expected, rel=1e-6)


def test_ten_steps_by_hand() -> None:
    torch.manual_seed(0)
    p = torch.randn(4, dtype=torch.float64, requires_grad=True)
    optimizer, expected, square = optimizer_of(p), p.tolist(), [1.0] * 4
    for _ in range(10):
        grad = torch.randn(4, dtype=torch.float64)
        p.grad = grad.clone()
        optimizer.step()
        for i, g in enumerate(grad.tolist()):
            square[i] = 0.9 * square[i] + 0.1 * g * g
            expected[i] -= 0.1 * g / math.sqrt(square[i] + 0.01)
    assert p.tolist() == pytest.approx(expected, rel=1e-12)


def test_epsilon_stands_inside_the_root() -> None:
    p = torch.tensor([0.0], requires_grad=True)
    p.grad = torch.tensor([1.0])
    optimizer_of(p, alpha=1.0, eps=3.0).step()
    assert float(p.detach()) == pytest.approx(-0.1 / 2)  # sqrt(1 + 3); outside it were 1 + 3


def test_squares_that_start_at_zero_and_no_epsilon_give_torchs_step() -> None:
    torch.manual_seed(0)
    ours = torch.randn(5, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    a = optimizer_of(ours, eps=0.0, square_init=0.0)
    b = torch.optim.RMSprop([theirs], lr=0.1, alpha=0.9, eps=0.0)
    for _ in range(5):
        ours.grad = torch.randn(5)
        theirs.grad = ours.grad.clone()
        a.step()
        b.step()
    torch.testing.assert_close(ours, theirs)


def test_parameters_without_a_gradient_stay() -> None:
    p, q = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    p.grad = torch.ones(2)
    optimizer_of(p, q).step()
    assert q.tolist() == [1.0, 1.0]
    assert p.tolist() != [1.0, 1.0]


def test_gradients_are_left_as_they_are() -> None:
    p = torch.ones(2, requires_grad=True)
    p.grad = torch.tensor([3.0, 4.0])
    optimizer_of(p).step()
    assert p.grad.tolist() == [3.0, 4.0]


def test_each_group_has_its_own_learning_rate() -> None:
    p, q = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    p.grad, q.grad = torch.ones(1), torch.ones(1)
    groups: Any = [{"params": [p]}, {"params": [q], "lr": 0.2}]
    RMSpropTF(groups, lr=0.1, alpha=0.9, eps=0.01).step()
    assert float(q.detach()) == pytest.approx(2 * float(p.detach()))


def test_a_restored_optimizer_goes_on_bit_for_bit(through_disk: Callable[[Any], Any]) -> None:
    torch.manual_seed(0)
    grads = torch.randn(6, 3)
    p, q = torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    undisturbed, restored = optimizer_of(p), optimizer_of(q)
    for grad in grads[:3]:
        p.grad = grad.clone()
        undisturbed.step()
    with torch.no_grad():
        q.copy_(p)
    restored.load_state_dict(through_disk(undisturbed.state_dict()))
    for grad in grads[3:]:
        p.grad, q.grad = grad.clone(), grad.clone()
        undisturbed.step()
        restored.step()
    assert torch.equal(p, q)


def test_adam_is_torchs_adam_also_after_a_restore(through_disk: Callable[[Any], Any]) -> None:
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Linear(5, 3) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    adam = Adam(ours.parameters(), lr=0.01, eps=1e-5)
    reference = torch.optim.Adam(theirs.parameters(), lr=0.01, eps=1e-5, fused=True)
    for t in range(20):
        if t == 10:
            stored = through_disk(adam.state_dict())
            adam = Adam(ours.parameters(), lr=1.0, eps=1.0)
            adam.load_state_dict(stored)
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        adam.step()
        reference.step()
        assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_the_state_of_torchs_adam_is_refused() -> None:
    weight = torch.zeros(2, requires_grad=True)
    stored = torch.optim.Adam([weight]).state_dict()
    with pytest.raises(ValueError, match="earlier version"):
        Adam([weight], lr=0.1, eps=1e-8).load_state_dict(stored)


def test_adam_leaves_weights_without_a_gradient_alone() -> None:
    p, q = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    adam = Adam([p, q], lr=0.1, eps=1e-8)
    adam.step()
    p.grad = torch.tensor([3.0, -4.0])
    adam.step()
    torch.testing.assert_close(p, torch.tensor([0.9, 1.1]))  # the first step is the learning rate, whatever the size
    assert q.tolist() == [1.0, 1.0]


def test_centered_divides_by_the_deviation() -> None:
    """Ten steps by hand of the variant that Mnih et al. (2015) used: square_init 0, epsilon inside the root."""
    torch.manual_seed(0)
    p = torch.randn(4, dtype=torch.float64, requires_grad=True)
    optimizer, expected = optimizer_of(p, centered=True, square_init=0.0), p.tolist()
    square, mean = [0.0] * 4, [0.0] * 4
    for _ in range(10):
        grad = torch.randn(4, dtype=torch.float64)
        p.grad = grad.clone()
        optimizer.step()
        for i, g in enumerate(grad.tolist()):
            square[i] = 0.9 * square[i] + 0.1 * g * g
            mean[i] = 0.9 * mean[i] + 0.1 * g
            expected[i] -= 0.1 * g / math.sqrt(square[i] - mean[i] ** 2 + 0.01)
    assert p.tolist() == pytest.approx(expected, rel=1e-12)


def test_centered_without_epsilon_is_torchs_centered_step() -> None:
    torch.manual_seed(0)
    ours = torch.randn(5, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    a = optimizer_of(ours, eps=0.0, square_init=0.0, centered=True)
    b = torch.optim.RMSprop([theirs], lr=0.1, alpha=0.9, eps=0.0, centered=True)
    for _ in range(5):
        ours.grad = torch.randn(5)
        theirs.grad = ours.grad.clone()
        a.step()
        b.step()
    torch.testing.assert_close(ours, theirs)


def test_a_gradient_that_never_changes_stays_finite() -> None:
    """Its deviation goes to zero, and rounding may take the square below the mean's."""
    p = torch.zeros(1000, requires_grad=True)
    optimizer = optimizer_of(p, centered=True, square_init=0.0, eps=1e-5, alpha=0.95)
    grad = torch.randn(1000)
    for _ in range(500):
        p.grad = grad.clone()
        optimizer.step()
    assert p.isfinite().all()


def test_a_restored_centered_optimizer_goes_on_bit_for_bit(through_disk: Callable[[Any], Any]) -> None:
    torch.manual_seed(0)
    grads = torch.randn(6, 3)
    p, q = torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    undisturbed, restored = (optimizer_of(x, centered=True, square_init=0.0) for x in (p, q))
    for grad in grads[:3]:
        p.grad = grad.clone()
        undisturbed.step()
    with torch.no_grad():
        q.copy_(p)
    restored.load_state_dict(through_disk(undisturbed.state_dict()))
    for grad in grads[3:]:
        p.grad, q.grad = grad.clone(), grad.clone()
        undisturbed.step()
        restored.step()
    assert torch.equal(p, q)


@pytest.mark.parametrize("centered", [False, True])
def test_moments_in_shared_memory_are_the_same_moments(centered: bool) -> None:
    torch.manual_seed(0)
    start = torch.randn(5)
    alone, shared = start.clone().requires_grad_(), start.clone().requires_grad_()
    optimizers = [optimizer_of(p, centered=centered) for p in (alone, shared)]
    for step in range(4):
        if step in (0, 2):  # before the first step and later
            optimizers[1].share_memory()
        for p, optimizer in zip((alone, shared), optimizers, strict=True):
            p.grad = start * step
            optimizer.step()
    assert torch.equal(alone, shared)
    moments = optimizers[1].state[shared]
    assert moments.keys() == ({"square", "mean"} if centered else {"square"})
    assert all(moment.is_shared() for moment in moments.values())


def test_hooks_are_called_before_and_after_each_step() -> None:
    p = torch.zeros(1, requires_grad=True)
    optimizer, seen = optimizer_of(p), list[float]()
    optimizer.register_step_pre_hook(lambda *_: seen.append(p.item()))
    optimizer.register_step_post_hook(lambda *_: seen.append(p.item()))
    for _ in range(2):
        p.grad = torch.ones(1)
        optimizer.step()
    assert len(seen) == 4
    assert seen[0] == 0
    assert seen[1] == seen[2] != seen[3]
