import pickle
from collections.abc import Callable, Sequence
from copy import deepcopy
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from rlrun.networks import chain as module
from rlrun.networks import linear as linear_module
from rlrun.networks.chain import RELU, Chained, Run, SideBySide, Views, chains
from rlrun.networks.critics import Stacked
from rlrun.networks.linear import Linear

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}
WIDTHS = {"two layers": (5, 7, 3), "three": (5, 40, 40, 1), "large": (23, 256, 256, 2)}
Function = Callable[[Tensor], Tensor]


@pytest.fixture(autouse=True)
def onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take oneDNN's products, whatever the processor and the size."""
    monkeypatch.setattr(linear_module, "WORTH_ONEDNN", 0)
    monkeypatch.setattr(linear_module, "_mkl_is_slow", lambda: True)


@pytest.fixture(params=ACTIVATIONS)
def kind(request: pytest.FixtureRequest) -> type[nn.Module]:
    found: type[nn.Module] = ACTIVATIONS[request.param]
    return found


def layers(widths: Sequence[int], activated: bool, seed: int = 0, kind: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(seed)
    modules: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        modules += [Linear(fan_in, fan_out), kind()]
    return nn.Sequential(*(modules if activated else modules[:-1]))


def gradients(out: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    return torch.autograd.grad(out, inputs, torch.randn_like(out))


def assert_alike(function: Function, reference: Function, x: Tensor, params: Sequence[Tensor]) -> None:
    out, expected = function(x), reference(x)
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)
    assert "Chain" in type(out.grad_fn).__name__ or "Stack" in type(out.grad_fn).__name__
    for got, wanted in zip(gradients(out, [x, *params]), gradients(expected, [x, *params]), strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("activated", [False, True])
@pytest.mark.parametrize("widths", WIDTHS)
def test_a_chain_and_its_gradients_are_those_of_its_layers(widths: str, activated: bool, kind: type[nn.Module]) -> None:
    net, x = layers(WIDTHS[widths], activated, kind=kind), torch.randn(150, WIDTHS[widths][0], requires_grad=True)
    assert_alike(lambda x: Chained(*net)(x), net, x, list(net.parameters()))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_stacked_networks_are_their_members(count: int, kind: type[nn.Module]) -> None:
    members = [layers((5, 40, 40, 1), activated=False, seed=seed, kind=kind) for seed in range(3)]
    stacked, x = Stacked(members, 0), torch.randn(150, 5, requires_grad=True)

    def reference(x: Tensor) -> Tensor:
        return stacked.layers(x.expand(count, -1, -1))

    torch.testing.assert_close(reference(x), torch.stack([member(x) for member in members[:count]]))
    assert_alike(lambda x: stacked(x, count), reference, x, list(stacked.parameters()))


def test_what_is_not_a_number_stays_so(kind: type[nn.Module]) -> None:
    net, x = layers((5, 64, 64, 2), activated=True, kind=kind), torch.randn(150, 5)
    x[3, 2] = torch.nan
    out = Chained(*net)(x)
    assert out[3].isnan().all()
    assert not out[4].isnan().any()


def test_gradients_can_be_derived_again(kind: type[nn.Module]) -> None:
    net, x = layers((5, 8, 8, 2), activated=False, kind=kind), torch.randn(150, 5, requires_grad=True)
    inputs = [x, *net.parameters()]

    def curvature(function: Function) -> tuple[Tensor, ...]:
        gradient = torch.autograd.grad(function(x).tanh().square().sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum((g * g.detach()).sum() for g in gradient), inputs)  # type: ignore[arg-type]

    for got, wanted in zip(curvature(lambda x: Chained(*net)(x)), curvature(net), strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("frozen", ["x", "weights", "first weight", "all"])
def test_what_needs_no_gradient_gets_none(frozen: str) -> None:
    net, x = layers((5, 8, 2), activated=False), torch.randn(40, 5, requires_grad=frozen in ("weights", "first weight"))
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(frozen == "x" or (frozen == "first weight" and name != "0.weight"))
    out = Chained(*net)(x)
    assert out.requires_grad == (frozen != "all")
    if frozen != "all":
        out.sum().backward()
    assert (x.grad is not None) == x.requires_grad
    assert all((p.grad is not None) == p.requires_grad for p in net.parameters())


def test_only_linear_layers_with_one_activation_between_them_are_a_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []

    def counted(x: Tensor, weights: Sequence[Tensor], views: Views) -> tuple[Tensor, ...]:
        lengths.append(len(weights) // 2)
        return chains(x, weights, views)

    monkeypatch.setattr(module, "chains", counted)
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Flatten(), Linear(6, 8), nn.ReLU(), Linear(8, 8), nn.Tanh(), Linear(8, 8), nn.LayerNorm(8), nn.ReLU()),
        *(Linear(8, 8), nn.ReLU(), Linear(8, 8), nn.ReLU()),
    )
    x = torch.randn(40, 2, 3)
    chained = Chained(*net)
    torch.testing.assert_close(chained(x), net(x), atol=1e-5, rtol=1e-5)
    assert lengths == [2, 2]
    assert Run.first_of(list(net)) is None
    run = Run.first_of(list(net)[1:])
    assert run is not None
    assert (len(run), run.activation, run.activated) == (3, RELU, False)
    assert Run.first_of([Linear(2, 2)]) is None


def test_a_layer_that_computes_otherwise_is_asked_itself() -> None:
    class Doubled(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    assert Run.first_of([Doubled(6, 8), nn.ReLU()]) is None
    torch.manual_seed(0)
    modules, x = [Linear(6, 8), nn.ReLU(), Doubled(8, 8), nn.ReLU()], torch.randn(40, 6)
    torch.testing.assert_close(Chained(*modules)(x), nn.Sequential(*modules)(x))


def test_few_rows_and_other_dimensions_are_left_to_the_layers(kind: type[nn.Module]) -> None:
    net = layers((5, 8, 2), activated=False, kind=kind)
    for x in (torch.randn(module.FEW_ROWS - 1, 5), torch.randn(3, 150, 5)):
        torch.testing.assert_close(Chained(*net)(x), net(x))
        assert "Chain" not in type(Chained(*net)(x).grad_fn).__name__


def test_acting_leaves_no_graph_and_gives_the_same(kind: type[nn.Module]) -> None:
    net, x = layers((5, 8, 8, 2), activated=True, kind=kind), torch.randn(3, 5)
    with torch.no_grad():
        torch.testing.assert_close(Chained(*net)(x), net(x))


def test_a_copy_has_weights_of_its_own(kind: type[nn.Module]) -> None:
    net, x = Chained(*layers((5, 8, 2), activated=True, kind=kind)), torch.randn(150, 5)
    copy, before = deepcopy(net), net(x)
    assert torch.equal(copy(x), before)
    assert type(copy(x).grad_fn) is type(before.grad_fn)
    with torch.no_grad():
        assert torch.equal(copy(x[:3]), net(x[:3]))
        copy[0].weight.zero_()
        copy[0].bias.zero_()
    torch.testing.assert_close(net(x), before)
    torch.testing.assert_close(copy(x), nn.Sequential(*copy)(x))
    torch.testing.assert_close(net[:2](x), nn.Sequential(*net[:2])(x))


def test_weights_that_move_to_other_memory_are_followed(kind: type[nn.Module]) -> None:
    net, x = Chained(*layers((5, 8, 2), activated=False, kind=kind)), torch.randn(150, 5)
    before = net(x)
    for parameter in net.parameters():
        parameter.data = parameter.data * 2
    assert not torch.equal(net(x), before)
    torch.testing.assert_close(net(x), nn.Sequential(*net)(x))
    net.share_memory()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter /= 2
    torch.testing.assert_close(net(x), before)
    restored = pickle.loads(pickle.dumps(net))
    torch.testing.assert_close(restored(x), before)


@pytest.mark.parametrize("changed", ["x", "weight", "output"])
def test_what_is_changed_before_its_gradient_is_taken_is_noticed(changed: str, kind: type[nn.Module]) -> None:
    net, x = Chained(*layers((5, 8, 2), activated=True, kind=kind)), torch.randn(150, 5)
    out = net(x)
    with torch.no_grad():
        {"x": x, "weight": net[0].weight, "output": out}[changed].add_(1)  # type: ignore[dict-item]
    with pytest.raises(RuntimeError, match=r"in place|inplace"):
        out.sum().backward()


def test_weights_that_are_computed_are_computed_each_time(kind: type[nn.Module]) -> None:
    plain, x = layers((5, 8, 2), activated=False, kind=kind), torch.randn(150, 5)
    for net in (Chained(*plain), plain):
        nn.utils.parametrizations.weight_norm(plain[0])
        with torch.no_grad():
            first = net(x)
            plain[0].parametrizations.weight.original0.mul_(2)  # type: ignore[union-attr]
            assert not torch.allclose(net(x), first)
        torch.testing.assert_close(net(x), nn.Sequential(*plain)(x))
        nn.utils.parametrize.remove_parametrizations(plain[0], "weight")


def test_what_diverges_warns_of_nothing(kind: type[nn.Module], recwarn: pytest.WarningsRecorder) -> None:
    net = Chained(*layers((5, 8, 2), activated=False, kind=kind))
    with torch.no_grad():
        net[0].weight.mul_(1e30)
        net[2].weight.mul_(1e30)
    net(torch.full((50, 5), 1e30)).sum().backward()
    assert not recwarn.list


def pair(kind: type[nn.Module], second: Sequence[int] = (5, 8, 8, 1)) -> list[nn.Sequential]:
    widths: list[Sequence[int]] = [(5, 8, 8, 2), second]
    nets = [layers(each, activated=False, seed=seed, kind=kind) for seed, each in enumerate(widths)]
    return [nn.Sequential(nn.Flatten(), *net) for net in nets]


def test_networks_side_by_side_are_each_of_them(kind: type[nn.Module]) -> None:
    nets, x = pair(kind), torch.randn(150, 5)
    together = SideBySide.of(nets)
    assert together is not None
    outputs = together(x)
    assert outputs is not None
    params = [list(net.parameters()) for net in nets]
    for used in ((0, 1), (0,), (1,)):  # one may be left out of the loss, and its weights get no gradient then
        losses = [sum(outs[e].tanh().sum() * (e + 1) for e in used) for outs in (outputs, [net(x) for net in nets])]
        found, wanted = (
            torch.autograd.grad(loss, [*params[0], *params[1]], retain_graph=True, allow_unused=True)  # type: ignore[arg-type]
            for loss in losses
        )
        for got, want in zip(found, wanted, strict=True):
            assert (got is None) == (want is None)
            if got is not None:
                torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        for out, net in zip(together(x) or (), nets, strict=True):
            torch.testing.assert_close(out, net(x))


def test_derivatives_beside_a_frozen_network_can_be_derived_again() -> None:
    nets, x = pair(nn.Tanh), torch.randn(150, 5)
    nets[0].requires_grad_(False)
    together, weights = SideBySide.of(nets), list(nets[1].parameters())
    assert together is not None
    outputs = together(x)
    assert outputs is not None
    curvatures = []
    for out in (outputs[1], nets[1](x)):
        gradient = torch.autograd.grad(out.square().sum(), weights, create_graph=True)
        curvatures.append(torch.autograd.grad(torch.stack([g.square().sum() for g in gradient]).sum(), weights))
    for got, want in zip(*curvatures, strict=True):
        torch.testing.assert_close(got, want, atol=1e-3, rtol=1e-3)


def test_networks_of_different_forms_are_not_side_by_side() -> None:
    assert SideBySide.of(pair(nn.Tanh, (5, 8, 1))) is None
    assert SideBySide.of([pair(nn.Tanh)[0], pair(nn.ReLU)[1]]) is None
    assert SideBySide.of([nn.Sequential(nn.LayerNorm(5), *net) for net in pair(nn.Tanh)]) is None
    assert SideBySide.of([nn.Sequential(nn.Flatten(), Linear(5, 2)) for _ in range(2)]) is None


def test_a_row_alone_is_not_worth_a_cast_of_many_weights() -> None:
    torch.manual_seed(0)
    modules = [nn.Linear(2048, 512), nn.ReLU(), nn.Linear(512, 5)]
    net, row = Chained(*modules), torch.randn(1, 2048)
    expected = nn.Sequential(*modules)(row).detach()
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            alone, two = net(row), net(row.expand(2, 2048))
            of_bfloat16 = net(row.bfloat16())
        derived = net(row)
        with torch.no_grad():
            small = Chained(nn.Linear(2048, 8), nn.ReLU())(row)
    torch.testing.assert_close(alone, expected)
    torch.testing.assert_close(of_bfloat16, expected, atol=1e-2, rtol=0)
    assert of_bfloat16.dtype == torch.float32
    assert two.dtype == derived.dtype == small.dtype == torch.bfloat16
    torch.testing.assert_close(two[:1].float(), expected, atol=2e-2, rtol=0)
