"""Convolutions as one operation: the outputs and derivatives of their modules, whoever computes them."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.func import functional_call

from rlrun.device import have_one_thread
from rlrun.networks import convolved as module
from rlrun.networks.chain import Chained
from rlrun.networks.convolved import Convolved
from rlrun.networks.images import Conv2d, Flatten, Image
from rlrun.networks.jobs import helped
from rlrun.networks.trunk import Trunk

BYTES = spaces.Box(0, 255, (4, 20, 20), np.uint8)
FLOATS = spaces.Box(-1, 1, (4, 20, 20), np.float32)


def modules(space: spaces.Box = BYTES) -> list[nn.Module]:
    torch.manual_seed(0)
    image = Image(space)
    first, second = Conv2d(4, 8, 4, 2, scale=image.scale), nn.Conv2d(8, 6, 3, padding=1, dilation=2, groups=2)
    layers = [image, first, nn.ReLU(), second, nn.ReLU(), Conv2d(6, 5, 3), nn.ReLU(), Flatten()]
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            assert layer.bias is not None
            nn.init.uniform_(layer.bias, -0.5, 0.5)
    return layers


def images(space: spaces.Box = BYTES, count: int = 7) -> Tensor:
    space.seed(1)
    return torch.from_numpy(np.stack([space.sample() for _ in range(count)]))


def found(function: Callable[[Tensor], Tensor], layers: list[nn.Module], x: Tensor, cast: bool) -> list[Tensor]:
    """Return the output and the gradients of its weighted sum."""
    weights = [weight for layer in layers for weight in layer.parameters()]
    with torch.autocast("cpu", torch.bfloat16) if cast else nullcontext():
        out = function(x)
    along = torch.linspace(-1, 1, out.numel()).view(out.shape).to(out.dtype)
    return [out, *torch.autograd.grad(out, weights, along)]


def one(layers: list[nn.Module]) -> Convolved:
    convolved = Convolved.of(layers)
    assert convolved is not None
    return convolved


@pytest.mark.parametrize("space", [BYTES, FLOATS], ids=["bytes", "floats"])
@pytest.mark.parametrize("cast", [False, True], ids=["float32", "bf16"])
def test_outputs_and_gradients_are_those_of_the_modules(space: spaces.Box, cast: bool) -> None:
    layers, x = modules(space), images(space)
    got = found(one(layers), layers, x, cast)
    want = found(nn.Sequential(*layers), layers, x, cast)
    assert all(gradient.any() for gradient in want)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype
        tolerance = (2e-2 if cast else 1e-5) * float(b.detach().abs().max())
        torch.testing.assert_close(a, b, atol=tolerance, rtol=0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16) if cast else nullcontext():
        assert torch.equal(one(layers)(x), got[0])


@pytest.mark.parametrize("cast", [False, True], ids=["float32", "bf16"])
def test_a_helper_changes_no_bit(cast: bool) -> None:
    layers, x = modules(), images()
    alone = found(one(layers), layers, x, cast)
    with ThreadPoolExecutor(1, initializer=have_one_thread) as helper, helped(helper):
        for _ in range(20):
            assert all(map(torch.equal, found(one(layers), layers, x, cast), alone))


def test_a_helper_computes_gradients_by_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    layers, x, asked = modules(), images(), []
    with ThreadPoolExecutor(1) as helper:
        submit = helper.submit
        monkeypatch.setattr(helper, "submit", lambda job: asked.append(job) or submit(job))
        with helped(helper):
            found(one(layers), layers, x, cast=False)
    assert len(asked) == 3  # one for each convolution


def test_a_trunk_of_such_layers_is_one_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    layers, x, calls = modules(), images(), []
    call = Convolved.__call__
    monkeypatch.setattr(Convolved, "__call__", lambda self, x: calls.append(len(x)) or call(self, x))
    trunk = Trunk.first_of([*layers, nn.Linear(180, 2)])
    assert trunk is not None
    trunk(x)
    with torch.no_grad():
        trunk(x)
    torch.set_num_threads(2)
    trunk(images(count=33))
    assert sorted(calls) == [7, 7, 16, 17]


def curvature(function: Callable[[Tensor], Tensor], weights: list[Tensor], x: Tensor, cast: bool) -> list[Tensor]:
    with torch.autocast("cpu", torch.bfloat16) if cast else nullcontext():
        out = function(x)
    gradient = torch.autograd.grad(out.float().tanh().square().mean(), weights, create_graph=True)
    along = torch.stack([(g * g.detach()).sum() for g in gradient]).sum()
    return list(torch.autograd.grad(along, weights))


@pytest.mark.parametrize("cast", [False, True], ids=["float32", "bf16"])
def test_gradients_can_be_derived_again(cast: bool) -> None:
    layers, x = modules(), images()
    weights = [weight for layer in layers for weight in layer.parameters()]
    found, expected = (curvature(function, weights, x, cast) for function in (one(layers), nn.Sequential(*layers)))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=(2e-2 if cast else 1e-4) * float(b.abs().max()), rtol=0)
    if cast:  # which is not what they are without
        exact = curvature(one(layers), weights, x, cast=False)
        assert distance(found, expected) < 0.5 * distance(found, exact)


def distance(some: list[Tensor], others: list[Tensor]) -> float:
    return float(torch.stack([(a - b).norm() for a, b in zip(some, others, strict=True)]).norm())


def test_they_are_derived_by_the_weights_of_the_way_there() -> None:
    layers, x = modules(), images()
    net, fast = Chained(*layers), {}
    for name, weight in net.named_parameters():
        fast[name] = (0.5 * weight.detach()).requires_grad_()
    given = list(fast.values())
    expected = curvature(lambda x: functional_call(nn.Sequential(*layers), fast, (x,)), given, x, cast=False)
    found = curvature(lambda x: functional_call(net, fast, (x,)), given, x, cast=False)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4 * float(b.abs().max()), rtol=0)


def test_what_is_not_a_number_stays_so() -> None:
    layers = modules()
    with torch.no_grad():
        next(layers[1].parameters())[0] = torch.nan
    assert one(layers)(images()).isnan().any()


def other_layers() -> dict[str, list[nn.Module]]:
    plain = modules()
    twice = nn.Conv2d(4, 4, 3, padding=1)

    class Doubled(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    return {
        "no image": plain[1:],
        "no flattening": plain[:-1],
        "another activation": [*plain[:2], nn.Tanh(), *plain[3:]],
        "no activation": [*plain[:2], *plain[3:]],
        "a norm": [*plain[:2], nn.LayerNorm([8, 9, 9]), *plain[2:]],
        "no convolution": [plain[0], plain[-1]],
        "no bias": [plain[0], nn.Conv2d(4, 8, 4, bias=False), *plain[2:]],
        "reflected": [plain[0], nn.Conv2d(4, 8, 4, padding=1, padding_mode="reflect"), *plain[2:]],
        "by name": [plain[0], nn.Conv2d(4, 8, 4, padding="same"), *plain[2:]],
        "somebody's": [plain[0], Doubled(4, 8, 4), *plain[2:]],
        "one twice": [plain[0], twice, nn.ReLU(), twice, nn.ReLU(), plain[-1]],
        "nothing": [],
    }


@pytest.mark.parametrize("name", other_layers())
def test_other_layers_are_left_alone(name: str) -> None:
    assert Convolved.of(other_layers()[name]) is None


def hooked(layers: list[nn.Module]) -> None:
    layers[3].register_forward_hook(lambda module, inputs, output: output * 0)


def hooked_before(layers: list[nn.Module]) -> None:
    layers[3].register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))


def hooked_on_the_way_back(layers: list[nn.Module]) -> None:
    layers[3].register_full_backward_hook(lambda module, grads, outputs: None)


def hooked_before_the_way_back(layers: list[nn.Module]) -> None:
    layers[3].register_full_backward_pre_hook(lambda module, grads: None)


def done_otherwise(layers: list[nn.Module]) -> None:
    layers[4].forward = torch.tanh  # type: ignore[method-assign]


def without_bias(layers: list[nn.Module]) -> None:
    layers[1].bias = None  # type: ignore[assignment]


def frozen(layers: list[nn.Module]) -> None:
    layers[1].requires_grad_(False)


def double(layers: list[nn.Module]) -> None:
    for layer in layers:
        layer.double()


def computed(layers: list[nn.Module]) -> None:
    nn.utils.parametrizations.spectral_norm(layers[3])
    layers[3].eval()


CHANGES = [
    hooked,
    hooked_before,
    hooked_on_the_way_back,
    hooked_before_the_way_back,
    done_otherwise,
    without_bias,
    frozen,
    double,
    computed,
]


@pytest.mark.parametrize("change", CHANGES)
def test_layers_that_do_more_are_asked_themselves(change: Callable[[list[nn.Module]], Any]) -> None:
    layers = modules()
    convolved, trunk = one(layers), Trunk(layers)
    change(layers)
    assert not convolved.fits(images())
    if change is not double:
        assert torch.equal(trunk(images()), nn.Sequential(*layers)(images()))


def test_inputs_to_derive_by_are_left_to_the_modules() -> None:
    x = images(FLOATS).requires_grad_()
    assert not one(modules(FLOATS)).fits(x)
    with torch.no_grad():
        assert one(modules(FLOATS)).fits(x.detach())


def test_weights_changed_before_the_way_back_are_noticed() -> None:
    layers = modules()
    out = one(layers)(images())
    with torch.no_grad():
        next(layers[3].parameters()).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_a_graph_is_gone_through_once() -> None:
    out = one(modules())(images()).sum()
    out.backward()
    with pytest.raises(RuntimeError, match="a second time"):
        out.backward()


def test_what_is_traced_is_left_to_the_modules_and_so_are_hooks_of_all() -> None:
    layers, seen = modules(), []

    def look(x: Tensor) -> Tensor:
        seen.append(one(layers).fits(x))
        return x * 2

    torch.jit.trace(look, images(), check_trace=False)
    handle = nn.modules.module.register_module_forward_hook(lambda module, inputs, output: None)
    look(images())
    handle.remove()
    look(images())
    assert seen == [False, False, True]


def test_weights_that_are_set_anew_are_those() -> None:
    layers, x = modules(), images()
    weight = layers[1].weight
    del layers[1].weight
    layers[1].weight = nn.Parameter(0.5 * weight.detach())  # now after the bias
    for a, b in zip(found(one(layers), layers, x, False), found(nn.Sequential(*layers), layers, x, False), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5 * float(b.detach().abs().max()), rtol=0)


def test_nothing_is_under_way_after_a_way_back_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    layers, done = modules(), []
    out = one(layers)(images())

    def slow(*args: Any) -> None:
        time.sleep(0.1)
        done.append(1)

    monkeypatch.setattr(module._Layer, "by_weight", slow)
    monkeypatch.setattr(module._Layer, "by_input", lambda *args: 1 / 0)
    with ThreadPoolExecutor(1) as helper, helped(helper):
        with pytest.raises(ZeroDivisionError):
            out.sum().backward()
        count = len(done)
        helper.submit(int).result()
        assert len(done) == count
