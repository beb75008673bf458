import numpy as np
import pytest
import torch
from torch import Tensor

from rlrun.math import policy_gradient
from rlrun.math.distributions import Categorical
from rlrun.math.policy_gradient import actor_critic_loss, clipped_loss


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


SETTINGS = {"clip_range": 0.2, "clip_value": False, "value_coef": 0.5}


def by_definition(
    log_prob: Tensor, value: Tensor, data: dict[str, Tensor], *, clip_range: float, clip_value: bool, value_coef: float
) -> Tensor:
    ratio, advantage = (log_prob - data["old_log_prob"]).exp(), data["advantage"]
    surrogate = torch.min(ratio * advantage, ratio.clamp(1 - clip_range, 1 + clip_range) * advantage).mean()
    near_old = data["old_value"] + (value - data["old_value"]).clamp(-clip_range, clip_range)
    errors = [(v - data["target"]).square() for v in (value, near_old)]
    error = torch.max(*errors) if clip_value else errors[0]
    return -surrogate + value_coef * 0.5 * error.mean()


def steps(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    torch.manual_seed(0)
    names = ("log_prob", "value", "old_log_prob", "old_value", "advantage", "target")
    drawn = {name: 0.3 * torch.randn(shape, dtype=torch.float64) for name in names}
    return drawn.pop("log_prob"), drawn.pop("value"), drawn


@pytest.fixture(params=[np, torch], ids=["NumPy", "torch"])
def arithmetic(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_gradient, "_arithmetic", lambda device: request.param)


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("clip_value", [False, True])
@pytest.mark.parametrize("shape", [(300,), (5, 60)])
@pytest.mark.parametrize("clip_range", [0.0, 0.2, 5.0])
def test_the_clipped_loss_and_its_derivatives_are_those_of_its_definition(
    shape: tuple[int, ...], clip_range: float, clip_value: bool
) -> None:
    log_prob, value, data = steps(shape)
    inputs = [[tensor.clone().requires_grad_() for tensor in (log_prob, value)] for _ in range(2)]
    found = clipped_loss(*inputs[0], data, clip_range=clip_range, clip_value=clip_value, value_coef=0.7)
    wanted = by_definition(*inputs[1], data, clip_range=clip_range, clip_value=clip_value, value_coef=0.7)
    torch.testing.assert_close(found.loss, wanted)
    torch.testing.assert_close(found.policy_loss + 0.7 * found.value_loss, wanted)
    torch.testing.assert_close(found.log_ratio, log_prob - data["old_log_prob"])
    (2.5 * found.loss).backward()
    (2.5 * wanted).backward()
    for got, want in zip(*inputs, strict=True):
        torch.testing.assert_close(got.grad, want.grad)
    if clip_range == 0.2:
        flat = [int((tensor.grad == 0).sum()) for tensor in inputs[0] if tensor.grad is not None]
        assert 0 < flat[0] < 300
        assert (0 < flat[1] < 300) == clip_value


@pytest.mark.usefixtures("arithmetic")
def test_before_the_first_step_nothing_is_clipped() -> None:
    log_prob, value, data = steps((3,))
    log_prob = data["old_log_prob"].clone().requires_grad_()
    clipped_loss(log_prob, value, data, **SETTINGS).loss.backward()  # type: ignore[arg-type]
    torch.testing.assert_close(log_prob.grad, -data["advantage"] / 3)


@pytest.mark.usefixtures("arithmetic")
def test_what_is_not_a_number_stays_so() -> None:
    log_prob, value, data = steps((2,))
    log_prob[1] = torch.nan
    log_prob.requires_grad_()
    loss = clipped_loss(log_prob, value, data, **SETTINGS).loss  # type: ignore[arg-type]
    assert loss.isnan()
    loss.backward()
    assert log_prob.grad is not None
    assert log_prob.grad.isnan().tolist() == [False, True]


def test_parts_of_the_clipped_loss_are_given_numbers() -> None:
    log_prob, value, data = steps((4,))
    found = clipped_loss(log_prob.requires_grad_(), value, data, **SETTINGS)  # type: ignore[arg-type]
    assert [part.requires_grad for part in found] == [True, False, False, False]
