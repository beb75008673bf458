import pytest
import torch
from torch import Tensor

from rlrun.math.distributions import Categorical
from rlrun.math.policy_gradient import actor_critic_loss, clipped_surrogate


def test_the_gradient_by_hand_of_a_policy_of_two_actions() -> None:
    """d log pi(a)/d logits is onehot(a) - pi; of the entropy it is -pi (log pi + H); of the error 2 (V - target)."""
    logits = torch.tensor([[0.0, 1.0], [2.0, -1.0]], dtype=torch.float64, requires_grad=True)
    value = torch.tensor([0.5, -2.0], dtype=torch.float64, requires_grad=True)
    action, advantage, target = torch.tensor([1, 0]), torch.tensor([3.0, -1.5]), torch.tensor([1.0, 4.0])
    loss, parts = actor_critic_loss(
        Categorical(logits), value, action, advantage, target, entropy_coef=0.1, value_coef=0.25
    )
    loss.backward()
    pi = torch.softmax(logits.detach(), -1)
    entropy = -(pi * pi.log()).sum(-1, keepdim=True)
    ascent = (torch.eye(2)[action] - pi) * advantage[:, None] - 0.1 * pi * (pi.log() + entropy)
    torch.testing.assert_close(logits.grad, -ascent / 2)
    torch.testing.assert_close(value.grad, 0.25 * 2 * (value.detach() - target) / 2)
    assert float(parts["train/entropy_loss"]) == pytest.approx(-float(entropy.mean()))
    assert float(parts["train/value_loss"]) == pytest.approx((0.25 + 36) / 2)


def test_twice_the_same_steps_give_the_same_loss() -> None:
    torch.manual_seed(0)
    logits, value, action = torch.randn(4, 3), torch.randn(4), torch.tensor([0, 2, 1, 1])
    advantage, target = torch.randn(4), torch.randn(4)

    def loss(repeats: int) -> float:
        steps = [tensor.repeat(repeats, *[1] * (tensor.ndim - 1)) for tensor in (value, action, advantage, target)]
        return float(actor_critic_loss(Categorical(logits.repeat(repeats, 1)), *steps, entropy_coef=1, value_coef=1)[0])

    assert loss(1) == pytest.approx(loss(2), rel=1e-5)


def by_its_definition(log_ratio: Tensor, advantage: Tensor, clip_range: float) -> Tensor:
    ratio = log_ratio.exp()
    return -torch.min(ratio * advantage, ratio.clamp(1 - clip_range, 1 + clip_range) * advantage).mean()


@pytest.mark.parametrize("shape", [(200,), (5, 40)])
@pytest.mark.parametrize("clip_range", [0.0, 0.2, 5.0])
def test_the_clipped_surrogate_and_its_derivative_are_those_of_its_definition(
    shape: tuple[int, ...], clip_range: float
) -> None:
    torch.manual_seed(0)
    log_ratio, advantage = 0.3 * torch.randn(shape), torch.randn(shape)
    found, wanted = log_ratio.clone().requires_grad_(), log_ratio.clone().requires_grad_()
    values = clipped_surrogate(found, advantage, clip_range), by_its_definition(wanted, advantage, clip_range)
    torch.testing.assert_close(*values)
    for value in values:
        (2.5 * value).backward()
    assert found.grad is not None
    torch.testing.assert_close(found.grad, wanted.grad)
    if clip_range == 0.2:
        assert 0 < int((found.grad == 0).sum()) < found.numel()


def test_before_the_first_step_nothing_is_clipped() -> None:
    log_ratio, advantage = torch.zeros(3, requires_grad=True), torch.tensor([1.0, -2.0, 0.0])
    clipped_surrogate(log_ratio, advantage, 0.2).backward()
    assert log_ratio.grad is not None
    torch.testing.assert_close(log_ratio.grad, -advantage / 3)


def test_what_is_not_a_number_stays_so() -> None:
    log_ratio = torch.tensor([0.0, torch.nan], requires_grad=True)
    loss = clipped_surrogate(log_ratio, torch.ones(2), 0.2)
    assert loss.isnan()
    loss.backward()
    assert log_ratio.grad is not None
    assert log_ratio.grad.isnan().tolist() == [False, True]
