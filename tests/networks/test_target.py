import pytest
import torch
from torch import nn

from rlrun.networks.target import frozen, make_target, polyak_update


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))


@pytest.mark.parametrize("tau", [0.0, 0.005, 0.3, 1.0])
def test_the_target_moves_by_tau_towards_the_network(tau: float) -> None:
    net, target = network(0), make_target(network(1))
    before = [p.clone() for p in target.parameters()]
    held = [p.detach().clone() for p in net.parameters()]
    polyak_update(target, net, tau)
    for new, old, source in zip(target.parameters(), before, held, strict=True):
        torch.testing.assert_close(new, tau * source + (1 - tau) * old)
    assert all(torch.equal(p, h) for p, h in zip(net.parameters(), held, strict=True))


def test_a_target_is_a_copy_that_takes_no_gradient() -> None:
    net = network(0)
    target = make_target(net)
    x = torch.randn(2, 3)
    assert torch.equal(net(x), target(x))
    assert not any(p.requires_grad for p in target.parameters())
    assert not {p.data_ptr() for p in net.parameters()} & {p.data_ptr() for p in target.parameters()}


def test_gradients_go_through_a_frozen_network_and_not_into_it() -> None:
    net, x = network(0), torch.randn(2, 3, requires_grad=True)
    with frozen(net):
        out = net(x)
    out.sum().backward()
    assert x.grad is not None
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


def test_a_network_thaws_after_an_error_too() -> None:
    net = network(0)
    with pytest.raises(ZeroDivisionError), frozen(net):
        raise ZeroDivisionError
    assert all(p.requires_grad for p in net.parameters())
