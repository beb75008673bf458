from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from rlrun.build import Agent
from rlrun.networks import linear as module
from rlrun.networks.linear import Head, Linear, StackedHead, linear

SHAPES = {"one": ((), 7, 5, 3), "stacked": ((2,), 7, 5, 3), "large": ((), 64, 256, 256), "wide": ((3,), 33, 40, 1)}


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take oneDNN's products, whatever the processor and the size."""
    monkeypatch.setattr(module, "WORTH_ONEDNN", 0)
    monkeypatch.setattr(module, "_mkl_is_slow", lambda: True)


def inputs(shape: str) -> list[Tensor]:
    stack, rows, fan_in, fan_out = SHAPES[shape]
    torch.manual_seed(0)
    shapes = [(*stack, rows, fan_in), (*stack, fan_out, fan_in), (*stack, fan_out)]
    return [torch.randn(*s, requires_grad=True) for s in shapes]


def reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x @ weight.mT + bias.unsqueeze(-2)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("onednn")
def test_products_and_their_gradients_are_those_of_the_formula(shape: str) -> None:
    values = inputs(shape)
    out, expected = linear(*values), reference(*values)
    assert "OneDNN" in type(out.grad_fn).__name__
    torch.testing.assert_close(out, expected, atol=1e-3, rtol=1e-3)
    along = torch.randn_like(out)
    for got, wanted in zip(
        torch.autograd.grad(out, values, along), torch.autograd.grad(expected, values, along), strict=True
    ):
        torch.testing.assert_close(got, wanted, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("shape", ["one", "stacked"])
@pytest.mark.usefixtures("onednn")
def test_gradients_can_be_derived_again(shape: str) -> None:
    values = inputs(shape)

    def curvature(function: object) -> tuple[Tensor, ...]:
        loss = function(*values).tanh().square().sum()  # type: ignore[operator]
        gradient = torch.autograd.grad(loss, values, create_graph=True)
        return torch.autograd.grad(sum((g * g.detach()).sum() for g in gradient), values)  # type: ignore[arg-type]

    for got, wanted in zip(curvature(linear), curvature(reference), strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("onednn")
def test_what_needs_no_gradient_gets_none() -> None:
    x, weight, bias = inputs("one")
    linear(x, weight.detach(), bias.detach()).sum().backward()
    assert (x.grad is not None, weight.grad, bias.grad) == (True, None, None)


@pytest.mark.parametrize("shape", SHAPES)
def test_elsewhere_it_is_torchs_own_product(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_mkl_is_slow", lambda: False)
    x, weight, bias = inputs(shape)
    out = linear(x, weight, bias)
    if weight.dim() == 2:
        assert torch.equal(out, nn.functional.linear(x, weight, bias))
    torch.testing.assert_close(out, reference(x, weight, bias), atol=1e-3, rtol=1e-3)


@pytest.mark.usefixtures("onednn")
def test_other_types_and_shapes_are_left_to_torch() -> None:
    layer, x = Linear(5, 3), torch.randn(4, 5)
    assert "OneDNN" in type(layer(x).grad_fn).__name__
    for other in (layer(torch.randn(2, 4, 5)), Linear(5, 3).double()(x.double())):
        assert "OneDNN" not in type(other.grad_fn).__name__
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


def test_small_products_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_mkl_is_slow", lambda: True)
    layer = Linear(64, 64)
    assert "OneDNN" not in type(layer(torch.randn(64, 64)).grad_fn).__name__
    assert "OneDNN" in type(layer(torch.randn(1024, 64)).grad_fn).__name__


@pytest.mark.usefixtures("onednn")
def test_a_compiled_layer_takes_torchs_product() -> None:
    exported = torch.export.export(Linear(5, 3), (torch.randn(4, 5),), dynamic_shapes=({0: torch.export.Dim("B")},))
    assert "mkldnn" not in str(exported.graph)


@pytest.mark.parametrize("stacked", [False, True])
def test_heads_are_in_float32_whatever_autocast_says(stacked: bool) -> None:
    torch.manual_seed(0)
    heads = [Head(8, 2), Head(8, 2)]
    x = torch.randn(2, 5, 8).bfloat16() if stacked else torch.randn(5, 8).bfloat16()
    head: nn.Module = StackedHead(heads) if stacked else heads[0]
    with torch.autocast("cpu", torch.bfloat16):
        out = head(x)
    assert out.dtype == torch.float32
    each = zip(heads, x, strict=True) if stacked else [(heads[0], x)]
    expected = [nn.functional.linear(rows.float(), one.weight, one.bias) for one, rows in each]
    torch.testing.assert_close(out, torch.stack(expected) if stacked else expected[0])


@pytest.mark.parametrize(
    "options", [("algo=ppo",), ("algo=ppo", "network=lstm"), ("algo=dqn",), ("algo=sac",), ("algo=a2c",)]
)
def test_what_networks_give_with_autocast_is_no_coarser_than_float32(
    options: tuple[str, ...], make_agent: Callable[..., Agent]
) -> None:
    """Numbers that came out of bfloat16 are multiples of their size's 256th."""
    agent = make_agent("tuned=none", "env=cartpole", "device.precision=bf16", *options)
    weights = [w for net in agent.algorithm.networks().values() for w in net.parameters()]
    with torch.no_grad():
        for weight in weights:
            weight.normal_(generator=torch.Generator().manual_seed(weight.numel()))
    seen: list[Tensor] = []
    for net in agent.algorithm.networks().values():
        for head in net.modules():
            if isinstance(head, Head | StackedHead):
                head.register_forward_hook(lambda module, inputs, output: seen.append(output))
    agent.algorithm.act(torch.randn(40, 4), None, torch.ones(40, dtype=torch.bool))
    assert seen
    for output in seen:
        assert output.dtype == torch.float32
        assert not torch.equal(output, output.bfloat16().float())
