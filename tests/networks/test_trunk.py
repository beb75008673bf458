import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from rlrun.device import Device
from rlrun.networks import trunk as module
from rlrun.networks.chain import Chained
from rlrun.networks.trunk import Trunk, at_once


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def make() -> tuple[Chained, nn.Sequential]:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Conv2d(8, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)]
    return Chained(*layers), nn.Sequential(*layers)


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the number of parts each time that something is done in parts."""
    seen: list[int] = []

    def spy(function: object, items: list[object]) -> list[object]:
        seen.append(len(items))
        return at_once(function, items)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "at_once", spy)
    return seen


@pytest.mark.parametrize("rows", [32, 33, 75])
@pytest.mark.parametrize("threads", [2, 3])
def test_parts_are_the_whole_and_so_are_their_gradients(
    rows: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = counted(monkeypatch)
    torch.set_num_threads(threads)
    (net, layers), x = make(), images(rows)
    weights = list(net.parameters())
    found = torch.autograd.grad(net(x).square().sum(), weights)
    wanted = torch.autograd.grad(layers(x).square().sum(), weights)
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(net(x), layers(x))
    assert seen == [min(threads, rows // module.ROWS_OF_A_PART)] * 3
    assert torch.get_num_threads() == threads


def test_the_same_parts_give_the_same_bits() -> None:
    (net, _), x = make(), images(64)
    runs = [torch.autograd.grad(net(x).square().sum(), list(net.parameters())) for _ in range(5)]
    for again in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], again, strict=True))


def test_few_rows_one_thread_and_inputs_to_derive_by_are_left_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = counted(monkeypatch)
    net, layers = make()
    x = images(64).requires_grad_()
    torch.testing.assert_close(net(x), layers(x))
    assert torch.autograd.grad(net(x).sum(), x)[0].shape == x.shape
    net(images(2 * module.ROWS_OF_A_PART - 1))
    torch.set_num_threads(1)
    net(images(64))
    assert not seen


def test_frozen_weights_get_no_gradient() -> None:
    (net, _), x = make(), images(64)
    first = next(net.parameters()).requires_grad_(False)
    net(x).sum().backward()
    assert first.grad is None
    assert all(weight.grad is not None for weight in net.parameters() if weight is not first)


def test_casts_in_the_parts_are_those_outside() -> None:
    (net, layers), x = make(), images(64)
    with torch.autocast("cpu", torch.bfloat16):
        out, expected = net(x), layers(x)
    assert out.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected, atol=2e-2, rtol=2e-2)
    assert net(x).dtype == torch.float32


def test_gradients_can_be_derived_again_and_again() -> None:
    (net, layers), x = make(), images(64)
    weights = list(net.parameters())

    def curvatures(network: nn.Module) -> list[Tensor]:
        gradient = torch.autograd.grad(network(x).tanh().square().mean(), weights, create_graph=True)
        along = torch.stack([(g * g.detach()).sum() for g in gradient]).sum()
        return [h for _ in range(2) for h in torch.autograd.grad(along, weights, retain_graph=True)]

    for got, want in zip(curvatures(net), curvatures(layers), strict=True):
        torch.testing.assert_close(got, want, atol=1e-3, rtol=1e-3)


def test_what_the_parts_remember_is_gone_after_the_way_back() -> None:
    (net, _), x = make(), images(64)
    seen: list[weakref.ref[Tensor]] = []
    net[1].register_forward_hook(lambda module, inputs, output: seen.append(weakref.ref(output)))
    loss = net(x).sum()
    gc.collect()
    assert all(output() is not None for output in seen)
    loss.backward()
    gc.collect()
    assert [output() for output in seen] == [None, None]
    assert loss.grad_fn is not None


def test_an_error_in_another_thread_is_raised_here() -> None:
    def fail(item: int) -> int:
        if item:
            raise ValueError("of the second")
        return item

    with pytest.raises(ValueError, match="of the second"):
        at_once(fail, [0, 1])
    assert torch.get_num_threads() == 2


def test_an_error_here_waits_for_the_other_threads() -> None:
    done: list[int] = []

    def fail(item: int) -> None:
        if not item:
            raise ValueError("of the first")
        time.sleep(0.1)
        done.append(item)

    with pytest.raises(ValueError, match="of the first"):
        at_once(fail, [0, 1, 2])
    assert sorted(done) == [1, 2]


def test_callers_in_several_threads_do_not_wait_for_each_other() -> None:
    everyone = threading.Barrier(6, timeout=30)  # broken if one of them came later

    def caller() -> None:
        at_once(lambda item: everyone.wait(), [0, 1])

    threads = [threading.Thread(target=caller) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not everyone.broken


def test_casts_of_constant_weights_are_kept_over_the_parts() -> None:
    (net, _), x = make(), images(64)
    kept = Device(kind="cpu", threads=2, precision="bf16", compile=False, deterministic=True, replay_on_device=False)

    def casts() -> int:
        with torch.profiler.profile() as profile, torch.no_grad(), kept.autocast():
            net(x.bfloat16())
        return sum(event.count for event in profile.key_averages() if event.key == "aten::_to_copy")

    with kept.constant_weights():
        first, second = casts(), casts()
    assert second < first


def test_only_what_has_convolutions_is_a_trunk() -> None:
    assert Trunk.first_of([nn.Flatten(), nn.Linear(3, 2)]) is None
    assert Trunk.first_of([nn.Linear(3, 2), nn.Conv2d(1, 1, 1)]) is None
    trunk = Trunk.first_of([nn.Identity(), nn.Conv2d(1, 1, 1), nn.Flatten(), nn.Linear(3, 2)])
    assert trunk is not None
    assert len(trunk) == 3


def test_a_forked_process_starts_threads_of_its_own() -> None:
    code = """
import os, torch
from rlrun.networks.trunk import at_once
torch.set_num_threads(2)
assert at_once(lambda x: x + 1, [1, 2]) == [2, 3]
child = os.fork()
if not child:
    os._exit(0 if at_once(lambda x: x + 1, [1, 2]) == [2, 3] else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
