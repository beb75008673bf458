import pytest
import torch

from rlrun.math.distributions import Categorical
from rlrun.math.policy_gradient import actor_critic_loss


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
