from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from rlrun.networks import chain as module
from rlrun.networks import linear as linear_module
from rlrun.networks.chain import chain, linear_run, through
from rlrun.networks.critics import Stacked
from rlrun.networks.linear import Linear

WIDTHS = {"two layers": (5, 7, 3), "three": (5, 40, 40, 1), "large": (23, 256, 256, 2)}
Function = Callable[[Tensor], Tensor]


@pytest.fixture(autouse=True)
def onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take oneDNN's products, whatever the processor and the size."""
    monkeypatch.setattr(linear_module, "WORTH_ONEDNN", 0)
    monkeypatch.setattr(linear_module, "_mkl_is_slow", lambda: True)


def layers(widths: Sequence[int], last_relu: bool, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    modules: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        modules += [Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*(modules if last_relu else modules[:-1]))


def gradients(out: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    return torch.autograd.grad(out, inputs, torch.randn_like(out))


def assert_alike(function: Function, reference: Function, x: Tensor, params: Sequence[Tensor]) -> None:
    out, expected = function(x), reference(x)
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)
    assert "Chain" in type(out.grad_fn).__name__ or "Stack" in type(out.grad_fn).__name__
    for got, wanted in zip(gradients(out, [x, *params]), gradients(expected, [x, *params]), strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("last_relu", [False, True])
@pytest.mark.parametrize("widths", WIDTHS)
def test_a_chain_and_its_gradients_are_those_of_its_layers(widths: str, last_relu: bool) -> None:
    net, x = layers(WIDTHS[widths], last_relu), torch.randn(64, WIDTHS[widths][0], requires_grad=True)
    assert_alike(lambda x: through(net, x), net, x, list(net.parameters()))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_stacked_networks_are_their_members(count: int) -> None:
    members = [layers((5, 40, 40, 1), last_relu=False, seed=seed) for seed in range(3)]
    stacked, x = Stacked(members, 0), torch.randn(64, 5, requires_grad=True)

    def reference(x: Tensor) -> Tensor:
        return stacked.layers(x.expand(count, -1, -1))

    torch.testing.assert_close(reference(x), torch.stack([member(x) for member in members[:count]]))
    assert_alike(lambda x: stacked(x, count), reference, x, list(stacked.parameters()))


def test_what_is_not_a_number_stays_so() -> None:
    net, x = layers((5, 64, 64, 2), last_relu=True), torch.randn(64, 5)
    x[3, 2] = torch.nan
    out = through(net, x)
    assert out[3].isnan().all()
    assert not out[4].isnan().any()


def test_gradients_can_be_derived_again() -> None:
    net, x = layers((5, 8, 8, 2), last_relu=False), torch.randn(40, 5, requires_grad=True)
    inputs = [x, *net.parameters()]

    def curvature(function: Function) -> tuple[Tensor, ...]:
        gradient = torch.autograd.grad(function(x).tanh().square().sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum((g * g.detach()).sum() for g in gradient), inputs)  # type: ignore[arg-type]

    for got, wanted in zip(curvature(lambda x: through(net, x)), curvature(net), strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("frozen", ["x", "weights", "first weight", "all"])
def test_what_needs_no_gradient_gets_none(frozen: str) -> None:
    net, x = layers((5, 8, 2), last_relu=False), torch.randn(40, 5, requires_grad=frozen in ("weights", "first weight"))
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(frozen == "x" or (frozen == "first weight" and name != "0.weight"))
    out = through(net, x)
    assert out.requires_grad == (frozen != "all")
    if frozen != "all":
        out.sum().backward()
    assert (x.grad is not None) == x.requires_grad
    assert all((p.grad is not None) == p.requires_grad for p in net.parameters())


def test_only_linear_layers_with_relus_between_them_are_a_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []

    def counted(x: Tensor, layers: module.Layers, *, last_relu: bool) -> Tensor:
        lengths.append(len(layers))
        return chain(x, layers, last_relu=last_relu)

    monkeypatch.setattr(module, "chain", counted)
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Flatten(), Linear(6, 8), nn.ReLU(), Linear(8, 8), nn.Tanh(), Linear(8, 8), nn.LayerNorm(8), nn.ReLU()),
        *(Linear(8, 8), nn.ReLU(), Linear(8, 8), nn.ReLU()),
    )
    x = torch.randn(40, 2, 3)
    torch.testing.assert_close(through(net, x), net(x), atol=1e-5, rtol=1e-5)
    assert lengths == [2, 2]
    assert linear_run(list(net)[1:]) == 3
    assert linear_run([nn.ReLU(), Linear(2, 2)]) == 0


def test_few_rows_and_other_dimensions_are_left_to_the_layers() -> None:
    net = layers((5, 8, 2), last_relu=False)
    for x in (torch.randn(module.FEW_ROWS - 1, 5), torch.randn(3, 40, 5)):
        assert "Chain" not in type(through(net, x).grad_fn).__name__
